"""MTT and DATM: ``python -m benchmarks.dropin.trajectories mtt|datm --repo PATH``.

The official script runs as published and with the changed lines, on the same images, experts and
seeds: in float64 to compare the losses of its first iterations, in float32 for time and memory.
Wants a clone that has the revision, torchvision (its CUDA build serves too), kornia, yacs, scipy
and tqdm.  Results go to ``benchmarks/dropin/NAME.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.dropin import stubs
from benchmarks.dropin.__main__ import apply
from benchmarks.dropin.codebases import Change, Codebase
from benchmarks.dropin.process import run_child
from benchmarks.metadata import collect
from pyddfast import data
from pyddfast.data import ImageDataset, Normalization, Trajectories, write_replay_buffer
from pyddfast.train import train_experts

COMPARED = 5  # iterations whose losses are compared
TIMED = 4  # iterations of a timed run, of which the first warms up
ROUNDS = 2  # timed runs of each variant, in turn
IPC, STEPS, MODEL = 10, 10, "ConvNetW32"
EXACT_STEPS = 4  # of the float64 runs
EXPERTS, EPOCHS = 2, 4
IMAGES = 500

_STEP = "            student_params.append(sgd_step(student_net, criterion, student_params[-1], "
_STEP += "syn_lr, x, this_y))"


def _variants(path: str, imports: int, name: str, student: int, step: int) -> Any:
    line = (Change(path, after=imports, added=(f"from pyddfast.compat.{name} import *",)),)
    fused = "        student_net = ReparamModule(fuse(student_net))"
    unrolled = (
        Change(path, after=step + 1, added=(_STEP,), removed=(step, step + 1)),
        Change(path, after=step + 3, removed=(step + 3, step + 3)),
        Change(path, after=step + 5, removed=(step + 5, step + 5)),
    )
    return {
        "import": line,
        "fuse": (*line, Change(path, after=student, added=(fused,), removed=(student, student))),
        "unroll": (*line, *unrolled),
    }


CODEBASES = {
    "mtt": Codebase(
        name="mtt",
        url="https://github.com/GeorgeCazenavette/mtt-distillation",
        revision="50dccea47ba48b9cfb3b9c59375d7da92e4e603b",
        script="distill.py",
        arguments=(
            *("--dataset", "CIFAR10", "--model", MODEL, "--ipc", str(IPC)),
            *("--expert_epochs", "2", "--max_start_epoch", "2", "--lr_img", "100"),
            *("--lr_lr", "1e-7", "--num_eval", "0", "--buffer_path", "buffers"),
        ),
        variants=_variants("distill.py", 13, "mtt", 296, 365),
    ),
    "datm": Codebase(
        name="datm",
        url="https://github.com/NUS-HPC-AI-Lab/DATM",
        revision="97ae5109d98e749e897bd1af29bccd0515f8137e",
        script="distill/DATM.py",
        arguments=("--cfg", "run.yaml"),
        variants=_variants("distill/DATM.py", 17, "datm", 456, 527),
    ),
}


def child(job_path: str) -> None:
    """One run in this process, from the script's folder."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    stubs.install(dtype)
    torch.set_default_dtype(dtype)
    _precision(dtype)
    _logging()
    _images()
    # Networks are seeded from the clock.
    time.time = lambda: 1.7e9
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generators that the scripts use
    torch.manual_seed(0)

    class Finished(BaseException):
        pass

    losses: list[float] = []
    ends: list[float] = []
    kept: list[Tensor] = []
    backward, step = torch.Tensor.backward, torch.optim.SGD.step
    patched: Any = torch

    def recorded_backward(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        losses.append(tensor.item())
        backward(tensor, *args, **kwargs)

    def recorded_step(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        (parameter,) = self.param_groups[0]["params"]
        if parameter.ndim == 4:
            ends.append(time.process_time())  # less disturbed by other work
            kept[:] = [parameter.detach().clone()]
            if len(ends) == job["iterations"]:
                raise Finished
        return result

    patched.Tensor.backward, patched.optim.SGD.step = recorded_backward, recorded_step
    script = Path(job["script"]).resolve()
    sys.argv = [script.name, *job["arguments"]]
    sys.path.insert(0, str(script.parent))
    with contextlib.suppress(Finished):
        runpy.run_path(str(script), run_name="__main__")
    np.save(job["out"] + ".npy", kept[0].numpy())
    record = {
        "losses": losses,
        "step_seconds": np.diff(ends).tolist(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(job["out"]).write_text(json.dumps(record))


def _precision(dtype: torch.dtype) -> None:
    """What the scripts make in ``torch.float`` is of the run's precision."""
    patched: Any = torch

    def with_dtype(function: Any) -> Any:
        def make(*args: Any, **options: Any) -> Any:
            if options.get("dtype") is torch.float:
                options["dtype"] = dtype
            return function(*args, **options)

        return make

    patched.randn, patched.tensor = with_dtype(torch.randn), with_dtype(torch.tensor)
    patched.Tensor.float = lambda tensor: tensor.to(dtype)


def _logging() -> None:
    """What the scripts take from ``wandb``: their own arguments back."""
    module: Any = sys.modules["wandb"]
    module.run = type("Run", (), {"name": "run"})

    def init(**options: Any) -> None:
        module.config = type("Config", (), {"_items": dict(vars(options["config"]))})

    module.init = init
    module.Histogram = module.Image = lambda *args, **kwargs: None


def pictures(split: str) -> ImageDataset:
    """Fashion-MNIST's embedded subset in the shape of CIFAR-10."""
    found = data.load("fashion-mnist-mini", split=split)
    picks = torch.arange(IMAGES) * (len(found) // IMAGES)
    images = F.pad(found.images[picks], (2, 2, 2, 2)).expand(-1, 3, -1, -1).contiguous()
    normalization = Normalization((0.2861,) * 3, (0.3530,) * 3)
    return ImageDataset(images, found.labels[picks], found.class_names, normalization, "padded")


def _images() -> None:
    """They stand for CIFAR-10, which would be downloaded."""
    import torchvision.datasets

    class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __init__(self, *args: Any, train: bool = True, **kwargs: Any) -> None:
            found = pictures("train" if train else "test")
            self.images = data.normalize(
                found.images, found.normalization, dtype=torch.get_default_dtype()
            )
            self.labels, self.classes = found.labels.tolist(), list(found.class_names)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.images[index], self.labels[index]

    torchvision.datasets.CIFAR10 = Pictures  # type: ignore[misc, assignment]


def export_scripts(codebase: Codebase, repo: Path, folder: Path) -> None:
    """Every script of the codebase at the revision; its pictures may be missing in the clone."""

    def git(*words: str) -> bytes:
        result = subprocess.run(["git", "-C", str(repo), *words], capture_output=True, check=False)
        if result.returncode:
            raise SystemExit(f"--repo {repo}: {result.stderr.decode().strip()}")
        return result.stdout

    names = git("ls-tree", "-r", "--name-only", codebase.revision).decode().splitlines()
    for name in names:
        if name.endswith(".py"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(git("show", f"{codebase.revision}:{name}"))


def experts(folder: Path) -> Trajectories:
    """Two experts of four epochs."""
    images = pictures("train")
    net = ("convnet-d3", {"width": 32})
    return train_experts(
        images, net, test_set=images, out=folder, count=EXPERTS, epochs=EPOCHS, progress=False
    )


def place_experts(found: Trajectories, folder: Path, dtype: torch.dtype) -> None:
    """Experts where the scripts look for them, in the precision of the run."""
    snapshots = []
    for expert in range(len(found)):
        epochs = []
        for epoch in range(found.epochs + 1):
            parts = found.flat(expert, epoch).to(dtype).split([s.numel() for s in found.shapes])
            epochs.append([p.view(s) for p, s in zip(parts, found.shapes, strict=True)])
        snapshots.append(epochs)
    write_replay_buffer(folder / "replay_buffer_0.pt", snapshots)


def run(codebase: Codebase, folder: Path, work: Path, dtype: str, iterations: int) -> Any:
    """One run of a variant in a process of its own."""
    steps = EXACT_STEPS if dtype == "float64" else STEPS
    script = folder / codebase.script
    arguments = [*codebase.arguments]
    if codebase.name == "mtt":
        arguments += ["--syn_steps", str(steps), "--Iteration", "100"]
    else:
        lines = {
            "dataset": "CIFAR10", "model": MODEL, "device": [0], "ipc": IPC, "syn_steps": steps,
            "expert_epochs": 2, "lr_img": 100, "lr_teacher": 0.01, "buffer_path": "buffers",
            "Iteration": 100, "batch_syn": 100, "num_eval": 0, "skip_first_eva": True,
            "lr_y": 2.0, "Momentum_y": 0.9, "threshold": 10.0, "pix_init": "real",
            "batch_train": 128, "Sequential_Generation": False, "min_start_epoch": 0,
            "max_start_epoch": 2, "lr_lr": 0.0000001, "zca": False,
        }  # fmt: skip
        # YAML 1.1 takes 1e-07 for a text.
        text = "".join(
            f"{name}: {f'{value:.8f}' if isinstance(value, float) else json.dumps(value)}\n"
            for name, value in lines.items()
        )
        (script.parent / "run.yaml").write_text(text)
    job = {
        "script": str(script),
        "arguments": arguments,
        "dtype": dtype,
        "iterations": iterations,
    }
    buffers = script.parent / "buffers" / "CIFAR10_NO_ZCA" / MODEL
    place_experts(Trajectories(work / "experts"), buffers, getattr(torch, dtype))
    child = ("benchmarks.dropin.trajectories", "--child")
    return run_child(child, job, work, folder=script.parent)


def compare(codebase: Codebase, repo: Path) -> dict[str, Any]:
    """The official script and every variant of it."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        experts(work / "experts")
        folders = {}
        for name, changes in {"official": (), **codebase.variants}.items():
            folders[name] = work / name
            export_scripts(codebase, repo, folders[name])
            apply(changes, folders[name])
        exact = {n: run(codebase, f, work, "float64", COMPARED) for n, f in folders.items()}
        timed: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
        for _ in range(ROUNDS):
            for name, folder in folders.items():
                timed[name].append(run(codebase, folder, work, "float32", TIMED))
    official = np.array(exact["official"]["losses"])
    variants = {}
    for name, changes in codebase.variants.items():
        losses = np.array(exact[name]["losses"])
        images = np.abs(exact[name]["images"] - exact["official"]["images"])
        variants[name] = {
            "lines_changed": sum(change.count for change in changes),
            "changes": [asdict(change) for change in changes],
            "losses": losses.tolist(),
            "max_relative_difference": float(np.max(np.abs(losses - official) / np.abs(official))),
            "max_image_difference": float(images.max()),
            **figures(timed[name]),
        }
    return {
        "codebase": codebase.name,
        "url": codebase.url,
        "revision": codebase.revision,
        "script": codebase.script,
        "arguments": list(codebase.arguments),
        "model": MODEL,
        "images": f"{IMAGES} of Fashion-MNIST, padded to 32 x 32 and in three channels",
        "steps": {"float64": EXACT_STEPS, "float32": STEPS},
        "batch": 10 * IPC,
        "iterations_compared": COMPARED,
        "clock": "processor time",
        "official": {"losses": official.tolist(), **figures(timed["official"])},
        "variants": variants,
        "environment": collect(torch.device("cpu")),
    }


def figures(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of an iteration (the first of a run left out) and most memory."""
    seconds = [s for record in records for s in record["step_seconds"]]
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "step_seconds": {"median": median, "quartile_1": low, "quartile_3": high},
        "peak_rss_mib": max(record["peak_rss_mib"] for record in records),
    }


def table(result: dict[str, Any]) -> str:
    """The result as it stands on the codebase's page, in Markdown."""

    def cells(row: dict[str, Any]) -> str:
        seconds = row["step_seconds"]
        return (
            f"{seconds['median']:.2f} s ({seconds['quartile_1']:.2f} – "
            f"{seconds['quartile_3']:.2f}) | {row['peak_rss_mib']:.0f} MiB |"
        )

    lines = [
        f"| {Path(result['script']).name} | losses | an iteration (quartiles) | peak memory |",
        "|---|---|---|---|",
        f"| as published | | {cells(result['official'])}",
    ]
    for name, variant in result["variants"].items():
        count = variant["lines_changed"]
        lines.append(
            f"| {name}: {count} {'line' if count == 1 else 'lines'} changed "
            f"| within {variant['max_relative_difference']:.0e} | {cells(variant)}"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dropin.trajectories", description=__doc__
    )
    parser.add_argument("codebase", nargs="?", choices=sorted(CODEBASES))
    parser.add_argument("--repo", type=Path, help="a clone with the revision")
    parser.add_argument("--out", type=Path, help="default: beside this file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if options.repo is None or options.codebase is None:
        parser.error("a codebase and --repo are needed")
    torch.set_num_threads(options.threads)
    result = compare(CODEBASES[options.codebase], options.repo)
    out = options.out or Path(__file__).with_name(f"{options.codebase}.json")
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
