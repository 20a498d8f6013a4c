"""The segmentation network: a U-Net from an image to its foreground and the flow towards cell centres, in 2D and 3D.

Source: Eschweiler et al., "Robust 3D cell segmentation: extending the view of Cellpose" (2022), whose published weights
it takes without change.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsynth.nn import unet
from jaxsynth.nn.blocks import LeakyStage, check_norm


class FlowNet(nn.Module):
    """Foreground and flow of an image: [B, *S, C] -> float32 [B, *S, out_channels], in (-1, 1) after tanh.

    Channels are in the published order: foreground, then the flow along every axis in the order of the axes, which the
    published program calls x, y, z though its arrays are (z, y, x), and lets point away from the centre. `out_channels`
    is 1 + D unless given.

    `features`, `norm`, `dtype`, `remat` and `direct` are as in `unet.UNet`, and so is what happens where S is no
    multiple of 8. The stages c1 and d1 have no norm, whatever `norm` says.

    Like that network it comes in three parts, grow(x, deepen(shrink(x))), for images evaluated in tiles: `margin`
    and `deep_margin` below tell what these need.

    Raises InputError for an unknown norm, odd `features`, or a shape other than that above.
    """

    features: int = 16
    out_channels: int | None = None
    norm: str = "instance"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    direct: bool = False

    def setup(self):
        check_norm(self.norm)
        unet.check_features(self.features)
        f = self.features
        stage = nn.remat(LeakyStage) if self.remat else LeakyStage
        stage = functools.partial(stage, dtype=self.dtype, direct=self.direct)
        self.c1 = stage((f // 2, f), None)
        for level, channels in enumerate(((f, 2 * f), (2 * f, 4 * f), (4 * f, 8 * f)), 2):
            setattr(self, f"c{level}", stage(channels, self.norm))
        for level, channels in enumerate((f, 2 * f, 4 * f), 1):
            setattr(self, f"d{level}", stage((channels,), None if level == 1 else self.norm, size=4, down=True))
        for level, channels in enumerate((8 * f, 4 * f, 2 * f), 1):
            setattr(self, f"u{level}", stage((channels, channels), self.norm, size=1, up=True))
            setattr(self, f"c{level + 4}", stage((channels // 2, channels // 2), self.norm))
        self.out = stage((f, f), self.norm, head=self.out_channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.raw(x))

    def raw(self, x: jax.Array) -> jax.Array:
        """The output before its tanh, for losses that need it."""
        unet.check_images(x)
        c1, c2 = self._fine(x)
        return self._head(c1, c2, self.deepen(self.d2(c2)), x.shape)

    def shrink(self, x: jax.Array) -> jax.Array:
        """The way down to a quarter of the resolution: [B, *S, C] -> [B, *S/4, 2 features], S rounded up to 8s."""
        unet.check_images(x)
        return self.d2(self._fine(x)[1])

    def deepen(self, h: jax.Array) -> jax.Array:
        """The coarse levels: what `shrink` returned -> [B, *S/4, 4 features]."""
        c3 = self.c3(h)
        return self.c5(self.u1(self.c4(self.d3(c3))), c3)

    def grow(self, x: jax.Array, deep: jax.Array) -> jax.Array:
        """The way back up: x as in `shrink` and what `deepen` returned -> float32 [B, *S, out_channels]."""
        unet.check_images(x)
        return jnp.tanh(self._head(*self._fine(x), deep, x.shape))

    def _fine(self, x):
        c1 = self.c1(unet.pad_to_multiple(x))
        return c1, self.c2(self.d1(c1))

    def _head(self, c1, c2, deep, shape):
        c6 = self.c6(self.u2(deep), c2)
        out = self.out(self.c7(self.u3(c6), c1))
        return out.astype(jnp.float32)[(slice(None), *(slice(size) for size in shape[1:-1]))]


def _transposed(low: int, high: int) -> tuple[int, int]:
    """The voxels that those from `low` to `high` see through a transposed convolution: odd ones see one ahead."""
    return low // 2, (high + 1) // 2


def receptive_field() -> int:
    """As `unet.receptive_field`, for this network."""
    return unet.receptive_field(_transposed)


def margin() -> int:
    """As `unet.margin`, for this network."""
    return unet.margin(_transposed)


def deep_margin() -> int:
    """As `unet.deep_margin`, for this network."""
    return unet.deep_margin(_transposed)


def operations(rank: int, features: int, in_channels: int = 1) -> tuple[float, float, float]:
    """Multiply-adds of `shrink`, `deepen` and the whole network per voxel, convolutions only."""
    f, cell, three = features, 2**rank, 3**rank
    shrink, bottom = unet.down_operations(rank, f, in_channels)
    deepen = bottom + 64 * f * f * (three / cell**3 + 1 / cell**2 + three / cell**2)  # u1 and c5
    head = 16 * f * f * (three / cell**2 + 1 / cell + three / cell)  # u2 and c6
    head += 4 * f * f * (three / cell + 1 + three)  # u3 and c7
    head += three * 2 * f * f + f * (1 + rank)
    return shrink, deepen, shrink + deepen + head
