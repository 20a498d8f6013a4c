"""Checkpoints as PyTorch Lightning leaves them become runs that compute the same, and come back bit for bit."""

import argparse
import json
import sys

import jax
import numpy as np
import pytest

from jaxsynth import convert, sample, trained
from jaxsynth.data import torch_files, volumes
from jaxsynth.errors import InputError
from jaxsynth.tasks import ddpm, gan

torch = pytest.importorskip("torch")

from .gan import TorchCritic, TorchGenerator  # noqa: E402  (needs torch)
from .unet import TorchUNet  # noqa: E402

SHAPES = {2: (2, 24, 32), 3: (1, 16, 24, 8)}
FEATURES = {2: 16, 3: 4}


def run(command, *words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        command._main()


class Callback:
    """A class that whoever reads the file has not."""

    def __init__(self):
        self.best = {"score": torch.tensor(0.25), "paths": ["a", "b"]}


@pytest.fixture(scope="module", params=[2, 3])
def converted(request, tmp_path_factory):
    """(rank, twin, its checkpoint, the run made of that)."""
    rank = request.param
    folder = tmp_path_factory.mktemp(f"torch{rank}")
    torch.manual_seed(rank)
    twin = TorchUNet(rank, 2, FEATURES[rank])
    for parameter in twin.parameters():  # away from the special first values
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    network = torch.nn.Module()
    network.network = twin
    optimiser = torch.optim.RAdam(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimiser.step()
    content = {
        "epoch": 4,
        "global_step": 123,
        "pytorch-lightning_version": "1.9.0",
        "state_dict": network.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"EarlyStopping": Callback(), Callback: {"wait": np.float64(3.0)}},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "hparams",
        "hyper_parameters": argparse.Namespace(feat_channels=FEATURES[rank], patch_size=SHAPES[rank][1:]),
    }
    torch.save(content, folder / "published.ckpt")
    run(convert, folder / "published.ckpt", "--out", folder / "run")
    return rank, twin, folder / "published.ckpt", folder / "run"


def test_the_run_computes_what_the_twin_computes(converted):
    rank, twin, _, folder = converted
    model = trained.open_trained(folder)
    assert model.folder.name == "123" and model.ndim == rank and model.parts.noise_channel
    key = jax.random.key(rank)
    x, cond = jax.random.normal(key, (2, *SHAPES[rank], 1))
    t = np.arange(x.shape[0]) * 700 + 40
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(lambda params, *inputs: ddpm.denoiser(model.parts, params)(*inputs))(model.params, x, t, cond)
    both = np.moveaxis(np.concatenate([x, cond], -1), -1, 1)
    with torch.inference_mode():
        theirs = np.moveaxis(twin(torch.from_numpy(both), torch.from_numpy(t)).numpy(), 1, -1)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_it_comes_back_bit_for_bit(converted, tmp_path):
    rank, twin, _, folder = converted
    run(convert, folder, "--out", tmp_path / "back.ckpt")
    content = torch.load(tmp_path / "back.ckpt", weights_only=True)
    assert content["global_step"] == 123
    assert json.loads(content[convert.OURS])["config"]["diffusion"]["schedule"] == "cosine"
    network = torch.nn.Module()
    network.network = TorchUNet(rank, 2, FEATURES[rank])
    network.load_state_dict(content["state_dict"])  # strict: every name and shape must fit
    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter, network.network.get_parameter(name)), name


@pytest.mark.parametrize("converted", [2], indirect=True)
def test_sample_takes_it(converted, tmp_path):
    folder, shape = converted[3], (24, 40)
    labels = np.zeros(shape, np.uint16)
    labels[..., 4:12, 4:12] = 1
    for name, volume in (("labels", labels), ("sketches", labels.astype(np.float32) - 0.5)):
        (tmp_path / name).mkdir()
        volumes.write(tmp_path / name / "a.tif", volume)
    words = ("--checkpoint", folder, "--sketches", tmp_path / "sketches", "--num_evaluations", 2)
    run(sample, *words, "--out", tmp_path / "set")
    image = volumes.read(tmp_path / "set" / "images" / "a.tif")
    assert image.shape == shape and image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1


