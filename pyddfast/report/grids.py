"""Images of one class by several methods: a row a method, as Figures 6 to 10 of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pyddfast.data import DistilledSet
from pyddfast.report.figures import figure_of, show_canvas, shown_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["class_label", "method_grid"]

# The side of a drawn image: 224 pixels keep their detail in print at it.
_INCHES = 1.0


def method_grid(sets: Mapping[str, DistilledSet], label: int | str, *, columns: int = 5) -> Figure:
    """The first images of a class, a row a set.

    Args:
        sets: By display name, in the order of the rows; grey or RGB, of any sizes: smaller images
            are enlarged to the largest without smoothing.
        label: A class by number or name.
        columns: Images of a row; the paper's five.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: There is no set, a set has no such class or no image of it, ``columns`` is below
            1, or the sets differ in channels.
    """
    if not sets:
        raise ValueError("sets must hold at least one")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    channels = {one.images.shape[1] for one in sets.values()}
    if len(channels) > 1 or channels & {1, 3} != channels:
        raise ValueError(f"the sets must all have 1 or all 3 channels, got {sorted(channels)}")
    side = max(max(one.images.shape[-2:]) for one in sets.values())
    gap = max(2, side // 16)
    step = side + gap
    canvas = torch.full((len(sets) * step - gap, columns * step - gap, *channels), 255)
    for row, (name, one) in enumerate(sets.items()):
        members = (one.labels == class_label(one, label)).nonzero()[:columns, 0]
        if not len(members):
            raise ValueError(f"{name} has no image of class {label!r}")
        shown = F.interpolate(shown_pixels(one)[members].float(), size=(side, side), mode="nearest")
        for column, image in enumerate(shown):
            top, left = row * step, column * step
            canvas[top : top + side, left : left + side] = image.long().permute(1, 2, 0)
    scale = _INCHES / side
    figure, (axes,) = figure_of(
        1, 1, width=canvas.shape[1] * scale + 1.5, height=canvas.shape[0] * scale + 0.3
    )
    show_canvas(axes, canvas.to(torch.uint8))
    axes.set_yticks([row * step + side / 2 - 0.5 for row in range(len(sets))], list(sets))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    first = next(iter(sets.values()))
    names = first.class_names
    axes.set_title(names[class_label(first, label)] if names else f"class {label}")
    axes.spines[:].set_visible(False)
    return figure


def class_label(one: DistilledSet, label: int | str) -> int:
    """The number of a class by number or name.

    Raises:
        ValueError: There is none.
    """
    names = tuple(one.class_names)
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, str) and label.isdecimal():
        label = int(label)
    if isinstance(label, str) or not 0 <= label < one.num_classes:
        known = f": {', '.join(names)}" if names else f" below {one.num_classes}"
        raise ValueError(f"there is no class {label!r}; classes are{known}")
    return label
