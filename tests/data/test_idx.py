"""IDX files: values against files packed by hand, and every kind of damage."""

import gzip
import struct

import numpy as np
import pytest

from pyddfast.data import read_idx, write_idx

# type code, struct letter, values at the type's ends: every code that the format defines
TYPES = [
    (0x08, "B", [0, 1, 128, 255]),
    (0x09, "b", [-128, -1, 0, 127]),
    (0x0B, "h", [-(2**15), -1, 256, 2**15 - 1]),
    (0x0C, "i", [-(2**31), -1, 65536, 2**31 - 1]),
    (0x0D, "f", [-1.5, 0.0, 2.0**-149, 2.0**127]),
    (0x0E, "d", [-1.5, 0.0, 5e-324, 1.7e308]),
]


def packed(code: int, letter: str, values: list[float], shape: tuple[int, ...]) -> bytes:
    header = struct.pack(f">4B{len(shape)}I", 0, 0, code, len(shape), *shape)
    return header + struct.pack(f">{len(values)}{letter}", *values)


@pytest.mark.parametrize(("code", "letter", "values"), TYPES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_values_of_every_type(tmp_path, code, letter, values, suffix):
    path = tmp_path / f"x-idx{suffix}"
    content = packed(code, letter, values, (2, 2))
    path.write_bytes(gzip.compress(content) if suffix else content)
    array = read_idx(path)
    assert array.tolist() == [values[:2], values[2:]]
    assert array.dtype == np.dtype("=" + letter)
    assert array.dtype.isnative
    array[0, 0] = 0  # writable: torch.from_numpy needs that
    write_idx(tmp_path / "again", read_idx(path))
    assert (tmp_path / "again").read_bytes() == content


def test_an_empty_and_a_scalar_array(tmp_path):
    for array in (np.zeros((0, 28, 28), np.uint8), np.array(7, np.int32)):
        write_idx(tmp_path / "x", array)
        assert read_idx(tmp_path / "x").shape == array.shape
        assert read_idx(tmp_path / "x").tolist() == array.tolist()


def test_a_compressed_file_carries_no_time_and_no_name(tmp_path):
    array = np.arange(100, dtype=np.uint8)
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, array)
    content = (tmp_path / "a.gz").read_bytes()
    assert content == (tmp_path / "b.gz").read_bytes()
    assert content[3] == 0  # no flag: no name, no comment
    assert content[4:8] == bytes(4)  # modification time 0


GOOD = packed(0x08, "B", list(range(6)), (3, 2))
DAMAGE = {
    "empty": (b"", "truncated"),
    "half a magic": (GOOD[:3], "truncated"),
    "header cut": (GOOD[:9], "truncated"),
    "data cut": (GOOD[:-1], "truncated"),
    "data after the end": (GOOD + b"\0", "after its data"),
    "first magic byte": (b"\1" + GOOD[1:], "not an IDX file"),
    "type code that does not exist": (GOOD[:2] + b"\x0a" + GOOD[3:], "not an IDX file"),
    "absurd number of dimensions": (GOOD[:3] + b"\xff" + GOOD[4:], "not an IDX file"),
    "count larger than the data": (GOOD[:7] + b"\x04" + GOOD[8:], "truncated"),
    "sizes whose product overflows 64 bits": (
        struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(6),
        "truncated",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_with_the_files_name(tmp_path, content, message):
    for path, stored in (
        (tmp_path / "bad-idx3-ubyte", content),
        (tmp_path / "bad-idx3-ubyte.gz", gzip.compress(content)),
    ):
        path.write_bytes(stored)
        with pytest.raises(ValueError, match=message) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)


ZIPPED = gzip.compress(GOOD)
BAD_GZIP = {
    "not gzip": GOOD,
    "cut inside the stream": ZIPPED[:15],
    "cut inside the checksum": ZIPPED[:-2],
    "a wrong checksum": ZIPPED[:-5] + bytes([ZIPPED[-5] ^ 1]) + ZIPPED[-4:],
    "a damaged stream": ZIPPED[:10] + b"\xff" * 8 + ZIPPED[18:],
}


@pytest.mark.parametrize("content", BAD_GZIP.values(), ids=BAD_GZIP)
def test_a_damaged_gzip_stream_is_told_with_the_files_name(tmp_path, content):
    path = tmp_path / "labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a complete gzip file") as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere-idx1"):
        read_idx(tmp_path / "nowhere-idx1")


def test_a_type_without_a_code_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="got int64"):
        write_idx(tmp_path / "x", np.zeros(3, np.int64))
    assert list(tmp_path.iterdir()) == []
