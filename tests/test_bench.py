"""The benchmark command: its lines, its table, and that it measures what it says."""

import functools
import inspect
import itertools
import json
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import bench, bench_device, bench_gan, bench_peer, bench_sample, bench_sim, bench_start, bench_train, cli
from jaxsynth.data import volumes
from jaxsynth.diffusion import samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.nn import gan as gan_networks

TOY = {"t_start": 3, "evaluations": 2, "features": 2, "rounds": 2, "peer_runs": 3}


@pytest.fixture
def small_peaks(monkeypatch):
    """Peaks of arrays so small that they take no time."""
    monkeypatch.setattr(bench_device, "MATMUL_SIZE", (64, 128))
    monkeypatch.setattr(bench_device, "COPY_BYTES", (2**16, 2**17))
    monkeypatch.setattr(bench_device, "PEAK_SECONDS", 0.01)
    bench_device.peaks.cache_clear()
    yield
    bench_device.peaks.cache_clear()


@pytest.fixture
def command(monkeypatch, capsys, small_peaks):
    """Runs the command with small cases in place of its own; returns status, rows and what went to stderr."""
    tiny = {
        "nuclei": functools.partial(bench_sim.specimen, "nuclei", 5, 7.0, shape=(40, 48)),
        "training": functools.partial(
            bench_sim.training, "nuclei", (16, 16), data__batch_size=2, model__features=2, model__norm="none",
            diffusion__num_timesteps=10,
            diffusion__t_max=10,
        ),
        "broken": functools.partial(bench_sim.specimen, "nuclei", 500, shape=(40, 48)),
    }  # fmt: skip
    sample = {"image": functools.partial(bench_sample.sketch_to_image, (24, 40), tiling=((16, 16), (8, 8)), **TOY)}
    step = functools.partial(bench_train.step, (16, 16), batch=2, features=2, rounds=2, compiler="eager")
    monkeypatch.setattr(bench, "SUITES", {"sim": tiny, "sample": sample, "train": {"step": step}})
    monkeypatch.setattr(bench_device, "SECONDS", 0.01)
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


def test_a_case_is_one_line_of_the_agreed_keys_and_a_table_and_a_trace(command, tmp_path):
    folder = tmp_path / "traces"
    status, (row,), errors = command("--suite", "sim", "--case", "nuclei", "--profile", str(folder))
    said, table = errors.split("\n", 1)
    assert str(folder / "sim_nuclei") in said
    assert list((folder / "sim_nuclei").rglob("perfetto_trace.json.gz"))
    assert status == 0
    assert tuple(row) == bench.KEYS
    assert (row["suite"], row["case"], row["shape"], row["num_cells"]) == ("sim", "nuclei", [40, 48], 5)
    assert row["compile_s"] > row["median_s"] > 0
    assert row["voxels_per_s"] == pytest.approx(40 * 48 / row["median_s"])
    # Labels and sketch at least, and no array of voxels times cells.
    assert 2 * 4 * 40 * 48 <= row["peak_bytes"] < 30 * 4 * 40 * 48
    assert row["peer"] == bench_sim.PUBLISHED and row["peer_median_s"] == 7.0
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
        (("--suite", "simulation"), "--suite: expected one of sim, sample, train, all; got 'simulation'"),
        (("--suite", "sim", "--case", "yeast"), "--case: expected one of nuclei, training, broken; got 'yeast'"),
        ((), "--suite"),
        (("--suite", "sim", "--peer", "torch"), "--peer: only for cases of suites sample, train, not for --suite sim"),
        (("--suite", "sample", "--peer", "keras"), "--peer: expected torch; got 'keras'"),
    ],
)
def test_wrong_names_are_one_line(command, words, message):
    status, rows, errors = command(*words)
    assert status == 2 and rows == []
    assert message in errors and errors.count("\n") == 1


