"""Scores and selections as files: what comes back, what other programs read, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyddfast.coresets import Scores, Selection, select

SCORES = Scores(
    torch.tensor([0.25, 3.0, -1.5, 7.0, 0.125, 2.0], dtype=torch.float64),
    "toy",
    "hard",
    {"model": {"name": "ünï"}, "seed": 3, "ticks": None, "mode": "eval"},
)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])


def test_scores_come_back(tmp_path: Path) -> None:
    file = SCORES.save(tmp_path / "new" / "toy.npz")
    read = Scores.load(file)
    assert torch.equal(read.values, SCORES.values)
    assert read.values.dtype == torch.float64
    assert (read.name, read.high_means, read.meta) == ("toy", "hard", SCORES.meta)
    assert np.load(file)["values"].tolist() == SCORES.values.tolist()
    half = Scores(SCORES.values.half(), "toy", "hard")
    assert Scores.load(half.save(file)).values.dtype == torch.float16
    again = SCORES.save(tmp_path / "again.npz").read_bytes()
    assert SCORES.save(file).read_bytes() == again


def test_selections_come_back_in_the_order_of_the_picks(tmp_path: Path) -> None:
    picked = select(SCORES, LABELS, ipc=2)
    read = Selection.load(picked.save(tmp_path / "picked.npz"))
    assert read.indices.tolist() == picked.indices.tolist() == [0, 4, 3, 1]
    assert read.scores is not None
    assert read.scores.tolist() == [0.25, 0.125, 7, 3]
    assert (read.weights, read.order, read.meta) == (None, "ranked", picked.meta)
    weighted = Selection(
        picked.indices, "none", torch.tensor([1.0, 2, 3, 4]), None, {"method": "m"}
    )
    read = Selection.load(weighted.save(tmp_path / "weighted.npz"))
    assert read.weights is not None
    assert read.weights.tolist() == [1, 2, 3, 4]
    assert (read.scores, read.order) == (None, "none")


def test_other_programs_read_the_positions(tmp_path: Path) -> None:
    picked = select(SCORES, LABELS, ipc=2)
    assert picked.export(tmp_path / "picks.txt").read_text() == "0\n4\n3\n1\n"
    assert json.loads(picked.export(tmp_path / "picks.json").read_text()) == [0, 4, 3, 1]
    array = np.load(picked.export(tmp_path / "picks.npy"))
    assert (array.dtype, array.tolist()) == (np.int64, [0, 4, 3, 1])
    nothing = select(SCORES, LABELS, ipc=0)
    assert nothing.export(tmp_path / "none.txt").read_text() == ""
    assert len(Selection.load(nothing.save(tmp_path / "none.npz"))) == 0


def test_refuses(tmp_path: Path) -> None:
    picked = select(SCORES, LABELS, ipc=2)
    with pytest.raises(ValueError, match=r"must end in \.npz, got 'a\.pt'"):
        picked.save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"\.txt or \.json or \.npy, got 'a\.csv'"):
        picked.export(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.npz"):
        Scores.load(tmp_path / "gone.npz")
    file = picked.save(tmp_path / "picked.npz")
    with pytest.raises(ValueError, match=r"picked\.npz holds 'selection', not 'scores'"):
        Scores.load(file)
    content = bytearray(file.read_bytes())
    # A bit of the picks: they are stored as they are, in front of the next array's header.
    content[content.index(b"scores.npy") - 40] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"picked\.npz .*damaged"):
        Selection.load(file)
    file.write_bytes(b"x" * 30)
    with pytest.raises(ValueError, match=r"picked\.npz .*damaged"):
        Selection.load(file)


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "sprung"),))

    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Trap()))
    inside = tmp_path / "inside.npz"
    np.savez(inside, record=np.array([Trap()], dtype=object), allow_pickle=True)
    for file in (bare, inside):
        with pytest.raises(ValueError, match="damaged"):
            Scores.load(file)
    assert not (tmp_path / "sprung").exists()


def test_bfloat16_is_stored_as_float32(tmp_path: Path) -> None:
    low = Scores(SCORES.values.bfloat16(), "toy", "hard")
    read = Scores.load(low.save(tmp_path / "low.npz"))
    assert read.values.dtype == torch.float32
    assert read.values.tolist() == low.values.tolist()
    picked = select(low, LABELS, ipc=1)
    assert picked.scores is not None
    again = Selection.load(picked.save(tmp_path / "picked.npz"))
    assert again.scores is not None
    assert again.scores.tolist() == picked.scores.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([0.5, 1.0])}, r"indices must be int64 \(K,\), got torch.float64"),
        (
            {"indices": np.array([[0, 1]])},
            r"indices must be int64 \(K,\), got torch.int64 \(1, 2\)",
        ),
        ({"indices": np.array([-1, 1])}, "indices must not be negative, got -1"),
        ({"indices": np.array(["a", "b"])}, "no selection file"),
        ({"indices": np.array([0, 1], ">i8")}, "no selection file"),
        ({"weights": np.ones(3, np.float32)}, r"weights must have shape \(2,\), got \(3,\)"),
        ({"weights": np.ones(2, np.complex64)}, r"weights must be floating point, got torch\.comp"),
        ({"weights": np.array([1, np.nan], np.float32)}, "weights must not hold NaN"),
        ({"scores": np.ones(2, np.int64)}, r"scores must be floating point, got torch\.int64"),
        ({"record": {"order": "best", "meta": {}}}, "order must be 'ranked' or 'none', got 'best'"),
        ({"record": {"order": [], "meta": {}}}, "order must be text"),
        ({"record": {"order": "none", "meta": 3}}, "meta must be an object, got 3"),
        ({"record": {"order": "none"}}, "no file of a selection"),
        ({"record": None}, "no file of a selection"),
        ({"record": ...}, "no selection file"),
    ],
)
def test_a_sound_file_with_other_content_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    arrays = {"indices": np.array([0, 1]), "record": {"order": "none", "meta": {}}, **change}
    record = arrays["record"]
    entry = {"kind": "selection", **({} if record is ... else {"record": record})}
    arrays["record"] = np.frombuffer(json.dumps(entry).encode(), np.uint8)
    file = tmp_path / "other.npz"
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=rf"other\.npz is .*{message}"):
        Selection.load(file)


def test_refusals_of_scores_name_file_or_argument(tmp_path: Path) -> None:
    record = {"kind": "scores", "record": {"name": "a", "high_means": "b", "meta": {}}}
    text = np.frombuffer(json.dumps(record).encode(), np.uint8)
    np.savez(tmp_path / "nan.npz", values=np.array([np.nan]), record=text)
    with pytest.raises(ValueError, match=r"nan\.npz .*must not hold NaN"):
        Scores.load(tmp_path / "nan.npz")
    with pytest.raises(TypeError, match=r"scores must be a torch\.Tensor, got list"):
        Scores([1.0, 2.0], "a", "b")  # type: ignore[arg-type]
    for meta in ({"file": tmp_path}, {"accuracy": float("nan")}):
        with pytest.raises(ValueError, match="meta must hold JSON values only"):
            Scores(torch.ones(2), "a", "b", meta).save(tmp_path / "meta.npz")
    assert not (tmp_path / "meta.npz").exists()
