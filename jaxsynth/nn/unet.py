"""The denoiser: a U-Net with three halvings, for 2D and 3D alike.

Source: Eschweiler et al., "Denoising diffusion probabilistic models for generation of realistic
fully-annotated microscopy image datasets" (2024), whose published weights it takes without change.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsynth.errors import InputError
from jaxsynth.nn.blocks import ConvStage, TimeStage, UpStage, check_norm

MULTIPLE = 8  # three halvings


class UNet(nn.Module):
    """Predicts the noise in `x`: [B, *S, C] and the step t: int32 [B] -> float32 [B, *S, out_channels].

    `features` is the width of the first level, 8 times less than at the bottom. `norm`: see `Norm`;
    `instance` is the published network, `group` makes the output independent of tiling. `dtype=jnp.bfloat16`
    computes in bfloat16; parameters, norms and the output stay float32. `remat` keeps the activations between
    stages only and computes the rest again on the way back.

    S may be anything: an axis that is not a multiple of 8 is extended on its far side by reflection and the
    output cropped. On multiples of 8 the network is exactly the published one.

    Raises InputError for an unknown norm, odd `features`, or shapes other than those above.
    """

    features: int = 16
    out_channels: int = 1
    norm: str = "instance"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        check_norm(self.norm)
        self._check_inputs(x, t)
        f = self.features
        conv_stage = nn.remat(ConvStage) if self.remat else ConvStage
        up_stage = nn.remat(UpStage) if self.remat else UpStage

        def block(level: int, *channels: int):
            stage = conv_stage(channels, self.norm, dtype=self.dtype, name=f"c{level}")
            time = TimeStage(channels[-1], name=f"t{level}")(t).astype(self.dtype)
            return lambda *inputs: stage(*inputs) + jnp.expand_dims(time, tuple(range(1, x.ndim - 1)))

        def down(level: int, channels: int):
            return conv_stage((channels,), self.norm, 4, True, dtype=self.dtype, name=f"d{level}")

        def up(level: int):
            return up_stage(8 * f, self.norm, self.dtype, name=f"u{level}")

        space = x.shape[1:-1]
        c1 = block(1, f // 2, f)(_pad_to_multiple(x))
        c2 = block(2, f, 2 * f)(down(1, f)(c1))
        c3 = block(3, 2 * f, 4 * f)(down(2, 2 * f)(c2))
        c4 = block(4, 4 * f, 8 * f)(down(3, 4 * f)(c3))
        c5 = block(5, 8 * f, 8 * f)(up(1)(c4), c3)
        c6 = block(6, 8 * f, 8 * f)(up(2)(c5), c2)
        c7 = block(7, f, f)(up(3)(c6), c1)
        out = conv_stage((f, f), self.norm, head=self.out_channels, dtype=self.dtype, name="out")(c7)
        return out.astype(jnp.float32)[(slice(None), *(slice(size) for size in space))]

    def _check_inputs(self, x: jax.Array, t: jax.Array) -> None:
        if self.features < 2 or self.features % 2:
            raise InputError(f"features: expected an even number of 2 or more, got {self.features}")
        if x.ndim not in (4, 5):
            raise InputError(f"x: expected [B, Y, X, C] or [B, Z, Y, X, C], got shape {x.shape}")
        if t.shape != x.shape[:1]:
            raise InputError(f"t: expected one step per image, shape {x.shape[:1]}, got shape {t.shape}")


def _pad_to_multiple(x: jax.Array) -> jax.Array:
    """Extend space axes to multiples of 8 on the far side by reflection, which keeps the grain of noise."""
    extra = [-size % MULTIPLE for size in x.shape[1:-1]]
    if not any(extra):
        return x
    return jnp.pad(x, [(0, 0), *((0, size) for size in extra), (0, 0)], mode="reflect")


def receptive_field() -> int:
    """Radius in voxels, per axis: an output voxel sees input voxels at most this far away.

    Holds for `group` and `none`; with `instance` every voxel sees the whole image. Where a voxel lies on the
    grid of the halvings shifts its window; this is the largest reach over all places and both sides.
    """
    return max(max(p - low, high - p) for p in range(MULTIPLE) for low, high in [_input_window(p)])


def _input_window(p: int) -> tuple[int, int]:
    """First and last input voxel along one axis that output voxel `p` sees, far from the border."""
    low, high = p - 2, p + 2  # out
    for _ in range(3):  # c7, c6, c5, each fed by the shuffle of a level below
        low, high = (low - 2) // 2, (high + 2) // 2
    for _ in range(3):  # c4, c3, c2, each fed by a size-4 convolution with stride 2
        low, high = 2 * (low - 2) - 1, 2 * (high + 2) + 2
    return low - 2, high + 2  # c1
