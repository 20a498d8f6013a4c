"""PyTorch twins of jaxsynth.nn.gan, with the parameter names of the published checkpoints.

Arrays are [B, C, *S] here. In a published checkpoint the generator's names begin with `generator.`, the critic's with
`discriminator.`; what follows are the names of `state_dict()` here.
"""

import torch
from torch import nn

from .unet import _CONV, _INSTANCE, GroupAtVoxel, Shuffle


def _norms(rank, norm):
    return {"instance": _INSTANCE[rank], "group": GroupAtVoxel, "none": nn.Identity}[norm]


class TorchGenerator(nn.Module):
    def __init__(self, rank, features=16, norm="instance"):
        super().__init__()
        f, cell = features, 2**rank
        conv, normed = _CONV[rank], _norms(rank, norm)

        def plain(convolution):
            return [convolution, nn.LeakyReLU(0.2)]

        def layers(convolution):
            return [convolution, normed(convolution.out_channels), nn.LeakyReLU(0.2)]

        def block(a, b, c):
            return nn.Sequential(*layers(conv(a, b, 3, padding=1)), *layers(conv(b, c, 3, padding=1)))

        def up():
            again = [normed(8 * f // cell), nn.LeakyReLU(0.2)]
            return nn.Sequential(*layers(conv(8 * f, 8 * f, 1)), Shuffle(), *again)

        self.c1 = nn.Sequential(
            *plain(conv(2, f // 2, 3, padding=1)),
            *plain(conv(f // 2, f, 3, padding=1)),
        )
        self.d1 = nn.Sequential(*plain(conv(f, f, 4, stride=2, padding=1)))
        self.c2 = block(f, f, 2 * f)
        self.d2 = nn.Sequential(*layers(conv(2 * f, 2 * f, 4, stride=2, padding=1)))
        self.c3 = block(2 * f, 2 * f, 4 * f)
        self.d3 = nn.Sequential(*layers(conv(4 * f, 4 * f, 4, stride=2, padding=1)))
        self.c4 = block(4 * f, 4 * f, 8 * f)
        shuffled = 8 * f // cell
        self.u1, self.c5 = up(), block(shuffled + 4 * f, 8 * f, 8 * f)
        self.u2, self.c6 = up(), block(shuffled + 2 * f, 8 * f, 8 * f)
        self.u3, self.c7 = up(), block(shuffled + f, f, f)
        self.out = nn.Sequential(*block(f, f, f), conv(f, 1, 1))

    def forward(self, x):
        c1 = self.c1(x)
        c2 = self.c2(self.d1(c1))
        c3 = self.c3(self.d2(c2))
        c4 = self.c4(self.d3(c3))
        c5 = self.c5(torch.cat([self.u1(c4), c3], 1))
        c6 = self.c6(torch.cat([self.u2(c5), c2], 1))
        c7 = self.c7(torch.cat([self.u3(c6), c1], 1))
        return torch.sigmoid(self.out(c7))


class TorchCritic(nn.Module):
    """Up to the logits; the published one ends in a sigmoid."""

    def __init__(self, rank, features=64, norm="instance"):
        super().__init__()
        conv, normed = _CONV[rank], _norms(rank, norm)
        widths = [2, *(factor * features for factor in (1, 2, 4, 8, 8)), 1]
        for layer in range(1, 7):
            stride = 2 if layer <= 4 else 1
            setattr(self, f"conv{layer}", conv(widths[layer - 1], widths[layer], 3, stride=stride, padding=1))
        for layer in range(2, 6):
            setattr(self, f"norm{layer}", normed(widths[layer]))

    def forward(self, x):
        for layer in range(1, 6):
            x = getattr(self, f"conv{layer}")(x)
            if layer > 1:
                x = getattr(self, f"norm{layer}")(x)
            x = nn.functional.leaky_relu(x, 0.2)
        return self.conv6(x)