def test_a_gan_computes_what_its_twins_compute_and_comes_back(tmp_path):
    """Both networks in one file, as PyTorch Lightning leaves them."""
    torch.manual_seed(0)
    networks = torch.nn.Module()
    networks.generator, networks.discriminator = TorchGenerator(2, 4), TorchCritic(2, 4)
    optimisers = [torch.optim.RAdam(own.parameters()).state_dict() for own in networks.children()]
    told = argparse.Namespace(patch_size=(64, 64), norm="instance", out_activation="sigmoid")
    content = {"state_dict": networks.state_dict(), "global_step": 123, "optimizer_states": optimisers}
    torch.save(content | {"hyper_parameters": told}, tmp_path / "published.ckpt")
    run(convert, tmp_path / "published.ckpt", "--out", tmp_path / "run")

    model = trained.open_trained(tmp_path / "run", tasks=("gan",))
    rng = np.random.default_rng(0)
    mask, position = rng.random((2, 24, 40, 1)) > 0.5, rng.uniform(-1, 1, (2, 24, 40, 1))
    maps = np.concatenate([mask, position], -1, dtype=np.float32)
    with jax.default_matmul_precision("highest"):
        draw = jax.jit(lambda *inputs: gan.generate(model.parts, *inputs))
        images = draw(model.params, jax.random.split(jax.random.key(0), 2), maps)
    both = np.moveaxis(maps, -1, 1)
    with torch.inference_mode():
        theirs = np.moveaxis(networks.generator(torch.from_numpy(both)).numpy(), 1, -1)
    assert np.std(images) > 0.01
    np.testing.assert_allclose((images + 1) / 2, theirs, atol=1e-4, rtol=0)

    run(convert, tmp_path / "run", "--out", tmp_path / "back.ckpt")
    state = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == networks.state_dict().keys()
    for name, tensor in networks.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_every_dtype_and_layout_that_torch_saves(tmp_path):
    base = torch.randn(6, 5)
    tensors = {
        "transposed": base.T,
        "part": base[2:4, 1::2],
        "expanded": base[0].expand(3, 5),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base),
        "bool": base > 0,
        "bfloat16": base.bfloat16(),
        **{str(dtype): (100 * base).to(dtype) for dtype in (torch.float16, torch.float64, torch.int64, torch.uint8)},
    }
    torch.save({"state_dict": tensors}, tmp_path / "a.pt")
    read = torch_files.read(tmp_path / "a.pt")["state_dict"]
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        assert read[name].dtype == expected.dtype
        np.testing.assert_array_equal(read[name], expected)


def test_what_is_written_is_what_torch_reads(tmp_path):
    content = {
        "state_dict": {
            name: np.arange(12).reshape(3, 4).astype(name)
            for name in ("float16", "float32", "float64", "int64", "bool")
        },
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "plain": {"step": 2**40, "name": "ü", "rate": 0.1, "flag": False, "nothing": None},
    }
    torch_files.write(tmp_path / "a.pt", content)
    for mapped in (False, True):
        read = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
        assert read["plain"] == content["plain"]
        for name, array in (content["state_dict"] | {"scalar": content["scalar"], "empty": content["empty"]}).items():
            tensor = read["state_dict"][name] if name in read["state_dict"] else read[name]
            assert tensor.numpy().dtype == array.dtype
            np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_old_and_other_files_are_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"older than 1\.6"):
        torch_files.read(tmp_path / "old.ckpt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(InputError, match="state_dict"):
        run(convert, tmp_path / "script.pt", "--out", tmp_path / "run")


def test_a_checkpoint_cut_anywhere_is_an_input_error(converted, tmp_path):
    data = converted[2].read_bytes()
    for size in (10, 1000, len(data) // 2, len(data) - 30_000, len(data) - 100, len(data) - 1):
        (tmp_path / "cut.ckpt").write_bytes(data[:size])
        with pytest.raises(InputError, match=r"cut\.ckpt"):
            run(convert, tmp_path / "cut.ckpt", "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()
