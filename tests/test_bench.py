"""The benchmark command: its lines, its table, and that it measures what it says."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from jaxsynth import bench


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
    monkeypatch.setattr(bench, "SUITES", {"sim": tiny})
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
        (("--suite", "simulation"), "--suite: expected one of sim, all; got 'simulation'"),
        (("--suite", "sim", "--case", "yeast"), "--case: expected one of nuclei, training, broken; got 'yeast'"),
        ((), "--suite"),
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
