"""Weights from PyTorch's files and back, without PyTorch: files are written by jaxsynth.data.torch_files."""

import json
import sys

import h5py
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from skimage import io

from configs import common
from jaxsynth import checkpoint, cli, convert, keys, published_training, segmenter, trained, tune_pairs
from jaxsynth.data import intensity, torch_files, volumes
from jaxsynth.errors import InputError
from jaxsynth.nn import published
from jaxsynth.nn.flownet import FlowNet
from jaxsynth.nn.gan import Critic, Generator
from jaxsynth.nn.unet import UNet
from jaxsynth.tasks import gan


def state_of(rank=2, in_channels=2, norm="instance", features=2, out_channels=1):
    """A network's weights under the published names, with the prefix."""
    net = UNet(features=features, norm=norm, out_channels=out_channels)
    return _drawn(net, np.zeros((1, *(8,) * rank, in_channels), np.float32), np.zeros(1, np.int32))


def flow_state_of(rank=2, norm="instance", features=2, **options):
    """The same of the segmentation network."""
    net = FlowNet(features=features, norm=norm, **options)
    return _drawn(net, np.zeros((1, *(8,) * rank, 1), np.float32))


def gan_state_of(rank=2, norm="instance", features=2, critic_features=1, out_channels=1, noise=False):
    """The same of the GAN, whose two networks have prefixes of their own."""
    image = np.zeros((1, *(32,) * rank, 2), np.float32)
    generator = Generator(features=features, norm=norm, out_channels=out_channels)
    params = {"generator": _params(generator, np.zeros((*image.shape[:-1], 2 + noise), np.float32))}
    params |= {"critic": _params(Critic(features=critic_features, norm=norm), image)} if critic_features else {}
    return published.from_params(params)


def _params(net, *inputs):
    shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(inputs[0].ndim)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _drawn(net, *inputs):
    return {f"network.{name}": array for name, array in published.from_params(_params(net, *inputs)).items()}


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    convert._main()


def fails(monkeypatch, *words):
    """The one line that the command says."""
    with pytest.raises(InputError) as caught:
        run(monkeypatch, *words)
    return str(caught.value)


def test_names_and_shapes_are_the_published():
    state = state_of(3, features=16)
    assert state["network.c1.0.weight"].shape == (8, 2, 3, 3, 3)
    assert state["network.c1.1.weight"].shape == (8,)
    assert state["network.d1.0.weight"].shape == (16, 16, 4, 4, 4)
    assert state["network.u1.0.weight"].shape == (128, 128, 1, 1, 1)
    assert state["network.t2.1.weight"].shape == (32, 128)
    assert state["network.out.6.weight"].shape == (1, 16, 1, 1, 1)
    # A convolution or linear layer has two arrays, a PReLU one: c1 to c7 and out, out's last, d and u, t1 to t7.
    assert len(state) == 8 * 6 + 2 + 6 * 3 + 7 * 5


def test_names_and_shapes_of_the_segmentation_network_are_the_published():
    state = flow_state_of(3, features=16)
    assert state["network.c1.0.weight"].shape == (8, 1, 3, 3, 3)
    assert state["network.c1.2.weight"].shape == (16, 8, 3, 3, 3)  # no norm in c1, so no number for it
    assert state["network.c2.3.weight"].shape == (32, 16, 3, 3, 3)
    assert state["network.u1.0.weight"].shape == (128, 128, 3, 3, 3)
    assert state["network.u2.3.bias"].shape == (64,)
    assert state["network.c5.0.weight"].shape == (64, 192, 3, 3, 3)
    assert state["network.out.6.weight"].shape == (4, 16, 1, 1, 1)
    assert len(state) == 7 * 4 + 3 * 2 + 3 * 4 + 6  # two arrays for every convolution, and no other


