"""ImageNet's layouts on disk, written here in small, and labels that do not fit them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pyddfast import data

# The devkit's numbers 1, 2, 3 are not in sorted order.
NUMBERS = {1: "n02119789", 2: "n01440764", 3: "n15075141"}
SORTED = ["n01440764", "n02119789", "n15075141"]
TRUTH = [3, 1, 1, 2]  # of validation images 1 to 4
LABELS = [SORTED.index(NUMBERS[number]) for number in TRUTH]


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(path, format="JPEG")


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def make(root: Path, below: str = ".", *, flat: bool) -> None:
    for label, wnid in enumerate(SORTED):
        save(root / below / "train" / wnid / f"{wnid}_1.JPEG", 50 * label)
    for number, label in enumerate(LABELS, start=1):
        folder = root / below / "val" / ("" if flat else SORTED[label])
        save(folder / val_name(number), 10 * number)


def map_text(devkit: Path) -> None:
    lines = [f"{wnid} {number} some_name\n" for number, wnid in NUMBERS.items()]
    (devkit / "map_clsloc.txt").write_text("".join(lines))


def map_mat(devkit: Path) -> None:
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
              ("num_children", "O")]  # fmt: skip
    rows = [(number, wnid, "a, b", "text", 0) for number, wnid in NUMBERS.items()]
    rows.append((1001, "n00001740", "entity", "inner node", 2))
    synsets = np.array(rows, dtype=fields)[:, None]
    scipy.io.savemat(devkit / "meta.mat", {"synsets": synsets})


def devkit_at(root: Path, below: str, write_map, truth=TRUTH) -> Path:
    devkit = root / below
    devkit.mkdir(parents=True, exist_ok=True)
    write_map(devkit)
    path = devkit / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in truth))
    return path


def levels(folder) -> list[int]:
    return [round(float(folder[i].double().mean())) for i in range(len(folder))]


@pytest.mark.parametrize("below", [".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"])
def test_class_folders(tmp_path, below):
    make(tmp_path, below, flat=False)
    train = data.load("imagenet", root=tmp_path)
    assert isinstance(train, data.ImageFolder)
    assert train.class_names == tuple(SORTED)
    assert train.labels.tolist() == [0, 1, 2]
    assert levels(train) == [0, 50, 100]
    test = data.load("imagenet", root=tmp_path, split="test", image_size=4)
    assert test.labels.tolist() == sorted(LABELS)
    assert levels(test) == [40, 20, 30, 10]
    assert test[0].shape == (3, 4, 4)
    assert (test.name, test.split, test.normalization) == (
        "imagenet", "test", data.IMAGENET_NORMALIZATION,
    )  # fmt: skip


@pytest.mark.parametrize("write_map", [map_text, map_mat])
@pytest.mark.parametrize("below", ["ILSVRC2012_devkit_t12/data", "devkit/data", "."])
def test_a_flat_validation_folder_with_the_devkit(tmp_path, write_map, below):
    make(tmp_path, flat=True)
    devkit_at(tmp_path, below, write_map)
    test = data.load("imagenet", root=tmp_path, split="test")
    assert test.class_names == tuple(SORTED)
    assert test.labels.tolist() == LABELS
    assert levels(test) == [10, 20, 30, 40]
    (tmp_path / "val" / val_name(2)).unlink()  # lines go by the number in the name
    test = data.load("imagenet", root=tmp_path, split="test")
    assert test.labels.tolist() == [LABELS[0], LABELS[2], LABELS[3]]
    assert levels(test) == [10, 30, 40]


def kaggle(root: Path) -> Path:
    path = root / "LOC_val_solution.csv"
    rows = [f"{Path(val_name(number)).stem},{SORTED[label]} 85 1 499 272 \n"
            for number, label in reversed(list(enumerate(LABELS, start=1)))]  # fmt: skip
    path.write_text("ImageId,PredictionString\n" + "".join(rows))
    return path


def test_a_flat_validation_folder_with_kaggles_table(tmp_path):
    make(tmp_path, "ILSVRC/Data/CLS-LOC", flat=True)
    kaggle(tmp_path)
    test = data.load("imagenet", root=tmp_path, split="test")
    assert test.labels.tolist() == LABELS
    assert levels(test) == [10, 20, 30, 40]


def test_a_flat_validation_folder_without_training_images(tmp_path):
    make(tmp_path, flat=True)
    kaggle(tmp_path)
    shutil.rmtree(tmp_path / "train")
    assert data.load("imagenet", root=tmp_path, split="test").labels.tolist() == LABELS


@pytest.mark.parametrize("flat", [False, True])
def test_splits_with_different_classes(tmp_path, flat):
    make(tmp_path, flat=flat)
    kaggle(tmp_path)
    shutil.rmtree(tmp_path / "train" / SORTED[0])
    with pytest.raises(ValueError, match=f"different classes.*{SORTED[0]} is in one only"):
        data.load("imagenet", root=tmp_path, split="test")
    assert data.load("imagenet", root=tmp_path).labels.tolist() == [0, 1]


def test_class_folders_with_other_names(tmp_path):
    make(tmp_path, flat=False)
    save(tmp_path / "train" / "goldfish" / "1.JPEG", 0)
    with pytest.raises(ValueError, match="train/goldfish is not named by a WordNet identifier"):
        data.load("imagenet", root=tmp_path)


def test_missing_folders_and_labels(tmp_path):
    with pytest.raises(ValueError, match="root is needed for 'imagenet'"):
        data.load("imagenet")
    for split, folder in (("train", "train"), ("test", "val")):
        with pytest.raises(FileNotFoundError, match=f"has no folder {folder}, nor ILSVRC"):
            data.load("imagenet", root=tmp_path, split=split)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="val has neither class folders nor images"):
        data.load("imagenet", root=tmp_path, split="test")
    make(tmp_path, flat=True)
    with pytest.raises(FileNotFoundError, match=r"no class folders, and .*LOC_val_solution.csv"):
        data.load("imagenet", root=tmp_path, split="test")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    with pytest.raises(FileNotFoundError, match=r"neither map_clsloc\.txt nor meta\.mat"):
        data.load("imagenet", root=tmp_path, split="test")


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("3\n1\n1\n", r"has no class for .*val_00000004.JPEG and 0 more"),
        ("3\n1\nx\n2\n", "line 3: 'x' is not the number of a class"),
        ("3\n1\n\n2\n", "line 3: '' is not the number"),
        ("3\n4\n1\n2\n", "line 2: '4' is not the number"),
    ],
)
def test_a_damaged_ground_truth(tmp_path, truth, message):
    make(tmp_path, flat=True)
    path = devkit_at(tmp_path, "devkit/data", map_text)
    path.write_text(truth)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("imagenet", root=tmp_path, split="test")
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_validation_image(tmp_path):
    make(tmp_path, flat=True)
    path = devkit_at(tmp_path, "devkit/data", map_text)
    save(tmp_path / "val" / "cat.JPEG", 0)
    with pytest.raises(ValueError, match=r"has no class for .*cat.JPEG") as caught:
        data.load("imagenet", root=tmp_path, split="test")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("map_clsloc.txt", b"n02119789 1 kit_fox\nn01440764\n", "line 2: 'n01440764' is not 'wnid"),
        ("meta.mat", b"MATLAB 5.0 MAT-file, cut", "is not the devkit's table of classes"),
    ],
)
def test_damaged_maps(tmp_path, name, content, message):
    make(tmp_path, flat=True)
    path = devkit_at(tmp_path, ".", map_text).parent / name
    (tmp_path / "map_clsloc.txt").unlink()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("imagenet", root=tmp_path, split="test")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must start with the columns ImageId,PredictionString"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "line 2: .* has no prediction"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001\n", "line 2: .* has no prediction"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n", "and 2 more"),
    ],
)
def test_a_damaged_table_of_kaggle(tmp_path, content, message):
    make(tmp_path, flat=True)
    path = kaggle(tmp_path)
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("imagenet", root=tmp_path, split="test")
    assert str(path) in str(caught.value)
