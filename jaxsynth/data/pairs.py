"""Annotated images for training a segmentation network: pairs of image and labels, batches of them on the device.

Every image is scaled by its own percentiles, and shrunk where its cells are larger than the network looks at, so that
one network serves images of many exposures and magnifications.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from scipy import ndimage
from skimage.transform import resize

from jaxsynth import keys
from jaxsynth.data import augment, volumes
from jaxsynth.errors import InputError

PERCENTILES = {"asinh": (1.0, 99.8), "percentile": (2.0, 98.0)}  # of an image, become 0 and 1
BEND = 10.0  # how much the dim half of the scale is stretched; dim cells drown on a linear one


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images and labels as the network gets them, in memory.

    Attributes:
      images: float32 [*S] each, about [0, 1].
      labels: int32 [*S] each, 0 = background, cells numbered 1, 2, ... without gaps.
      spacing_um: of the files; None where they state none.
    """

    images: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    spacing_um: tuple[float, ...] | None

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return self.images[0].ndim

    @property
    def num_bytes(self) -> int:
        """Bytes that both take on the device."""
        return sum(8 * image.size for image in self.images)

    @property
    def most_cells(self) -> int:
        """The largest number of cells in one image."""
        return max(int(labels.max(initial=0)) for labels in self.labels)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How far a patch is changed; all of it uniform between none and this much, up and down.

    Attributes:
      zoom: of the size of cells, as a factor of up to 1 + zoom. anisotropy: the same along each axis alone.
      rotation: whether patches are turned by any angle in the plane, beside flips.
      contrast, gamma: of the gain and of the exponent, as factors of up to 1 + contrast and 1 + gamma. offset: of the
        scale [0, 1].
      blur_vox: standard deviation in voxels. noise: standard deviation, of the scale [0, 1].
    """

    zoom: float
    anisotropy: float
    rotation: bool
    contrast: float
    gamma: float
    offset: float
    blur_vox: float
    noise: float


def scaled(image, method: str = "asinh"):
    """An image in units of its own percentiles: float32 [*S], background about 0, cells up to 1.

    NumPy in, NumPy out; jax in, jax out, also inside jit.

    Args:
      method: "asinh", on such a scale; or "percentile", the published network's: linear and clipped to [0, 1].
    """
    xp = jnp if isinstance(image, jax.Array) else np
    image = xp.asarray(image, xp.float32)
    low, high = xp.percentile(image, xp.asarray(PERCENTILES[method]))
    least = 1e-6 * xp.maximum(xp.abs(high), 1.0)
    high = xp.where(high - low > least, high, image.max())  # few cells on a clipped background
    linear = (image - low) / xp.maximum(high - low, least)
    if method == "percentile":
        return xp.clip(linear, 0, 1).astype(xp.float32)
    return (xp.arcsinh(BEND * linear) / math.asinh(BEND)).astype(xp.float32)


def shrunk(image: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """An image at `scale` of its size per axis, smoothed against aliasing; float32."""
    shape = shrunk_shape(image.shape, scale)
    if shape == image.shape:
        return np.asarray(image, np.float32)
    return resize(np.asarray(image, np.float32), shape, order=1, mode="reflect", anti_aliasing=True)


def shrunk_shape(shape: Sequence[int], scale: Sequence[float]) -> tuple[int, ...]:
    """The shape of an image at `scale` of its size, at least one voxel per axis."""
    return tuple(max(1, round(size * factor)) for size, factor in zip(shape, scale, strict=True))


def shrunk_labels(labels: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """A label image at `scale` of its size, every voxel the label at its centre; numbered without gaps."""
    shape = shrunk_shape(labels.shape, scale)
    if shape != labels.shape:
        places = [np.minimum(((np.arange(n) + 0.5) * size / n).astype(int), size - 1)
                  for n, size in zip(shape, labels.shape, strict=True)]  # fmt: skip
        labels = labels[np.ix_(*places)]
    found, numbers = np.unique(labels, return_inverse=True)
    return (numbers.reshape(labels.shape) + (found[0] != 0)).astype(np.int32)


def cell_extent(labels: Sequence[np.ndarray]) -> tuple[float, ...] | None:
    """The median size in voxels of the cells' bounding boxes, per axis, one number for both axes of the plane.

    Cells cut by the edge do not count where there are others. None where there is no cell at all.
    """
    whole, cut = [], []
    for image in labels:
        for box in ndimage.find_objects(shrunk_labels(image, (1.0,) * image.ndim)):
            size = [part.stop - part.start for part in box]
            inside = all(part.start > 0 and part.stop < n for part, n in zip(box[-2:], image.shape[-2:], strict=True))
            (whole if inside else cut).append(size)
    if not whole and not cut:
        return None
    middle = np.median(whole or cut, axis=0)
    plane = float(middle[-2:].mean())
    return (*map(float, middle[:-2]), plane, plane)


def choose_scale(extent: Sequence[float], diameter_vox: float) -> tuple[float, ...]:
    """The size per axis at which cells of that extent are `diameter_vox`; 1 where they are smaller, or for 0."""
    if not diameter_vox:
        return (1.0,) * len(extent)
    return tuple(min(1.0, diameter_vox / size) for size in extent)


def open_pairs(
    images: str | Sequence[str],
    labels: str | Sequence[str],
    *,
    channel: int | None = None,
    dataset: str | None = None,
    spacing_um: Sequence[float] | None = None,
) -> tuple[volumes.VolumeSet, list[Path]]:
    """The images and their label files, matched by folder and name; nothing but the headers of labels is read.

    Args:
      images: folders, globs or files, several separated by commas; `labels`: as many, in the same order.
      channel, dataset, spacing_um: as `volumes.open_set` takes them.

    Raises:
      InputError: unusable images, an image without labels or labels without an image.
    """
    matched = match(images, labels)
    opened = volumes.open_set(list(matched), channel=channel, dataset=dataset, spacing=spacing_um)
    return opened, [matched[file] for file in opened.paths]


def match(images: str | Sequence[str], labels: str | Sequence[str]) -> dict[Path, Path]:
    """image file -> its label file, as `open_pairs` matches them."""
    image_places, label_places = places(images), places(labels)
    if len(image_places) != len(label_places):
        raise InputError(f"images from {len(image_places)} places but labels from {len(label_places)}: give as many")
    matched = {}
    for image_place, label_place in zip(image_places, label_places, strict=True):
        files = volumes.find_files(image_place)
        by_stem = volumes.by_name(volumes.find_files(label_place), label_place)
        volumes.by_name(files, image_place)
        for file in files:
            if file.stem not in by_stem:
                raise InputError(f"{label_place} has no label image for {file.name}")
            if file in matched:
                raise InputError(f"{images}: a file is given twice")
            matched[file] = by_stem[file.stem]
        left = by_stem.keys() - {file.stem for file in files}
        if left:
            raise InputError(f"{image_place} has no image for the labels {by_stem[min(left)].name}")
    return matched


def places(path: str | Sequence[str]) -> list[str]:
    """A path that may be several separated by commas, as a list; one that exists as it stands is one."""
    if not isinstance(path, str):
        return [str(place) for place in path]
    return [path] if Path(path).exists() else [part.strip() for part in path.split(",")]


def read_label_files(opened: volumes.VolumeSet, files: Sequence[Path], dataset: str | None = None) -> list[np.ndarray]:
    """The label images of a set; `dataset`: which one inside HDF5 files.

    Raises:
      InputError: one has another shape than its image.
    """
    labels = [volumes.read_labels(file, dataset=dataset) for file in files]
    for file, own, shape in zip(files, labels, opened.shapes, strict=True):
        if own.shape != tuple(shape):
            raise InputError(f"{file}: labels {own.shape} and image {tuple(shape)} differ in shape")
    return labels


def prepare(
    opened: volumes.VolumeSet, labels: Sequence[np.ndarray], scale: Sequence[float], method: str = "asinh"
) -> Pairs:
    """The pairs as the network gets them: brightness scaled by `method`, both shrunk."""
    images = tuple(shrunk(scaled(image, method), scale) for image in volumes.each(opened))
    return Pairs(images, tuple(shrunk_labels(own, scale) for own in labels), opened.spacing_um)


def batches(
    pairs: Pairs,
    key: jax.Array,
    *,
    patch: tuple[int, ...],
    batch_size: int,
    augmentation: Augmentation | None,
    first_step: int = 0,
    split: NamedSharding | None = None,
    replicated: Sharding | None = None,
) -> Iterator[dict[str, jax.Array]]:
    """Batches for steps first_step, first_step + 1, ...; batch i depends on `key` and i alone.

    Patches come from images in proportion to their voxels, from uniform places.

    Args:
      augmentation: how patches are changed; None: not at all.
      split, replicated: where batches and the pairs lie.

    Yields:
      {"image": float32 [B, *patch, 1], "labels": int32 [B, *patch]}; beyond the image's edge the image is its
      reflection and the label -1.
    """
    shapes = np.array([image.shape for image in pairs.images])
    sizes = shapes.prod(1)
    if sizes.sum() > np.iinfo(np.int32).max:
        raise InputError(f"images of {sizes.sum()} voxels in all are more than 2^31: train on fewer, or smaller ones")
    offsets = jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32)
    share = jnp.asarray(np.cumsum(sizes) / sizes.sum(), jnp.float32)
    held = [np.concatenate([a.ravel() for a in some]) for some in (pairs.images, pairs.labels)]
    held = [jax.device_put(array, replicated) for array in held]
    cut = cutter(patch, augmentation)

    def one(held, own):
        which = jax.random.uniform(keys.stream(own, "volume"))
        index = jnp.minimum(jnp.searchsorted(share, which, side="right"), len(shapes) - 1)
        return cut(own, *held, offsets[index], jnp.asarray(shapes, jnp.int32)[index])

    def batch(held, step):
        own = jax.vmap(lambda row: keys.stream(key, step, row))(jnp.arange(batch_size))
        return jax.vmap(lambda own: one(held, own))(own)

    batch = jax.jit(batch, out_shardings=None if split is None else {"image": split, "labels": split})
    step = first_step
    while True:
        yield batch(held, step)
        step += 1


def cutter(patch: tuple[int, ...], augmentation: Augmentation | None) -> Callable:
    """A function that cuts an augmented patch out of flat arrays.

    Returns:
      cut(key, images, labels, offset, shape): float32 [N], int32 [N], where the volume begins, its shape int32 [D] ->
      {"image": float32 [*patch, 1], "labels": int32 [*patch]}.
    """

    def cut(key, images, labels, offset, shape):
        matrix = jnp.eye(len(patch)) if augmentation is None else augment.draw_affine(key, len(patch), augmentation)
        at = augment.draw_places(keys.stream(key, "place"), matrix, patch, shape)
        image = augment.interpolate(images, offset, shape, at)
        if augmentation is not None:
            image = augment.change_light(keys.stream(key, "light"), image, augmentation)
        nearest = jnp.round(at).astype(jnp.int32)
        bounds = shape.reshape((-1,) + (1,) * len(patch))
        inside = ((nearest >= 0) & (nearest < bounds)).all(0)
        own = labels[offset + augment.address(jnp.clip(nearest, 0, bounds - 1), shape)]
        return {"image": image[..., None], "labels": jnp.where(inside, own, -1)}

    return cut
