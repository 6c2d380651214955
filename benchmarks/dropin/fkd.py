"""SRe2L's relabelling and training on its files: ``python -m benchmarks.dropin.fkd --repo PATH``.

Both scripts run as published and with the changed lines, from the same seeds.  Compared are every
tensor of every soft-label file and every loss of the training; the changed training also reads the
same labels from a store.  Results go to ``benchmarks/dropin/fkd.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.dropin.__main__ import apply, export, seconds
from benchmarks.dropin.codebases import SRE2L, Change, Codebase
from benchmarks.dropin.process import run_child
from benchmarks.metadata import collect
from pyddfast.data import import_fkd

CLASSES, IPC = 12, 4
BATCH = 8  # six batches an epoch
EPOCHS = 4  # 24 losses
ROUNDS = 3  # timed runs of each variant, in turn

RELABEL, TRAIN = "SRe2L/relabel/generate_soft_label.py", "SRe2L/validate/train_FKD.py"
IMPORT = ("from pyddfast.compat.fkd import *",)
CHANGES = {
    RELABEL: (Change(RELABEL, after=20, added=IMPORT),),
    TRAIN: (
        Change(TRAIN, after=26, added=IMPORT),
        Change(
            TRAIN,
            after=130,
            added=("        num_workers=args.workers, pin_memory=True, collate_fn=fkd_collate)",),
            removed=(130, 130),
        ),
    ),
}
ARGUMENTS = {
    RELABEL: ("-a", "resnet18", "--use-fp16", "--mode", "fkd_save", "--mix-type", "cutmix"),
    TRAIN: ("--model", "resnet18", "--cos", "-T", "20", "--mix-type", "cutmix"),
}


def make_images(folder: Path) -> None:
    """A distilled set in SRe2L's layout: blurred noise, so that crops differ."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"new{label:03d}").mkdir(parents=True)
        for number in range(IPC):
            pixels = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            name = f"class{label:03d}_id{number:03d}.jpg"
            pixels.resize((224, 224), Image.BICUBIC).save(folder / f"new{label:03d}" / name)


def run(script: Path, arguments: list[str], stubs: tuple[str, ...], work: Path) -> dict[str, Any]:
    """One run of a script to its end, in its own folder."""
    job = {
        "script": str(script),
        "arguments": [*arguments, "-j", "0", "--epochs", str(EPOCHS), "--batch-size", str(BATCH)],
        "dtype": "float32",
        "steps": None,
        "stubs": stubs,
    }
    return run_child(("benchmarks.dropin.child",), job, work, folder=script.parent)


def relabel(variant: Path, work: Path, out: Path) -> None:
    """Labels of all views in ``out``."""
    arguments = [*ARGUMENTS[RELABEL], "--fkd-path", str(out), "--data", str(work / "images")]
    run(variant / RELABEL, arguments, ("unpinned_memory",), work)


def train(variant: Path, work: Path, labels: str, patched: bool) -> dict[str, Any]:
    """Losses and times of a training on ``labels``."""
    paths = {"--train-dir": "images", "--val-dir": "images", "--output-dir": "students"}
    arguments = [*ARGUMENTS[TRAIN], "--fkd-path", labels]
    for option, name in paths.items():
        arguments += [option, str(work / name)]
    stubs = ("gpu_training", "unpinned_memory", *(("fkd_pytorch",) if patched else ()))
    return run(variant / TRAIN, arguments, stubs, work)


def differing(first: Path, second: Path) -> tuple[int, int]:
    """Files, and how many of them hold another value or another type somewhere."""
    files = sorted(path.relative_to(first) for path in first.rglob("*.tar"))
    if files != sorted(path.relative_to(second) for path in second.rglob("*.tar")):
        raise SystemExit("the two relabellings have other files")
    different = 0
    for file in files:
        pair = [torch.load(folder / file, weights_only=False) for folder in (first, second)]
        different += not all(
            torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
            for a, b in zip(*pair, strict=True)
        )
    return len(files), different


def compare(repo: Path) -> dict[str, Any]:
    """The official scripts, the changed ones, and the changed ones on a store."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_images(work / "images")
        folders = {"official": work / "official", "changed": work / "changed"}
        for name, folder in folders.items():
            for script in (RELABEL, TRAIN):
                export(
                    Codebase(SRE2L.name, SRE2L.url, SRE2L.revision, script, (), {}), repo, folder
                )
                if name == "changed":
                    apply(CHANGES[script], folder)
            relabel(folder, work, work / f"labels-{name}")
        files, different = differing(work / "labels-official", work / "labels-changed")
        labels = work / "labels-official"
        store = import_fkd(labels, work / "store")
        variants = {
            "official": (folders["official"], f"{labels}/", True),  # it joins path and name as text
            "files": (folders["changed"], str(labels), False),
            "store": (folders["changed"], str(store.path), False),
        }
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, (folder, path, patched) in variants.items():
                records[name].append(train(folder, work, path, patched))
        store_files = len(list(store.path.iterdir()))
    official = records["official"][0]["losses"]
    return {
        "codebase": "fkd",
        "url": SRE2L.url,
        "revision": SRE2L.revision,
        "scripts": [RELABEL, TRAIN],
        "arguments": {script: list(values) for script, values in ARGUMENTS.items()},
        "model": "torchvision's ResNet-18, seeded weights, teacher and student of other seeds",
        "images": CLASSES * IPC,
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "label_files": files,
        "label_files_that_differ": different,
        "store_files": store_files,
        "lines_changed": {s: sum(c.count for c in changes) for s, changes in CHANGES.items()},
        "changes": [asdict(change) for changes in CHANGES.values() for change in changes],
        "losses": {name: runs[0]["losses"] for name, runs in records.items()},
        "same_losses": {
            name: all(run["losses"] == official for run in runs) for name, runs in records.items()
        },
        "step_seconds": {name: seconds(runs) for name, runs in records.items()},
        "median_peak_rss_mib": {
            name: statistics.median(run["peak_rss_mib"] for run in runs)
            for name, runs in records.items()
        },
        "environment": collect(torch.device("cpu")),
    }


def table(result: dict[str, Any]) -> str:
    """The result as it stands on the page, in Markdown."""
    lines = ["| train_FKD.py | losses | a step (quartiles) |", "|---|---|---|"]
    count = result["lines_changed"][TRAIN]
    names = {
        "official": "as published, PyTorch edited",
        "files": f"{count} lines changed, official files",
        "store": f"{count} lines changed, a store",
    }
    for name, text in names.items():
        times = result["step_seconds"][name]
        low, median, high = (1000 * times[k] for k in ("quartile_1", "median", "quartile_3"))
        same = (
            "" if name == "official" else "bit-identical" if result["same_losses"][name] else "no"
        )
        lines.append(f"| {text} | {same} | {median:.0f} ms ({low:.0f} – {high:.0f}) |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropin.fkd", description=__doc__)
    parser.add_argument("--repo", type=Path, required=True, help="a clone with the revision")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--threads", type=int, default=1, help="1: the least disturbed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = compare(args.repo.resolve())
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
