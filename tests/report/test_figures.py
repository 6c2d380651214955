"""Figures show the numbers they are given; pages escape and need nothing beside them."""

from __future__ import annotations

import base64
import io
import re
from itertools import pairwise

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast.data import DistilledSet, Normalization
from pyddfast.report import Result, accuracy_figure, png_uri, render, sets_figure, svg

CELLS = [
    Result("Random", "HL", (0.60, 0.62), 2000),
    Result("RDED", "HL", (0.65, 0.69), 2000),
    Result("Random", "SL+KD", (0.70, 0.71), 2000),
    Result("RDED", "SL+KD", (0.72, 0.74), 2000),
]


def distilled(channels: int, ipc: int = 3) -> DistilledSet:
    gen = torch.Generator().manual_seed(channels)
    return DistilledSet(
        images=torch.randint(0, 256, (2 * ipc, channels, 14, 14), generator=gen, dtype=torch.uint8),
        labels=torch.arange(2).repeat_interleave(ipc),
        num_classes=2,
        normalization=Normalization((0.5,) * channels, (0.5,) * channels),
        class_names=("Shirt", "Bag & co"),
    )


def test_bars_errors_dots_and_labels_are_the_results() -> None:
    axes = accuracy_figure(CELLS, chance=0.1).axes[0]
    heights = sorted(bar.get_height() for bar in axes.patches)
    assert heights == pytest.approx([61.0, 67.0, 70.5, 73.0])
    dots = sorted(
        float(y)
        for line in axes.lines
        if line.get_linestyle() == "None" and line.get_marker() == "o"
        for y in np.asarray(line.get_ydata())
    )
    assert dots == pytest.approx(sorted(100 * a for cell in CELLS for a in cell.accuracies))
    spans = sorted(
        (segment[1, 1] - segment[0, 1]) / 2
        for collection in axes.collections
        for segment in collection.get_segments()
    )
    assert spans == pytest.approx(sorted(100 * cell.standard_error for cell in CELLS))
    words = {text.get_text() for text in axes.texts}
    assert words == {"61.0", "67.0", "70.5", "73.0", "chance"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["HL", "SL+KD"]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "test accuracy (%)"
    # Bars of one group do not overlap.
    left = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(a[1] <= b[0] for a, b in pairwise(left))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_image_in_the_row_of_its_class(channels: int) -> None:
    first, second = distilled(channels), distilled(channels, ipc=2)
    axes = sets_figure({"Random": first, "RDED": second}).axes[0]
    # Blocks of three images of 14 pixels with gaps of 1, and 7 pixels between the sets.
    canvas = np.asarray(axes.images[0].get_array()).reshape(14 * 2 + 1, 44 + 7 + 44, channels)
    for start, made, each in ((0, first, 3), (51, second, 2)):
        for index in range(len(made)):
            top, left = 15 * (index // each), start + 15 * (index % each)
            want = made.images[index].permute(1, 2, 0).numpy()
            assert (canvas[top : top + 14, left : left + 14] == want).all()
    assert (canvas[:, 51 + 30 :] == 255).all()  # a set with fewer images leaves its place white
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["Shirt", "Bag & co"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Random", "RDED"]
    small = sets_figure({"Random": first}, columns=2, rows=1).axes[0].images[0]
    assert np.asarray(small.get_array()).shape[:2] == (14, 29)
    with pytest.raises(ValueError, match="same classes"):
        sets_figure({"Random": first, "other": distilled(4 - channels)})


def test_embedded_figures_are_whole_and_reproducible() -> None:
    text = svg(accuracy_figure(CELLS), alt='bars "of" <all> & more')
    assert text.startswith('<svg role="img" aria-label="bars &#34;of&#34; &lt;all&gt; &amp; more"')
    assert text.rstrip().endswith("</svg>")
    assert ">73.0<" in text
    assert text == svg(accuracy_figure(CELLS), alt='bars "of" <all> & more')
    uri = png_uri(sets_figure({"a": distilled(1)}))
    assert uri == png_uri(sets_figure({"a": distilled(1)}))
    header, _, data = uri.partition(",")
    assert header == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size[0] > 200


def test_pages_escape_values_and_refuse_missing_ones() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("comparison.html", {"title": "x"})
    page = render(
        "comparison.html",
        {
            "title": "a <b>",
            "lead": "",
            "regimes": ["HL"],
            "rows": [{"method": "R&D", "cells": [{"text": "1.0 ± 0.1", "sampling": "0.3"}]}],
            "table_note": "",
            "accuracy_svg": "<svg>",
            "figure_note": "",
            "summary": ["<script>"],
            "summary_note": "",
            "sets_image": "",
            "sets_alt": "",
            "sets_note": "",
            "facts": [],
            "shortened": [],
            "recipe_names": ["HL"],
            "recipes": [],
            "timings": [],
            "timing_note": "",
            "command": "",
            "environment": [],
        },
    )
    assert "<h1>a &lt;b&gt;</h1>" in page
    assert "R&amp;D" in page
    assert not re.search(r"<script", page)
