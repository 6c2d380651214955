"""Compares a script with itself after a few changed lines.

``python -m benchmarks.dropin sre2l --repo PATH`` wants a clone (bare is enough) that has the
revision in ``codebases.py``, and torchvision, whose CUDA build serves too
(``pip install --no-deps torchvision``).  FADRM imports opencv-python-headless and pandas beside it,
G-VBSM and EDC einops and tqdm.  Results go to ``benchmarks/dropin/NAME.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dropin import inputs
from benchmarks.dropin.codebases import CODEBASES, Change, Codebase
from benchmarks.dropin.process import run_child
from benchmarks.metadata import collect

BATCH = 4  # images: a 224 px step of ResNet-18 in float64 then takes about a second
COMPARED = 20  # iterations whose losses are compared
TIMED = 8  # iterations of a timed run, of which the first two warm up
ROUNDS = 3  # timed runs of each variant, in turn


def export(codebase: Codebase, repo: Path, folder: Path) -> None:
    """The folders that the script needs, at the revision."""
    command = ["git", "-C", str(repo), "archive", codebase.revision]
    folders = codebase.folders or (str(Path(codebase.script).parent),)
    result = subprocess.run([*command, *folders], capture_output=True, check=False)
    if result.returncode:
        raise SystemExit(f"--repo {repo}: {result.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
        archive.extractall(folder, filter="data")


def apply(changes: Iterable[Change], folder: Path) -> None:
    """Change files in `folder`; line numbers are those before any change."""
    for change in sorted(changes, key=lambda c: c.after, reverse=True):
        path = folder / change.path
        lines = path.read_text().splitlines()
        if change.after > len(lines):
            raise ValueError(
                f"{path} has {len(lines)} lines; a change is behind line {change.after}"
            )
        first, last = change.removed
        kept = lines[: first - 1] if first else lines[: change.after]
        rest = lines[last:] if first else lines[change.after :]
        path.write_text("\n".join([*kept, *change.added, *rest]) + "\n")


def run(codebase: Codebase, variant: Path, work: Path, dtype: str, steps: int) -> dict[str, Any]:
    """One run of a variant in a process of its own."""
    filled = {
        "batch": BATCH,
        "steps": COMPARED,
        "quarter": COMPARED // 4,
        "out": work / "out",
        "repo": variant,
        **{name: work / name for name in codebase.needs},
    }
    job = {
        "script": str(variant / codebase.script),
        "arguments": [*codebase.arguments, *(word.format(**filled) for word in codebase.sizes)],
        "dtype": dtype,
        "stubs": codebase.stubs,
        "small": codebase.small,
        "steps": steps,
    }
    return run_child(("benchmarks.dropin.child",), job, work)


def seconds(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Median and quartiles of the steps after the warm-up."""
    steps = [s for record in records for s in record["step_seconds"][1:]]
    low, median, high = statistics.quantiles(steps, n=4)
    return {"median": median, "quartile_1": low, "quartile_3": high, "steps": len(steps)}


def compare(codebase: Codebase, repo: Path) -> dict[str, Any]:
    """All variants of a codebase against the official script."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in codebase.needs:
            getattr(inputs, name)(work / name, BATCH)
        folders = {}
        for name, changes in {"official": (), **codebase.variants}.items():
            folders[name] = work / name
            export(codebase, repo, folders[name])
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
            "step_seconds": seconds(timed[name]),
            "peak_rss_mib": max(record["peak_rss_mib"] for record in timed[name]),
        }
    return {
        "codebase": codebase.name,
        "url": codebase.url,
        "revision": codebase.revision,
        "script": codebase.script,
        "arguments": list(codebase.arguments),
        "model": codebase.models,
        "batch_size": BATCH,
        "image_size": 224,
        "iterations_compared": COMPARED,
        "clock": "processor time",  # which other work on the machine disturbs less
        "official": {
            "losses": official.tolist(),
            "step_seconds": seconds(timed["official"]),
            "peak_rss_mib": max(record["peak_rss_mib"] for record in timed["official"]),
        },
        "variants": variants,
        "environment": collect(torch.device("cpu")),
    }


def table(result: dict[str, Any]) -> str:
    """The result as it stands on the page of its codebase, in Markdown."""
    official = result["official"]

    def milliseconds(times: dict[str, float]) -> str:
        median, low, high = (1000 * times[key] for key in ("median", "quartile_1", "quartile_3"))
        return f"{median:.0f} ms ({low:.0f} – {high:.0f})"

    lines = [
        f"| {Path(result['script']).name} | losses | a step (quartiles) | peak memory |",
        "|---|---|---|---|",
        f"| as published | | {milliseconds(official['step_seconds'])} "
        f"| {official['peak_rss_mib']:.0f} MiB |",
    ]
    for variant in result["variants"].values():
        count = variant["lines_changed"]
        lines.append(
            f"| {count} {'line' if count == 1 else 'lines'} changed "
            f"| within {variant['max_relative_difference']:.0e} "
            f"| {milliseconds(variant['step_seconds'])} | {variant['peak_rss_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropin", description=__doc__)
    parser.add_argument("codebase", choices=sorted(CODEBASES))
    parser.add_argument("--repo", type=Path, required=True, help="a clone with the revision")
    parser.add_argument("--out", type=Path, default=None, help="default: beside this file")
    parser.add_argument(
        "--threads", type=int, default=1, help="1: the least disturbed by other work"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = compare(CODEBASES[args.codebase], args.repo)
    out = args.out or Path(__file__).parent / f"{args.codebase}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
