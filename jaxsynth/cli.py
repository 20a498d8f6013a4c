"""What the commands share: one line and status 2 for a user's mistake, and the compilation cache."""

import argparse
import contextlib
import ctypes
import datetime
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxsynth.errors import InputError

QUIET_S = 20.0  # an image that takes longer tells how far it is


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all others, and whose help keeps the docstring's lines."""

    def __init__(self, prog: str, description: str, **options):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message: str):
        """Raises InputError."""
        raise InputError(message)


def run(main: Callable[[], None]) -> None:
    """Calls `main`; an InputError, or a file the system refuses, becomes one line on stderr and exit status 2; Ctrl-C
    exits with status 130."""
    try:
        main()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A folder that cannot be written, a full disk: named by the system, not a bug either.
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def keep_memory() -> None:
    """Makes the C library keep what is freed instead of returning it to the system.

    A program on a CPU takes its temporaries, gigabytes in 3D, anew at every call; fetching them from the system page by
    page took a fifth of a training step. Before the first use of jax, by commands that have the device compute for long
    and need no memory beside. Nothing happens where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h: one heap, large blocks on it, too, and never cut back.
    for parameter, value in ((-8, 1), (-4, 0), (-1, -1)):
        mallopt(parameter, value)


def eta(begun: float, share: float) -> str:
    """When work will be finished, "ETA 0:01:30", of which a share in (0, 1] is done since `time.perf_counter()` was
    `begun`."""
    return f"ETA {datetime.timedelta(seconds=round((time.perf_counter() - begun) * max(1 / share - 1, 0)))}"


def cache_dir() -> Path:
    """The user's cache folder of jaxsynth, `$XDG_CACHE_HOME/jaxsynth` or `~/.cache/jaxsynth`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxsynth"


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, so that a second run starts at once.

    Skipped where the user set JAX_COMPILATION_CACHE_DIR (jax reads it itself) or the folder cannot be made.
    """
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        folder = cache_dir() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def telling(what: str) -> Callable[[int, int], None]:
    """A progress(done, number) that prints how far `what` is, once it has taken QUIET_S."""
    begun = time.perf_counter()

    def progress(done: int, number: int) -> None:
        if done < number and time.perf_counter() - begun > QUIET_S:
            print(f"{what} {done} of {number}, {eta(begun, done / number)}", flush=True)

    return progress


@contextlib.contextmanager
def profile(folder: str | Path | None) -> Iterator[None]:
    """Traces what is run inside into `folder`, for TensorBoard and Perfetto; nothing where it is None.

    Raises:
      InputError: the folder cannot be made.
    """
    if folder is None:
        yield
        return
    import jax

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--profile {folder}: cannot make the folder: {error.strerror}") from error
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        yield
    found = max(Path(folder).rglob("perfetto_trace.json.gz"), key=lambda file: file.stat().st_mtime, default=folder)
    print(f"trace: open {found} at ui.perfetto.dev, or tensorboard --logdir {folder} (with xprof)", flush=True)


def read_config(path: str, overrides: list[str]):
    """The locked ConfigDict of a configuration file with `--config.a.b=value` overrides applied.

    Raises:
      InputError: no such file, an unknown key (the nearest one is suggested), a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    if not Path(path).is_file():
        raise InputError(f"--config: no such file: {path}")
    for item in overrides:
        if not item.startswith("--config.") or "=" not in item:
            raise InputError(f"unknown argument {item!r}: expected --config.KEY=VALUE, keys as in configs/common.py")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    # Configurations import `configs.common`, which the console scripts do not find by themselves.
    root = str(Path(path).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    argv, sys.argv = sys.argv, [sys.argv[0], f"--config={path}", *overrides]  # the library reads sys.argv itself
    try:
        values(sys.argv)
        return values.config
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error  # str of a KeyError is quoted
        raise InputError(f"{path}: {'no such key: ' if isinstance(error, KeyError) else ''}{reason}") from error
    finally:
        sys.argv = argv


def numbers(kind: type) -> Callable[[str], tuple]:
    """The argparse type of numbers joined by commas: `type=numbers(int)` parses 32,128,128 into a tuple."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            name = "whole numbers" if kind is int else "numbers"
            message = f"expected {name} joined by commas, such as 32,128,128; got {text!r}"
            raise argparse.ArgumentTypeError(message) from None

    return parse
