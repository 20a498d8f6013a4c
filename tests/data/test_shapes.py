"""Shape models from label images, drawn and real, and as files."""

import numpy as np
import pytest

from jaxsynth.data import shapes, volumes
from jaxsynth.errors import InputError
from jaxsynth.sim import shape_model, starshape


def disc(shape, centre, radius):
    at = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((x - c) ** 2 for x, c in zip(at, centre, strict=True)) <= radius**2


def save_discs(path, spacing=(0.5, 0.5)):
    """Four whole cells of different radii and one that is cut by the edge."""
    labels = np.zeros((64, 80), np.int32)
    for index, (y, x, r) in enumerate([(15, 15, 6), (15, 45, 8), (45, 20, 9), (40, 50, 11), (60, 75, 8)]):
        labels[disc(labels.shape, (y, x), r)] = index + 1
    volumes.write(path, labels, spacing_um=spacing)


def test_cells_that_touch_the_edge_are_no_samples(tmp_path):
    save_discs(tmp_path / "a.tif")
    model = shapes.fit_files(tmp_path, "cell", 2, size=32)
    assert (model.ndim, model.size, model.modes.shape) == (2, 32, (2, 32))
    np.testing.assert_allclose(model.mean, 0.5 * np.mean([6, 8, 9, 11]), rtol=0.06)
    # Discs differ in size alone, and the model knows by how much.
    assert model.sd[0] == pytest.approx(0.5 * np.std([6, 8, 9, 11], ddof=1), rel=0.06)
    assert model.sd[1] < 0.1 * model.sd[0]
    given = shapes.fit_files(tmp_path, "cell", 2, size=32, spacing_um=(1.0, 1.0))
    np.testing.assert_allclose(given.mean, 2 * model.mean, rtol=1e-4)


def test_an_organism_is_all_its_labels(tmp_path):
    """Whatever the number of its background; two files, two samples."""
    for index, radius in enumerate((10, 14)):
        labels = np.ones((40, 44, 44), np.int32)
        body = disc(labels.shape, (20, 22, 22), radius)
        labels[body] = 2
        labels[body & (np.arange(44) > 22)] = 3
        volumes.write(tmp_path / f"{index}.tif", labels, spacing_um=(1.0, 1.0, 1.0))
    model = shapes.fit_files(tmp_path, "organism", 3, background_label=1, size=17)
    np.testing.assert_allclose(model.mean, 12, atol=0.6)
    assert float(np.mean(model.mean)) == pytest.approx(12, rel=0.02)
    assert model.sd[0] == pytest.approx(4 / 2**0.5, rel=0.05) and not model.sd[1:].any()
    whole = shapes.fit_files(tmp_path, "organism", 1, size=17)
    assert whole.mean.min() == pytest.approx(20, rel=0.02)  # with 0 as background all of the volume is organism


def test_large_organisms_are_thinned_without_a_shift(tmp_path):
    labels = disc((500, 400), (260, 190), 150).astype(np.int32)
    volumes.write(tmp_path / "a.tif", labels, spacing_um=(0.1, 0.1))
    model = shapes.fit_files(tmp_path, "organism", 1, size=64)
    np.testing.assert_allclose(model.mean, 15, atol=0.25)
    assert float(np.mean(model.mean)) == pytest.approx(15, rel=0.005)


