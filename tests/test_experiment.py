"""The experiment: splits that share no cell, the commands it plans, what is run again and what not, and its report."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsynth import experiment, experiment_plan, experiment_report, experiment_sets
from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.experiment_plan import Stage

ROOT = Path(__file__).parent.parent
FILM = experiment_sets.DataSet("sequence", (0.5, 0.5), "ddpm.py", (), "nuclei")


def disc(shape, centre, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def write(folder, name, labels, rng, background=20, noise=3):
    """A picture of bright cells on noise, and its labels."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    image = rng.normal(background, noise, labels.shape) + 120 * (labels > 0)
    volumes.write(folder / "images" / f"{name}.tif", np.clip(image, 0, 255).astype(np.uint8))
    volumes.write(folder / "masks" / f"{name}.tif", labels.astype(np.int32))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Eight frames of seven cells in a row; the fourth moves to the right."""
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (data / "gowt1" / "masks_gold").mkdir(parents=True)
    for t in range(8):
        labels = np.zeros((40, 160), int)
        for i in range(7):
            labels[disc(labels.shape, (20, 14 + 22 * i + 4 * t * (i == 3)), 7)] = 10 * (i + 1)
        write(data / "gowt1", f"t{t:03d}", labels, rng)
        gold = np.where(labels == (70 if t == 1 else 10), labels, 0)  # of the right in frame 1, else of the left
        volumes.write(data / "gowt1" / "masks_gold" / f"t{t:03d}.tif", gold.astype(np.int32))
    return data


def arguments(**given):
    start = {"data": "data", "out": "out", "sets": ("gowt1",), "arms": None, "seeds": 2, "steps": 50, "models": [],
             "sweep": None, "only": None, "quick": False}  # fmt: skip
    return argparse.Namespace(**start | given)


def test_the_seam_is_the_best_of_all():
    rng = np.random.default_rng(1)
    width, gap = 60, 5
    for _ in range(5):
        first = {i: (low := int(rng.integers(0, 55)), low + 5) for i in range(8)}
        moved = {i: (max(low + step, 0), high + step) for (i, (low, high)), step in
                 zip(first.items(), rng.integers(-6, 7, 8), strict=True)}  # fmt: skip

        def shared(left, right, first=first, moved=moved):
            return {i for i, (low, _) in first.items() if low < left} & {i for i, (_, h) in moved.items() if h >= right}

        widths = [min(left, width - right) for left in range(1, width) for right in range(left + gap, width)
                  if not shared(left, right)]  # fmt: skip
        left, right = experiment_sets.seam([first], [moved], width, gap)
        assert right - left >= gap and not shared(left, right)
        assert min(left, width - right) == max(widths)


def test_a_film_of_one_wide_cell_has_no_seam():
    with pytest.raises(InputError, match="seam"):
        experiment_sets.seam([{1: (0, 30)}], [{1: (10, 40)}], 41, 3)


def test_no_cell_of_a_film_is_in_both_parts(film, tmp_path):
    told = experiment_sets.make("gowt1", film, tmp_path, FILM)
    assert json.loads((tmp_path / "split.json").read_text()) == told
    assert [told[part]["images"] for part in ("train", "test")] == [4, 4]
    assert told["train"]["names"] == [f"t{t:03d}" for t in range(4)]
    columns = {part: slice(*told["columns"][part]) for part in ("train", "test")}
    seen = {part: set() for part in columns}
    for part, names in (("train", range(4)), ("test", range(4, 8))):
        count = 0
        for t in names:
            whole = volumes.read_labels(film / "gowt1" / "masks" / f"t{t:03d}.tif")[:, columns[part]]
            image = volumes.read(tmp_path / part / "images" / f"t{t:03d}.tif")
            assert image.dtype == np.uint8
            original = volumes.read(film / "gowt1" / "images" / f"t{t:03d}.tif")
            np.testing.assert_array_equal(image, original[:, columns[part]])
            path = tmp_path / part / "labels" / f"t{t:03d}.tif"
            labels = volumes.read_labels(path)
            assert volumes.spacing_um(path) == pytest.approx((0.5, 0.5))
            ids = np.unique(whole[whole > 0])
            np.testing.assert_array_equal(np.searchsorted(ids, whole) + 1, np.where(whole > 0, labels, 1))
            np.testing.assert_array_equal(labels > 0, whole > 0)
            seen[part] |= set(ids.tolist())
            count += len(ids)
        assert told[part]["cells"] == count
        assert told["tracks"][part] == len(seen[part])
    assert seen["train"] and seen["test"] and not seen["train"] & seen["test"]
    assert told["gap_vox"] >= told["cell_diameter_vox"] > 13
    assert told["test"]["gold_images"] == 0  # frame 1 is trained on


def test_gold_truth_goes_to_the_test_where_it_has_cells(film, tmp_path):
    earlier = experiment_sets.DataSet("sequence", (), "ddpm.py", (), "nuclei", test_first=True)
    told = experiment_sets.make("gowt1", film, tmp_path, earlier, limit=2)
    assert told["test"]["names"] == ["t000", "t003"] and told["train"]["names"] == ["t004", "t007"]
    told = experiment_sets.make("gowt1", film, tmp_path, earlier)  # over what is there
    assert (told["test"]["gold_images"], told["test"]["gold_cells"]) == (1, 1)
    assert [file.name for file in (tmp_path / "test" / "gold").iterdir()] == ["t001.tif"]
    assert len(list((tmp_path / "test" / "images").iterdir())) == 4


def test_either_side_of_a_film_may_be_trained_on(film, tmp_path):
    right = experiment_sets.DataSet("sequence", (), "ddpm.py", (), "nuclei", train_right=True)
    told = experiment_sets.make("gowt1", film, tmp_path, right)
    (start, end), (low, high) = told["columns"]["train"], told["columns"]["test"]
    assert low == 0 and end == 160 and start - high == told["gap_vox"] > 13
    seen = {}
    for part, (first, last) in told["columns"].items():
        frames = (volumes.read_labels(film / "gowt1" / "masks" / f"{name}.tif") for name in told[part]["names"])
        seen[part] = {int(i) for frame in frames for i in np.unique(frame[:, first:last])} - {0}
        assert told["tracks"][part] == len(seen[part]) > 0
    assert not seen["train"] & seen["test"] and told["cells_in_both"] == 0


def test_all_times_of_an_organism_are_in_one_part(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        for time in (1, 2):
            labels = np.zeros((6, 12, 12), int)
            labels[2:4, 3:8, 3:8] = 5
            write(tmp_path / "embryo3d", f"{name}_{time}", labels, rng)
    settings = experiment_sets.DataSet("organisms", (2.0, 1.0, 1.0), "ddpm.py", (), "nuclei", share=0.75)
    told = experiment_sets.make("embryo3d", tmp_path, tmp_path / "out", settings)
    assert told["train"]["names"] == ["a_1", "a_2", "b_1", "b_2", "c_1", "c_2"]
    assert told["test"]["names"] == ["d_1", "d_2"] and told["train"]["shape"] == [6, 12, 12]


def test_pictures_that_look_alike_are_held_out_together(tmp_path):
    rng = np.random.default_rng(0)
    # radius, background, its noise, how many
    kinds = {"a": (3, 10, 2, 10), "b": (9, 10, 8, 6), "c": (4, 60, 8, 4), "d": (9, 60, 2, 3)}
    for kind, (radius, background, noise, number) in kinds.items():
        for i in range(number):
            labels = disc((48, 48), (24, 20 + i % 5), radius) * 1
            write(tmp_path / "dsb2018", f"{i}{kind}", labels, rng, background, noise)
    settings = experiment_sets.DataSet("groups", (), "ddpm.py", (), "nuclei")
    told = experiment_sets.make("dsb2018", tmp_path, tmp_path / "out", settings)
    assert told["test"]["names"] == ["0d", "1d", "2d"]
    assert sorted(group["images"] for group in told["groups"]) == [3, 4, 6, 10]
    assert told["train"]["images"] == 20


def test_real_film_is_split_without_shared_cells(real_data, tmp_path):
    told = experiment_sets.make("hela", real_data, tmp_path, experiment_sets.SETS["hela"])
    ids = {"train": set(), "test": set()}
    for part in ids:
        for name in told[part]["names"]:
            masks = volumes.read_labels(real_data / "hela" / "masks" / f"{name}.tif")
            ids[part] |= set(np.unique(masks[:, slice(*told["columns"][part])]).tolist()) - {0}
    assert not ids["train"] & ids["test"] and min(map(len, ids.values())) > 50
    image = volumes.read(tmp_path / "test" / "images" / f"{told['test']['names'][0]}.tif")
    assert image.dtype == np.uint16 and image.shape == tuple(told["test"]["shape"])


def plan(name="gowt1", gold=0, **given):
    args = experiment.fill_in(arguments(sets=(name,), **given))
    split = {"train": {"images": 5, "shape": [32, 48]}, "test": {"gold_images": gold}}
    return experiment_plan.stages(name, experiment_sets.SETS[name], args, split)


@pytest.mark.parametrize("given", [{}, {"sweep": "ratio"}, {"sweep": "clustering"}, {"arms": ("both", "silver")},
                                   {"arms": ("gan", "both")}])  # fmt: skip
@pytest.mark.parametrize("name", list(experiment_sets.SETS))
def test_stages_come_after_what_they_need(name, given):
    ready = {"split"}
    for stage in plan(name, gold=1, **given):
        assert set(stage.needs) <= ready and stage.name not in ready
        ready.add(stage.name)


def test_arms_differ_in_their_images_alone():
    trained = [stage.words for stage in plan() if stage.name.endswith("-train")]
    assert len(trained) == 2 * len(experiment_plan.ARMS)
    places = [{"--images", "--labels", "--workdir"} | {words[words.index(flag) + 1] for flag in
              ("--images", "--labels", "--workdir")} for words in trained]  # fmt: skip
    rest = {tuple(word for word in words if word not in own and "seed" not in word)
            for words, own in zip(trained, places, strict=True)}  # fmt: skip
    assert len(rest) == 1 and "--config.train.num_steps=50" in rest.pop()


def test_no_arm_sees_the_test_and_simulated_ones_no_annotation():
    made = {stage.name: stage for stage in plan()}
    for stage in made.values():
        if stage.kind in ("model", "synthetic") or stage.name.endswith("-train"):
            assert not any("/test/" in word for word in stage.words)
        if stage.kind == "model" or stage.name in ("cells", "simulated", "simulated-0-train", "microscope-1-train"):
            assert not any("train/labels" in word for word in stage.words)


def test_microscope_and_simulated_show_the_same_cells():
    made = {stage.name: stage.words for stage in plan()}
    assert "out/gowt1/cells/sketches" in made["simulated"] and "--render" in made["cells"]
    assert "out/gowt1/cells/images" in made["microscope-0-train"]
    assert "out/gowt1/cells/labels" in made["microscope-0-train"]


def test_the_gan_pictures_the_cells_that_the_diffusion_model_does():
    """Itself trained on training images and their labels, with no diffusion model needed."""
    made, usual = ({s.name: s.words for s in plan(arms=(arm,))} for arm in ("gan", "simulated"))
    assert "model" not in made and "gan_model" not in usual
    assert not any("/test/" in word for word in made["gan_model"])
    where = {"out/gowt1/gan_model": "out/gowt1/model", "out/gowt1/cells_gan": "out/gowt1/cells"}
    assert tuple(where.get(word, word) for word in made["cells_gan"]) == usual["cells"]
    assert "out/gowt1/cells_gan/sketches" in made["simulated_gan"] and "out/gowt1/gan_model" in made["simulated_gan"]
    assert "out/gowt1/simulated_gan/images" in made["gan-0-train"]
    assert "out/gowt1/simulated_gan/labels" in made["gan-0-train"]


def test_parts_make_as_many_images_as_there_are_real_ones():
    for name in ("dsb2018", "embryo3d"):
        numbers = [int(s.words[s.words.index("--num") + 1]) for s in plan(name) if s.words[0] == "simulate"
                   and "--recipe" in s.words]  # fmt: skip
        assert sum(numbers) == 5 and max(numbers) - min(numbers) <= 1


def test_ratios_are_of_synthetic_to_real_images():
    made = {stage.name: stage.words for stage in plan(sweep="ratio")}
    count = {name: int(words[words.index("--num") + 1]) for name, words in made.items() if "--num" in words}
    assert count == {"cells_quarter": 1, "cells": 5, "cells_more": 15}
    images = made["both_four-0-train"][made["both_four-0-train"].index("--images") + 1]
    assert images == ",".join(f"out/gowt1/{part}/images" for part in ("train", "simulated", "simulated_more"))
    seeds = {name: made[name][made[name].index("--seed") + 1] for name in count}
    assert seeds["cells"] != seeds["cells_more"]


def test_a_given_model_is_used_and_none_is_trained(tmp_path):
    made = plan(models=[("gowt1", str(tmp_path))])
    assert not any(stage.kind == "model" for stage in made)
    assert all(str(tmp_path) in stage.words for stage in made if stage.kind == "synthetic")
    assert not any(stage.kind in ("model", "synthetic") for stage in plan(arms=("real",)))


def test_gold_truth_is_scored_where_there_is_some():
    assert not any("--partial" in stage.words for stage in plan())
    assert any("--partial" in stage.words for stage in plan(gold=2))


def runner(tmp_path):
    args = arguments(out=str(tmp_path / "out"))

    def run(*planned):
        tokens = {}
        experiment.run(list(planned), "toy", args, tokens, {"segment"})
        return tokens

    return run


def count(tmp_path, name):
    log = tmp_path / "out" / "logs" / f"toy-{name}.log"
    return log.read_text().count("$ python") if log.exists() else 0


def test_what_is_finished_is_not_run_again(tmp_path, capsys):
    run = runner(tmp_path)
    first = Stage("first", "segment", ("experiment", "--help"), tmp_path / "out" / "first")
    second = Stage("second", "segment", ("quickstart", "--help"), tmp_path / "out" / "second", ("first",))
    run(first, second)
    assert "$ python -m jaxsynth.experiment --help" in capsys.readouterr().out
    run(first, second)
    assert (count(tmp_path, "first"), count(tmp_path, "second")) == (1, 1)
    for stage in (first, second):
        stage.out.mkdir(parents=True)
        (stage.out / "made").touch()
    changed = Stage("first", "segment", ("train", "--help"), first.out)
    run(changed, second)
    assert (count(tmp_path, "first"), count(tmp_path, "second")) == (2, 2)
    assert not (first.out / "made").exists() and not (second.out / "made").exists()


def test_a_failed_stage_names_its_log_and_is_resumed(tmp_path):
    run = runner(tmp_path)
    out = tmp_path / "out" / "first"
    out.mkdir(parents=True)
    stage = Stage("first", "segment", ("evaluate", "--real", "nowhere", "--synthetic", str(tmp_path / "x")), out)
    with pytest.raises(InputError, match=r"toy first failed with status 2, see .*toy-first\.log: error: nowhere"):
        run(stage)
    out.mkdir(exist_ok=True)
    (out / "half").touch()
    with pytest.raises(InputError, match="failed"):
        run(stage)
    assert (out / "half").exists()  # begun by the same command, which goes on
    assert count(tmp_path, "first") == 2


def test_what_no_note_tells_of_is_left_alone(tmp_path):
    """It may be hours of somebody's work."""
    out = tmp_path / "out" / "first"
    out.mkdir(parents=True)
    (out / "work").touch()
    with pytest.raises(InputError, match="move it away"):
        runner(tmp_path)(Stage("first", "segment", ("experiment", "--help"), out))
    assert (out / "work").exists()


