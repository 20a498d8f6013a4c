"""Convolutions of size 3 by Winograd's minimal filtering along one axis: half the products of the plain sum.

Source: Winograd 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016. F(m, 3) computes m
neighbouring outputs of a filter g from m + 2 products instead of 3 m: y = INVERSE ((FILTER g) * (DATA x)). Here the
products are convolutions over the other axes, and only the first axis is treated so: along more than one, rounding
errors pass 1e-5 and the transforms take as long as they save.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax

# m -> DATA [m + 2, m + 2], FILTER [m + 2, 3], INVERSE [m, m + 2].
_MATRICES = {
    2: (
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: (
        ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
         (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
        ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
         (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}  # fmt: skip


@jax.custom_vjp
def same_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with zeros outside, as `conv.same_conv`: [B, *S, C] with [3, 3(, 3), C, F] -> [B, *S, F].

    Rounding: within 1e-5 of the largest value, value and gradients, in float32. Has no forward-mode derivative.
    """
    _, filter_, inverse = _matrices(x)
    slabs = [_slab_conv(*pair) for pair in zip(_transformed(x), _combine(filter_, list(kernel)), strict=True)]
    result = jnp.stack(_combine(inverse, slabs), axis=2)
    return result.reshape(x.shape[0], -1, *result.shape[3:])[:, : x.shape[1]]


def _forward(x, kernel):
    return same_conv(x, kernel), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    space = tuple(range(kernel.ndim - 2))
    dx = same_conv(dy, jnp.flip(kernel, space).swapaxes(-1, -2))

    # FILTER^T ((DATA x) * (INVERSE^T dy)). The transforms are computed again rather than kept, which the first barrier
    # says, and apart from what reads them in another order, where they would be slow: the second.
    _, filter_, inverse = _matrices(x)
    slabs_x = _transformed(lax.optimization_barrier(x))
    slabs_dy = _combine(zip(*inverse, strict=True), _slabs(dy, len(inverse)))
    slabs_x, slabs_dy = lax.optimization_barrier((slabs_x, slabs_dy))
    slabs = [_slab_kernel_gradient(*pair) for pair in zip(slabs_x, slabs_dy, strict=True)]
    return dx, jnp.stack(_combine(zip(*filter_, strict=True), slabs))


same_conv.defvjp(_forward, _backward)


def _matrices(x: jax.Array) -> tuple:
    return _MATRICES[4 if x.shape[1] > 2 else 2]


def _slabs(x: jax.Array, m: int, reach: int = 0) -> list[jax.Array]:
    """Every m-th plane of [B, N, ...], from plane i - reach on: arrays [B, ceil(N / m), ...], i < m + 2 reach."""
    blocks = -(-x.shape[1] // m)
    padded = jnp.pad(x, [(0, 0), (reach, blocks * m - x.shape[1] + reach), *[(0, 0)] * (x.ndim - 2)])
    return [padded[:, i : i + m * (blocks - 1) + 1 : m] for i in range(m + 2 * reach)]


def _transformed(x: jax.Array) -> list[jax.Array]:
    data, _, inverse = _matrices(x)
    return _combine(data, _slabs(x, len(inverse), 1))


def _combine(rows: Iterable, terms: list[jax.Array]) -> list[jax.Array]:
    """The product of a small constant matrix and a list of arrays, written out so that it fuses."""
    scaled = [
        [term if number == 1 else -term if number == -1 else number * term
         for number, term in zip(row, terms, strict=True) if number]
        for row in rows
    ]  # fmt: skip
    return [functools.reduce(jnp.add, row) for row in scaled]


def _slab_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution over the axes after N: [B, N, Y, X, C] with [3, 3, C, F], or [B, N, X, C] with [3, C, F]."""
    images = x.reshape(-1, *x.shape[-3:])
    kernel = kernel.reshape(-1, *kernel.shape[-3:])
    result = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NYXC", "YXIO", "NYXC"))
    return result.reshape(*x.shape[:-1], -1)


def _slab_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of `_slab_conv`'s kernel from that of its result: [3, 3, C, F] or [3, C, F].

    A convolution of the channels' images with dy as the kernel. Its array with the channels first is made by a product
    with the identity: XLA on CPU turns [V, C] voxel by voxel, three times slower.
    """
    channels = x.shape[-1]
    height = x.shape[-3] if x.ndim == 5 else 1
    dy = dy.reshape(-1, height, *dy.shape[-2:])
    turned = jnp.eye(channels, dtype=x.dtype) @ x.reshape(-1, channels).T
    images = turned.reshape(channels, *dy.shape[:-1])
    padding = (((1, 1) if x.ndim == 5 else (0, 0)), (1, 1))
    # Channels take the place of images there, and images that of channels.
    gradient = lax.conv_general_dilated(images, dy, (1, 1), padding, dimension_numbers=("NCYX", "IYXO", "NYXC"))
    return jnp.moveaxis(gradient, 0, -2).reshape(*(3,) * (x.ndim - 3), channels, -1)
