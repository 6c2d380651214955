"""Soft-label stores and the official files."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from pyddfast.data import (
    IMAGENET_NORMALIZATION,
    DistilledSet,
    Normalization,
    ResidentDataset,
    write_layout,
)
from pyddfast.data import softlabels as module
from pyddfast.data.digest import images_digest
from pyddfast.data.softlabels import (
    LabelBatch,
    SoftLabels,
    SoftLabelWriter,
    StoreInfo,
    export_fkd,
    import_fkd,
    read_fkd,
    recode,
    write_fkd,
)
from pyddfast.data.softlabels_batch import coords_of, replay_boxes
from tests.data.fkd_files import SIDE, official_folder, official_list


def assert_same(batch: LabelBatch, value: list[Any]) -> None:
    """A batch holds exactly what the official list does, types included."""
    got = [getattr(batch, f.name) for f in dataclasses.fields(batch)][: len(value)]
    for mine, theirs in zip(got, value, strict=True):
        if isinstance(theirs, torch.Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        elif isinstance(theirs, list):
            assert mine == tuple(int(v) for v in theirs)
        else:
            assert mine == theirs
            assert type(mine) is type(theirs)


@pytest.mark.parametrize("elements", [6, 7, 8])  # SRe2L; G-VBSM; EDC on ImageNet
@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])  # the choices of --mix-type
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])  # with and without --use-fp16
def test_official_files_are_read_and_written(
    tmp_path: Path, elements: int, mix: str, dtype: torch.dtype
) -> None:
    value = official_list(
        np.random.default_rng(0), 5, elements=elements, mix=mix, dtype=dtype, index=torch.arange(5)
    )
    torch.save(value, tmp_path / "batch_0.tar")
    batch = read_fkd(tmp_path / "batch_0.tar")
    assert_same(batch, value)
    write_fkd(batch, tmp_path / "again.tar")
    # torch's own default, which refuses the official file for its NumPy numbers, takes ours.
    again = torch.load(tmp_path / "again.tar", weights_only=True)
    assert_same(batch, again)
    if mix == "cutmix":
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "batch_0.tar", weights_only=True)


def test_a_numpy_lam_and_names_of_numpy_1(tmp_path: Path) -> None:
    value = official_list(np.random.default_rng(0), 3)
    value[3] = np.float64(0.25)
    torch.save(value, tmp_path / "new.tar")
    assert read_fkd(tmp_path / "new.tar").mix_lam == 0.25
    with (
        zipfile.ZipFile(tmp_path / "new.tar") as new,
        zipfile.ZipFile(tmp_path / "old.tar", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, content)
    assert read_fkd(tmp_path / "old.tar").mix_bbox == (3, 5, 20, 31)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/pyddfast-evil-$PPID",)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    value = official_list(np.random.default_rng(0), 3)
    witness = Path(f"/tmp/pyddfast-evil-{os.getpid()}")
    for position in range(6):
        torch.save([*value[:position], Evil(), *value[position + 1 :]], tmp_path / "evil.tar")
        with pytest.raises(ValueError, match=r"evil\.tar cannot be read as soft labels"):
            read_fkd(tmp_path / "evil.tar")
    (tmp_path / "plain.tar").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no zip file"):
        read_fkd(tmp_path / "plain.tar")
    torch.save(Evil(), tmp_path / "legacy.tar", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="no zip file"):
        read_fkd(tmp_path / "legacy.tar")
    assert not witness.exists()
    # Nothing stays allowed in torch's list for others.
    assert np.dtype not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, torch.rand(3, 3), r"coords must be float32 \(3, 4\)"),
        (0, torch.tensor([[0.5, 0, 0.6, 1]] * 3), r"coords\[0\] .* leaves the image"),
        (0, torch.tensor([[0.5, 0, float("nan"), 1]] * 3), "leaves the image"),
        (1, torch.zeros(3), "flip must be bool"),
        (2, torch.tensor([0, 1, 3]), r"mix_index must lie in \[0, 3\)"),
        (3, 1.5, "mix_lam must be a float in"),
        (3, "x", "mix_lam must be a float in"),
        (4, [1, 2, 3], "mix_bbox must be 4 numbers"),
        (4, [4, 0, 3, 9], "mix_bbox must be y0 <= y1"),
        (4, [0.5, 0, 3, 9], "4 integers"),
        (5, torch.zeros(3, 7, dtype=torch.int64), "logits must be float16 or float32"),
        (5, torch.zeros(4, 7), r"logits must be .* \(3, any\)"),
        (5, torch.zeros(3, 0), "at least one image and one class"),
        (6, torch.tensor([0, 1, -2]), "index holds -2"),
        (7, torch.full((3, 2, 2), 256), "patch_order must lie in"),
        (7, torch.zeros(3, 2, 0, dtype=torch.int64), "patch_order has no strips"),
        (5, torch.zeros(3, 7, requires_grad=True), "logits must be a plain tensor, without gr"),
        (5, torch.nn.Parameter(torch.zeros(3, 7)), "logits must be a plain tensor"),
        (5, torch.zeros(3, 7).to_sparse(), "logits must be a plain tensor"),
        (1, torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]), "flip must be a plain"),
        (5, torch.zeros(1, 1).expand(3, 10**12), "element 5 claims .* more than the 4 bytes"),
        (1, torch.zeros(1, dtype=torch.bool).expand(10**13), "element 1 claims"),
    ],
)  # one wrong thing in each element; EDC's two more
def test_bad_files_are_named(tmp_path: Path, position: int, bad: object, message: str) -> None:
    value = official_list(np.random.default_rng(0), 3, elements=8)
    value[position] = bad
    torch.save(value, tmp_path / "bad.tar")
    with pytest.raises(ValueError, match=rf"bad\.tar.*{message}"):
        read_fkd(tmp_path / "bad.tar")


def test_numpys_types_take_no_state_from_a_file(tmp_path: Path) -> None:
    class Stated:
        """A type with a field's name and offset, which ``dtype.__setstate__`` would take."""

        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("i8", False, False), (3, ">", None, None, None, -1, -1, 0)

    class Number:
        def __init__(self, *arguments: Any) -> None:
            self.arguments = arguments

        def __reduce__(self) -> tuple[Any, ...]:
            return np.int64(0).__reduce__()[0], self.arguments  # type: ignore[index]

    value = official_list(np.random.default_rng(0), 3)
    for bad, message in (
        (Stated(), "numbers must be little-endian"),
        (Number(np.dtype("S2000000000")), "a number must be one of i4, i8, f4, f8"),
        (Number(np.dtype("f8"), b"1234"), "buffer size"),
        (Number(np.dtype("f8"), bytes(16)), "a number of type f8 has 16 bytes"),
    ):
        value[3] = bad
        torch.save(value, tmp_path / "bad.tar")
        with pytest.raises(ValueError, match=rf"bad\.tar.*{message}"):
            read_fkd(tmp_path / "bad.tar")
    assert np.dtype("i8").byteorder == "="


