"""The denoiser: a U-Net with three halvings, for 2D and 3D alike.

Source: Eschweiler et al., "Denoising diffusion probabilistic models for generation of realistic
fully-annotated microscopy image datasets" (2024), whose published weights it takes without change.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsynth.errors import InputError
from jaxsynth.nn.blocks import ConvStage, TimeStage, UpStage, check_norm

MULTIPLE = 8  # three halvings
FACTOR = 4  # voxels per coarse voxel: `deepen` works after two halvings


class UNet(nn.Module):
    """Predicts the noise in `x`: [B, *S, C] and the step t: int32 [B] -> float32 [B, *S, out_channels].

    `features` is the width of the first level, 8 times less than at the bottom. `norm`: see `Norm`;
    `instance` is the published network, `group` makes the output independent of tiling. `dtype=jnp.bfloat16`
    computes in bfloat16; parameters, norms and the output stay float32. `remat` keeps the activations between
    stages only and computes the rest again on the way back. `direct` takes the plain form of convolutions on every
    backend, for images that devices share: see `conv.same_conv`.

    S may be anything: an axis that is not a multiple of 8 is extended on its far side by reflection and the
    output cropped. On multiples of 8 the network is exactly the published one.

    It comes in three parts, grow(x, deepen(shrink(x, t), t), t), for volumes evaluated in tiles: the coarse levels
    hold most of the receptive field but few of the voxels, so `deepen` can have the whole volume while `shrink` and
    `grow` have tiles of it. `grow` computes the fine levels of `shrink` again, which is cheaper than keeping them.

    Raises InputError for an unknown norm, odd `features`, or shapes other than those above.
    """

    features: int = 16
    out_channels: int = 1
    norm: str = "instance"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    direct: bool = False

    def setup(self):
        check_norm(self.norm)
        check_features(self.features)
        f = self.features
        conv_stage = functools.partial(nn.remat(ConvStage) if self.remat else ConvStage, direct=self.direct)
        up_stage = nn.remat(UpStage) if self.remat else UpStage
        blocks = [(f // 2, f), (f, 2 * f), (2 * f, 4 * f), (4 * f, 8 * f), (8 * f, 8 * f), (8 * f, 8 * f), (f, f)]
        for level, channels in enumerate(blocks, 1):
            setattr(self, f"c{level}", conv_stage(channels, self.norm, dtype=self.dtype))
            setattr(self, f"t{level}", TimeStage(channels[-1]))
        for level, channels in enumerate((f, 2 * f, 4 * f), 1):
            setattr(self, f"d{level}", conv_stage((channels,), self.norm, 4, True, dtype=self.dtype))
            setattr(self, f"u{level}", up_stage(8 * f, self.norm, self.dtype))
        self.out = conv_stage((f, f), self.norm, head=self.out_channels, dtype=self.dtype)

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        _check_inputs(x, t)
        c1, c2 = self._fine(pad_to_multiple(x), t)
        return self._head(c1, c2, self.deepen(self.d2(c2), t), t, x.shape)

    def shrink(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """The way down to a quarter of the resolution: [B, *S, C] -> [B, *S/4, 2 features], S rounded up to 8s."""
        _check_inputs(x, t)
        return self.d2(self._fine(pad_to_multiple(x), t)[1])

    def deepen(self, h: jax.Array, t: jax.Array) -> jax.Array:
        """The coarse levels: what `shrink` returned -> [B, *S/4, 8 features]."""
        c3 = self._block(3, t, h)
        return self._block(5, t, self.u1(self._block(4, t, self.d3(c3))), c3)

    def grow(self, x: jax.Array, deep: jax.Array, t: jax.Array) -> jax.Array:
        """The way back up: x as in `shrink` and what `deepen` returned -> float32 [B, *S, out_channels]."""
        _check_inputs(x, t)
        return self._head(*self._fine(pad_to_multiple(x), t), deep, t, x.shape)

    def _fine(self, x, t):
        c1 = self._block(1, t, x)
        return c1, self._block(2, t, self.d1(c1))

    def _head(self, c1, c2, deep, t, shape):
        c6 = self._block(6, t, self.u2(deep), c2)
        out = self.out(self._block(7, t, self.u3(c6), c1))
        return out.astype(jnp.float32)[(slice(None), *(slice(size) for size in shape[1:-1]))]

    def _block(self, level: int, t, *inputs):
        time = getattr(self, f"t{level}")(t).astype(self.dtype)
        return getattr(self, f"c{level}")(*inputs) + jnp.expand_dims(time, tuple(range(1, inputs[0].ndim - 1)))


def check_images(x: jax.Array) -> None:
    """Raise InputError unless `x` has the axes of a batch of images with channels, 2D or 3D."""
    if x.ndim not in (4, 5):
        raise InputError(f"x: expected [B, Y, X, C] or [B, Z, Y, X, C], got shape {x.shape}")


def check_features(features: int) -> None:
    """Raise InputError unless `features` can be halved."""
    if features < 2 or features % 2:
        raise InputError(f"features: expected an even number of 2 or more, got {features}")


def _check_inputs(x: jax.Array, t: jax.Array) -> None:
    check_images(x)
    if t.shape != x.shape[:1]:
        raise InputError(f"t: expected one step per image, shape {x.shape[:1]}, got shape {t.shape}")


def pad_to_multiple(x: jax.Array) -> jax.Array:
    """Extend space axes to multiples of 8 on the far side by reflection, which keeps the grain of noise."""
    extra = [-size % MULTIPLE for size in x.shape[1:-1]]
    if not any(extra):
        return x
    return jnp.pad(x, [(0, 0), *((0, size) for size in extra), (0, 0)], mode="reflect")


# What an interval of a stage's output sees of its input, along one axis: blocks are two convolutions of size 3,
# halvings one of size 4 with stride 2. How the resolution is doubled is what networks of this shape differ in: `up`.
Window = Callable[[int, int], tuple[int, int]]


def _block(low: int, high: int) -> tuple[int, int]:
    return low - 2, high + 2


def _down(low: int, high: int) -> tuple[int, int]:
    return 2 * low - 1, 2 * high + 2


def shuffled(low: int, high: int) -> tuple[int, int]:
    """The voxels that those from `low` to `high` see through a pixel shuffle."""
    return low // 2, high // 2


# From the output to the input; where paths join, the one that reaches farthest.
_FINE = (_block, _down, _block)  # c2, d1, c1
_SHRINK = (_down, *_FINE)


def _deepen(up: Window) -> Sequence[Window]:
    return (_block, up, _block, _down, _block)  # c5, u1, c4, d3, c3


def _head(up: Window) -> Sequence[Window]:
    return (_block, _block, up, _block)  # out, c7, u3, c6


def _input_window(layers: Sequence[Window], p: int) -> tuple[int, int]:
    """First and last input voxel along one axis that output voxel `p` sees, far from the border."""
    window = p, p
    for layer in layers:
        window = layer(*window)
    return window


def receptive_field(up: Window = shuffled) -> int:
    """Radius in voxels, per axis: an output voxel sees input voxels at most this far away.

    Holds for `group` and `none`; with `instance` every voxel sees the whole image. Where a voxel lies on the
    grid of the halvings shifts its window; this is the largest reach over all places and both sides.
    """
    layers = (*_head(up), up, *_deepen(up), *_SHRINK)
    windows = [(p, *_input_window(layers, p)) for p in range(MULTIPLE)]
    return max(max(p - low, high - p) for p, low, high in windows)


def margin(up: Window = shuffled) -> int:
    """Voxels at an inner end of a tile in which `shrink` or `grow`, given the tile alone, differ from the whole.

    A multiple of 8. Holds for `group` and `none`, for tiles that begin and end on multiples of 8, and a `deep` that is
    exact all over the tile.
    """
    # The way through `deep` is short, but where `up` looks ahead it passes the tile's end.
    grown = max(_spoilt((*_head(up), *_FINE)), _spoilt((*_head(up), up)))
    spoilt = max(FACTOR * _spoilt(_SHRINK), grown)
    return -(-spoilt // MULTIPLE) * MULTIPLE


def deep_margin(up: Window = shuffled) -> int:
    """The same for `deepen`, in coarse voxels, for tiles that begin and end on multiples of 2 of these."""
    return -(-_spoilt(_deepen(up)) // 2) * 2


def _spoilt(layers: Sequence[Window]) -> int:
    """Output voxels at an end of a tile that see beyond it; the worse of the two ends."""
    far = 8 * MULTIPLE
    before = [p + 1 for p in range(far) if _input_window(layers, p)[0] < 0]
    beyond = [-p for p in range(-far, 0) if _input_window(layers, p)[1] >= 0]
    return max(before + beyond)


def operations(rank: int, features: int, in_channels: int = 1, out_channels: int = 1) -> tuple[float, float, float]:
    """Multiply-adds of `shrink`, `deepen` and the whole network per voxel, convolutions only."""
    f, cell = features, 2**rank
    three, up = 3**rank, 8 * f / cell  # taps of a convolution, channels after a shuffle
    shrink, bottom = down_operations(rank, f, in_channels)
    deepen = bottom + three * (up + 12 * f) * 8 * f / cell**2 + 64 * f * f / cell**3
    head = 64 * f * f / cell**2 + (three * (up + 10 * f) * 8 * f + 64 * f * f) / cell
    head += three * (up + 4 * f) * f + f * out_channels
    return shrink, deepen, shrink + deepen + head


def down_operations(rank: int, features: int, in_channels: int) -> tuple[float, float]:
    """The same of `shrink` and of what follows until the bottom: c3, d3, c4."""
    f, cell = features, 2**rank
    three, four = 3**rank, 4**rank
    fine = three * (in_channels * f / 2 + f * f / 2) + (four * f * f + three * 3 * f * f) / cell
    shrink = fine + four * 4 * f * f / cell**2
    return shrink, three * 12 * f * f / cell**2 + (four * 16 + three * 48) * f * f / cell**3
