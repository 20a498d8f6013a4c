"""Filters of cells, and whole images on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth.errors import InputError
from jaxsynth.seg import filters, flows, segmentation

targets = jax.jit(flows.targets, static_argnames=("kind", "capacity"))


def discs(shape, bodies):
    labels = np.zeros(shape, np.int32)
    for number, (*centre, radius) in enumerate(bodies, start=1):
        grid = np.indices(shape)
        labels[sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2] = number
    return labels


SCENE = discs((60, 70), [(14, 14, 10), (14, 50, 12), (42, 20, 14), (44, 56, 5)])


def test_small_cells_are_told():
    labels = jnp.asarray([[0, 1, 1], [2, 0, 4], [4, 4, 0]])
    np.testing.assert_array_equal(filters.by_size(labels, 2, 5)[1:], [True, False, True, True, True])
    assert filters.by_size(labels, 0, 5).all()


def test_cells_in_doubtful_foreground_are_told():
    labels = jnp.asarray([[0, 1, 1], [2, 2, 0]])
    foreground = jnp.asarray([[0.0, 0.9, 0.5], [0.6, 0.7, 0.9]])
    np.testing.assert_array_equal(filters.by_foreground(labels, foreground, 0.68, 3)[1:], [True, False, True])


def test_the_mean_foreground_of_large_cells_is_exact():
    """Added one after the other in float32, so many come to a mean of .731."""
    labels = jnp.ones((2200, 2100), jnp.int32)
    foreground = jnp.full(labels.shape, 0.7)
    assert filters.by_foreground(labels, foreground, 0.6999, 1)[1]
    assert not filters.by_foreground(labels, foreground, 0.7001, 1)[1]


@pytest.mark.parametrize("kind", flows.KINDS)
def test_cells_whose_flows_lead_elsewhere_are_told(kind):
    output = np.array(targets(jnp.asarray(SCENE), kind, 8))
    by_flow = jax.jit(filters.by_flow, static_argnames=("kind", "capacity"))
    assert by_flow(jnp.asarray(SCENE), output, 1e-6, kind, 8).all()
    output[SCENE == 2, 1:] = output[SCENE == 2, :0:-1]  # the axes exchanged: an error of 2 over the disc
    output[SCENE == 3, 1:] *= 0.5  # an error of a quarter
    for most, kept in ((0.2, [1, 4]), (0.3, [1, 3, 4]), (1.8, [1, 3, 4]), (2.2, [1, 2, 3, 4])):
        keep = by_flow(jnp.asarray(SCENE), output, most, kind, 8)
        assert [label for label in range(1, 5) if keep[label]] == kept
        assert keep[5:].all()


def test_what_is_left_is_numbered_in_order():
    labels = jnp.asarray([[0, 3, 3], [1, 2, 4]])
    new, count = filters.apply(labels, jnp.asarray([True, False, True, True, False]))
    np.testing.assert_array_equal(new, [[0, 2, 2], [0, 1, 0]])
    assert count == 2


def test_holes_are_filled_and_others_left_alone():
    labels = np.zeros((20, 24), np.int32)
    labels[2:12, 2:12] = 4
    labels[4:6, 4:6] = 0
    labels[8, 8] = 2  # another cell inside
    labels[14:18, 3:9] = 1
    labels[15, 3] = 0  # open to the outside
    filled = segmentation.fill_holes(labels)
    assert (filled[4:6, 4:6] == 4).all() and filled[8, 8] == 2 and filled[15, 3] == 0
    assert (filled != labels).sum() == 4 and (labels[4:6, 4:6] == 0).all()
    assert segmentation.fill_holes(np.zeros((3, 4, 5), np.int32)).max() == 0


@pytest.mark.parametrize("kind", flows.KINDS)
def test_an_image_is_segmented_whatever_its_size(kind):
    output = np.asarray(targets(jnp.asarray(SCENE), kind, 8))
    found = segmentation.segment_image(output, SCENE.shape, kind)
    assert found.dtype == np.int32 and found.flags.writeable
    np.testing.assert_array_equal(found, SCENE)
    larger = segmentation.segment_image(output, (150, 175), kind)
    assert larger.shape == (150, 175) and larger.max() == 4
    np.testing.assert_array_equal(larger[1::5, 1::5], SCENE[::2, ::2])  # where a voxel's centre lies in another's
    without_small = segmentation.segment_image(output, SCENE.shape, kind, segmentation.Options(min_size=100))
    np.testing.assert_array_equal(without_small, np.where(SCENE == 4, 0, SCENE))


def test_what_flows_do_not_explain_is_dropped():
    output = np.array(targets(jnp.asarray(SCENE), "heat", 8))
    strange = SCENE == 2
    rng = np.random.default_rng(0)
    flow = ndimage.gaussian_filter(rng.normal(size=(*SCENE.shape, 2)), (2, 2, 0))
    output[strange, 1:] = (flow / np.linalg.norm(flow, axis=-1, keepdims=True))[strange]
    found = segmentation.segment_image(output, SCENE.shape, "heat", segmentation.Options(min_size=15))
    kept = segmentation.segment_image(output, SCENE.shape, "heat", segmentation.Options(min_size=15, flow_error=0))
    assert (found[strange] > 0).sum() < (kept[strange] > 0).sum()
    np.testing.assert_array_equal(found > 0, kept * (found > 0) > 0)
    for label in (1, 3, 4):
        assert len(np.unique(found[SCENE == label])) == 1 and found[SCENE == label].min() > 0


def test_bent_cells_are_dropped_where_asked():
    scene = SCENE.copy()
    scene[36:48, 20:] *= scene[36:48, 20:] != 3  # a C, of disc 3
    output = np.asarray(targets(jnp.asarray(scene), "heat", 8))
    found = segmentation.segment_image(output, scene.shape, "heat", segmentation.Options(convexity=0.0))
    np.testing.assert_array_equal(found, scene)
    found = segmentation.segment_image(output, scene.shape, "heat", segmentation.Options(convexity=0.9))
    np.testing.assert_array_equal(found, np.choose(scene, [0, 1, 2, 0, 3]))
    assert found.dtype == np.int32


def test_images_of_like_size_share_programs():
    before = segmentation._segment._cache_size()
    output = np.asarray(targets(jnp.asarray(discs((80, 80), [(20, 20, 12), (50, 40, 10)])), "centroid", 8))
    for shape in ((65, 66), (70, 80), (79, 73)):
        found = segmentation.segment_image(output[: shape[0], : shape[1]], shape, "centroid")
        assert found.shape == shape and found.max() == 2
    assert segmentation._segment._cache_size() - before <= 1


def test_sizes_are_rounded_up_to_few():
    sizes = [segmentation.rounded_up(n) for n in range(1, 3000)]
    assert all(n <= m <= max(n * 1.25, n + 7) for n, m in enumerate(sizes, start=1))
    assert len(set(sizes)) < 32 and segmentation.rounded_up(1024) == 1024
    assert [segmentation.power_of_two(n, 4) for n in (0, 1, 4, 5, 8, 9)] == [4, 4, 4, 8, 8, 16]


def test_unusable_arguments_are_one_line():
    with pytest.raises(InputError, match=r"output: expected \[\*S, 1 \+ D\] of an image of shape \(8, 8\)"):
        segmentation.segment_image(np.zeros((8, 8, 4), np.float32), (8, 8), "heat")
    with pytest.raises(InputError, match="kind: expected one of heat, centroid"):
        segmentation.segment_image(np.zeros((8, 8, 3), np.float32), (8, 8), "cold")
