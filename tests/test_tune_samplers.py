"""The comparison of samplers: its rule on made-up scores, and the command on an untrained model."""

import json
import shutil
import sys

import numpy as np
import pytest
import toy
from scipy import stats
from skimage import io
from skimage.metrics import peak_signal_noise_ratio

from configs import common
from jaxsynth import compare_images, samplers_report, tune, tune_samplers
from jaxsynth.data import volumes
from jaxsynth.diffusion import samplers

METRICS = tuple(tune_samplers.JUDGED)


def table(**columns):
    """As `leave_one_out` gives it for means over images, from the images' own scores; the others all equal."""
    number = len(next(iter(columns.values())))
    found = {name: np.asarray(columns.get(name, np.ones(number)), float) for name in METRICS}
    rows = [{name: x.mean() for name, x in found.items()}]
    left = range(number) if number > 1 else ()
    return rows + [{name: np.delete(x, i).mean() for name, x in found.items()} for i in left]


def test_the_tolerance_of_a_mean_is_two_standard_errors_of_the_paired_differences():
    rng = np.random.default_rng(0)
    reference = rng.normal(25, 5, 9)  # images differ far more than settings do
    made = reference - 0.3 + rng.normal(0, 0.2, 9)
    judged = tune_samplers.judge(table(psnr=made), table(psnr=reference), table(psnr=reference))
    assert judged["worse_by"]["psnr"] == pytest.approx(np.mean(reference - made))
    assert judged["tolerance"]["psnr"] == pytest.approx(2 * stats.sem(reference - made))
    assert not judged["within"]["psnr"] and judged["within"]["ssim"] and not judged["equal"]


def test_two_runs_of_the_reference_are_the_least_tolerance_and_better_is_never_refused():
    same = np.full(3, 20.0)
    one, two = table(psnr=same + 0.2, kld=same), table(psnr=same - 0.2, kld=same)
    for psnr, kld, expected in ((-0.39, 0, True), (-0.41, 0, False), (9, -9, True), (0, 0.01, False)):
        judged = tune_samplers.judge(table(psnr=same + psnr, kld=same + kld), one, two)
        assert judged["equal"] is expected
    assert tune_samplers.judge(table(psnr=[19.7]), table(psnr=[20.2]), table(psnr=[19.8]))["equal"]
    assert not tune_samplers.judge(table(psnr=[19.5]), table(psnr=[20.2]), table(psnr=[19.8]))["equal"]


def test_a_score_that_the_images_are_too_small_for_decides_nothing():
    undefined = table(frechet=[np.nan, np.nan])
    judged = tune_samplers.judge(undefined, undefined, undefined)
    assert judged["within"]["frechet"] is None and judged["equal"]
    rows = [{"name": "reference_1"}, judged, {"within": {"psnr": False, "frechet": True}}]
    assert tune_samplers.unjudged(rows) == ["frechet"] and tune_samplers.unjudged([rows[0], rows[2]]) == []


def test_the_cheapest_setting_within_the_noise_is_recommended():
    rows = [
        {"name": "reference_1", "evaluations": 1, "seconds": 0.1},
        {"name": "a", "evaluations": 20, "seconds": 1.0, "equal": True},
        {"name": "b", "evaluations": 10, "seconds": 3.0, "equal": True},
        {"name": "c", "evaluations": 10, "seconds": 2.0, "equal": True},
        {"name": "d", "evaluations": 5, "seconds": 1.0, "equal": False},
    ]
    assert tune_samplers.recommend(rows) == "c"
    assert tune_samplers.recommend(rows[:1] + rows[-1:]) is None