def test_names_and_shapes_of_the_gan_are_the_published():
    state = gan_state_of(3, features=16, critic_features=64)
    assert state["generator.c1.0.weight"].shape == (8, 2, 3, 3, 3)
    assert state["generator.c1.2.weight"].shape == (16, 8, 3, 3, 3)  # no norm in c1, so no number for it
    assert state["generator.d3.0.weight"].shape == (64, 64, 4, 4, 4)
    assert state["generator.u2.0.weight"].shape == (128, 128, 1, 1, 1)
    assert state["generator.c5.3.weight"].shape == (128, 128, 3, 3, 3)
    assert state["generator.out.6.bias"].shape == (1,)
    assert state["discriminator.conv1.weight"].shape == (64, 2, 3, 3, 3)
    assert state["discriminator.conv6.weight"].shape == (1, 512, 3, 3, 3)
    # Two arrays for every convolution: c1 to c7 and out, out's last, d and u; the critic's; and no other.
    assert len(state) == 8 * 4 + 2 + 6 * 2 + 6 * 2
    assert gan_state_of(2, "group").keys() > {
        "generator.u1.1.weight",
        "generator.u1.4.bias",
        "discriminator.norm2.bias",
    }


def test_kernels_of_a_doubling_have_their_inputs_first():
    """As PyTorch keeps those of transposed convolutions; all are square here, so shapes would not tell."""
    kernel = np.arange(9 * 4 * 4, dtype=np.float32).reshape(3, 3, 4, 4)
    params = {"u3": {"transposed_0": {"kernel": kernel}, "conv_3": {"kernel": kernel}}}
    state = published.from_params(params)
    np.testing.assert_array_equal(state["u3.0.weight"][1, 2], kernel[:, :, 1, 2])
    np.testing.assert_array_equal(state["u3.3.weight"][1, 2], kernel[:, :, 2, 1])
    back = published.to_params(state, params)
    for layer, arrays in params["u3"].items():
        np.testing.assert_array_equal(back["u3"][layer]["kernel"], arrays["kernel"])


@pytest.mark.parametrize("rank, norm, told", [(2, "group", {}), (3, "none", {"norm_method": "none"})])
def test_a_segmentation_network_there_and_back(tmp_path, monkeypatch, capsys, rank, norm, told):
    state = flow_state_of(rank, norm)
    content = {"state_dict": state, "global_step": 70, "hyper_parameters": {"out_activation": "tanh"} | told}
    torch_files.write(tmp_path / "a.ckpt", content)
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    assert f"{rank}D segmentation network" in capsys.readouterr().out
    model = segmenter.open_segmenter(tmp_path / "run")
    assert (model.folder.name, model.ndim, model.parts.target) == ("70", rank, "centroid")
    assert (model.parts.net.features, model.parts.net.norm, model.config.data.normalization) == (2, norm, "percentile")
    assert segmenter.scale_for(model) == (1.0,) * rank
    image = np.random.default_rng(0).normal(size=(1, *(16,) * rank, 1)).astype(np.float32)
    ours = jax.jit(model.parts.net.apply)({"params": model.params}, image)
    assert ours.shape == (*image.shape[:-1], 1 + rank)

    run(monkeypatch, tmp_path / "run", "--out", tmp_path / "b.pt")
    assert ("norm group" in capsys.readouterr().out) == (norm == "group")
    back = torch_files.read(tmp_path / "b.pt")
    assert back["global_step"] == 70 and back["state_dict"].keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back["state_dict"][name], array)
    run(monkeypatch, tmp_path / "b.pt", "--out", tmp_path / "again")
    assert checkpoint.read_metadata(tmp_path / "again") == model.metadata


@pytest.mark.parametrize("rank, norm, mask, prefix", [(2, "group", None, "module."), (3, "instance", "cells", "")])
def test_a_gan_there_and_back(tmp_path, monkeypatch, capsys, rank, norm, mask, prefix):
    noise = rank == 2  # a channel that published ones do not have
    state = gan_state_of(rank, norm, noise=noise)
    content = {"state_dict": {prefix + name: array for name, array in state.items()}, "global_step": 70}
    torch_files.write(tmp_path / "a.ckpt", content | {"hyper_parameters": {"out_activation": "sigmoid"}})
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", *(("--mask", mask) if mask else ()))
    said = capsys.readouterr().out
    assert f"{rank}D GAN, 2 features, norm {norm}" in said and "float32 in [0, 1]" in said and "critic" not in said
    model = trained.open_trained(tmp_path / "run", tasks=("gan",))
    assert (model.folder.name, model.ndim, model.config.gan.mask) == ("70", rank, mask or "boundary")
    assert (model.parts.net.features, model.parts.net.norm, model.parts.critic.features) == (2, norm, 1)
    assert model.config.model.noise_channel == noise
    found = published.from_params({"generator": model.params})
    np.testing.assert_equal(found, {name: state[name] for name in found})

    run(monkeypatch, tmp_path / "run", "--out", tmp_path / "b.pt")
    said = capsys.readouterr().out
    assert ("norm group" in said, "noise_channel True" in said) == (norm == "group", noise)
    back = torch_files.read(tmp_path / "b.pt")
    assert back["global_step"] == 70
    np.testing.assert_equal(back["state_dict"], state)
    run(monkeypatch, tmp_path / "b.pt", "--out", tmp_path / "again")
    assert checkpoint.read_metadata(tmp_path / "again") == model.metadata


