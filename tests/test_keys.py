"""Random streams: what they depend on, and what they do not."""

import jax
import numpy as np

from jaxsynth import keys


def draw(key):
    return np.asarray(jax.random.bits(key, (4,)))


def test_streams_depend_on_the_whole_path_and_nothing_else():
    root = keys.root(7)
    paths = [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", "b"), ("b", "a"), (0,)]
    drawn = [tuple(draw(keys.stream(root, *path))) for path in paths]
    assert len(set(drawn)) == len(paths)
    assert np.array_equal(draw(keys.stream(root, "a", 3)), draw(keys.stream(keys.root(7), "a", 3)))
    assert not np.array_equal(draw(keys.stream(root, "a")), draw(keys.stream(keys.root(8), "a")))


def test_counts_may_be_traced():
    root = keys.root(0)
    traced = jax.jit(lambda i: jax.random.bits(keys.stream(root, "x", i), (4,)))(5)
    np.testing.assert_array_equal(traced, draw(keys.stream(root, "x", 5)))


def test_names_fold_in_by_their_checksum():
    """Python's own hash differs from process to process; files must be made again bit for bit years later."""
    root = keys.root(0)
    by_hand = jax.random.fold_in(jax.random.fold_in(root, 0xF10B76C3), 0x618BA5E2)
    np.testing.assert_array_equal(draw(keys.stream(root, "sample", "a.tif")), draw(by_hand))
