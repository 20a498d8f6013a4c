"""The device mesh and how batches and states lie on it. One axis, `data`: batches are split, states replicated."""

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


def check_batch_size(batch_size: int, mesh: Mesh, name: str, accumulate: int = 1) -> None:
    """Raises InputError where `batch_size`, the value of argument `name`, does not split evenly over the mesh."""
    parts = mesh.size * accumulate
    if batch_size <= 0 or batch_size % parts:
        raise InputError(
            f"{name}={batch_size} does not split evenly over {mesh.size} device(s)"
            + (f" times {accumulate} accumulation steps" if accumulate > 1 else "")
            + f": give a positive multiple of {parts}"
        )
