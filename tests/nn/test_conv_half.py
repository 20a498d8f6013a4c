"""The convolution of size 3 that halves: XLA's own, in every form that it takes."""

import jax
import numpy as np
import pytest
from jax import lax

from jaxsynth.nn.conv import half_conv


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("space", [(6, 8), (5, 4), (1, 7), (4, 6, 2), (3, 5, 1)])
def test_it_is_the_strided_convolution(space, direct):
    """Its value and both its gradients; odd sizes end in half a cell."""
    rng = np.random.default_rng(0)
    axes = "ZYX"[-len(space) :]
    out = (2, *(-(-n // 2) for n in space), 7)
    x, kernel, cotangent = (rng.standard_normal(shape).astype(np.float32)
                            for shape in ((2, *space, 5), (*(3,) * len(space), 5, 7), out))  # fmt: skip

    def plain(x, kernel):
        numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
        stride, padding = (2,) * len(space), [(1, 1)] * len(space)
        return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=numbers)

    def all_of(convolve, x, kernel, cotangent):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, *pull(cotangent)

    expected, actual = (
        jax.jit(lambda *arrays, convolve=convolve: all_of(convolve, *arrays))(x, kernel, cotangent)
        for convolve in (plain, lambda x, kernel: half_conv(x, kernel, direct))
    )
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
