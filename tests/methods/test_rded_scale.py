"""RDED over folders: one pass, the same bytes for any workers, ranks and kills; broken files."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageFolder
from pyddfast.data import ahead as ahead_module
from pyddfast.data.ahead import ahead
from pyddfast.data.stored import read_tensors
from pyddfast.methods import RDEDConfig, ca2d, patch_crops, rded
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.random import Purpose
from tests.methods.rded_cases import CLASSES, CONFIG, PER_CLASS, SIZE, observer, write_photos
from tests.processes import TORCHRUN, run_python

RUNNER = Path(__file__).with_name("rded_cases.py")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run by name, but config.json and what a kill left of an unfinished set."""
    names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()]
    wanted = [n for n in names if n != "config.json" and not n.startswith(".")]
    return {name: (folder / name).read_bytes() for name in wanted}


def test_kills_and_ranks_change_no_byte(photos: Path, tmp_path: Path) -> None:
    seen = json.loads(run_python(str(RUNNER), "kill", str(photos), str(tmp_path)).stdout)
    assert set(seen["statuses"]) <= {0}
    assert seen["kept"] > 0  # some kills came between two classes
    whole = contents(tmp_path / "whole")
    assert sorted(whole) == [
        *(f"classes/{label:06d}.safetensors" for label in range(CLASSES)),
        "set/set.json",
        "set/set.safetensors",
    ]
    for folder in seen["folders"]:
        assert contents(Path(folder)) == whole
    run_python(*TORCHRUN, str(RUNNER), "job", str(photos), str(tmp_path / "two"))
    assert contents(tmp_path / "two") == whole


def same(a: DistilledSet, b: DistilledSet) -> bool:
    return torch.equal(a.images, b.images) and a.meta == b.meta


def test_workers_and_resume_point_change_no_byte_and_images_are_decoded_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageFolder(photos)
    decoded: list[int] = []
    decode = ImageFolder.__getitem__

    def counted(self: ImageFolder, index: int, /) -> Tensor:
        decoded.append(index)
        return decode(self, index)

    monkeypatch.setattr(ImageFolder, "__getitem__", counted)
    made = rded(data, observer(), CONFIG, workers=0)
    assert sorted(decoded) == list(range(CLASSES * PER_CLASS))
    for workers in (1, 5):
        assert same(rded(data, observer(), CONFIG, workers=workers), made)

    out = tmp_path / "run"
    assert same(rded(data, observer(), CONFIG, out=out), made)
    stored = {f: f.read_bytes() for f in (out / "classes").iterdir()}
    (out / "classes" / "000002.safetensors").unlink()
    decoded.clear()
    heard: list[tuple[int, int]] = []
    again = rded(data, observer(), CONFIG, out=out, on_progress=lambda *done: heard.append(done))
    assert same(again, made)
    assert heard == [(5, 5)]
    assert {f: f.read_bytes() for f in stored} == stored
    # Class 2 is images 14 to 20; its batches of four begin at 12 and end at 24.
    assert len(decoded) == 12