def test_peak_counts_arguments_results_and_what_lies_beside_once():
    x = jnp.ones(1000)
    program, seconds = bench_device.compiled(lambda x: x + 1, x)
    assert seconds > 0 and program(x)[0] == 2
    assert 8000 <= bench_device.peak_bytes(program) < 8100
    assert bench_device.peak_bytes(program, 500) == bench_device.peak_bytes(program) + 500
    donated, _ = bench_device.compiled(lambda x: x + 1, x, donate_argnums=0)
    assert 4000 <= bench_device.peak_bytes(donated) < 4100


def test_cores_are_counted_where_the_system_knows_no_affinity(monkeypatch):
    assert 1 <= bench_device.num_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert bench_device.num_cores() == os.cpu_count()


def test_there_are_at_least_three_runs(monkeypatch):
    monkeypatch.setattr(bench_device, "SECONDS", 0.0)
    assert len(list(bench_device.times(lambda: jnp.zeros(1)))) == 3


def test_the_cases_of_the_papers_are_there():
    assert set(bench.SUITES["sim"]) >= {"celegans", "gowt1", "hela", "tribolium", "harmonics", "arabidopsis"}
    assert set(bench.SUITES["sample"]) >= {"image_256", "image_1024", "volume", "volume_large", "step_2d", "step_3d"}
    assert set(bench.SUITES["train"]) >= {"train_2d", "train_3d", "train_2d_group", "train_3d_group"}
    for case in itertools.chain(*(cases.values() for cases in bench.SUITES.values())):
        partial = functools.partial(case)
        inspect.signature(partial.func).bind(*partial.args, **partial.keywords)


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


def test_a_complete_peer_and_one_evaluation():
    pytest.importorskip("torch")
    row = bench_sample.sketch_to_image((16, 16), peer="torch", complete=True, one_on_cpu=True, **TOY)
    assert row["peer_note"].startswith("3 steps x 1 tile of 16 x 16") and row["peer_note"].endswith("run completely")


def test_one_evaluation_where_torch_cannot_compile(small_peaks):
    pytest.importorskip("torch")
    row = bench_sample.evaluation((16, 16), peer="torch", features=2, rounds=2, compiler="no such compiler")
    assert (row["evaluations"], row["peer_evaluations"], row["overhead"]) == (1, 1, 1.0)
    assert row["peer_median_s"] > 0 and row["median_s"] > 0
    assert row["peer_compiled_median_s"] is None
    assert row["peer_note"].startswith("torch.compile failed: ") and "no such compiler" in row["peer_note"]
    assert "\n" not in row["peer_note"]


def test_a_training_step_beside_its_peer(command):
    torch = pytest.importorskip("torch")
    status, (row,), table = command("--suite", "train", "--case", "step", "--peer", "torch")
    assert status == 0
    assert set(row) == {*bench.KEYS, *bench_device.RATES, *bench_peer.KEYS, "steps_per_s"}
    assert row["shape"] == [2, 16, 16] and row["steps_per_s"] == pytest.approx(1 / row["median_s"])
    assert row["voxels_per_s"] == pytest.approx(2 * 16 * 16 / row["median_s"])
    assert row["peer"] == f"PyTorch {torch.__version__} twin, eager, training step" and row["peer_note"] is None
    assert row["ratio"] == pytest.approx(row["peer_median_s"] / row["median_s"])
    assert row["ratio_compiled"] == pytest.approx(row["peer_compiled_median_s"] / row["median_s"])
    assert row["peak_bytes"] > 4 * 4 * 2 * 16 * 16
    assert row["flops_per_s"] == pytest.approx(row["flops"] / row["median_s"])
    assert row["peak_share"] == pytest.approx(row["flops_per_s"] / row["matmul_peak"])
    assert row["floor_compute_s"] == pytest.approx(row["flops"] / row["matmul_peak"])
    assert row["floor_memory_s"] == pytest.approx(row["bytes"] / row["copy_peak"])
    assert "% of peak" in table and "its ratio" in table


