"""Convolutions of the kinds the networks need, for any number of space axes.

`x` is [B, *S, C_in], `kernel` is [*(k,) * D, C_in, C_out], whatever form the computation takes.

The forms are chosen by time, see docs/performance.md. XLA's stride-2 convolutions have slow gradients in 3D, so halving
is written as a stride-1 convolution of size 2 on 2 x 2 (x 2) cells. On CPU, where 3D convolutions are several times
slower than 2D ones and arithmetic is what takes the time, size 3 goes to Winograd's algorithm on 2D slabs, or, where
that does not pay, to a 2D convolution of planes. Doubling, which as a transposed convolution is slower still, is one of
size 2 too.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsynth.nn import winograd

LEAST_OPERATIONS = 1e8  # a millisecond: below, compiling Winograd's many parts takes longer than they ever save


def same_conv(x: jax.Array, kernel: jax.Array, direct: bool = False) -> jax.Array:
    """Stride-1 convolution with zeros outside: [B, *S, C_in] -> [B, *S, C_out], odd kernel sizes.

    `direct` takes the plain form on every backend, which the compiler can split over devices along a space axis.
    """
    if kernel.shape[0] == 1:
        return x @ kernel.reshape(kernel.shape[-2:])
    if direct or not on_cpu():
        return _convolve(x, kernel, "SAME")
    operations = 2 * x.size * math.prod(kernel.shape[:-2]) * kernel.shape[-1]
    if kernel.shape[0] == 3 and operations >= LEAST_OPERATIONS:
        # In float32 whatever comes: a CPU computes nothing faster in less, and Winograd's sums need the digits.
        return winograd.same_conv(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)
    return _plane_by_plane(x, kernel) if x.ndim == 5 else _convolve(x, kernel, "SAME")


def down_conv(x: jax.Array, kernel: jax.Array, direct: bool = False) -> jax.Array:
    """Convolution of size 4, stride 2, one zero outside: [B, *S, C_in] -> [B, *S/2, C_out], S even. `direct` as in
    `same_conv`."""
    rank = x.ndim - 2
    padded = jnp.pad(x, [(0, 0), *[(1, 1)] * rank, (0, 0)])
    # Voxel 2 i + j of an axis is place j of cell i, in the image and in the kernel alike.
    cells, kernel = _cells(padded, 1), _cells(kernel, 0)
    return _sum_over_shifts(cells, kernel) if on_cpu() and not direct else _convolve(cells, kernel, "VALID")


def half_conv(x: jax.Array, kernel: jax.Array, direct: bool = False) -> jax.Array:
    """Convolution of size 3, stride 2, one zero outside: [B, *S, C_in] -> [B, *ceil(S/2), C_out]. `direct` as in
    `same_conv`.

    It is `down_conv` with a last tap of zero, for the sake of the gradients: what it adds in products is little beside
    a stride-2 convolution's slow gradient in 3D. On a CPU, where products are what takes the time, it goes without.
    """
    rank = x.ndim - 2
    x = jnp.pad(x, [(0, 0), *((0, size % 2) for size in x.shape[1:-1]), (0, 0)])
    if on_cpu() and not direct:
        return _shift_by_shift(jnp.pad(x, [(0, 0), *[(1, 1)] * rank, (0, 0)]), kernel)
    return down_conv(x, jnp.pad(kernel, [*[(0, 1)] * rank, (0, 0), (0, 0)]), direct)


def up_conv(x: jax.Array, kernel: jax.Array, direct: bool = False) -> jax.Array:
    """Transposed convolution of size 3, stride 2, with zeros outside: [B, *S, C_in] -> [B, *2S, C_out].

    Along an axis y[2 i] = k[1] x[i] and y[2 i + 1] = k[2] x[i] + k[0] x[i + 1]: PyTorch's with padding and output
    padding 1, and its order of taps. `direct` as in `same_conv`.
    """
    rank = x.ndim - 2
    if on_cpu() and not direct:
        return _place_by_place(x, kernel)
    for axis in range(rank):
        first, middle, last = (lax.index_in_dim(kernel, tap, 2 * axis, keepdims=False) for tap in range(3))
        even, odd = jnp.stack([middle, jnp.zeros_like(middle)], 2 * axis), jnp.stack([last, first], 2 * axis)
        kernel = jnp.stack([even, odd], 2 * axis + 1)
    # Now [2, 2, 2, 2(, 2, 2), C_in, C_out], in turns the taps of an axis and the places that they are for, which go to
    # the channels.
    order = (*range(0, 2 * rank, 2), 2 * rank, 2 * rank + 1, *range(1, 2 * rank, 2))
    kernel = kernel.transpose(order).reshape(*(2,) * rank, x.shape[-1], -1)
    return pixel_shuffle(_convolve(x, kernel, [(0, 1)] * rank))


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """Trade channels for resolution: [B, *S, C * 2**D] -> [B, *2S, C].

    Input channel c * 2**D + i, i = (dz, dy, dx) in binary, becomes channel c at 2 z + dz, 2 y + dy, 2 x + dx.
    """
    rank = x.ndim - 2
    space = x.shape[1:-1]
    x = x.reshape(x.shape[0], *space, -1, *(2,) * rank)
    order = [0]
    for axis in range(rank):
        order += [1 + axis, 2 + rank + axis]
    x = x.transpose(*order, 1 + rank)
    return x.reshape(x.shape[0], *(2 * size for size in space), x.shape[-1])


def on_cpu() -> bool:
    """Whether to choose the forms that are fast on CPU."""
    return jax.default_backend() == "cpu"


def _convolve(x: jax.Array, kernel: jax.Array, padding: str | list) -> jax.Array:
    space = "ZYX"[-(x.ndim - 2) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(x, kernel, (1,) * len(space), padding, dimension_numbers=numbers)


def _plane_by_plane(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3D convolution with zeros outside as a 2D one of every plane, with those about it as its channels."""
    size, depth = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, [(0, 0), (size // 2, size // 2), *[(0, 0)] * 3])
    about = jnp.concatenate([padded[:, i : i + depth] for i in range(size)], -1)
    taps = jnp.moveaxis(kernel, 0, 2).reshape(size, size, -1, kernel.shape[-1])
    return _convolve(about.reshape(-1, *about.shape[2:]), taps, "SAME").reshape(*x.shape[:-1], -1)


def _sum_over_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of size 2 without padding as one product with all its taps at once, whose results are then shifted
    and added."""
    rank = x.ndim - 2
    features = kernel.shape[-1]
    space = [size - 1 for size in x.shape[1:-1]]
    taps = jnp.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1)
    products = jnp.matmul(x, taps, preferred_element_type=jnp.float32)
    total = 0.0
    for tap, corner in enumerate(itertools.product((0, 1), repeat=rank)):
        window = [slice(None), *(slice(i, i + size) for i, size in zip(corner, space, strict=True))]
        total = total + products[(*window, slice(tap * features, (tap + 1) * features))]
    return total.astype(x.dtype)


def _shift_by_shift(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of size 3 and stride 2 without padding as a product for each shift of the cells, of the places for
    which it has taps: of an axis both of a cell, the first of the next."""
    rank = x.ndim - 2
    cells = _cells(x, 1)
    space = [size - 1 for size in cells.shape[1:-1]]
    cells = cells.reshape(*cells.shape[:-1], *(2,) * rank, -1)
    total = 0.0
    for corner in itertools.product((0, 1), repeat=rank):
        window = [slice(None), *(slice(i, i + size) for i, size in zip(corner, space, strict=True))]
        part = cells[(*window, *(slice(2 - i) for i in corner))]
        taps = kernel[tuple(slice(2 * i, 2 + i) for i in corner)]
        part, taps = part.reshape(*part.shape[: rank + 1], -1), taps.reshape(-1, taps.shape[-1])
        total = total + jnp.matmul(part, taps, preferred_element_type=jnp.float32)
    return total.astype(x.dtype)


def _place_by_place(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`up_conv` as a convolution for each place of an output cell, of the taps that it has.

    In 3D they are 2D ones: the planes that an odd plane is made of are put side by side as channels.
    """
    if x.ndim == 5:
        ahead = jnp.pad(x[:, 1:], [(0, 0), (0, 1), *[(0, 0)] * 3])
        odd = _each_plane(jnp.concatenate([x, ahead], -1), jnp.concatenate([kernel[2], kernel[0]], -2))
        return _interleave(_each_plane(x, kernel[1]), odd, 1)
    rows = []
    for along_y in (kernel[1:2], kernel[2::-2]):
        even, odd = (
            _convolve(x, taps, [(0, n - 1) for n in taps.shape[:2]]) for taps in (along_y[:, 1:2], along_y[:, 2::-2])
        )
        rows.append(_interleave(even, odd, 2))
    return _interleave(*rows, 1)


def _each_plane(x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = _place_by_place(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    both = jnp.stack([even, odd], axis + 1)
    return both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])


def _cells(x: jax.Array, first: int) -> jax.Array:
    """Halve the space axes from `first`, moving the two places of each to the channels: the next axis after them.

    [B, *2S, C] -> [B, *S, 2**D * C] for an image (first = 1), [*(4,) * D, C, F] -> [*(2,) * D, 2**D * C, F] for a
    kernel (first = 0).
    """
    end = x.ndim - 1 if first else x.ndim - 2
    rank = end - first
    halves = [size // 2 for size in x.shape[first:end]]
    x = x.reshape(*x.shape[:first], *(n for half in halves for n in (half, 2)), *x.shape[end:])
    cells, places = range(first, first + 2 * rank, 2), range(first + 1, first + 2 * rank, 2)
    x = x.transpose(*range(first), *cells, *places, *range(first + 2 * rank, x.ndim))
    return x.reshape(*x.shape[:first], *halves, -1, *x.shape[first + 2 * rank + 1 :])
