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
    assert distances["synthetic"] == {"kld": 0.0, "bhattacharyya": 0.0, "spectral_distance_db": 0.0}
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
    assert "background_noise_sd" in capsys.readouterr().out


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
