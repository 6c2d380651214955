"""``python -m benchmarks run`` and ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import math
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
    run.add_argument(
        "--ops", type=names, help="comma-separated, default: all", metavar="kd_loss,..."
    )
    run.add_argument(
        "--end-to-end",
        nargs="?",
        type=names,
        const=("all",),
        metavar="recover-resnet18,...",
        help="whole steps, default: all; instead of the ops, unless --ops names some",
    )
    run.add_argument(
        "--limit",
        type=seconds,
        help="seconds after which no other case begins: the run ends with status 75, and the same "
        "command goes on",
    )
    run.add_argument(
        "--providers",
        type=names,
        help="comma-separated, default: all; of the ops",
        metavar="ours,eager,...",
    )
    run.add_argument("--threads", type=count, help="CPU threads, default: torch's")
    run.add_argument("--rounds", type=count, help="samples a provider and case")
    run.add_argument("--quick", action="store_true", help="small shapes, few samples")
    run.add_argument("--out", type=Path, help="default: runs/benchmarks/DEVICE-TIME.json")
    report = commands.add_parser("report", help="render benchmarks/results/*.json into the docs")
    report.add_argument("--check", action="store_true", help="fail where a page is out of date")
    return parser.parse_args(arguments)


def names(option: str) -> tuple[str, ...]:
    """Of a comma-separated list."""
    found = tuple(name.strip() for name in option.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{option!r} has an empty name")
    return found


def count(option: str) -> int:
    """A whole number from 1 on."""
    if not option.isdecimal() or int(option) < 1:
        raise argparse.ArgumentTypeError(f"{option!r} is no whole number from 1 on")
    return int(option)


def seconds(option: str) -> float:
    """A finite time, not negative."""
    try:
        value = float(option)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{option!r} is no number of seconds from 0 on")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    options = parse(arguments)
    os.environ.setdefault("PYDDFAST_STRICT", "1")  # never measure a fallback by mistake
    from benchmarks import report

    try:
        return report.main(check=options.check) if options.command == "report" else measure(options)
    except (OSError, ValueError) as error:  # of the arguments and files, each named in the text
        print(f"python -m benchmarks {options.command}: {error}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace) -> int:
    """The subcommand ``run``; 75 where cases are left for the next call."""
    import torch

    from benchmarks import report, run, schema
    from benchmarks.ops import CASES
    from benchmarks.progress import Progress
    from benchmarks.steps import STEPS

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA GPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    steps = options.end_to_end or ()
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    out = options.out or Path(f"runs/benchmarks/{options.device}-{now}.json")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder, not a file")
    partial = out.with_name(out.name + ".partial")
    progress = Progress(partial)
    result = run.run(
        torch.device(options.device),
        op_names=options.ops or (() if steps else tuple(CASES)),
        step_names=tuple(STEPS) if steps == ("all",) else steps,
        providers=options.providers,
        quick=options.quick,
        rounds=options.rounds,
        limit_s=options.limit,
        progress=progress,
    )
    print(report.text_table(result))
    if progress.left:
        print(f"\n{len(progress.left)} not begun: the same command with --out {out} goes on")
        return 75
    schema.write(result, out)
    partial.unlink()
    print(f"\nwritten: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
