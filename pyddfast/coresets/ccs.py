"""CCS, coverage-centric selection (Zheng et al., ICLR 2023): every difficulty alike."""

from __future__ import annotations

from torch import Tensor

from pyddfast.coresets.selection import Scores, Selection, check_budget, class_sizes
from pyddfast.ops import stratified

__all__ = ["ccs"]


def ccs(
    scores: Scores,
    labels: Tensor,
    *,
    aum: Scores | None = None,
    mis_ratio: float = 0.0,
    ipc: int | None = None,
    fraction: float | None = None,
    balanced: bool = True,
    bins: int = 50,
    seed: int = 0,
    num_classes: int | None = None,
) -> Selection:
    """Drop what looks mislabelled, and draw from equal parts of the range of scores.

    Args:
        scores: A difficulty.
        labels: int64 (N,).
        aum: Area under the margin, for ``mis_ratio``.
        mis_ratio: Share of the samples of lowest AUM that is left out; 0.1 to 0.4 in the paper,
            more where more is pruned.
        ipc: Picks of every class; or give ``fraction``.
        fraction: Share of each class, or of all samples.
        balanced: Give every class its own range, bins and budget.  False is the paper's form, over
            all classes; its code's balanced one gives all classes the count of the last.
        bins: 50 in the paper.
        seed: Of the draws.
        num_classes: Number of classes; default the highest label plus 1.

    Returns:
        Picks bin after bin.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Sizes differ, a number is out of range, a class has not enough samples left, or
            a score is infinite.
    """
    sizes = class_sizes(scores, labels, num_classes)
    if not balanced and fraction is None:
        raise ValueError("balanced=False takes fraction, not ipc: classes share the budget")
    check_budget(ipc, fraction, sizes)
    if aum is not None and len(aum) != len(scores):
        raise ValueError(f"aum is of {len(aum)} samples, the scores of {len(scores)}")
    if mis_ratio and aum is None:
        raise ValueError("mis_ratio leaves out the lowest AUM: give aum")
    indices = stratified(
        scores.values.cpu(),
        labels.cpu() if balanced else None,
        num_classes=len(sizes) if balanced else None,
        k=ipc,
        fraction=fraction,
        bins=bins,
        mis_scores=None if aum is None else aum.values.cpu(),
        mis_ratio=mis_ratio,
        seed=seed,
    )
    meta = {
        "method": "ccs",
        "score": scores.name,
        "high_means": scores.high_means,
        "ipc": ipc,
        "fraction": fraction,
        "balanced": balanced,
        "bins": bins,
        "mis_ratio": mis_ratio,
        "seed": seed,
        "scoring": dict(scores.meta),
    }
    return Selection(indices, "none", None, scores.values.cpu()[indices], meta)
