"""One interface of every coreset method: scores of samples, and class-balanced picks by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.coresets.files import read_npz, write_indices, write_npz
from pyddfast.data import DistilledSet, ImageSource
from pyddfast.ops._checks import count as check_count
from pyddfast.ops._segments import check_sizes

__all__ = ["Scores", "Selection", "Strategy", "mean_scores", "select", "to_distilled"]

Strategy: TypeAlias = Literal["topk", "bottomk", "window", "stratified"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


@dataclass(frozen=True, eq=False)
class Scores:
    """One value a sample, and what a high one means.

    Args:
        values: Floating point (N,), in the order of the data set.
        name: Name of the score, e.g. ``"el2n"``.
        high_means: What a high value says about a sample, e.g. ``"hard"``.
        meta: How the values came about (seed, models, epochs ...); JSON values only.

    Raises:
        TypeError: ``values`` is not floating point.
        ValueError: ``values`` is not one-dimensional or holds NaN.
    """

    values: Tensor
    name: str
    high_means: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.values, Tensor):
            raise TypeError(f"scores must be a torch.Tensor, got {type(self.values).__name__}")
        if not self.values.dtype.is_floating_point:
            raise TypeError(f"scores must be floating point, got {self.values.dtype}")
        if self.values.ndim != 1:
            raise ValueError(f"scores must have shape (N,), got {tuple(self.values.shape)}")
        if bool(self.values.isnan().any()):
            first = int(self.values.isnan().nonzero()[0])
            raise ValueError(f"scores must not hold NaN; sample {first} has one")

    def __len__(self) -> int:
        return len(self.values)

    def save(self, file: str | Path) -> Path:
        """Write values and record to an ``.npz`` file, whole or not at all.

        Numpy reads it: ``numpy.load(file)["values"]``; bfloat16 is stored as float32.

        Raises:
            ValueError: The name has another ending, or ``meta`` holds other than JSON values.
        """
        record = {"name": self.name, "high_means": self.high_means, "meta": dict(self.meta)}
        return write_npz(file, "scores", {"values": self.values}, record)

    @classmethod
    def load(cls, file: str | Path) -> Scores:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or no file of scores.
        """
        arrays, record = read_npz(file, "scores")
        try:
            _check_record(record, ("name", "high_means"))
            return cls(arrays["values"], record["name"], record["high_means"], record["meta"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no file of scores: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Selection:
    """Picked samples.

    Attributes:
        indices: int64 (K,), positions in the data set, class after class.
        order: What the order within a class means: ``"ranked"``, best pick first (of greedy
            methods the order of their picks), so that its beginning is the pick for a smaller
            budget; or ``"none"``.
        weights: float32 (K,), or None where all samples count alike.
        scores: (K,), the score of each pick, or None.
        meta: Method, score, strategy, budget, seed ...; JSON values only.
    """

    indices: Tensor
    order: Literal["ranked", "none"]
    weights: Tensor | None
    scores: Tensor | None
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.indices)

    def to_distilled(self, dataset: ImageSource) -> DistilledSet:
        """The picked images as a set to train on; see :func:`to_distilled`."""
        return to_distilled(self, dataset)

    def save(self, file: str | Path) -> Path:
        """Write picks, weights, scores and record to an ``.npz`` file, whole or not at all.

        Numpy reads it: ``numpy.load(file)["indices"]``; bfloat16 is stored as float32.

        Raises:
            ValueError: The name has another ending, or ``meta`` holds other than JSON values.
        """
        given = {"indices": self.indices, "weights": self.weights, "scores": self.scores}
        arrays = {name: value for name, value in given.items() if value is not None}
        record = {"order": self.order, "meta": dict(self.meta)}
        return write_npz(file, "selection", arrays, record)

    @classmethod
    def load(cls, file: str | Path) -> Selection:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or no file of a selection.
        """
        arrays, record = read_npz(file, "selection")
        try:
            _check_record(record, ("order",))
            _check_picks(arrays, record["order"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no file of a selection: {error!r}") from error
        given = arrays.get("weights"), arrays.get("scores")
        return cls(arrays["indices"], record["order"], *given, record["meta"])

    def export(self, file: str | Path) -> Path:
        """Write the bare positions for other programs, in the order of the picks.

        Args:
            file: ``.txt``: one a line; ``.json``: a list; ``.npy``: an int64 array of numpy.

        Raises:
            ValueError: The name has another ending.
        """
        return write_indices(file, self.indices)


def _check_record(record: Any, texts: Sequence[str]) -> None:
    """The record of a file, which somebody else may have written."""
    for name in texts:
        if not isinstance(record[name], str):
            raise TypeError(f"{name} must be text, got {record[name]!r}")
    if not isinstance(record["meta"], dict):
        raise TypeError(f"meta must be an object, got {record['meta']!r}")


def _check_picks(arrays: Mapping[str, Tensor], order: str) -> None:
    """The arrays of a file: positions, and one weight and score each."""
    indices = arrays["indices"]
    if indices.dtype != torch.int64 or indices.ndim != 1:
        raise TypeError(f"indices must be int64 (K,), got {indices.dtype} {tuple(indices.shape)}")
    if len(indices) and int(indices.min()) < 0:
        raise ValueError(f"indices must not be negative, got {int(indices.min())}")
    for name in ("weights", "scores"):
        value = arrays.get(name)
        if value is None:
            continue
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
        if value.shape != indices.shape:
            raise ValueError(f"{name} must have shape ({len(indices)},), got {tuple(value.shape)}")
        if name == "weights" and bool(value.isnan().any()):
            raise ValueError("weights must not hold NaN")
    if order not in ("ranked", "none"):
        raise ValueError(f"order must be 'ranked' or 'none', got {order!r}")


def select(
    scores: Scores,
    labels: Tensor,
    *,
    strategy: Strategy = "topk",
    ipc: int | None = None,
    fraction: float | None = None,
    offset: float = 0.0,
    bins: int = 50,
    seed: int = 0,
    num_classes: int | None = None,
    method: str | None = None,
) -> Selection:
    """Pick samples by score, the same number (or share) of every class.

    Ties go to the sample that comes first in the data set, under every strategy.

    Args:
        scores: One value a sample.
        labels: int64 (N,).
        strategy: ``"topk"`` picks the highest scores, ``"bottomk"`` the lowest, ``"window"`` the
            scores that follow the highest ``offset`` ones (the sliding window of SelMatch and of
            EL2N-Best; at 0.5 the middle of the ranking, as Moderate-DS).  ``"stratified"`` cuts
            each class's range of scores into ``bins`` of one width and draws from all of them, the
            emptiest first: what they lack goes to the others (Zheng et al., "Coverage-centric
            Coreset Selection for High Pruning Rates", whose bins span all classes).
        ipc: Images a class; exactly so many, or an error.
        fraction: Share of each class, in [0, 1]; a class of n gives ``round(fraction · n)``, halves
            to even, as DeepCore does.  Give either ``ipc`` or ``fraction``.
        offset: Start of the window in [0, 1], as a share of the positions it can start at: 0 is
            ``"topk"``, 1 ends at the lowest score.  Rounded down to whole samples.
        bins: Of ``"stratified"``; 50 as in its paper.
        seed: Of the draws of ``"stratified"``.
        num_classes: Number of classes; default the highest label plus 1.
        method: Name of the method for the record; default score and strategy, ``"el2n-topk"``.

    Returns:
        A :class:`Selection`, classes ascending; ``"topk"`` and ``"window"`` by falling score,
        ``"bottomk"`` by rising score, ``"stratified"`` bin after bin (``order`` is ``"none"``).

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes do not fit, a budget is missing or out of range, a class has fewer
            than ``ipc`` samples, or scores to be binned are infinite.
    """
    sizes = class_sizes(scores, labels, num_classes)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
    check_budget(ipc, fraction, sizes)
    if not 0 <= offset <= 1:
        raise ValueError(f"offset must lie in [0, 1], got {offset}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if strategy == "stratified" and bool(scores.values.isinf().any()):
        raise ValueError("scores must be finite to be cut into bins")
    if offset != 0 and strategy != "window":
        raise ValueError(f"offset is for the strategy 'window', got strategy={strategy!r}")

    values = scores.values.cpu()
    budget: dict[str, Any] = {"k": ipc, "fraction": fraction, "num_classes": len(sizes)}
    if strategy == "stratified":
        indices = ops.stratified(values, labels.cpu(), **budget, bins=bins, seed=seed)
    elif strategy == "window":
        indices = ops.segmented_window(values, labels.cpu(), **budget, offset=offset)
    else:
        largest = strategy == "topk"
        indices = ops.segmented_topk(values, labels.cpu(), **budget, largest=largest)
    meta = {
        "method": f"{scores.name}-{strategy}" if method is None else method,
        "score": scores.name,
        "high_means": scores.high_means,
        "strategy": strategy,
        "ipc": ipc,
        "fraction": fraction,
        **({"offset": offset} if strategy == "window" else {}),
        **({"bins": bins, "seed": seed} if strategy == "stratified" else {}),
        "scoring": dict(scores.meta),
    }
    return Selection(
        indices=indices,
        order="none" if strategy == "stratified" else "ranked",
        weights=None,
        scores=values[indices],
        meta=meta,
    )


def mean_scores(scores: Sequence[Scores], *, meta: Mapping[str, Any] | None = None) -> Scores:
    """The mean of one score over several networks or trainings.

    Args:
        scores: At least one, all of the same name and size.
        meta: For the record, beside the ``meta`` of each.

    Raises:
        ValueError: There is none, or they differ in name or size.
    """
    if not scores:
        raise ValueError("scores must hold at least one")
    first = scores[0]
    for other in scores[1:]:
        if (other.name, len(other)) != (first.name, len(first)):
            raise ValueError(
                f"scores differ: {first.name} of {len(first)} samples, {other.name} of {len(other)}"
            )
    values = torch.stack([each.values.double().cpu() for each in scores]).mean(0)
    record = {"repeats": len(scores), "each": [dict(each.meta) for each in scores], **(meta or {})}
    return Scores(values, first.name, first.high_means, record)


def class_sizes(scores: Scores, labels: Tensor, num_classes: int | None = None) -> list[int]:
    """How many samples each class has.

    Raises:
        TypeError: ``scores`` are no Scores, or ``labels`` no int64 tensor.
        ValueError: There are not as many of both, or a label is out of range.
    """
    if not isinstance(scores, Scores):
        raise TypeError(
            f"scores must be Scores, got {type(scores).__name__}; "
            'Scores(values, name="...", high_means="...") makes them of a tensor'
        )
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    count = len(scores)
    if labels.shape != (count,):
        raise ValueError(
            f"labels must have shape ({count},), one for each score, got {tuple(labels.shape)}"
        )
    highest = int(labels.max()) if count else -1
    classes = highest + 1 if num_classes is None else check_count(num_classes, "num_classes")
    if count and not 0 <= int(labels.min()) <= highest < classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), got values from {int(labels.min())} to {highest}"
        )
    sizes: list[int] = torch.bincount(labels, minlength=classes).tolist()
    return sizes


def check_budget(ipc: int | None, fraction: float | None, sizes: Sequence[int]) -> None:
    """Raise unless either is given, and classes of so many samples have them."""
    check_ipc(ipc)
    if (ipc is None) == (fraction is None):
        raise ValueError(f"give either ipc or fraction, got ipc={ipc} and fraction={fraction}")
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    check_ipc(ipc, sizes)


def check_ipc(ipc: int | None, sizes: Sequence[int] = ()) -> None:
    """Raise unless it is a number of images, and every class has so many; it names the classes."""
    if ipc is not None:
        check_sizes(sizes, check_count(ipc, "ipc"), f"ipc = {ipc}")


def to_distilled(selection: Selection, dataset: ImageSource) -> DistilledSet:
    """Copy the picked images to a set of kind ``"real"``.

    Args:
        selection: Picks of ``dataset``.
        dataset: The data set that was selected from.

    Returns:
        Images and labels in the order of the picks; ``meta["source_indices"]`` holds the picks.

    Raises:
        ValueError: Picked images differ in size (give the data set an ``image_size``), or an index
            lies outside the data set.
    """
    picks = selection.indices.tolist()
    if picks and not 0 <= min(picks) <= max(picks) < len(dataset):
        raise ValueError(
            f"indices must lie in [0, {len(dataset)}), got values from {min(picks)} to {max(picks)}"
        )
    images = [dataset[index] for index in picks]
    if len({tuple(image.shape) for image in images}) != 1:
        shapes = sorted({tuple(image.shape) for image in images})
        raise ValueError(
            "a set needs at least one image and images of one size, "
            f"got shapes {shapes[:5]}; give the data set an image_size (--image-size)"
        )
    return DistilledSet(
        images=torch.stack(images),
        labels=dataset.labels[selection.indices].cpu(),
        num_classes=dataset.num_classes,
        normalization=dataset.normalization,
        class_names=tuple(dataset.class_names),
        kind="real",
        meta={**selection.meta, "source_indices": picks},
    )
