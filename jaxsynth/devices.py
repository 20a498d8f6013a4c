"""The device mesh and how batches and states lie on it. One axis, `data`: batches are split, states replicated."""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsynth.errors import InputError


def make_mesh(devices: list | None = None) -> Mesh:
    """A one-dimensional mesh over `devices` (default: all of this run's), axis name `data`."""
    devices = jax.devices() if devices is None else devices
    # make_mesh would make Explicit axes by default; Auto leaves placement to the compiler.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading axis over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def mesh_for(batch_size: int, accumulate: int = 1) -> Mesh:
    """A mesh over as many devices as micro-batches of batch_size / accumulate split over evenly.

    Raises:
      InputError: batch_size is no positive multiple of accumulate.
    """
    if accumulate < 1 or batch_size < 1 or batch_size % accumulate:
        raise InputError(f"data.batch_size={batch_size} must be a positive multiple of optim.accumulate={accumulate}")
    devices = jax.devices()
    return make_mesh(devices[: math.gcd(len(devices), batch_size // accumulate)])
