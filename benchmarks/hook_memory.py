"""Memory of a step with BatchNorm statistics in its loss: ``python -m benchmarks.hook_memory``.

ResNet-18 on images of 224 pixels: forward, the statistics loss of SRe2L, backward to the images; by
hooks with the official expression, and by `BNStatLoss` in both modes.  Each runs in a process of
its own, whose largest memory is that of the step.  Writes ``benchmarks/results/memory/hooks.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import metadata
from benchmarks.memory import Peak
from benchmarks.ops.stats import FIRST, official_feature
from benchmarks.schema import RESULTS, write
from pyddfast.models import create
from pyddfast.nn import BNStatLoss

BATCH, SIDE = 16, 224
VARIANTS = ("official", "tap", "fused")


def teacher() -> nn.Module:
    """ResNet-18 in eval mode, its parameters fixed."""
    model = create("resnet18", num_classes=1000, in_channels=3, image_size=SIDE)
    return model.eval().requires_grad_(False)


def official_hooks(
    model: nn.Module, feature: Callable[[Tensor, Tensor, Tensor], Tensor] = official_feature
) -> Callable[[], Tensor]:
    """The loss by a hook a layer, as ``recover/utils.py:BNFeatureHook`` of SRe2L."""
    found: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        found.append(feature(inputs[0], module.running_mean, module.running_var))  # type: ignore[arg-type]

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook)

    def loss() -> Tensor:
        value = FIRST * found[0] + torch.stack(found[1:]).sum()
        found.clear()  # the next forward's come anew
        return value

    return loss


def step(variant: str, batch: int, side: int) -> dict[str, int]:
    """Bytes of one step, and of the inputs of all BatchNorm layers."""
    model = teacher()
    sizes: list[int] = []
    loss = (
        official_hooks(model) if variant == "official" else BNStatLoss(model, FIRST, mode=variant)
    )  # type: ignore[arg-type]
    for module in model.modules():
        if type(module).__name__ == "BatchNorm2d":
            module.register_forward_pre_hook(lambda m, x: sizes.append(x[0].nbytes))
    images = torch.randn(batch, 3, side, side, requires_grad=True)
    peak = Peak()
    logits = model(images)
    (loss() + logits.square().mean()).backward()  # type: ignore[no-untyped-call]
    return {"bytes": peak.bytes(), "batch_norm_inputs": sum(sizes)}


def measure(batch: int, side: int) -> dict[str, Any]:
    """Every variant in a process of its own."""
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.hook_memory", "--child", variant]
        shapes = ["--batch", str(batch), "--side", str(side)]
        done = subprocess.run([*command, *shapes], capture_output=True, text=True, check=True)
        found[variant] = json.loads(done.stdout)
    inputs = found["official"]["batch_norm_inputs"]
    return {
        "batch": batch,
        "side": side,
        "batch_norm_inputs": inputs,
        "bytes": {variant: one["bytes"] for variant, one in found.items()},
        "environment": metadata.collect(torch.device("cpu")),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hook_memory", description=__doc__)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory" / "hooks.json")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(step(options.child, options.batch, options.side)))
        return
    result = measure(options.batch, options.side)
    write(result, options.out)
    for variant, size in result["bytes"].items():
        print(f"{variant}: {size / 2**20:.0f} MiB")
    print(f"inputs of all BatchNorm layers: {result['batch_norm_inputs'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
