"""The case of the benchmark suite `start`: seconds from a command to what it was started for."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGE = Path(__file__).parent
CONFIG = PACKAGE.parent / "configs" / "ddpm.py"
NUM_IMAGES, SIZE = 8, 64


def start(*, rounds: int = 3, commands: tuple[str, ...] | None = None, **model) -> dict:
    """`train` on small images until its first step is done, each run a process of its own: with an empty compilation
    cache (cold_s), with what that left there (median_s), and going on from a checkpoint (restore_s).

    Args:
      rounds: warm starts.
      commands: modules whose --help is timed, all by default; help_s is the slowest.
      model: keys of the configuration's section `model`.
    """
    helps = {command: _help_s(command) for command in commands or find_commands()}
    slowest = max(helps, key=helps.get)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_images(folder / "images")
        # The cache that the command makes for itself, in a home of its own.
        environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONUNBUFFERED": "1"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)

        def first_step(run: str, step: int, complete: bool = False) -> float:
            words = [sys.executable, "-m", "jaxsynth.train", "--workdir", str(folder / run), "--config", str(CONFIG)]
            words += overrides(folder / "images", step, **model)
            return until(words, f"step {step}/{step} ", environment, complete)

        cold_s = first_step("first", 1, complete=True)  # to its end, where it saves
        warm = [first_step(f"warm {number}", 1) for number in range(rounds)]
        restore_s = first_step("first", 2)
    row = {"median_s": statistics.median(warm), "cold_s": cold_s, "restore_s": restore_s}
    note = f"8 patches of {SIZE} x {SIZE}; the slowest --help is that of {slowest}"
    return row | {"help_s": helps[slowest], "note": note}


def overrides(images: Path, num_steps: int, **model) -> list[str]:
    """What makes configs/ddpm.py a training of so many steps on the small images."""
    options = {"data.path": images, "data.patch": f"({SIZE}, {SIZE})", "train.num_steps": num_steps}
    # Constant, or the number of steps would be part of the program.
    options |= {"train.log_every": 1, "optim.schedule": "constant"}
    options |= {f"model.{key}": value for key, value in model.items()}
    return [f"--config.{key}={value}" for key, value in options.items()]


def until(words: list[str], beginning: str, environment: dict | None = None, complete: bool = False) -> float:
    """Seconds until a command prints a line with this beginning; then it is killed, unless it is to be `complete`.

    Raises:
      RuntimeError: it ended without, or with another status than 0.
    """
    began, seconds = time.perf_counter(), None
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                if seconds is None and line.startswith(beginning):
                    seconds = time.perf_counter() - began
                    if not complete:
                        process.kill()
        if seconds is None or (complete and process.returncode):
            errors.seek(0)
            raise RuntimeError(f"{' '.join(words)}: status {process.returncode}\n{errors.read()}")
    return seconds


def write_images(folder: Path) -> None:
    """NUM_IMAGES TIFFs of SIZE x SIZE voxels, uint16: blobs on noise."""
    import numpy as np

    from jaxsynth.data import writing

    folder.mkdir()
    rng = np.random.default_rng(0)
    place = np.mgrid[:SIZE, :SIZE]
    for number in range(NUM_IMAGES):
        centres = rng.uniform(0, SIZE, (6, 2, 1, 1))
        blobs = np.exp(-np.square(place - centres).sum(1) / 50).sum(0)
        writing.write(folder / f"{number}.tif", (500 + 4000 * blobs + rng.normal(0, 30, blobs.shape)).astype(np.uint16))


def find_commands() -> list[str]:
    """The modules of the package that are commands."""
    return sorted(file.stem for file in PACKAGE.glob("[!_]*.py") if "\ndef main() -> None:" in file.read_text())


def _help_s(command: str) -> float:
    """Median of three."""
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"jaxsynth.{command}", "--help"], check=True, stdout=subprocess.DEVNULL)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)
