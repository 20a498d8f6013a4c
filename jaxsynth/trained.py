"""A trained model: opening it, its tiles, and a diffusion model at work. What `sample`, `tune` and `bench` share; a
GAN at work is in `trained_gan`."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from jaxsynth import checkpoint, devices, keys, out_of_core
from jaxsynth.data import streaming, tile_grid, tiles
from jaxsynth.data.intensity import Intensity
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.errors import InputError
from jaxsynth.sim.sketch import blur
from jaxsynth.tasks import ddpm, gan

DENOISERS = ("ddpm", "distill")  # tasks of diffusion
# Voxels by which tiles overlap with an instance norm, where they are long enough: half of it is blended, which hides
# the steps in brightness that tiles with statistics of their own make; hard cuts show.
INSTANCE_OVERLAP = 64
PIECE_S = 5.0  # the device is asked how far it is about this often


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network and all that is needed to make images with it.

    Attributes:
      folder: the checkpoint's; None for a network that was never saved.
      metadata: the checkpoint's, see `checkpoint.read_metadata`.
      config: the training's.
      intensity: from the data's units to [-1, 1] and back.
      parts: networks, and the schedule of a denoiser; `parts.net` is what makes images.
      params: of that network, the averaged parameters, on every device of the mesh.
      mesh: the devices to use.
    """

    folder: Path | None
    metadata: dict
    config: ConfigDict
    intensity: Intensity
    parts: ddpm.Parts | gan.Parts
    params: Any
    mesh: Mesh

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.config.data.patch)

    @property
    def t_max(self) -> int:
        """The latest start that the network was trained for."""
        return self.parts.t_max

    @property
    def margin(self) -> int:
        """Voxels at an inner end of a tile that do not count, see `tile_grid.TileGrid`."""
        return gan.margin(self.parts) if isinstance(self.parts, gan.Parts) else tile_grid.MARGIN

    @property
    def num_devices(self) -> int:
        """Devices that tiles, or images, are split over."""
        return self.mesh.shape["data"]


def open_trained(
    path: str | Path, step: str = "best", mesh: Mesh | None = None, tasks: Sequence[str] = DENOISERS
) -> Trained:
    """The model of a training run. `path`, `step`: see `checkpoint.find`; `mesh`: the devices, default all.

    Raises:
      InputError: no checkpoint, or one of another task than these.
    """
    mesh = mesh or devices.make_mesh()
    saved = checkpoint.find(path, step)  # once: a training may be adding others meanwhile
    metadata = checkpoint.read_metadata(saved)
    config = ConfigDict(metadata["config"])
    config.parallel = ConfigDict({"space": 1})  # the training's; here devices share images by tiles
    if config.task not in tasks:
        raise InputError(f"--checkpoint {path} is of task {config.task!r}; expected one of {', '.join(tasks)}")
    task = ddpm if config.task in DENOISERS else gan
    parts = task.build(config)
    state = jax.eval_shape(lambda k: task.init(parts, k, (1, *config.data.patch, 1)), keys.root(0))
    everywhere = devices.replicated(mesh)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), state)
    params = checkpoint.load(saved, like).ema_params
    return Trained(saved, metadata, config, Intensity.from_dict(metadata["intensity"]), parts, params, mesh)


def default_sampler(trained: Trained) -> str:
    """The sampler to use where the user names none."""
    return "consistency" if trained.config.task == "distill" else samplers.DEFAULT_SAMPLER


def make_plan(
    trained: Trained, t_start: int, sampler: str | None = None, num_evaluations: int | None = None, **options
) -> samplers.Plan:
    """The plan of a sampler for this network; `sampler`, `num_evaluations`: None for the defaults. Options as in
    `samplers.make_plan`.

    Raises:
      InputError: an argument out of range, or a start later than the network was trained for.
    """
    if not 1 <= t_start <= trained.t_max:
        raise InputError(f"t_start must lie in 1..{trained.t_max}, what this model was trained on; got {t_start}")
    sampler = default_sampler(trained) if sampler is None else sampler
    options |= {"prediction": trained.parts.prediction}
    return samplers.make_plan(sampler, trained.parts.schedule, t_start, num_evaluations, **options)


