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
