"""The benchmark command: its lines, its table, and that it measures what it says."""

import functools
import inspect
import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import bench, bench_sample
from jaxsynth.diffusion import samplers
from jaxsynth.diffusion.schedule import make_schedule

TOY = {"t_start": 3, "evaluations": 2, "features": 2, "rounds": 2, "peer_runs": 3}


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command with small cases in place of its own; returns status, rows and what went to stderr."""
    tiny = {
        "nuclei": functools.partial(bench.specimen, "nuclei", 5, 7.0, shape=(40, 48)),
        "training": functools.partial(
            bench.training, "nuclei", (16, 16), data__batch_size=2, model__features=2, diffusion__num_timesteps=10,
            diffusion__t_max=10,
        ),
        "broken": functools.partial(bench.specimen, "nuclei", 500, shape=(40, 48)),
    }  # fmt: skip
    sample = {"image": functools.partial(bench_sample.sketch_to_image, (24, 40), tiling=((16, 16), (8, 8)), **TOY)}
    monkeypatch.setattr(bench, "SUITES", {"sim": tiny, "sample": sample})
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    cache = jax.config.jax_enable_compilation_cache

    def run(*words):
        monkeypatch.setattr("sys.argv", ["bench", *words])
        try:
            bench.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, [json.loads(line) for line in printed.out.splitlines()], printed.err

    yield run
    jax.config.update("jax_enable_compilation_cache", cache)


def test_a_case_is_one_line_of_the_agreed_keys_and_a_table(command):
    status, (row,), table = command("--suite", "sim", "--case", "nuclei")
    assert status == 0
    assert tuple(row) == bench.KEYS
    assert (row["suite"], row["case"], row["shape"], row["num_cells"]) == ("sim", "nuclei", [40, 48], 5)
    assert row["compile_s"] > row["median_s"] > 0
    assert row["voxels_per_s"] == pytest.approx(40 * 48 / row["median_s"])
    # Labels and sketch at least, and no array of voxels times cells.
    assert 2 * 4 * 40 * 48 <= row["peak_bytes"] < 30 * 4 * 40 * 48
    assert row["peer"] == bench.PUBLISHED and row["peer_median_s"] == 7.0
    assert row["ratio"] == pytest.approx(7.0 / row["median_s"])
    assert row["versions"]["jax"] == jax.__version__ and "CPU cores" in row["device"]
    assert not jax.config.jax_enable_compilation_cache
    heading, line = table.splitlines()
    assert heading.split()[:3] == ["case", "shape", "cells"]
    assert line.split()[:5] == ["nuclei", "40", "x", "48", "5"]
    assert len(line) == len(heading)


def test_training_tells_what_waiting_for_specimens_costs(command):
    status, (row,), table = command("--suite", "all", "--case", "training")
    assert status == 0
    assert tuple(row) == (*bench.KEYS, "steps_per_s", "wait_share")
    assert row["shape"] == [2, 16, 16] and row["num_cells"] is None and row["ratio"] is None
    assert row["steps_per_s"] == pytest.approx(1 / row["median_s"])
    assert row["wait_share"] < 1
    assert "training" in table


def test_a_specimen_that_is_not_as_asked_is_not_measured(command):
    with pytest.raises(RuntimeError, match=r"placed .* of 500 cells"):
        command("--suite", "sim", "--case", "broken")


def test_of_many_cases_one_that_fails_is_named_and_the_others_run(command):
    """Each in a process of its own, which knows the real cases only."""
    status, rows, errors = command("--suite", "sim")
    assert status == 1 and rows == []
    for name in ("nuclei", "training", "broken"):
        assert f"sim {name} failed with status 2" in errors
        assert f"got '{name}'" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--suite", "simulation"), "--suite: expected one of sim, sample, all; got 'simulation'"),
        (("--suite", "sim", "--case", "yeast"), "--case: expected one of nuclei, training, broken; got 'yeast'"),
        ((), "--suite"),
        (("--suite", "sim", "--peer", "torch"), "--peer: only suite sample can be run against a peer, got --suite sim"),
        (("--suite", "sample", "--peer", "keras"), "--peer: expected torch; got 'keras'"),
    ],
)
def test_wrong_names_are_one_line(command, words, message):
    status, rows, errors = command(*words)
    assert status == 2 and rows == []
    assert message in errors and errors.count("\n") == 1


def test_peak_counts_arguments_results_and_what_lies_beside_once():
    x = jnp.ones(1000)
    program, seconds = bench.compiled(lambda x: x + 1, x)
    assert seconds > 0 and program(x)[0] == 2
    assert 8000 <= bench.peak_bytes(program) < 8100
    assert bench.peak_bytes(program, 500) == bench.peak_bytes(program) + 500
    donated, _ = bench.compiled(lambda x: x + 1, x, donate_argnums=0)
    assert 4000 <= bench.peak_bytes(donated) < 4100


def test_there_are_at_least_three_runs(monkeypatch):
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    assert len(list(bench.times(lambda: jnp.zeros(1)))) == 3


def test_the_cases_of_the_papers_are_there():
    assert set(bench.SUITES["sim"]) >= {"celegans", "gowt1", "hela", "tribolium", "harmonics", "arabidopsis"}
    assert set(bench.SUITES["sample"]) == {"image_256", "image_1024", "volume", "volume_large", "step_2d", "step_3d"}
    for case in itertools.chain(*(cases.values() for cases in bench.SUITES.values())):
        inspect.signature(case.func).bind(*case.args, **case.keywords)


def test_sketch_to_image_beside_its_peer(command):
    torch = pytest.importorskip("torch")
    status, (row,), table = command("--suite", "sample", "--case", "image", "--peer", "torch")
    assert status == 0
    assert set(row) == {*bench.KEYS, *bench_sample.KEYS}
    assert row["shape"] == [24, 40] and (row["evaluations"], row["peer_evaluations"]) == (2, 3)
    assert row["median_s"] > 0 and row["ratio"] == pytest.approx(row["peer_median_s"] / row["median_s"])
    assert row["overhead"] >= 1 and row["note"] is None
    assert torch.__version__ in row["peer"]
    # 2 x 4 tiles; six runs are rounds x peer_runs.
    assert row["peer_note"] == (
        "3 steps x 8 tiles of 16 x 16, stride 8 x 8, 2.13 times the voxels; one tile-step timed 6 times and multiplied"
    )
    heading, line, note = table.splitlines()
    assert "evals" in heading and "peer s" in heading and "cells" not in heading
    assert line.split()[:4] == ["image", "24", "x", "40"]
    assert note == f"image, peer: {row['peer_note']}"


def test_alone_the_row_has_the_keys_and_no_peer():
    row = bench_sample.sketch_to_image((16, 16), one_on_cpu=True, **TOY)
    assert set(row) >= set(bench_sample.KEYS)
    assert not {"peer", "peer_median_s"} & set(row) and row["peer_evaluations"] is None
    if jax.default_backend() == "cpu":
        assert row["evaluations"] == 2 and row["note"] == "one evaluation timed and multiplied by 2"


def test_a_complete_peer_and_one_evaluation():
    pytest.importorskip("torch")
    row = bench_sample.sketch_to_image((16, 16), peer="torch", complete=True, one_on_cpu=True, **TOY)
    assert row["peer_note"].startswith("3 steps x 1 tile of 16 x 16") and row["peer_note"].endswith("run completely")
    row = bench_sample.evaluation((16, 16), peer="torch", features=2, rounds=2)
    assert (row["evaluations"], row["peer_evaluations"], row["overhead"]) == (1, 1, 1.0)
    assert row["peer_median_s"] > 0 and row["median_s"] > 0


def test_medians_are_multiplied():
    row = bench_sample._finish({"shape": (8, 8)}, 7.0, [1.0, 2.0, 9.0], 20)
    assert row["median_s"] == 40.0 and row["compile_s"] == 5.0
    pytest.importorskip("torch")
    assert bench_sample._peer([3.0, 1.0, 2.0], 400 * 49, "DDPM", 400)["peer_median_s"] == 2.0 * 400 * 49


def test_turns_alternate():
    calls = []
    ours, theirs = bench_sample._turns(lambda: calls.append("o"), lambda: calls.append("t"), 3, 2)
    assert "".join(calls) == "ottottott"
    assert (len(ours), len(theirs)) == (3, 6) and min(ours + theirs) >= 0


@pytest.mark.parametrize("shape", [(1024, 1024), (256, 256), (51, 128, 128), (180, 512, 512), (33, 129, 257), (8, 300)])
def test_published_tiles_cover_every_voxel_and_none_is_spare(shape):
    tile, stride = bench_sample.PUBLISHED_TILING[len(shape)]
    each = []
    for size, length, step in zip(shape, tile, stride, strict=True):
        covered, count = np.zeros(size, bool), 0
        while not covered.all():
            covered[count * step : count * step + length] = True
            count += 1
        each.append(count)
    assert bench_sample.num_tiles(shape, tile, stride) == np.prod(each)


def test_the_published_tiling_costs_what_is_recorded():
    """27.8 instead of 5.1 PFLOP for 180 x 512 x 512."""
    tile, stride = bench_sample.PUBLISHED_TILING[3]
    work = bench_sample.num_tiles((180, 512, 512), tile, stride) * np.prod(tile) / (180 * 512 * 512)
    assert work == pytest.approx(27.8 / 5.1, rel=0.01)


def test_both_sides_evaluate_the_same_network():
    pytest.importorskip("torch")
    ours = bench_sample.untrained(2, 4, "instance", noise_channel=True)
    theirs = bench_sample.load_twin().TorchUNet(2, 2, 4)
    assert sum(x.size for x in jax.tree.leaves(ours.params)) == sum(x.numel() for x in theirs.parameters())


def test_the_peer_samples_as_this_package_does():
    """With a linear network, and without noise between the steps."""
    torch = pytest.importorskip("torch")
    plan = samplers.make_plan("ddpm", make_schedule("cosine", 20), 6)
    plan = plan.replace(std=jnp.zeros_like(plan.std))
    inputs = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    step = bench_sample.tile_step(lambda x, t: 0.3 * x[:, :1] + 0.01 * t * x[:, 1:], inputs, plan)
    x, cond = jnp.asarray(inputs.numpy()[0, ..., None])
    expected = samplers.sample(lambda x, t, cond: 0.3 * x + 0.01 * t * cond, jax.random.key(0), x, plan, cond)
    for _ in range(2):  # step(0) begins anew
        for k in range(6):
            found = step(k)
    np.testing.assert_allclose(found.numpy()[0, 0], expected[..., 0], atol=1e-5)


def test_no_peer_is_one_line(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # as Python marks a module that cannot be imported
    status, rows, errors = command("--suite", "sample", "--peer", "torch")
    assert status == 2 and rows == []
    assert "PyTorch is not installed" in errors and errors.count("\n") == 1
    monkeypatch.setattr(bench_sample, "TWIN", tmp_path / "unet.py")
    status, rows, errors = command("--suite", "sample", "--peer", "torch")
    assert status == 2 and rows == []
    assert f"{tmp_path / 'unet.py'} is not there" in errors and errors.count("\n") == 1


def test_empty_columns_are_left_out():
    row = {"case": "a", "shape": (2, 3), "median_s": 2.0, "voxels_per_s": 3e6, "peak_bytes": None, "ratio": None}
    heading, line = bench.table([row]).splitlines()
    assert heading.split() == ["case", "shape", "median", "s", "Mvoxels/s"]
    assert line.split() == ["a", "2", "x", "3", "2", "3"]
    assert "ratio" in bench.table([row, row | {"ratio": 4.0}])
