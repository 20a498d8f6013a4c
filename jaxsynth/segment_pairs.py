"""Which label images of two folders belong together."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsynth.data import volumes
from jaxsynth.errors import InputError

# Names of the Cell Tracking Challenge: frame, and plane where a volume is annotated in some planes only.
FRAME = re.compile(r"(?:man_seg|man_track|mask|t)_?(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class Pair:
    """A segmentation, and what it is compared with.

    Attributes:
      name: the segmentation's file name without suffix.
      segmentation: its file.
      references: file -> annotated plane z, or None where the file holds the whole image; several where several planes
        of a volume are annotated.
      image: the file to draw on, or None.
    """

    name: str
    segmentation: Path
    references: dict[Path, int | None]
    image: Path | None = None


def find_pairs(reference, segmentation, images=None) -> tuple[list[Pair], list[Path]]:
    """Files that belong together, by equal names or by the frame's number in names of the Cell Tracking Challenge.

    Args:
      reference, segmentation, images: folder, glob or file each; data sets with labels/ and images/.

    Returns:
      The pairs, in the order of the segmentations, and segmentations without a reference.

    Raises:
      InputError: a reference without segmentation, or a pair without image; the first is named.
    """
    segments = volumes.find_files(_inside(segmentation, "labels"))
    of = _finder(segments, "--segmentation")
    image_of = _finder(volumes.find_files(_inside(images, "images")), "--images") if images else None
    found = {}
    for file in volumes.find_files(_inside(reference, "labels")):
        counterpart = of(file)
        found.setdefault(counterpart, {})[file] = None if counterpart.stem == file.stem else _plane(file)
    pairs = []
    for file in sorted(found):
        planes = list(found[file].values())
        if len(planes) > 1 and (None in planes or len(set(planes)) < len(planes)):
            told = " and ".join(str(one) for one in list(found[file])[:2])
            raise InputError(f"{file}: expected one reference, got {told}")
        pairs.append(Pair(file.stem, file, found[file], image_of(file) if image_of else None))
    return pairs, [file for file in segments if file not in found]


def _finder(files: list[Path], what: str) -> Callable[[Path], Path]:
    """A function that gives the counterpart of a file among `files`."""
    by_stem = volumes.by_name(files, what)
    by_frame = {_frame(file): file for file in files}

    def find(file: Path) -> Path:
        frame = _frame(file)
        found = by_stem.get(file.stem) or (None if frame is None else by_frame.get(frame))
        if found is None:
            raise InputError(f"{what}: no file belongs to {file}, among {len(files)} as {files[0]}")
        return found

    return find


def _frame(file: Path) -> int | None:
    found = FRAME.fullmatch(file.stem)
    return int(found[1]) if found else None


def _plane(file: Path) -> int | None:
    found = FRAME.fullmatch(file.stem)
    return int(found[2]) if found and found[2] else None


def _inside(place, folder: str):
    inside = Path(place) / folder
    return inside if inside.is_dir() else place


def parts(pair: Pair, segmentation: np.ndarray, dataset: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(reference, segmentation) of the image, or of each of its annotated planes; int32 [*S].

    Args:
      dataset: of the references, inside HDF5 files.

    Raises:
      InputError: of different shape, or a plane that the segmentation does not have.
    """
    for file, plane in pair.references.items():
        reference, part = volumes.read_labels(file, dataset=dataset), segmentation
        if plane is not None:
            if segmentation.ndim != 3 or plane >= len(segmentation):
                raise InputError(f"{file}: annotates plane {plane}, but {pair.segmentation} is {segmentation.shape}")
            part = segmentation[plane]
        if reference.shape != part.shape:
            raise InputError(f"{pair.segmentation}: expected the shape {reference.shape} of {file}, got {part.shape}")
        yield reference, part
