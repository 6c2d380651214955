"""Parameters and images by formula, and the reference outputs that are committed beside this file.

``python tests/models/reference.py`` rewrites ``reference.json`` from torchvision 0.28.0 and timm
1.0.31, which nothing else here needs:
``pip install --no-deps torchvision==0.28.0 timm==1.0.31 huggingface_hub``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PATH = Path(__file__).with_suffix(".json")
CLASSES = 5

# Name -> model and options of ours.  Both stems and both norms of either block, and every depth.
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "resnet18": ("resnet18", {"stem": "imagenet"}),
    "resnet34": ("resnet34", {"stem": "imagenet"}),
    "resnet50": ("resnet50", {"stem": "imagenet"}),
    "resnet101": ("resnet101", {"stem": "imagenet"}),
    "resnet152": ("resnet152", {"stem": "imagenet"}),
    "resnet34 cifar": ("resnet34", {"stem": "cifar"}),
    "resnet50 cifar": ("resnet50", {"stem": "cifar"}),
    "resnet34 instance": ("resnet34", {"stem": "imagenet", "norm": "instance"}),
    "resnet50 instance": ("resnet50", {"stem": "imagenet", "norm": "instance"}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    "efficientnet_lite0": ("efficientnet_lite0", {}),
}


def wave(shape: torch.Size, phase: float) -> Tensor:
    """Values in [-1, 1] without a short period."""
    position = torch.arange(shape.numel(), dtype=torch.float64)
    return torch.sin((0.7 + 1e-5 * position) * position + phase).reshape(shape)


def images() -> Tensor:
    """Two images with an odd and an even side, so that paddings and roundings show."""
    return 2 * wave(torch.Size((2, 3, 34, 39)), 0.5)


def fill(model: nn.Module) -> nn.Module:
    """Give every tensor of a model on the meta device float64 values by formula."""
    model.double().to_empty(device="cpu").eval()
    for index, (name, tensor) in enumerate(model.state_dict().items()):
        if tensor.ndim > 1:  # variance 2 / fan_in keeps ReLU's activations of one size
            tensor.copy_(wave(tensor.shape, index) * (4 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(1 + 0.5 * wave(tensor.shape, index))
        elif name.endswith("weight"):  # a norm's scale; small, for sums over 50 blocks
            tensor.copy_(0.5 + 0.2 * wave(tensor.shape, index))
        elif tensor.ndim == 1:
            tensor.copy_(0.2 * wave(tensor.shape, index))
        else:
            tensor.zero_()  # num_batches_tracked
    return model


def digest(model: nn.Module) -> str:
    """SHA-256 of the state dict's names and shapes, in order."""
    listed = [[name, list(tensor.shape)] for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def describe(build: Callable[[int], nn.Module]) -> dict[str, Any]:
    """What is compared: names and size with 1000 classes, logits with few."""
    with torch.device("meta"):
        full, small = build(1000), build(CLASSES)
    with torch.no_grad():
        logits = fill(small)(images())
    return {
        "state": digest(full),
        "parameters": sum(parameter.numel() for parameter in full.parameters()),
        "logits": logits.tolist(),
    }


def official(name: str, options: dict[str, str]) -> Callable[[int], nn.Module]:
    """The same network from torchvision or timm."""
    import timm
    from torchvision import models

    def build(num_classes: int) -> nn.Module:
        if name == "efficientnet_lite0":
            return timm.create_model("tf_efficientnet_lite0", num_classes=num_classes)
        changes: dict[str, Any] = {}
        if options.get("norm") == "instance":
            changes["norm_layer"] = lambda channels: nn.GroupNorm(channels, channels)
        model = getattr(models, name)(num_classes=num_classes, **changes)
        if options.get("stem") == "cifar":  # as SRe2L's training script changes torchvision's
            model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        return model

    return build


if __name__ == "__main__":
    # torchvision's CUDA build cannot load its operators beside a CPU torch; it only asks for names.
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    made = {case: describe(official(*arguments)) for case, arguments in CASES.items()}
    PATH.write_text(json.dumps(made, indent=1) + "\n")
