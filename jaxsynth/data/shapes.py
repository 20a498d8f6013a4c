"""Shape models from the user's label images, and as files."""

import functools
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.sim import shape_model, starshape
from jaxsynth.sim.shape_model import ShapeModel

KINDS = ("organism", "cell")
SIZE = {2: 128, 3: 49}  # nodes along a table's edge
MOST_STEPS_VOX = 192  # an organism is measured on a grid of at most so many voxels along an axis
FORMAT = "jaxsynth.shape_model/1"


def fit_files(
    files: str | os.PathLike | Sequence,
    kind: str,
    num_modes: int,
    *,
    background_label: int = 0,
    spacing_um: Sequence[float] | None = None,
    size: int | None = None,
) -> ShapeModel:
    """A shape model of what is in label images (paper 003, 3.2), in micrometres.

    Args:
      files: as in `volumes.find_files`; label images, all (Y, X) or all (Z, Y, X).
      kind: "organism": all labels of a file together are one sample, cut by the image's edge as they are; "cell": each
        label that does not touch the image's edge is one. Along an axis of one voxel every cell touches it: give such
        files as (Y, X).
      num_modes: M, 0 or more; those beyond the number of samples - 1 are 0.
      background_label: what is not the organism; 0 is never part of it.
      spacing_um: micrometres per voxel, for all files; where None each file's own is used.
      size: K, nodes along the edge of the tables of radii; `SIZE` where None.

    Bodies that are not star-shaped about their centroid count as their farthest boundary
    (`starshape.radii_from_mask`). Nothing is turned or scaled to a common size.

    Raises:
      InputError: `kind` or `num_modes` out of range; a file cannot be read, states no voxel size, or is of another
        rank than the first; no cell in a file of an organism, or no whole cell in any.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected {' or '.join(KINDS)}, got {kind!r}")
    if num_modes < 0:
        raise InputError(f"num_modes: expected 0 or more, got {num_modes}")
    if size is not None and size < 3:
        raise InputError(f"size: expected 3 or more nodes, got {size}")
    paths, samples, ndim = volumes.find_files(files), [], None
    for path in paths:
        labels = volumes.read_labels(path)
        ndim = ndim or labels.ndim
        if labels.ndim != ndim:
            raise InputError(f"{path}: is {labels.ndim}D {labels.shape} but {paths[0]} is {ndim}D; cannot be mixed")
        spacing = _spacing(path, spacing_um, ndim)
        labels[labels == background_label] = 0
        bodies = _organism(path, labels, spacing) if kind == "organism" else _cells(labels, spacing)
        samples += [
            np.asarray(_radii(jnp.asarray(mask), jnp.float32(step), size or SIZE[ndim])) for mask, step in bodies
        ]
    if not samples:
        raise InputError(f"{paths[0]}: no whole cell, all labels touch the image's edge (in all {len(paths)} files)")
    return _fit(np.stack(samples), num_modes)


_fit = jax.jit(shape_model.fit, static_argnums=1)


@functools.partial(jax.jit, static_argnames="size")
def _radii(mask: jax.Array, spacing_um: jax.Array, size: int) -> jax.Array:
    return starshape.radii_from_mask(mask, spacing_um, starshape.directions(size, mask.ndim))


def _spacing(path: Path, given: Sequence[float] | None, ndim: int) -> np.ndarray:
    spacing = volumes.spacing_um(path) if given is None else tuple(given)
    if spacing is None:
        raise InputError(f"{path}: states no voxel size; give spacing_um, {ndim} micrometres per voxel")
    if len(spacing) != ndim or not all(0 < step < np.inf for step in spacing):
        raise InputError(f"{path}: spacing_um must be {ndim} positive micrometres per voxel, got {tuple(spacing)}")
    return np.asarray(spacing, np.float64)


def _organism(path: Path, labels: np.ndarray, spacing: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The whole organism, thinned to every n-th voxel of a large axis, and its spacing."""
    steps = [-(-n // MOST_STEPS_VOX) for n in labels.shape]
    mask = (
        labels[tuple(slice((n - 1) % step // 2, None, step) for n, step in zip(labels.shape, steps, strict=True))] > 0
    )
    if not mask.any():
        raise InputError(f"{path}: no cell, all voxels are background")
    yield mask, spacing * steps


def _cells(labels: np.ndarray, spacing: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each cell that does not touch the edge, in a box whose edge is a power of two: few programs to compile."""
    labels = relabel_sequential(labels)[0]  # ids in files may be large and sparse
    for index, box in enumerate(ndimage.find_objects(labels)):
        if box is None or any(s.start == 0 or s.stop == n for s, n in zip(box, labels.shape, strict=True)):
            continue
        mask = labels[box] == index + 1
        edge = 1 << max(4, (max(mask.shape) - 1).bit_length())
        yield np.pad(mask, [(0, edge - n) for n in mask.shape]), spacing


def save(path: str | os.PathLike, model: ShapeModel) -> None:
    """Writes a model as .npz, whole or not at all (written aside, then renamed)."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(aside, "wb") as file:
            np.savez_compressed(
                file,
                format=np.array(FORMAT),
                mean=np.asarray(model.mean, np.float32),
                modes=np.asarray(model.modes, np.float32),
                sd=np.asarray(model.sd, np.float32),
                size=np.int64(model.size),
                ndim=np.int64(model.ndim),
            )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> ShapeModel:
    """A model that `save` wrote; nothing in the file is ever run.

    Raises:
      InputError: the file is missing, empty, damaged, truncated, or no shape model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not a whole .npz file, expected a shape model ({type(error).__name__})") from error
    missing = {"format", "mean", "modes", "sd", "size", "ndim"} - content.keys()
    if missing or str(content["format"]) != FORMAT:
        raise InputError(f"{path}: not a shape model of jaxsynth (expected format {FORMAT})")
    mean, modes, sd, size, ndim = (content[name] for name in ("mean", "modes", "sd", "size", "ndim"))
    try:
        num = starshape.num_nodes(int(size), int(ndim))
        fits = mean.shape == (num,) and modes.shape == (len(sd), num) and sd.ndim == 1
        fits = fits and all(np.isfinite(part).all() for part in (mean, modes, sd)) and (mean >= 0).all()
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(f"{path}: a shape model whose parts do not fit together or are not finite")
    parts = (jnp.asarray(part, jnp.float32) for part in (mean, modes, sd))
    return ShapeModel(*parts, int(size), int(ndim))
