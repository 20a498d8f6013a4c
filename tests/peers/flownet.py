"""PyTorch twin of jaxsynth.nn.flownet.FlowNet, with the parameter names of the published checkpoints.

Arrays are [B, C, *S] here. `network.<stage>.<index>.<weight|bias>` of a published checkpoint is
`<stage>.<index>.<weight|bias>` of `TorchFlowNet.state_dict()`.
"""

import numpy as np
import torch
from torch import nn

from .unet import _CONV, _INSTANCE, GroupAtVoxel

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class TorchFlowNet(nn.Module):
    def __init__(self, rank, in_channels=1, features=16, norm="instance"):
        super().__init__()
        f = features
        kinds = {"instance": _INSTANCE[rank], "group": GroupAtVoxel, "none": nn.Identity}

        def layers(convolution, normed=True):
            channels = convolution.out_channels
            return [convolution, *([kinds[norm](channels)] if normed else []), nn.LeakyReLU(0.2)]

        def conv(a, b):
            return _CONV[rank](a, b, 3, padding=1)

        def block(a, b, c, normed=True):
            return nn.Sequential(*layers(conv(a, b), normed), *layers(conv(b, c), normed))

        def down(a, normed=True):
            return nn.Sequential(*layers(_CONV[rank](a, a, 4, stride=2, padding=1), normed))

        def up(a):
            doubling = _TRANSPOSED[rank](a, a, 3, stride=2, padding=1, output_padding=1)
            return nn.Sequential(*layers(doubling), *layers(_CONV[rank](a, a, 1)))

        self.c1, self.d1 = block(in_channels, f // 2, f, normed=False), down(f, normed=False)
        self.c2, self.d2 = block(f, f, 2 * f), down(2 * f)
        self.c3, self.d3 = block(2 * f, 2 * f, 4 * f), down(4 * f)
        self.c4 = block(4 * f, 4 * f, 8 * f)
        self.u1, self.c5 = up(8 * f), block(12 * f, 4 * f, 4 * f)
        self.u2, self.c6 = up(4 * f), block(6 * f, 2 * f, 2 * f)
        self.u3, self.c7 = up(2 * f), block(3 * f, f, f)
        self.out = nn.Sequential(*layers(conv(f, f)), *layers(conv(f, f)), _CONV[rank](f, 1 + rank, 1))

    def forward(self, x):
        c1 = self.c1(x)
        c2 = self.c2(self.d1(c1))
        c3 = self.c3(self.d2(c2))
        c4 = self.c4(self.d3(c3))
        c5 = self.c5(torch.cat([self.u1(c4), c3], 1))
        c6 = self.c6(torch.cat([self.u2(c5), c2], 1))
        c7 = self.c7(torch.cat([self.u3(c6), c1], 1))
        return torch.tanh(self.out(c7))


def state_dict_of(params) -> dict[str, torch.Tensor]:
    """Flax parameters (or their gradients) of FlowNet under PyTorch's names and axis orders."""
    state = {}
    for stage, layers in params.items():
        for layer, arrays in layers.items():
            kind, index = layer.split("_")
            for name, array in arrays.items():
                array = np.asarray(array)
                if name == "kernel":  # [*k, in, out] -> [out, in, *k]; of a transposed one [in, out, *k]
                    array = np.moveaxis(array, (-2, -1), (0, 1) if kind == "transposed" else (1, 0))
                place = f"{stage}.{index}.norm" if kind == "norm" else f"{stage}.{index}"
                state[f"{place}.{'bias' if name == 'bias' else 'weight'}"] = torch.from_numpy(array.copy())
    return state
