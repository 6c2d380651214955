"""Networks of the dataset-distillation literature, under the official codes' parameter names."""

from pyddfast.models.catalog import create, names
from pyddfast.models.convnet import ConvNet
from pyddfast.models.mlp import MLP
from pyddfast.models.resnet import ResNet18

__all__ = ["MLP", "ConvNet", "ResNet18", "create", "names"]
