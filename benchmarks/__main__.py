"""``python -m benchmarks run`` and ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime, timezone
from pathlib import Path


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; writes one JSON and prints a table")
    run.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    run.add_argument("--ops", help="comma-separated, default: all", metavar="kd_loss,...")
    run.add_argument(
        "--end-to-end",
        nargs="?",
        const="all",
        metavar="recover-resnet18,...",
        help="whole steps, default: all; instead of the ops, unless --ops names some",
    )
    run.add_argument("--limit", type=float, help="seconds after which no other case begins")
    run.add_argument("--providers", help="comma-separated, default: all", metavar="ours,eager,...")
    run.add_argument("--threads", type=int, help="CPU threads, default: torch's")
    run.add_argument("--rounds", type=int, help="samples a provider and case")
    run.add_argument("--quick", action="store_true", help="small shapes, few samples")
    run.add_argument("--out", type=Path, help="default: runs/benchmarks/DEVICE-TIME.json")
    report = commands.add_parser("report", help="render benchmarks/results/*.json into the docs")
    report.add_argument("--check", action="store_true", help="fail where a page is out of date")
    return parser.parse_args(arguments)


def names(option: str | None) -> tuple[str, ...]:
    """Of a comma-separated list."""
    return tuple(option.split(",")) if option else ()


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    options = parse(arguments)
    os.environ.setdefault("PYDDFAST_STRICT", "1")  # never measure a fallback by mistake
    from benchmarks import report, schema

    if options.command == "report":
        return report.main(check=options.check)
    import torch

    from benchmarks import run
    from benchmarks.ops import CASES
    from benchmarks.steps import STEPS

    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch finds no CUDA GPU", file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    all_ops = () if options.end_to_end else tuple(CASES)
    steps = tuple(STEPS) if options.end_to_end == "all" else names(options.end_to_end)
    try:
        result = run.run(
            torch.device(options.device),
            op_names=names(options.ops) or all_ops,
            step_names=steps,
            providers=names(options.providers) or None,
            quick=options.quick,
            rounds=options.rounds,
            limit_s=options.limit,
        )
    except ValueError as error:
        print(f"python -m benchmarks run: {error}", file=sys.stderr)
        return 2
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    out = options.out or Path(f"runs/benchmarks/{options.device}-{now}.json")
    schema.write(result, out)
    print(report.text_table(result))
    print(f"\nwritten: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
