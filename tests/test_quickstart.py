"""The quickstart, end to end with a training of a few steps: what a newcomer runs first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxsynth import quickstart as quickstart_command
from jaxsynth.data import volumes

ROOT = Path(__file__).parent.parent


def one_device():
    return os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")


def quickstart(*args):
    words = [sys.executable, "-m", "jaxsynth.quickstart", *map(str, args)]
    env = os.environ | {"XLA_FLAGS": one_device()}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def small(monkeypatch, capfd):
    """(patch, words) -> what the quickstart prints. Its steps are processes as ever, but for a smaller network
    and smaller patches to train on, as its validation alone takes 16 of them."""
    step = quickstart_command._step

    def run(patch, *args):
        def smaller(number, what, command, *own):
            more = [f"--config.data.patch={patch}", "--config.model.features=4"] if command == "train" else []
            step(number, what, command, *own, *more)

        monkeypatch.setattr(quickstart_command, "_step", smaller)
        monkeypatch.setattr(sys, "argv", ["quickstart", *map(str, args)])
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("XLA_FLAGS", one_device())
        quickstart_command.main()
        return capfd.readouterr().out

    return run


def test_without_a_folder_and_again(small, tmp_path):
    out = tmp_path / "quick"
    words = ("(32,32)", "--out", out, "--train_steps", 2)
    assert f"{out / 'overview.png'}" in small(*words)
    assert (out / "overview.png").stat().st_size > 20_000
    names = sorted(p.name for p in (out / "dataset" / "images").iterdir())
    assert len(names) == 8
    assert names == sorted(p.name for p in (out / "dataset" / "labels").iterdir())
    scores = json.loads((out / "evaluation.json").read_text())
    assert scores["distances_from_real"]["synthetic"]["kld"] > 0
    assert "sketch" in scores["distances_from_real"]
    before = {p: p.stat().st_mtime_ns for p in (out / "dataset" / "images").iterdir()}
    assert "nothing to do" in small(*words)
    assert before == {p: p.stat().st_mtime_ns for p in (out / "dataset" / "images").iterdir()}
    other = quickstart(out / "real" / "images", "--out", out)
    assert other.returncode == 2 and other.stderr.count("\n") == 1


def test_on_a_folder_of_3d_images(small, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    for i in range(2):
        image = rng.normal(200, 20, (12, 40, 40))
        image[3:9, 8:20, 10:24] += 900
        volumes.write(tmp_path / "mine" / f"{i}.tif", image.astype(np.uint16), spacing_um=(2.0, 0.5, 0.5))
    small("(8,24,24)", tmp_path / "mine", "--out", tmp_path / "quick", "--train_steps", 1)
    made = volumes.read(next((tmp_path / "quick" / "dataset" / "images").iterdir()))
    assert made.shape == (12, 40, 40) and made.dtype == np.uint16


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_without_images_is_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    done = quickstart(tmp_path / folder, "--out", tmp_path / "quick")
    assert done.returncode == 2
    assert folder in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "quick").exists()
