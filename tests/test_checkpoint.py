"""Checkpoints: which are kept, which is best, what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import checkpoint
from jaxsynth.errors import InputError
from jaxsynth.records import TrainState


def state(step):
    params = {"a": jnp.full(3, step, jnp.float32)}
    return TrainState(step=jnp.int32(step), params=params, ema_params=params, opt_state=(params,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six checkpoints, the third the best, of which the last two and the best stay; reopened in the middle."""
    workdir = tmp_path_factory.mktemp("run")
    losses = [5.0, 4.0, 1.0, 3.0, 2.5, 2.0]
    for part in (range(3), range(3, 6)):
        manager = checkpoint.open_manager(workdir, keep_last=2)
        for i in part:
            checkpoint.save(manager, state(10 * (i + 1)), {"config": {"i": i}}, losses[i])
        manager.wait_until_finished()
        manager.close()
    return workdir


def test_the_last_and_the_best_are_kept(run):
    assert {p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()} == {"30", "50", "60"}


def test_best_and_latest_are_found(run):
    assert checkpoint.find(run).name == "30"
    assert checkpoint.find(run, "latest").name == "60"
    assert checkpoint.find(run, "50").name == "50"
    assert checkpoint.read_metadata(run)["config"] == {"i": 2}


def test_states_come_back(run):
    back = checkpoint.load(run, state(0))
    assert int(back.step) == 30
    jax.tree.map(np.testing.assert_array_equal, back, state(30))
    manager = checkpoint.open_manager(run)
    assert int(checkpoint.restore_latest(manager, state(0)).step) == 60
    manager.close()


def test_another_network_is_named(run):
    other = state(0).replace(params={"b": jnp.zeros(4)})
    with pytest.raises(InputError, match="does not fit"):
        checkpoint.load(run, other)


@pytest.mark.parametrize("step", ["20", "x"])
def test_missing_steps_are_named(run, step):
    with pytest.raises(InputError, match="30, 50, 60"):
        checkpoint.find(run, step)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.find(tmp_path)
    assert not checkpoint.exists(tmp_path)
