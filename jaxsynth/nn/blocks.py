"""The parts the networks are made of, rank-free: arrays are [B, *S, C] with any number of space axes.

Parameters are float32. `dtype` is the type of the computation, except in the norms, which are float32.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsynth.errors import InputError
from jaxsynth.nn.conv import down_conv, half_conv, on_cpu, pixel_shuffle, same_conv, up_conv

NORMS = ("instance", "group", "none")
EPSILON = 1e-5  # under the root of every norm, as in PyTorch
GROUP_CHANNELS = 16  # channels per group of the group norm
LEAK = 0.2  # slope of LeakyReLU below 0

he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
small_normal = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


def alike(rank: int) -> nn.initializers.Initializer:
    """Weights before a pixel shuffle, at first the same for all 2**rank voxels made of one (Aitken et al. 2017)."""

    def init(key, shape, dtype=jnp.float32):
        *taps, channels = shape
        return jnp.repeat(he_normal(key, (*taps, channels // 2**rank), dtype), 2**rank, axis=-1)

    return init


def time_embedding(t: jax.Array, size: int = 128) -> jax.Array:
    """Sinusoidal embedding of the integer step: int [B] -> float32 [B, size], in [-1, 1].

    `size / 2` frequencies exp(-i ln(10000) / (size / 2 - 1)); sines, then cosines (Vaswani et al. 2017).
    """
    half = size // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / (half - 1)))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Conv(nn.Module):
    """Convolution with bias, [B, *S, C_in] -> [B, *S, C_out]; `down` halves S with size 4 or 3 and stride 2.

    Given several arrays it convolves their concatenation along the channels. `direct`: see `conv.same_conv`.
    """

    channels: int
    size: int = 3
    down: bool = False
    dtype: jnp.dtype = jnp.float32
    direct: bool = False
    kernel_init: nn.initializers.Initializer = he_normal

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
        rank = x.ndim - 2
        shape = (self.size,) * rank + (x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), jnp.float32)
        convolve = {3: half_conv, 4: down_conv}[self.size] if self.down else same_conv
        return convolve(x.astype(self.dtype), kernel, self.direct) + bias.astype(self.dtype)


class TransposedConv(nn.Module):
    """Transposed convolution of size 3 with bias, see `conv.up_conv`: [B, *S, C_in] -> [B, *2S, C_out]."""

    channels: int
    dtype: jnp.dtype = jnp.float32
    direct: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rank = x.ndim - 2
        # Of 3**D taps, an output voxel has (3 / 2)**D on average.
        init = nn.initializers.variance_scaling(2.0 * 2**rank, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (*(3,) * rank, x.shape[-1], self.channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), jnp.float32)
        return up_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.direct) + bias.astype(self.dtype)


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0) with one learnt slope per channel, 0.25 at first as in PyTorch."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


def leaky(x: jax.Array) -> jax.Array:
    """LeakyReLU: x above 0, LEAK x below."""
    return jnp.where(x > 0, x, LEAK * x)


class Norm(nn.Module):
    """Normalisation to mean 0 and variance 1, in float32.

    - `instance`: over space, per image and channel, without parameters: the published networks' norm. Every
      voxel of a tile depends on the whole tile.
    - `group`: at every voxel alone over groups of 16 channels (all channels where there are fewer), then
      scale and bias per channel. Unlike the usual group norm it does not pool over space, so that a voxel
      depends on its receptive field only and tiles agree with the whole.
    - `none`: the identity.
    """

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "none":
            return x
        values = x.astype(jnp.float32)
        if self.kind == "instance":
            return _standardise_over_space(values).astype(x.dtype)
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        groups = math.gcd(channels, max(1, channels // GROUP_CHANNELS))
        values = _standardise_last(values.reshape(*x.shape[:-1], groups, -1)).reshape(x.shape)
        return (values * scale + bias).astype(x.dtype)


def _standardise_over_space(x: jax.Array) -> jax.Array:
    """Mean 0 and (biased) variance 1 over the space axes."""
    axes = tuple(range(1, x.ndim - 1))
    centred = x - x.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPSILON)


@jax.custom_vjp
def _standardise_last(x: jax.Array) -> jax.Array:
    """Mean 0 and (biased) variance 1 over the last axis.

    The gradient is written out because the derived one takes twice the time: with y the output and s the standard
    deviation, dx = (dy - mean(dy) - y mean(y dy)) / s.
    """
    return _standardise_forward(x)[0]


def _standardise_forward(x):
    centred = x - _mean_last(x)
    inverse = jax.lax.rsqrt(_mean_last(jnp.square(centred)) + EPSILON)
    y = centred * inverse
    return y, (y, inverse)


def _standardise_backward(saved, dy):
    y, inverse = saved
    return ((dy - _mean_last(dy) - y * _mean_last(dy * y)) * inverse,)


_standardise_last.defvjp(_standardise_forward, _standardise_backward)


def _mean_last(x: jax.Array) -> jax.Array:
    if on_cpu():  # XLA on CPU is slow to reduce the short last axis, and fast to multiply by a matrix
        return x @ jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)
    return x.mean(-1, keepdims=True)


class ConvStage(nn.Module):
    """Convolutions of one size, each followed by PReLU and norm: [B, *S, C_in] -> [B, *S, channels[-1]].

    `down` halves S (size 4, stride 2). Parameters carry the index that the layer has in the published
    checkpoints: conv_0, prelu_1, norm_2, conv_3, ... With `head` a last convolution of size 1 to that many
    channels follows, small at first: an untrained net then predicts nearly nothing.
    """

    channels: Sequence[int]
    norm: str
    size: int = 3
    down: bool = False
    head: int = 0
    dtype: jnp.dtype = jnp.float32
    direct: bool = False

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        for layer, channels in enumerate(self.channels):
            x = Conv(channels, self.size, self.down, self.dtype, self.direct, name=f"conv_{3 * layer}")(*inputs)
            x = PReLU(name=f"prelu_{3 * layer + 1}")(x)
            x = Norm(self.norm, name=f"norm_{3 * layer + 2}")(x)
            inputs = (x,)
        if self.head:
            last = 3 * len(self.channels)
            x = Conv(self.head, 1, False, self.dtype, kernel_init=small_normal, name=f"conv_{last}")(x)
        return x


class UpStage(nn.Module):
    """Convolution of size 1, PReLU, norm, pixel shuffle: [B, *S, C_in] -> [B, *2S, channels / 2**D]."""

    channels: int
    norm: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Conv(self.channels, 1, False, self.dtype, name="conv_0")(x)
        x = PReLU(name="prelu_1")(x)
        return pixel_shuffle(Norm(self.norm, name="norm_2")(x))


class LeakyStage(nn.Module):
    """Convolutions, each followed by norm and LeakyReLU: [B, *S, C_in] -> [B, *S, channels[-1]].

    `size`, `down`, `head` and the indices in the parameters' names are as in `ConvStage`. With `up` a transposed
    convolution, which doubles S, takes the first one's place. A `norm` of None is no norm, also in the counting of
    layers; one of "none" keeps its number. A `head` of None is one of 1 + D channels: a scalar and a vector.
    """

    channels: Sequence[int]
    norm: str | None
    size: int = 3
    down: bool = False
    up: bool = False
    head: int | None = 0
    dtype: jnp.dtype = jnp.float32
    direct: bool = False

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        each = 2 if self.norm is None else 3
        for layer, channels in enumerate(self.channels):
            index = each * layer
            if self.up and layer == 0:
                x = TransposedConv(channels, self.dtype, self.direct, name=f"transposed_{index}")(*inputs)
            else:
                x = Conv(channels, self.size, self.down, self.dtype, self.direct, name=f"conv_{index}")(*inputs)
            if self.norm is not None:
                x = Norm(self.norm, name=f"norm_{index + 1}")(x)
            x = leaky(x)
            inputs = (x,)
        head = x.ndim - 1 if self.head is None else self.head
        if head:
            last = each * len(self.channels)
            x = Conv(head, 1, False, self.dtype, kernel_init=small_normal, name=f"conv_{last}")(x)
        return x


class LeakyUpStage(nn.Module):
    """Convolution of size 1, norm, LeakyReLU, pixel shuffle, then norm and LeakyReLU again.

    [B, *S, C_in] -> [B, *2S, channels / 2**D]. Names are as in `ConvStage`.

    With `smooth` what the shuffle makes is weighted with 1/4, 1/2, 1/4 along every axis, so that nothing in it
    alternates from voxel to voxel, and the voxels made of one begin alike: at first it interpolates. Not with the norm
    `group`, whose groups are of neighbouring channels: of few different values it would leave their order alone.
    """

    channels: int
    norm: str
    smooth: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = alike(x.ndim - 2) if self.smooth and self.norm != "group" else he_normal
        x = Conv(self.channels, 1, False, self.dtype, kernel_init=init, name="conv_0")(x)
        x = pixel_shuffle(leaky(Norm(self.norm, name="norm_1")(x)))
        for axis in range(1, x.ndim - 1) if self.smooth else ():
            x = _smoothed(x, axis)
        return leaky(Norm(self.norm, name="norm_4")(x))


class TimeStage(nn.Module):
    """Step to channel offsets: time embedding, linear, PReLU, linear. int [B] -> float32 [B, channels]."""

    channels: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        x = nn.Dense(self.channels, name="linear_1")(time_embedding(t))
        x = PReLU(name="prelu_2")(x)
        return nn.Dense(self.channels, name="linear_3")(x)


def _smoothed(x: jax.Array, axis: int) -> jax.Array:
    """Weighted with 1/4, 1/2, 1/4 along an axis, at its ends as if they went on."""
    ends = [(0, 0)] * x.ndim
    ends[axis] = (1, 1)
    before, here, after = (jax.lax.slice_in_dim(jnp.pad(x, ends, mode="edge"), i, i + x.shape[axis], axis=axis)
                           for i in range(3))  # fmt: skip
    return (before + after) / 4 + here / 2


def check_norm(norm: str) -> None:
    """Raise InputError unless `norm` is one of NORMS."""
    if norm not in NORMS:
        raise InputError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
