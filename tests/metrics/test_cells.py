"""Cell statistics against closed forms, scikit-image and brute force."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from skimage.measure import label, regionprops

from jaxsynth.errors import InputError
from jaxsynth.metrics import cells


def ellipsoid(shape, spacing, centre, axes, value=1):
    """The voxels whose centre lies inside an ellipsoid given in micrometres."""
    grid = np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    inside = sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) <= 1
    return np.where(inside, value, 0)


def blobs(shape, seed=0):
    """Irregular cells, some cut by the border."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return label(noise > np.percentile(noise, 75))


@pytest.mark.parametrize(
    ("shape", "spacing", "axes"),
    [((130, 90), (0.25, 0.5), (10.0, 15.0)), ((40, 80, 60), (1.0, 0.5, 0.4), (12.0, 9.0, 6.0))],
)
def test_ellipsoids_have_their_closed_form(shape, spacing, axes):
    centre = np.multiply(shape, spacing) * [0.52, 0.49, 0.51][: len(shape)]
    table = cells.measure(ellipsoid(shape, spacing, centre, axes), spacing)
    size = (np.pi if len(shape) == 2 else 4 / 3 * np.pi) * np.prod(axes)
    np.testing.assert_allclose(table.size, size, rtol=0.01)
    np.testing.assert_allclose(table.radius, np.prod(axes) ** (1 / len(axes)), rtol=0.005)
    np.testing.assert_allclose(table.elongation, max(axes) / min(axes), rtol=0.015)
    np.testing.assert_allclose(table.centre[0], centre, atol=0.06)
    assert table.solidity > 0.95 and not table.is_cut and np.isnan(table.nearest)
    np.testing.assert_allclose(table.density, 1e6 / np.prod(np.multiply(shape, spacing)))
    assert table.unit == "um" and table.rank == len(shape)


def test_boxes_are_exact_down_to_one_voxel():
    labels = np.zeros((20, 30), int)
    labels[2:6, 3:15] = 1
    labels[10, 5:12] = 2
    labels[15, 20] = 3
    table = cells.measure(labels, (2.0, 1.0))
    np.testing.assert_allclose(table.size, [96, 14, 2])
    np.testing.assert_allclose(table.elongation, [12 / 8, 7 / 2, 2])  # a voxel is 2 um high
    np.testing.assert_allclose(table.centre, [[8, 9], [21, 8.5], [31, 20.5]])
    np.testing.assert_allclose(table.solidity, 1)
    np.testing.assert_allclose(table.covered, 56 / 600)
    np.testing.assert_allclose(cells.measure(np.ones((2, 3, 5), int)).elongation, 5 / 2)


@pytest.mark.parametrize(("shape", "spacing"), [((90, 110), (0.3, 0.7)), ((24, 40, 36), (1.5, 0.6, 0.8))])
def test_agrees_with_scikit_image(shape, spacing):
    labels = blobs(shape)
    table, regions = cells.measure(labels, spacing), regionprops(labels, spacing=spacing)
    assert len(regions) > 5 and table.labels.tolist() == [region.label for region in regions]
    np.testing.assert_allclose(table.size, [region.area for region in regions])
    half = np.array(spacing) / 2  # scikit-image counts from the first voxel's centre
    np.testing.assert_allclose(table.centre, [region.centroid + half for region in regions])
    for region, elongation in zip(regions, table.elongation, strict=True):
        moments = np.cov((region.coords * spacing).T, bias=True) if len(region.coords) > 1 else np.zeros((2, 2))
        axes = np.linalg.eigvalsh(moments + np.diag(np.square(spacing) / 12))
        np.testing.assert_allclose(elongation, np.sqrt(axes[-1] / axes[0]))
    faces = [set(np.take(labels, end, axis).ravel()) for axis in range(len(shape)) for end in (0, -1)]
    assert set(table.labels[table.is_cut]) == set.union(*faces) - {0}
    between = np.linalg.norm(table.centre[:, None] - table.centre, axis=-1) + np.diag(np.full(len(regions), np.inf))
    np.testing.assert_allclose(table.nearest, between.min(0))
    if len(shape) == 2:
        large = [i for i, region in enumerate(regions) if len(region.coords) > 40]
        np.testing.assert_allclose(table.solidity[large], [regions[i].solidity for i in large], atol=0.04)


def test_solidity_of_a_bracket():
    """A square of side n without its middle third has 7/9 of its hull, in both ranks."""
    labels = np.zeros((100, 100), int)
    labels[5:95, 5:95] = 1
    labels[35:65, 35:95] = 0
    np.testing.assert_allclose(cells.measure(labels).solidity, 1 - 2 / 9, rtol=1e-3)
    volume = np.repeat(labels[None, ::2, ::2], 12, 0)
    np.testing.assert_allclose(cells.measure(volume).solidity, 1 - 2 / 9, rtol=0.03)


def test_spacing_only_changes_the_unit():
    labels = blobs((60, 70))
    plain, scaled = cells.measure(labels), cells.measure(labels, (0.5, 0.5))
    assert plain.unit == "voxels"
    np.testing.assert_allclose(scaled.size, plain.size / 4)
    np.testing.assert_allclose(scaled.nearest, plain.nearest / 2)
    np.testing.assert_allclose(scaled.elongation, plain.elongation)
    np.testing.assert_allclose(scaled.density, plain.density * 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_ids_and_dtype_do_not_matter(dtype):
    labels = blobs((60, 70)).astype(dtype)
    expected = cells.measure(labels)
    sparse = np.where(labels, labels.astype(np.int64) * 10_000_019 + 5, 0)
    table = cells.measure(sparse)
    assert (table.labels == expected.labels * 10_000_019 + 5).all()
    for name in ("size", "elongation", "solidity", "nearest", "is_cut"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))


