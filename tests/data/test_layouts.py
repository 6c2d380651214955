"""The official layouts: file names, round trips, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast.data import (
    IMAGENET_NORMALIZATION,
    DistilledSet,
    ImageFolder,
    Normalization,
    ResidentDataset,
    read_layout,
    write_layout,
)

SYNSETS = ("n01518878", "n01440764", "n02102040")
GREY = Normalization((0.5,), (0.25,))
FILES = {
    "sre2l": ["new000/class000_id000", "new000/class000_id001", "new002/class002_id000"],
    "rded": ["00000/class00000_id00000", "00000/class00000_id00001", "00002/class00002_id00000"],
    "d4m": ["0/0-image00", "0/0-image10", "2/2-image00"],
    "synset": ["n01518878/0", "n01518878/1", "n02102040/0"],
}


def distilled(channels: int = 3) -> DistilledSet:
    gen = torch.Generator().manual_seed(channels)
    return DistilledSet(
        images=torch.randint(0, 256, (3, channels, 6, 8), generator=gen, dtype=torch.uint8),
        labels=torch.tensor([0, 0, 2]),
        num_classes=3,
        normalization=IMAGENET_NORMALIZATION if channels == 3 else GREY,
        class_names=SYNSETS,
        kind="synthetic",
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", list(FILES))
def test_names_are_the_official_ones_and_png_keeps_every_pixel(
    layout, channels: int, tmp_path: Path
) -> None:
    made = distilled(channels)
    write_layout(made, tmp_path / "set", layout)
    files = sorted(str(f.relative_to(tmp_path / "set")) for f in tmp_path.rglob("*.png"))
    assert files == [f"{name}.png" for name in FILES[layout]]
    for chosen in ("auto", layout):
        back = read_layout(
            tmp_path / "set", chosen, class_names=SYNSETS, normalization=made.normalization
        )
        assert torch.equal(back.images, made.images)
        assert torch.equal(back.labels, made.labels)
        assert (back.num_classes, back.class_names) == (3, SYNSETS)
        assert back.normalization == made.normalization
        assert back.meta["layout"] == layout


# RDED's folders hold patches whatever their number; other codes' mosaics are told by their factor.
@pytest.mark.parametrize(
    ("layout", "factor", "kind", "names"),
    [
        ("rded", 1, "patches", ()),
        ("rded", 2, "patches", ()),
        ("sre2l", 1, "synthetic", ()),
        ("d4m", 2, "patches", ()),
        ("synset", 1, "synthetic", tuple(sorted(SYNSETS))),
    ],
)
def test_what_folders_say_of_a_set(
    tmp_path: Path, layout, factor: int, kind: str, names: tuple[str, ...]
) -> None:
    images = distilled().images[:3]
    made = DistilledSet(images, torch.arange(3), 3, IMAGENET_NORMALIZATION, SYNSETS)
    write_layout(made, tmp_path / "set", layout)
    for read in (read_layout, ResidentDataset.open):
        back = read(tmp_path / "set", factor=factor)
        assert (back.kind, back.factor, tuple(back.class_names)) == (kind, factor, names)
        assert read(tmp_path / "set", kind="real").kind == "real"
        more = read(tmp_path / "set", num_classes=5)  # two classes without a folder
        assert (more.num_classes, tuple(more.class_names)) == (5, ())


def test_jpeg_is_what_pillow_writes_by_default(tmp_path: Path) -> None:
    made = distilled()
    write_layout(made, tmp_path / "set", "sre2l", image_format="jpeg")
    image = Image.fromarray(made.images[1].permute(1, 2, 0).numpy())
    image.save(tmp_path / "official.jpg")
    written = tmp_path / "set" / "new000" / "class000_id001.jpg"
    assert written.read_bytes() == (tmp_path / "official.jpg").read_bytes()
    back = read_layout(tmp_path / "set")
    decoded = torch.from_numpy(np.array(Image.open(written))).permute(2, 0, 1)
    assert torch.equal(back.images[1], decoded)


def test_d4m_numbers_are_numbers_not_text(tmp_path: Path) -> None:
    # As text, 10 sorts before 2, and image 10 before image 2.
    count = 12
    made = DistilledSet(
        images=torch.arange(2 * count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        labels=torch.arange(count).repeat_interleave(2),
        num_classes=count,
        normalization=IMAGENET_NORMALIZATION,
    )
    write_layout(made, tmp_path / "set", "d4m")
    back = read_layout(tmp_path / "set")
    assert back.labels.tolist() == made.labels.tolist()
    assert torch.equal(back.images, made.images)
    many = DistilledSet(
        images=made.images, labels=torch.zeros(24, dtype=torch.int64), num_classes=1,
        normalization=IMAGENET_NORMALIZATION,
    )  # fmt: skip
    write_layout(many, tmp_path / "many", "d4m")
    assert torch.equal(read_layout(tmp_path / "many").images, many.images)


def test_synsets_take_their_labels_from_the_names_or_the_order(tmp_path: Path) -> None:
    write_layout(distilled(), tmp_path / "set", "synset")
    assert read_layout(tmp_path / "set").labels.tolist() == [0, 0, 1]
    assert read_layout(tmp_path / "set", class_names=SYNSETS[::-1]).labels.tolist() == [0, 2, 2]
    with pytest.raises(ValueError, match="n02102040 is none of the class_names"):
        read_layout(tmp_path / "set", class_names=SYNSETS[:2])


def folders(root: Path, names: Sequence[str]) -> Path:
    """One grey-level image a folder, the folder's position as its value."""
    for value, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (value, value, value)).save(root / name / "0.png")
    return root


