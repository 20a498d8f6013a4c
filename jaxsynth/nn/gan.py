"""The two networks of the conditional GAN: a generator of images from masks, and a critic of images, in 2D and 3D.

Source: Eschweiler et al., "3D fluorescence microscopy data synthesis for segmentation and benchmarking" (2021), paper
003, whose published weights they take without change.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsynth.errors import InputError
from jaxsynth.nn import unet
from jaxsynth.nn.blocks import Conv, LeakyUpStage, Norm, check_norm, leaky
from jaxsynth.nn.leaky_unet import LeakyUNet

DARKEST = 0.01  # grey value that a residual generator takes for 0, whose logit would be infinite; 1 likewise
CRITIC_HALVINGS = 4  # the critic's map has a value for every 16 voxels of an axis


class Generator(LeakyUNet):
    """Image from a mask: [B, *S, 2] -> float32 [B, *S, 1], in (0, 1) after a sigmoid.

    The input's channels are the mask, 0 or 1, and the position map in [-1, 1] (paper 003, eq. 1).

    Attributes, three parts and errors are those of `leaky_unet.LeakyUNet`. Resolution is doubled by pixel shuffles, as
    in `unet.UNet`, whose sizes it has: `deepen` returns 8 features.

    With `residual` a linear function of every voxel's inputs alone, of the first channel its logit, is added before the
    sigmoid. It is learnt, too, and begins as that logit: an untrained network returns masks at grey values as they are.
    With `smooth` doublings are, see `LeakyUpStage`; what is fine then comes past them, from the input.

    The published network has neither.
    """

    out_channels: int = 1
    residual: bool = False
    smooth: bool = False

    def add_decoder(self, stage):
        f = self.features
        up_stage = self.stage_of(LeakyUpStage, smooth=self.smooth)
        for level, channels in enumerate((8 * f, 8 * f, f), 1):
            setattr(self, f"u{level}", up_stage(8 * f, self.norm))
            setattr(self, f"c{level + 4}", stage((channels, channels), self.norm))

        if self.residual:
            self.shortcut = nn.Dense(self.out_channels, kernel_init=_shortcut)

    def activation(self, raw, x):
        if self.residual:
            grey = jnp.clip(x[..., :1], DARKEST, 1 - DARKEST)
            raw += self.shortcut(jnp.concatenate([jnp.log(grey / (1 - grey)), x[..., 1:]], -1))
        return nn.sigmoid(raw)


def _shortcut(key, shape, dtype):
    return jnp.zeros(shape, dtype).at[0, 0].set(1)


class Critic(nn.Module):
    """How real an image looks, place by place: [B, *S, 2] -> float32 logits [B, *S/16, 1], above 0 for real ones.

    The input's channels are the image in [0, 1] and the position map in [-1, 1]. The published network ends in a
    sigmoid; here that is the loss's, which is exact on logits only.

    Six convolutions of size 3 with one zero outside, of which the first four halve S, rounding up: S/16 is
    ceil(S / 16). A logit at p sees the voxels from 16 p - 47 to 16 p + 47 of an axis, with `instance` the whole image.

    Attributes:
      features: channels of the first convolution; then 2, 4, 8 and 8 times as many.
      norm: of convolutions 2 to 5, see `Norm`; `instance` is the published one.
      dtype: of the computation; parameters, norms and the output are float32.
      direct: see `conv.same_conv`.

    Raises InputError for an unknown norm, no features, a shape other than that above, or, with an instance norm,
    images of at most 16 voxels on every axis: a map of one place has no variance, so that the norm leaves 0 of it.
    """

    features: int = 64
    norm: str = "instance"
    dtype: jnp.dtype = jnp.float32
    direct: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        check_norm(self.norm)
        unet.check_images(x)
        if self.features < 1:
            raise InputError(f"features: expected 1 or more, got {self.features}")
        if self.norm == "instance" and max(x.shape[1:-1]) <= 2**CRITIC_HALVINGS:
            raise InputError(
                f"x: the critic's instance norm needs more than {2**CRITIC_HALVINGS} voxels along some axis, "
                f"got shape {x.shape}"
            )
        *channels, last = _critic_channels(self.features)
        for layer, width in enumerate(channels, 1):
            x = Conv(width, 3, layer <= CRITIC_HALVINGS, self.dtype, self.direct, name=f"conv{layer}")(x)
            if layer > 1:
                x = Norm(self.norm, name=f"norm{layer}")(x)
            x = leaky(x)
        return Conv(last, 3, False, self.dtype, self.direct, name="conv6")(x).astype(jnp.float32)


def _critic_channels(features: int) -> tuple[int, ...]:
    return (*(factor * features for factor in (1, 2, 4, 8, 8)), 1)


def _up(smooth: bool) -> unet.Window:
    """What voxels see through a doubling, see `LeakyUpStage`."""
    return (lambda low, high: unet.shuffled(low - 1, high + 1)) if smooth else unet.shuffled


def receptive_field(smooth: bool = False) -> int:
    """As `unet.receptive_field`, for the generator."""
    return unet.receptive_field(_up(smooth))


def margin(smooth: bool = False) -> int:
    """As `unet.margin`, for the generator."""
    return unet.margin(_up(smooth))


def deep_margin(smooth: bool = False) -> int:
    """As `unet.deep_margin`, for the generator."""
    return unet.deep_margin(_up(smooth))


def operations(rank: int, features: int, in_channels: int = 2) -> tuple[float, float, float]:
    """Multiply-adds of the generator's `shrink`, `deepen` and the whole per voxel, convolutions only."""
    return unet.operations(rank, features, in_channels)


def critic_operations(rank: int, features: int, in_channels: int = 2) -> float:
    """The same of the critic, per voxel of the image."""
    total = 0.0
    for layer, channels in enumerate(_critic_channels(features), 1):
        total += 3**rank * in_channels * channels / 2 ** (rank * min(layer, CRITIC_HALVINGS))
        in_channels = channels
    return total