def test_other_content_is_named(tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "a.tar")
    torch.save([1, 2, 3], tmp_path / "b.tar")
    with pytest.raises(ValueError, match=r"a\.tar must hold a list of .* got dict"):
        read_fkd(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"b\.tar must hold .* got 3 elements"):
        read_fkd(tmp_path / "b.tar")
    with pytest.raises(FileNotFoundError):
        read_fkd(tmp_path / "c.tar")


def official_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(official_list(np.random.default_rng(0), 3, elements=8), buffer)
    return buffer.getvalue()


OFFICIAL = official_bytes()
NO_FIXTURE = [HealthCheck.function_scoped_fixture]


@settings(max_examples=150, deadline=None, suppress_health_check=NO_FIXTURE)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(OFFICIAL) - 1), st.binary(max_size=9)), max_size=8),
    cut=st.integers(0, len(OFFICIAL)),
)
def test_damaged_files_are_refused_or_read(
    tmp_path: Path, edits: list[tuple[int, bytes]], cut: int
) -> None:
    content = bytearray(OFFICIAL)
    for start, new in edits:
        content[start : start + len(new)] = new
    (tmp_path / "f.tar").write_bytes(bytes(content[: max(cut, 1)] if cut % 3 == 0 else content))
    try:
        batch = read_fkd(tmp_path / "f.tar")
    except ValueError as error:
        told = str(error)
    else:
        told = f"f.tar holds {batch.logits.shape[0]} rows"
        assert batch.logits.shape[0] == len(batch)
    assert "f.tar" in told