def labels_by_value(made: DistilledSet) -> list[int]:
    return made.labels[made.images[:, 0, 0, 0].argsort()].tolist()


def test_folders_named_as_classes_go_by_name(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", ("dog", "cat"))
    assert labels_by_value(read_layout(root, class_names=("cat", "cow", "dog"))) == [2, 0]
    with pytest.raises(ValueError, match="dog is none of the class_names"):
        read_layout(root, class_names=("cat", "cow"))


@pytest.mark.parametrize("layout", ["sre2l", "rded", "d4m"])
def test_numbers_that_are_class_names_too_have_to_be_told(layout, tmp_path: Path) -> None:
    names = tuple(sorted(map(str, range(11))))  # "0", "1", "10", "2", ...
    made = DistilledSet(
        images=torch.arange(11, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        labels=torch.arange(11),
        num_classes=11,
        normalization=IMAGENET_NORMALIZATION,
    )
    root = write_layout(made, tmp_path / "set", layout)
    if layout != "d4m":
        assert labels_by_value(read_layout(root, class_names=names)) == list(range(11))
        return
    for reader in (read_layout, ResidentDataset.open):
        with pytest.raises(ValueError, match=r"10 can be label 10 by its number .* label 2 by its"):
            reader(root, class_names=names)
    assert labels_by_value(read_layout(root, "d4m", class_names=names)) == list(range(11))
    by_name = [names.index(str(k)) for k in range(11)]
    assert labels_by_value(read_layout(root, "synset", class_names=names)) == by_name
    # Where both readings agree there is nothing to tell.
    plain = tuple(map(str, range(11)))
    assert labels_by_value(read_layout(root, class_names=plain)) == list(range(11))
    # Classes that are counted from 1: "0" is none, and "1" must not silently become class 1, "10".
    from_one = tuple(sorted(map(str, range(1, 12))))
    with pytest.raises(ValueError, match=r"1 can be label 1 by its number .* label 0 by its name"):
        read_layout(root, class_names=from_one)


def test_hidden_names_are_not_part_of_a_set(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", ("0", "1"))
    for folder in (root / ".ipynb_checkpoints", root / "1" / ".ipynb_checkpoints"):
        folder.mkdir()
        Image.new("RGB", (4, 4)).save(folder / "0-checkpoint.png")
    (root / "1" / "._0.png").write_bytes(b"\0\5\x16\7")  # AppleDouble
    (root / "1" / "x.png").mkdir()
    assert labels_by_value(read_layout(root)) == [0, 1]
    folder = ImageFolder(root)
    assert folder.class_names == ("0", "1")
    assert [path.name for path in folder.paths] == ["0.png", "0.png"]


def test_our_own_form_is_read_too(tmp_path: Path) -> None:
    made = distilled()
    made.save(tmp_path / "set")
    back = read_layout(tmp_path / "set")
    assert torch.equal(back.images, made.images)
    assert back.class_names == SYNSETS


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_layout(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no class folders"):
        read_layout(tmp_path)
    made = distilled()
    root = write_layout(made, tmp_path / "set", "sre2l")
    with pytest.raises(FileExistsError):
        write_layout(made, root, "sre2l")
    with pytest.raises(ValueError, match=r"new000 does not fit the layout 'rded'"):
        read_layout(root, "rded")
    with pytest.raises(ValueError, match="new002 has the label 2, there are 2 classes"):
        read_layout(root, num_classes=2)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        read_layout(root, num_classes=0)
    with pytest.raises(ValueError, match="layout must be one of sre2l"):
        read_layout(root, "edc")  # type: ignore[arg-type]
    (root / "new0002").mkdir()
    with pytest.raises(ValueError, match=r"new002 and .*new0002 have the same label 2"):
        read_layout(root)
    (root / "new0002").rmdir()
    (root / "new001").mkdir()
    with pytest.raises(FileNotFoundError, match="new001 holds no images"):
        read_layout(root)
    Image.new("RGB", (3, 3)).save(root / "new001" / "class001_id000.png")
    with pytest.raises(ValueError, match=r"class001_id000.png has the size \(3, 3\)"):
        read_layout(root)
    (root / "new001" / "class001_id000.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(ValueError, match=r"class001_id000\.png cannot be read as an image"):
        read_layout(root)
    (root / "other").mkdir()
    with pytest.raises(ValueError, match="fit none of the layouts"):
        read_layout(root)


def test_refusals_of_the_writer_leave_nothing(tmp_path: Path) -> None:
    made, out = distilled(), tmp_path / "set"
    with pytest.raises(ValueError, match=r"3 different synsets.*'cat'"):
        write_layout(made, out, "synset", synsets=("n01518878", "cat", "n02102040"))
    with pytest.raises(ValueError, match="3 different synsets"):
        write_layout(made, out, "synset", synsets=SYNSETS[:2])
    with pytest.raises(ValueError, match="image_format"):
        write_layout(made, out, "sre2l", image_format="gif")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quality"):
        write_layout(made, out, "sre2l", image_format="jpeg", quality=100)
    assert not out.exists()
    grey = write_layout(distilled(1), out, "rded")
    with pytest.raises(ValueError, match="grey images; give their normalization"):
        read_layout(grey)
