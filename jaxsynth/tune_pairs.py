"""Real images and the sketches of their cells, as `jaxsynth.tune` compares them."""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxsynth import sketch_files
from jaxsynth.compare_labels import spread
from jaxsynth.data import volumes
from jaxsynth.errors import InputError

REAL, HALVES = "real", "real, other half"


@dataclasses.dataclass(frozen=True)
class Images:
    """What is compared.

    Attributes:
      names: of the pairs, or of the real images where there are none.
      real: [*S] each, the data's own dtype.
      sketches: float32 [*S] each, in [-1, 1].
      paired: whether sketch i shows the cells of real image i.
    """

    names: tuple[str, ...]
    real: tuple[np.ndarray, ...]
    sketches: tuple[np.ndarray, ...]
    paired: bool


def read(args, model) -> Images:
    """The images that `args` (real, sketches, num, crop) name, for a model of `trained.open_trained`.

    Where names are equal, images with a sketch of their name; otherwise images and sketches that have nothing to do
    with one another. At most `num`, evenly spread.

    Raises:
      InputError: they do not suit the model or one another.
    """
    folder = Path(args.sketches)
    folder = folder / "sketches" if (folder / "sketches").is_dir() else folder
    sketch_files.check_scale(folder, model.metadata)
    found = {"--real": volumes.find_files(args.real), "--sketches": volumes.find_files(folder)}
    by_name = [{file.stem: file for file in files} for files in found.values()]
    both = sorted(set(by_name[0]) & set(by_name[1]))
    if both:
        both = [both[i] for i in spread(len(both), min(args.num, len(both)))]
        chosen = [[files[name] for name in both] for files in by_name]
    else:
        chosen = [[files[i] for i in spread(len(files), min(args.num, len(files)))] for files in found.values()]
    sets = [open_real(chosen[0], model), volumes.open_set(chosen[1])]
    for name, one in zip(found, sets, strict=True):
        if one.ndim != model.ndim:
            raise InputError(f"{name}: the images are {one.ndim}D, the model {model.ndim}D")
    if both:
        for real, sketch, *shapes in zip(*chosen, *(one.shapes for one in sets), strict=True):
            if shapes[0] != shapes[1]:
                raise InputError(f"{sketch}: expected the shape of {real}, {shapes[0]}; got {shapes[1]}")
    real, sketches = (tuple(_crop(one, i, args.crop) for i in range(len(one.paths))) for one in sets)
    for path, sketch in zip(sets[1].paths, sketches, strict=True):
        sketch_files.check_values(path, sketch)
    names = tuple(path.stem for path in sets[0].paths)
    return Images(names, real, tuple(sketch.astype(np.float32) for sketch in sketches), bool(both))


def open_real(path, model) -> volumes.VolumeSet:
    """The images at `path` (see `volumes.find_files`), of the channel and data set that the model was trained on."""
    data = model.config.data
    return volumes.open_set(path, channel=None if data.channel < 0 else data.channel, dataset=data.get("dataset"))


def digest(images: Iterable[np.ndarray]) -> str:
    """SHA-256 of the voxels, image after image."""
    found = hashlib.sha256()
    for image in images:
        found.update(np.ascontiguousarray(image))
    return found.hexdigest()


def _crop(one: volumes.VolumeSet, index: int, crop: tuple[int, ...] | None) -> np.ndarray:
    """The middle of an image."""
    shape = one.shapes[index]
    size = crop or shape
    if len(size) != len(shape) or any(c > s for c, s in zip(size, shape, strict=True)):
        raise InputError(f"--crop: expected {len(shape)} numbers within {one.paths[index]}, {shape}; got {size}")
    return volumes.read_patch(one, index, [(s - c) // 2 for c, s in zip(size, shape, strict=True)], size)


def label(sigma: float | None) -> str:
    """What an input of the backward analysis is called; None: the real images."""
    return REAL if sigma is None else f"sketch, sigma {sigma:g}"


def kept(out: Path, which: str, t_start: int) -> Path:
    """Where the first image's result from the input `which` is kept."""
    return out / "images" / f"{which.replace(', sigma ', '_sigma')}_t{t_start:04d}.tif"
