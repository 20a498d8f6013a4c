"""The flax segmentation network computes what its PyTorch twin computes, with the same weights."""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import convert, segmenter
from jaxsynth.nn.flownet import FlowNet

torch = pytest.importorskip("torch")

from .flownet import TorchFlowNet, state_dict_of  # noqa: E402  (needs torch)

SHAPES = {2: (2, 32, 24, 1), 3: (2, 16, 24, 16, 1)}


def _random_params(net, x):
    """Parameters away from their special first values: biases and scales too."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        centre = 1 if name == "scale" else 0
        taps = 1.5 ** (len(leaf.shape) - 2) if "transposed" in path[-2].key else np.prod(leaf.shape[:-2])
        spread = np.sqrt(2 / (taps * leaf.shape[-2])) if name == "kernel" else 0.1
        return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _to_torch(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


@pytest.mark.parametrize("rank, norm", [(2, "group"), (3, "instance")])
def test_same_output_and_gradients(rank, norm):
    net = FlowNet(features=8, norm=norm)
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], SHAPES[rank])
    target = jax.random.uniform(keys[1], (*SHAPES[rank][:-1], 1 + rank), minval=-1)
    params = _random_params(net, x)

    def loss(params, x):
        y = net.apply({"params": params}, x)
        return jnp.mean((y - target) ** 2), y

    with jax.default_matmul_precision("highest"):
        (grad, grad_x), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    twin = TorchFlowNet(rank, features=8, norm=norm)
    twin.load_state_dict(state_dict_of(params))  # strict: every name and shape must fit
    x_torch = _to_torch(x).requires_grad_()
    y_torch = twin(x_torch)
    torch.nn.functional.mse_loss(y_torch, _to_torch(target)).backward()

    assert 0.3 < np.abs(y).max() < 1
    np.testing.assert_allclose(y, _from_torch(y_torch), atol=1e-4, rtol=0)
    # In norm, not in maximum, as a voxel at the kink of a LeakyReLU may be on either side.
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()} | {"x": x_torch.grad}
    actual = state_dict_of(grad) | {"x": _to_torch(grad_x)}
    slack = 1e-3 * max(np.linalg.norm(g) for g in expected.values())
    assert actual.keys() == expected.keys()
    for name, g in expected.items():
        assert np.linalg.norm(actual[name] - g) < 1e-2 * np.linalg.norm(g) + slack, name


@pytest.mark.parametrize("rank, count", [(2, 646_803), (3, 1_980_980)])
def test_published_size(rank, count):
    params = jax.eval_shape(FlowNet().init, jax.random.key(0), jnp.zeros((1, *(8,) * rank, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert sum(p.numel() for p in TorchFlowNet(rank).parameters()) == count


def test_a_checkpoint_of_the_twin_computes_the_same_and_comes_back(tmp_path, monkeypatch):
    """As PyTorch Lightning leaves it: with records of a class of its own, and the network under a prefix."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
        convert._main()

    torch.manual_seed(0)
    network = torch.nn.Module()
    network.network = TorchFlowNet(3, features=4)
    told = argparse.Namespace(patch_size=(64, 128, 128), norm_method="instance", data_norm="percentile")
    content = {"state_dict": network.state_dict(), "global_step": 123, "hyper_parameters": told}
    torch.save(content, tmp_path / "published.ckpt")
    run(tmp_path / "published.ckpt", "--out", tmp_path / "run")

    model = segmenter.open_segmenter(tmp_path / "run")
    assert (model.folder.name, tuple(model.config.data.patch)) == ("123", (64, 128, 128))
    x = jax.random.normal(jax.random.key(2), (1, 16, 24, 8, 1))
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.parts.net.apply)({"params": model.params}, x)
    with torch.inference_mode():
        theirs = _from_torch(network.network(_to_torch(x)))
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)

    run(tmp_path / "run", "--out", tmp_path / "back.ckpt")
    state = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
