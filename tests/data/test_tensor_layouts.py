"""Files of the small-scale codebases: written as they write them, read back, damaged ones named."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from pyddfast.data import (
    CIFAR10_NORMALIZATION,
    CIFAR100_NORMALIZATION,
    IMAGENET_NORMALIZATION,
    DistilledSet,
    codebase_normalization,
    normalize,
    read_dcbench,
    read_tensor_layout,
    read_vico_tiny_imagenet,
    write_tensor_layout,
)

TASK = {"num_classes": 10, "normalization": CIFAR10_NORMALIZATION}


def images(count=20, seed=0, side=4):
    return 3 * torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(10).repeat_interleave(2)


def official(folder, layout):
    """As the scripts save."""
    if layout == "vico":
        accuracies = {"ConvNet": [np.float64(0.25), np.mean(np.array([0.5, 0.25]))]}
        data = [[images(seed=1), LABELS], [images(seed=2), LABELS]]
        path = folder / "res_DM_CIFAR10_ConvNet_2ipc.pt"
        torch.save({"data": data, "accs_all_exps": accuracies}, path)
        return path
    if layout == "mtt":
        torch.save(images(), folder / "images_best.pt")
        torch.save(LABELS.float(), folder / "labels_best.pt")  # some were published as float
    elif layout == "datm":
        (folder / "Normal").mkdir()
        logits = torch.nn.functional.one_hot(LABELS, 10) * 4.0
        torch.save(images(), folder / "Normal" / "images_best.pt")
        torch.save(logits.requires_grad_(), folder / "Normal" / "labels_best.pt")
        torch.save(torch.tensor(0.0123), folder / "Normal" / "lr_best.pt")
    else:
        torch.save(images(), folder / "images.pt")
        torch.save(LABELS, folder / "labels.pt")
        torch.save(torch.tensor([0.02]), folder / "lr.pt")
    return folder


def test_the_file_of_dc_dsa_and_dm(tmp_path):
    path = official(tmp_path, "vico")
    made = read_tensor_layout(path, "vico", **TASK)
    assert torch.equal(made.images, images(seed=2))  # the last experiment, as DC-BENCH takes
    assert torch.equal(made.labels, LABELS)
    assert (made.meta["method"], made.whitened, made.lr) == ("dm", False, None)
    first = read_tensor_layout(path, "vico", experiment=0, **TASK)
    assert torch.equal(first.images, images(seed=1))


def test_files_of_an_older_numpy(tmp_path):
    """Numpy below 2 names its numbers by another module, which stands in the file."""
    path = official(tmp_path, "vico")
    content = path.read_bytes()
    with ZipFile(path) as source, ZipFile(tmp_path / "old.pt", "w") as target:
        for name in source.namelist():
            part = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in part
                part = part.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, part)
    assert (tmp_path / "old.pt").read_bytes() != content
    made = read_tensor_layout(tmp_path / "old.pt", "vico", method="dsa", **TASK)
    assert torch.equal(made.images, images(seed=2))


def test_the_files_of_mtt(tmp_path):
    folder = official(tmp_path, "mtt")
    with pytest.warns(UserWarning, match="without the learned learning rate"):
        made = read_tensor_layout(folder, "mtt", **TASK)
    assert torch.equal(made.images, images())
    assert torch.equal(made.labels, LABELS)
    assert (made.meta["method"], made.whitened, made.lr) == ("tm", False, None)
    torch.save(images(seed=9), folder / "images_zca_best.pt")  # the pictures of whitened images
    made = read_tensor_layout(folder, "mtt", lr=0.01, **TASK)
    assert (made.whitened, made.lr) == (True, 0.01)
    assert torch.equal(made.images, images())


def test_the_files_of_datm(tmp_path):
    folder = official(tmp_path, "datm")
    for path in (folder, folder / "Normal"):
        made = read_tensor_layout(path, "datm", **TASK)
        assert made.soft_labels is not None
        assert not made.soft_labels.requires_grad
        assert torch.equal(made.soft_labels.argmax(1), LABELS)
        assert torch.equal(made.labels, LABELS)
        assert made.lr == pytest.approx(0.0123)
        assert made.whitened


def test_the_files_of_dd_ranking(tmp_path):
    made = read_tensor_layout(official(tmp_path, "ddranking"), "ddranking", **TASK)
    assert torch.equal(made.images, images())
    assert made.lr == pytest.approx(0.02)


@pytest.mark.parametrize("layout", ["vico", "mtt", "datm", "ddranking"])
@pytest.mark.parametrize("bytes_", [False, True])
def test_what_is_written_is_read(tmp_path, layout, bytes_):
    pixels = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    made = DistilledSet(
        images=pixels if bytes_ else images(),
        labels=LABELS,
        num_classes=10,
        normalization=CIFAR10_NORMALIZATION,
        soft_labels=torch.nn.functional.one_hot(LABELS, 10) * 3.0,
        kind="synthetic",
        lr=0.03,
    )
    path = tmp_path / ("set.pt" if layout == "vico" else "set")
    told = {"datm": "whitened=False", "vico": "left out", "mtt": "left out"}.get(layout)
    with pytest.warns(UserWarning, match=told) if told else nullcontext():
        assert write_tensor_layout(made, path, layout) == path
    back = read_tensor_layout(path, layout, lr=made.lr, whitened=False, **TASK)
    expected = normalize(pixels, CIFAR10_NORMALIZATION) if bytes_ else made.images
    assert torch.equal(back.images, expected)
    assert torch.equal(back.labels, made.labels)
    assert back.lr == pytest.approx(0.03)
    if layout in ("datm", "ddranking"):
        assert back.soft_labels is not None
        assert torch.equal(back.soft_labels, made.soft_labels)
    # And by the codebases' own torch.load, which sees tensors and lists alone.
    if layout == "vico":
        assert torch.equal(torch.load(path)["data"][-1][0], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FileExistsError):
            write_tensor_layout(made, path, layout)


@pytest.mark.parametrize("layout", ["datm", "ddranking"])
def test_soft_labels_keep_their_class(tmp_path, layout):
    labels = torch.arange(10).repeat(2)  # not class after class, as the files have it
    soft = torch.randn(20, 10, generator=torch.Generator().manual_seed(5))
    made = DistilledSet(
        images(), labels, 10, CIFAR10_NORMALIZATION, soft_labels=soft, lr=0.1, whitened=True
    )
    with nullcontext() if layout == "datm" else pytest.warns(UserWarning, match="whitened=True"):
        write_tensor_layout(made, tmp_path / "set", layout)
    back = read_tensor_layout(tmp_path / "set", layout, whitened=True, **TASK)
    for image, label, logits in zip(back.images, back.labels, back.soft_labels, strict=True):
        place = next(k for k, given in enumerate(made.images) if torch.equal(given, image))
        assert label == labels[place]
        assert torch.equal(logits, soft[place])
    uneven = replace(made, labels=torch.cat([labels[:-1], labels[:1]]))
    with pytest.raises(ValueError, match="the set has from 1 to 3"):
        write_tensor_layout(uneven, tmp_path / "other", layout)


def test_whitened_files_of_mtt_say_how_to_read_them(tmp_path):
    made = DistilledSet(images(), LABELS, 10, CIFAR10_NORMALIZATION, lr=0.1, whitened=True)
    with pytest.warns(UserWarning, match="read these with whitened=True"):
        write_tensor_layout(made, tmp_path / "set", "mtt")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_other_integers(tmp_path, dtype):
    torch.save({"data": [[images(), LABELS.to(dtype)]]}, tmp_path / "res.pt")
    assert torch.equal(read_tensor_layout(tmp_path / "res.pt", "vico", **TASK).labels, LABELS)


def test_a_pickle_with_changed_bytes_is_named(tmp_path):
    path = official(tmp_path, "vico")
    with ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    program = next(name for name in parts if name.endswith("data.pkl"))
    whole = parts[program]
    # An IndexError of the pickle's stack, a LookupError of an encoding.
    for content in (
        b"\x80\x02a.",
        b"\x80\x02" + b"t" * 9 + b".",
        whole.replace(b"latin1", b"latinf"),
    ):
        with ZipFile(path, "w") as file:
            for name, part in parts.items():
                file.writestr(name, content if name == program else part)
        with pytest.raises(ValueError, match=r"2ipc\.pt is damaged"):
            read_tensor_layout(path, "vico", **TASK)


def test_the_tree_of_dc_bench(tmp_path):
    folder = tmp_path / "DM" / "CIFAR100" / "IPC1"
    folder.mkdir(parents=True)
    labels = torch.arange(100)
    torch.save(
        {"data": [[images(100), labels]], "accs_all_exps": {}}, folder / "res_DM_CIFAR100_x.pt"
    )
    made = read_dcbench(tmp_path, "dm", "cifar100", 1)
    assert torch.equal(made.images, images(100))
    assert made.normalization == CIFAR100_NORMALIZATION
    folder = tmp_path / "TM" / "tinyimagenet" / "IPC50"
    folder.mkdir(parents=True)
    whole, labels = images(200 * 50, side=2), torch.arange(200).repeat_interleave(50)
    for part in range(5):
        torch.save(whole[part * 2000 :][:2000].clone(), folder / f"images_best_{part}.pt")
        torch.save(labels[part * 2000 :][:2000].float(), folder / f"labels_best_{part}.pt")
    made = read_dcbench(tmp_path, "tm", "tiny-imagenet", 50, lr=0.01)
    assert torch.equal(made.images, whole)
    assert torch.equal(made.labels, labels)
    assert (made.whitened, made.normalization) == (False, IMAGENET_NORMALIZATION)
    with pytest.raises(FileNotFoundError, match="IPC10"):
        read_dcbench(tmp_path, "dm", "cifar100", 10)
    with pytest.raises(ValueError, match="method must be one of"):
        read_dcbench(tmp_path, "frepo", "cifar100", 1)


def test_normalisations_differ_between_codebases():
    assert codebase_normalization("vico", "cifar100") == CIFAR100_NORMALIZATION
    assert codebase_normalization("mtt", "cifar100") == CIFAR10_NORMALIZATION
    assert codebase_normalization("datm", "tiny-imagenet") == IMAGENET_NORMALIZATION
    with pytest.raises(ValueError, match="data must be one of"):
        codebase_normalization("mtt", "imagenet")


def test_tiny_imagenet_in_one_file(tmp_path):
    path = tmp_path / "tinyimagenet.pt"
    pixels = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    content = {
        "classes": ["n1", "n2"], "images_train": pixels[:4], "labels_train": [0, 1, 0, 1],
        "images_val": pixels[4:], "labels_val": torch.tensor([1, 0]),
    }  # fmt: skip
    torch.save(content, path)
    train, test = read_vico_tiny_imagenet(path)
    assert torch.equal(train.images, pixels[:4])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0, 1], [1, 0])
    assert (train.class_names, test.split) == (("n1", "n2"), "test")
    torch.save({"classes": []}, path)
    with pytest.raises(ValueError, match=r"tinyimagenet\.pt is not a dictionary of"):
        read_vico_tiny_imagenet(path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_nothing_is_executed_and_damage_is_named(tmp_path):
    path = official(tmp_path, "vico")
    good = path.read_bytes()
    for content in (good[: len(good) // 2], b"", b"not a file of torch"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"res_DM_CIFAR10_ConvNet_2ipc\.pt is damaged"):
            read_tensor_layout(path, "vico", **TASK)
    torch.save({"data": [[images(), LABELS]], "accs_all_exps": Evil()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        read_tensor_layout(path, "vico", **TASK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "no list 'data'"),
        ([1], "no list 'data'"),
        ({"data": [[images()]]}, "1 experiments of images and labels"),
        ({"data": [["a", "b"]]}, "no tensors in experiment"),
        (
            {"data": [[images(), LABELS + 5]]},
            "does not fit the task: labels must lie",
        ),
        ({"data": [[images(), LABELS + 0.5]]}, "whole numbers"),
        (
            {"data": [[images().to(torch.uint8), LABELS]]},
            r"floating point .*, got 20 of torch\.uint8",
        ),
        ({"data": [[images()[:0], LABELS[:0]]]}, "got 0 of"),
        ({"data": [[images(), torch.full((20, 10), torch.nan)]]}, "soft_labels must be finite"),
        ({"data": [[images()[:, :1], LABELS]]}, "1 channels"),
        ({"data": [[images() * torch.inf, LABELS]]}, "must be finite"),
        ({"data": [[images(), torch.zeros(20, 7)]]}, r"soft_labels must have shape \(20, 10\)"),
        ({"data": [[torch.tensor(1.0), LABELS]]}, r"floating point .*, got 0 of torch\.float32"),
        ({"data": [[images().to_sparse(), LABELS]]}, r"float32 \(torch\.sparse_coo, on cpu"),
        ({"data": [[images(), LABELS.to_sparse()]]}, r"int64 \(torch\.sparse_coo, on cpu"),
        ({"data": [[images(), torch.eye(20, 10).cfloat()]]}, "complex64 .* real numbers"),
        ({"data": [[images().to("meta"), LABELS]]}, r"on meta\); real numbers"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "res.pt")
    with pytest.raises(ValueError, match=message):
        read_tensor_layout(tmp_path / "res.pt", "vico", **TASK)


@pytest.mark.parametrize("labels", [LABELS, torch.eye(20, 10)])
@pytest.mark.parametrize("classes", [0, -1])
def test_a_task_without_classes_is_refused(tmp_path, labels, classes):
    torch.save({"data": [[images(), labels]]}, tmp_path / "res.pt")
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, got {classes}"):
        read_tensor_layout(tmp_path / "res.pt", "vico", **TASK | {"num_classes": classes})


def test_what_a_layout_cannot_hold_is_refused(tmp_path):
    plain = DistilledSet(images(), LABELS, 10, CIFAR10_NORMALIZATION)
    with pytest.raises(ValueError, match="needs soft_labels and lr"):
        write_tensor_layout(plain, tmp_path / "set", "datm")
    whitened = DistilledSet(images(), LABELS, 10, CIFAR10_NORMALIZATION, whitened=True)
    with pytest.raises(ValueError, match="these are ZCA-whitened"):
        write_tensor_layout(whitened, tmp_path / "set.pt", "vico")
    with pytest.raises(ValueError, match="iteration is part of a file's name"):
        write_tensor_layout(plain, tmp_path / "set", "mtt", iteration="../best")
    with pytest.raises(ValueError, match="layout must be one of"):
        write_tensor_layout(plain, tmp_path / "set", "sre2l")
    with pytest.raises(FileNotFoundError, match=r"images_best\.pt is missing"):
        read_tensor_layout(tmp_path, "mtt", **TASK)
