"""Time series in the Cell Tracking Challenge's layout: file names, labels that last, and the table of tracks.

A row of the table is `L B E P`: label, first and last frame (from 0, both included), label of the parent or 0. A track
is one cell from its birth or arrival to its division, death or departure, and shows in every frame between.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxsynth.errors import InputError

MOST = 65535  # labels are uint16


@dataclass(frozen=True)
class Names:
    """Where the files of one sequence lie; see `ctc_names`."""

    out: Path
    sequence: str
    digits: int

    def image(self, frame: int) -> Path:
        """The image of a frame, 01/t000.tif."""
        return self.out / self.sequence / f"t{frame:0{self.digits}d}.tif"

    def tracking(self, frame: int) -> Path:
        """Its labels, which last over the sequence, 01_GT/TRA/man_track000.tif."""
        return self.out / f"{self.sequence}_GT" / "TRA" / f"man_track{frame:0{self.digits}d}.tif"

    def segmentation(self, frame: int) -> Path:
        """Its segmentation, 01_GT/SEG/man_seg000.tif."""
        return self.out / f"{self.sequence}_GT" / "SEG" / f"man_seg{frame:0{self.digits}d}.tif"

    @property
    def table(self) -> Path:
        """The table of tracks, 01_GT/TRA/man_track.txt."""
        return self.out / f"{self.sequence}_GT" / "TRA" / "man_track.txt"


def ctc_names(out: str | os.PathLike, sequence: int = 1, num_frames: int = 1000) -> Names:
    """The file names of a sequence under the data set's folder `out`; makes no folders.

    Frames are numbered with 3 digits, more only where a sequence has more than 1000.

    Raises:
      InputError: the sequence is not in 1 to 99, the two digits that the layout has for it.
    """
    if not 1 <= sequence <= 99:
        raise InputError(f"sequence: expected 1 to 99; got {sequence}")
    return Names(Path(out), f"{sequence:02d}", max(3, len(str(num_frames - 1))))


class Tracks(NamedTuple):
    """What is to be written of a series.

    Attributes:
      rows: int64 [K, 4], L B E P, by label.
      labels: int32 [T, N + 1]; labels[t][image] is frame t with the table's labels. The identity, unless some cell is
        out of sight for a while.
    """

    rows: np.ndarray
    labels: np.ndarray


def track_table(frames: Iterable[np.ndarray], parent: np.ndarray) -> Tracks:
    """The table of tracks of what can be seen.

    The layout wants a track to show in every frame from B to E. A cell that is out of sight for a while (it left the
    image, or is hidden) therefore becomes several tracks, each the parent of the next: the first keeps the label, the
    others get labels above N. A cell's parent is the last track of its mother that can be seen; 0 where the mother is
    never seen. Cells never seen have no row.

    Args:
      frames: label images of the series in order, int [*S], 0 = background, a cell's label the same throughout. Read
        once, one at a time.
      parent: int [N]; parent[i] is the label of the mother of cell i + 1, or 0.

    Raises:
      InputError: a label outside 0 to N, a parent outside, a mother seen when her daughter is already there, or more
        tracks than uint16 has labels.
    """
    parent = np.asarray(parent).astype(np.int64)
    count = len(parent)
    if count and not (0 <= parent.min() and parent.max() <= count):
        raise InputError(f"parent: expected labels in 0 to {count}; got {parent.min()} to {parent.max()}")
    seen = []
    for number, frame in enumerate(frames):
        found = np.unique(frame)
        if found.size and not (0 <= found[0] and found[-1] <= count):
            raise InputError(f"frame {number}: expected labels in 0 to {count}; got {found[0]} to {found[-1]}")
        seen.append(np.zeros(count + 1, bool))
        seen[-1][found] = True
    seen = np.array(seen).reshape(-1, count + 1)
    seen[:, 0] = False
    # Where a stay begins and ends: +1 and -1 in the differences along time.
    edges = np.diff(np.pad(seen.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    cell, begin = np.nonzero(edges.T == 1)
    end = np.nonzero(edges.T == -1)[1] - 1
    again = np.r_[False, cell[1:] == cell[:-1]] if cell.size else np.zeros(0, bool)
    label = np.where(again, count + np.cumsum(again), cell)
    if label.size and label.max() > MOST:
        raise InputError(
            f"frames: {label.max()} tracks, but the layout's uint16 labels end at {MOST}; take fewer cells"
        )
    last = np.zeros(count + 1, np.int64)
    last[cell] = label  # of a cell's stays the latest wins
    last_end = np.full(count + 1, -1)
    last_end[cell] = end
    mother = np.r_[0, parent][cell]
    early = ~again & (last[mother] > 0) & (last_end[mother] >= begin)
    if early.any():
        at = np.flatnonzero(early)[0]
        raise InputError(
            f"parent: expected mothers to end before their daughters begin; cell {mother[at]}, the mother of "
            f"{cell[at]}, is seen until frame {last_end[mother[at]]}, her daughter from {begin[at]}"
        )
    before = np.r_[0, label[:-1]] if label.size else label
    rows = np.stack([label, begin, end, np.where(again, before, last[mother])], axis=1).astype(np.int64)
    labels = np.tile(np.arange(count + 1, dtype=np.int32), (len(seen), 1))
    for at in np.flatnonzero(again):
        labels[begin[at] : end[at] + 1, cell[at]] = label[at]
    return Tracks(rows[np.argsort(label)], labels)


def relabel(labels: np.ndarray, lookup: np.ndarray) -> np.ndarray:
    """A frame with the table's labels, uint16: `lookup` is its row of `Tracks.labels`.

    Raises:
      InputError: a label above 65535.
    """
    new = np.asarray(lookup)[np.asarray(labels)]
    if new.size and new.max() > MOST:
        raise InputError(f"labels: expected at most {MOST}, the files being uint16; got {new.max()}")
    return new.astype(np.uint16)


def write_tracks(path: str | os.PathLike, rows: np.ndarray) -> None:
    """Writes the table, one row a line, whole or not at all. Raises InputError where `check_tracks` does."""
    check_tracks(rows)
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text("".join(" ".join(map(str, map(int, row))) + "\n" for row in rows))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_tracks(path: str | os.PathLike) -> np.ndarray:
    """Reads a table: int64 [K, 4], rows L B E P. Raises InputError that names file and line; see `check_tracks`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            row = [int(part) for part in parts]
        except ValueError:
            row = []
        if len(row) != 4:
            raise InputError(f"{path}: line {number}: expected four whole numbers, L B E P; got {line.strip()[:60]!r}")
        rows.append(row)
    return np.array(rows, np.int64).reshape(-1, 4)