def test_a_trained_gan_of_ours_comes_back_whole(tmp_path, monkeypatch, capsys):
    """With the shortcut, noise and sketches of its configuration, which published ones lack and the way out says."""
    config = cli.read_config("configs/gan_nuclei.py", [])
    config.data.patch = (32, 32)
    config.model.features = config.gan.critic_features = 2
    config.gan.levels, config.gan.grain = (0.1, 0.2, 0.7), ((-0.05, 0.05), (-0.02, 0.02))
    config.gan.smooth_doublings = True
    parts = gan.build(config)
    state = jax.jit(lambda: gan.init(parts, keys.root(0), (1, 32, 32, 1)))()
    seen = intensity.fit([np.arange(256, dtype=np.uint8).reshape(16, 16)], "asinh").to_dict()
    metadata = {"config": config.to_dict(), "intensity": seen, "spacing_um": [0.5, 0.5], "num_files": 1, "cells": None}
    with checkpoint.open_manager(tmp_path / "run") as manager:
        checkpoint.save(manager, state, metadata, 1.0)
        manager.wait_until_finished()
    run(monkeypatch, tmp_path / "run", "--out", tmp_path / "b.pt")
    said = capsys.readouterr().out
    assert "residual True" in said and "smooth_doublings True" in said and f"clouds_vox {config.gan.clouds_vox}" in said
    run(monkeypatch, tmp_path / "b.pt", "--out", tmp_path / "again")
    before, after = (trained.open_trained(tmp_path / name, tasks=("gan",)) for name in ("run", "again"))
    assert before.metadata == after.metadata and after.parts.net.residual
    assert "shortcut" in before.params
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_a_generator_alone_gets_a_new_critic(tmp_path, monkeypatch, capsys):
    state = gan_state_of(critic_features=0)
    torch_files.write(tmp_path / "a.ckpt", state)
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    assert "no critic in the file" in capsys.readouterr().out
    run(monkeypatch, tmp_path / "run", "--out", tmp_path / "b.pt")
    back = torch_files.read(tmp_path / "b.pt")["state_dict"]
    critic = {name for name in back if name.startswith("discriminator.")}
    assert len(critic) == 12 and back["discriminator.conv1.weight"].shape == (64, 2, 3, 3)
    assert all(back[name].std() > 0 for name in critic if name.endswith("weight"))
    np.testing.assert_equal({name: array for name, array in back.items() if name not in critic}, state)


def test_images_tell_a_segmentation_network_the_voxel_size(tmp_path, monkeypatch):
    volumes.write(tmp_path / "a.tif", np.arange(256, dtype=np.uint8).reshape(16, 16), spacing_um=(0.5, 0.5))
    torch_files.write(tmp_path / "a.ckpt", flow_state_of())
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--images", tmp_path / "a.tif")
    metadata = checkpoint.read_metadata(tmp_path / "run")
    assert (metadata["spacing_um"], metadata["num_files"], metadata["intensity"]) == ([0.5, 0.5], 1, None)