def grid_for(
    trained: Trained,
    shape: tuple[int, ...],
    tile: tuple[int, ...] | None = None,
    overlap: tuple[int, ...] | None = None,
) -> tile_grid.TileGrid:
    """The tiles of a volume [*S]; by default as large as the device's memory allows.

    Overlap by default: the least, but with an instance norm INSTANCE_OVERLAP or what the tile has room for.

    Raises:
      InputError: tile and overlap do not go together, or the overlap is too short for a volume that must be cut.
    """
    net, margin = trained.parts.net, trained.margin
    if overlap is None and net.norm == "instance":
        longest = [INSTANCE_OVERLAP] * len(shape)
        longest = longest if tile is None else [tile_grid.longest_overlap(size, margin) for size in tile]
        overlap = tuple(max(2 * margin, min(INSTANCE_OVERLAP, length)) for length in longest)
    count = _devices_of_tiles(trained)
    tile = tile or tile_grid.choose_tile(shape, overlap, margin=margin, features=net.features, num_devices=count)
    return tile_grid.plan_tiles(shape, tile, overlap, margin=margin)


def _devices_of_tiles(trained: Trained) -> int:
    """Devices that the choice of tiles counts on. With an instance norm the result depends on the tiles, which must
    not depend on the number of devices then."""
    return 1 if trained.parts.net.norm == "instance" else trained.num_devices


def whole(trained: Trained, shape: tuple[int, ...], tile: tuple[int, ...] | None = None, each: int = 1) -> bool:
    """Whether a device has the memory for `each` volumes [*S] at once, uncut; with a `tile`: whether one fits that."""
    if tile is None:
        memory = tile_grid.memory_bytes(_devices_of_tiles(trained)) // each
        features = trained.parts.net.features
        tile = tile_grid.choose_tile(shape, margin=trained.margin, features=features, memory=memory)
    return grid_for(trained, shape, tile).num_tiles == 1


