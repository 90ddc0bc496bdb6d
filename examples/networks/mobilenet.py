"""MobileNetV1 of any width, and torchvision's MobileNetV2, with fewer strides for small images.

Both reduce an image by 32. At 32 and 64 pixels that leaves one or four positions, so the earliest strides become one
until the last layers see 4 x 4 positions. (timm has MobileNetV1 at width 1 and 1.25 only.)
"""

from __future__ import annotations

from collections import OrderedDict

import torchvision
from torch import nn

LAST_MAP = 4  # positions along each axis in the last layers
STRIDES = 5  # each network halves the image so often
V1_STEM = 32
V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet_v1(num_classes: int = 200, image_size: int = 64, width: float = 1.0) -> nn.Module:
    """Return MobileNetV1 (Howard et al., 2017) for images ``(N, 3, image_size, image_size)``.

    Args:
        num_classes: length of the output.
        image_size: 32, 64 or 128.
        width: factor on all widths.

    Raises:
        ValueError: another image size.
    """
    channels = round(V1_STEM * width)
    blocks = [_convolution(3, channels, 3, stride=2)]
    for size, stride in V1_BLOCKS:
        wider = round(size * width)
        depthwise = _convolution(channels, channels, 3, stride, groups=channels)
        blocks.append(nn.Sequential(depthwise, _convolution(channels, wider, 1)))
        channels = wider
    layers = {
        "features": nn.Sequential(*blocks),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(channels, num_classes),
    }
    return _drop_strides_(nn.Sequential(OrderedDict(layers)), image_size)


def mobilenet_v2(num_classes: int = 200, image_size: int = 64, width: float = 1.0) -> nn.Module:
    """Return MobileNetV2 (Sandler et al., 2018) for images ``(N, 3, image_size, image_size)``, as ``mobilenet_v1``."""
    model = torchvision.models.mobilenet_v2(weights=None, num_classes=num_classes, width_mult=width)
    return _drop_strides_(model, image_size)


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def _drop_strides_(model: nn.Module, image_size: int) -> nn.Module:
    """Set the stride of the earliest strided convolutions to one."""
    kept = (image_size // LAST_MAP).bit_length() - 1
    if image_size != LAST_MAP * 2**kept or not 0 <= kept <= STRIDES:
        raise ValueError(f"image_size must be 4 times a power of two of at most 32, not {image_size}")
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    for convolution in strided[: STRIDES - kept]:
        convolution.stride = (1, 1)
    return model
