"""A GAN from files to images, by the commands: trained, gone on with, and asked for images of labels."""

import json
import sys

import jax
import numpy as np
import pytest

from configs import gan_nuclei
from jaxsynth import checkpoint
from jaxsynth import sample as sample_command
from jaxsynth.data import volumes
from jaxsynth.train import train


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three images of bright boxes, and label images of others."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i in range(3):
        for part in ("images", "labels"):
            labels = np.zeros((40, 48), np.uint16)
            for cell in range(1, 5):
                y, x = rng.integers(0, (30, 38))
                labels[y : y + 10, x : x + 10] = cell
            image = (rng.normal(60, 5, labels.shape) + 120 * (labels > 0)).astype(np.uint8)
            volumes.write(folder / part / f"{i}.tif", image if part == "images" else labels, spacing_um=(0.5, 0.5))
    return folder


def run(files, workdir, steps):
    config = gan_nuclei.get_config()
    config.data.path, config.gan.labels = str(files / "images"), str(files / "labels")
    config.data.patch, config.data.batch_size = (24, 24), 2
    config.model.features = config.gan.critic_features = 2
    config.gan.ada_every, config.gan.ada_start = 2, 0.5
    config.optim.schedule = "constant"  # the other depends on the number of steps
    config.train.num_steps, config.train.log_every = steps, 1
    train(config, workdir)


def state_of(workdir):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        return reader.restore(checkpoint.find(workdir, "latest").absolute() / "state")


def test_a_gan_is_trained_gone_on_with_and_sampled(files, tmp_path, monkeypatch):
    run(files, tmp_path / "whole", 6)
    run(files, tmp_path / "parts", 3)  # between two moves of the probability
    run(files, tmp_path / "parts", 6)
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "scalars.jsonl").read_text().splitlines()]
    told = [row["ada_probability"] for row in rows if "ada_probability" in row]
    assert len(told) == 6 and told[0] == told[1] == 0.5 and abs(told[2] - 0.5) == pytest.approx(0.05)
    assert any((tmp_path / "whole" / "previews").iterdir())

    words = ["sample", "--checkpoint", tmp_path / "whole", "--labels", files / "labels", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    sample_command.main()
    for file in (files / "labels").iterdir():
        made = volumes.read(tmp_path / "out" / "images" / file.name)
        assert made.shape == (40, 48) and made.dtype == np.uint8 and made.std() > 0
