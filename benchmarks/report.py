"""Renders committed results: `docs/results.md`, its figures, and the table in the README.

Nothing here measures, rounds in our favour or leaves a case out: every row of every file in
`benchmarks/results/` is shown, and where a peer is faster the row says so.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.schema import RESULTS, is_ours, read

ROOT = Path(__file__).resolve().parent.parent
PAGE, README, IMAGES = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "img"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SLOWER = "**slower**"
NOISY = 0.2  # of the median; on a quiet machine the range is a few percent

Row = dict[str, Any]


def load(folder: Path = RESULTS) -> dict[str, Row]:
    """Every committed run, file stem to content, sorted by name.

    Raises:
        ValueError: A file is no result, or a quick run, which only shows that the suite works.
    """
    runs = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    for stem, run in runs.items():
        if run["metadata"]["quick"]:
            raise ValueError(f"{folder / stem}.json is of a --quick run: not for publication")
    return runs


def case_of(row: Row) -> tuple[str, str, tuple[int, ...], str]:
    """What makes rows comparable: all but the provider."""
    return row["op"], row["part"], tuple(row["shape"]), row["dtype"]


def grouped(rows: list[Row]) -> list[list[Row]]:
    """Rows of one case together, wherever they are in the file, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row), []).append(row)
    return list(groups.values())


def is_peer(row: Row) -> bool:
    """Whether the row is not of ours."""
    return not is_ours(row["provider"])


# Ops that are measured on many tensors at once; the shape is that of the network's images.
MANY = dict.fromkeys(("channel_stats", "bn_eval_stats"), "20 BN inputs of a ResNet-18 for ")


def shape_text(op: str, shape: Sequence[int]) -> str:
    return MANY.get(op, "") + "×".join(map(str, shape))