@pytest.mark.parametrize("rank, in_channels, norm", [(2, 2, "instance"), (3, 1, "group")])
def test_there_and_back(tmp_path, monkeypatch, capsys, rank, in_channels, norm):
    state = state_of(rank, in_channels, norm)
    # Whatever else Lightning keeps.
    torch_files.write(tmp_path / "a.ckpt", {"state_dict": state, "global_step": 70, "epoch": 5, "callbacks": {}})
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    assert "float32 in [0, 1]" in capsys.readouterr().out
    assert checkpoint.find(tmp_path / "run").name == "70"
    metadata = checkpoint.read_metadata(tmp_path / "run")
    model, diffusion, intensity = metadata["config"]["model"], metadata["config"]["diffusion"], metadata["intensity"]
    assert len(metadata["config"]["data"]["patch"]) == rank
    assert (model["norm"], model["features"], model["noise_channel"]) == (norm, 2, in_channels == 2)
    assert (diffusion["schedule"], diffusion["beta_min"]) == ("cosine", 1e-4)
    assert (intensity["dtype"], intensity["low"], intensity["high"]) == ("float32", 0, 1)

    run(monkeypatch, tmp_path / "run", "--out", tmp_path / "deep" / "b.pt")
    assert ("norm group" in capsys.readouterr().out) == (norm == "group")
    back = torch_files.read(tmp_path / "deep" / "b.pt")
    assert back["global_step"] == 70 and back["state_dict"].keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back["state_dict"][name], array)


def test_what_our_own_files_tell_is_kept(tmp_path, monkeypatch, capsys):
    """Schedule, prediction and the images' range survive a file, the published defaults do not replace them."""
    torch_files.write(tmp_path / "a.ckpt", {"state_dict": state_of()})
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--schedule", "linear", "--norm", "none")
    metadata = checkpoint.read_metadata(tmp_path / "run")
    metadata["config"]["diffusion"]["prediction"] = "v"
    metadata["intensity"] |= {"method": "asinh", "dtype": "uint16", "high": 900.0}
    content = {"state_dict": state_of(), convert.OURS: json.dumps(metadata)}
    torch_files.write(tmp_path / "b.ckpt", content)
    run(monkeypatch, tmp_path / "b.ckpt", "--out", tmp_path / "again")
    assert checkpoint.read_metadata(tmp_path / "again") == metadata
    assert metadata["config"]["diffusion"]["schedule"] == "linear" and metadata["config"]["model"]["norm"] == "none"
    capsys.readouterr()
    run(monkeypatch, tmp_path / "again", "--out", tmp_path / "c.pt", "--step", "latest")
    assert json.loads(torch_files.read(tmp_path / "c.pt")[convert.OURS]) == metadata
    said = capsys.readouterr().out
    assert "prediction v" in said and "normalization asinh" in said


def test_images_tell_range_and_voxel_size(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    for i in range(2):
        image = np.random.default_rng(i).normal(60, 5, (40, 48))
        image[10:25, 12:30] += 90
        volumes.write(tmp_path / "real" / f"{i}.tif", image.astype(np.uint8), spacing_um=(0.5, 0.5))
    torch_files.write(tmp_path / "a.ckpt", state_of())
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--images", tmp_path / "real")
    metadata = checkpoint.read_metadata(tmp_path / "run")
    assert metadata["intensity"]["dtype"] == "uint8" and metadata["intensity"]["high"] > 150
    assert metadata["spacing_um"] == [0.5, 0.5] and metadata["num_files"] == 2 and metadata["cells"]["num_cells"] == 1

    torch_files.write(tmp_path / "b.ckpt", state_of(3))
    message = fails(monkeypatch, tmp_path / "b.ckpt", "--out", tmp_path / "no", "--images", tmp_path / "real")
    assert "images are 2D, the network is 3D" in message
    assert not (tmp_path / "no").exists()


def test_images_of_several_channels_and_in_other_data_sets(tmp_path, monkeypatch):
    """What --images needs to be read is kept, as jaxsynth.tune reads the same images later."""
    rng = np.random.default_rng(0)
    colours = np.stack([rng.integers(0, top, (24, 24)) for top in (50, 200, 100)], axis=-1).astype(np.uint8)
    io.imsave(tmp_path / "a.png", colours)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["some/where"] = colours[..., 1]
    torch_files.write(tmp_path / "a.ckpt", state_of())
    message = fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "no", "--images", tmp_path / "a.png")
    assert "3 channels" in message and not (tmp_path / "no").exists()
    found = []
    for out, *words in (("one", "a.png", "--channel", 1), ("two", "b.h5", "--dataset", "some/where")):
        args = (tmp_path / "a.ckpt", "--out", tmp_path / out, "--images", tmp_path / words[0], *words[1:])
        run(monkeypatch, *args)
        found.append(checkpoint.read_metadata(tmp_path / out))
        model = trained.open_trained(tmp_path / out)
        images = tune_pairs.open_real(tmp_path / words[0], model)
        np.testing.assert_array_equal(volumes.load(images, 0), colours[..., 1])
    assert found[0]["intensity"] == found[1]["intensity"] and found[0]["intensity"]["high"] > 150
    data = [metadata["config"]["data"] for metadata in found]
    assert [one["channel"] for one in data] == [1, -1]
    assert [one["dataset"] for one in data] == [common.get_config().data.dataset, "some/where"]


