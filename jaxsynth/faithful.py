"""Generated images that keep to their labels: judged when made, drawn again where they do not; part of `sample`."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsynth.errors import InputError
from jaxsynth.metrics import fidelity


def check(labels: np.ndarray) -> None:
    """Raises InputError where images of such labels cannot be judged."""
    try:
        fidelity.check_gaps(labels)
    except InputError as error:
        raise InputError(f"--faithful: {error}") from None


def judge(labels: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, dict]:
    """(labels without the cells that vanished in the image, {"dropped", "phantoms"}: how many of each).

    Not judged, phantoms None: images without any cell, as nothing tells how large one would be, and those whose cells
    touch all around. A data set that is all of these is refused beforehand, see `check`.
    """
    if not labels.any() or fidelity.touching_share(labels) > fidelity.TOUCHING:
        return labels, {"dropped": 0, "phantoms": None}
    found = fidelity.fidelity(labels, image)
    return fidelity.drop(labels, found.vanished), {"dropped": len(found.vanished), "phantoms": len(found.phantoms)}


@dataclasses.dataclass
class Draws:
    """Which images are drawn again, and what was best of each; may be asked by many threads, one per name.

    Attributes:
      attempts: draws of an image that has faults, at most; 0 and 1: none is drawn again.
      attempt: which draw is under way, from 0.
      best: name -> (number of faults, what the manifest is to tell), of what is not finished.
      left: names of those that are drawn once more.
    """

    attempts: int
    attempt: int = 0
    best: dict[str, tuple[int, dict]] = dataclasses.field(default_factory=dict)
    left: set[str] = dataclasses.field(default_factory=set)

    def stream(self, name: str) -> tuple[str | int, ...]:
        """The named stream of an image's noise in this draw, see `keys.stream`; the first is that of all images."""
        return ("redraw", name, self.attempt) if self.attempt else ("sample", name)

    def settle(self, name: str, verdict: dict, write: Callable[[], dict]) -> dict | None:
        """Calls `write` where there is no draw as good yet.

        Args:
          verdict: of `judge`; {}: the image was not to be judged.
          write: writes the image's files and returns what the manifest is to tell of them.

        Returns:
          What the manifest is to tell of the best draw, or None where there will be another.
        """
        faults = sum(count or 0 for count in verdict.values())
        if name not in self.best or faults < self.best[name][0]:
            self.best[name] = faults, write() | verdict
        if faults and self.attempt + 1 < self.attempts:
            self.left.add(name)
            return None
        return self.best.pop(name)[1] | ({"attempts": self.attempt + 1} if verdict else {})

    def again(self, work: Sequence[Any]) -> list[Any]:
        """Begins the next draw: batches (`image_files.Batch`) of the shapes and sizes in `work`, so that nothing is
        compiled again, of those images that need it."""
        kinds, made = collections.defaultdict(list), []
        for batch in work:
            kinds[dataclasses.replace(batch, jobs=())] += [job for job in batch.jobs if job.name in self.left]
        for kind, jobs in kinds.items():
            size = kind.size or 1
            made += [dataclasses.replace(kind, jobs=tuple(jobs[i : i + size])) for i in range(0, len(jobs), size)]
        self.left.clear()
        self.attempt += 1
        return made


def summary(entries: Sequence[dict]) -> str:
    """What was dropped, what is left and what was drawn again, of what manifests tell of judged images: one line."""
    dropped, left = (sum(entry[what] or 0 for entry in entries) for what in ("dropped", "phantoms"))
    total, where = dropped + sum(entry["num_cells"] for entry in entries), sum(bool(e["phantoms"]) for e in entries)
    redrawn = sum(entry["attempts"] > 1 for entry in entries)
    return f"faithful: {dropped} cells dropped of {total}, {left} phantoms left in {where} images, {redrawn} redrawn"