def test_a_stage_whose_input_is_not_made_is_refused(tmp_path):
    run = runner(tmp_path)
    missing = Stage("first", "synthetic", ("experiment", "--help"), tmp_path / "out" / "first")
    with pytest.raises(InputError, match="needs toy first"):
        run(missing, Stage("second", "segment", ("experiment", "--help"), tmp_path / "out" / "second", ("first",)))


def row(name, value):
    """An image of ten cells of which so many are found exactly, as `segment score` tells of it."""
    tp = round(10 * value)
    return {"name": name, "num_reference": 10, "seg": value, "dice": value, "dice_sd": 0.0, "num_segmented": 10,
            "det": value, "ap50": tp / (20 - tp), "ap75": tp / (20 - tp), "ap": tp / (20 - tp), "tp": tp, "fp": 10 - tp,
            "fn": 10 - tp, "splits": 0, "missed": 10 - tp, "spurious": 10 - tp,
            "tp_by_threshold": [tp] * 10}  # fmt: skip


def write_scores(out, arm, seed, values):
    place = out / "gowt1" / f"arm_{arm}" / str(seed) / "scores"
    place.mkdir(parents=True)
    rows = [row(f"t{i}", value) for i, value in enumerate(values)]
    (place / "scores.json").write_text(json.dumps({"images": rows}))


