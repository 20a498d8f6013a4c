"""What the segmentation network and the GAN's generator have in common: the way down, and the three parts.

Source: Eschweiler et al. 2022 ("Robust 3D cell segmentation") and paper 003, whose networks differ in how they double
the resolution, in the widths of the way up, and in the function that ends them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsynth.nn import unet
from jaxsynth.nn.blocks import LeakyStage, check_norm


class LeakyUNet(nn.Module):
    """A U-Net with three halvings, of `LeakyStage`s: [B, *S, C] -> float32 [B, *S, out_channels].

    `features`, `norm`, `dtype`, `remat` and `direct` are as in `unet.UNet`, and so is what happens where S is no
    multiple of 8. The stages c1 and d1 have no norm, whatever `norm` says.

    Like that network it comes in three parts, grow(x, deepen(shrink(x))), for images evaluated in tiles: `margin`
    and `deep_margin` of the module that completes it tell what these need.

    A network made of it adds the way up, u1, c5, u2, c6, u3 and c7 (`add_decoder`), and ends in its own `activation`.

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
        stage = self.stage_of(LeakyStage, direct=self.direct)
        self.c1 = stage((f // 2, f), None)
        for level, channels in enumerate(((f, 2 * f), (2 * f, 4 * f), (4 * f, 8 * f)), 2):
            setattr(self, f"c{level}", stage(channels, self.norm))
        for level, channels in enumerate((f, 2 * f, 4 * f), 1):
            setattr(self, f"d{level}", stage((channels,), None if level == 1 else self.norm, size=4, down=True))
        self.add_decoder(stage)
        self.out = stage((f, f), self.norm, head=self.out_channels)

    def stage_of(self, kind: Callable, **options) -> Callable:
        """A kind of stage with what all stages of the network share."""
        return functools.partial(nn.remat(kind) if self.remat else kind, dtype=self.dtype, **options)

    def add_decoder(self, stage: Callable) -> None:
        """Sets u1, c5, u2, c6, u3 and c7; `stage` makes a `LeakyStage`."""
        raise NotImplementedError

    def activation(self, raw: jax.Array, x: jax.Array) -> jax.Array:
        """What ends the network: its last convolution's result and its input, [B, *S, .] both, -> its output."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(self.raw(x), x)

    def raw(self, x: jax.Array) -> jax.Array:
        """The output before its activation, for losses that need it."""
        unet.check_images(x)
        c1, c2 = self._fine(x)
        return self._head(c1, c2, self.deepen(self.d2(c2)), x.shape)

    def shrink(self, x: jax.Array) -> jax.Array:
        """The way down to a quarter of the resolution: [B, *S, C] -> [B, *S/4, 2 features], S rounded up to 8s."""
        unet.check_images(x)
        return self.d2(self._fine(x)[1])

    def deepen(self, h: jax.Array) -> jax.Array:
        """The coarse levels: what `shrink` returned -> [B, *S/4, channels of c5]."""
        c3 = self.c3(h)
        return self.c5(self.u1(self.c4(self.d3(c3))), c3)

    def grow(self, x: jax.Array, deep: jax.Array) -> jax.Array:
        """The way back up: x as in `shrink` and what `deepen` returned -> float32 [B, *S, out_channels]."""
        unet.check_images(x)
        return self.activation(self._head(*self._fine(x), deep, x.shape), x)

    def _fine(self, x):
        c1 = self.c1(unet.pad_to_multiple(x))
        return c1, self.c2(self.d1(c1))

    def _head(self, c1, c2, deep, shape):
        c6 = self.c6(self.u2(deep), c2)
        out = self.out(self.c7(self.u3(c6), c1))
        return out.astype(jnp.float32)[(slice(None), *(slice(size) for size in shape[1:-1]))]
