"""What stands for a GPU, for downloaded weights and for a logging service while a script runs.

None of this counts as a change of the codebase: with a GPU and the network it is not needed.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from torch import nn


def install(dtype: torch.dtype) -> None:
    """Make ``cuda`` mean the CPU, `dtype` the precision, and models small and seeded.

    Args:
        dtype: of the images and the networks; the scripts ask for float32.
    """
    _wandb()
    _torchvision_schemas()
    _cuda(dtype)
    _models(dtype)


def _wandb() -> None:
    """A ``wandb`` that logs nowhere."""
    module: Any = types.ModuleType("wandb")
    module.api = types.SimpleNamespace(api_key="none")
    for name in ("login", "init", "log", "finish"):
        setattr(module, name, lambda *args, **kwargs: None)
    sys.modules["wandb"] = module


_schemas = torch.library.Library("torchvision", "FRAGMENT")


def _torchvision_schemas() -> None:
    """Two operators that torchvision's Python declares shapes for; its wheel needs a CUDA torch."""
    for name, arguments in {
        "nms": "Tensor dets, Tensor scores, float iou_threshold",
        "qnms": "Tensor dets, Tensor scores, float iou_threshold",
    }.items():
        if not hasattr(torch.ops.torchvision, name):
            _schemas.define(f"{name}({arguments}) -> Tensor")


def _cuda(dtype: torch.dtype) -> None:
    """``.cuda()``, ``.to("cuda")`` and ``device="cuda"`` stay on the CPU, in `dtype`."""
    to, randn = torch.Tensor.to, torch.randn

    def is_cuda(value: Any) -> bool:
        return isinstance(value, str | torch.device) and str(value).startswith("cuda")

    def here(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not any(map(is_cuda, (*args, *kwargs.values()))):
            return to(tensor, *args, **kwargs)
        return to(tensor, dtype) if tensor.is_floating_point() else tensor

    def draw(*size: Any, **kwargs: Any) -> torch.Tensor:
        if is_cuda(kwargs.get("device")):
            kwargs |= {"device": "cpu", "dtype": dtype}
        return randn(*size, **kwargs)

    patched: Any = torch
    patched.randn = draw
    patched.Tensor.to = here
    patched.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    patched.nn.Module.cuda = lambda module, *args, **kwargs: module


def _models(dtype: torch.dtype) -> None:
    """Torchvision's ResNet-18 with seeded weights for every architecture a script asks for."""
    import torchvision.models

    resnet18 = torchvision.models.resnet18

    def create(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if kwargs.get("pretrained", True) else 1)  # a student is another
            model = resnet18(weights=None)
            # Running statistics that fit the weights: those of noise.
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = None  # the average over all batches
            with torch.no_grad():
                model.train()(torch.randn(16, 3, 64, 64))
        return model.to(dtype)

    for name in ("resnet18", "mobilenet_v2"):  # the teacher and the verifier
        setattr(torchvision.models, name, create)


def gpu_training() -> None:
    """A GPU that is there, and ``nn.DataParallel`` over the one device."""

    class Parallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    patched: Any = torch
    patched.cuda.is_available = lambda: True
    patched.nn.DataParallel = Parallel


def unpinned_memory() -> None:
    """Loaders that leave memory where it is: there is no GPU to pin it for."""
    init = torch.utils.data.DataLoader.__init__

    def plain(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{**kwargs, "pin_memory": False})

    patched: Any = torch.utils.data.DataLoader
    patched.__init__ = plain


def fkd_pytorch() -> None:
    """What FKD's training scripts ask of PyTorch: an edited fetcher, ``torch.load`` as before 2.6.

    The edit is the one that ``SRe2L/validate/README.md`` has its users make in site-packages.
    """
    from torch.utils.data._utils import fetch

    load, original = torch.load, fetch._MapDatasetFetcher.fetch

    def fetch_batch(self: Any, indices: Any) -> Any:
        if getattr(self.dataset, "mode", None) != "fkd_load":
            return original(self, indices)
        stored = self.dataset.load_batch_config(indices[0])
        return (original(self, indices), *stored)

    patched: Any = fetch._MapDatasetFetcher
    patched.fetch = fetch_batch
    patched = torch
    patched.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})
