"""Distances equal SciPy's, at any spacing, rank, limit and cut into slabs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth.sim import distance

CASES = [((9, 20, 23), (2.0, 0.5, 0.7)), ((33, 40), (1.0, 2.0)), ((1, 17, 30), (3.0, 0.5, 0.5)), ((50,), (2.0,))]
to_other = jax.jit(distance.to_other_um, static_argnames="edge")
to_mask = jax.jit(distance.to_mask_um)


def tissue(shape, seed=0, num=12):
    """A partition into cells, some of which carry the same label though apart."""
    points = np.random.default_rng(seed).random((num, len(shape))) * shape
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    nearest = np.argmin(((grid[..., None, :] - points) ** 2).sum(-1), -1)
    return (nearest % (num // 2 + 1)).astype(np.int32)


def scipy_to_other(labels, spacing):
    out = np.full(labels.shape, np.inf)
    for value in np.unique(labels):
        if (labels != value).any():
            own = labels == value
            out[own] = ndimage.distance_transform_edt(own, sampling=spacing)[own]
    return out


@pytest.mark.parametrize("shape, spacing", CASES)
def test_to_other_label(shape, spacing):
    labels = tissue(shape)
    expected = scipy_to_other(labels, spacing)
    np.testing.assert_allclose(to_other(labels, np.array(spacing)), expected, rtol=1e-6)
    np.testing.assert_allclose(to_other(labels, np.array(spacing), 1.9), np.minimum(expected, 1.9), rtol=1e-6)


@pytest.mark.parametrize("shape, spacing", CASES[:2])
def test_the_edge_can_be_a_boundary(shape, spacing):
    labels = tissue(shape)
    inner = tuple(slice(1, -1) for _ in shape)
    expected = scipy_to_other(np.pad(labels, 1, constant_values=-1), spacing)[inner]
    np.testing.assert_allclose(to_other(labels, np.array(spacing), edge=True), expected, rtol=1e-6)
    full = to_other(labels >= 0, np.array(spacing), edge=True)
    whole = ndimage.distance_transform_edt(np.pad(labels >= 0, 1), sampling=spacing)[inner]
    np.testing.assert_allclose(full, whole, rtol=1e-6)


@pytest.mark.parametrize("shape, spacing", CASES)
def test_to_mask(shape, spacing):
    mask = np.random.default_rng(3).random(shape) < 0.03
    assert mask.any()
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing)
    np.testing.assert_allclose(to_mask(mask, np.array(spacing)), expected, rtol=1e-6)
    np.testing.assert_allclose(to_mask(mask, np.array(spacing), 2.5), np.minimum(expected, 2.5), rtol=1e-6)


@pytest.mark.parametrize("slab_voxels", [40, 900])
def test_slabs_do_not_show(monkeypatch, slab_voxels):
    """Widths that do not divide the volume make slabs overlap."""
    shape, spacing = CASES[0]
    labels = tissue(shape)
    monkeypatch.setattr(distance, "SLAB_VOXELS", {jax.default_backend(): slab_voxels})
    found = jax.jit(lambda labels: distance.to_other_um(labels, jnp.array(spacing)))(labels)
    np.testing.assert_allclose(found, scipy_to_other(labels, spacing), rtol=1e-6)


def test_one_label_or_an_empty_mask_is_infinitely_far():
    shape, spacing = CASES[0]
    ones = np.ones(shape, np.int32)
    assert np.isposinf(to_other(ones, np.array(spacing))).all()
    assert (np.asarray(to_other(ones, np.array(spacing), 1.9)) == np.float32(1.9)).all()
    assert np.isposinf(to_mask(ones == 0, np.array(spacing))).all()
    assert not np.asarray(to_mask(ones == 1, np.array(spacing))).any()


def test_signed_distance_of_a_ball():
    """Within a voxel of the analytic depth everywhere; the sign is the mask's."""
    shape, spacing, radius = (19, 36, 37), np.array([1.0, 0.5, 0.5]), 7.0
    grid = np.stack(
        np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    )
    depth = radius - np.sqrt(((grid - np.array([9.4, 9.1, 9.0])[:, None, None, None]) ** 2).sum(0))
    signed = np.asarray(jax.jit(distance.signed_um)(depth > 0, spacing))
    np.testing.assert_array_equal(signed > 0, depth > 0)
    assert np.abs(signed - depth).max() < 1.0 and np.abs(signed).min() == 0.5


def test_batch_equals_loop_and_spacing_scales():
    shape = CASES[1][0]
    labels = np.stack([tissue(shape, seed) for seed in range(3)])
    spacing = np.array([1.0, 2.0])
    together = jax.jit(jax.vmap(lambda labels: distance.to_other_um(labels, spacing)))(labels)
    for one, alone in zip(together, labels, strict=True):
        np.testing.assert_array_equal(one, to_other(alone, spacing))
        np.testing.assert_allclose(np.asarray(one) * 3, to_other(alone, spacing * 3), rtol=1e-6)


def test_spacing_of_another_rank_is_refused():
    with pytest.raises(ValueError, match="spacing_um: expected 2 values"):
        distance.to_other_um(jnp.zeros((4, 4), jnp.int32), jnp.ones(3))
