"""The evaluation command on real files: its numbers, its pictures, and what it refuses."""

import json
import sys

import numpy as np
import pytest
from skimage import io
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from jaxsynth import evaluate as command
from jaxsynth.data import intensity, volumes


def images(folder, count, shape=(48, 56), dtype=np.uint16, seed=0, shift=0.0, first=0):
    """Blobs on a noisy pedestal, named 0.tif, 1.tif, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(first, first + count):
        image = rng.normal(300, 12, shape) + shift
        image[..., 10:25, 12:30] += 400
        volumes.write(folder / f"{i}.tif", image.astype(dtype))
    return folder


def evaluate(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args)])
    command.main()


def scores(folder):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)


def test_equal_sets_have_no_distance(tmp_path, monkeypatch):
    real = images(tmp_path / "real", 4)
    evaluate(monkeypatch, "--real", real, "--synthetic", real, "--paired", "--out", tmp_path / "out")
    found = scores(tmp_path / "out")
    distances = found["distances_from_real"]
    names = ["kld", "bhattacharyya", "frechet", "spectral_distance_db", "profile_distance"]
    assert list(distances["synthetic"]) == names
    np.testing.assert_allclose(list(distances["synthetic"].values()), 0, atol=1e-9)
    assert distances["real, other half"]["frechet"] > 0
    assert 0 < distances["real, other half"]["kld"] < 1
    assert found["statistics"]["real"] == found["statistics"]["synthetic"]
    assert found["paired"]["mean"]["mae"] == 0.0
    assert found["paired"]["mean"]["psnr"] is None  # infinite, which JSON cannot say
    assert abs(found["paired"]["mean"]["zncc"] - 1) < 1e-5


def test_pairs_are_scored_as_scikit_image_does_on_the_papers_scale(tmp_path, monkeypatch):
    real, other = images(tmp_path / "real", 3), images(tmp_path / "other", 3, seed=1)
    evaluate(monkeypatch, "--real", real, "--synthetic", other, "--paired", "--out", tmp_path / "out")
    found = scores(tmp_path / "out")["paired"]
    pairs = [[volumes.read(folder / f"{i}.tif").astype(float) for folder in (real, other)] for i in range(3)]
    low, high = min(x.min() for x, _ in pairs), max(x.max() for x, _ in pairs)
    assert found["range"] == [low, high]
    for row, pair in zip(found["images"], pairs, strict=True):
        x, y = ((image - low) / (high - low) for image in pair)
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1.0), rel=1e-4)
        assert row["ssim"] == pytest.approx(structural_similarity(x, y, data_range=1.0), abs=1e-4)
        assert row["mae"] == pytest.approx(np.abs(x - y).mean(), rel=1e-4)
    assert found["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in found["images"]]))


def test_a_shift_is_farther_than_another_draw(tmp_path, monkeypatch):
    real = images(tmp_path / "real", 4)
    near, far = images(tmp_path / "near", 4, seed=5), images(tmp_path / "far", 4, seed=5, shift=40)
    for name, folder in (("a", near), ("b", far)):
        evaluate(monkeypatch, "--real", real, "--synthetic", folder, "--out", tmp_path / name)
    close, distant = (scores(tmp_path / name)["distances_from_real"]["synthetic"] for name in "ab")
    assert close["kld"] < 0.1 * distant["kld"]
    assert close["bhattacharyya"] < 0.1 * distant["bhattacharyya"]
    assert close["frechet"] < 0.5 * distant["frechet"]


def test_a_single_patch_has_no_frechet_distance_but_all_else(tmp_path, monkeypatch, capsys):
    real = images(tmp_path / "real", 1)
    evaluate(monkeypatch, "--real", real, "--synthetic", real, "--out", tmp_path / "out")
    found = scores(tmp_path / "out")["distances_from_real"]["synthetic"]
    assert found["frechet"] is None and found["kld"] == 0
    assert "Frechet" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(48, 56), (10, 40, 44)])
def test_a_data_set_is_shown_with_labels_and_sketches(tmp_path, monkeypatch, capsys, shape):
    """The layout that jaxsynth.sample writes: the sketch is compared too, and four columns are drawn."""
    real = images(tmp_path / "real", 3, shape)
    images(tmp_path / "set" / "images", 2, shape, seed=1)
    scale = intensity.fit(lambda: map(volumes.read, sorted(real.iterdir())), "asinh")
    labels = np.zeros(shape, np.int32)
    labels[..., 10:25, 12:30] = 7
    for i in range(2):
        for name, volume in (("labels", labels), ("sketches", np.where(labels, 0.5, -0.8).astype(np.float32))):
            (tmp_path / "set" / name).mkdir(exist_ok=True)
            volumes.write(tmp_path / "set" / name / f"{i}.tif", volume)
    (tmp_path / "set" / "manifest.json").write_text(json.dumps({"intensity": scale.to_dict()}))
    evaluate(monkeypatch, "--real", real, "--synthetic", tmp_path / "set", "--num", 2)
    found = scores(tmp_path / "set")
    assert found["distances_from_real"]["sketch"]["kld"] > found["distances_from_real"]["synthetic"]["kld"]
    picture = io.imread(tmp_path / "set" / "overview.png")
    assert picture.shape[1] > 4 * shape[-1] and picture.ndim == 3
    # The labels' column is in colour, the others grey.
    saturation = np.ptp(picture[..., :3].astype(int), axis=-1)
    assert (saturation > 60).sum() > 200
    assert (tmp_path / "set" / "evaluation.png").stat().st_size > 5000
    assert (tmp_path / "set" / "profiles.png").stat().st_size > 5000
    assert "background_noise_sd" in capsys.readouterr().out


def fading(folder, count, shape=(16, 24, 40), decay=np.inf, seed=0, spacing_um=None):
    """Volumes of a bright block on a pedestal, in noise; the light above the pedestal fades as exp(-z / decay)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = rng.normal(300, 4, shape)
        image[..., 10:30] += 600 * np.exp(-np.arange(shape[0]) / decay)[:, None, None]
        volumes.write(folder / f"{i}.tif", image.astype(np.uint16), spacing_um=spacing_um)
    return folder


