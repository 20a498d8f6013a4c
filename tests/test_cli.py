"""What the commands share: errors in one line, configurations, numbers, the cache folder."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxsynth import cli
from jaxsynth.errors import InputError

ROOT = Path(__file__).parent.parent
COMMANDS = ("train", "simulate", "sample", "evaluate", "tune", "convert", "bench", "quickstart")
COMMANDS += ("segment", "experiment")


def fail(error):
    def main():
        raise error

    return main


def test_a_mistake_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(fail(InputError("bad\n  thing")))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: bad thing\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="bug"):
        cli.run(fail(ValueError("bug")))


def test_ctrl_c_has_its_status(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(fail(KeyboardInterrupt()))
    assert stop.value.code == 130


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_jax(command):
    """So it answers at once."""
    code = f"""
import sys
sys.argv = ["x", "--help"]
import jaxsynth.{command} as command
try:
    command.main()
except SystemExit as stop:
    assert not stop.code
assert not {{"jax", "numpy", "matplotlib", "tifffile"}} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"python -m jaxsynth.{command}" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_arguments_are_one_line(command):
    words = [sys.executable, "-m", f"jaxsynth.{command}", "--nonsense"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_overrides_reach_the_configuration():
    config = cli.read_config(
        str(ROOT / "configs" / "common.py"),
        ["--config.data.patch=(32,64,64)", "--config.model.bfloat16=true", "--config.optim.learning_rate=3"],
    )
    assert config.data.patch == (32, 64, 64)
    assert config.model.bfloat16 is True
    assert config.optim.learning_rate == 3.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.pach=3", "patch"),
        ("--config.nope.x=3", "nope"),
        ("--config.data.batch_size=x", "batch_size"),
        ("--confg.data.path=x", "--confg"),
    ],
)
def test_mistyped_overrides_are_named(override, message):
    with pytest.raises(InputError, match=message):
        cli.read_config(str(ROOT / "configs" / "common.py"), [override])


def test_numbers_of_an_argument():
    assert cli.numbers(int)("32,128") == (32, 128)
    assert cli.numbers(float)("0.5") == (0.5,)
    with pytest.raises(Exception, match="joined by commas"):
        cli.numbers(int)("4x4")


def test_time_left_is_that_of_the_rest():
    assert cli.eta(time.perf_counter() - 1200, 0.25) == "ETA 1:00:00"
    assert cli.eta(time.perf_counter() - 1200, 1.0) == "ETA 0:00:00"


def test_the_cache_folder_follows_the_user(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cli.cache_dir() == Path("/somewhere/jaxsynth")
