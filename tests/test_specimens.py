"""What `simulate` makes of a specimen beside its labels."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth import specimens
from jaxsynth.records import Specimen


def walled(labels, margin=0):
    """A specimen whose voxels without a label are membrane, `margin` voxels at the edge of the volume aside."""
    nothing = jnp.bool_(False)
    labels = jnp.asarray(labels, jnp.int32)
    body = jnp.pad(jnp.ones([size - 2 * margin for size in labels.shape], bool), margin)
    return Specimen(labels, jnp.ones(4), 3, 3, nothing, nothing, membrane=(labels == 0) & body)


def test_merging_ends_where_there_is_nothing_to_merge():
    merge = jax.jit(specimens.merge)
    for label in (0, 1):
        labels = np.zeros((4, 5, 6), int)
        labels[1:3, 1:3, 1:3] = label
        merged = merge(jax.random.key(0), walled(labels), 0.5)
        assert set(np.unique(merged)) <= {0, label}


def test_merging_fills_the_wall_between():
    labels = np.zeros((7, 9, 15), int)
    labels[2:5, 2:7, 2:7], labels[2:5, 2:7, 8:13] = 1, 2
    merged = np.asarray(jax.jit(specimens.merge)(jax.random.key(0), walled(labels, 1), 1.0))
    assert set(np.unique(merged)) == {0, 1} and (merged[3, 4, 2:13] == 1).all()
    assert (merged[3, 4, [1, 13]] == 0).all()
