"""What the scripts read, made of noise: images, patches and statistics of training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.dropin import stubs

CLASSES = 1000  # of ImageNet-1k, for which the scripts are written


def images(folder: Path, count: int) -> None:
    """A folder a class with one image, for the first `count` classes."""
    rng = np.random.default_rng(0)
    for index in range(count):
        _picture(rng, 64, folder / f"{index:04d}" / "0.png")


def patches(folder: Path, count: int) -> None:
    """FADRM's patches of the first `count` classes."""
    rng = np.random.default_rng(0)
    for index in range(count):
        name = f"class{index:05d}_id00000.jpg"
        _picture(rng, 224, folder / "medium" / f"{index:05d}" / name)


def _picture(rng: np.random.Generator, side: int, file: Path) -> None:
    file.parent.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)


def statistics(folder: Path, _: int) -> None:
    """EDC's files for a ResNet-18: of every convolution, and of every layer and class.

    The target of a layer is what it sees of noise, that of a class the same, up to a quarter off.
    """
    rng = np.random.default_rng(0)
    for kind, name, mean, var, cells in _layers():
        keys = {"running_dd_mean": mean, "running_dd_var": var}
        if kind == "ConvFeatureHook":
            keys |= {f"running_patch_{k}": v for k, v in zip(("mean", "var"), cells, strict=True)}
            _save(folder / kind / f"ResNet={name}", keys)
        for index in range(CLASSES):
            away = {key: v * rng.uniform(0.75, 1.25, v.shape) for key, v in keys.items()}
            _save(folder / kind / f"class_{index}" / f"ResNet={name}", away)


def _save(folder: Path, keys: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    np.savez(folder / "running.npz", **{key: v.astype(np.float32) for key, v in keys.items()})


def _layers() -> list[tuple[str, str, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Hook, name, means and variances of the channels, and of 16 x 16 cells, of each layer."""
    stubs.torchvision_schemas()
    from torchvision.models import resnet18

    model = stubs.seeded(resnet18, 0)
    found = []

    def look(kind: str, name: str, x: torch.Tensor) -> None:
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        # As many cells as the plane of a 224 px image has after its resize to a multiple of 16.
        side = -(-x.shape[-1] // 16)
        blocks = torch.nn.functional.interpolate(x, (16 * side, 16 * side), mode="bilinear")
        cells = blocks.unfold(2, 16, 16).unfold(3, 16, 16).permute(2, 3, 0, 1, 4, 5)
        spread, middle = torch.var_mean(cells.flatten(0, 1).flatten(1), dim=1, correction=0)
        found.append((kind, name, mean.numpy(), var.numpy(), (middle.numpy(), spread.numpy())))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            kind = "ConvFeatureHook" if isinstance(module, torch.nn.Conv2d) else "BNFeatureHook"
            module.register_forward_pre_hook(
                lambda _, args, kind=kind, name=name: look(kind, name, args[0])
            )
    with torch.no_grad():
        model.eval()(torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    return found
