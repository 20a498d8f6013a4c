"""Patches of images, and of masks that need not belong to them, each with where in the organism they lie.

What is kept of a volume is its values and every voxel's signed distance to the organism's boundary, measured once; the
position map (paper 003, eq. 1) is made of the distances where a patch is cut.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, Sharding
from scipy import ndimage
from skimage import filters

from jaxsynth import keys
from jaxsynth.data import augment, stream
from jaxsynth.errors import InputError
from jaxsynth.records import Specimen
from jaxsynth.sim import brightness, distance, membranes, views

FARTHEST_VOX = 6e4  # float16 ends at 65504
SMOOTH_VOX = 2.0  # voxels along x
LEAST_PART = 0.1  # of the largest
MOST_LEVEL = 4.0  # grey value of masks' cells before they are blurred, where grey values end at 1
# name -> (specimen, spacing_um) -> [*S], what of labels the generator sees: a mask, or cells of which sketches are made
MASKS: dict[str, Callable] = {
    "boundary": views.walls,
    "cells": lambda made, spacing_um: made.labels > 0,
    "sketch": lambda made, spacing_um: made.labels,
}


@dataclass(frozen=True)
class Domain:
    """Volumes of one kind, in the host's memory.

    Attributes:
      values: [*S] each, all of one dtype.
      distances: float16 [*S] each, signed distance to the organism's boundary in voxels along x, positive within.
      masks: of images, their own masks, uint8 [*S] in {0, 1} each, or sketches, float16 in [0, 1]; (): not wanted.
    """

    values: tuple[np.ndarray, ...]
    distances: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...] = ()

    @property
    def num_voxels(self) -> int:
        return sum(own.size for own in self.values)

    @property
    def num_bytes(self) -> int:
        """Bytes that all take on the device."""
        return sum(own.nbytes for own in (*self.values, *self.distances, *self.masks))


@struct.dataclass
class Held:
    """A domain on the devices: values, distances and masks, flat [N] each, and the volumes' shapes, a static tuple."""

    values: jax.Array
    distances: jax.Array
    masks: jax.Array | None
    shapes: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)


def middle(kind: str, sigma: float) -> float:
    """What a mask of MASKS, blurred by sigma voxels, comes to where it is all there: walls to what one of two voxels
    has in its middle, as they are hardly wider; cells to 1."""
    if kind != "boundary" or not sigma:
        return 1.0
    reach = math.ceil(4 * sigma)
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    return float(weights[reach : reach + 2].sum() / weights.sum())


