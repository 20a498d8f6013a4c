"""The transposed convolution: its definition, PyTorch's, in every form that it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.nn.conv import up_conv

SPACES = [(3, 5), (1, 4), (1, 1), (3, 4, 2), (1, 2, 5), (2, 1, 1)]


def _drawn(space, channels=(5, 7)):
    rng = np.random.default_rng(0)
    shapes = (2, *space, channels[0]), (*(3,) * len(space), *channels), (2, *(2 * n for n in space), channels[1])
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _value_and_gradients(x, kernel, cotangent, direct):
    y, pull = jax.vjp(lambda x, kernel: up_conv(x, kernel, direct), x, kernel)
    return y, *pull(cotangent)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_it_is_the_sum_over_taps(space, direct):
    """x[i] k[j] is added to y[2 i + j - 1]."""
    x, kernel, cotangent = _drawn(space)
    y = np.zeros((2, *(2 * n + 2 for n in space), 7))
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    padded = np.pad(cotangent, [(0, 0), *[(1, 1)] * len(space), (0, 0)])
    for tap in np.ndindex(kernel.shape[:-2]):
        places = (slice(None), *(slice(j, j + 2 * n, 2) for j, n in zip(tap, space, strict=True)))
        y[places] += x @ kernel[tap]
        dx += padded[places] @ kernel[tap].T
        dkernel[tap] = np.einsum("bvc,bvf->cf", x.reshape(2, -1, 5), padded[places].reshape(2, -1, 7))
    expected = y[(slice(None), *[slice(1, -1)] * len(space))], dx, dkernel
    actual = jax.jit(_value_and_gradients, static_argnums=3)(x, kernel, cotangent, direct)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("space", [(4, 6), (3, 4, 2)])
def test_it_is_that_of_pytorch(space, direct):
    torch = pytest.importorskip("torch")
    x, kernel, cotangent = _drawn(space)
    kinds = {2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}
    layer = kinds[len(space)](5, 7, 3, stride=2, padding=1, output_padding=1, bias=False)
    layer.weight.data = torch.from_numpy(np.moveaxis(kernel, (-2, -1), (0, 1)).copy())
    x_torch = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()
    y = layer(x_torch)
    y.backward(torch.from_numpy(np.moveaxis(cotangent, -1, 1).copy()))
    expected = (
        np.moveaxis(y.detach().numpy(), 1, -1),
        np.moveaxis(x_torch.grad.numpy(), 1, -1),
        np.moveaxis(layer.weight.grad.numpy(), (0, 1), (-2, -1)),
    )
    actual = jax.jit(_value_and_gradients, static_argnums=3)(x, kernel, cotangent, direct)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_it_keeps_the_type_it_is_given():
    x, kernel = jnp.ones((1, 2, 2, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    for direct in (False, True):
        assert up_conv(x, kernel, direct).dtype == jnp.bfloat16