@pytest.mark.parametrize(("shape", "noise_channel"), [((32, 32), True), ((16, 32, 32), False)])
def test_operations_are_those_that_pytorch_counts(shape, noise_channel):
    """Of convolutions and their gradients; the twin's dense layers of t are few, and so is what no gradient by the
    image saves."""
    pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    schedule, norm = make_schedule("cosine", 10), "instance" if noise_channel else "group"
    options = {"batch": 2, "features": 4, "norm": norm, "noise_channel": noise_channel}
    run = bench_peer.training(bench_peer.load(), shape, schedule, **options)
    with FlopCounterMode(display=False) as counter:
        run()
    flops = bench_train.operations(shape, 2, 4, 1 + noise_channel)
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize("shape", [(64, 64), (32, 32, 32)])
def test_a_step_of_the_gan_is_counted_as_its_peer_does_it(shape):
    """Which sees generated images twice: once more forth than ours. First layers get no gradient by their input."""
    pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    run = bench_peer.gan_training(bench_peer.load("gan"), shape, features=8, critic_features=8)
    with FlopCounterMode(display=False) as counter:
        run()
    again = 2 * gan_networks.critic_operations(len(shape), 8) * math.prod(shape)
    flops = bench_gan.operations(shape, 1, 8, 8) + again
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.03)


def test_the_gan_beside_its_peer(small_peaks):
    pytest.importorskip("torch")
    small = {"features": 2, "rounds": 1, "compiler": "eager", "peer": "torch"}
    trained = bench_gan.step((24, 24), critic_features=2, **small)
    generated = bench_gan.generation((16, 24), **small)
    for row, shape in ((trained, (1, 24, 24)), (generated, (16, 24))):
        assert row["shape"] == shape and min(row["median_s"], row["peer_median_s"], row["peak_bytes"]) > 0
        assert row["peer"].startswith("PyTorch") and row["peer_compiled_median_s"] > 0
        assert set(bench_device.RATES) <= row.keys()


def test_the_peer_learns_and_averages():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    run = bench_peer.training(bench_peer.load(), (16, 16), make_schedule("cosine", 100), batch=4, features=4)
    losses = [run() for _ in range(100)]
    assert np.mean(losses[-20:]) < 0.93 * np.mean(losses[:20])


def test_rates_and_peaks(small_peaks):
    program, _ = bench_device.compiled(lambda x: x + 1, jnp.ones(1000))
    row = bench_device.rates(100.0, program, 2.0)
    assert tuple(row) == bench_device.RATES
    assert (row["matmul_peak"], row["copy_peak"]) == bench_device.peaks()
    assert row["bytes"] == 2 * 4 * 1000 and row["flops_per_s"] == 50
    assert row["floor_memory_s"] == pytest.approx(8000 / row["copy_peak"])
    product, copied = bench_device.matmul(), bench_device.copy()
    small = jax.default_backend() == "cpu"
    assert product["flops"] == 2 * (64 if small else 128) ** 3
    assert copied["bytes"] == 2 * (2**16 if small else 2**17)
    # Rates are of the best run, so at least those of the median.
    assert product["flops_per_s"] >= product["flops"] / product["median_s"]
    assert copied["bytes_per_s"] >= copied["bytes"] / copied["median_s"]


def test_the_peer_takes_as_often_as_it_ran():
    pytest.importorskip("torch")
    assert bench_peer.named([3.0, 1.0, 2.0], 400 * 49, "DDPM")["peer_median_s"] == 2.0 * 400 * 49


def test_turns_alternate():
    calls = []
    ours, theirs = bench_device.turns(3, (lambda: calls.append("o"), 1), (lambda: calls.append("t"), 2))
    assert "".join(calls) == "ottottott"
    assert (len(ours), len(theirs)) == (3, 6) and min(ours + theirs) >= 0


