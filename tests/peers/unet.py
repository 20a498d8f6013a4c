"""PyTorch twin of jaxsynth.nn.unet.UNet, with the parameter names of the published checkpoints.

Arrays are [B, C, *S] here. `network.<stage>.<index>.<weight|bias>` of a published checkpoint is
`<stage>.<index>.<weight|bias>` of `TorchUNet.state_dict()`.
"""

import math

import numpy as np
import torch
from torch import nn

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_INSTANCE = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class TimeEmbedding(nn.Module):
    def forward(self, t):
        frequencies = torch.exp(torch.arange(64, device=t.device) * (-math.log(10000.0) / 63))
        angles = t.float()[:, None] * frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class GroupAtVoxel(nn.Module):
    """nn.GroupNorm with every voxel an image of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(max(1, channels // 16), channels, eps=1e-5)

    def forward(self, x):
        voxels = x.movedim(1, -1)
        return self.norm(voxels.reshape(-1, x.shape[1])).reshape(voxels.shape).movedim(-1, 1)


class Shuffle(nn.Module):
    """Pixel shuffle for any rank; PyTorch has it for 2D only."""

    def forward(self, x):
        rank = x.ndim - 2
        batch, channels, *space = x.shape
        x = x.reshape(batch, channels // 2**rank, *(2,) * rank, *space)
        order = [0, 1]
        for axis in range(rank):
            order += [2 + rank + axis, 2 + axis]
        return x.permute(order).reshape(batch, channels // 2**rank, *(2 * size for size in space))


class TorchUNet(nn.Module):
    def __init__(self, rank, in_channels, features=16, out_channels=1, norm="instance"):
        super().__init__()
        f, shuffled = features, 8 * features // 2**rank

        def layers(a, b, size=3, stride=1):
            padding = size // 2 if stride == 1 else 1
            kinds = {"instance": _INSTANCE[rank], "group": GroupAtVoxel, "none": nn.Identity}
            return [_CONV[rank](a, b, size, stride, padding), nn.PReLU(b), kinds[norm](b)]

        def block(a, b, c):
            return nn.Sequential(*layers(a, b), *layers(b, c))

        self.c1, self.d1 = block(in_channels, f // 2, f), nn.Sequential(*layers(f, f, 4, 2))
        self.c2, self.d2 = block(f, f, 2 * f), nn.Sequential(*layers(2 * f, 2 * f, 4, 2))
        self.c3, self.d3 = block(2 * f, 2 * f, 4 * f), nn.Sequential(*layers(4 * f, 4 * f, 4, 2))
        self.c4, self.c5 = block(4 * f, 4 * f, 8 * f), block(4 * f + shuffled, 8 * f, 8 * f)
        self.c6, self.c7 = block(2 * f + shuffled, 8 * f, 8 * f), block(f + shuffled, f, f)
        for name in ("u1", "u2", "u3"):
            setattr(self, name, nn.Sequential(*layers(8 * f, 8 * f, 1), Shuffle()))
        for level, width in enumerate((f, 2 * f, 4 * f, 8 * f, 8 * f, 8 * f, f), start=1):
            linear = [nn.Linear(128, width), nn.PReLU(width), nn.Linear(width, width)]
            setattr(self, f"t{level}", nn.Sequential(TimeEmbedding(), *linear))
        self.out = nn.Sequential(*layers(f, f), *layers(f, f), _CONV[rank](f, out_channels, 1))

    def _level(self, number, x, t):
        time = getattr(self, f"t{number}")(t)
        return getattr(self, f"c{number}")(x) + time.reshape(*time.shape, *(1,) * (x.ndim - 2))

    def forward(self, x, t):
        c1 = self._level(1, x, t)
        c2 = self._level(2, self.d1(c1), t)
        c3 = self._level(3, self.d2(c2), t)
        c4 = self._level(4, self.d3(c3), t)
        c5 = self._level(5, torch.cat([self.u1(c4), c3], 1), t)
        c6 = self._level(6, torch.cat([self.u2(c5), c2], 1), t)
        c7 = self._level(7, torch.cat([self.u3(c6), c1], 1), t)
        return self.out(c7)


def state_dict_of(params) -> dict[str, torch.Tensor]:
    """Flax parameters (or their gradients) of UNet under PyTorch's names and axis orders."""
    state = {}
    for stage, layers in params.items():
        for layer, arrays in layers.items():
            kind, index = layer.split("_")
            for name, array in arrays.items():
                array = np.asarray(array)
                if name == "kernel":  # [*k, in, out] -> [out, in, *k]; linear [in, out] -> [out, in]
                    array = np.moveaxis(array, (-1, -2), (0, 1))
                place = f"{stage}.{index}.norm" if kind == "norm" else f"{stage}.{index}"
                torch_name = "bias" if name == "bias" else "weight"
                state[f"{place}.{torch_name}"] = torch.from_numpy(array.copy())
    return state