def stopping(batches: int) -> nn.Module:
    """The observer, until it has answered a number of batches."""
    model, left = observer(), iter(range(batches))

    def stop(*_: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    return model


def test_a_class_goes_on_from_its_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of four against classes of seven: 0 to 3, 4 to 7 (two classes), 8 to 11 ..."""
    data = ImageFolder(photos)
    every: dict[str, Any] = {"checkpoint_seconds": 0.0}
    whole = rded(data, observer(), CONFIG, out=tmp_path / "whole", workers=0)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        rded(data, stopping(6), CONFIG, out=out, **every)
    assert sorted(f.name for f in (out / "classes").iterdir()) == [
        *(f"00000{label}.safetensors" for label in range(3)),
        "000003.part.safetensors",
    ]
    # The class before is lost as well: its last batch is the first of the one that was begun.
    (out / "classes" / "000002.safetensors").unlink()
    decoded: list[int] = []
    decode = ImageFolder.__getitem__

    def counted(self: ImageFolder, index: int, /) -> Tensor:
        decoded.append(index)
        return decode(self, index)

    monkeypatch.setattr(ImageFolder, "__getitem__", counted)
    assert same(rded(data, observer(), CONFIG, out=out, workers=0, **every), whole)
    # Those of the batches of class 2, and of 3 and 4 what is beyond the six batches.
    assert len(decoded) == 12 + 11
    for label in range(CLASSES):
        name = f"classes/{label:06d}.safetensors"
        found, _ = read_tensors(out / name)
        expected, _ = read_tensors(tmp_path / "whole" / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list((out / "classes").glob("*.part.*"))


# Batches of one class and of several; a batch that DALI's graph has to grow for.
@pytest.mark.parametrize("batch_size", [6, 60])
def test_dali_cuts_what_pillow_cuts(photos: Path, tmp_path: Path, batch_size: int) -> None:
    data = ImageFolder(photos)
    config = RDEDConfig(**{**vars(CONFIG), "batch_size": batch_size})
    expected = rded(data, observer(), config, out=tmp_path / "pil")
    made = rded(data, observer(), config, out=tmp_path / "dali", backend="dali", workers=2)
    assert same(made, expected)
    assert contents(tmp_path / "dali") == contents(tmp_path / "pil")


def test_what_dali_cannot_read_is_refused(photos: Path) -> None:
    sized = ImageFolder(photos, image_size=16)
    for data in (sized, sized.resident()):
        with pytest.raises(ValueError, match="backend='dali' reads image files"):
            rded(data, observer(), CONFIG, backend="dali")
    with pytest.raises(ValueError, match="backend must be 'pil' or 'dali', got 'auto'"):
        rded(sized, observer(), CONFIG, backend="auto")  # type: ignore[arg-type]


def test_large_images_are_cut_before_their_batch_is_full(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, together = ImageFolder(photos), []
    cut = patch_crops.multi_crop

    def counted(images: list[Tensor], *args: Any, **options: Any) -> Tensor:
        together.append(len(images))
        return cut(images, *args, **options)

    monkeypatch.setattr(patch_crops, "multi_crop", counted)
    made = rded(data, observer(), CONFIG, workers=0)
    assert max(together) > 1
    together.clear()
    monkeypatch.setattr(patch_crops, "AHEAD_BYTES", 1)  # as if each image filled it
    assert same(rded(data, observer(), CONFIG, workers=0), made)
    assert set(together) == {1}


def test_a_class_is_stored_with_all_its_crops(photos: Path, tmp_path: Path) -> None:
    data, model = ImageFolder(photos), observer()
    made = rded(data, model, CONFIG, out=tmp_path / "run")
    for label in range(CLASSES):
        found, _ = read_tensors(tmp_path / "run" / "classes" / f"{label:06d}.safetensors")
        pool, boxes, scores = (found[k] for k in ("pool", "pool_boxes", "pool_scores"))
        assert sorted(pool.tolist()) == list(range(7 * label, 7 * label + 7))
        want = torch.empty(scores.shape, dtype=torch.float64)
        mean = torch.tensor(data.normalization.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(data.normalization.std, dtype=torch.float64)[:, None, None]
        for row, index in enumerate(pool.tolist()):
            height, width = data[index].shape[1:]
            drawn = draw_crop_boxes(
                4,
                torch.tensor([index] * 3),
                torch.arange(3),
                (height, width),
                ratio=(1.0, 1.0),
                purpose=Purpose.MULTI_CROP,
            )
            assert torch.equal(boxes[row], drawn)
            for crop, (top, left, height, width) in enumerate(boxes[row].tolist()):
                cut = data[index][None, :, top : top + height, left : left + width].double() / 255
                small = F.interpolate(cut, size=(8, 8), mode="bilinear", antialias=True)
                view = F.pad((small - mean) / std, (4, 4, 4, 4))
                with torch.no_grad():
                    want[row, crop] = -model.double()(view).log_softmax(1)[0, label]
        torch.testing.assert_close(scores.double(), want, rtol=1e-4, atol=1e-5)
        model.float()
        best = want.min(dim=1).values.sort().indices[:4]
        assert found["source_indices"].tolist() == pool[best].tolist()
        assert made.meta["source_indices"][label] == pool[best].tolist()
        assert torch.equal(found["images"], made.images[label : label + 1])


def test_half_precision_and_channels_last_stay_near(photos: Path) -> None:
    data = ImageFolder(photos)
    exact = rded(data, observer(), CONFIG)
    for change in ({"precision": "bf16"}, {"channels_last": True}):
        other = rded(data, observer(), RDEDConfig(**{**vars(CONFIG), **change}))
        near = torch.tensor(other.meta["scores"]).sort().values
        far = torch.tensor(exact.meta["scores"]).sort().values
        # bf16 rounds logits of a few units to 2**-8 of their value
        torch.testing.assert_close(
            near, far, rtol=0.02, atol=0.02 if "precision" in change else 1e-5
        )
        assert ("precision" in change) == (near != far).any().item()


def test_broken_files_are_named(photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "photos"
    write_photos(broken)
    whole = broken / "class2" / "3.jpeg"
    whole.write_bytes(whole.read_bytes()[:200])
    (broken / "class3" / "0.jpeg").write_bytes(b"")
    data = ImageFolder(broken)
    strict = RDEDConfig(**{**vars(CONFIG), "on_error": "raise"})
    with pytest.raises(ValueError, match=r"class2.3\.jpeg cannot be read"):
        rded(data, observer(), strict, out=tmp_path / "run")
    first = tmp_path / "run" / "classes" / "000000.safetensors"
    stored = first.stat().st_mtime_ns
    with pytest.warns(UserWarning, match=r"left out: .*\.jpeg cannot be read") as told:
        made = rded(data, observer(), CONFIG, out=tmp_path / "run")
    assert first.stat().st_mtime_ns == stored  # what was finished is not made again
    assert len(told) == 2
    assert {warning.filename for warning in told} == {__file__}
    assert made.meta["skipped"] == [17, 21]
    with pytest.warns(UserWarning, match=r"skipped: .*\.jpeg cannot be read") as told:
        assert same(rded(data, observer(), CONFIG, backend="dali"), made)
    assert {warning.filename for warning in told} == {__file__}
    with pytest.raises(ValueError, match=r"class2.3\.jpeg cannot be read"):
        rded(data, observer(), strict, backend="dali")
    with pytest.warns(UserWarning, match="left out"):
        assert same(rded(data, observer(), CONFIG), made)
    assert not {17, 21} & {i for row in made.meta["source_indices"] for i in row}
    gone = broken / "class4" / "5.jpeg"
    content = gone.read_bytes()
    gone.unlink()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(FileNotFoundError, match=r"class4.5\.jpeg"),
    ):
        rded(data, observer(), CONFIG)
    gone.write_bytes(content)
    for number in range(4):
        (broken / "class4" / f"{number}.jpeg").write_bytes(b"no image")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"4 images are needed of class 4 'class4', 3 could be dec"),
    ):
        rded(data, observer(), CONFIG)


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), CLASSES)
        logits[x.flatten(1).sum(1) > 0] = float("nan")
        return logits


def test_a_teacher_that_gives_nan_is_refused(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"logits for crops of image \d+ that are NaN"):
        rded(ImageFolder(photos), Nan(), CONFIG)


def test_files_of_another_job_are_refused(photos: Path, tmp_path: Path) -> None:
    data = ImageFolder(photos)
    rded(data, observer(), CONFIG, out=tmp_path / "run")
    with pytest.raises(FileExistsError, match="resume"):
        rded(data, observer(), CONFIG, out=tmp_path / "run", resume=False)
    other = RDEDConfig(**{**vars(CONFIG), "seed": 5})
    with pytest.raises(ValueError, match="seed was 4, now 5"):
        rded(data, observer(), other, out=tmp_path / "run")
    rded(data, observer(), other, out=tmp_path / "other")
    name = "classes/000001.safetensors"
    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ValueError, match=r"000001.safetensors belongs to a job with another"):
        rded(data, observer(), CONFIG, out=tmp_path / "run")
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        rded(data, observer(), CONFIG, workers=-1)


def test_a_factor_that_does_not_divide_and_images_smaller_than_a_crop(photos: Path) -> None:
    config = RDEDConfig(ipc=1, factor=2, image_size=17, pool=7, num_crops=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 17 * 17, CLASSES))
    data = ImageFolder(photos)
    made = rded(data, model, config)
    assert made.images.shape == (CLASSES, 3, 17, 17)
    for label in range(CLASSES):
        index, box = made.meta["source_indices"][label][0], made.meta["boxes"][label][0]
        top, left, height, width = box
        cut = data[index][None, :, top : top + height, left : left + width].float()
        patch = F.interpolate(cut, size=(8, 8), mode="bilinear", antialias=True)
        # The first tile has the remaining row and column: nearest from 8 to 9 pixels.
        want = F.interpolate(patch, size=(9, 9), mode="nearest")[0]
        assert (made.images[label, :, :9, :9] - want).abs().max() <= 0.51


def test_ca2d_keeps_its_ranking_on_folders(photos: Path, tmp_path: Path) -> None:
    data = ImageFolder(photos)
    cad = torch.rand(len(data), generator=torch.Generator().manual_seed(0))
    config = RDEDConfig(ipc=1, factor=1, image_size=SIZE, pool=3, batch_size=10)
    made = ca2d(data, observer(), cad, config, out=tmp_path / "run", workers=1)
    for label in range(CLASSES):
        head = cad[7 * label : 7 * label + 7].sort(descending=True).indices[:3] + 7 * label
        found, _ = read_tensors(tmp_path / "run" / "classes" / f"{label:06d}.safetensors")
        assert found["pool"].tolist() == head.tolist()
        assert made.meta["source_indices"][label][0] in head.tolist()
    assert same(ca2d(data, observer(), cad, config, out=tmp_path / "run"), made)


def test_threads_stay_ahead_in_order_and_within_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead_module, "AHEAD_BYTES", 1000)
    lock = threading.Lock()
    asked = 0

    def decode(index: int) -> Tensor:
        nonlocal asked
        with lock:
            asked += 1
        return torch.full((sizes[index],), index % 256, dtype=torch.uint8)

    for size, most, room in ((100, 50, 10), (1, 6, 6), (400, 50, 3)):
        sizes, asked = [size] * 40, 0
        for taken, (index, image) in enumerate(ahead(decode, range(40), workers=3, most=most)):
            assert isinstance(image, Tensor)
            assert (index, int(image[0])) == (taken, taken)
            # Those taken, those waiting, and nothing beyond.
            assert asked <= taken + 1 + room
    assert asked == 40