def test_all_leaves_out_what_takes_too_long_on_a_cpu(command, monkeypatch):
    if jax.default_backend() != "cpu":
        pytest.skip("only on a CPU")
    slow = functools.partial(bench_sample.sketch_to_image, (16, 16), one_on_cpu=True, **TOY)
    monkeypatch.setattr(bench, "SUITES", {"device": {"copy": bench_device.copy}, "sample": {"volume_large": slow}})
    status, rows, errors = command("--suite", "all")
    assert status == 0 and [row["case"] for row in rows] == ["copy"]
    assert rows[0]["shape"] is None and rows[0]["voxels_per_s"] is None
    assert "sample volume_large: left out" in errors and "GB/s" in errors
    status, rows, errors = command("--suite", "all", "--case", "volume_large")
    assert status == 0 and [row["case"] for row in rows] == ["volume_large"] and "left out" not in errors
    assert set(rows[0]) == {*bench.KEYS, *bench_sample.KEYS}
    assert rows[0]["peer"] is rows[0]["peer_evaluations"] is rows[0]["ratio"] is None
    assert rows[0]["evaluations"] == 2 and rows[0]["note"] == "one evaluation timed and multiplied by 2"


def test_the_step_is_split_over_eight_devices_in_another_process():
    """What each of them computes and sends is the matter of the tests of sharding."""
    with pytest.raises(RuntimeError, match="space: expected a divisor of 8, the devices; got 3"):
        bench_train.split((16, 16), batch=8, space=3, features=2)


def test_start_trains_on_images_that_can_be_trained_on(tmp_path):
    images = tmp_path / "images"
    bench_start.write_images(images)
    opened = volumes.open_set(volumes.find_files(images), min_shape=(64, 64), allow_padding=False)
    assert len(opened.paths) == bench_start.NUM_IMAGES and opened.dtype == np.uint16
    image = volumes.load(opened, 0)
    assert image.std() > 300 > abs(np.median(image) - 500)
    config = cli.read_config(str(bench_start.CONFIG), bench_start.overrides(images, 2, features=4))
    assert (config.data.patch, config.train.num_steps, config.model.features) == ((64, 64), 2, 4)
    assert config.data.path == str(images)


def test_until_is_when_the_line_comes():
    script = "import time; print('first step', flush=True); time.sleep(60)"
    assert bench_start.until([sys.executable, "-c", script], "first") < 60
    for script in ("print('something else')", "import sys; sys.exit('no images')"):
        with pytest.raises(RuntimeError, match="no images" if "exit" in script else "status 0"):
            bench_start.until([sys.executable, "-c", script], "first")
    with pytest.raises(RuntimeError, match="status 3"):
        bench_start.until([sys.executable, "-c", "print('first'); raise SystemExit(3)"], "first", complete=True)


def test_every_command_is_found():
    assert set(bench_start.find_commands()) >= {"train", "simulate", "sample", "evaluate", "bench"}


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
    theirs = bench_peer.load().TorchUNet(2, 2, 4)
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
    monkeypatch.setattr(bench_peer, "TWINS", tmp_path / "__init__.py")
    status, rows, errors = command("--suite", "sample", "--peer", "torch")
    assert status == 2 and rows == []
    assert f"{tmp_path / '__init__.py'} is not there" in errors and errors.count("\n") == 1


def test_empty_columns_are_left_out():
    row = {"case": "a", "shape": (2, 3), "median_s": 2.0, "voxels_per_s": 3e6, "peak_bytes": None, "ratio": None}
    heading, line = bench.table([row]).splitlines()
    assert heading.split() == ["case", "shape", "median", "s", "Mvoxels/s"]
    assert line.split() == ["a", "2", "x", "3", "2", "3"]
    assert "ratio" in bench.table([row, row | {"ratio": 4.0}])


def test_every_suite_has_its_block():
    row = {"case": "a", "shape": None, "median_s": 2.0, "suite": "start"}
    other = row | {"suite": "train", "communication_bytes": {"all-reduce": 1e6, "all-gather": 2e6}, "note": "no time"}
    first, second = bench.table([row, row, other]).split("\n\n")
    assert len(first.splitlines()) == 3 and "collectives" not in first
    heading, line, note = second.splitlines()
    assert "collectives MB" in heading and line.split() == ["a", "2", "3"] and note == "a, ours: no time"
