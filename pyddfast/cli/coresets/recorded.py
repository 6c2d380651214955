"""Sets by the scores of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pyddfast.cli.coresets.options import CoresetOptions, picked
from pyddfast.cli.options import DataOptions, Flat
from pyddfast.cli.score import read_scores
from pyddfast.coresets import Selection, beta_sampling, ccs, select, selmatch_window
from pyddfast.coresets.selection import Strategy
from pyddfast.coresets.windows import check_selmatch
from pyddfast.data.stored import tensors_digest

__all__ = ["coreset_recorded", "coreset_selmatch"]


def coreset_recorded(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    scores: Path,
    score: str,
    strategy: Strategy = "topk",
    offset: float = 0.0,
    bins: int = 50,
    mis_ratio: float = 0.0,
    beta: float | None = None,
    c_d: float = 4.0,
    c_total: int = 15,
) -> None:
    """Pick by a score of a finished "pyddfast score": no training, any number of sets from one run.

    Args:
        to: The set.
        data: The data that the run scored.
        scores: Folder of that run.
        score: One of its scores, e.g. forgetting, aum, dual, cad, el2n.
        strategy: topk: the highest; bottomk: the lowest; window: those after the highest OFFSET;
            stratified: from all BINS of the range.
        offset: Start of the window, as a share of the positions it can start at.
        bins: Of stratified.
        mis_ratio: Of stratified: share of each class of lowest aum that is left out, as CCS does;
            needs aum in the run.
        beta: Draw by DUAL's Beta sampling for so large a share pruned (0.9 keeps a tenth) instead
            of taking the highest; needs one_minus_p in the run.
        c_d: Of --beta: 4 in the paper for CIFAR, 11 for ImageNet-1k.
        c_total: Of --beta: 15 in the paper, 16 in its code.
    """
    if beta is not None and strategy != "topk":
        raise ValueError(f"--beta draws by itself, so --strategy must be topk, got {strategy}")
    if beta is None and (c_d, c_total) != (4.0, 15):
        raise ValueError("--c-d and --c-total are of DUAL's Beta sampling, which --beta asks for")
    if mis_ratio and strategy != "stratified":
        raise ValueError(f"--mis-ratio is an option of --strategy stratified, got {strategy}")
    source = data.resident("train", to.image_size)
    known = read_scores(scores, score, source)
    if beta is not None:
        rest = read_scores(scores, "one_minus_p", source)
        known = beta_sampling(
            known, rest.values, pruned=beta, c_d=c_d, c_total=c_total, seed=to.seed
        )

    aum = read_scores(scores, "aum", source) if mis_ratio else None

    def pick() -> Selection:
        if strategy == "stratified":
            return ccs(
                known,
                source.labels,
                aum=aum,
                mis_ratio=mis_ratio,
                ipc=to.ipc,
                bins=bins,
                seed=to.seed,
                num_classes=source.num_classes,
            )
        return select(
            known,
            source.labels,
            strategy=strategy,
            ipc=to.ipc,
            offset=offset,
            num_classes=source.num_classes,
        )

    facts = {
        "scores": tensors_digest({"scores": known.values}),
        "score": score,
        "strategy": strategy,
        "offset": offset,
        "bins": bins,
        **({"mis_ratio": mis_ratio} if mis_ratio else {}),
        "beta": beta,
    }
    picked("recorded", to, data, source, pick, facts)


def coreset_selmatch(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    scores: Path,
    score: str = "forgetting",
    alpha: float = 0.5,
    beta: float = 0.5,
) -> None:
    """Pick SelMatch's window of each class: what it distills from, past the hardest images.

    Args:
        to: The set.
        data: The data that the run scored.
        scores: Folder of a finished "pyddfast score".
        score: Its difficulty of an image; of scores that are high for easy images (aum,
            correctness) low is hard.
        alpha: Share of the images that are distilled later: the first IPC - int(ALPHA * IPC) of a
            class stay real.
        beta: Start of the window: behind the int(BETA * IPC) hardest of a class.
    """
    check_selmatch(alpha, beta)
    source = data.resident("train", to.image_size)
    known = read_scores(scores, score, source)

    def pick() -> Selection:
        return selmatch_window(
            known,
            source.labels,
            ipc=to.ipc,
            alpha=alpha,
            beta=beta,
            largest=known.high_means != "easy",
            num_classes=source.num_classes,
        )

    digest = tensors_digest({"scores": known.values})
    facts = {"scores": digest, "score": score, "alpha": alpha, "beta": beta}
    picked("selmatch", to, data, source, pick, facts)
