"""DC, DSA and DM by VICO's scripts: ``python -m benchmarks.dropin.vico --repo PATH``.

``main.py`` and ``main_DM.py`` run as published and with the changed lines, on 6000 images that
stand for CIFAR-10 and with a clock that gives both the same seeds (the scripts seed by the time).
Compared are the losses of the first updates of the images in float64, and the images after them;
timed are updates in float32, in processor time, which other work on the machine disturbs less.
Results go to ``benchmarks/dropin/vico.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import runpy
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dropin import stubs
from benchmarks.dropin.__main__ import apply, export
from benchmarks.dropin.codebases import Change, Codebase
from benchmarks.dropin.process import run_child
from benchmarks.metadata import collect
from pyddfast.data import load

COMPARED = 5  # updates of the images
TIMED = 6  # of a timed run, the first of which warms up
ROUNDS = 1  # timed runs of each variant, in turn

_SHARED = ("--dataset", "CIFAR10", "--num_exp", "1", "--num_eval", "0", "--Iteration", "50")
_SMALL = ("--model", "ConvNetW32", "--batch_real", "32")
# One line behind the last of utils.py, one in get_network.
_LINES = (
    Change("utils.py", after=199, added=("    net = fuse(net)",)),
    Change("utils.py", after=651, added=("from pyddfast.compat.vico import *",)),
)


def codebase(
    name: str, script: str, arguments: tuple[str, ...], shown: tuple[str, ...] = ("import", "fused")
) -> Codebase:
    variants = {"import": _LINES[1:], "fused": _LINES}
    return Codebase(
        name=name,
        url="https://github.com/VICO-UoE/DatasetCondensation",
        revision="53f63a672eab9ade02aabe6432706ef56f317d64",
        script=script,
        arguments=arguments,
        variants={name: variants[name] for name in shown},
    )


_DSA = ("--method", "DSA", "--init", "real", "--model", "MLP", "--batch_real", "32", "--ipc", "10")
_DSA += ("--dsa_strategy", "color_crop_cutout_flip_scale_rotate")
RUNS = {
    "dc": codebase("dc", "main.py", (*_SHARED, *_SMALL, "--ipc", "1", "--method", "DC")),
    # At IPC 1 the official DSA fails on a current torch, which refuses to write a tensor over
    # itself.  At IPC 10 the network trains for 50 epochs between two updates, which a ConvNet needs
    # minutes for; an MLP has nothing to fuse.
    "dsa": codebase("dsa", "main.py", (*_SHARED, *_DSA), ("import",)),
    "dm": codebase("dm", "main_DM.py", (*_SHARED, *_SMALL, "--ipc", "10")),
}


class Finished(BaseException):
    """Ends the script after the last update."""


def child(job_path: str) -> None:
    """One run in this process: losses and times of the updates of the images, and the images."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    stubs.install(torch.float32)
    stand_for_cifar()
    patched: Any = torch
    if job["dtype"] == "float64":
        torch.set_default_dtype(torch.float64)
        patched.float = torch.float64
        patched.Tensor.float = patched.Tensor.double
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that the scripts use
    torch.manual_seed(0)
    ticks, clock = count(), time.process_time
    time.time = lambda: 1e9 + next(ticks) / 1000
    losses: list[float] = []
    ends: list[float] = []
    last = [0.0]
    backward, step = torch.Tensor.backward, torch.optim.SGD.step

    def recorded_backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        last[0] = tensor.item()
        backward(tensor, *args, **kwargs)

    def recorded_step(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        parameters = self.param_groups[0]["params"]
        if len(parameters) == 1:  # the images; a network has more
            losses.append(last[0])
            ends.append(clock())
            if len(ends) == job["steps"]:
                np.save(job["out"] + ".npy", parameters[0].detach().numpy())
                raise Finished
        return result

    patched.Tensor.backward = recorded_backward
    patched.optim.SGD.step = recorded_step
    sys.argv = [job["script"], *job["arguments"]]
    sys.path.insert(0, str(Path(job["script"]).parent))
    with contextlib.suppress(Finished):
        runpy.run_path(job["script"], run_name="__main__")
    record = {
        "losses": losses,
        "step_seconds": np.diff(ends).tolist(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(job["out"]).write_text(json.dumps(record))


def stand_for_cifar() -> None:
    """The embedded Fashion-MNIST subset for CIFAR-10: 32 x 32, three shifts of it as colours.

    Grey images do not pass the scripts' own networks on a CPU after their crop: torch takes the
    strides of one channel for channels_last there.
    """
    import torchvision.datasets
    from torchvision.transforms.functional import to_pil_image

    class CIFAR10:
        def __init__(self, root: str, *, train: bool, download: bool, transform: Any) -> None:
            held: Any = load("fashion-mnist-mini", split="train" if train else "test")
            self.classes, self.labels, self.transform = held.class_names, held.labels, transform
            grey = torch.nn.functional.pad(held.images[:, 0], (2, 2, 2, 2))
            self.images = torch.stack([grey, grey.roll(1, 1), grey.roll(1, 2)], 1)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            image = self.transform(to_pil_image(self.images[index]))
            return image, int(self.labels[index])

    torchvision.datasets.CIFAR10 = CIFAR10  # type: ignore[misc, assignment]


def run(code: Codebase, folder: Path, work: Path, dtype: str, steps: int) -> dict[str, Any]:
    """One run of a variant in a process of its own."""
    arguments = ["--data_path", str(work / "data"), "--save_path", str(work / "out")]
    job = {
        "script": str(folder / code.script),
        "arguments": [*code.arguments, *arguments],
        "dtype": dtype,
        "steps": steps,
    }
    return run_child(("benchmarks.dropin.vico", "--child"), job, work)


def compare(code: Codebase, repo: Path) -> dict[str, Any]:
    """The official script and every variant of it."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folders = {}
        for name, changes in {"official": (), **code.variants}.items():
            folders[name] = work / name
            export(code, repo, folders[name])
            apply(changes, folders[name])
        exact = {n: run(code, f, work, "float64", COMPARED) for n, f in folders.items()}
        timed: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
        for _ in range(ROUNDS):
            for name, folder in folders.items():
                timed[name].append(run(code, folder, work, "float32", TIMED))
    official = np.array(exact["official"]["losses"])
    single = np.array(timed["official"][0]["losses"])

    def times(name: str) -> dict[str, Any]:
        steps = [s for record in timed[name] for s in record["step_seconds"][1:]]
        return {
            "step_seconds": statistics.median(steps),
            "runs": [record["step_seconds"] for record in timed[name]],
            "peak_rss_mib": max(record["peak_rss_mib"] for record in timed[name]),
        }

    variants = {}
    for name, changes in code.variants.items():
        losses = np.array(exact[name]["losses"])
        images = np.abs(exact[name]["images"] - exact["official"]["images"])
        variants[name] = {
            "lines_changed": sum(change.count for change in changes),
            "changes": [asdict(change) for change in changes],
            "losses": losses.tolist(),
            "max_relative_difference": float(np.max(np.abs(losses / official - 1))),
            "max_image_difference": float(images.max()),
            "max_relative_difference_float32": float(
                np.max(np.abs(np.array(timed[name][0]["losses"]) / single - 1))
            ),
            **times(name),
        }
    return {
        "url": code.url,
        "revision": code.revision,
        "script": code.script,
        "arguments": list(code.arguments),
        "clock": "processor time",
        "official": {"losses": official.tolist(), **times("official")},
        "variants": variants,
    }


def table(result: dict[str, Any]) -> str:
    """The result as it stands on VICO's page, in Markdown."""
    lines = ["| run | losses | an update of the images | peak memory |", "|---|---|---|---|"]
    for name, one in result["runs"].items():
        official = one["official"]
        lines.append(
            f"| {name.upper()} as published | | {1000 * official['step_seconds']:,.0f} ms "
            f"| {official['peak_rss_mib']:,.0f} MiB |"
        )
        for variant in one["variants"].values():
            lines.append(
                f"| {name.upper()}, {variant['lines_changed']} "
                f"{'line' if variant['lines_changed'] == 1 else 'lines'} changed "
                f"| within {variant['max_relative_difference']:.0e} "
                f"| {1000 * variant['step_seconds']:,.0f} ms | {variant['peak_rss_mib']:,.0f} MiB |"
            )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropin.vico", description=__doc__)
    parser.add_argument("--repo", type=Path, help="a clone with the revision")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if options.repo is None:
        parser.error("--repo is needed")
    torch.set_num_threads(options.threads)
    result = {
        "runs": {name: compare(RUNS[name], options.repo) for name in options.runs},
        "environment": collect(torch.device("cpu")),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
