"""RDED's synthesis: ``python -m benchmarks.dropin.rded --repo PATH``.

The official script runs as published and with the changed lines, on the same made photographs and
from the same seeds.  Compared are the distilled images before they become bytes: another patch
anywhere would be another picture.  Results go to ``benchmarks/dropin/rded.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dropin import stubs
from benchmarks.dropin.__main__ import apply, export
from benchmarks.dropin.codebases import Change, Codebase
from benchmarks.dropin.process import run_child
from benchmarks.metadata import collect
from benchmarks.photos import HEIGHT, WIDTH, write_photos

CLASSES = 10  # of the subset imagenet-nette
POOL = 12  # --mipc: a ResNet-18 on one core scores the 600 crops of all classes in a minute
ROUNDS = 3  # timed runs of each variant, in turn

_SCRIPT = "synthesize/main.py"
_IMPORT = Change(_SCRIPT, after=18, added=("from pyddfast.compat.rded import *",))
_BYTES = Change(
    _SCRIPT, after=32, added=("            transforms.PILToTensor(),",), removed=(32, 32)
)
RDED = Codebase(
    name="rded",
    url="https://github.com/LINs-lab/RDED",
    revision="3f6453d8b18b6a9bcc6c718bc16ecda6bb94d59f",
    script="main.py",
    # Those of scripts/imagenet-nette_10ipc_resnet-18_to_resnet-18_cr5.sh but for sizes.
    arguments=(
        *("--subset", "imagenet-nette", "--arch-name", "resnet18", "--factor", "2"),
        *("--num-crop", "5", "--mipc", str(POOL), "--ipc", "1"),
    ),
    variants={"import": (_IMPORT,), "bytes": (_IMPORT, _BYTES)},
)


def child(job_path: str) -> None:
    """One synthesis in this process; the official code reads its data below the current folder."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    stubs.install(torch.float32)
    import torchvision.models

    state = torchvision.models.resnet18().state_dict()
    state |= {name: state[name][:CLASSES].clone() for name in ("fc.weight", "fc.bias")}
    Path("data/pretrain_models").mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, "data/pretrain_models/imagenet-nette_resnet18.pth")
    sys.argv = ["main.py", *job["arguments"]]
    sys.path.insert(0, str(Path.cwd()))
    from argument import args  # type: ignore[import-not-found]
    from synthesize import main as script  # type: ignore[import-not-found]

    images: list[np.ndarray[Any, Any]] = []
    scoring = 0.0
    selector, save_images = script.selector, script.save_images

    def timed_selector(*arguments: Any, **options: Any) -> Any:
        nonlocal scoring
        began = time.process_time()
        patches = selector(*arguments, **options)
        scoring += time.process_time() - began
        return patches

    def kept_images(args: Any, made: torch.Tensor, label: int) -> None:
        images.append(made.numpy().copy())
        save_images(args, made, label)

    script.selector, script.save_images = timed_selector, kept_images
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generators that the script uses
    torch.manual_seed(0)
    began = time.process_time()
    script.main(args)
    seconds = time.process_time() - began
    np.save(job["out"] + ".npy", np.concatenate(images))
    record = {
        "seconds": seconds,
        "selector_seconds": scoring,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(job["out"]).write_text(json.dumps(record))


def run(folder: Path, work: Path) -> dict[str, Any]:
    """One run of a variant in a process of its own."""
    job = {"arguments": RDED.arguments}
    return run_child(("benchmarks.dropin.rded", "--child"), job, work, folder=folder)


def compare(repo: Path) -> dict[str, Any]:
    """The official synthesis and every variant of it."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_photos(work / "photos", CLASSES, POOL)
        runs: dict[str, list[dict[str, Any]]] = {}
        folders = {}
        for name, changes in {"official": (), **RDED.variants}.items():
            folders[name] = work / name
            export(RDED, repo, folders[name])
            apply(changes, folders[name])
            data = folders[name] / "data" / "imagenet-nette"
            data.mkdir(parents=True)
            (data / "train").symlink_to(work / "photos")
            runs[name] = []
        for _ in range(ROUNDS):
            for name, folder in folders.items():
                runs[name].append(run(folder, work))
    official = runs["official"][0]["images"]
    # Two patches of noise-like photographs differ by tenths; rounding by a few 1e-7.
    variants = {}
    for name, changes in RDED.variants.items():
        difference = np.abs(runs[name][0]["images"] - official)
        variants[name] = {
            "lines_changed": sum(change.count for change in changes),
            "changes": [asdict(change) for change in changes],
            "max_image_difference": float(difference.max()),
            **times(runs[name]),
        }
    return {
        "codebase": RDED.name,
        "url": RDED.url,
        "revision": RDED.revision,
        "script": RDED.script,
        "arguments": list(RDED.arguments),
        "model": "torchvision's ResNet-18, seeded weights, running statistics of noise",
        "photos": f"{CLASSES * POOL} made JPEGs of {WIDTH} x {HEIGHT}",
        "patches": 4 * len(official),
        "official": times(runs["official"]),
        "variants": variants,
        "environment": collect(torch.device("cpu")),
    }


def times(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of processor time over the runs, which other work on the machine disturbs less.

    What is not the selector is the loader and the output.
    """
    whole, scoring = (
        [record[key] for record in records] for key in ("seconds", "selector_seconds")
    )
    return {
        "seconds": statistics.median(whole),
        "selector_seconds": statistics.median(scoring),
        "rest_seconds": statistics.median(w - s for w, s in zip(whole, scoring, strict=True)),
        "runs": [[round(w, 3), round(s, 3)] for w, s in zip(whole, scoring, strict=True)],
        "peak_rss_mib": max(record["peak_rss_mib"] for record in records),
    }


def table(result: dict[str, Any]) -> str:
    """The result as it stands on RDED's page, in Markdown."""
    official = result["official"]
    lines = [
        "| synthesis | images | loading and cropping | selector | peak memory |",
        "|---|---|---|---|---|",
        f"| as published | | {official['rest_seconds']:.1f} s "
        f"| {official['selector_seconds']:.1f} s | {official['peak_rss_mib']:.0f} MiB |",
    ]
    for variant in result["variants"].values():
        count = variant["lines_changed"]
        lines.append(
            f"| {count} {'line' if count == 1 else 'lines'} changed "
            f"| within {variant['max_image_difference']:.0e} "
            f"| {variant['rest_seconds']:.1f} s | {variant['selector_seconds']:.1f} s "
            f"| {variant['peak_rss_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropin.rded", description=__doc__)
    parser.add_argument("--repo", type=Path, help="a clone with the revision")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if options.repo is None:
        parser.error("--repo is needed")
    torch.set_num_threads(options.threads)
    result = compare(options.repo)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
