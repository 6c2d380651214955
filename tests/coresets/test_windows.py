"""Windows of a ranking and coverage of its range, on rankings that can be read."""

from __future__ import annotations

import pytest
import torch

from pyddfast.coresets import Scores, ccs, selmatch_window, windows

# Class 0 holds the even positions, class 1 the odd ones; the score is the position.
LABELS = torch.arange(40) % 2
SCORES = Scores(torch.arange(40.0), "toy", "hard", {"seed": 1})


def test_every_size_and_start() -> None:
    found = list(windows(SCORES, LABELS, ipcs=(2, 5), offsets=(0.0, 0.5, 1.0)))
    assert [(w.meta["ipc"], w.meta["offset"]) for w in found] == [
        (2, 0.0), (2, 0.5), (2, 1.0), (5, 0.0), (5, 0.5), (5, 1.0),
    ]  # fmt: skip
    assert found[0].indices.tolist() == [38, 36, 39, 37]
    assert found[1].indices.tolist() == [20, 18, 21, 19]  # starts after 9 of 18
    assert found[2].indices.tolist() == [2, 0, 3, 1]
    assert found[5].indices.tolist() == [8, 6, 4, 2, 0, 9, 7, 5, 3, 1]
    with pytest.raises(ValueError, match="ipcs must hold at least one"):
        list(windows(SCORES, LABELS, ipcs=()))
    with pytest.raises(ValueError, match="offsets must hold at least one"):
        list(windows(SCORES, LABELS, ipcs=(1,), offsets=()))
    with pytest.raises(ValueError, match=r"offsets must lie in \[0, 1\], got 1\.5"):
        list(windows(SCORES, LABELS, ipcs=(1,), offsets=(1.5,)))


def test_selmatch_begins_past_the_hardest() -> None:
    picked = selmatch_window(SCORES, LABELS, ipc=10, alpha=0.3, beta=0.7)
    assert picked.indices.view(2, 10)[0].tolist() == list(range(24, 4, -2))  # after 38 ... 26
    assert picked.meta["real"] == 7
    # A score of which low values are hard, as the C-score.
    easy = Scores(-SCORES.values, "c-score", "easy")
    assert torch.equal(
        selmatch_window(easy, LABELS, ipc=10, beta=0.7, largest=False).indices, picked.indices
    )
    with pytest.raises(ValueError, match="class"):  # 20 of a class, the window ends at 24
        selmatch_window(SCORES, LABELS, ipc=10, beta=1.4)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 1.5"):
        selmatch_window(SCORES, LABELS, ipc=10, alpha=1.5)
    with pytest.raises(ValueError, match="beta must be finite and not negative"):
        selmatch_window(SCORES, LABELS, ipc=10, beta=-0.1)


def test_coverage_leaves_out_the_lowest_margins() -> None:
    # AUM falls with the score: a quarter of each class, the highest scores, goes.
    aum = Scores(-SCORES.values, "aum", "easy")
    picked = ccs(SCORES, LABELS, aum=aum, mis_ratio=0.25, ipc=5, bins=5)
    chosen = picked.indices.view(2, 5)
    assert chosen[0].max() < 30
    assert chosen[1].max() < 31
    # The rest of each class in five bins of three: one of each.
    for label in range(2):
        assert sorted(((chosen[label] - label) // 6).tolist()) == [0, 1, 2, 3, 4]
    assert picked.order == "none"
    # Over all classes at once, the paper's form.
    whole = ccs(SCORES, LABELS, fraction=0.25, bins=5, balanced=False)
    assert sorted((whole.indices // 8).tolist()) == [b for b in range(5) for _ in range(2)]
    with pytest.raises(ValueError, match="mis_ratio leaves out the lowest AUM: give aum"):
        ccs(SCORES, LABELS, ipc=5, mis_ratio=0.2)
    with pytest.raises(ValueError, match="balanced=False takes fraction"):
        ccs(SCORES, LABELS, ipc=5, balanced=False)
    with pytest.raises(ValueError, match="aum is of 39 samples, the scores of 40"):
        ccs(SCORES, LABELS, ipc=5, aum=Scores(aum.values[1:], "aum", "easy"), mis_ratio=0.1)


def test_errors_name_what_the_caller_gave() -> None:
    with pytest.raises(ValueError, match="ipc = 21 is larger than a class: class 0 has 20"):
        ccs(SCORES, LABELS, ipc=21)
    with pytest.raises(ValueError, match="ipc = 2 is larger than a class: class 2 has 0"):
        ccs(SCORES, LABELS, ipc=2, num_classes=3)
    for ipc, fraction in ((None, None), (2, 0.5)):
        with pytest.raises(ValueError, match=f"give either ipc or fraction, got ipc={ipc} and"):
            ccs(SCORES, LABELS, ipc=ipc, fraction=fraction)
    with pytest.raises(ValueError, match="ipc = 21 is larger than a class: class 0 has 20"):
        selmatch_window(SCORES, LABELS, ipc=21)
    for call in (ccs, selmatch_window):
        with pytest.raises(TypeError, match="scores must be Scores, got Tensor"):
            call(SCORES.values, LABELS, ipc=2)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"labels must be int64, got torch\.int32"):
            call(SCORES, LABELS.int(), ipc=2)