def test_profiles_of_pairs_tell_what_light_was_lost(tmp_path, monkeypatch, capsys):
    """Of a block's light a share fades: along x and along z that share is the relative distance of profiles.

    The pedestal over the minimum, a few sd of the noise, is left in the reference and makes it a little less.
    """
    real, lit = fading(tmp_path / "real", 3), fading(tmp_path / "lit", 3, seed=1)
    fading(tmp_path / "set" / "images", 3, decay=8.0, seed=2)
    options = ("--paired", "--also", f"decayed={tmp_path / 'set'}", "--out", tmp_path / "out")
    evaluate(monkeypatch, "--real", real, "--synthetic", lit, *options)
    found = scores(tmp_path / "out")
    lost = 1 - np.exp(-np.arange(16) / 8).mean()
    for row in (found["paired_also"]["decayed"]["mean"], found["distances_from_real"]["decayed"]):
        assert 0.9 * lost < row["profile_distance"] < lost
        assert 0.9 * lost < row["depth_profile_distance"] < lost
    for row in (found["paired"]["mean"], found["distances_from_real"]["synthetic"]):
        assert row["profile_distance"] < 0.02 and row["depth_profile_distance"] < 0.02
        assert row["xz_spectral_distance_db"] < 1.5
    assert found["distances_from_real"]["decayed"]["xz_spectral_distance_db"] > 3
    assert found["paired_also"]["decayed"]["mean"]["psnr"] < found["paired"]["mean"]["psnr"] - 10
    printed = capsys.readouterr().out
    assert "profile z" in printed and "decayed" in printed and "profiles.png" in printed


def test_profiles_of_unpaired_images_of_different_sizes(tmp_path, monkeypatch):
    """Over relative position and on common frequencies, sizes do not matter; a drawn figure shows every set."""
    spacing = (1.0, 0.5, 0.5)
    real = fading(tmp_path / "real", 2, (16, 20, 40), 5.0, spacing_um=spacing)
    (tmp_path / "made").mkdir()
    for i, path in enumerate(sorted(real.iterdir())):
        large = np.repeat(np.repeat(np.repeat(volumes.read(path), 2, 0), 2, 1), 2, 2)
        volumes.write(tmp_path / "made" / f"{i}.tif", large)
    evaluate(monkeypatch, "--real", real, "--synthetic", tmp_path / "made", "--out", tmp_path / "out")
    found = scores(tmp_path / "out")["distances_from_real"]["synthetic"]
    # A voxel repeated is a step where the line between centres rises: all but the block's edges are the same.
    assert found["profile_distance"] < 0.06 and found["depth_profile_distance"] < 0.06
    picture = io.imread(tmp_path / "out" / "profiles.png")[..., :3].astype(int)
    for colour in ((27, 31, 36), (209, 73, 91), (140, 149, 159)):  # real, synthetic, the other half
        assert (np.abs(picture - colour).max(-1) < 4).sum() > 100


