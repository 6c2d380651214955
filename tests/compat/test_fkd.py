"""``ImageFolder_FKD_MIX`` and the mixing helpers against the official semantics, stated again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, default_collate

from pyddfast.compat.fkd import (
    ImageFolder_FKD_MIX,
    cutmix,
    fkd_collate,
    get_FKD_info,
    get_img2batch_idx_list,
    mix_aug,
    mixup,
    rand_bbox,
)
from pyddfast.data import import_fkd
from tests.data.fkd_files import official_folder

SIZES = (4, 4, 3)
COUNT = sum(SIZES)


def transform(image: Image.Image, coords: Any, flip: Any) -> tuple[torch.Tensor, Any, Any]:
    """Crop, resize and flip as the official transforms do, by Pillow alone."""
    width, height = image.size
    if coords is None:
        coords, flip = torch.tensor([0.25, 0.5, 0.5, 0.25]), True
    top, left, rows, cols = (
        c.item() * s for c, s in zip(coords, (height, width, height, width), strict=True)
    )
    view = image.crop((left, top, left + cols, top + rows)).resize((16, 16), Image.BILINEAR)
    if flip:
        view = view.transpose(Image.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).float() / 255, flip, coords


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        folder = tmp_path / "images" / f"new{number // 4:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class{number // 4:03d}_id{number % 4:03d}.png")
    return tmp_path / "images"


def expected(images: Path, fkd: Path, epochs: int, mix: str) -> Iterator[list[list[Any]]]:
    """What the official loader yields, epoch by epoch, read file by file."""
    paths = sorted(images.rglob("*.png"))
    sampler = RandomSampler(range(COUNT), generator=torch.Generator().manual_seed(42))
    for epoch in range(epochs):
        yield [
            [
                default_collate(
                    [
                        (view, int(paths[i].parent.name[3:]), flipped, crop)
                        for i, c, f in zip(ids, stored[0], stored[1], strict=True)
                        for view, flipped, crop in [transform(Image.open(paths[i]), c, f)]
                    ]
                ),
                stored[2],
                stored[3],
                None if stored[4] is None else [int(v) for v in stored[4]],
                stored[5],
            ]
            for number, ids in enumerate(torch.tensor(list(sampler)).split(SIZES))
            for stored in [
                torch.load(fkd / f"epoch_{epoch}" / f"batch_{number}.tar", weights_only=False)
            ]
        ]


def assert_equal(mine: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    elif isinstance(theirs, list | tuple):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert_equal(a, b)
    else:
        assert mine == theirs


def loader(dataset: ImageFolder_FKD_MIX, workers: int = 0, **options: Any) -> DataLoader[Any]:
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(42))
    options = {"collate_fn": fkd_collate, **options}
    return DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers, **options)


@pytest.mark.parametrize(
    ("kind", "mix", "workers"),
    [("files", "cutmix", 0), ("files", "none", 0), ("store", "mixup", 0), ("store", "cutmix", 2)],
)  # both kinds of labels; every mixing; worker processes, which get the dataset pickled
def test_batches_are_those_of_the_official_loader(
    tmp_path: Path, images: Path, kind: str, mix: str, workers: int
) -> None:
    fkd = official_folder(tmp_path / "fkd", batch_sizes=SIZES, mix=mix)
    path = fkd if kind == "files" else import_fkd(fkd, tmp_path / "store").path
    dataset = ImageFolder_FKD_MIX(
        fkd_path=path,
        mode="fkd_load",
        args_epoch=2,
        args_bs=4,
        root=images,
        transform=transform,
    )
    batches = loader(dataset, workers)
    for epoch, want in enumerate(expected(images, fkd, 2, mix)):
        dataset.set_epoch(epoch)
        assert_equal(list(batches), want)


def test_a_patched_pytorch_works_too(tmp_path: Path, images: Path) -> None:
    fkd = official_folder(tmp_path / "fkd", batch_sizes=SIZES)
    dataset = ImageFolder_FKD_MIX(fkd, "fkd_load", 1, 4, root=images, transform=transform)
    dataset.set_epoch(0)
    (want,) = expected(images, fkd, 1, "cutmix")
    sampler = RandomSampler(range(COUNT), generator=torch.Generator().manual_seed(42))
    for collate in (default_collate, fkd_collate):
        for ids, batch in zip(torch.tensor(list(sampler)).split(SIZES), want, strict=True):
            # SRe2L's validate/README.md: the fetcher asks for the batch before its images.
            stored = dataset.load_batch_config(ids[0].item())
            samples = collate(dataset.__getitems__(ids.tolist()))
            assert_equal([samples, *stored], batch)
        sampler = RandomSampler(range(COUNT), generator=torch.Generator().manual_seed(42))


def test_saving_gives_samples(tmp_path: Path, images: Path) -> None:
    dataset = ImageFolder_FKD_MIX(
        "unused", "fkd_save", root=images, transform=transform, target_transform=lambda t: t + 10
    )
    paths = sorted(images.rglob("*.png"))
    for collate in (None, fkd_collate):
        batch = next(iter(DataLoader(dataset, batch_size=3, collate_fn=collate)))
        views = torch.stack([transform(Image.open(p), None, None)[0] for p in paths[:3]])
        assert_equal(batch[0], views)
        assert batch[1].tolist() == [10, 10, 10]
        assert batch[2].tolist() == [True] * 3
        assert_equal(batch[3], torch.tensor([[0.25, 0.5, 0.5, 0.25]] * 3))
    assert dataset.classes == ["new000", "new001", "new002"]
    assert dataset.class_to_idx["new002"] == 2
    assert dataset.samples[4] == (str(paths[4]), 1)


def test_what_does_not_fit_is_told(tmp_path: Path, images: Path) -> None:
    fkd = official_folder(tmp_path / "fkd", batch_sizes=SIZES)

    def load(epochs: int = 2, batch_size: int = 4, path: Path = fkd, root: Path = images) -> Any:
        return ImageFolder_FKD_MIX(
            path, "fkd_load", epochs, batch_size, root=root, transform=transform
        )

    with pytest.raises(ValueError, match=r"`--epochs` is 3, .* has labels for 2"):
        load(epochs=3)
    with pytest.raises(ValueError, match=r"`--batch-size` is 5, .* was made with 4"):
        load(batch_size=5)
    with pytest.raises(FileNotFoundError, match=r"store\.json is missing"):
        load(path=tmp_path)
    with pytest.raises(ValueError, match="mode must be"):
        ImageFolder_FKD_MIX(fkd, "load", root=images, transform=transform)
    other = official_folder(tmp_path / "other", batch_sizes=(4, 4, 2))
    with pytest.raises(ValueError, match=r"labels for 10 images, .* has 11"):
        load(path=other)
    dataset = load()
    with pytest.raises(ValueError, match="call set_epoch"):
        next(iter(loader(dataset)))
    dataset.set_epoch(0)
    with pytest.raises(ValueError, match="read them by a DataLoader"):
        dataset[0]
    with pytest.raises(ValueError, match="begins no stored batch of epoch 0"):
        list(DataLoader(dataset, batch_size=4, shuffle=False, collate_fn=fkd_collate))
    first = next(k for k, v in dataset.img2batch_idx_list[0].items() if v == 2)
    with pytest.raises(ValueError, match="asks for 4 images, the stored batch has 3"):
        dataset.__getitems__([first, 0, 1, 2])
    seven = official_folder(tmp_path / "seven", batch_sizes=SIZES, elements=7, seed=3)
    dataset = load(path=seven)
    dataset.set_epoch(0)
    with pytest.raises(ValueError, match="not those of the stored batch"):
        list(loader(dataset))
    (images / "new000" / "class000_id000.png").write_bytes(b"")
    dataset = load()
    dataset.set_epoch(0)
    with pytest.raises(ValueError, match=r"class000_id000\.png cannot be read"):
        list(loader(dataset))


def test_information_of_files_and_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fkd = official_folder(tmp_path / "fkd", batch_sizes=SIZES)
    assert get_FKD_info(f"{fkd}/") == (2, 4, 11)
    assert "num img: 11\nbatch size: 4\nmax epoch: 2\n" in capsys.readouterr().out
    assert get_FKD_info(import_fkd(fkd, tmp_path / "store").path) == (2, 4, 11)
    sampler = RandomSampler(range(11), generator=torch.Generator().manual_seed(7))
    for epoch in get_img2batch_idx_list(11, 4, seed=7, epochs=3):
        order = list(sampler)
        assert epoch == {order[0]: 0, order[4]: 1, order[8]: 2}


def official_box(size: tuple[int, ...], lam: float) -> list[Any]:
    """The box of ``utils_fkd.py``: W is dimension 2 there."""
    W, H = size[2], size[3]
    ratio = np.sqrt(1.0 - lam)
    w, h = int(W * ratio), int(H * ratio)
    cx, cy = np.random.randint(W), np.random.randint(H)  # noqa: NPY002
    return [
        np.clip(cx - w // 2, 0, W),
        np.clip(cy - h // 2, 0, H),
        np.clip(cx + w // 2, 0, W),
        np.clip(cy + h // 2, 0, H),
    ]


@pytest.mark.parametrize("mix", ["cutmix", "mixup", None])
def test_mixing_draws_from_the_official_streams(mix: str | None) -> None:
    args = SimpleNamespace(mode="fkd_save", mix_type=mix, cutmix=1.0, mixup=0.8)
    x = torch.rand(6, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        want, order, lam, box = x.clone(), None, None, None
        if mix is not None:
            order = torch.randperm(6)
            lam = np.random.beta(*(1.0, 1.0) if mix == "cutmix" else (0.8, 0.8))  # noqa: NPY002
        if mix == "cutmix":
            box = official_box(tuple(x.shape), lam)
            a, b, c, d = box
            want[:, :, a:c, b:d] = x[order][:, :, a:c, b:d]
        elif mix == "mixup":
            want = lam * x + (1 - lam) * x[order]
        after = torch.rand(1), np.random.rand()  # noqa: NPY002
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        given = x.clone()
        got = mix_aug(given, args)
        assert_equal(list(got), [want, order, lam, box])
        # Nothing more was drawn.
        assert (torch.rand(1), np.random.rand()) == after  # noqa: NPY002
        assert (got[0] is given) == (mix != "mixup")  # in place
        if mix == "cutmix":
            assert all(type(v) is int for v in got[3])
        if mix is not None:  # replayed
            args.mode = "fkd_load"
            again = mix_aug(x.clone(), args, got[1], got[2], got[3])
            assert_equal(list(again), list(got))
            args.mode = "fkd_save"


def test_mixing_without_what_was_stored_is_told() -> None:
    x = torch.zeros(2, 3, 4, 4)
    args = SimpleNamespace(mode="fkd_load", mix_type="cutmix", cutmix=1.0, mixup=0.8)
    with pytest.raises(ValueError, match="needs the stored rand_index and lam"):
        cutmix(x, args)
    with pytest.raises(ValueError, match="needs the stored bbox"):
        cutmix(x, args, torch.tensor([1, 0]), 0.5)
    with pytest.raises(ValueError, match="mode must be"):
        mixup(x, SimpleNamespace(mode="save", mix_type="mixup", cutmix=1.0, mixup=1.0))
    np.random.seed(0)  # noqa: NPY002
    assert rand_bbox((2, 3, 9, 7), 1.0) == (5, 0, 5, 0)  # an empty box where nothing is mixed


def test_a_damaged_store_is_refused_where_its_epoch_begins(images: Path, tmp_path: Path) -> None:
    store = import_fkd(official_folder(tmp_path / "fkd"), tmp_path / "store")
    file = store.path / "logits.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in the last epoch
    replay = ImageFolder_FKD_MIX(
        store.path, "fkd_load", args_epoch=2, args_bs=4, root=images, transform=transform
    )
    replay.set_epoch(0)
    with pytest.raises(ValueError, match="epoch 1 has not the SHA-256"):
        replay.set_epoch(1)