def test_a_checkpoint_under_another_name_is_of_step_zero(tmp_path, monkeypatch):
    torch_files.write(tmp_path / "a.ckpt", {"state_dict": state_of(), "global_step": 70})
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    checkpoint.find(tmp_path / "run").rename(tmp_path / "mine")
    run(monkeypatch, tmp_path / "mine", "--out", tmp_path / "b.pt")
    back = torch_files.read(tmp_path / "b.pt")
    assert back["global_step"] == 0 and back["state_dict"].keys() == state_of().keys()


@pytest.mark.parametrize("prefix", ["", "module.", "module.network.", "network.module.", "network._orig_mod."])
def test_bare_and_wrapped_names(tmp_path, prefix):
    state = {name.replace("network.", prefix): array for name, array in state_of().items()}
    named = convert._state_dict(tmp_path, state)
    assert named.keys() == {name.removeprefix("network.") for name in state_of()}


@pytest.mark.parametrize("prefix", ["generator.", "network.", "", "module.generator."])
def test_names_of_a_generator_alone(tmp_path, prefix):
    """Under the GAN's prefix, under that of trainings of this network by itself, and bare."""
    state = gan_state_of(norm="group", critic_features=0)
    found = {name.replace("generator.", prefix): array for name, array in state.items()}
    assert published.unify(convert._state_dict(tmp_path, found)).keys() == state.keys()
    for other in (state_of(norm="group"), flow_state_of(norm="group")):
        named = convert._state_dict(tmp_path, other)
        assert published.unify(named) == named


