"""A trained segmentation network at work: from an image of any size to its label image."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxsynth import checkpoint, devices, keys, trained
from jaxsynth.data import pairs, tile_grid, tiles
from jaxsynth.errors import InputError
from jaxsynth.nn import flownet
from jaxsynth.seg import segmentation
from jaxsynth.tasks import flowseg

MOST_ENLARGED = 4.0  # images with small cells grow by no more than this
SMALLEST = 0.05  # of a typical cell's voxels
LEAST_TILE = 2 * flownet.margin() + tile_grid.STRIDE


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A network and all that is needed to segment images with it.

    Attributes:
      folder: the checkpoint's.
      metadata: the checkpoint's.
      config: the training's.
      parts: the network and what it learnt.
      params: the averaged parameters, on every device of the mesh.
      mesh: the devices to use.
    """

    folder: Path
    metadata: dict
    config: ConfigDict
    parts: flowseg.Parts
    params: Any
    mesh: Mesh

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.config.data.patch)


def open_segmenter(path: str | Path, step: str = "best") -> Segmenter:
    """The network of a training run. `path`, `step`: see `checkpoint.find`.

    Raises:
      InputError: no checkpoint, or one of a network that does not segment.
    """
    mesh = devices.make_mesh()
    saved = checkpoint.find(path, step)
    metadata = checkpoint.read_metadata(saved)
    config = ConfigDict(metadata["config"])
    if config.task != "flowseg":
        raise InputError(f"--checkpoint {path} is of task {config.task!r}, which segments no images")
    config.parallel.space = 1  # the training's; here devices share images by tiles
    parts = flowseg.build(config)
    state = jax.eval_shape(lambda key: flowseg.init(parts, key, (1, *config.data.patch, 1)), keys.root(0))
    everywhere = devices.replicated(mesh)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    return Segmenter(saved, metadata, config, parts, checkpoint.load(saved, like).ema_params, mesh)


def scale_for(model: Segmenter, spacing_um=None, diameter_vox: float | None = None) -> tuple[float, ...]:
    """By how much an image is shrunk, or enlarged, per axis, so that its cells are as large as those learnt from.

    Args:
      spacing_um: the image's voxel size. Where it and the training's are known cells are taken to be as large in
        micrometres; else in voxels.
      diameter_vox: the cells' diameter in the image's plane, where the user knows better.

    Raises:
      InputError: a diameter, where the training did not tell how large its cells were.
    """
    scale = tuple(model.config.seg.scale)
    extent = (model.metadata.get("cells") or {}).get("extent_vox")
    trained_um = model.metadata.get("spacing_um")
    if diameter_vox is not None:
        if not extent:
            raise InputError("--diameter: the checkpoint does not tell how large the cells were that it learnt from")
        factors = [extent[-1] / diameter_vox] * model.ndim
    elif spacing_um and trained_um:
        factors = [own / there for own, there in zip(spacing_um, trained_um, strict=True)]
    else:
        factors = [1.0] * model.ndim
    return tuple(min(MOST_ENLARGED, own * factor) for own, factor in zip(scale, factors, strict=True))


def least_size(model: Segmenter, scale: tuple[float, ...]) -> int:
    """Voxels of an image, seen at this scale, below which a find is no cell: SMALLEST of the training's typical one."""
    extent = (model.metadata.get("cells") or {}).get("extent_vox")
    if not extent:
        return 0
    typical = math.pi / (4 if model.ndim == 2 else 6) * math.prod(extent)
    return int(SMALLEST * typical * math.prod(model.config.seg.scale) / math.prod(scale))


def num_steps(model: Segmenter) -> int:
    """Steps in which the flows of cells half as wide again as the training's arrive, see `seg.follow.segment`."""
    extent = (model.metadata.get("cells") or {}).get("extent_vox") or [0.0]
    return round(max(size * factor for size, factor in zip(extent, model.config.seg.scale, strict=False)))


def network(model: Segmenter, tile: tuple[int, ...] | None = None) -> Callable[[np.ndarray], jax.Array]:
    """A function of an image float32 [*S], scaled and at the network's size, to float32 [*S, 1 + D] on the device.

    Images too large for the device's memory pass through the network in tiles, without seams; with an instance norm
    tiles have statistics of their own, and are blended. Sizes are rounded up by reflection to one of few, each compiled
    once.

    Args:
      tile: the largest tile, voxels; default: as large as the memory allows.
    """
    split, many = devices.split(model.mesh), model.mesh.shape["data"]
    margin = flownet.margin()
    longest_overlap = functools.partial(tile_grid.longest_overlap, margin=margin)

    @functools.partial(jax.jit, static_argnames="grid")
    def whole(params, image, grid):
        if grid.num_tiles == 1:
            return flowseg.predict(model.parts, params, image[None, ..., None])[0]

        def constrain(batch):
            return jax.lax.with_sharding_constraint(batch, split)

        evaluate = tiles.tiled(flowseg.stages(model.parts, params), grid, many, constrain)
        return flowseg.read(model.parts, evaluate(image[..., None], jnp.int32(0), None))

    def run(image):
        shape = trained.rounded(image.shape)
        padded = np.pad(image, [(0, n - m) for n, m in zip(shape, image.shape, strict=True)], mode="reflect")
        features, overlap, count = model.parts.net.features, None, many
        if model.parts.net.norm == "instance":
            # As `trained.grid_for`: the result depends on the tiles, which must not depend on the number of devices.
            longest = [trained.INSTANCE_OVERLAP] * len(shape) if tile is None else map(longest_overlap, tile)
            overlap, count = tuple(max(2 * margin, min(trained.INSTANCE_OVERLAP, n)) for n in longest), 1
        size = tile or tile_grid.choose_tile(shape, overlap, features=features, num_devices=count, margin=margin)
        grid = tile_grid.plan_tiles(shape, size, overlap, margin=margin)
        return whole(model.params, padded, grid)[tuple(map(slice, image.shape))]

    return run


def segment(
    model: Segmenter, options: segmentation.Options, *, min_size: int | None = None, tile: tuple[int, ...] | None = None
) -> Callable[[np.ndarray, tuple[float, ...]], np.ndarray]:
    """A function segment(image [*S] in any units, scale per axis, see `scale_for`) -> labels int32 [*S], cells numbered
    1, 2, ...

    Args:
      options: see `segmentation.segment_image`; `min_size`: overrides theirs, None for `least_size`.
      tile: see `network`.
    """
    run = network(model, tile)

    def one(image, scale):
        output = run(pairs.shrunk(pairs.scaled(image, model.config.data.normalization), scale))
        least = least_size(model, scale) if min_size is None else min_size
        own = dataclasses.replace(options, min_size=least, num_steps=max(options.num_steps, num_steps(model)))
        return segmentation.segment_image(output, image.shape, model.parts.target, own)

    return one
