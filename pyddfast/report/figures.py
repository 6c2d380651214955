"""Figures of the reports, as self-contained SVG or PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data import DistilledSet
from pyddfast.report.tables import Result, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "accuracy_figure",
    "figure_of",
    "png",
    "png_uri",
    "sets_figure",
    "show_canvas",
    "shown_pixels",
    "svg",
]

# Okabe and Ito's palette: told apart under every common colour blindness and in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_INK, _FAINT = "#1f2933", "#d5dae0"

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "pyddfast",  # equal figures give equal bytes
}


def accuracy_figure(results: Sequence[Result], *, chance: float | None = None) -> Figure:
    """Grouped bars of test accuracy: a group a regime, a bar a method, a dot a seed.

    Error bars are ± one standard error from seeds and test images together.

    Args:
        results: Cells; regimes and methods appear in the order in which they first occur.
        chance: Accuracy of guessing, drawn as a dashed line.

    Returns:
        A matplotlib figure.
    """
    matplotlib = require("matplotlib", "methods")
    figure_class = require("matplotlib.figure", "methods").Figure
    regimes = list(dict.fromkeys(r.regime for r in results))
    methods = list(dict.fromkeys(r.method for r in results))
    with matplotlib.rc_context(_STYLE):
        figure: Figure = figure_class(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / len(methods)
        for row, method in enumerate(methods):
            cells = [r for r in results if r.method == method]
            x = [regimes.index(r.regime) + (row - (len(methods) - 1) / 2) * width for r in cells]
            means = [100 * r.mean for r in cells]
            errors = [100 * r.standard_error for r in cells]
            axes.bar(
                x,
                means,
                width * 0.92,
                yerr=errors,
                label=method,
                color=COLORS[row % len(COLORS)],
                error_kw={"ecolor": _INK, "elinewidth": 1.2, "capsize": 3.5, "capthick": 1.2},
            )
            for left, cell in zip(x, cells, strict=True):
                count = len(cell.accuracies)
                axes.plot(
                    [left - width * 0.26] * count,  # beside the error bar: neither hides the other
                    [100 * a for a in cell.accuracies],
                    linestyle="none",
                    marker="o",
                    markersize=3.5,
                    markerfacecolor="white",
                    markeredgecolor=_INK,
                    markeredgewidth=0.8,
                )
            for left, mean, error, cell in zip(x, means, errors, cells, strict=True):
                axes.annotate(
                    percent(mean / 100),
                    (left, max(mean + error, 100 * max(cell.accuracies))),
                    xytext=(0, 4),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                )
        if chance is not None:
            axes.axhline(100 * chance, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                "chance",
                (1.0, 100 * chance),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        axes.set_xticks(range(len(regimes)), regimes)
        axes.set_ylabel("test accuracy (%)")
        highest = max(100 * max((*r.accuracies, r.mean + r.standard_error)) for r in results)
        axes.set_ylim(0, min(112.0, highest * 1.12))
        axes.tick_params(length=0)
        axes.grid(axis="y", color=_FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        figure.legend(loc="outside upper left", ncols=len(methods), frameon=False, handlelength=1.0)
    return figure


def figure_of(
    rows: int, columns: int, *, width: float = 7.2, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """An empty figure in the reports' style, and its axes row by row.

    Args:
        rows: Of axes.
        columns: Of axes.
        width: In inches.
        height: In inches.
    """
    matplotlib = require("matplotlib", "methods")
    figure_class = require("matplotlib.figure", "methods").Figure
    with matplotlib.rc_context(_STYLE):
        figure: Figure = figure_class(figsize=(width, height), layout="constrained")
        axes = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for one in axes:
        one.grid(color=_FAINT, linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def sets_figure(
    sets: Mapping[str, DistilledSet], *, columns: int = 6, rows: int | None = None
) -> Figure:
    """The first images of every class of several sets: a row a class, a block of columns a set.

    Args:
        sets: Sets of the same classes and image shape (grey or RGB), by display name.
        columns: At most so many images of a class of each set.
        rows: At most so many classes; default all.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: The images have neither 1 nor 3 channels, or the sets do not fit together.
    """
    matplotlib = require("matplotlib", "methods")
    figure_class = require("matplotlib.figure", "methods").Figure
    made = list(sets.values())
    if len({(one.num_classes, one.class_names, one.images.shape[1:]) for one in made}) != 1:
        raise ValueError("sets must be at least one, of the same classes and image shape")
    channels, height, width = made[0].images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"a figure needs 1 or 3 channels, the images have {channels}")
    classes = range(min(made[0].num_classes, rows or made[0].num_classes))
    columns = max(1, min(columns, max(int(one.class_counts.max()) for one in made)))
    gap = max(1, height // 14)
    block = columns * (width + gap) - gap
    between = width // 2  # space between two sets
    # One canvas of all images: hundreds of axes would take seconds to draw.
    canvas = torch.full(
        (
            len(classes) * (height + gap) - gap,
            len(made) * (block + between) - between,
            channels,
        ),
        255,
        dtype=torch.uint8,
    )
    for number, one in enumerate(made):
        shown = shown_pixels(one).cpu()
        for row, label in enumerate(classes):
            members = (one.labels == label).nonzero()[:columns, 0].tolist()
            for column, index in enumerate(members):
                top = row * (height + gap)
                left = number * (block + between) + column * (width + gap)
                canvas[top : top + height, left : left + width] = shown[index].permute(1, 2, 0)
    names = made[0].class_names or tuple(str(label) for label in classes)
    with matplotlib.rc_context(_STYLE):
        # 0.45 inch an image: 18 of them and the names fill a page's width.
        scale = 0.45 / width
        figure: Figure = figure_class(
            figsize=(canvas.shape[1] * scale + 1.0, canvas.shape[0] * scale + 0.35),
            layout="constrained",
        )
        axes = figure.add_subplot()
        show_canvas(axes, canvas)
        axes.set_yticks(
            [row * (height + gap) + height / 2 - 0.5 for row in range(len(classes))],
            [names[label] for label in classes],
        )
        axes.set_xticks(
            [number * (block + between) + block / 2 - 0.5 for number in range(len(made))],
            list(sets),
            fontweight="bold",
        )
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def show_canvas(axes: Axes, canvas: Tensor) -> None:
    """Draw pixels as they are.

    Args:
        axes: Where.
        canvas: uint8 (H, W, C), grey or RGB.
    """
    pixels = canvas.numpy()
    axes.imshow(
        pixels[..., 0] if canvas.shape[-1] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )


def svg(figure: Figure, *, alt: str) -> str:
    """The figure as an ``<svg>`` element for a page, without file header or date.

    Args:
        figure: A matplotlib figure.
        alt: What it shows, for readers who cannot see it.
    """
    matplotlib = require("matplotlib", "methods")
    markupsafe = require("markupsafe", "methods")
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    return body.replace("<svg", f'<svg role="img" aria-label="{markupsafe.escape(alt)}"', 1)


def png(figure: Figure, *, dpi: int = 160) -> bytes:
    """The figure as a PNG, without the date."""
    matplotlib = require("matplotlib", "methods")
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def png_uri(figure: Figure, *, dpi: int = 160) -> str:
    """The figure as a ``data:`` URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png(figure, dpi=dpi)).decode()


def shown_pixels(made: DistilledSet) -> Tensor:
    """uint8 (N, C, H, W); whitened images, which have no pixels, each over its own range."""
    if not made.whitened:
        return made.pixels()
    low = made.images.amin((1, 2, 3), keepdim=True)
    span = made.images.amax((1, 2, 3), keepdim=True) - low
    return ((made.images - low) / span.clamp_min(1e-12) * 255).round().to(torch.uint8)
