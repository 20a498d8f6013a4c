"""The mesh: as many devices as a batch splits over."""

import jax
import pytest

from jaxsynth import devices
from jaxsynth.errors import InputError


@pytest.mark.parametrize(
    ("batch", "accumulate", "size"), [(8, 1, 8), (4, 1, 4), (6, 1, 2), (1, 1, 1), (32, 4, 8), (4, 4, 1)]
)
def test_a_batch_uses_the_devices_it_splits_over(batch, accumulate, size):
    assert jax.device_count() == 8
    mesh = devices.mesh_for(batch, accumulate)
    assert mesh.size == size
    placed = jax.device_put(jax.numpy.zeros((batch // accumulate, 2)), devices.split(mesh))
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {batch // accumulate // size}


@pytest.mark.parametrize(("batch", "accumulate"), [(0, 1), (-4, 1), (6, 4), (4, 0)])
def test_impossible_batches_are_named(batch, accumulate):
    with pytest.raises(InputError, match="batch_size"):
        devices.mesh_for(batch, accumulate)


@pytest.mark.parametrize(
    ("batch", "space", "shape"), [(8, 2, (4, 2)), (4, 2, (4, 2)), (1, 8, (1, 8)), (2, 4, (2, 4)), (8, 3, (2, 3))]
)
def test_devices_share_patches(batch, space, shape):
    """As many devices as rows of `space` of them divide; each has a slab along y of its examples."""
    mesh = devices.mesh_for(batch, space=space)
    assert tuple(mesh.shape.values()) == shape
    placed = jax.device_put(jax.numpy.zeros((batch, 5, 24, 7, 1)), devices.split_space(mesh, 3))
    slabs = {shard.data.shape for shard in placed.addressable_shards}
    assert slabs == {(batch // shape[0], 5, 24 // space, 7, 1)}


@pytest.mark.parametrize("space", [0, 9])
def test_more_devices_per_patch_than_there_are_is_named(space):
    with pytest.raises(InputError, match=r"parallel\.space"):
        devices.mesh_for(8, space=space)


def test_a_mesh_needs_whole_rows():
    with pytest.raises(InputError, match="space"):
        devices.make_mesh(space=3)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "HOST:PORT"),
    ],
)
def test_what_tells_of_other_processes_is_checked(environment, message):
    with pytest.raises(InputError, match=message):
        devices.join(environment)
