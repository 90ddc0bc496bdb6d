"""VGG-16 with batch norm for 32 x 32: torchvision's convolutions and one linear layer."""

from __future__ import annotations

from collections import OrderedDict

import torchvision
from torch import nn


def vgg16_bn(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Return VGG-16-BN for images ``(N, in_channels, 32, 32)``: 14.7 M parameters, 313 MMACs."""
    features = torchvision.models.vgg16_bn(weights=None).features
    if in_channels != 3:
        features[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
    layers = {"features": features, "flatten": nn.Flatten(), "classifier": nn.Linear(512, num_classes)}
    return nn.Sequential(OrderedDict(layers))
