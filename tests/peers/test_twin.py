"""The flax denoiser computes what its PyTorch twin computes, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.nn.unet import UNet

torch = pytest.importorskip("torch")

from .unet import TorchUNet, state_dict_of  # noqa: E402  (needs torch)

SHAPES = {2: (2, 32, 24, 2), 3: (2, 16, 24, 16, 2)}


def _random_params(net, x, t):
    """Parameters away from their special first values: biases, slopes and scales too."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        fan_in = np.prod(leaf.shape[:-1])
        centre = {"kernel": 0, "bias": 0, "slope": 0.8, "scale": 1}[name]  # slopes near 1: a small kink
        spread = np.sqrt(1.5 / fan_in) if name == "kernel" else 0.1
        return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _from_torch(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _to_torch(x):
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


@pytest.mark.parametrize("rank, norm", [(2, "instance"), (2, "group"), (2, "none"), (3, "instance"), (3, "none")])
def test_same_output_and_gradients(rank, norm):
    net = UNet(out_channels=2, norm=norm)
    keys = jax.random.split(jax.random.key(1))
    x = jax.random.normal(keys[0], SHAPES[rank])
    target = jax.random.normal(keys[1], (*SHAPES[rank][:-1], 2))
    t = jnp.array([3, 870])
    params = _random_params(net, x, t)

    def loss(params, x):
        y = net.apply({"params": params}, x, t)
        return jnp.mean((y - target) ** 2), y

    with jax.default_matmul_precision("highest"):
        (grad, grad_x), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    twin = TorchUNet(rank, 2, 16, 2, norm)
    twin.load_state_dict(state_dict_of(params))  # strict: every name and shape must fit
    x_torch = _to_torch(x).requires_grad_()
    y_torch = twin(x_torch, torch.tensor(np.asarray(t)))
    torch.nn.functional.mse_loss(y_torch, _to_torch(target)).backward()

    assert np.abs(y).max() > 0.5
    np.testing.assert_allclose(y, _from_torch(y_torch), atol=1e-4, rtol=0)
    # In norm, not in maximum: rounding alone takes a voxel across the kink of a PReLU here and there, and a
    # small gradient (a bias, of which an instance norm undoes most) shows the single voxel.
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()} | {"x": x_torch.grad}
    actual = state_dict_of(grad) | {"x": _to_torch(grad_x)}
    slack = 1e-3 * max(np.linalg.norm(g) for g in expected.values())
    for name, g in expected.items():
        assert np.linalg.norm(actual[name] - g) < 1e-2 * np.linalg.norm(g) + slack, name


@pytest.mark.parametrize("rank, count", [(2, 899_409), (3, 2_318_961)])
def test_published_size(rank, count):
    """2.32 M parameters in 3D, on two input channels, by both accounts."""
    x, t = jnp.zeros((1, *(8,) * rank, 2)), jnp.zeros(1, int)
    params = jax.eval_shape(UNet().init, jax.random.key(0), x, t)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert sum(p.numel() for p in TorchUNet(rank, 2).parameters()) == count
