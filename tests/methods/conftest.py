import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyddfast.data import ImageDataset, load
from pyddfast.train import train_teacher

# The helpers of this folder; the suite runs with importlib mode, which adds no path itself.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def fashion() -> tuple[ImageDataset, nn.Module]:
    """Embedded Fashion-MNIST in part, and a ConvNet-D3 with BatchNorm that has learned it."""
    whole = load("fashion-mnist-mini")
    data = whole.subset(torch.arange(0, len(whole), 5))
    model = ("convnet-d3", {"norm": "batch", "width": 16})
    test = load("fashion-mnist-mini", split="test").subset(torch.arange(500))
    trained = train_teacher(data, model, test_set=test, epochs=5, progress=False)
    assert trained.record["accuracy"] > 0.6
    return data, trained.model
