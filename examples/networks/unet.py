"""U-Net (Ronneberger et al., MICCAI 2015) for denoising: concatenated skips, transposed convolutions.

In the paper's form: 32 channels at the first of five levels, padded convolutions, no norms, the clean image as output;
7.76 M parameters. The published 3.41 GMACs on 128 x 128 count a transposed convolution with all of its kernel at every
output position. At stride two only a quarter of it meets each position: the true count is 3.01 GMACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 5
MULTIPLE = 2 ** (LEVELS - 1)  # height and width must be multiples of this


class UNet(nn.Module):
    """Remove noise from images ``(N, image_channels, H, W)``, H and W multiples of 16.

    Args:
        channels: width of the first level; it doubles at each of the four below.
        image_channels: 1 for grey, 3 for colour.
    """

    def __init__(self, channels: int = 32, image_channels: int = 1) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(LEVELS)]
        before = [image_channels, *widths[:-1]]
        self.down = nn.ModuleList(_double(n_in, n_out) for n_in, n_out in zip(before, widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[:-1])
        self.join = nn.ModuleList(_double(2 * width, width) for width in widths[:-1])
        self.last = nn.Conv2d(channels, image_channels, 1)
        self.apply(_xavier_)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down[:-1]:
            skips.append(level(x))
            x = self.pool(skips[-1])
        x = self.down[-1](x)
        for up, join, skip in zip(reversed(self.up), reversed(self.join), reversed(skips), strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
        return self.last(x)


def _double(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.ReLU(),
    )


def _xavier_(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)