def test_one_plane_is_an_image_and_no_cells_are_none():
    labels = blobs((60, 70))
    plane, image = cells.measure(labels[None], (9.0, 0.5, 0.4)), cells.measure(labels, (0.5, 0.4))
    assert plane.rank == 2
    np.testing.assert_array_equal(plane.size, image.size)
    np.testing.assert_array_equal(plane.is_cut, image.is_cut)
    for shape in ((8, 9), (3, 8, 9)):
        empty = cells.measure(np.zeros(shape, np.int32))
        assert empty.labels.shape == empty.size.shape == empty.nearest.shape == (0,)
        assert empty.density == empty.covered == 0


def test_cut_cells_count_in_density_and_neighbourhood_only():
    labels = np.zeros((50, 50), int)
    labels[20:30, 20:30] = 1
    labels[0:4, 20:30] = 2
    table = cells.measure(labels)
    assert table.is_cut.tolist() == [False, True]
    assert cells.values([table], "size").tolist() == [100]
    assert cells.values([table], "nearest").tolist() == [23]
    assert cells.values([table], "num_cells").tolist() == [2]
    assert cells.values([table], "cut").tolist() == [0.5]


def test_distances_have_their_closed_form():
    rng = np.random.default_rng(0)
    real = [cells.measure(blobs((60, 70), seed)) for seed in range(4)]
    same = cells.compare(real, real)
    assert all(row["wasserstein"] in (0, None) and row["ks"] == 0 for row in same.values())
    sizes = cells.values(real, "elongation")
    shifted = [dataclasses.replace(table, elongation=table.elongation + 0.25) for table in real]
    row = cells.compare(real, shifted)["elongation"]
    np.testing.assert_allclose(row["wasserstein"], 0.25 / sizes.std())
    np.testing.assert_allclose(row["ks"], stats.ks_2samp(sizes, sizes + 0.25).statistic)
    np.testing.assert_allclose(row["synthetic"]["median"], np.median(sizes) + 0.25)
    np.testing.assert_allclose(row["real"]["quartiles"], np.percentile(sizes, (25, 75)))
    halves = [cells.values(part, "elongation") for part in (real[:2], real[2:])]
    np.testing.assert_allclose(row["real_ks"], stats.ks_2samp(*halves).statistic)
    np.testing.assert_allclose(row["real_wasserstein"], stats.wasserstein_distance(*halves) / sizes.std())
    noisy = [dataclasses.replace(t, elongation=t.elongation + rng.normal(0, 0.01, t.size.shape)) for t in real]
    assert 0 < cells.compare(real, noisy)["elongation"]["wasserstein"] < 0.1 * row["wasserstein"]


def test_what_is_undefined_is_none():
    lonely = np.zeros((30, 30), int)
    lonely[5:9, 5:9] = 1
    one, cut = cells.measure(lonely), cells.measure(np.pad(lonely[5:], ((0, 5), (0, 0))))
    found = cells.compare([one], [cut])
    assert found["nearest"]["real"] == {"num": 0, "median": None, "quartiles": None}
    assert found["size"]["real"]["median"] == 16 and found["size"]["ks"] is None  # the other is cut
    assert found["num_cells"]["wasserstein"] is None and found["num_cells"]["ks"] == 0
    assert found["num_cells"]["real_ks"] is None
    assert found["cut"]["synthetic"]["median"] == 1


@pytest.mark.parametrize(
    ("labels", "spacing", "message"),
    [
        (np.zeros(4, int), None, r"\(4,\)"),
        (np.zeros((4, 4)), None, "float64"),
        (np.zeros((0, 4), int), None, r"\(0, 4\)"),
        (np.full((4, 4), -1), None, "-1"),
        (np.ones((4, 4), int), (1, 1, 1), "2 positive"),
        (np.ones((4, 4), int), (1, 0), "2 positive"),
    ],
)
def test_unusable_labels_are_named(labels, spacing, message):
    with pytest.raises(InputError, match=message):
        cells.measure(labels, spacing)


def test_sets_must_agree():
    flat, deep = cells.measure(np.ones((4, 4), int)), cells.measure(np.ones((4, 4, 4), int))
    with pytest.raises(InputError, match="2D in voxels and 3D in voxels"):
        cells.compare([flat], [deep])
    with pytest.raises(InputError, match="2D in um and 2D in voxels"):
        cells.compare([flat], [cells.measure(np.ones((4, 4), int), (1, 1))])
    with pytest.raises(InputError, match="synthetic label images: expected cells"):
        cells.compare([flat], [cells.measure(np.zeros((4, 4), int))])
    with pytest.raises(InputError, match="real label images: expected cells"):
        cells.compare([], [flat])


def test_real_nuclei_agree_with_themselves(real_data):
    """Stem cells 0.24 um a pixel: nuclei some 15 um wide, and a movie's halves alike in size, not in number."""
    from jaxsynth.data import volumes

    files = volumes.find_files(real_data / "gowt1" / "masks")[::6]
    tables = [cells.measure(volumes.read_labels(file), (0.24, 0.24)) for file in files]
    found = cells.compare(tables, tables)
    assert 6 < found["radius"]["real"]["median"] < 9
    assert 20 <= found["num_cells"]["real"]["median"] <= 29
    assert found["size"]["ks"] == 0 < found["size"]["real_ks"] < 0.5