@pytest.mark.parametrize("other", ["real", "synthetic"])
def test_a_further_set_needs_a_name_of_its_own(tmp_path, monkeypatch, capsys, other):
    real = images(tmp_path / "real", 1)
    images(tmp_path / "synthetic", 1)
    with pytest.raises(SystemExit) as stop:
        evaluate(
            monkeypatch, "--real", real, "--synthetic", real, "--also", tmp_path / other, "--out", tmp_path / "out"
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"'{other}' is taken" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: images(p / "synthetic", 1, first=9), "9.tif"),
        (lambda p: images(p / "synthetic", 1, (40, 40)), "shape"),
        (lambda p: images(p / "synthetic", 1, (8, 48, 56)), "3D"),
        (lambda p: (p / "synthetic").mkdir(), "synthetic"),
        (lambda p: None, "synthetic"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, change, message):
    images(tmp_path / "real", 2)
    change(tmp_path)
    with pytest.raises(SystemExit) as stop:
        evaluate(
            monkeypatch,
            *("--real", tmp_path / "real", "--synthetic", tmp_path / "synthetic", "--paired"),
            *("--out", tmp_path / "out"),
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_real_images_against_themselves(real_data, tmp_path, monkeypatch):
    """Nuclei of the Data Science Bowl: the two halves of a real set are close on the scale of other distances."""
    folder = real_data / "dsb2018" / "images"
    evaluate(monkeypatch, "--real", folder, "--synthetic", folder, "--num", 12, "--out", tmp_path / "out")
    found = scores(tmp_path / "out")
    assert found["distances_from_real"]["synthetic"]["kld"] == 0
    assert 0 < found["distances_from_real"]["real, other half"]["bhattacharyya"] < 0.5
    assert found["distances_from_real"]["synthetic"]["frechet"] < 1e-6
    assert 0.1 < found["distances_from_real"]["real, other half"]["frechet"] < 50


def masks(folder, count, shape=(60, 70), seed=0, radius=5.0, background=0, spacing_um=None):
    """Label images of discs or balls on a jittered grid, named 0.tif, 1.tif, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for i in range(count):
        labels = np.full(shape, background, np.int32)
        for place in np.ndindex(*(n // 18 for n in shape)):
            inside = np.linalg.norm(grid - (np.add(place, 0.5) * 18 + rng.uniform(-2, 2, len(shape))), axis=-1)
            labels[inside < radius * rng.uniform(0.8, 1.2)] = labels.max() + 1
        volumes.write(folder / f"{i}.tif", labels, spacing_um=spacing_um)
    return folder


def cell_scores(folder):
    return json.loads((folder / "metrics.json").read_text())["statistics"]


@pytest.mark.parametrize("shape", [(60, 70), (36, 40, 54)])
def test_label_images_are_compared_cell_by_cell(tmp_path, monkeypatch, capsys, shape):
    real = masks(tmp_path / "real", 4, shape)
    masks(tmp_path / "set" / "labels", 3, shape, seed=1, radius=6.0, spacing_um=(0.5,) * len(shape))
    spacing = ",".join(["0.5"] * len(shape))
    options = ("--labels", "--real", real, "--spacing_um", spacing)
    evaluate(monkeypatch, *options, "--synthetic", tmp_path / "set")
    found = cell_scores(tmp_path / "set")
    radius = found["radius"]
    assert radius["unit"] == "um"
    assert radius["synthetic"]["median"] / radius["real"]["median"] == pytest.approx(1.2, abs=0.08)
    assert radius["ks"] > 2 * radius["real_ks"] and radius["wasserstein"] > 0.5
    assert found["num_cells"]["real"]["median"] == np.prod([n // 18 for n in shape])
    printed = capsys.readouterr().out
    assert "nearest neighbour, um" in printed and f"size, um^{len(shape)}" in printed
    assert io.imread(tmp_path / "set" / "distributions.png").shape[1] > 1000
    evaluate(monkeypatch, *options, "--synthetic", real, "--out", tmp_path / "same", "--num", 2)
    assert all(row["ks"] in (0, None) for row in cell_scores(tmp_path / "same").values())


def test_another_background_and_no_voxel_size(tmp_path, monkeypatch, capsys):
    """Background 1 in the real label images alone; a single image is no yardstick; an empty one has no cells."""
    plain = masks(tmp_path / "plain", 1)
    shifted = masks(tmp_path / "shifted", 1, background=1)
    evaluate(monkeypatch, "--labels", "--real", shifted, "--synthetic", plain, "--background_label", 1)
    found = cell_scores(tmp_path)
    assert all(row["ks"] == 0 and row["real_ks"] is None for row in found.values())
    assert "measured in voxels" in capsys.readouterr().out and found["size"]["unit"] == "voxels"
    volumes.write(plain / "empty.tif", np.zeros((60, 70), np.int32))
    evaluate(monkeypatch, "--labels", "--real", shifted, "--synthetic", plain, "--background_label", 1)
    assert cell_scores(tmp_path)["num_cells"]["synthetic"]["quartiles"][0] < found["num_cells"]["real"]["median"]
    assert "1 of 2 synthetic label images hold no cells" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda p: volumes.write(p / "0.tif", np.zeros((20, 20), np.int32)), (), "no cells in any of 1"),
        (lambda p: masks(p, 1, (36, 40, 36)), (), "is 3D (36, 40, 36), but"),
        (lambda p: volumes.write(p / "0.tif", np.full((20, 20), 0.5, np.float32)), (), "whole numbers"),
        (lambda p: None, (), "no image files"),
        (lambda p: masks(p, 1), ("--spacing_um", "1,1,1"), "expected 2 numbers"),
        (lambda p: masks(p, 1), ("--spacing_um", "1,0"), "positive"),
        (lambda p: masks(p, 1), ("--background_label", "-1"), "--background_label"),
        (lambda p: masks(p, 1), ("--paired",), "--paired: goes with images"),
        (lambda p: masks(p, 1), ("--also", "x"), "--also: goes with images"),
        (lambda p: masks(p, 1), ("--channel", "0"), "--channel: goes with images"),
    ],
)
def test_mistakes_with_label_images_get_one_line(tmp_path, monkeypatch, capsys, change, options, message):
    real = masks(tmp_path / "real", 1)
    (tmp_path / "made").mkdir()
    change(tmp_path / "made")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        evaluate(
            monkeypatch, "--labels", "--real", real, "--synthetic", tmp_path / "made", "--out", out, *map(str, options)
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not out.exists()


def test_options_of_label_images_need_the_switch(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, "--real", tmp_path, "--synthetic", tmp_path, "--spacing_um", "1,1")
    assert capsys.readouterr().err == "error: --spacing_um: goes with --labels\n"


def test_real_cells_against_their_own_movie(real_data, tmp_path, monkeypatch):
    """HeLa nuclei: early and late frames have alike sizes, but a growing number of cells."""
    folder = real_data / "hela" / "masks"
    options = ("--labels", "--real", folder, "--synthetic", folder, "--num", 6, "--spacing_um", "0.645,0.645")
    evaluate(monkeypatch, *options, "--out", tmp_path / "out")
    found = cell_scores(tmp_path / "out")
    assert all(row["ks"] == 0 for row in found.values())
    assert found["size"]["real_ks"] < 0.2 and found["num_cells"]["real_ks"] == 1


def generated(folder, count=3, faults=1):
    """A data set of discs on noise; in its first images one disc is not drawn, and one has no label."""
    labels = masks(folder / "labels", count, (90, 100), radius=5.0)
    (folder / "images").mkdir()
    for i in range(count):
        cells = volumes.read_labels(labels / f"{i}.tif")
        image = np.random.default_rng(i).normal(100, 4, cells.shape) + 80 * (cells > 0) * (
            cells != (7 if i < faults else 0)
        )
        volumes.write(folder / "images" / f"{i}.tif", image.astype(np.uint16))
        if i < faults:
            volumes.write(labels / f"{i}.tif", np.where(cells == 8, 0, cells).astype(np.int32))
    return folder


def faults_of(folder):
    return json.loads((folder / "fidelity.json").read_text())


def test_faults_of_a_data_set_beside_those_of_real_images(tmp_path, monkeypatch, capsys):
    made, real = generated(tmp_path / "set", 3, 2), generated(tmp_path / "real", 2, 0)
    yardstick = ("--real", real / "images", "--real_labels", real / "labels")
    evaluate(monkeypatch, "--fidelity", "--synthetic", made, *yardstick, "--out", tmp_path / "out")
    found = faults_of(tmp_path / "out")
    assert [row["vanished"] for row in found["images"]["synthetic"]] == [[7], [7], []]
    assert [len(row["phantoms"]) for row in found["images"]["synthetic"]] == [1, 1, 0]
    total = found["total"]["synthetic"]
    assert total["num_cells"] == 3 * 25 - 2 and total["vanished"] == total["phantoms"] == 2
    assert total["vanished_rate"] == 2 / total["judged"] and total["num_faulty_images"] == 2
    assert found["total"]["real"]["vanished"] == found["total"]["real"]["phantoms"] == 0
    picture = io.imread(tmp_path / "out" / "fidelity.png")[..., :3].astype(int)
    for colour in ((255, 140, 0), (255, 26, 255), (26, 153, 51)):
        assert (np.abs(picture - colour).max(-1) < 3).sum() > 20
    printed = capsys.readouterr().out
    assert "2 (2.74%)" in printed and "real" in printed


def test_faults_by_a_given_segmentation(tmp_path, monkeypatch):
    """The labels' own segmentation finds nothing amiss, whatever the images show; a better one does."""
    made = generated(tmp_path / "set")
    evaluate(monkeypatch, "--fidelity", "--synthetic", made, "--detections", made, "--out", tmp_path / "out")
    assert faults_of(tmp_path / "out")["total"]["synthetic"]["num_faulty_images"] == 0
    other = masks(tmp_path / "seg" / "labels", 3, (90, 100), radius=5.0)
    cells = volumes.read_labels(other / "0.tif")
    volumes.write(other / "0.tif", np.where(cells == 7, 0, cells).astype(np.int32))
    evaluate(monkeypatch, "--fidelity", "--synthetic", made, "--detections", tmp_path / "seg")
    (first, *rest), found = faults_of(made)["images"]["synthetic"], faults_of(made)
    assert first["vanished"] == [7] and len(first["phantoms"]) == 1 and first["phantoms"][0]["contrast"] is None
    assert not any(row["vanished"] or row["phantoms"] for row in rest) and found["detector"] == "given segmentation"


def test_faults_in_volumes_and_in_images_without_cells(tmp_path, monkeypatch):
    shape = (24, 60, 70)
    labels = masks(tmp_path / "labels", 1, shape, radius=5.0)
    cells = volumes.read_labels(labels / "0.tif")
    image = np.random.default_rng(0).normal(100, 4, shape) + 80 * ((cells > 0) & (cells != 2))
    (tmp_path / "images").mkdir()
    for name, stack, truth in (("0", image, cells), ("1", image, np.zeros_like(cells))):
        volumes.write(tmp_path / "images" / f"{name}.tif", stack.astype(np.uint16))
        volumes.write(labels / f"{name}.tif", truth)
    evaluate(monkeypatch, "--fidelity", "--synthetic", tmp_path)
    one, empty = faults_of(tmp_path)["images"]["synthetic"]
    assert one["vanished"] == [2] and not one["phantoms"] and empty["num_cells"] == 0
    assert (tmp_path / "fidelity.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda p: None, ("--real", "x"), "--real and --real_labels go together"),
        (lambda p: None, ("--real_detections", "x"), "--real_detections: goes with"),
        (lambda p: None, ("--paired",), "--paired: goes with images, not with --fidelity"),
        (lambda p: None, ("--labels",), "--labels does not go with --fidelity"),
        (lambda p: None, ("--detections", "nowhere"), "nowhere"),
        (lambda p: (p / "labels" / "1.tif").unlink(), (), "has no label image for"),
        (lambda p: volumes.write(p / "labels" / "1.tif", np.eye(20, dtype=np.int32)), (), "differ in shape"),
        (lambda p: volumes.write(p / "labels" / "1.tif", 1 + np.indices((90, 100), np.int32)[0]), (), "--detections"),
        (lambda p: (p / "images").rename(p / "pictures"), (), "has no images/"),
    ],
)  # fmt: skip
def test_mistakes_with_fidelity_get_one_line(tmp_path, monkeypatch, capsys, change, options, message):
    made = generated(tmp_path / "set")
    change(made)
    with pytest.raises(SystemExit) as stop:
        evaluate(monkeypatch, "--fidelity", "--synthetic", made, "--out", tmp_path / "out", *options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
