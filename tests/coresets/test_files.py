"""Scores and selections as files: what comes back, what other programs read, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

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