def test_scores_of_a_set_and_of_all_but_one_image():
    """Left out, an image counts neither among the made nor among the real ones."""
    rng = np.random.default_rng(0)
    real = [rng.normal(100 + 20 * i, 10, (64, 96)).astype(np.float32) for i in range(3)]
    made = [image + rng.normal(0, 3 + i, image.shape).astype(np.float32) for i, image in enumerate(real)]

    def measured(images, others):
        ruler = compare_images.fit(lambda: iter(real), lambda: iter(real), [image.shape for image in real])
        return [compare_images.measure(x, ruler) | {"pair": compare_images.pair(y, x, ruler)}
                for x, y in zip(images, others, strict=True)]  # fmt: skip

    rows = tune_samplers.leave_one_out(measured(made, real), measured(real, real))
    assert len(rows) == 4
    span = max(x.max() for x in real) - min(x.min() for x in real)
    psnr = [peak_signal_noise_ratio(x / span, y / span, data_range=1.0) for x, y in zip(real, made, strict=True)]
    for row, kept in zip(rows, ([0, 1, 2], [1, 2], [0, 2], [0, 1]), strict=True):
        assert row["psnr"] == pytest.approx(np.mean([psnr[i] for i in kept]), rel=1e-4)
    alone = tune_samplers.leave_one_out(measured(made[1:], real[1:]), measured(real[1:], real[1:]))[0]
    for name in ("kld", "bhattacharyya", "background_noise_sd"):
        assert rows[1][name] == pytest.approx(alone[name])
    equal = tune_samplers.leave_one_out(measured(real, real), measured(real, real))
    assert max(row[name] for row in equal for name in ("kld", "bhattacharyya", "frechet")) < 1e-9


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(run, real images, sketches): two pairs, the sketches from -0.8 to 0.5."""
    root = tmp_path_factory.mktemp("made")
    for name in ("real", "sketches"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        image, sketch = rng.normal(60, 5, (40, 48)), np.full((40, 48), -0.8, np.float32)
        image[10 + 4 * i : 25, 12:30] += 90
        sketch[10 + 4 * i : 25, 12:30] = 0.5
        volumes.write(root / "real" / f"{i}.tif", image.astype(np.uint8), spacing_um=(0.5, 0.5))
        volumes.write(root / "sketches" / f"{i}.tif", sketch)
    config = common.get_config()
    config.data.path = str(root / "real")
    config.data.patch = (16, 16)
    config.model.features = 2
    config.model.norm = "none"
    config.diffusion.t_max = 50
    toy.untrained_run(root / "run", config)
    return root


def compare(monkeypatch, made, out, *args):
    words = ["tune", "--samplers", "--checkpoint", made / "run", "--real", made / "real", "--sketches",
             made / "sketches", "--out", out, "--reference", 6, *args]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    tune.main()


def results(out):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads((out / "samplers.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def compared(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        compare(patch, made, out, "--only", "ddpm,dpmpp", "--evaluations", "3,2")
    return out


def test_every_setting_is_made_measured_and_shown(made, compared):
    found = results(compared)
    rows = {row["name"]: row for row in found["rows"]}
    names = ["reference_1", "reference_2", "ddpm_3", "ddpm_2", "dpmpp_3", "dpmpp_2"]
    assert list(rows) == names and found["images"] == ["0", "1"]
    assert [rows[name]["evaluations"] for name in names] == [6, 6, 3, 2, 3, 2]
    pairs = {}
    for name in names:
        pairs[name] = [volumes.read(compared / "images" / name / f"{i}.tif") for i in range(2)]
        assert pairs[name][0].dtype == np.uint8 and pairs[name][0].shape == (40, 48)
        assert rows[name]["seconds"] > 0
    assert volumes.spacing_um(compared / "images" / "ddpm_3" / "1.tif") == (0.5, 0.5)
    # The references differ by their noise alone.
    assert np.mean(pairs["reference_1"][0] != pairs["reference_2"][0]) > 0.5
    real = [volumes.read(made / "real" / f"{i}.tif").astype(float) for i in range(2)]
    low, high = min(x.min() for x in real), max(x.max() for x in real)
    psnr = [peak_signal_noise_ratio(x / (high - low), y / (high - low), data_range=1.0)
            for x, y in zip(real, (image.astype(float) for image in pairs["dpmpp_3"]), strict=True)]  # fmt: skip
    assert rows["dpmpp_3"]["psnr"] == pytest.approx(np.mean(psnr), rel=1e-4)
    aim = np.mean([rows[name]["psnr"] for name in names[:2]])
    assert rows["dpmpp_3"]["worse_by"]["psnr"] == pytest.approx(aim - rows["dpmpp_3"]["psnr"], abs=1e-6)
    assert "within" not in rows["reference_1"]
    equal = [row for row in rows.values() if row.get("equal")]
    assert found["recommended"] == tune_samplers.recommend(equal)
    text = (compared / "samplers.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + len(names) and len({line.count("|") for line in lines}) == 1
    assert f"| dpmpp | 3 | {rows['dpmpp_3']['seconds']:.3g} | " in text
    for picture in ("samplers.png", "samplers_images.png"):
        assert io.imread(compared / picture).shape[1] > 500
    assert not list(compared.rglob("*.part"))


def test_a_second_run_makes_only_what_is_missing(made, compared, monkeypatch, capsys):
    before = results(compared)
    lost = compared / "images" / "dpmpp_2" / "1.tif"
    image, kept = volumes.read(lost), compared / "images" / "dpmpp_2" / "0.tif"
    lost.unlink()
    age = kept.stat().st_mtime_ns
    capsys.readouterr()
    compare(monkeypatch, made, compared, "--only", "ddpm,dpmpp", "--evaluations", "3,2")
    np.testing.assert_array_equal(volumes.read(lost), image)
    assert kept.stat().st_mtime_ns == age
    told = capsys.readouterr().out
    assert "11 of 12 images are there already" in told
    # One image alone has too few patches.
    assert results(compared)["unjudged"] == ["frechet"] and "not judged: Fréchet, undefined" in told
    for row, old in zip(results(compared)["rows"], before["rows"], strict=True):
        assert {name: row[name] for name in METRICS} == {name: old[name] for name in METRICS}


def test_results_of_earlier_versions_and_of_other_spacings(made, compared, monkeypatch, capsys, tmp_path):
    """Where nothing tells of spacing and device, results count; those of another spacing are made again."""
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    found = results(out)
    assert found["made"]["ddpm_2"]["spacing"] == samplers.SAMPLERS["ddpm"]
    for entry in found["made"].values():
        del entry["spacing"]
    found["made"]["ddpm_2"] |= {"spacing": "another", "seconds": [1e6]}
    device = found["settings"].pop("device")
    (out / "samplers.json").write_text(json.dumps(found))
    capsys.readouterr()
    compare(monkeypatch, made, out, "--only", "ddpm,dpmpp", "--evaluations", "3,2")
    assert "10 of 12 images are there already" in capsys.readouterr().out
    again = results(out)
    assert max(again["made"]["ddpm_2"]["seconds"]) < 1e6 and again["settings"]["device"] == device
    for row, old in zip(again["rows"], found["rows"], strict=True):
        assert row["psnr"] == pytest.approx(old["psnr"], rel=1e-3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--only", "euler"), "--only: expected some of ddpm,"),
        (("--only", "consistency"), "got 'consistency'"),
        (("--evaluations", "3,51"), "num_evaluations must lie in 1..t_start=50"),
        (("--t_start", "51"), "t_start must lie in 1..50"),
        (("--sketches", "nowhere"), "nowhere"),
        (("--crop", "50,48"), "--crop"),
        (("--crop", "6,48"), "at least 7 voxels"),
        (("--tile", "48"), "one number per axis"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(made, tmp_path, monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        compare(monkeypatch, made, tmp_path / "out", "--evaluations", "2", *args)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_real_image_that_is_not_compared_is_read_before_anything_is_written(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "real", tmp_path / "real")
    volumes.write(tmp_path / "real" / "z.tif", np.zeros((8, 8), np.uint8))
    with pytest.raises(SystemExit):
        compare(monkeypatch, made, tmp_path / "out", "--evaluations", "2", "--real", tmp_path / "real")
    assert "constant image" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_settings_and_other_files_do_not_mix(made, compared, monkeypatch, capsys, tmp_path):
    for args, message in ((("--sigma", "2"), "was made with sigma 1.0, not 2.0"), (("--seed", "1"), "seed")):
        with pytest.raises(SystemExit):
            compare(monkeypatch, made, compared, "--evaluations", "2", *args)
        assert message in capsys.readouterr().err
    found = results(compared)
    found["settings"]["device"] = "abacus x 1"
    (tmp_path / "samplers.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit):
        compare(monkeypatch, made, tmp_path, "--evaluations", "2")
    assert "was made with device abacus x 1, not" in capsys.readouterr().err
    (tmp_path / "samplers.json").write_text("[]")
    with pytest.raises(SystemExit):
        compare(monkeypatch, made, tmp_path, "--evaluations", "2")
    assert "not a result of" in capsys.readouterr().err


def test_what_is_beyond_the_noise_is_told_apart_in_the_table():
    values = dict.fromkeys([*samplers_report.COLUMNS], 0.5)
    rows = [{"name": "reference_1", "sampler": "ddpm", "evaluations": 400, "seconds": 9.0, **values}]
    for name, within in (("ddim_5", False), ("ddim_20", True)):
        judged = {"within": {"psnr": within, "kld": True}, "equal": within}
        rows.append({"name": name, "sampler": "ddim", "evaluations": int(name[5:]), "seconds": 1.0, **values, **judged})
    settings = {"crop": (64, 64), "t_start": 400, "sigma": 1.0, "reference": 400, "seed": 0, "device": "cpu x 1"}
    result = {"settings": settings, "images": ["a", "b"], "unjudged": ["psnr", "frechet"],
              "real": {"background_noise_sd": 2.0}, "sketch": values | {"frechet": float("nan")}, "rows": rows,
              "recommended": "ddim_20"}  # fmt: skip
    text = samplers_report.markdown(result, METRICS)
    lines = {line.split("|")[2].strip(): line for line in text.splitlines() if line.startswith("| ddim")}
    assert "*0.50*" in lines["5"] and lines["5"].endswith("| no |")
    assert "*" not in lines["20"].replace("**recommended**", "") and "**recommended**" in lines["20"]
    assert "64x64 of 2 images" in text and "nan" not in text and "cpu x 1" in text
    assert "Within noise is of all but PSNR, Fréchet, undefined" in text
    assert "all but" not in samplers_report.markdown(result | {"unjudged": []}, METRICS)