def number(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 up."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(header: list[str], rows: list[list[str]], text: int = 4) -> list[str]:
    """Markdown; `text` columns first, then numbers to the right."""
    ruler = ["---" if i < text else "---:" for i in range(len(header))]
    return ["| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows)]


def speedup(group: list[Row], provider: str) -> float | None:
    """The provider's median over ours; None where either was not measured.

    Like is held against like: a closed form against our one-pass function, both without autograd;
    an eager step that draws its parameters against ours that does, where there is one.
    """
    medians = {row["provider"]: row["median_us"] for row in group}
    ours = "ours (one pass)" if "(closed form)" in provider else "ours"
    if provider == "eager" and "ours with draws" in medians:
        ours = "ours with draws"
    if ours not in medians or provider not in medians:
        return None
    return float(medians[provider] / medians[ours])


def times(factor: float | None) -> str:
    """By which factor ours is faster, marked below 1; empty without one."""
    return "" if factor is None else f"{factor:.2f}×" + (f" {SLOWER}" if factor < 1 else "")


def timing_rows(rows: list[Row]) -> list[list[str]]:
    """One line a row; in a peer's line the factor by which ours is faster, marked below 1."""
    lines = []
    for group in grouped(rows):
        for row in group:
            factor = speedup(group, row["provider"]) if is_peer(row) else None
            host = "" if row["host_us"] is None else number(row["host_us"])
            lines.append(
                [
                    f"`{row['op']}` {row['part']}",
                    shape_text(row["op"], row["shape"]),
                    row["dtype"],
                    row["provider"],
                    number(row["median_us"]),
                    number(row["iqr_us"]),
                    number(row["gb_s"]),
                    f"{100 * row['copy_fraction']:.0f} %",
                    host,
                    "" if row.get("error") is None else f"{row['error']:.0e}",
                    times(factor),
                ]
            )
    return lines


TIMING_HEADER = ["op", "shape", "dtype", "provider", "median µs", "IQR µs", "GB/s", "of copy"]
TIMING_HEADER += ["host µs", "error", "ours is faster by"]


def our_medians(rows: list[Row]) -> dict[tuple[str, str], float]:
    """Milliseconds of our side by step and setting."""
    return {(r["step"], r["setting"]): r["median_ms"] for r in rows if r["provider"] == "ours"}


def step_speedup(row: Row, medians: dict[tuple[str, str], float]) -> float | None:
    """The row's median over ours; None for our own row, and where ours was not measured."""
    ours = medians.get((row["step"], row["setting"]))
    return row["median_ms"] / ours if ours and is_peer(row) else None


def step_rows(rows: list[Row]) -> list[list[str]]:
    """One line a provider of a whole step."""
    medians = our_medians(rows)
    lines = []
    for row in rows:
        difference = row["difference"]
        lines.append(
            [
                row["step"],
                row["setting"],
                row["provider"],
                number(row["median_ms"]),
                number(row["iqr_ms"]),
                "" if row["op_share"] is None else f"{row['op_share']:.1%}",
                "" if difference is None else f"{difference:.0e}",
                times(step_speedup(row, medians)),
            ]
        )
    return lines


STEP_HEADER = ["step", "setting", "provider", "median ms", "IQR ms", "in our ops", "difference"]
STEP_HEADER += ["ours is faster by"]


def accuracy_rows(rows: list[Row]) -> list[list[str]]:
    return [
        [
            f"`{row['op']}`",
            shape_text(row["op"], row["shape"]),
            f"{row['dtype']}, T={row['temperature']:g}",
            row["provider"],
            f"{row['kl']:.0e}",
            f"{row['loss_error']:.1e}",
            f"{row['gradient_error']:.1e}",
            f"{row['score_error']:.1e}",
            f"{100 * row['negative_losses']:.0f} %",
        ]
        for row in rows
    ]


ACCURACY_HEADER = ["op", "shape", "inputs", "provider", "KL", "loss", "gradient", "score"]
ACCURACY_HEADER += ["negative losses"]


def machine(run: Row) -> str:
    """One sentence: where, with what, when, how often."""
    metadata = run["metadata"]
    samples = sorted({row["samples"] for row in (*run["results"], *run.get("steps", ()))})
    cpu, gpu, versions = metadata["cpu"], metadata["gpu"], metadata["versions"]
    device = f"{cpu['name']}, {cpu['threads']} threads of {cpu['cores']} cores, {cpu['simd']}"
    if gpu is not None:
        device = f"{gpu['name']} (driver {gpu['driver']}, CUDA {gpu['cuda']}) on {device}"
    revision = (metadata["git_revision"] or "unknown")[:10]
    changed = " with uncommitted changes" if metadata["git_dirty"] else ""
    return (
        f"{device}; torch {versions['torch']}, Python {versions['python']}; revision "
        f"`{revision}`{changed}; {metadata['created']}; load average before the run "
        f"{cpu['load_average_1min']:g}; copy bandwidth {metadata['copy_gb_s']:.1f} GB/s "
        f"(read and written bytes); {' or '.join(map(str, samples))} samples a row"
    )


def slower_cases(rows: list[Row]) -> list[str]:
    """Every case in which a peer is faster than ours, in words."""
    found = []
    for group in grouped(rows):
        for row in group:
            factor = speedup(group, row["provider"])
            if is_peer(row) and factor is not None and factor < 1:
                op, part, shape, dtype = case_of(row)
                name = f"`{op}` {part} {shape_text(op, shape)} {dtype}"
                found.append(f"{name}: {row['provider']} takes {factor:.2f} of our time")
    return found


def slower_steps(rows: list[Row]) -> list[str]:
    """Every step in which the official expression is faster, in words."""
    medians = our_medians(rows)
    found = []
    for row in rows:
        factor = step_speedup(row, medians)
        if factor is not None and factor < 1:
            found.append(f"{row['step']}: {row['provider']} takes {factor:.2f} of our time")
    return found


def noisy(rows: list[Row]) -> str:
    """How many rows spread too widely to compare closely."""
    wide = sum(row["iqr_us"] > NOISY * row["median_us"] for row in rows)
    return (
        f"{wide} of {len(rows)} rows have an inter-quartile range above {NOISY:.0%} of their median"
        + (": the machine was busy with other work, read their factors roughly." if wide else ".")
    )


def page(runs: dict[str, Row]) -> str:
    """The text of `docs/results.md`."""
    lines = [
        "# Measured results",
        "",
        "<!-- Generated by `python -m benchmarks report`; edit benchmarks/report.py instead. -->",
        "",
        "Every number comes from a file in `benchmarks/results/`, written by",
        "`python -m benchmarks run` or the command named beside it; [how it is",
        "measured](benchmarks.md).",
        "",
    ]
    if not runs:
        return "\n".join([*lines, "No result has been committed yet.", ""])
    for stem, run in runs.items():
        lines += [f"## {stem}", "", machine(run) + ".", ""]
        steps = run.get("steps", [])
        slower = slower_cases(run["results"]) + slower_steps(steps)
        if slower:
            lines += ["Where a peer is faster:", "", *(f"- {case}" for case in slower), ""]
        else:
            lines += ["No peer is faster in any case of this run.", ""]
        if run["results"]:
            lines += [
                f"![Speed-up of ours over each peer](img/{stem}-speed.svg)",
                "",
                "### Time",
                "",
                noisy(run["results"]),
                "",
                *table(TIMING_HEADER, timing_rows(run["results"])),
                "",
            ]
        if steps:
            lines += ["### Whole steps", "", *table(STEP_HEADER, step_rows(steps), text=3), ""]
        if run["accuracy"]:
            lines += [
                "### Accuracy",
                "",
                "Norm-wise relative error against float64, by the rows' KL.",
                "",
                f"![Relative error by KL](img/{stem}-accuracy.svg)",
                "",
                *table(ACCURACY_HEADER, accuracy_rows(run["accuracy"])),
                "",
            ]
        if left_out := run["metadata"]["left_out"]:
            lines += ["### Not measured", ""]
            lines += [*(f"- {name}: {reason}" for name, reason in left_out.items()), ""]
    return "\n".join([*lines, *recorder_lines(), *reading_lines(), *trajectory_lines()])


def readme_part(runs: dict[str, Row]) -> str:
    """What stands between the README's markers: a line an op, over all its cases, and the accuracy.

    Ops that have a backward are shown with it.  Of several runs on one machine that have an op the
    first by name is shown: `cpu-kept-memory.json` is the suite under other conditions.
    """
    if not runs:
        return "No result has been committed yet."
    machines: dict[str, tuple[dict[str, list[list[Row]]], list[Row]]] = {}
    for _, run in sorted(runs.items()):
        metadata = run["metadata"]
        cpu, gpu = metadata["cpu"], metadata["gpu"]
        where = gpu["name"] if gpu else f"{cpu['name']}, {cpu['threads']} threads"
        ops, accuracy = machines.setdefault(
            f"{where}, torch {metadata['versions']['torch']}", ({}, [])
        )
        found: dict[str, list[list[Row]]] = {}
        for group in grouped(run["results"]):
            if any(row["provider"] == "ours" for row in group):
                found.setdefault(group[0]["op"], []).append(group)
        for op, cases in found.items():
            differentiated = [g for g in cases if g[0]["part"].endswith("forward+backward")]
            ops.setdefault(op, differentiated or cases)
        accuracy += [] if accuracy else run["accuracy"]
    lines = []
    for machine, (ops, accuracy) in machines.items():
        rows = [
            [
                f"`{op}`",
                str(len(cases)),
                *(_factors(cases, name) for name in COMMON_PEERS),
                "; ".join(f"{name} {_factors(cases, name)}" for name in _other_peers(cases)),
            ]
            for op, cases in ops.items()
        ]
        header = ["op", "cases", "faster than eager", "than torch.compile", "than others"]
        lines += [
            f"{machine}; forward and backward, or forward where there is no backward; the least "
            "and the most of all cases:",
            "",
            *table(header, rows, text=1),
            "",
        ]
        if accuracy:
            lines += [accuracy_sentence(accuracy), ""]
    return "\n".join(lines).rstrip()


COMMON_PEERS = ("eager", "torch.compile")


def _other_peers(cases: list[list[Row]]) -> list[str]:
    """Peers of some ops only; another form of a common peer is left to the page."""
    names = dict.fromkeys(row["provider"] for group in cases for row in group if is_peer(row))
    return [name for name in names if name not in COMMON_PEERS and "form" not in name]


def _factors(cases: list[list[Row]], provider: str) -> str:
    """How many times as fast as a provider we are, from the least to the most."""
    factors = [f for group in cases if (f := speedup(group, provider)) is not None]
    if not factors:
        return ""
    ends = dict.fromkeys(f"{factor:.1f}" for factor in (min(factors), max(factors)))
    return "–".join(ends) + "×" + (f" {SLOWER}" if min(factors) < 1 else "")


def recorder_lines(folder: Path = RESULTS / "recorder") -> list[str]:
    """What recording a training costs, of every run of `python -m benchmarks.recorder`."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        rows = [
            [
                f"`{row['model']}`",
                f"batch {row['batch_size']}, {row['classes']} classes",
                f"{row['steps']} steps",
                "32 × 32 px",
                number(row["step_ms"]),
                number(row["update_ms"]),
                f"{row['share']:.3%}",
                f"{row['largest_share']:.3%}",
            ]
            for row in run["results"]
        ]
        header = ["network", "batch", "timed", "images", "step, ms", "update, ms", "share"]
        lines += [
            f"## Recording a training: {path.stem}",
            "",
            "`TrainingDynamics.update` inside a training loop, timed in place by",
            f"`python -m benchmarks.recorder`: {run['metadata']['cpu']['name']}, "
            f"{run['metadata']['cpu']['threads']} threads, {run['created']}.",
            f"Its state for ImageNet-1k takes {run['state_bytes_imagenet_1k'] / 1e6:.1f} MB.",
            "",
            *table([*header, "largest"], rows),
            "",
        ]
    return lines


def reading_lines(folder: Path = RESULTS / "reading") -> list[str]:
    """From files to batches, of every run of `python -m benchmarks.reading`."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        metadata, rows = run["metadata"], []
        for row in run["results"]:
            first = next(r for r in run["results"] if r["view"] == row["view"])
            gain = row["images_per_s"] / first["images_per_s"]
            share = first["cpu_ms_per_image"] / row["cpu_ms_per_image"]
            rows.append(
                [
                    row["view"],
                    row["provider"],
                    f"{run['workers']} workers",
                    f"batch {run['batch_size']}",
                    number(row["images_per_s"]),
                    f"{row['pass_iqr_ms'] / row['pass_ms']:.0%}",
                    f"{row['cpu_ms_per_image']:.2f}",
                    times(None if row is first else gain),
                    "" if row is first else f"{share:.2f}×",
                ]
            )
        header = ["view", "provider", "threads or processes", "batch", "images/s", "IQR"]
        header += ["processor ms an image", "faster by", "less processor time by"]
        height, width = run["image_size"]
        lines += [
            f"## Reading images: {path.stem}",
            "",
            f"{run['images']} made JPEG files of {width} × {height} pixels and "
            f"{run['mean_bytes'] / 1e3:.0f} kB to normalised float32 batches at 224²: "
            "`python -m benchmarks.reading`, "
            f"median of {run['rounds']} passes; {metadata['cpu']['name']}, "
            f"{metadata['cpu']['cores']} cores, Pillow {metadata['pillow']}, DALI "
            f"{metadata['dali']}, torch {metadata['versions']['torch']}, {run['created']}; load "
            f"average before the run {metadata['cpu']['load_average_1min']:g}. `DataLoader + PIL` "
            "is the input path of the official codes.",
            "",
            *table(header, rows),
            "",
        ]
    return lines


def trajectory_lines(folder: Path = RESULTS / "trajectory") -> list[str]:
    """What an outer step of TM costs, of every run of `python -m benchmarks.trajectory`."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        timed, metadata = run["results"], run["metadata"]
        lengths = list(dict.fromkeys(row["steps"] for row in run["memory"]))
        kept = {(row["provider"], row["steps"]): row["kept_mb"] for row in run["memory"]}
        rows = []
        for row in timed:
            name = row["provider"]
            gain = timed[0]["outer_ms"] / row["outer_ms"]
            least, most = min(row["outer_ms_all"]), max(row["outer_ms_all"])
            rows.append(
                [
                    name,
                    f"{row['outer_ms']:,.0f}",
                    f"{least:,.0f} to {most:,.0f}",
                    f"{row['convolution_ms']:,.0f}",
                    times(None if row is timed[0] else gain),
                    *(number(kept[name, n]) if (name, n) in kept else "" for n in lengths),
                ]
            )
        header = ["provider", "ms", "of", "in convolutions, ms", "faster by"]
        header += [f"MB kept, N = {n}" for n in lengths]
        model, options = run["model"]
        calls = ", ".join(
            f"{row['provider']} {row['inner_step']} and {row['final_backward']}"
            for row in run["calls"]
        )
        lines += [
            f"## A step of trajectory matching: {path.stem}",
            "",
            f"An outer step of TM, {run['steps']} inner steps of {run['batch_size']} images of 32 "
            f"px, {model} of width {options['width']}: `python -m benchmarks.trajectory`, median "
            f"of {len(timed[0]['outer_ms_all'])}; {metadata['cpu']['name']}, "
            f"{metadata['cpu']['threads']} threads, torch {metadata['versions']['torch']}, "
            f"{run['created']}; load average before the run "
            f"{metadata['cpu']['load_average_1min']:g}. Kept are the bytes that wait for the "
            "backward at the end of N inner steps. Operators of an inner step and of its part of "
            f"the final backward: {calls}.",
            "",
            *table(header, rows, text=1),
            "",
        ]
    return lines


def accuracy_sentence(rows: list[Row]) -> str:
    """The worst errors of ours, and what torch's expression does at the smallest KL."""
    ours = [row for row in rows if row["provider"] == "ours"]
    keys = ("loss_error", "gradient_error", "score_error")
    worst = max(row[key] for row in ours for key in keys)
    low, high = min(row["kl"] for row in ours), max(row["kl"] for row in ours)
    text = (
        f"Largest norm-wise relative error of `kd_loss`'s loss, gradient or score against float64, "
        f"KL from {low:.0e} to {high:.0e}, fp32: {worst:.1e}"
    )
    peers = [row for row in rows if row["provider"] == "eager"]
    if peers:
        peer = max(peers, key=lambda row: float(row["loss_error"]))
        text += (
            f"; of `F.kl_div`: {peer['loss_error']:.1e} (at KL {peer['kl']:.0e}, "
            f"{100 * peer['negative_losses']:.0f} % of the rows negative)"
        )
    return text + "."


def between_markers(text: str, part: str) -> str:
    """The README with its generated part replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"README.md needs the lines {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{part}\n{END}{after}"


def text_table(run: Row) -> str:
    """One run for the terminal."""
    parts = [machine(run)]
    if run["results"]:
        parts.append(_aligned(TIMING_HEADER, timing_rows(run["results"]), 4))
    if steps := run.get("steps"):
        parts.append(_aligned(STEP_HEADER, step_rows(steps), 3))
    return "\n\n".join(parts)


def _aligned(header: list[str], rows: list[list[str]], text: int) -> str:
    plain = [[cell.replace("`", "").replace("*", "") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *plain, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, *plain)
    )


def digest(run: Row) -> str:
    """Of what the figures show, and of how they are drawn."""
    keys = ("op", "part", "shape", "dtype", "provider", "median_us")
    shown = [[row[key] for key in keys] for row in run["results"]]
    text = json.dumps([shown, run["accuracy"]]) + inspect.getsource(draw)
    return hashlib.sha256(text.encode()).hexdigest()


def figures(stem: str, run: Row) -> list[str]:
    """The names of a run's figures."""
    names = [f"{stem}-speed.svg"] if run["results"] else []
    return [*names, f"{stem}-accuracy.svg"] if run["accuracy"] else names


def up_to_date(stem: str, run: Row, folder: Path) -> bool:
    """Whether the figures show this run; other fonts or another matplotlib are no reason to redraw.

    Each carries the digest of what it was drawn from.
    """
    paths = [folder / name for name in figures(stem, run)]
    return all(path.is_file() and digest(run) in path.read_text() for path in paths)


def draw(stem: str, run: Row, folder: Path) -> None:
    """Two figures a run: speed-up by case and peer, error by KL."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pyddfast"  # the same run gives the same bytes
    from matplotlib import pyplot as plt

    about = {"Date": None, "Creator": None, "Description": f"Drawn from {digest(run)}"}
    folder.mkdir(parents=True, exist_ok=True)
    groups = [g for g in grouped(run["results"]) if any(r["provider"] == "ours" for r in g)]
    peers = list(dict.fromkeys(r["provider"] for r in run["results"] if is_peer(r)))
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.42 * len(groups)), layout="constrained")
    height = 0.8 / max(len(peers), 1)
    for i, peer in enumerate(peers):
        bars = [(y, speedup(group, peer)) for y, group in enumerate(groups)]
        known = [(y + (i - (len(peers) - 1) / 2) * height, f) for y, f in bars if f is not None]
        axes.barh([y for y, _ in known], [f for _, f in known], height, label=peer)
    names = [
        f"{op} {part} {shape_text(op, shape)} {dtype}"
        for op, part, shape, dtype in (case_of(group[0]) for group in groups)
    ]
    axes.set_yticks(range(len(groups)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("peer's time over ours (log scale; left of the line the peer is faster)")
    axes.legend(fontsize=7)
    figure.savefig(folder / f"{stem}-speed.svg", metadata=about)
    plt.close(figure)
    if not run["accuracy"]:
        return
    temperatures = sorted({row["temperature"] for row in run["accuracy"]})
    figure, panels = plt.subplots(
        1, len(temperatures), figsize=(8, 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, temperature in zip(panels[0], temperatures, strict=True):
        for provider, style in (("ours", "-"), ("eager", "--")):
            rows = [
                row
                for row in run["accuracy"]
                if row["provider"] == provider and row["temperature"] == temperature
            ]
            for key, marker in (("loss_error", "o"), ("gradient_error", "s"), ("score_error", "^")):
                label = f"{provider} {key.removesuffix('_error')}"
                values = [row[key] for row in rows]
                axes.plot([row["kl"] for row in rows], values, style + marker, label=label, ms=3)
        axes.axhline(1e-6, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", title=f"T = {temperature:g}", xlabel="KL of the rows")
    panels[0][0].set_ylabel("norm-wise relative error")
    panels[0][-1].legend(fontsize=6)
    figure.savefig(folder / f"{stem}-accuracy.svg", metadata=about)
    plt.close(figure)


def main(*, check: bool = False) -> int:
    """Writes the pages and figures; with `check` only compares the pages, and returns 1 if old."""
    runs = load()
    pages = {
        PAGE: page(runs),
        README: between_markers(README.read_text(), readme_part(runs)),
    }
    old = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check:
        for path in old:
            print(f"{path.relative_to(ROOT)} is out of date: python -m benchmarks report")
        return 1 if old else 0
    for path, text in pages.items():
        path.write_text(text)
    for stem, run in runs.items():
        if not up_to_date(stem, run, IMAGES) and run["results"]:
            draw(stem, run, IMAGES)
    print(f"written: {', '.join(str(p.relative_to(ROOT)) for p in pages)}", file=sys.stderr)
    return 0
