"""CIFAR ResNets (He et al., CVPR 2016): three stages of 16, 32 and 64 channels.

ResNet-20 and -56 are made of basic blocks. The paper's ResNet-110 and -164 are made of bottlenecks.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Basic(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(channels_in, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; four times wider outside than inside."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        outer = self.expansion * width
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outer, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outer)
        self.shortcut = _shortcut(channels_in, outer, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        return self.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Classify images ``(N, in_channels, 32, 32)``.

    Args:
        block: ``Basic`` or ``Bottleneck``.
        blocks: blocks of each of the three stages.
        num_classes: length of the output.
        in_channels: 3 for colour, 1 for grey.
    """

    def __init__(
        self, block: type[Basic] | type[Bottleneck], blocks: int, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        outer = (WIDTHS[0], *(block.expansion * width for width in WIDTHS))
        self.stages = nn.Sequential(
            *(
                _stage(block, blocks, channels_in, width, stride=1 if at == 0 else 2)
                for at, ((channels_in, _), width) in enumerate(zip(pairwise(outer), WIDTHS, strict=True))
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(outer[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.norm(self.conv(x))))
        return self.classifier(self.pool(x).flatten(1))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
        nn.BatchNorm2d(channels_out),
    )


def _stage(
    block: type[Basic] | type[Bottleneck], blocks: int, channels_in: int, width: int, stride: int
) -> nn.Sequential:
    first = block(channels_in, width, stride)
    return nn.Sequential(first, *(block(block.expansion * width, width, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return ResNet-20: 0.27 M parameters, 41 MMACs."""
    return ResNet(Basic, 3, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return ResNet-56: 0.86 M parameters, 126 MMACs."""
    return ResNet(Basic, 9, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return ResNet-110 with bottlenecks: 1.15 M parameters, 167 MMACs."""
    return ResNet(Bottleneck, 12, num_classes, in_channels)


def resnet164(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return ResNet-164 with bottlenecks: 1.70 M parameters, 248 MMACs."""
    return ResNet(Bottleneck, 18, num_classes, in_channels)
