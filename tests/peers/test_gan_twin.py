"""The flax GAN computes what its PyTorch twins compute, with the same weights, carried over as the published are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.nn import conv, published
from jaxsynth.nn.gan import Critic, Generator

torch = pytest.importorskip("torch")

from .gan import TorchCritic, TorchGenerator  # noqa: E402  (needs torch)

SHAPES = {2: (2, 32, 24, 2), 3: (1, 16, 24, 8, 2)}
# Of no multiple of 16, nor of 2: halvings round up.
CRITIC_SHAPES = {2: (2, 37, 50, 2), 3: (1, 18, 33, 21, 2)}


def _random_params(net, x):
    """Parameters away from their special first values: biases and scales too."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        centre = 1 if name == "scale" else 0
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if name == "kernel" else 0.1
        return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _carry(params, twin):
    """Flax parameters, or their gradients, in the order and under the names of the twin."""
    state = {name: torch.from_numpy(array.copy()) for name, array in published.from_params(params).items()}
    return {name: state[name.replace(".norm.", ".")] for name in twin.state_dict()}


def _from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _to_torch(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def _compare(net, twin, shape):
    """Compares values and gradients, these in norm, as a voxel at the kink of a LeakyReLU may be on either side.

    Returns the difference of the input's gradients, relative."""
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], shape)
    params = _random_params(net, x)
    weights = jax.random.normal(keys[1], jax.eval_shape(net.apply, {"params": params}, x).shape)

    def total(params, x):
        y = net.apply({"params": params}, x)
        return jnp.sum(weights * y), y

    with jax.default_matmul_precision("highest"):
        (grad, grad_x), y = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)

    twin.load_state_dict(_carry(params, twin))  # strict: every name and shape must fit
    x_torch = _to_torch(x).requires_grad_()
    y_torch = twin(x_torch)
    assert y_torch.shape == _to_torch(y).shape
    (_to_torch(weights) * y_torch).sum().backward()

    assert y.std() > 0.05
    np.testing.assert_allclose(y, _from_torch(y_torch), atol=1e-4, rtol=0)
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()} | {"x": x_torch.grad}
    actual = _carry(grad, twin) | {"x": _to_torch(grad_x)}
    assert actual.keys() == expected.keys()
    slack = 1e-3 * max(np.linalg.norm(g) for g in expected.values())
    for name, g in expected.items():
        assert np.linalg.norm(actual[name] - g) < 1e-2 * np.linalg.norm(g) + slack, name
    return np.linalg.norm(actual["x"] - expected["x"]) / np.linalg.norm(expected["x"])


@pytest.mark.parametrize("rank, norm", [(2, "group"), (3, "instance")])
def test_the_generator(rank, norm):
    assert _compare(Generator(features=4, norm=norm), TorchGenerator(rank, 4, norm), SHAPES[rank]) < 1e-4


@pytest.mark.parametrize("rank, norm", [(2, "instance"), (3, "instance"), (2, "none")])
def test_the_critic(rank, norm):
    assert _compare(Critic(features=4, norm=norm), TorchCritic(rank, 4, norm), CRITIC_SHAPES[rank]) < 1e-4


@pytest.mark.parametrize("fewest, norm", [(conv.LEAST_OPERATIONS, "instance"), (0, "group")])
def test_the_penalty_of_the_critics_gradient(monkeypatch, fewest, norm):
    """Its gradient is of second order, through every form of convolution and norm that has a gradient of its own."""
    monkeypatch.setattr(conv, "LEAST_OPERATIONS", fewest)
    net, twin = Critic(features=4, norm=norm), TorchCritic(2, 4, norm)
    x = jax.random.normal(jax.random.key(0), CRITIC_SHAPES[2])
    params = _random_params(net, x)

    def penalty(params):
        gradient = jax.grad(lambda x: net.apply({"params": params}, x).sum())(x)
        return jnp.square(gradient).sum()

    with jax.default_matmul_precision("highest"):
        value, grad = jax.jit(jax.value_and_grad(penalty))(params)
    twin.load_state_dict(_carry(params, twin))
    x_torch = _to_torch(x).requires_grad_()
    (gradient,) = torch.autograd.grad(twin(x_torch).sum(), x_torch, create_graph=True)
    gradient.square().sum().backward()
    np.testing.assert_allclose(value, gradient.square().sum().item(), rtol=1e-3)
    actual = _carry(grad, twin)
    expected = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    slack = 1e-3 * max(np.linalg.norm(g) for g in expected.values())
    for name, g in expected.items():
        assert np.linalg.norm(actual[name] - g) < 1e-2 * np.linalg.norm(g) + slack, name


def _count(net, rank):
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *(32,) * rank, 2)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("rank, generator, critic", [(2, 776_121, 3_914_817), (3, 2_195_673, 11_741_505)])
def test_published_sizes(rank, generator, critic):
    assert _count(Generator(), rank) == generator == sum(p.numel() for p in TorchGenerator(rank).parameters())
    assert _count(Critic(), rank) == critic == sum(p.numel() for p in TorchCritic(rank).parameters())
