"""Expert trajectories: the official layout, and what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from pyddfast.data.trajectories import Trajectories, write_replay_buffer

SHAPES = [(3, 2), (3,), (1,)]


def experts(count, epochs=2, shapes=SHAPES):
    g = torch.Generator().manual_seed(count)
    return [
        [[torch.randn(shape, generator=g) for shape in shapes] for _ in range(epochs + 1)]
        for _ in range(count)
    ]


def test_files_make_one_row_of_experts(tmp_path):
    first, second = experts(2), experts(1)
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", first)
    write_replay_buffer(tmp_path / "replay_buffer_1.pt", second)
    (tmp_path / "config.json").write_text("{}")  # a run's folder holds more
    found = Trajectories(tmp_path)
    assert (len(found), found.epochs, found.numel) == (3, 2, 10)
    assert [tuple(shape) for shape in found.shapes] == SHAPES
    for number, expert in enumerate(first + second):
        for epoch, snapshot in enumerate(expert):
            expected = torch.cat([p.flatten() for p in snapshot])
            assert torch.equal(found.flat(number, epoch), expected)


def test_the_official_reader_reads_it(tmp_path):
    given = experts(2)
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", given)
    # As distill.py of MTT does, without mmap.
    buffer = torch.load(tmp_path / "replay_buffer_0.pt", weights_only=True)
    flat = torch.cat([p.data.reshape(-1) for p in buffer[1][2]], 0)
    assert torch.equal(flat, torch.cat([p.reshape(-1) for p in given[1][2]]))


def test_a_copy_is_given(tmp_path):
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", experts(1))
    found = Trajectories(tmp_path)
    before = found.flat(0, 0)
    found.flat(0, 0).zero_()
    assert torch.equal(found.flat(0, 0), before)


@pytest.mark.parametrize("archive", [True, False])  # False: as torch before 1.6 wrote
def test_parameters_of_any_torch_become_plain_tensors(tmp_path, archive):
    given = [[[nn.Parameter(torch.full((2,), float(epoch)))] for epoch in range(2)]]
    file = tmp_path / "replay_buffer_0.pt"
    torch.save(given, file, _use_new_zipfile_serialization=archive)
    flat = Trajectories(tmp_path).flat(0, 1)
    assert not flat.requires_grad
    assert flat.tolist() == [1.0, 1.0]


def test_a_view_is_not_saved_with_its_base(tmp_path):
    base = torch.randn(100_000)
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", [[[base[:3]], [base[3:6]]]])
    assert (tmp_path / "replay_buffer_0.pt").stat().st_size < 10_000
    assert torch.equal(Trajectories(tmp_path).flat(0, 1), base[3:6])


@pytest.mark.parametrize(
    ("expert", "epoch", "message"),
    [
        (2, 0, r"expert must lie in \[0, 2\), got 2"),
        (-1, 0, "got -1"),
        (0, 3, r"epoch must lie in \[0, 2\], got 3"),
    ],
)
def test_outside(tmp_path, expert, epoch, message):
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", experts(2))
    with pytest.raises(IndexError, match=message):
        Trajectories(tmp_path).flat(expert, epoch)


def test_another_architecture_is_refused(tmp_path):
    write_replay_buffer(tmp_path / "replay_buffer_0.pt", experts(1, shapes=[(3, 2), (3,)]))
    found = Trajectories(tmp_path)
    found.check(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"weight of the network has shape \(4, 2\), theirs \(3,"):
        found.check(nn.Linear(2, 4))
    with pytest.raises(ValueError, match="2 parameters, the network has 1"):
        found.check(nn.Linear(2, 3, bias=False))
    with pytest.raises(ValueError, match="2 parameters, the network has 4"):
        found.check(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no expert trajectories"):
        Trajectories(tmp_path / "nowhere")
    write_replay_buffer(tmp_path / "replay_buffer_1.pt", experts(1))
    with pytest.raises(FileNotFoundError, match=r"replay_buffer_0\.pt is missing"):
        Trajectories(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_executed(tmp_path, capsys):
    file = tmp_path / "replay_buffer_0.pt"
    torch.save([[[Evil()], [Evil()]]], file)
    with pytest.raises(ValueError, match=r"replay_buffer_0\.pt cannot be read as trajectories"):
        Trajectories(tmp_path)
    file.write_bytes(pickle.dumps([[Evil()]]))
    with pytest.raises(ValueError, match="cannot be read"):
        Trajectories(tmp_path)
    assert "executed" not in capsys.readouterr().out


def test_damaged(tmp_path):
    file = tmp_path / "replay_buffer_0.pt"
    write_replay_buffer(file, experts(1))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"replay_buffer_0\.pt cannot be read"):
        Trajectories(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "must hold a list of experts, got dict"),
        ([], "must hold a list of experts"),
        ([[[torch.ones(2)]]], "expert 0, must be a list of at least two snapshots"),
        ([[[torch.ones(2)], [3]]], "expert 0, snapshot 1, is no list of floating-point"),
        ([[[], []]], "snapshot 0, is no list of floating-point"),
        ([[[torch.ones(2, device="meta")]] * 2], "snapshot 0, is no list of floating-point"),
        ([[[torch.eye(2).to_sparse()]] * 2], "snapshot 0, is no list of floating-point"),
        ([[[torch.ones(2)], [torch.ones(3)]]], "snapshot 1, has other parameters"),
        (
            [[[torch.ones(2)]] * 2, [[torch.ones(2)]] * 3],
            "expert 1, has 3 snapshots of 1 tensors with 2 parameters, the first expert 2 of",
        ),
    ],
)
def test_something_else(tmp_path, value, message):
    torch.save(value, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match=message):
        Trajectories(tmp_path)


def test_a_name_that_no_reader_finds(tmp_path):
    with pytest.raises(ValueError, match=r"must be called replay_buffer_<number>\.pt, got a\.pt"):
        write_replay_buffer(tmp_path / "a.pt", experts(1))