def check_tracks(rows: np.ndarray, frames: Iterable[np.ndarray] | None = None) -> None:
    """Raises InputError for the first thing that is wrong with a table, by itself and against the label images.

    Args:
      rows: int [K, 4], L B E P.
      frames: label images in order, all of the sequence; read once, one at a time. None: the table alone.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise InputError(f"tracks: expected rows of four numbers, L B E P; got shape {rows.shape}")
    tracks = {}
    for label, begin, end, parent in rows.tolist():
        if not 1 <= label <= MOST:
            raise InputError(f"track {label}: expected a label in 1 to {MOST}")
        if label in tracks:
            raise InputError(f"track {label}: listed twice")
        if not 0 <= begin <= end:
            raise InputError(f"track {label}: expected 0 <= begin <= end; got {begin} and {end}")
        tracks[label] = begin, end, parent
    for label, (begin, _, parent) in tracks.items():
        if parent and parent not in tracks:
            raise InputError(f"track {label}: its parent {parent} is not in the table")
        if parent and tracks[parent][1] >= begin:
            raise InputError(
                f"track {label}: its parent {parent} must end before it begins; got {tracks[parent][1]} and {begin}"
            )
    if frames is None:
        return
    number = -1
    for number, frame in enumerate(frames):
        shown = set(np.unique(frame).tolist()) - {0}
        due = {label for label, (begin, end, _) in tracks.items() if begin <= number <= end}
        for label in sorted(shown ^ due):
            if label in due:
                raise InputError(f"track {label}: expected in frame {number}, but not in its image")
            raise InputError(f"track {label}: in the image of frame {number}, but not in the table for it")
    late = [label for label, (_, end, _) in tracks.items() if end > number]
    if late:
        raise InputError(f"track {late[0]}: ends in frame {tracks[late[0]][1]}, but there are only {number + 1} frames")
