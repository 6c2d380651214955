"""The RDED benchmarks: both sides make the same images; the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import rded as benchmark
from benchmarks import rded_photos
from benchmarks.dropin import rded as dropin
from benchmarks.photos import write_photos
from benchmarks.schema import RESULTS
from pyddfast.data import ImageFolder

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_restated_path_makes_the_same_images(tmp_path: Path) -> None:
    write_photos(tmp_path, 2, 5)
    folder = ImageFolder(tmp_path)
    network = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 14 * 14, 2))
    with torch.no_grad():
        network[2].weight.normal_(generator=torch.Generator().manual_seed(0))
    made = benchmark.ours(folder, network, 0)
    want = benchmark.official(folder, network, 0)
    assert made.shape == (2, 3, 224, 224)
    # Bytes are cut off, so that rounding in the resize may cost a level.
    assert (made.int() - want.int()).abs().max() <= 1
    assert (made != want).float().mean() < 0.02


def test_the_committed_results() -> None:
    result = json.loads((RESULTS / "rded" / "cpu.json").read_text())
    page = (ROOT / "docs" / "methods.md").read_text()
    for row in result["results"].values():
        for name in benchmark.PROVIDERS:
            assert row[name]["ms_an_image"] > 0
        ratio = row["official"]["ms_an_image"] / row["ours"]["ms_an_image"]
        assert row["speedup"] == pytest.approx(ratio, abs=0.006)
        cells = [
            f"{row[name]['ms_an_image']:{digits}} ({row[name]['cpu_ms_an_image']:{digits}})"
            for name in ("official", "ours")
            for digits in (".1f" if row[name]["ms_an_image"] < 100 else ".0f",)
        ]
        assert f"| {' | '.join(cells)} | {row['speedup']:.1f} × |" in page
    photos = json.loads((RESULTS / "rded" / "photos.json").read_text())["photos"]
    assert len(photos["foolbox"]) == 20
    for row in [row for rows in photos.values() for row in rows]:
        assert row["best"] == row["scores"].index(min(row["scores"]))
        for top, left, height, width in row["boxes"]:
            assert height == width > 0
            assert 0 <= top <= row["height"] - height
            assert 0 <= left <= row["width"] - width


def test_the_photographs_of_imagenet_have_the_committed_boxes_and_scores() -> None:
    committed = json.loads((RESULTS / "rded" / "photos.json").read_text())["photos"]["foolbox"]
    rows, images = rded_photos.run(rded_photos.IMAGENET)
    assert images.shape == (19, 3, 224, 224)  # two photographs show the same class
    assert sum(row["picked"] for row in rows) == 19
    for row, want in zip(rows, committed, strict=True):
        assert (row["file"], row["boxes"]) == (want["file"], want["boxes"])
        # 1 - p of the surest crops is a few float32 roundings of logits of about ten.
        assert row["scores"] == pytest.approx(want["scores"], rel=0.01, abs=1e-5)


def test_the_committed_drop_in_run() -> None:
    result = json.loads((ROOT / "benchmarks" / "dropin" / "rded.json").read_text())
    assert (result["url"], result["revision"]) == (dropin.RDED.url, dropin.RDED.revision)
    for variant, changes in dropin.RDED.variants.items():
        recorded = result["variants"][variant]
        assert recorded["lines_changed"] == sum(change.count for change in changes) <= 5
        added = [line for change in recorded["changes"] for line in change["added"]]
        assert added == [line for change in changes for line in change.added]
        # Another patch would differ by tenths.
        assert recorded["max_image_difference"] < 1e-4
    assert dropin.table(result) in (ROOT / "docs" / "drop-in" / "rded.md").read_text()
