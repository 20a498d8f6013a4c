"""What the commands share: one line and status 2 for a user's mistake, and the compilation cache."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from jaxsynth.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Calls `main`; an InputError becomes one line on stderr and exit status 2, Ctrl-C status 130."""
    try:
        main()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


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
    argv, sys.argv = sys.argv, [sys.argv[0], f"--config={path}", *overrides]  # the library reads sys.argv itself
    try:
        values(sys.argv)
        return values.config
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error  # str of a KeyError is quoted
        raise InputError(f"{path}: {'no such key: ' if isinstance(error, KeyError) else ''}{reason}") from error
    finally:
        sys.argv = argv


def parse_ints(text: str | None, name: str, count: int | None = None, least: int = 1) -> tuple[int, ...] | None:
    """The integers of a comma-separated argument `name`, or None where it was not given.

    Raises:
      InputError: no integers, not `count` of them, or one below `least`.
    """
    return _parse_numbers(text, name, count, int, least)


def parse_floats(text: str | None, name: str, count: int | None = None) -> tuple[float, ...] | None:
    """The positive numbers of a comma-separated argument, as `parse_ints`."""
    return _parse_numbers(text, name, count, float, sys.float_info.min)


def _parse_numbers(text, name, count, kind, least):
    if text is None:
        return None
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    right = bool(numbers) and len(numbers) == (count or len(numbers))
    if not right or not all(least <= number < float("inf") for number in numbers):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise InputError(f"{name}: expected {wanted} of at least {least:g}, separated by commas; got {text!r}")
    return numbers
