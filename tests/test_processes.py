"""Training as several processes: the same numbers as one, stopped together, continued by any number of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxsynth import checkpoint, keys
from jaxsynth.data import volumes
from jaxsynth.tasks import ddpm

ROOT = Path(__file__).parent.parent
KEYS = {
    "data.patch": "(32,16)",
    "data.batch_size": 8,
    "model.features": 2,
    "model.norm": "none",  # that of two channels is a sign, which rounding turns over
    "optim.schedule": "constant",
    "optim.learning_rate": 1e-4,
    "parallel.space": 2,
    "train.log_every": 1,
    "train.val_every": 0,
    "train.checkpoint_every": 3,
    "train.preview_every": 0,
    "train.keep_last": 1000,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(4):
        volumes.write(folder / f"{i}.tif", rng.integers(100, 5000, (40, 48)).astype(np.uint16), spacing_um=(0.5, 0.5))
    return folder


def start(images, workdir, environment, *flags, **overrides):
    keys = [f"--config.{name}={value}" for name, value in (KEYS | {"data.path": images} | overrides).items()]
    args = [
        sys.executable,
        "-m",
        "jaxsynth.train",
        "--config",
        "configs/common.py",
        "--workdir",
        workdir,
        *flags,
        *keys,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(arg) for arg in args], cwd=ROOT, env=environment, **pipes)


def environment(num_devices, **more):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={num_devices}")
    return os.environ | {"XLA_FLAGS": flags} | more


def start_two(images, workdir, **overrides):
    """Two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    who = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    places = [environment(4, JAX_PROCESS_ID=str(number), **who) for number in range(2)]
    return [start(images, workdir, place, "--distributed", **overrides) for place in places]


def finish(processes, status=0):
    """Waits for them; the first one's output, the only one that tells of the run."""
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), said
    assert not any("step" in out for out, _ in said[1:])
    return said[0][0]


def state_of(workdir, step):
    """The state after a step, whatever devices it was saved from."""
    config = ConfigDict(checkpoint.read_metadata(workdir, str(step))["config"])
    state = jax.eval_shape(lambda key: ddpm.init(ddpm.build(config), key, (8, 32, 16, 1)), keys.root(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state)
    return jax.device_get(checkpoint.load(workdir, like, str(step)))


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """A run of two processes that read from disk, one of which is told to stop; the step after which both did."""
    workdir = tmp_path_factory.mktemp("run") / "two"
    processes = start_two(images, workdir, **{"train.num_steps": 100_000, "data.device_limit_gib": 0.0})
    lines = []
    for line in processes[0].stdout:
        lines.append(line)
        if line.startswith("step 5/"):
            processes[1].send_signal(signal.SIGTERM)
    finish(processes, 128 + signal.SIGTERM)
    output = "".join(lines)
    assert "read from disk" in output and "8 x cpu in 2 processes" in output
    last = int(checkpoint.find(workdir, "latest").name)
    assert f"stopped by signal 15 after step {last}; saved" in output
    return workdir, last


def go_on(stopped, folder):
    """A copy of the run as it was after step 3."""
    workdir, last = stopped
    shutil.copytree(workdir, folder)
    for saved in (folder / "checkpoints").iterdir():
        if saved.name != "3":
            shutil.rmtree(saved)
    return folder, {"train.num_steps": last}


def test_one_process_goes_on_where_two_were(stopped, images, tmp_path):
    """Eight devices of one process against four of two each, every patch shared by two: the same numbers."""
    workdir, last = stopped
    folder, overrides = go_on(stopped, tmp_path / "one")
    output = finish([start(images, folder, environment(8), **overrides)])
    assert f"continuing at step 3 of {last}" in output and "kept on the device" in output
    close(state_of(folder, last), state_of(workdir, last))


def test_two_processes_go_on_with_images_on_their_devices(stopped, images, tmp_path):
    workdir, last = stopped
    folder, overrides = go_on(stopped, tmp_path / "two")
    output = finish(start_two(images, folder, **overrides))
    assert f"continuing at step 3 of {last}" in output and "kept on the device" in output
    close(state_of(folder, last), state_of(workdir, last))
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, last + 1)), "one process alone writes"


def test_a_mistake_ends_all_processes(images, tmp_path):
    """A batch that leaves devices without work is refused where there are several processes."""
    processes = start_two(images, tmp_path / "run", **{"data.batch_size": 2, "parallel.space": 1})
    for process in processes:
        _, error = process.communicate(timeout=100)
        assert process.returncode == 2
        assert "batch_size" in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_distributed_without_others_is_named(images, tmp_path):
    process = start(images, tmp_path / "run", environment(1), "--distributed")
    _, error = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "JAX_COORDINATOR_ADDRESS" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("script", "message"), [("slurm.sh", "SLURM"), ("gpu.sh", "nvidia-smi"), ("tpu_vm.sh", "TPU")])
def test_scripts_say_what_is_missing(script, message):
    clean = {"PATH": "/usr/bin:/bin"}
    if script != "slurm.sh" and (
        shutil.which("nvidia-smi") or list(Path("/dev").glob("accel*")) or Path("/dev/vfio").exists()
    ):
        pytest.skip("this machine has what the script needs")
    done = subprocess.run(["bash", ROOT / "launch" / script], env=clean, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1
