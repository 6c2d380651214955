"""What stands for a GPU, for downloaded weights and for a logging service while a script runs.

None of this counts as a change of the codebase: with a GPU and the network it is not needed.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# The networks that scripts ask for, and the seeds of their weights.
_SEEDS = {
    **{"resnet18": 0, "mobilenet_v2": 0},
    **{"efficientnet_b0": 2, "shufflenet_v2_x0_5": 3, "alexnet": 4},
}


def install(dtype: torch.dtype, *, small: bool = True) -> None:
    """Make ``cuda`` mean the CPU, `dtype` the precision, and weights seeded.

    Args:
        dtype: of the images and the networks; the scripts ask for float32.
        small: ResNet-18 in place of every network.
    """
    _wandb()
    torchvision_schemas()
    _cuda(dtype)
    _models(dtype, small=small)
    torch.set_default_dtype(dtype)


def _wandb() -> None:
    """A ``wandb`` that logs nowhere."""
    module: Any = types.ModuleType("wandb")
    module.api = types.SimpleNamespace(api_key="none")
    for name in ("login", "init", "log", "finish"):
        setattr(module, name, lambda *args, **kwargs: None)
    sys.modules["wandb"] = module


_schemas = torch.library.Library("torchvision", "FRAGMENT")


def torchvision_schemas() -> None:
    """Two operators that torchvision's Python declares shapes for; its wheel needs a CUDA torch."""
    for name, arguments in {
        "nms": "Tensor dets, Tensor scores, float iou_threshold",
        "qnms": "Tensor dets, Tensor scores, float iou_threshold",
    }.items():
        if not hasattr(torch.ops.torchvision, name):
            _schemas.define(f"{name}({arguments}) -> Tensor")


def _cuda(dtype: torch.dtype) -> None:
    """``.cuda()``, ``.to("cuda")``, ``device="cuda"`` and float32 mean the CPU and `dtype`."""
    to, randn, tensor = torch.Tensor.to, torch.randn, torch.tensor

    def is_cuda(value: Any) -> bool:
        return isinstance(value, str | torch.device) and str(value).startswith("cuda")

    def precise(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return to(value, dtype) if value.is_floating_point() else value

    def here(value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if any(map(is_cuda, (*args, *kwargs.values()))):
            return precise(value)
        if args == (torch.float32,):
            return to(value, dtype)
        return to(value, *args, **kwargs)

    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if is_cuda(kwargs.get("device")):
            kwargs |= {"device": "cpu", "dtype": dtype}
        return tensor(*args, **kwargs)

    def draw(*size: Any, **kwargs: Any) -> torch.Tensor:
        if is_cuda(kwargs.get("device")):
            kwargs |= {"device": "cpu", "dtype": dtype}
        return randn(*size, **kwargs)

    patched: Any = torch
    patched.randn = draw
    patched.tensor = make
    patched.Tensor.to = here
    patched.Tensor.cuda = precise
    patched.Tensor.float = lambda value: to(value, dtype)
    patched.nn.Module.cuda = lambda module, *args, **kwargs: module


# What the scripts ask for, and the seed of its weights; the verifier's are the first teacher's.
_SEEDS = {
    **{"resnet18": 0, "mobilenet_v2": 0},
    **{"efficientnet_b0": 2, "shufflenet_v2_x0_5": 3, "alexnet": 4},
}


def _models(dtype: torch.dtype, *, small: bool) -> None:
    """Seeded weights for every architecture a script asks for, or ResNet-18 for all of them."""
    import torchvision.models

    def stand_in(name: str) -> Callable[..., nn.Module]:
        create = published["resnet18" if small else name]
        # A student is another network than its teacher.
        return lambda *_, pretrained=True, **options: seeded(
            create, _SEEDS[name] if pretrained else 1
        ).to(dtype)

    published = {name: getattr(torchvision.models, name) for name in _SEEDS}
    for name in _SEEDS:
        setattr(torchvision.models, name, stand_in(name))


def seeded(create: Callable[..., nn.Module], seed: int) -> nn.Module:
    """A network of torchvision with float32 weights drawn from `seed`."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # the same weights in every precision
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(weights=None)
        # Running statistics that fit the weights: those of noise.
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the average over all batches
        with torch.no_grad():
            model.train()(torch.randn(16, 3, 64, 64))
    torch.set_default_dtype(default)
    return model


def one_process() -> None:
    """One GPU; the process that a script would start for it is this one, over gloo."""
    import torch.distributed as dist

    init = dist.init_process_group

    def spawn(worker: Callable[..., Any], nprocs: int, args: tuple[Any, ...]) -> None:
        for rank in range(nprocs):
            worker(rank, *args)

    def here(*args: Any, world_size: int, rank: int, **kwargs: Any) -> None:
        init("gloo", store=dist.HashStore(), world_size=world_size, rank=rank)

    patched: Any = torch
    patched.cuda.device_count = lambda: 1
    patched.cuda.set_device = lambda device: None
    patched.multiprocessing.spawn = spawn
    patched.distributed.init_process_group = here


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
