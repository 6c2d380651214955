"""CIFAR from archives and folders in the official formats, written here, and from bad files."""

import dataclasses
import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pyddfast import data
from pyddfast.data import cifar

COUNTS = {"train": 15, "test": 4}  # 15: three images in each of CIFAR-10's five files
NAMES = {
    "cifar10": [f"kind{i}" for i in range(10)],
    "cifar100": [f"fine_{i}" for i in range(100)],
}


def content(name: str, split: str) -> tuple[np.ndarray, list[int]]:
    """Rows of 3072 bytes and labels, the same in every format."""
    stream = np.random.default_rng([len(name), len(split)])
    pixels = stream.integers(0, 256, (COUNTS[split], 3072), dtype=np.uint8)
    return pixels, stream.integers(0, len(NAMES[name]), COUNTS[split]).tolist()


def python2(value: object) -> bytes:
    """Opcodes of Python 2's cPickle, protocol 2, which the official files are written with."""
    if isinstance(value, bytes):
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:  # LONG1: bytes
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        entries = (python2(key) + python2(entry) for key, entry in value.items())
        return b"}(" + b"".join(entries) + b"u"
    assert isinstance(value, np.ndarray)
    rows, columns = map(python2, value.shape)
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        + (rows + columns + b"\x86")
        + b"cnumpy\ndtype\nU\x02" + value.dtype.str[-2:].encode() + b"K\0K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        + (b"\x88" if fortran else b"\x89")
        + python2(value.tobytes("A")) + b"tb"
    )  # fmt: skip


def dumps(value: object) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def write_python(folder: Path, name: str, write=dumps) -> None:
    """The python version; ``write`` makes a pickle of a dictionary with bytes as keys."""
    folder.mkdir(parents=True)
    labels_key, names_key, names_file, files = (
        (b"labels", b"label_names", "batches.meta",
         {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]})
        if name == "cifar10" else
        (b"fine_labels", b"fine_label_names", "meta", {"train": ["train"], "test": ["test"]})
    )  # fmt: skip
    for split, parts in files.items():
        pixels, labels = content(name, split)
        size = len(labels) // len(parts)
        for i, part in enumerate(parts):
            chunk = slice(i * size, (i + 1) * size)
            batch = {b"batch_label": b"some batch", labels_key: labels[chunk]}
            if name == "cifar100":
                batch[b"coarse_labels"] = [0] * size
            batch |= {b"data": pixels[chunk], b"filenames": [b"a.png"] * size}
            (folder / part).write_bytes(write(batch))
    names = [entry.encode() for entry in NAMES[name]]
    (folder / names_file).write_bytes(write({names_key: names, b"num_vis": 3072}))


def write_binary(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    for split, files in (
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        if name == "cifar10"
        else {"train": ["train.bin"], "test": ["test.bin"]}
    ).items():
        pixels, labels = content(name, split)
        head = [labels] if name == "cifar10" else [[7] * len(labels), labels]  # 7: coarse
        records = np.concatenate([np.array(head, np.uint8).T, pixels], axis=1)
        for file, part in zip(files, np.split(records, len(files)), strict=True):
            (folder / file).write_bytes(part.tobytes())
    names_file = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / names_file).write_text("\n".join(NAMES[name]) + "\n\n")


FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
}
ARCHIVES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
}


