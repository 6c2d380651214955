"""Windows along a ranking: SelMatch's, and all of a sweep over difficulty and size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

from torch import Tensor

from pyddfast.coresets.selection import Scores, Selection, check_ipc, class_sizes, select
from pyddfast.ops import segmented_window

__all__ = ["OFFSETS", "check_offsets", "check_selmatch", "selmatch_window", "windows"]

# Starts of a sweep's windows as shares of all starts, as in the reproduction of EL2N-Best.
OFFSETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def windows(
    scores: Scores,
    labels: Tensor,
    *,
    ipcs: Sequence[int],
    offsets: Sequence[float] = OFFSETS,
    num_classes: int | None = None,
) -> Iterator[Selection]:
    """Every window of a ranking, for every size: from hard to easy where high scores are hard.

    The subsets among which a Pareto frontier of difficulty and size shows (Sorscher et al., "Beyond
    neural scaling laws", NeurIPS 2022; "Rethinking Dataset Distillation", Fig. 1), and the
    candidates of EL2N-Best.  Which fractions the paper takes it does not say.

    Args:
        scores: One value a sample.
        labels: int64 (N,).
        ipcs: Images a class, one after the other.
        offsets: Starts of the windows, as ``offset`` of :func:`pyddfast.coresets.select`.
        num_classes: Number of classes; default the highest label plus 1.

    Yields:
        For each size the windows in the order of ``offsets``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: There is no size or offset, one is out of range, or a class is too small.
    """
    if not ipcs:
        raise ValueError("ipcs must hold at least one")
    check_offsets(offsets)
    for ipc in ipcs:
        for offset in offsets:
            yield select(
                scores, labels, strategy="window", ipc=ipc, offset=offset, num_classes=num_classes
            )


def check_offsets(offsets: Sequence[float]) -> None:
    """Raise unless they are starts of windows.

    Raises:
        ValueError: There is none, or one lies outside [0, 1].
    """
    if not offsets:
        raise ValueError("offsets must hold at least one")
    for offset in offsets:
        if not 0 <= offset <= 1:
            raise ValueError(f"offsets must lie in [0, 1], got {offset}")


def selmatch_window(
    scores: Scores,
    labels: Tensor,
    *,
    ipc: int,
    alpha: float = 0.5,
    beta: float = 0.5,
    largest: bool = True,
    num_classes: int | None = None,
) -> Selection:
    """SelMatch's first images (Lee and Chung, "SelMatch", ICML 2024): a window past the hardest.

    The window of each class begins after its int(β · ipc) hardest samples.  Its first
    ipc − int(α · ipc) images stay real, the others are what is then distilled.

    Args:
        scores: A difficulty; the official code's is the C-score.
        labels: int64 (N,).
        ipc: Images a class.
        alpha: α in [0, 1], share of the images that are distilled.
        beta: β, not negative: start of the window in units of ``ipc``.
        largest: Whether high scores are hard; of the C-score low ones are.
        num_classes: Number of classes; default the highest label plus 1.

    Returns:
        The window, hardest first; ``meta["real"]`` says how many of each class stay real.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A number is out of range, or a class ends before its window.
    """
    check_selmatch(alpha, beta)
    sizes = class_sizes(scores, labels, num_classes)
    check_ipc(ipc, sizes)
    # As the decimals that were written: 0.7 of 10 is 7, whatever the float's product.
    start, distilled = (int(Fraction(str(float(share))) * ipc) for share in (beta, alpha))
    indices = segmented_window(
        scores.values.cpu(),
        labels.cpu(),
        num_classes=len(sizes),
        k=ipc,
        offset=start,
        unit="count",
        largest=largest,
    )
    meta = {
        "method": "selmatch",
        "score": scores.name,
        "high_means": scores.high_means,
        "ipc": ipc,
        "alpha": alpha,
        "beta": beta,
        "real": ipc - distilled,
        "scoring": dict(scores.meta),
    }
    return Selection(indices, "ranked", None, scores.values.cpu()[indices], meta)


def check_selmatch(alpha: float, beta: float) -> None:
    """Raise unless they are α and β of :func:`selmatch_window`.

    Raises:
        ValueError: One is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and not negative, got {beta}")
