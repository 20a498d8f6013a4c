"""Every configuration file loads, locks, builds its task, and says what it is for."""

import ast
from pathlib import Path

import pytest

from jaxsynth import cli, train_start
from jaxsynth.errors import InputError
from jaxsynth.tasks import distill

SECTIONS = {"data", "model", "diffusion", "distill", "seg", "gan", "optim", "parallel", "train"}
FILES = sorted((Path(__file__).parent.parent / "configs").glob("[!_]*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_configurations_build(file):
    config = cli.read_config(str(file), [])
    assert config.is_locked
    assert set(config.keys()) == SECTIONS | {"task", "seed"}
    if config.task == "distill":  # it takes the network from a teacher, which the user names
        with pytest.raises(InputError, match="no teacher given"):
            distill.inherit(config)
    else:
        task = train_start.find_task(config.task)
        assert task.build(config).net.features == config.model.features
    assert ast.get_docstring(ast.parse(file.read_text()))


def test_every_key_has_a_comment():
    lines = (Path(__file__).parent.parent / "configs" / "common.py").read_text().splitlines()
    keys = [line for line in lines if line.strip().startswith("c.") and "ConfigDict()" not in line]
    assert len(keys) > 30
    plain = {"learning_rate", "warmup_steps", "num_steps", "blur_vox", "offset", "noise", "num_evaluations"}
    plain |= {f"{event}_every" for event in ("log", "val", "preview", "checkpoint")}
    for line in keys:
        name = line.split("=")[0].strip().split(".")[-1]
        assert "#" in line or name in plain, line