def of_labels(labels: np.ndarray, spacing_um: Sequence[float] | None, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(mask, distances float16 [*S] as in `Domain`) of a label image; arguments and errors as in `mask`."""
    return mask(labels, spacing_um, kind), distances(labels, spacing_um)


def distances(labels: np.ndarray, spacing_um: Sequence[float] | None) -> np.ndarray:
    """Distances float16 [*S] as in `Domain`, of a label image; arguments as in `mask`."""
    return np.asarray(_distances(jnp.asarray(labels), _relative(spacing_um, labels.ndim)))


def mask(labels: np.ndarray, spacing_um: Sequence[float] | None, kind: str) -> np.ndarray:
    """The mask of a label image, uint8 [*S] in {0, 1}; for sketches the ranks of its labels, uint16 [*S].

    Args:
      labels: int32 [*S], 0 = background.
      spacing_um: micrometres per voxel; None where all axes are alike.
      kind: one of MASKS: `boundary`, as `views.walls` has it, `cells` or `sketch`.

    Raises:
      InputError: more cells than ranks, 65535, for sketches.
    """
    if kind == "sketch":
        labels, ids, _ = brightness.ranked(labels)
        if len(ids) > 2**16:
            raise InputError(f"{len(ids) - 1} cells in one label image; sketches are drawn of at most {2**16 - 1}")
    return np.asarray(_mask(jnp.asarray(labels), _relative(spacing_um, labels.ndim), kind))


def of_image(image: np.ndarray, spacing_um: Sequence[float] | None) -> np.ndarray:
    """Distances as in `Domain`, of the organism that an image of any scale shows: found by its brightness.

    The image is smoothed and thresholded (Otsu); parts of less than LEAST_PART of the largest are left out, and the
    rest is closed as labels are, see `extent.closed`.
    """
    relative = _relative(spacing_um, image.ndim)
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), SMOOTH_VOX / np.asarray(relative), mode="nearest")
    parts, count = ndimage.label(smooth > filters.threshold_otsu(smooth))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes >= LEAST_PART * sizes.max()) & (sizes > 0)
    return np.asarray(_distances(jnp.asarray(kept[parts], jnp.int32), relative))


def _relative(spacing_um: Sequence[float] | None, ndim: int) -> tuple[float, ...]:
    """The voxel's edges over that along x."""
    return (1.0,) * ndim if spacing_um is None else tuple(step / spacing_um[-1] for step in spacing_um)


def _specimen(labels: jax.Array) -> Specimen:
    """Labels as `simulate --labels` and `sample` see them, so that a mask's position map is the same everywhere."""
    return Specimen(labels, jnp.zeros(1), *(0,) * 4)


@functools.partial(jax.jit, static_argnames=("relative", "kind"))
def _mask(labels: jax.Array, relative: tuple[float, ...], kind: str) -> jax.Array:
    return MASKS[kind](_specimen(labels), relative).astype(jnp.uint16 if kind == "sketch" else jnp.uint8)


@functools.partial(jax.jit, static_argnames="relative")
def _distances(labels: jax.Array, relative: tuple[float, ...]) -> jax.Array:
    return distance.signed_um(views.organism(_specimen(labels), relative), relative, FARTHEST_VOX).astype(jnp.float16)


def place(domain: Domain, replicated: Sharding | None = None) -> Held:
    """The domain on the devices, whole on each."""

    def whole(some):
        return stream.place(np.concatenate([own.ravel() for own in some]), replicated) if some else None

    shapes = tuple(own.shape for own in domain.values)
    return Held(whole(domain.values), whole(domain.distances), whole(domain.masks), shapes)


def batches(
    held: Held,
    key: jax.Array,
    finish: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    patch: tuple[int, ...],
    batch_size: int,
    scales_vox: tuple[float, float],
    symmetries: bool = True,
    first_step: int = 0,
    split: NamedSharding | None = None,
) -> Iterator[tuple[jax.Array, ...]]:
    """Batches for steps first_step, first_step + 1, ...; batch i depends on `key` and i alone.

    Patches are drawn as `data.stream.batches` draws them; symmetries of the plane change all parts alike.

    Args:
      finish: (patches of values, a key) -> float32, voxel by voxel.
      scales_vox: alpha and beta of the position map, voxels along x.
      split: where batches lie.

    Yields:
      (values, position maps), and the masks of a domain that has them: float32 [B, *patch, 1] each.
    """
    shapes = np.asarray(held.shapes)
    sizes = np.prod(shapes, axis=1)
    offsets = np.cumsum(sizes) - sizes

    def batch(held, step):
        own = keys.stream(key, step)
        at = stream.draw(own, shapes, patch, batch_size)

        def one(index, start, symmetry):
            where = (jnp.asarray(table, jnp.int32)[index] for table in (offsets, shapes))
            flat = [array for array in (held.values, held.distances, held.masks) if array is not None]
            return cut_one(flat, *where, start, symmetry, patch, symmetries)

        values, far, *masks = jax.vmap(one)(at.index, at.start, at.symmetry)
        position = membranes.position(far.astype(jnp.float32), *scales_vox)
        found = (finish(values, keys.stream(own, "finish")), position, *(mask.astype(jnp.float32) for mask in masks))
        return tuple(part[..., None] for part in found)

    batch = jax.jit(batch, out_shardings=split)
    step = first_step
    while True:
        yield batch(held, step)
        step += 1


def cut_one(flat: Sequence[jax.Array], offset, shape, start, symmetry, patch: tuple[int, ...], symmetries: bool):
    """One patch of each of several flat arrays, cut at the same place and changed alike; [*patch] each.

    Args:
      offset, shape, start: where the volume begins in the arrays, int32 []; its shape and the patch's first voxel,
        int32 [D]. symmetry: bool [3], applied where `symmetries`.
    """

    def own(array):
        found = stream.cut(array, offset, shape, start, patch)
        return augment.apply_symmetry(found, symmetry) if symmetries else found

    return tuple(map(own, flat))
