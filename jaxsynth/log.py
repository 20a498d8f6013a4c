"""What a run leaves to look at: scalars as JSON lines and TensorBoard events, preview pictures."""

import json
import math
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

SCALARS = "scalars.jsonl"


class ScalarLog:
    """Writes scalars of a run to `scalars.jsonl` and `tensorboard/`; a context manager.

    A class because two open files go together. On a restart the lines past the restored step are dropped, so that
    a step stands there once.
    """

    def __init__(self, workdir: Path, first_step: int):
        file = workdir / SCALARS
        kept = []
        if file.is_file():
            for line in file.read_text().splitlines():
                # A killed run may have left half a line.
                try:
                    if json.loads(line)["step"] <= first_step:
                        kept.append(line + "\n")
                except (json.JSONDecodeError, KeyError):
                    continue
        file.write_text("".join(kept))
        self._file = file.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, scalars: dict) -> None:
        """One line {"step": ..., "time": ..., name: value}; values that are not finite are left out of the line."""
        finite = {name: float(value) for name, value in scalars.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")
        for name, value in finite.items():
            self._events.add_scalar(name, value, step)

    def __enter__(self) -> "ScalarLog":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._events.close()


def write_preview(workdir: Path, step: int, volumes: dict) -> Path:
    """Writes `previews/STEP.png`, a contact sheet of title -> array [*S] in [-1, 1]; returns its path."""
    from jaxsynth import figures  # matplotlib takes a second to import, and few runs of a command draw

    path = workdir / "previews" / f"{step:07d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # By name, as jit has ordered them, but what is real first.
    titles = sorted(volumes, key=lambda title: (not title.startswith("real"), title))
    figures.preview(path, {title: np.asarray(volumes[title]) for title in titles})
    return path