OPCODES = b"(]}).NKMXcReb0123qhrjut\x80\x81\x85\x86\x87\x88\x89GI"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150, deadline=None, suppress_health_check=NO_FIXTURE)
@given(
    program=st.lists(
        st.one_of(
            st.binary(max_size=6),
            st.sampled_from([bytes([c]) for c in OPCODES]),
            st.sampled_from(
                [
                    b"cos\nsystem\n",
                    b"cbuiltins\neval\n",
                    b"cnumpy\ndtype\n",
                    b"cnumpy._core.multiarray\nscalar\n",
                    b"ctorch._utils\n_rebuild_tensor_v2\n",
                    b"X\x04\x00\x00\x00exit",
                ]
            ),
        ),
        max_size=30,
    )
)
def test_arbitrary_pickles_are_refused(tmp_path: Path, program: list[bytes]) -> None:
    with zipfile.ZipFile(tmp_path / "f.tar", "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + b"".join(program))
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")
        file.writestr("a/data/0", bytes(64))
    with pytest.raises(ValueError, match=r"f\.tar"):
        read_fkd(tmp_path / "f.tar")


def test_boxes_are_rounded_as_pil_rounds_them() -> None:
    rng = np.random.default_rng(1)
    for height, width in ((224, 224), (375, 500), (33, 97), (1, 3)):
        pixels = np.arange(height * width).reshape(height, width)
        image = Image.fromarray(pixels.astype(np.int32), "I")
        extent = np.stack([rng.integers(1, s + 1, 300) for s in (height, width)], 1)
        corner = rng.integers(0, np.array([height, width]) + 1 - extent)
        boxes = torch.tensor(np.concatenate([corner, extent], 1))
        coords = coords_of(boxes, (height, width))
        assert torch.equal(replay_boxes(coords, (height, width)), boxes)
        # Of another size too, where nothing comes out whole: what the official code hands to PIL.
        for height2, width2 in ((height, width), (height * 2 + 1, width * 3 + 2)):
            pixels = np.arange(height2 * width2).reshape(height2, width2)
            image = Image.fromarray(pixels.astype(np.int32), "I")
            got = replay_boxes(coords, (height2, width2))
            for row, (top, left, rows, cols) in zip(coords, got.tolist(), strict=True):
                i, j = row[0].item() * height2, row[1].item() * width2
                h, w = row[2].item() * height2, row[3].item() * width2
                crop = np.array(image.crop((j, i, j + w, i + h)))
                assert np.array_equal(crop, pixels[top : top + rows, left : left + cols])


def test_a_box_outside_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stored box \[0, 0, 0, 4\].*image of 4 x 4"):
        replay_boxes(torch.tensor([[0.0, 0, 0.1, 1]]), (4, 4))
    with pytest.raises(ValueError, match="leaves the image"):
        replay_boxes(torch.tensor([[0.9, 0, 0.5, 1]]), (40, 40))


@pytest.mark.parametrize("elements", [6, 7, 8])
@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_files_and_stores_go_both_ways(
    tmp_path: Path, elements: int, mix: str, dtype: torch.dtype
) -> None:
    folder = official_folder(tmp_path / "fkd", elements=elements, mix=mix, dtype=dtype)
    store = import_fkd(folder, tmp_path / "store")
    assert store.info.form == str(dtype).removeprefix("torch.")
    exported = export_fkd(store, tmp_path / "exported")
    for epoch in range(2):
        for number in range(3):
            name = f"epoch_{epoch}/batch_{number}.tar"
            value = torch.load(folder / name, weights_only=False)
            assert_same(store.batch(epoch, number), value)
            written = torch.load(exported / name, weights_only=True)
            assert len(written) == elements
            assert_same(read_fkd(exported / name), value)
    again = import_fkd(exported, tmp_path / "again")
    for file in store.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes()
    store.verify()


def test_images_of_six_elements_follow_the_sampler(tmp_path: Path) -> None:
    folder = official_folder(tmp_path / "fkd", epochs=3, batch_sizes=(4, 4, 3))
    store = import_fkd(folder, tmp_path / "store", sampler_seed=5)
    # As generate_soft_label.py draws them: one sampler for all epochs, read by a loader.
    sampler = RandomSampler(range(11), generator=torch.Generator().manual_seed(5))
    loader = DataLoader(range(11), batch_size=4, sampler=sampler)
    for epoch in range(3):
        batches = list(loader)
        for number, ids in enumerate(batches):
            index = store.batch(epoch, number).index
            assert index is not None
            assert torch.equal(index, ids)
        assert torch.equal(store.order(epoch), torch.cat(batches))


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    folder = official_folder(tmp_path / "fkd")
    (folder / "epoch_1" / "batch_1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"epoch_1/batch_1\.tar"):
        import_fkd(folder, tmp_path / "a")
    value = official_list(np.random.default_rng(0), 4, num_classes=8)
    torch.save(value, folder / "epoch_1" / "batch_1.tar")
    with pytest.raises(ValueError, match=r"batch_1\.tar has classes 8, it should have 7"):
        import_fkd(folder, tmp_path / "b")
    torch.save(value, folder / "epoch_1" / "batch_3.tar")
    with pytest.raises(ValueError, match=r"epoch_1 has 4 batches, .*epoch_0 has 3"):
        import_fkd(folder, tmp_path / "e")
    (folder / "epoch_0" / "batch_1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"epoch_0/batch_1\.tar is missing"):
        import_fkd(folder, tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        import_fkd(tmp_path / "nothing", tmp_path / "d")


def test_infinite_logits_are_refused(tmp_path: Path) -> None:
    folder = official_folder(tmp_path / "fkd")
    value = torch.load(folder / "epoch_1" / "batch_0.tar", weights_only=False)
    value[5][2, 3] = float("inf")
    torch.save(value, folder / "epoch_1" / "batch_0.tar")
    with pytest.raises(ValueError, match=r"fkd: epoch 1, batch 0: .* not finite"):
        import_fkd(folder, tmp_path / "a")


def make_set(
    count: int = 11, num_classes: int = 7, side: int = SIDE, **changes: Any
) -> DistilledSet:
    values: dict[str, Any] = {
        "images": torch.zeros(count, 1, side, side, dtype=torch.uint8),
        "labels": torch.arange(count) % num_classes,
        "num_classes": num_classes,
        "normalization": Normalization((0.5,), (0.5,)),
        "class_names": tuple("abcdefghij"[:num_classes]),
    }
    return DistilledSet(**{**values, **changes})


def test_a_store_refuses_another_set(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store", distilled=make_set())
    store.check(make_set(), batch_size=4)
    for other, message in (
        (make_set(12), "labels for images 11, .* has 12"),
        (make_set(num_classes=8), "classes 7, .* has 8"),
        (make_set(side=64), r"image size \(32, 32\), .* has \(64, 64\)"),
        (make_set(class_names=tuple("bacdefg")), "class 0 is 'a' there and 'b' in the set"),
        (make_set(labels=torch.arange(11).flip(0) % 7), "images in another order"),
        (make_set(images=torch.ones(11, 1, SIDE, SIDE, dtype=torch.uint8)), "for other images"),
    ):
        with pytest.raises(ValueError, match=message):
            store.check(other)
    store.check_views(20, 31)  # the files' CutMix box ends there
    for sides in ((19, 31), (20, 30)):
        with pytest.raises(ValueError, match=r"mix_bbox of epoch 0, batch 0 leaves the views"):
            store.check_views(*sides)
    with pytest.raises(ValueError, match=r"batch size 4, .* has 5"):
        store.check(make_set(), batch_size=5)
    with pytest.raises(ValueError, match="labels of 11 images, the set has 12"):
        import_fkd(tmp_path / "fkd", tmp_path / "other", distilled=make_set(12))


def test_images_have_one_digest_wherever_they_are(tmp_path: Path) -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    made = make_set(
        4, 4, images=images, labels=torch.arange(4), normalization=IMAGENET_NORMALIZATION
    )
    root = write_layout(made, tmp_path / "set", "rded")
    streamed = ResidentDataset.open(root, limit_bytes=0, on_overflow="stream", backend="pil")
    assert streamed.images is None
    assert images_digest(made) == images_digest(ResidentDataset(made)) == images_digest(streamed)
    swapped = dataclasses.replace(made, images=images.flip(0))
    assert images_digest(swapped) != images_digest(made)


def test_copies_of_a_damaged_store_are_refused(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    file = store.path / "logits.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    damaged = SoftLabels(store.path)
    with pytest.raises(ValueError, match="epoch 1 has not the SHA-256"):
        recode(damaged, tmp_path / "short", "int8")
    with pytest.raises(ValueError, match="epoch 1 has not the SHA-256"):
        export_fkd(damaged, tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_a_store_without_its_checksums_is_refused(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    record = store.path / "store.json"
    values = json.loads(record.read_text())
    values["epochs_sha256"] = []
    del values["record_sha256"]
    values["record_sha256"] = module._digest(values)
    record.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"store\.json .*list of 2 checksums"):
        SoftLabels(store.path)


def test_a_writer_refuses_what_it_cannot_go_on_from(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    finished = SoftLabelWriter(store.path, store.info)
    with pytest.raises(ValueError, match="store is complete"):
        finished.write(store.batch(0, 0))
    with SoftLabelWriter(tmp_path / "part", store.info) as writer:
        writer.write(store.batch(0, 0))
    with pytest.raises(ValueError, match="part is closed"):
        writer.write(store.batch(0, 1))
    progress = tmp_path / "part" / "progress.json"
    progress.write_text(progress.read_text().replace('"done": 1', '"done": 9999'))
    with pytest.raises(ValueError, match=r"progress\.json is damaged or was edited"):
        SoftLabelWriter(tmp_path / "part", store.info)


def test_one_writer_a_folder(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    (tmp_path / "again").mkdir()
    with open(tmp_path / "again" / ".lock", "w") as other:  # as another process would
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="again is in use"):
            import_fkd(tmp_path / "fkd", tmp_path / "again")
    assert import_fkd(tmp_path / "fkd", tmp_path / "again").sha256 == store.sha256
    assert not (tmp_path / "again" / ".lock").exists()


def test_a_box_beyond_the_views_is_not_written(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    info = dataclasses.replace(store.info, view_size=30)
    with pytest.raises(ValueError, match=r"mix_bbox \(3, 5, 20, 31\) leaves views of 30 pixels"):
        SoftLabelWriter(tmp_path / "small", info).write(store.batch(0, 0))


def test_damage_is_told(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    for name in ("logits", "views", "mixes"):
        file = store.path / f"{name}.npy"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        SoftLabels(store.path).verify(0)  # the damage is in the last epoch
        with pytest.raises(ValueError, match="epoch 1 has not the SHA-256"):
            SoftLabels(store.path).verify()
        file.write_bytes(content[:-9])
        with pytest.raises(ValueError, match=rf"{name}\.npy is damaged"):
            SoftLabels(store.path)
        file.write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name}\.npy is damaged"):
            SoftLabels(store.path)
        file.write_bytes(content)
    record = store.path / "store.json"
    text = record.read_text()
    record.write_text(text.replace('"epochs": 2', '"epochs": 3'))
    with pytest.raises(ValueError, match=r"store\.json is damaged or was edited"):
        SoftLabels(store.path)
    record.write_text(text)
    with pytest.raises(IndexError, match="epoch 2, batch 0"):
        store.batch(2, 0)
    with pytest.raises(FileNotFoundError, match=r"store\.json is missing"):
        SoftLabels(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=NO_FIXTURE)
@given(data=st.data())
def test_a_damaged_store_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("s", numbered=True)
    store = import_fkd(official_folder(folder / "fkd", epochs=1), folder / "store")
    name = data.draw(st.sampled_from(["store.json", "logits.npy", "views.npy", "mixes.npy"]))
    content = bytearray((store.path / name).read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + 4] = data.draw(st.binary(max_size=6))
    (store.path / name).write_bytes(bytes(content))
    try:
        damaged = SoftLabels(store.path)
        damaged.verify()
    except ValueError as error:
        told = str(error)
    else:
        told = str(damaged.path)
        assert torch.equal(damaged.batch(0, 0).logits, store.batch(0, 0).logits)
    assert str(store.path) in told


def test_workers_open_the_files_again(tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    content = pickle.dumps(store)
    assert len(content) < 500  # the path, not the labels
    assert torch.equal(pickle.loads(content).batch(1, 2).logits, store.batch(1, 2).logits)


@pytest.mark.parametrize("form", ["int8", "top3"])
def test_shortened_forms_keep_what_they_say(tmp_path: Path, form: str) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd", dtype=torch.float32), tmp_path / "store")
    short = recode(store, tmp_path / form, form)
    for epoch, number in ((0, 0), (1, 2)):
        full, kept = store.batch(epoch, number), short.batch(epoch, number)
        x, y = full.logits.double(), kept.logits.double()
        assert torch.equal(full.coords, kept.coords)
        if form == "int8":
            step = (x.amax(1) - x.amin(1)) / 255
            # Half a step, and float32's rounding of the values.
            assert bool(((x - y).abs() <= 0.5001 * step[:, None] + 1e-6).all())
        else:
            top = x.topk(3, dim=1).indices
            half = x.gather(1, top).half().double()
            assert torch.equal(y.gather(1, top), half)
            total, want = ((z / 20).exp().sum(1) for z in (y, x))
            assert torch.allclose(total, want, rtol=1e-4)  # of fp16's eleven bits at T = 20


def test_forms_are_checked() -> None:
    with pytest.raises(ValueError, match="form must be float16"):
        StoreInfo(1, (2,), 7, form="zip")
    with pytest.raises(ValueError, match="needs more than 7 classes, there are 7"):
        StoreInfo(1, (2,), 7, form="top7")
    with pytest.raises(ValueError, match="all batches but the last must be equal"):
        StoreInfo(1, (2, 3, 4), 7)


KILLED = """
import os, signal, sys
from pathlib import Path
from pyddfast.data import softlabels
softlabels._FLUSH_SECONDS = float(sys.argv[4])
def stop(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
softlabels.import_fkd(sys.argv[1], sys.argv[2], on_progress=stop)
"""


# Inside an epoch, where a flush keeps each batch, or only the epoch before is safe.
@pytest.mark.parametrize(("at", "flush", "safe"), [(4, 0.0, 4), (5, 1e9, 3)])
def test_a_killed_import_goes_on(tmp_path: Path, at: int, flush: float, safe: int) -> None:
    folder = official_folder(tmp_path / "fkd")
    whole = import_fkd(folder, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(folder), str(out), str(at), str(flush)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="is unfinished"):
        SoftLabels(out)
    steps: list[int] = []
    import_fkd(folder, out, on_progress=lambda done, total: steps.append(done))
    assert steps[0] == safe + 1
    assert {f.name for f in out.iterdir()} == {f.name for f in whole.path.iterdir()}
    for file in whole.path.iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes()


def test_a_writer_refuses_foreign_folders(tmp_path: Path) -> None:
    folder = official_folder(tmp_path / "fkd")
    import_fkd(folder, tmp_path / "store")
    import_fkd(folder, tmp_path / "store")  # finished: nothing to do
    with pytest.raises(FileExistsError, match="other soft labels"):
        import_fkd(folder, tmp_path / "store", form="int8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        import_fkd(folder, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").exists()
    with pytest.raises(FileExistsError, match="not empty"):
        export_fkd(SoftLabels(tmp_path / "store"), tmp_path / "mine")


def test_a_writer_checks_its_batches(tmp_path: Path) -> None:
    value = official_list(np.random.default_rng(0), 4, elements=7)
    batch = LabelBatch(*value[:4], (3, 5, 20, 31), *value[5:])
    writer = SoftLabelWriter(tmp_path / "a", StoreInfo(1, (4, 4), 7))
    with pytest.raises(ValueError, match=r"epoch 0, batch 0: logits are \(4, 7\), .* \(4, 9\)"):
        SoftLabelWriter(tmp_path / "b", StoreInfo(1, (4,), 9)).write(batch)
    with pytest.raises(ValueError, match="numbers are missing"):
        writer.write(dataclasses.replace(batch, index=None))
    writer.write(batch)
    with pytest.raises(ValueError, match="each of the images 0 to 7 once"):
        writer.write(batch)  # the same images again


def test_no_room_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*logits\.npy"):
        SoftLabelWriter(tmp_path / "a", StoreInfo(1, (4,), 9))


def test_damaged_progress_is_told(tmp_path: Path) -> None:
    info = StoreInfo(1, (4,), 9)
    SoftLabelWriter(tmp_path / "a", info)
    values = json.loads((tmp_path / "a" / "progress.json").read_text())
    del values["done"]
    (tmp_path / "a" / "progress.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"progress\.json is damaged"):
        SoftLabelWriter(tmp_path / "a", info)
