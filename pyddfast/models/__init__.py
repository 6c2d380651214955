"""Networks of the dataset-distillation literature, under the official codes' parameter names."""

from pyddfast.models.catalog import create, names
from pyddfast.models.convnet import ConvNet
from pyddfast.models.efficientnet import EfficientNetLite0
from pyddfast.models.mlp import MLP
from pyddfast.models.mobilenet import MobileNetV2
from pyddfast.models.pretrained import load_pretrained
from pyddfast.models.resnet import ResNet

__all__ = [
    "MLP",
    "ConvNet",
    "EfficientNetLite0",
    "MobileNetV2",
    "ResNet",
    "create",
    "load_pretrained",
    "names",
]
