"""KIP's files and whitening against DC-BENCH's recipe written down once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyddfast.cli import main
from pyddfast.data import (
    CIFAR10_NORMALIZATION,
    DistilledSet,
    ImageDataset,
    KIPWhitening,
    ZCAWhitening,
    load,
    read_dcbench,
    read_tensor_layout,
    whiten,
    write_tensor_layout,
)
from tests.tolerances import assert_close

TASK = {"num_classes": 10, "normalization": CIFAR10_NORMALIZATION}
LABELS = torch.arange(10).repeat_interleave(2)


def images(seed=0, count=20):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def pictures(n=40, seed=0):
    field = torch.rand(
        n, 2, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (field[..., :-1, :-1] + field[..., 1:, 1:]) / 2


def test_the_whitening_is_that_of_the_recipe(tmp_path):
    train, test = pictures(), pictures(5, seed=1)

    def unit(x):
        rows = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
        return rows / rows.norm(dim=1, keepdim=True)

    rows = unit(train)
    covariance = rows.T @ rows / len(rows)
    added = 0.1 * covariance.trace() / len(covariance)
    u, s, _ = torch.linalg.svd(covariance + added * torch.eye(60, dtype=torch.float64))
    expected = (unit(test) @ (u * s**-0.5) @ u.T).view_as(test)
    for whitening in (KIPWhitening(), KIPWhitening(cache=tmp_path), KIPWhitening(cache=tmp_path)):
        assert_close(whitening.fit(train)(test), expected, 1e-11)
    # Another transform of the same images has another file.
    plain = ZCAWhitening(cache=tmp_path).fit(train)
    assert len(list(tmp_path.iterdir())) == 2
    assert_close(plain(test), ZCAWhitening().fit(train)(test), 1e-12)
    with pytest.raises(RuntimeError, match="no inverse"):
        whitening.inverse_transform(test)
    flat = torch.full((1, 2, 6, 5), 0.7, dtype=torch.float64)
    assert torch.equal(whitening(flat), torch.zeros_like(flat))


def published(path: Path, seed=0):
    """As the authors' code writes: channels last, targets less their mean."""
    targets = torch.nn.functional.one_hot(LABELS, 10) - 0.1
    np.savez(path, images=images(seed).permute(0, 2, 3, 1).numpy(), labels=targets.numpy())


def test_files_are_read_and_written(tmp_path):
    file = tmp_path / "kip_cifar10_ConvNet3_ssize20_zca_nol_noaug_ckpt1000.npz"
    published(file)
    made = read_tensor_layout(file, "kip", **TASK)
    assert torch.equal(made.images, images())
    assert torch.equal(made.labels, LABELS)
    assert (made.whitened, made.soft_labels, made.meta["method"]) == ("kip", None, "kip")
    back = DistilledSet.load(made.save(tmp_path / "set"))
    assert back.whitened == "kip"
    write_tensor_layout(back, tmp_path / "again.npz", "kip")
    with np.load(tmp_path / "again.npz") as ours, np.load(file) as theirs:
        for name in ("images", "labels"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-7)
    with pytest.raises(FileExistsError):
        write_tensor_layout(back, tmp_path / "again.npz", "kip")
    folder = tmp_path / "KIP" / "CIFAR10" / "IPC2"
    folder.mkdir(parents=True)
    published(folder / file.name, seed=3)
    found = read_dcbench(tmp_path, "kip", "cifar10", 2)
    assert torch.equal(found.images, images(3))
    assert found.whitened == "kip"


def test_the_commands_import_and_export(tmp_path, capsys):
    published(tmp_path / "kip.npz")
    files = [str(tmp_path / name) for name in ("kip.npz", "set", "out.npz")]
    assert main(["set", "import", *files[:2], "--layout", "kip", "--data", "cifar10"]) == 0
    assert "20 images of 4x4, 2 for each class, whitened as KIP does" in capsys.readouterr().out
    assert main(["set", "export", *files[1:], "--layout", "kip"]) == 0
    assert torch.equal(read_tensor_layout(tmp_path / "out.npz", "kip", **TASK).images, images())