def test_half_precision_becomes_single():
    state = {name.removeprefix("network."): array.astype(np.float16) for name, array in state_of().items()}
    params = published.to_params(state, published.to_params(state, _like(state)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    np.testing.assert_array_equal(params["t1"]["linear_1"]["kernel"], state["t1.1.weight"].T)


def _like(state):
    found = published.describe(state)
    x = np.zeros((1, *(8,) * found.rank, found.in_channels), np.float32)
    return jax.eval_shape(UNet(features=found.features).init, jax.random.key(0), x, np.zeros(1, np.int32))["params"]


def changed(**arrays):
    """The state with some entries put in, replaced, or (None) taken out; dots are written as two underscores."""
    state = state_of() | {f"network.{name.replace('__', '.')}": array for name, array in arrays.items()}
    return {name: array for name, array in state.items() if array is not None}


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": 3}, "holds no state_dict"),
        ({"state_dict": {"network.c1.0.weight": "x"}}, "holds no state_dict"),
        ({"state_dict": {"net.conv.weight": zeros(3, 3)}}, "not the published diffusion denoiser: c1.0.weight"),
        (
            {"state_dict": {"generator.conv.weight": zeros(3, 3)}},
            "not the published GAN: generator.c1.0.weight is missing",
        ),
        (changed(c1__0__weight=zeros(1, 4, 3, 3)), "4 input channels"),
        (changed(t1__1__weight=None, t1__1__bias=None), "lacks t1.1.bias and 1 more"),
        (changed(c9__0__weight=zeros(1)), "unexpected c9.0.weight"),
        (
            changed(c5__0__weight=zeros(16, 10, 3, 3)),
            "c5.0.weight is float32 (16, 10, 3, 3), expected float32 (16, 12, 3, 3)",
        ),
        (changed(c1__2__running_mean=zeros(1)), "batch norm"),
        (changed(c1__1__weight=np.full(1, np.nan, np.float32)), "NaN"),
        (changed(c1__1__weight=np.zeros(1, np.int64)), "c1.1.weight is int64"),
        (state_of(out_channels=3), "out.6.bias is float32 (3,), expected float32 (1,)"),
        (state_of() | {convert.OURS: "{}"}, "damaged"),
        (flow_state_of() | {"network.c2.1.running_mean": zeros(2)}, "batch norm"),
        (flow_state_of() | {"network.c1.0.weight": zeros(1, 2, 3, 3)}, "2 input channels, expected 1"),
        (flow_state_of(out_channels=1), "not the published segmentation network: out.6.bias is float32 (1,)"),
        (flow_state_of() | {"network.c9.0.weight": zeros(1)}, "unexpected c9.0.weight"),
        (
            {"state_dict": flow_state_of(), "hyper_parameters": {"out_activation": "sigmoid"}},
            "out_activation is 'sigmoid', expected 'tanh'",
        ),
        (state_of() | {convert.OURS: json.dumps({"config": {}})}, "damaged"),
        (gan_state_of() | {"generator.c1.0.weight": zeros(1, 1, 3, 3)}, "1 input channels, expected 2 or 3 or 4"),
        (
            gan_state_of() | {"discriminator.conv7.bias": zeros(1)},
            "not the published GAN: has an unexpected discriminator",
        ),
        (
            gan_state_of() | {"discriminator.conv1.weight": zeros(3, 2, 3, 3)},
            "discriminator.conv1.bias is float32 (1,)",
        ),
        (gan_state_of(out_channels=3), "generator.out.6.bias is float32 (3,), expected float32 (1,)"),
        ({"discriminator.conv1.weight": zeros(1, 2, 3, 3)}, "not the published GAN: generator.c1.0.weight is missing"),
        (
            {"state_dict": gan_state_of(), "hyper_parameters": {"out_activation": "tanh"}},
            "out_activation is 'tanh', expected 'sigmoid'",
        ),
    ],
)
def test_other_networks_are_named(tmp_path, monkeypatch, content, message):
    torch_files.write(tmp_path / "a.ckpt", content)
    said = fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    assert message in said and str(tmp_path / "a.ckpt") in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_arguments_that_make_no_sense(tmp_path, monkeypatch):
    torch_files.write(tmp_path / "a.ckpt", state_of())
    assert "no such file" in fails(monkeypatch, tmp_path / "none.ckpt", "--out", tmp_path / "run")
    assert "is a file" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "a.ckpt")
    assert "norm" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--norm", "batch")
    assert "nosuch" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--schedule", "nosuch")
    torch_files.write(tmp_path / "a.ckpt", flow_state_of())
    assert "--schedule" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--schedule", "linear")
    torch_files.write(tmp_path / "a.ckpt", gan_state_of())
    assert "--schedule" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--schedule", "linear")
    torch_files.write(tmp_path / "a.ckpt", state_of())
    assert "--mask" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--mask", "cells")
    assert "--step" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--step", "3")
    assert "--channel" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run", "--channel", "-1")
    assert "no checkpoint" in fails(monkeypatch, tmp_path, "--out", tmp_path / "b.pt")
    assert "--norm" in fails(monkeypatch, tmp_path, "--out", tmp_path / "b.pt", "--norm", "none")
    assert "--channel" in fails(monkeypatch, tmp_path, "--out", tmp_path / "b.pt", "--channel", "1")
    assert ".ckpt" in fails(monkeypatch, tmp_path, "--out", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]

    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    assert "holds a run already" in fails(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")


def test_weights_and_what_is_told_of_them_must_be_of_one_network(tmp_path, monkeypatch):
    torch_files.write(tmp_path / "a.ckpt", state_of())
    run(monkeypatch, tmp_path / "a.ckpt", "--out", tmp_path / "run")
    told = json.dumps(checkpoint.read_metadata(tmp_path / "run"))
    for other in (flow_state_of(), gan_state_of()):
        torch_files.write(tmp_path / "b.ckpt", {"state_dict": other, convert.OURS: told})
        assert "its weights are of another" in fails(monkeypatch, tmp_path / "b.ckpt", "--out", tmp_path / "no")


def test_every_key_is_one_of_the_configuration():
    """So that a converted run can be trained on: what `train` compares has the same keys and types."""
    known = common.get_config()
    for section, values in published_training.CONFIG.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            assert type(known[section][name]) is type(value), f"{section}.{name}"
    for section in ("model", "diffusion"):
        assert set(published_training.CONFIG[section]) == set(known[section])
    assert ConfigDict(published_training.CONFIG).optim.name == known.optim.name