def test_the_report_of_made_up_scores(tmp_path, capsys):
    real = np.array([0.8, 0.7, 0.9, 0.6, 0.8, 0.7])
    for seed, shift in enumerate((-0.1, 0.1)):
        write_scores(tmp_path, "real", seed, real + shift)
        write_scores(tmp_path, "simulated", seed, real + shift)
    write_scores(tmp_path, "both", 0, real + 0.1)
    write_scores(tmp_path, "microscope", 0, real / 2)
    told = experiment_report.report(tmp_path, ("gowt1", "hela"), experiment_plan.ARMS)
    arms = told["sets"]["gowt1"]["arms"]
    assert arms["real"]["seg"]["value"] == pytest.approx(0.75) and arms["real"]["seeds"] == 2
    assert arms["real"]["seg"]["sd_seeds"] == pytest.approx(np.std([0.65, 0.85], ddof=1))
    assert arms["microscope"]["seg"]["ratio"]["value"] == pytest.approx(0.5)
    assert arms["microscope"]["seg"]["ratio"]["low"] == pytest.approx(0.5)
    found = told["sets"]["gowt1"]["comparisons"]
    assert found["simulated as real"]["seg"]["equivalence"]["shown"] and found["simulated as real"]["seg"]["met"]
    assert found["both above real"]["seg"]["difference"]["value"] == pytest.approx(0.1)
    assert found["both above real"]["seg"]["met"] and found["simulated above microscope"]["ap50"]["met"]
    table = (tmp_path / "table.md").read_text()
    assert "| silver |  |" in table and "0.750 [" in table and "hela" not in table
    assert json.loads((tmp_path / "table.json").read_text()) == told
    assert (tmp_path / "violins_gowt1.png").stat().st_size > 5000
    assert "written" in capsys.readouterr().out