def test_other_whitenings_are_refused(tmp_path):
    file = tmp_path / "kip.npz"
    published(file)
    kip = read_tensor_layout(file, "kip", **TASK)
    for made, layout in (
        (kip, "mtt"), (kip, "vico"), (replace(kip, whitened=True), "kip"),
        (replace(kip, whitened=False), "kip"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="these are"):
            write_tensor_layout(made, tmp_path / "out", layout)
    with pytest.raises(ValueError, match="whitened of the layout 'kip'"):
        read_tensor_layout(file, "kip", whitened=True, **TASK)
    with pytest.raises(ValueError, match="whitened must be"):
        replace(kip, whitened="zca")
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_damaged_files_are_named_and_nothing_runs(tmp_path, capsys):
    good = tmp_path / "good.npz"
    published(good)
    bad = tmp_path / "bad.npz"
    contents = {
        "cut": good.read_bytes()[:200],
        "text": b"not an archive",
        "empty": b"",
    }
    arrays = {
        "lacks": {"images": np.zeros((2, 4, 4, 3), np.float32)},
        "shapes": {"images": np.zeros((2, 4, 4), np.float32), "labels": np.zeros((2, 10))},
        "counts": {"images": np.zeros((2, 4, 4, 3), np.float32), "labels": np.zeros((3, 10))},
        "bytes": {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros((2, 10))},
        "width": {"images": np.zeros((2, 4, 4, 3), np.float32), "labels": np.zeros((2, 7))},
        "words": {"images": np.zeros((2, 4, 4, 3), np.float32), "labels": np.full((2, 10), "a")},
        "nan": {"images": np.zeros((2, 4, 4, 3)), "labels": np.full((2, 10), np.nan)},
        "objects": {"images": np.array([Evil()]), "labels": np.zeros((1, 10))},
    }
    for name in (*contents, *arrays):
        if name in contents:
            bad.write_bytes(contents[name])
        else:
            np.savez(bad, **arrays[name])
        with pytest.raises(ValueError, match=r"bad\.npz"):
            read_tensor_layout(bad, "kip", **TASK)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_tensor_layout(tmp_path / "none.npz", "kip", **TASK)
    assert "executed" not in capsys.readouterr().out


def test_students_need_test_images_whitened_likewise(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = load("fashion-mnist-mini").subset(range(300))
    whitened = whiten(small, KIPWhitening().fit(small.images))
    assert (whitened.whitened, whitened.images.dtype) == ("kip", torch.float32)
    picks = torch.stack([(small.labels == c).nonzero()[0, 0] for c in range(10)])
    made = DistilledSet(
        whitened.images[picks], small.labels[picks], 10, small.normalization, whitened="kip"
    )
    made.save(tmp_path / "set")

    # The whole data is 6000 images; the transform of 300 is as good for the command.
    def few(name, split="train", **options):
        whole = load(name, split=split)
        assert isinstance(whole, ImageDataset)
        return whole.subset(range(300 if split == "train" else 50))

    monkeypatch.setattr("pyddfast.cli.options.load", few)
    run = [
        "train",
        "--set",
        str(tmp_path / "set"),
        "--regime",
        "hl",
        "--steps",
        "1",
        "--seeds",
        "1",
    ]
    run += ["--model", "mlp", "--evaluations", "1"]
    for option, said in (([], "not whitened"), (["--zca"], "ZCA-whitened")):
        assert main([*run, *option, "--out", str(tmp_path / "no")]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "whitened as KIP does" in error
        assert said in error
    assert main([*run, "--zca", "--zca-kip", "--out", str(tmp_path / "no")]) == 2
    assert "give one of" in capsys.readouterr().err
    out = tmp_path / "run"
    assert main([*run, "--zca-kip", "--out", str(out)]) == 0
    assert "fc_1.weight" in load_file(out / "students" / "seed0.safetensors")
    assert main(["evaluate", str(out)]) == 2
    assert "give --zca-kip" in capsys.readouterr().err
    assert main(["evaluate", str(out), "--zca-kip"]) == 0
