"""Where to start from: distances against closed forms, the rule on tables, the command on an untrained model."""

import json
import shutil
import sys

import numpy as np
import pytest
import toy

from configs import common
from jaxsynth import tune as command
from jaxsynth import tune_start
from jaxsynth.data import intensity as intensities
from jaxsynth.data import volumes
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.sim.sketch import blur
from jaxsynth.tune_pairs import Images

SCHEDULE = make_schedule("cosine", 1000)


def counts(image):
    return np.histogram(image, tune_start.CLEAN_EDGES)[0]


def textured(seed, low=-0.9, high=0.8, shape=(64, 64)):
    """A bright, textured square on a dark, noisy ground, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    image = rng.normal(low, 0.03, shape)
    image[10:40, 12:30] = rng.normal(high, 0.1, (30, 18))
    return np.clip(image, -1, 1).astype(np.float32)


@pytest.mark.parametrize("t", [100, 300, 500, 800])
def test_distances_of_constant_images_are_those_of_gaussians(t):
    """KL = d^2 / 2 and the Bhattacharyya distance d^2 / 8 with d^2 = (m1 - m2)^2 alpha_bar / (1 - alpha_bar)."""
    one, other = np.full(1000, 0.25), np.full(500, -0.1)
    bar = SCHEDULE.alphas_bar[t - 1]
    squared = 0.35**2 * bar / (1 - bar)
    found = tune_start.distances(counts(one), counts(other), t, SCHEDULE)
    assert found["kld"] == pytest.approx(squared / 2, rel=0.02)
    assert found["bhattacharyya"] == pytest.approx(squared / 8, rel=0.02)


@pytest.mark.parametrize("t", [1, 50, 400, 1000])
def test_expected_histogram_is_that_of_many_draws(t):
    """The oracle draws the noise: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
    image = textured(0)
    shares = tune_start.noised_histogram(counts(image), t, SCHEDULE)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    bar = SCHEDULE.alphas_bar[t - 1]
    noise = np.random.default_rng(1).normal(size=(200, *image.shape))
    drawn = np.histogram(np.sqrt(bar) * image + np.sqrt(1 - bar) * noise, tune_start.NOISED_EDGES)[0] / noise.size
    # Multinomial error of a share p is sqrt(p / N); the clean bins' width moves a little over the noised bins' edges.
    tolerance = 5 * np.sqrt((shares + 1e-6) / noise.size) + (2e-3 if t == 1 else 2e-4) * shares.max()
    assert np.all(np.abs(shares - drawn) < tolerance)


def test_distance_falls_with_noise_to_nothing():
    one, other = counts(textured(0)), counts(textured(1, low=-0.5, high=0.3))
    found = [tune_start.distances(one, other, t, SCHEDULE) for t in range(50, 1001, 50)]
    for name in ("kld", "bhattacharyya"):
        values = np.array([row[name] for row in found])
        assert np.all(np.diff(values) < 0)
        assert values[0] > 0.3 and values[-1] < 1e-6


def test_blur_and_halves_enter_the_forward_analysis():
    """Flat sketches with hard borders: blur fills the greys between, which the real images, blurred ones, have too."""
    flat = np.where(textured(0) > 0, 0.8, -0.9).astype(np.float32)
    soft = [np.asarray(blur(flat, 2.0)) for _ in range(2)]
    intensity = intensities.Intensity("minmax_shifted", "float32", -1.0, 1.0, -0.9, 0.1, (-0.9, 0.5, 0.9))
    images = Images(("a", "b"), tuple(soft), (flat, flat), True)
    found = tune_start.forward_analysis(images, [100, 300], [0.0, 2.0], intensity, SCHEDULE)
    kld = {(row["t_start"], row["sigma"]): row["kld"] for row in found["sketch"]}
    for t in (100, 300):
        assert kld[t, 2.0] < 1e-6 < 1e-3 < kld[t, 0.0]
    assert [row["t_start"] for row in found[tune_start.HALVES]] == [100, 300]
    assert all(row["kld"] == 0 for row in found[tune_start.HALVES])  # both are the same image
    alone = Images(("a",), (soft[0],), (flat,), True)
    assert tune_start.forward_analysis(alone, [100], [0.0], intensity, SCHEDULE)[tune_start.HALVES] == []


def rows(table):
    return [{"t_start": t, "sigma": sigma, "kld": kld} for (t, sigma), kld in table.items()]


PAPER = {(100, 0.0): 0.508, (200, 0.0): 0.306, (400, 0.0): 0.053, (600, 0.0): 0.004, (800, 0.0): 0.001, (1000, 0.0): 0}


def test_rule_makes_the_papers_choice():
    """Paper 000, Fig. 2: t_start 600."""
    found = tune_start.recommend(rows(PAPER))
    assert found == {"t_start": 600, "sigma": 0.0, "kld": 0.004, "zncc": None, "enough": True}
    assert tune_start.recommend(rows(PAPER), enough=0.06)["t_start"] == 400


