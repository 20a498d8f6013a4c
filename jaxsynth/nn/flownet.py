"""The segmentation network: a U-Net from an image to its foreground and the flow towards cell centres, in 2D and 3D.

Source: Eschweiler et al., "Robust 3D cell segmentation: extending the view of Cellpose" (2022), whose published weights
it takes without change.
"""

import jax.numpy as jnp

from jaxsynth.nn import unet
from jaxsynth.nn.leaky_unet import LeakyUNet


class FlowNet(LeakyUNet):
    """Foreground and flow of an image: [B, *S, C] -> float32 [B, *S, out_channels], in (-1, 1) after tanh.

    Channels are in the published order: foreground, then the flow along every axis in the order of the axes, which the
    published program calls x, y, z though its arrays are (z, y, x), and lets point away from the centre. `out_channels`
    is 1 + D unless given.

    Other attributes, three parts and errors are those of `leaky_unet.LeakyUNet`. Resolution is doubled by transposed
    convolutions; `deepen` returns 4 features.
    """

    def add_decoder(self, stage):
        f = self.features
        for level, channels in enumerate((8 * f, 4 * f, 2 * f), 1):
            setattr(self, f"u{level}", stage((channels, channels), self.norm, size=1, up=True))
            setattr(self, f"c{level + 4}", stage((channels // 2, channels // 2), self.norm))

    def activation(self, raw, x):
        return jnp.tanh(raw)


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