def pack(folder: Path, archive: Path, monkeypatch) -> None:
    """Make an archive of the folder and take its MD5 for the official one."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    trust(archive, monkeypatch)


def trust(archive: Path, monkeypatch) -> None:
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    versions = {
        name: tuple(
            dataclasses.replace(version, md5=md5) if version.archive == archive.name else version
            for version in listed
        )
        for name, listed in cifar._VERSIONS.items()
    }
    monkeypatch.setattr(cifar, "_VERSIONS", versions)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(cifar, "_COUNTS", COUNTS)


def check(name: str, root: Path) -> None:
    for split in ("train", "test"):
        loaded = data.load(name, root=root, split=split)
        pixels, labels = content(name, split)
        assert loaded.labels.tolist() == labels
        assert loaded.images.shape == (COUNTS[split], 3, 32, 32)
        image, channel, row, column = COUNTS[split] - 1, 1, 5, 9
        assert loaded.images[image, channel, row, column] == pixels[image, 1024 + 32 * 5 + 9]
        assert np.array_equal(loaded.images.numpy().reshape(-1, 3072), pixels)
        assert list(loaded.class_names) == NAMES[name]
        assert (loaded.name, loaded.split) == (name, split)
        loaded.images.add_(1)  # owns its memory


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [write_python, write_binary])
def test_folders_and_archives(tmp_path, monkeypatch, name, write):
    version = 0 if write is write_python else 1
    folder = tmp_path / "a" / FOLDERS[name][version]
    write(folder, name)
    check(name, folder)
    check(name, folder.parent)
    archive = tmp_path / "b" / ARCHIVES[name][version]
    archive.parent.mkdir()
    pack(folder, archive, monkeypatch)
    check(name, archive)
    check(name, archive.parent)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy.core, as the official files say
def test_the_pickles_written_here_are_what_numpy_reads():
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for array in (rows, np.asfortranarray(rows)):
        loaded = pickle.loads(dumps({b"data": array, b"labels": [300, 1]}), encoding="bytes")
        assert loaded[b"labels"] == [300, 1]
        assert np.array_equal(loaded[b"data"], rows)


def as_python3(protocol: int):
    def write(value: dict) -> bytes:
        # As Python 3 rewrites such a file: keys and names are texts.
        plain = {
            key.decode(): [v.decode() if isinstance(v, bytes) else v for v in entry]
            if isinstance(entry, list)
            else entry
            for key, entry in value.items()
        }
        return pickle.dumps(plain, protocol=protocol)

    return write


@pytest.mark.parametrize(
    "write",
    # Protocol 2 encodes bytes by _codecs.encode, 3 and 4 have opcodes for them.
    [*(as_python3(protocol) for protocol in (2, 3, 4)),
     lambda value: dumps({k: np.asfortranarray(v) if isinstance(v, np.ndarray) else v
                          for k, v in value.items()})],
    ids=["protocol 2", "protocol 3", "protocol 4", "column-major"],
)  # fmt: skip
def test_pickles_of_other_writers(tmp_path, write):
    write_python(tmp_path / "cifar-10-batches-py", "cifar10", write)
    check("cifar10", tmp_path)


def test_the_official_checksums():
    # https://www.cs.toronto.edu/~kriz/cifar.html
    assert [v.md5 for name in ("cifar10", "cifar100") for v in cifar._VERSIONS[name]] == [
        "c58f30108f718f92721af3b95e74349a", "c32a1d4ab5d03f1284b67883e8d87530",
        "eb9058c3a382ffc7106e4002c42a8d85", "03b5dce01913d631647c71ecec9e9cb8",
    ]  # fmt: skip


def test_normalisations_and_sizes(tmp_path):
    write_binary(tmp_path / "cifar-100-binary", "cifar100")
    loaded = data.load("cifar100", root=tmp_path, image_size=16)
    assert loaded.normalization == data.CIFAR100_NORMALIZATION
    assert loaded.images.shape == (15, 3, 16, 16)
    own = data.Normalization((0.5,) * 3, (0.5,) * 3)
    assert data.load("cifar100", root=tmp_path, normalization=own).normalization == own
    assert data.CIFAR10_NORMALIZATION.mean == (0.4914, 0.4822, 0.4465)


def test_the_python_folder_is_taken_before_the_binary_one(tmp_path):
    write_python(tmp_path / "cifar-10-batches-py", "cifar10")
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text("")
    check("cifar10", tmp_path)


# Archives


def test_an_archive_that_is_not_the_official_one(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, "cifar10")
    archive = tmp_path / "x" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    pack(folder, archive, monkeypatch)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-100])
    md5 = hashlib.md5(whole[:-100]).hexdigest()
    with pytest.raises(ValueError, match=f"python.tar.gz is incomplete .* MD5 is {md5}, not"):
        data.load("cifar10", root=archive)
    trust(archive, monkeypatch)  # even then
    with pytest.raises(ValueError, match=r"python.tar.gz is not a complete tar.gz file"):
        data.load("cifar10", root=archive)
    archive.write_bytes(b"no archive")
    trust(archive, monkeypatch)
    with pytest.raises(ValueError, match=r"python.tar.gz is not a complete tar.gz file"):
        data.load("cifar10", root=archive)
    (folder / "data_batch_3").unlink()
    pack(folder, archive, monkeypatch)
    with pytest.raises(FileNotFoundError, match="holds no cifar-10-batches-py/data_batch_3"):
        data.load("cifar10", root=archive)


def test_members_outside_the_folder_are_not_read(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, "cifar10")
    archive = tmp_path / "x" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
        for evil in ("../cifar-10-batches-py/data_batch_1", "/tmp/data_batch_1", "data_batch_1"):
            member = tarfile.TarInfo(evil)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    trust(archive, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    check("cifar10", archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python/, cifar-100-python.tar.gz"):
        data.load("cifar100", root=tmp_path)
    with pytest.raises(ValueError, match="root is needed for 'cifar10': an official archive"):
        data.load("cifar10")


# Pickles


class Planted:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(tmp_path: Path, bad: bytes, message: str, file: str = "data_batch_2") -> None:
    folder = tmp_path / "cifar-10-batches-py"
    if not folder.exists():
        write_python(folder, "cifar10")
    good = (folder / file).read_bytes()
    (folder / file).write_bytes(bad)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("cifar10", root=tmp_path)
    assert str(folder / file) in str(caught.value)
    (folder / file).write_bytes(good)


@pytest.mark.parametrize("file", ["data_batch_2", "batches.meta"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_does_not(tmp_path, file, protocol):
    target = tmp_path / "ran"
    bad = pickle.dumps({"data": Planted(target)}, protocol=protocol)
    refused(tmp_path, bad, r"is not the expected pickle: it refers to posix\.mkdir", file)
    assert not target.exists()
    pickle.loads(bad)
    assert target.exists()  # the test's pickle does run elsewhere


@pytest.mark.parametrize(
    "name",
    [
        "os\nsystem",
        "builtins\neval",
        "numpy\nload",
        "numpy\nndarray.tofile",  # protocol 4 resolves dots: names are compared whole
        "numpy.core.multiarray\nscalar",
        "_codecs\nlookup",
        "copyreg\n_reconstructor",
    ],
)
def test_every_other_name_is_refused(tmp_path, name):
    dotted = name.replace("\n", r"\.")
    refused(tmp_path, b"\x80\x04c" + name.encode() + b"\n.", f"it refers to {dotted}")


def batch(**changes) -> bytes:
    pixels, labels = content("cifar10", "train")
    fields = {"labels": labels[3:6], "data": pixels[3:6]} | changes
    fields = {key: value for key, value in fields.items() if value is not None}
    return dumps({key.encode(): value for key, value in fields.items()})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"", "is not the expected pickle"),
        (batch()[:-200], "is not the expected pickle"),
        (b"\x80\x02]q\x01.", "a list, dict expected"),
        (batch(data=None), r"must hold uint8 'data' of shape \(3, 3072\).* got NoneType"),
        (batch(labels=None), "has no list of integers 'labels'"),
        (batch(labels=[b"1", 2, 3]), "has no list of integers 'labels'"),
        (batch(labels=[1, 2]), r"shape \(2, 3072\).*got \(3, 3072\)"),
        (batch(data=np.zeros((3, 3071), np.uint8)), r"got \(3, 3071\)"),
        (batch(data=np.zeros((3, 3072), np.int16)), "an array of type i2, uint8 expected"),
        (batch(labels=[1, 10, 3]), "has the label 10 at position 1; cifar10 has the labels 0 to 9"),
        (batch(labels=[1, 2, -1]), "has the label -1 at position 2"),
        (batch(labels=[1, 2**70, 3]), f"has the label {2**70} at position 1"),
        # A shape that its bytes do not fill, and an array without content.
        (
            batch().replace(b"J\0\x0c\0\0", b"J\1\x0c\0\0"),
            "is not the expected pickle: cannot resh",
        ),
        (b"\x80\x02}U\x04datacnumpy\nndarray\n)Rs.", "an array without its content"),
    ],
)
def test_batches_that_are_not_of_the_format(tmp_path, bad, message):
    refused(tmp_path, bad, message)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dumps({b"num_vis": 3072}), "has no list 'label_names'"),
        (dumps({b"label_names": [b"cat"] * 9}), "has 9 class names, cifar10 has 10"),
    ],
)
def test_class_names_that_are_not_of_the_format(tmp_path, bad, message):
    refused(tmp_path, bad, message, "batches.meta")


def test_a_file_short_of_images_or_missing(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_python(folder, "cifar10")
    pixels, labels = content("cifar10", "train")
    (folder / "data_batch_5").write_bytes(batch(labels=labels[:2], data=pixels[:2]))
    with pytest.raises(ValueError, match=r"has 14 images in data_batch_1.*15 in its train split"):
        data.load("cifar10", root=folder)
    (folder / "data_batch_5").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_5 is missing"):
        data.load("cifar10", root=folder)


# Binary files


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("test_batch.bin", lambda c: c[:-1], r"test_batch.bin is truncated: 12291 bytes .* 3073"),
        ("test_batch.bin", lambda c: c[:-3073], r"has 3 images in test_batch.bin; cifar10 has 4"),
        ("test_batch.bin", lambda c: b"\x0a" + c[1:], r"test_batch.bin has the label 10 at posit"),
        ("batches.meta.txt", lambda c: b"cat\ndog\n", "batches.meta.txt has 2 class names"),
    ],
)
def test_binary_files_that_are_not_of_the_format(tmp_path, file, change, message):
    folder = tmp_path / "cifar-10-batches-bin"
    write_binary(folder, "cifar10")
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", root=folder, split="test")


def test_labels_are_integers_of_torch(tmp_path):
    write_python(tmp_path / "cifar-10-batches-py", "cifar10")
    loaded = data.load("cifar10", root=tmp_path)
    assert loaded.labels.dtype == torch.int64
    assert loaded.images.dtype == torch.uint8
