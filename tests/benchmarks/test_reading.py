"""The providers of the reading benchmark make the same batches."""

import pytest
import torch

from benchmarks.reading import OfficialViews, Passes, cpu_seconds, make_images
from benchmarks.report import reading_lines
from pyddfast.data import Request, draw_request, image_sizes, open_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_official_path_gives_the_same_views(tmp_path):
    folder = make_images(tmp_path, 3)
    ids = torch.arange(3)
    sizes = image_sizes(folder)
    assert sizes.tolist() == [[375, 500]] * 3
    official = OfficialViews(folder)
    pipeline = open_pipeline(folder, size=224, resize=256, backend="pil")
    for request in (draw_request(0, ids, ids, sizes, flip=0.7), Request(ids)):
        (views,) = Passes([request])
        expected = torch.stack([official[view][0] for view in views])
        assert float((next(pipeline([request])).images - expected).abs().max()) < 1e-5
    assert [official[(i, None, False)][1] for i in range(3)] == [0, 0, 0]


def test_the_clock_counts_the_work_of_this_process():
    began = cpu_seconds()
    torch.randn(600, 600, generator=torch.Generator().manual_seed(0)) @ torch.ones(600, 600)
    assert cpu_seconds() > began


def test_a_slower_provider_is_marked(tmp_path):
    (tmp_path / "cpu.json").write_text(
        """{"created": "2026-01-01", "images": 4, "image_size": [3, 5], "mean_bytes": 2000,
        "batch_size": 2, "workers": 1, "rounds": 3, "metadata": {"pillow": "1", "dali": "2",
        "cpu": {"name": "cpu", "cores": 2, "load_average_1min": 0.5}, "versions": {"torch": "3"}},
        "results": [
        {"view": "training", "provider": "DataLoader + PIL", "images_per_s": 100.0,
         "pass_ms": 10.0, "pass_iqr_ms": 1.0, "cpu_ms_per_image": 3.0},
        {"view": "training", "provider": "ours (pil)", "images_per_s": 80.0,
         "pass_ms": 12.5, "pass_iqr_ms": 1.0, "cpu_ms_per_image": 2.0}]}"""
    )
    text = "\n".join(reading_lines(tmp_path))
    assert "| 80 | 8% | 2.00 | 0.80× **slower** | 1.50× |" in text
    assert "4 made JPEG files of 5 × 3 pixels and 2 kB" in text
