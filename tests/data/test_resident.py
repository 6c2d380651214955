"""A set on the device, and the same set streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast.data import (
    DistilledSet,
    ImageFolder,
    Normalization,
    ResidentDataset,
    read_layout,
    write_layout,
)
from pyddfast.ops import _memory

SYNSETS = ("n01518878", "n01530575", "n02102040")
PIXELS = Normalization((0.5,) * 3, (0.25,) * 3)


def made(count: int = 7, size: int = 8) -> DistilledSet:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=g)
    return DistilledSet(images, torch.arange(count) * 3 // count, 3, PIXELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_layout(made(), tmp_path / "set", "rded")


def test_a_set_in_memory_is_taken_as_it_is() -> None:
    given = made()
    held = ResidentDataset(given, limit_bytes=0)  # it is there already
    assert held.images is given.images
    assert held.nbytes == 7 * 3 * 8 * 8
    assert (held.num_classes, held.ipc, held.kind) == (3, 2, "real")
    assert torch.equal(held.batch(torch.tensor([3, 3, 0])), given.images[[3, 3, 0]])
    assert torch.equal(held[5], given.images[5])


# DALI decodes what Pillow decodes, to the same bytes.
@pytest.mark.parametrize("backend", ["pil", "dali"])
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_streamed_batches_are_the_resident_ones(
    tmp_path: Path, image_format: str, backend: str
) -> None:
    root = write_layout(made(size=16), tmp_path / "set", "sre2l", image_format=image_format)  # type: ignore[arg-type]
    held = ResidentDataset.open(root, limit_bytes=7 * 3 * 16 * 16)
    assert held.images is not None
    assert torch.equal(held.images, read_layout(root).images)
    streamed = ResidentDataset.open(
        root,
        limit_bytes=7 * 3 * 16 * 16 - 1,
        on_overflow="stream",
        backend=backend,  # type: ignore[arg-type]
    )
    assert streamed.images is None
    orders = [torch.tensor(ids) for ids in ([0, 6, 3], [1], [2, 2, 5, 4], [0, 1, 2])]
    for now, following in zip(orders, [*orders[1:2], orders[0], *orders[3:], None], strict=True):
        # The second announcement is of a batch that is then not asked for.
        assert torch.equal(streamed.batch(now), held.images[now])
        if following is not None:
            streamed.prefetch(following)
    assert torch.equal(streamed.labels, held.labels)
    assert torch.equal(streamed[4], held.images[4])


def test_a_folder_of_any_sizes_is_cut_while_it_streams(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("a/0.png", (9, 14)), ("b/0.png", (20, 8)), ("b/1.png", (8, 8))):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(file)
    source = ImageFolder(tmp_path, image_size=6, resize=7)
    held = source.resident().images
    streamed = ResidentDataset(source, limit_bytes=0, on_overflow="stream", backend="pil")
    assert torch.equal(streamed.batch(torch.tensor([2, 0, 1])), held[[2, 0, 1]])


def test_what_does_not_fit_is_told_in_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"7 images of 3 x 8 x 8 take 1,344 bytes on cpu, the limit is 1,343: .*'stream'"
    with pytest.raises(ValueError, match=message):
        ResidentDataset.open(folder, limit_bytes=1343)
    # Three quarters of the free memory.
    monkeypatch.setattr(_memory, "_meminfo", lambda: ["MemFree: 9 kB", "MemAvailable: 1 kB"])
    with pytest.raises(ValueError, match=r"take 1,344 bytes on cpu, the limit is 768:"):
        ResidentDataset.open(folder)
    monkeypatch.setattr(_memory, "_meminfo", list)
    assert ResidentDataset.open(folder).images is not None  # all of the machine's


def test_the_layouts_and_what_they_leave_open(tmp_path: Path) -> None:
    given = made()
    root = write_layout(given, tmp_path / "synset", "synset", synsets=SYNSETS)
    order = (SYNSETS[2], SYNSETS[0], SYNSETS[1])
    held = ResidentDataset.open(root, class_names=order, kind="patches", factor=2)
    assert held.class_names == order
    assert (held.kind, held.factor, held.num_classes) == ("patches", 2, 3)
    # Images come in label order: those of the last synset are now the first.
    assert held.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert torch.equal(held.batch(torch.tensor([0])), given.images[5:6])
    numbered = ResidentDataset.open(write_layout(given, tmp_path / "d4m", "d4m"), num_classes=10)
    assert (numbered.class_names, numbered.num_classes) == ((), 10)
    given.save(tmp_path / "own")
    own = ResidentDataset.open(tmp_path / "own")
    assert isinstance(own.source, DistilledSet)
    assert own.normalization == PIXELS


def test_positions_outside_the_set_are_refused_wherever_it_is(folder: Path) -> None:
    streamed = ResidentDataset.open(folder, limit_bytes=0, on_overflow="stream", backend="pil")
    for held in (ResidentDataset(made()), streamed):
        for ids in ([-1], [0, 7]):
            with pytest.raises(ValueError, match=r"ids must lie in \[0, 7\)"):
                held.batch(torch.tensor(ids))


def test_a_bad_file_is_named_and_the_stream_goes_on(folder: Path) -> None:
    bad = folder / "00001" / "class00001_id00000.png"
    bad.write_bytes(bad.read_bytes()[:-60])  # its header is sound
    streamed = ResidentDataset.open(folder, limit_bytes=0, on_overflow="stream", backend="pil")
    with pytest.raises(ValueError, match=r"class00001_id00000\.png cannot be read as an image"):
        streamed.batch(torch.tensor([0, 3]))
    assert torch.equal(streamed.batch(torch.tensor([0])), made().images[:1])
    streamed.prefetch(torch.tensor([3]))  # and is then not asked for
    assert torch.equal(streamed.batch(torch.tensor([6])), made().images[6:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_overflow": "skip"}, "on_overflow must be 'error' or 'stream'"),
        ({"limit_bytes": -1}, "limit_bytes must not be negative"),
        ({"kind": "painted"}, "kind must be one of"),
        ({"factor": 9}, r"factor must lie in \[1, 8\]"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_bad_options_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidentDataset.open(folder, **change)  # type: ignore[arg-type]


def test_an_image_of_another_size_is_named(folder: Path) -> None:
    Image.new("RGB", (6, 8)).save(folder / "00002" / "class00002_id00001.png")
    for limit in (0, 10**6):  # streamed, resident
        with pytest.raises(ValueError, match=r"class00002_id00001\.png has the size \(8, 6\)"):
            ResidentDataset.open(folder, limit_bytes=limit, on_overflow="stream")


def test_only_square_images_can_be_streamed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "a" / "0.png")
    source = ImageFolder(tmp_path)
    assert ResidentDataset(source).image_shape == (3, 4, 6)
    with pytest.raises(ValueError, match="images of 4 x 6 cannot be streamed"):
        ResidentDataset(source, limit_bytes=0, on_overflow="stream")