def test_models_survive_the_file(tmp_path):
    save_discs(tmp_path / "a.tif")
    model = shapes.fit_files(tmp_path / "a.tif", "cell", 3, size=16)
    shapes.save(tmp_path / "model.npz", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "model.npz"]
    again = shapes.load(tmp_path / "model.npz")
    assert (again.size, again.ndim) == (16, 2)
    for name in ("mean", "modes", "sd"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    model = shape_model.fit(np.full((1, 9, 9), 4.0, np.float32), 1)
    shapes.save(tmp_path / "model.npz", model)
    before = (tmp_path / "model.npz").read_bytes()
    with pytest.raises(TypeError):
        shapes.save(tmp_path / "model.npz", model.replace(size=None))
    assert (tmp_path / "model.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_every_truncation_of_a_file_is_refused_in_one_line(tmp_path):
    shapes.save(tmp_path / "model.npz", shape_model.fit(np.full((2, 9, 9), 4.0, np.float32), 1))
    content = (tmp_path / "model.npz").read_bytes()
    for keep in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "cut.npz").write_bytes(content[:keep])
        with pytest.raises(InputError, match=r"cut.npz: ") as error:
            shapes.load(tmp_path / "cut.npz")
        assert "\n" not in str(error.value)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        shapes.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(InputError, match="not a shape model of jaxsynth"):
        shapes.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(InputError, match=r"array.npy: "):
        shapes.load(tmp_path / "array.npy")
    np.savez(tmp_path / "object.npz", format=np.array({"a": 1}, dtype=object))
    with pytest.raises(InputError, match=r"object.npz: "):
        shapes.load(tmp_path / "object.npz")
    good = {"format": shapes.FORMAT, "mean": np.ones(81), "modes": np.ones((2, 81)), "sd": np.ones(2)}
    good |= {"size": 9, "ndim": 3}
    for change in ({"size": 8}, {"ndim": 4}, {"sd": np.ones(3)}, {"mean": np.full(81, np.nan)}, {"sd": np.array("a")}):
        np.savez(tmp_path / "bad.npz", **(good | change))
        with pytest.raises(InputError, match="do not fit together"):
            shapes.load(tmp_path / "bad.npz")


def test_mistakes_are_named(tmp_path):
    save_discs(tmp_path / "a.tif")
    volumes.write(tmp_path / "b.tif", np.ones((8, 16, 16), np.int32), spacing_um=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="kind: expected organism or cell, got 'cells'"):
        shapes.fit_files(tmp_path / "a.tif", "cells", 2)
    with pytest.raises(InputError, match="num_modes: expected 0 or more"):
        shapes.fit_files(tmp_path / "a.tif", "cell", -1)
    with pytest.raises(InputError, match=r"b.tif: is 3D \(8, 16, 16\) but .*a.tif is 2D"):
        shapes.fit_files(tmp_path, "cell", 2)
    with pytest.raises(InputError, match=r"b.tif: no whole cell"):
        shapes.fit_files(tmp_path / "b.tif", "cell", 2)
    with pytest.raises(InputError, match=r"b.tif: no cell, all voxels are background"):
        shapes.fit_files(tmp_path / "b.tif", "organism", 2, background_label=1)
    with pytest.raises(InputError, match="3 positive micrometres"):
        shapes.fit_files(tmp_path / "b.tif", "organism", 2, spacing_um=(1.0, 1.0))
    volumes.write(tmp_path / "c.tif", np.ones((16, 16), np.int32))
    with pytest.raises(InputError, match=r"c.tif: states no voxel size"):
        shapes.fit_files(tmp_path / "c.tif", "organism", 2)


def test_real_nuclei_give_a_model_of_their_size(real_data):
    path = real_data / "embryo3d" / "masks" / "Emb05_t351.tif"
    spacing = (1.75, 0.8, 0.8)
    model = shapes.fit_files(path, "cell", 4, spacing_um=spacing, size=17)
    labels = volumes.read_labels(path)
    inner = labels.copy()
    for axis in range(3):
        for edge in (0, -1):
            inner[np.isin(inner, np.unique(np.take(labels, edge, axis=axis)))] = 0
    counts = np.bincount(inner.ravel())[1:]
    expected = (np.mean(counts[counts > 0]) * np.prod(spacing) * 3 / (4 * np.pi)) ** (1 / 3)
    mean = float((starshape.weights(17, 3).ravel() * model.mean).sum())
    assert mean == pytest.approx(expected, rel=0.1)
    assert (model.sd > 0.01 * mean).all() and (model.sd < 0.3 * mean).all()


def test_a_real_meristem_is_one_sample(real_data):
    path = real_data / "arabidopsis" / "layouts" / "p194_t1.tif"
    model = shapes.fit_files(path, "organism", 3, background_label=1, spacing_um=(0.195,) * 3, size=33)
    assert not model.sd.any()
    volume = 4 / 3 * np.pi * float((starshape.weights(33, 3).ravel() * model.mean**3).sum())
    labels = volumes.read_labels(path)
    assert volume == pytest.approx((labels > 1).sum() * 0.195**3, rel=0.12)  # more, as its folds are filled
    assert volume > (labels > 1).sum() * 0.195**3 * 0.99
