"""The training command as a user runs it: resumed, killed, interrupted, and given what it cannot use."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common
from jaxsynth import checkpoint, cli
from jaxsynth import train as train_command
from jaxsynth.data import volumes
from jaxsynth.errors import InputError
from jaxsynth.train_start import check_same, saved_metadata

ROOT = Path(__file__).parent.parent
SMALL = {
    "data.patch": "(16,16)",
    "data.batch_size": 4,
    "model.features": 2,
    "diffusion.t_max": 400,
    # A rate that rises all along, whatever num_steps: runs of other lengths find the step compiled.
    "optim.schedule": "constant",
    "optim.warmup_steps": 100,
    "train.num_steps": 120,
    "train.log_every": 20,
    "train.val_every": 40,
    "train.checkpoint_every": 20,
    "train.preview_every": 120,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four uint16 images, and a nested folder of one with another dtype."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(4):
        volumes.write(folder / f"{i}.tif", rng.integers(100, 5000, (40, 48)).astype(np.uint16), spacing_um=(0.5, 0.5))
    return folder


def command(workdir, images, **overrides):
    keys = SMALL | {"data.path": images} | overrides
    args = [f"--config.{name}={value}" for name, value in keys.items()]
    return [sys.executable, "-m", "jaxsynth.train", "--config", "configs/common.py", "--workdir", workdir, *args]


def environment():
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}


def train(workdir, images, *flags, **overrides):
    args = [str(arg) for arg in (*command(workdir, images, **overrides), *flags)]
    return subprocess.run(args, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)


def start(workdir, images, **overrides):
    args = [str(arg) for arg in command(workdir, images, **overrides)]
    return subprocess.Popen(args, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)


def state_of(workdir, step="latest"):
    """The raw arrays of a checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return reader.restore(checkpoint.find(workdir, step).absolute() / "state")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    done = train(workdir, images, "--profile", workdir.parent / "trace")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_leaves_what_it_promises(finished):
    workdir, output = finished
    assert "3 training and 1 held-out images (2D, uint16), kept on the device" in output
    assert "ETA" in output
    rows = [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [20, 40, 60, 80, 100, 120]
    assert [row["step"] for row in rows if "val/loss" in row] == [20, 40, 60, 80, 100, 120]
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    assert (workdir / "previews" / "0000120.png").stat().st_size > 1000
    metadata = checkpoint.read_metadata(workdir)
    assert metadata["spacing_um"] == [0.5, 0.5]
    assert metadata["intensity"]["dtype"] == "uint16"
    assert metadata["config"]["model"]["features"] == 2
    # The last two, and the best where it is neither.
    steps = {int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    assert {100, 120} <= steps and len(steps) <= 3


def test_a_profile_is_left_where_asked(finished):
    workdir, output = finished
    assert "trace: open" in output
    (trace,) = (workdir.parent / "trace").rglob("perfetto_trace.json.gz")
    assert "jit" in gzip.decompress(trace.read_bytes()).decode()
    assert list((workdir.parent / "trace").rglob("*.xplane.pb"))


def test_a_killed_run_ends_bit_identical(finished, images, tmp_path):
    """SIGKILL after the second checkpoint; the same command then ends with the parameters of the whole run."""
    workdir = tmp_path / "killed"
    process = start(workdir, images)
    while process.poll() is None and not any((workdir / "checkpoints" / step).is_dir() for step in ("40", "60", "80")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = train(workdir, images)
    assert again.returncode == 0, again.stderr
    assert "continuing at step" in again.stdout
    jax.tree.map(np.testing.assert_array_equal, state_of(workdir), state_of(finished[0]))
    rows = [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [20, 40, 60, 80, 100, 120]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_so(images, tmp_path, number):
    workdir = tmp_path / "stopped"
    process = start(workdir, images, **{"train.num_steps": 100_000, "train.checkpoint_every": 100_000})
    for line in process.stdout:
        if line.startswith("step 20/"):
            process.send_signal(number)
            break
    output = process.stdout.read()
    assert process.wait(60) == 128 + number
    assert "saved" in output and f"signal {int(number)}" in output
    assert int(state_of(workdir)["step"]) >= 20


def test_a_non_finite_loss_stops_and_names_the_last_good_checkpoint(finished, images, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "diverged")
    done = train(workdir, images, **{"optim.learning_rate": 1e30, "train.num_steps": 160})
    assert done.returncode == 1
    assert "not finite" in done.stderr and str(workdir / "checkpoints" / "120") in done.stderr
    assert done.stderr.count("\n") == 1
    assert checkpoint.find(workdir, "latest").name == "120"


def test_nothing_is_saved_from_a_state_past_a_bad_one(images, tmp_path):
    """With a checkpoint after every step: the update that breaks the parameters must not be kept as the last good."""
    workdir = tmp_path / "diverged"
    overrides = {"optim.learning_rate": 1e30, "train.checkpoint_every": 1, "train.preview_every": 0}
    done = train(workdir, images, **overrides)
    assert done.returncode == 1
    assert "not finite" in done.stderr and done.stderr.count("\n") == 1
    kept = [p for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()]
    assert kept and all(
        np.isfinite(leaf).all() for step in kept for leaf in jax.tree.leaves(state_of(workdir, step.name))
    )


def test_a_workdir_that_is_a_file_is_named(images, tmp_path):
    (tmp_path / "file").write_text("")
    done = train(tmp_path / "file", images)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "file" in done.stderr


def test_a_finished_run_has_nothing_to_do(finished, images):
    again = train(finished[0], images)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


def test_a_step_that_does_not_fit_recomputes_its_activations(images, tmp_path):
    """On a device of one byte. A process of its own, which finds most programs compiled."""
    code = "from jaxsynth import train, train_programs as p; p.memory_limit = lambda: 1.0; train.main()"
    args = [str(arg) for arg in command(tmp_path / "run", images, **{"train.num_steps": 2})[3:]]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "activations are recomputed" in done.stdout
    assert checkpoint.find(tmp_path / "run", "latest").name == "2"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.norm": "instance"}, "model"),
        ({"data.normalization": "percentile"}, "data.normalization"),
    ],
)
def test_a_run_cannot_go_on_as_another(finished, images, overrides, message):
    done = train(finished[0], images, **overrides)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its configuration lacks the newer keys, which are then as they were trained: anything else is refused."""
    config = common.get_config()
    old = config.to_dict()
    for name in ("prediction", "weighting", "snr_cap"):
        del old["diffusion"][name]
    del old["distill"]
    old["model"]["remat"] = False
    config.model.remat = "always"  # which may change
    folder = tmp_path / "checkpoints" / "10" / "metadata"
    folder.mkdir(parents=True)
    (tmp_path / "checkpoints" / "10" / "state").mkdir()
    (folder / "metadata").write_text(json.dumps({"config": old}))
    saved = saved_metadata(tmp_path, "ddpm")
    assert saved == {"config": json.loads(json.dumps(old))}
    check_same(tmp_path, saved, config)
    config.diffusion.prediction = "v"
    with pytest.raises(InputError, match="diffusion="):
        check_same(tmp_path, saved, config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.pach": 3}, 'Did you mean "patch"'),
        ({"data.batch_size": "many"}, "batch_size"),
        ({"data.patch": "(16,)"}, "data.patch"),
        ({"data.patch": "(16,16,16)"}, "2D"),
        ({"data.path": "nowhere"}, "nowhere"),
        ({"data.path": ""}, "data.path"),
        ({"task": "dppm"}, "ddpm"),
        ({"data.patch": "(64,64)", "data.allow_padding": False}, "smaller than the patch"),
        ({"data.batch_size": 0}, "batch_size"),
        ({"train.num_steps": -1}, "num_steps"),
        ({"train.log_every": -1}, "log_every"),
        ({"optim.ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(images, tmp_path, overrides, message, monkeypatch, capsys):
    """The command in this process, as starting one takes longer than all it does here."""
    monkeypatch.setattr(sys, "argv", [str(arg) for arg in command(tmp_path / "run", images, **overrides)[2:]])
    monkeypatch.setattr(cli, "keep_memory", lambda: None)  # it would last for the tests that follow
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        train_command.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