def rounded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The next larger of few shapes: eight lengths from one power of two to the next, or multiples of 8, as the network
    pads to in any case. An axis of more than 64 voxels grows by less than an eighth."""

    def up(size: int) -> int:
        step = max(8, 2 ** ((size - 1).bit_length() - 4))
        return -(-size // step) * step

    return tuple(map(up, shape))


def _in_pieces(run: Callable, state, plan: samplers.Plan, progress: Callable | None):
    """The state after all evaluations of `plan`: run(state, first, last) for all at once or, to tell of the progress,
    in pieces of about PIECE_S that are waited for."""
    done, piece = 0, 1 if progress else plan.num_evaluations
    while done < plan.num_evaluations:
        clock = time.perf_counter()
        last = min(done + piece, plan.num_evaluations)
        state = run(state, done, last)
        done = last
        if progress:
            jax.block_until_ready(state)
            progress(done, plan.num_evaluations)
            piece = max(1, round(piece * PIECE_S / max(time.perf_counter() - clock, 1e-3)))
    return state


def generator(
    trained: Trained,
    *,
    tile: tuple[int, ...] | None = None,
    overlap: tuple[int, ...] | None = None,
    tile_batch: int | None = None,
    scratch: str | Path | None = None,
) -> Callable[..., np.ndarray]:
    """A function that turns sketches into images.

    Args:
      tile, overlap: see `grid_for`.
      tile_batch: tiles evaluated at once; default: one per device.
      scratch: a folder, for volumes larger than the host's memory; see `out_of_core.sample`.

    Returns:
      make(key, x0, plan, *, sigma=0.0, progress=None): x0 float [*S] in [-1, 1], a sketch or a real image, is blurred
      by sigma voxels (the papers take 1 for sketches), noised to the plan's start and denoised: float32 [*S], on the
      host. Volumes that do not fit into the device's memory pass through it tile by tile.
      `progress(done, num_evaluations)` is called now and then. Compiled once per shape and number of evaluations.
    """
    parts, params, mesh = trained.parts, trained.params, trained.mesh
    everywhere, at_once = devices.replicated(mesh), trained.num_devices

    def constrain(batch):
        # Without it every device would evaluate every tile.
        return jax.lax.with_sharding_constraint(batch, devices.split(mesh))

    def batch_size(grid):
        wanted = min(tile_batch or at_once, grid.num_tiles)
        return -(-wanted // at_once) * at_once

    def run(params, key, state, cond, plan, first, last):
        grid = grid_for(trained, state[0].shape[:-1], tile, overlap)
        denoise = tiles.tiled(ddpm.stages(parts, params), grid, batch_size(grid), constrain)
        return samplers.run(denoise, key, state, plan, cond, first=first, last=last)

    def begin(key, x0, plan, sigma):
        x0 = (blur(x0, sigma) if sigma else x0)[..., None]
        x = gaussian.noise_to(x0, plan.t[0], samplers.start_noise(key, 0, x0.shape), parts.schedule)
        return (x, jnp.zeros_like(x)), ddpm.condition(parts, key, x.shape)

    run = jax.jit(run, donate_argnums=2, out_shardings=everywhere)
    begin = jax.jit(begin, static_argnames="sigma", out_shardings=everywhere)

    def in_memory(key, x0, plan, sigma, progress):
        state, cond = begin(key, jnp.asarray(x0, jnp.float32), plan, sigma)
        state = _in_pieces(lambda state, *ends: run(params, key, state, cond, plan, *ends), state, plan, progress)
        return np.asarray(state[0][..., 0])

    stages = streaming.compiled(lambda params: ddpm.stages(parts, params), trained.params)

    def through_tiles(key, x0, plan, sigma, progress):
        grid = grid_for(trained, x0.shape, tile, overlap)
        # What would fit is not cut, as in memory: with an instance norm, --scratch would change the image else.
        deep_grid = None if stays(x0.shape) else streaming.plan_deep_tiles(stages, grid)
        return out_of_core.sample(
            stages,
            key,
            x0,
            plan,
            parts.schedule,
            grid,
            sigma=sigma,
            cond_key=keys.stream(key, "condition") if parts.noise_channel else None,
            batch_size=batch_size(grid),
            deep_grid=deep_grid,
            place=lambda batch: jax.device_put(batch, devices.split(mesh)),
            scratch=scratch,
            progress=lambda done: progress and progress(done, plan.num_evaluations),
        )

    def stays(shape):
        memory = tile_grid.memory_bytes(_devices_of_tiles(trained))
        return tile_grid.stays_on_device(shape, features=parts.net.features, memory=memory)

    def make(key, x0, plan, *, sigma=0.0, progress=None):
        fits = scratch is None and stays(x0.shape)
        return (in_memory if fits else through_tiles)(key, x0, plan, sigma, progress)

    return make


def batch_generator(trained: Trained) -> Callable[..., jax.Array]:
    """A function that turns a batch of sketches of one shape into images, every device its own share of them.

    Returns:
      make_many(keys, x0, plan, *, sigma=0.0, progress=None): x0 float32 [B, *S] in [-1, 1] with a key for each, B a
      multiple of the devices -> float32 [B, *S], on the devices, leading axis split over them; not waited for, but
      where there is a `progress(done, num_evaluations)` to call. Every image is that of `generator` in one tile, to
      rounding, whatever else is in the batch. Compiled once per shape and number of evaluations.
    """
    parts, split = trained.parts, PartitionSpec("data")

    # Per device, so that none draws the noise of another's images. The samplers' loops start from constants, which the
    # check of varying axes refuses.
    per_device = functools.partial(jax.shard_map, mesh=trained.mesh, out_specs=split, check_vma=False)

    def begin(keys, x0, plan, sigma):
        def one(key, x0):
            x0 = (blur(x0, sigma) if sigma else x0)[..., None]
            x = gaussian.noise_to(x0, plan.t[0], samplers.start_noise(key, 0, x0.shape), parts.schedule)[..., 0]
            return (x, jnp.zeros_like(x)), ddpm.condition(parts, key, x0.shape)

        return per_device(jax.vmap(one), in_specs=split)(keys, x0)

    def run(params, plan, keys, state, cond, first, last):
        def one(params, plan, first, last, key, state, cond):
            def denoise(x, t, cond):
                return ddpm.denoiser(parts, params)(x[None], t[None], None if cond is None else cond[None])[0]

            state = jax.tree.map(lambda x: x[..., None], state)
            state = samplers.run(denoise, key, state, plan, cond, first=first, last=last)
            return jax.tree.map(lambda x: x[..., 0], state)

        some = jax.vmap(one, in_axes=(None,) * 4 + (0,) * 3)
        specs = (PartitionSpec(),) * 4 + (split,) * 3
        return per_device(some, in_specs=specs)(params, plan, first, last, keys, state, cond)

    begin = jax.jit(begin, static_argnames="sigma")
    run = jax.jit(run, donate_argnames="state")

    def make_many(keys, x0, plan, *, sigma=0.0, progress=None):
        state, cond = begin(keys, x0, plan, sigma)
        params = trained.params
        return _in_pieces(lambda state, *ends: run(params, plan, keys, state, cond, *ends), state, plan, progress)[0]

    return make_many
