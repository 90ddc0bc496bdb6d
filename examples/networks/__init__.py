"""The networks of the paper's tables that neither torchvision nor timm has, each in the paper's form.

Parameters and MACs are held to the published ones within one percent by ``tests/examples/test_networks.py``.
"""

from examples.networks.densenet import DenseNet, densenet_12_40
from examples.networks.dncnn import DnCNN
from examples.networks.edsr import EDSR
from examples.networks.mobilenet import mobilenet_v1, mobilenet_v2
from examples.networks.resnet import ResNet, resnet20, resnet56, resnet110, resnet164
from examples.networks.srresnet import SRResNet
from examples.networks.unet import UNet
from examples.networks.vgg import vgg16_bn

__all__ = [
    "EDSR",
    "DenseNet",
    "DnCNN",
    "ResNet",
    "SRResNet",
    "UNet",
    "densenet_12_40",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet20",
    "resnet56",
    "resnet110",
    "resnet164",
    "vgg16_bn",
]