def test_rule_takes_the_best_of_the_sigmas_that_reach_it():
    table = {(300, 0.0): 0.2, (300, 1.0): 0.04, (300, 2.0): 0.01, (300, 3.0): 0.06, (400, 0.0): 0.001}
    assert tune_start.recommend(rows(table))["sigma"] == 2.0  # without ZNCC the lowest KLD
    zncc = {(300, 0.0): 0.99, (300, 1.0): 0.8, (300, 2.0): 0.7, (300, 3.0): 0.9, (400, 0.0): 0.95}
    found = tune_start.recommend(rows(table), zncc)
    assert (found["t_start"], found["sigma"], found["zncc"]) == (300, 1.0, 0.8)
    # A score that is undefined, as of a constant image, loses to any other.
    assert tune_start.recommend(rows(table), zncc | {(300, 1.0): None})["sigma"] == 2.0


def test_rule_without_a_start_that_reaches_it():
    found = tune_start.recommend(rows({(100, 0.0): 0.5, (200, 0.0): 0.3, (200, 1.0): 0.2}))
    assert (found["t_start"], found["sigma"], found["enough"]) == (200, 1.0, False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of an untrained network for uint8 images, with sketches of two of them and one image more."""
    root = tmp_path_factory.mktemp("model")
    for name in ("real", "sketches"):
        (root / name).mkdir()
    for i in range(3):
        image = np.clip((textured(i, shape=(48, 56)) + 1) * 120, 0, 255)
        volumes.write(root / "real" / f"{i}.tif", image.astype(np.uint8), spacing_um=(0.5, 0.5))
        if i:
            volumes.write(root / "sketches" / f"{i}.tif", np.where(image > 100, 0.6, -0.7).astype(np.float32))
    config = common.get_config()
    config.data.path = str(root / "real")
    config.data.patch = (16, 16)
    config.model.features = 2
    config.model.norm = "none"
    config.diffusion.t_max = 650
    toy.untrained_run(root / "run", config)
    return root


def tune(monkeypatch, model, out, *args):
    words = {"--checkpoint": model / "run", "--real": model / "real", "--sketches": model, "--out": out}
    monkeypatch.setattr(sys, "argv", ["tune", *(str(word) for pair in words.items() for word in pair), *map(str, args)])
    command.main()


def scores(out):
    return json.loads((out / "tune.json").read_text())


SMALL = ("--num_evaluations", 2, "--crop", "32,24", "--backward", "200", "--sigmas", "0,1")


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("tuned") / "out"
        tune(patch, model, out, *SMALL)
        return out, scores(out)


def test_command_writes_all_and_recommends(tuned, model, monkeypatch, capsys):
    out, found = tuned
    assert found["settings"]["images"] == ["1", "2"]
    assert [row["t_start"] for row in found["forward"]["sketch"]] == 2 * [100, 200, 300, 400, 500, 600]
    best = found["recommended"]
    assert best["enough"] and best["sigma"] in (0, 1)
    starts = sorted({0, 200, best["t_start"]})
    assert list(found["backward"]) == ["real", "sketch, sigma 0", "sketch, sigma 1"]
    for by_start in found["backward"].values():
        assert sorted(map(int, by_start)) == starts
        for by_name in by_start.values():
            assert list(by_name) == ["1", "2"]
    # Nothing is denoised at 0: a real image is itself, and a sketch as far as it is.
    real = found["backward"]["real"]["0"]["1"]
    assert real["psnr"] is None and real["mae"] == 0 and real["zncc"] == pytest.approx(1, abs=1e-5)
    assert 0.5 < found["backward"]["sketch, sigma 0"]["0"]["1"]["zncc"] < 1
    assert volumes.read(out / "images" / "sketch_sigma1_t0200.tif").shape == (32, 24)
    assert volumes.read(out / "images" / "real_t0200.tif").dtype == np.uint8
    assert {file.name for file in out.iterdir()} == {"images", "tune.json", "tune.png", "tune_images.png"}

    # A second run computes nothing again, a third only what is new.
    tune(monkeypatch, model, out, *SMALL)
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == f"recommended: --t_start {best['t_start']} --sigma {best['sigma']:g}"
    num = 3 * 2 * len(starts)
    assert f"{num} of {num} points are finished already" in told and "ETA" not in told
    assert scores(out) == found


def test_interrupted_run_goes_on_to_the_same(tuned, model, monkeypatch, tmp_path, capsys):
    out, found = tmp_path / "out", json.loads(json.dumps(tuned[1]))
    (out / "images").mkdir(parents=True)
    del found["backward"]["sketch, sigma 1"], found["backward"]["real"]["200"]["2"]
    (out / "tune.json").write_text(json.dumps(found))
    tune(monkeypatch, model, out, *SMALL)
    assert " points are finished already" in capsys.readouterr().out
    again = scores(out)
    assert {k: v for k, v in again.items() if k != "backward"} == {k: v for k, v in found.items() if k != "backward"}
    for which, by_start in tuned[1]["backward"].items():
        for t, by_name in by_start.items():
            for name, row in by_name.items():
                one, other = (np.array(list(r.values()), float) for r in (again["backward"][which][t][name], row))
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)  # undefined ones are NaN in both


def test_without_pairs_real_images_alone_are_denoised(model, monkeypatch, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    volumes.write(tmp_path / "other" / "x.tif", volumes.read(model / "sketches" / "1.tif"))
    tune(monkeypatch, model, tmp_path / "out", *SMALL, "--sketches", tmp_path / "other", "--num", 1)
    told = capsys.readouterr().out
    assert "no sketch has the name of a real image" in told and "lowest KLD" in told
    found = scores(tmp_path / "out")
    assert list(found["backward"]) == ["real"] and found["recommended"]["zncc"] is None


def test_forward_only_is_quick_and_later_completed(model, monkeypatch, tmp_path, capsys):
    tune(monkeypatch, model, tmp_path / "out", "--forward_only", "--t_starts", "50,600", "--crop", "32,24")
    found = scores(tmp_path / "out")
    assert found["backward"] == {} and "sampler" not in found["settings"]
    assert not (tmp_path / "out" / "tune_images.png").exists()
    assert found["recommended"]["t_start"] == 600
    with pytest.raises(SystemExit):
        tune(monkeypatch, model, tmp_path / "out", "--forward_only", "--crop", "32,32")
    assert "crop" in capsys.readouterr().err


def test_changed_sketches_and_other_tiles_do_not_mix(tuned, model, monkeypatch, tmp_path, capsys):
    """The files keep their names and the folder its settings, but the scores would be of others."""
    shutil.copytree(model / "sketches", tmp_path / "set" / "sketches")
    args = ("--sketches", tmp_path / "set", "--forward_only", "--t_starts", "600")
    tune(monkeypatch, model, tmp_path / "out", *args)
    changed = tmp_path / "set" / "sketches" / "1.tif"
    volumes.write(changed, -volumes.read(changed))
    for out, words, message in (
        (tmp_path / "out", args, "was made with sketches_sha256"),
        (tuned[0], (*SMALL, "--tile", "48,48"), "was made with tile None, not [48, 48]"),
    ):
        with pytest.raises(SystemExit):
            tune(monkeypatch, model, out, *words)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--t_starts", "100,651"), "1..650"),
        (("--t_starts", "0"), "--t_starts"),
        (("--backward", "700"), "1..650"),
        (("--sigmas", "nan"), "--sigmas"),
        (("--sigmas", "-1"), "--sigmas"),
        (("--sigma", "1"), "--sigma: goes with --samplers"),
        (("--sigma", "0"), "--sigma: goes with --samplers"),
        (("--t_start", "0"), "--t_start: goes with --samplers"),
        (("--samplers", "--num_evaluations", "0"), "--num_evaluations: does not go with --samplers"),
        (("--tile", "48"), "one number per axis"),
        (("--tile", "16,16"), "too small"),
        (("--samplers", "--forward_only"), "--forward_only: does not go with --samplers"),
        (("--samplers", "--evaluations", "0"), "--evaluations"),
        (("--num", "0"), "--num"),
        (("--seed", "-1"), "--seed"),
        (("--crop", "32"), "--crop"),
        (("--crop", "32,57"), "--crop"),
        (("--crop", "6,32"), "SSIM"),
        (("--sampler", "magic"), "magic"),
        (("--real", "nowhere"), "nowhere"),
        (("--sketches", "REAL"), "[-1, 1]"),
        (("--step", "7"), "step"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(model, monkeypatch, tmp_path, capsys, args, message):
    args = [model / "real" if word == "REAL" else word for word in args]
    with pytest.raises(SystemExit) as stop:
        tune(monkeypatch, model, tmp_path / "out", *args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_shapes_and_scales_that_differ_are_refused(model, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "set"
    (folder / "sketches").mkdir(parents=True)
    sketch = volumes.read(model / "sketches" / "1.tif")
    volumes.write(folder / "sketches" / "1.tif", sketch[:-1])
    with pytest.raises(SystemExit):
        tune(monkeypatch, model, tmp_path / "out", "--sketches", folder)
    assert "(48, 56); got (47, 56)" in capsys.readouterr().err
    (folder / "manifest.json").write_text(json.dumps({"settings": {}, "intensity": {"method": "percentile"}}))
    with pytest.raises(SystemExit):
        tune(monkeypatch, model, tmp_path / "out", "--sketches", folder)
    assert "another normalisation" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
