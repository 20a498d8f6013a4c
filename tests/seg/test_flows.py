"""Flow targets against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth.seg import flows

targets = jax.jit(flows.targets, static_argnames=("kind", "capacity", "iterations"))


def ball(shape, centre, radius):
    """The voxels of a disc or ball, bool [*S]."""
    return sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def field(labels, kind, capacity=8, **options):
    """Foreground [*S] and flow [D, *S]."""
    output = np.asarray(targets(jnp.asarray(labels, jnp.int32), kind, capacity, **options))
    assert output.dtype == np.float32 and output.shape == (*labels.shape, 1 + labels.ndim)
    return output[..., 0], np.moveaxis(output[..., 1:], -1, 0)


@pytest.mark.parametrize("shape", [(30, 40), (14, 18, 20)])
def test_centroid_flows_are_their_closed_form(shape):
    rng = np.random.default_rng(0)
    labels = np.where(ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0, rng.integers(1, 7, shape), 0)
    labels[labels == 4] = 0  # a label that is not there
    foreground, flow = field(labels, "centroid")
    np.testing.assert_array_equal(foreground, labels > 0)
    expected = np.zeros_like(flow)
    for label in np.unique(labels[labels > 0]):
        voxels = np.nonzero(labels == label)
        for axis, along in enumerate(voxels):
            extent = np.ptp(along) + 1
            expected[axis][voxels] = -np.tanh((along - along.mean()) / (extent / 3))
    np.testing.assert_allclose(flow, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("shape", "centre", "radius"), [((48, 50), (23.3, 24.1), 18), ((28, 28, 30), (13, 13.5, 14.2), 11)]
)
def test_heat_flows_of_a_ball_point_to_its_centre(shape, centre, radius):
    labels = ball(shape, centre, radius).astype(int) * 3
    foreground, flow = field(labels, "heat")
    np.testing.assert_array_equal(foreground, labels > 0)
    assert not flow[:, labels == 0].any()
    way = np.stack([c - g for g, c in zip(np.indices(shape), centre, strict=True)])
    away = np.linalg.norm(way, axis=0)
    inner = (away > 3) & (away < radius - 2)
    np.testing.assert_allclose(np.linalg.norm(flow, axis=0)[(labels > 0) & (away > 1.5)], 1, rtol=1e-5)
    angle = np.degrees(np.arccos(np.clip((flow * way).sum(0) / np.maximum(away, 1e-9), -1, 1)))
    assert angle[inner].mean() < 3 and angle[inner].max() < 10
    assert angle[(labels > 0) & ~inner & (away > 3)].max() < 30  # the boundary is a staircase


def test_heat_flows_follow_a_bent_cell():
    """At the ends of a crescent the way to the centre is along it, not straight through the gap."""
    shape = (60, 60)
    labels = (ball(shape, (30, 30), 25) & ~ball(shape, (30, 30), 18) & (np.indices(shape)[0] < 34)).astype(int)
    flow = field(labels, "heat")[1]
    y, x = np.indices(shape) - 30
    tangent = np.stack([-np.abs(x), y * np.sign(x)]) / np.maximum(np.hypot(y, x), 1)  # along the arc, to its top
    middle = (labels > 0) & (np.abs(np.hypot(y, x) - 21.5) < 1) & (np.abs(x) > 5)
    along = (flow * tangent).sum(0)[middle]
    assert along.mean() > 0.95 and along.min() > 0.75
    # Beyond the reach of the heat flows point straight at the centre, at the top of the crescent.
    near_sighted = field(labels, "heat", iterations=10)[1]
    end = near_sighted[:, 33, 9]
    way = np.array([30 - 21.5 - 33, 30 - 9])
    assert end @ way / np.linalg.norm(way) > 0.99


@pytest.mark.parametrize("kind", flows.KINDS)
@pytest.mark.parametrize("shape", [(24, 30), (12, 14, 16)])
def test_flows_turn_and_move_with_the_image(kind, shape):
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    labels, _ = ndimage.label(noise > np.quantile(noise, 0.6))
    capacity = 64
    foreground, flow = field(labels, kind, capacity)
    for axis in range(len(shape)):
        turned, turned_flow = field(np.flip(labels, axis), kind, capacity)
        np.testing.assert_array_equal(np.flip(turned, axis), foreground)
        turned_flow = np.flip(turned_flow, axis + 1).copy()
        turned_flow[axis] *= -1
        np.testing.assert_allclose(turned_flow, flow, atol=2e-4)
    room = [(3, 5)] * len(shape)
    moved = field(np.pad(labels, room), kind, capacity)[1]
    inner = (slice(None), *(slice(3, 3 + n) for n in shape))
    np.testing.assert_allclose(moved[inner], flow, atol=1e-6)


@pytest.mark.parametrize("kind", flows.KINDS)
def test_small_missing_and_foreign_labels(kind):
    labels = np.zeros((9, 11), int)
    foreground, flow = field(labels, kind)
    assert not foreground.any() and not flow.any()
    labels[0, 0], labels[4, 5:7], labels[8, 10], labels[2, 2] = 8, 3, 9, -1
    foreground, flow = field(labels, kind)
    assert foreground.sum() == 3 and foreground[0, 0] == 1  # 9 is above the capacity
    assert not flow[:, 0, 0].any() and not flow[0].any()
    assert flow[1, 4, 5] > 0.5 and flow[1, 4, 6] == -flow[1, 4, 5]


def test_cells_that_touch_do_not_see_each_other():
    whole = np.zeros((20, 31), int)
    whole[4:16, 3:15] = 1
    whole[4:16, 15:29] = 2
    for kind in flows.KINDS:
        flow = field(whole, kind)[1]
        for label in (1, 2):
            own = field(np.where(whole == label, label, 0), kind)[1]
            np.testing.assert_array_equal(flow[:, whole == label], own[:, whole == label])
        assert (flow[1, 4:16, 14] < -0.5).all() and (flow[1, 4:16, 15] > 0.5).all()


def test_published_flows_point_away_in_the_order_of_the_axes():
    labels = ball((12, 20, 16), (5, 11, 7), 5).astype(int)
    output = np.asarray(targets(jnp.asarray(labels), "centroid", 1))
    there = np.asarray(flows.to_published(output))
    np.testing.assert_array_equal(there[..., 0], labels)
    for axis, place in enumerate(np.indices(labels.shape)):
        own = place[labels > 0]
        expected = np.tanh((own - own.mean()) / ((np.ptp(own) + 1) / 3))
        np.testing.assert_allclose(there[..., 1 + axis][labels > 0], expected, atol=1e-6)
    np.testing.assert_array_equal(flows.from_published(there), output)


def test_centroids_of_large_cells_are_exact():
    """Sums of coordinates over this cell are above 2^32."""
    y, x = np.ogrid[:2048, :2300]
    labels = np.where(y + 2 * x > 1500, 2, 1)
    flow = field(labels, "centroid", capacity=2)[1]
    for label in (1, 2):
        inside = labels == label
        weight = inside.sum()
        for axis, place in enumerate((y, x)):
            along = inside.sum(1 - axis)  # voxels of every row or column
            centroid = (along * place.ravel()).sum() / weight
            extent = np.ptp(np.nonzero(along)[0]) + 1
            expected = np.broadcast_to(-np.tanh((place - centroid) * 3 / extent), labels.shape)
            np.testing.assert_allclose(flow[axis][inside], expected[inside], atol=1e-6)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="kind: expected one of heat, centroid, got 'cold'"):
        flows.targets(jnp.zeros((4, 4), jnp.int32), "cold", 1)
