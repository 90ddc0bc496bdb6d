"""DenseNet-12-40 (Huang et al., CVPR 2017): growth rate 12, forty layers, no bottlenecks, no compression.

torchvision's DenseNet has bottlenecks and an ImageNet stem, and cannot be built without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEM = 16


class Layer(nn.Module):
    """Lay twelve new channels beside those that came."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], dim=1)


class DenseNet(nn.Module):
    """Classify images ``(N, in_channels, 32, 32)``.

    Args:
        growth: channels that each layer adds.
        layers: layers in each of the three dense blocks.
        num_classes: length of the output.
        in_channels: 3 for colour, 1 for grey.
    """

    def __init__(self, growth: int = 12, layers: int = 12, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, channels = [], STEM
        for last in (False, False, True):
            blocks += [Layer(channels + at * growth, growth) for at in range(layers)]
            channels += layers * growth
            blocks += [] if last else [_transition(channels)]
        self.conv = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.blocks(self.conv(x))))
        return self.classifier(self.pool(x).flatten(1))


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)
    )


def densenet_12_40(num_classes: int = 10, in_channels: int = 3) -> DenseNet:
    """Return DenseNet-12-40: 1.02 M parameters, 265 MMACs."""
    return DenseNet(12, 12, num_classes, in_channels)