def test_worse_arms_miss_their_aims(tmp_path):
    real = np.array([0.8, 0.7, 0.9, 0.6, 0.8, 0.7])
    write_scores(tmp_path, "real", 0, real)
    write_scores(tmp_path, "simulated", 0, real - 0.2)
    write_scores(tmp_path, "both", 0, real)
    found = experiment_report.report(tmp_path, ("gowt1",), experiment_plan.ARMS)["sets"]["gowt1"]["comparisons"]
    assert not any(told["met"] for measures in found.values() for told in measures.values())
    assert not found["simulated as real"]["seg"]["equivalence"]["shown"]
    assert "simulated above microscope" not in found


def test_seeds_of_different_images_are_refused(tmp_path):
    write_scores(tmp_path, "real", 0, [0.8, 0.7])
    write_scores(tmp_path, "real", 1, [0.8, 0.7, 0.6])
    with pytest.raises(InputError, match="different images"):
        experiment_report.report(tmp_path, ("gowt1",), experiment_plan.ARMS)


def test_the_report_of_a_sweep(tmp_path):
    for arm, value in (("real", 0.5), ("both", 0.7), ("both_four", 0.6)):
        write_scores(tmp_path, arm, 0, [value, value + 0.1])
    sweep = experiment_plan.SWEEPS["ratio"]
    experiment_report.report(tmp_path, ("gowt1",), tuple(sweep.values()), sweep, "ratio")
    lines = (tmp_path / "sweep_ratio.md").read_text().splitlines()
    assert lines[2].startswith("| `gowt1` | 0 | 1 | 0.550 ") and lines[3] == "| `gowt1` | 0.25 |  |  |  |  |"
    assert (tmp_path / "sweep_ratio.png").stat().st_size > 5000


