"""A trained GAN at work: masks with their position maps become images, in one evaluation of the network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxsynth import devices
from jaxsynth.data import tile_grid, tiles
from jaxsynth.errors import InputError
from jaxsynth.tasks import gan, gan_input
from jaxsynth.trained import Trained, grid_for


def check(trained: Trained, shape: tuple[int, ...]) -> None:
    """Raises InputError for a volume that the device's memory does not hold with its maps and coarse levels."""
    memory = tile_grid.memory_bytes(1 if trained.parts.net.norm == "instance" else trained.num_devices)
    if not tile_grid.stays_on_device(shape, features=trained.parts.net.features, memory=memory):
        raise InputError(f"{shape} voxels do not fit into the device's memory, as a GAN needs them to: cut them")


def generator(
    trained: Trained,
    *,
    tile: tuple[int, ...] | None = None,
    overlap: tuple[int, ...] | None = None,
    tile_batch: int | None = None,
) -> Callable[..., np.ndarray]:
    """A function that turns one volume's mask into an image, in tiles where it is large, see `trained.grid_for`.

    Args:
      tile_batch: tiles evaluated at once; default: one per device.

    Returns:
      make(key, maps: float32 [*S, 2], mask in {0, 1} and position map) -> float32 [*S] in [-1, 1], on the host.
      Compiled once per shape.
    """
    mesh, at_once = trained.mesh, trained.num_devices

    def constrain(batch):
        # Without it every device would evaluate every tile.
        return jax.lax.with_sharding_constraint(batch, devices.split(mesh))

    def run(params, key, maps):
        grid = grid_for(trained, maps.shape[:-1], tile, overlap)
        wanted = min(tile_batch or at_once, grid.num_tiles)
        stages = gan.stages(trained.parts, params)
        whole = tiles.tiled(stages, grid, -(-wanted // at_once) * at_once, constrain)
        x = gan_input.generator_input(trained.parts.drawn, key[None], maps[None])[0]
        return whole(x, jnp.zeros((), jnp.int32), None)[..., 0]

    run = jax.jit(run, out_shardings=devices.replicated(mesh))
    return lambda key, maps: np.asarray(run(trained.params, key, jnp.asarray(maps, jnp.float32)))


def batch_generator(trained: Trained) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A function that turns a batch of masks of one shape into images, every device its own share of them.

    Returns:
      make_many(keys [B], maps: float32 [B, *S, 2], B a multiple of the devices) -> float32 [B, *S], on the devices,
      the leading axis split over them; not waited for. Every image is that of `generator` in one tile, to rounding.
    """
    split = PartitionSpec("data")

    def run(params, own_keys, maps):
        return gan.generate(trained.parts, params, own_keys, maps)[..., 0]

    run = jax.jit(jax.shard_map(run, mesh=trained.mesh, in_specs=(PartitionSpec(), split, split), out_specs=split))
    return lambda own_keys, maps: run(trained.params, own_keys, maps)