def command(*args):
    words = [sys.executable, "-m", "jaxsynth.experiment", *map(str, args)]
    env = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sets", "nope"), "--sets: expected some of gowt1"),
        (("--arms", "real,fake"), "got 'fake'"),
        (("--seeds", "0"), "--seeds: expected 1 or more"),
        (("--sweep", "ratio", "--arms", "real"), "--arms: does not go with --sweep"),
        (("--models", "gowt1"), "SET=RUN"),
        (("--models", "gowt1=nowhere"), "no such folder"),
        (("--sets", "hela"), "expected a folder hela/"),
        (("--only", "report"), "no scores"),
    ],
)
def test_mistakes_are_one_line(film, tmp_path, words, message):
    done = command("--data", film, "--out", tmp_path / "out", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_one_arm_from_split_to_table_and_again(film, tmp_path):
    words = ("--data", film, "--out", tmp_path / "out", "--sets", "gowt1", "--arms", "real", "--quick", "--steps", 2)
    done = command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["sets"]["gowt1"]["arms"]["real"]["seeds"] == 1
    assert (tmp_path / "out" / "sheet_gowt1.png").stat().st_size > 5000
    assert (tmp_path / "out" / "overlays" / "gowt1_real.png").exists()
    again = command(*words)
    assert again.returncode == 0 and "$ python" not in again.stdout
