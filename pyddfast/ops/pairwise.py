"""Last-layer gradients and neighbours: what coreset selection compares samples by.

The gradient of a loss by the last layer is an outer product, of the gradient g by the logits and
the layer's input h: ``G_i = g_i ⊗ [h_i; 1]`` of C (D + 1) numbers.  Nothing here forms one.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor

from pyddfast.ops import _checks, _memory, _native, _neighbours
from pyddfast.ops._native import raw
from pyddfast.ops._segments import check_sizes, offsets
from pyddfast.ops._ties import first_equals
from pyddfast.ops.kd import kd_value_and_grad
from pyddfast.ops.reference import pairwise as reference
from pyddfast.ops.reference.kd import accumulation_dtype

__all__ = [
    "DivergenceKind",
    "GramMetric",
    "KnnMetric",
    "grad_align_score",
    "knn_divergence",
    "knn_topk",
    "last_layer_gram",
    "logit_gradient",
]

GramMetric: TypeAlias = Literal["dot", "cosine", "cosine01", "euclidean"]
KnnMetric: TypeAlias = Literal["euclidean", "cosine"]
DivergenceKind: TypeAlias = Literal["jeffreys", "kl_nb_x", "kl_x_nb"]
# What a row of probabilities may miss of 1: log-probabilities in bfloat16 sum to 1 within a few
# percent.  As in csrc/pairwise/knn_divergence_math.h.
_MASS_ERROR = 0.1


@torch.no_grad()
def logit_gradient(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    target_kind: Literal["probs", "logits"] = "probs",
) -> Tensor:
    """The gradient (p − q) / T of KL(q‖p) by the logits, without cancellation.

    With p = softmax(logits / T).  Of a label y the entry q_y − p_y is the sum of the other
    probabilities: as a difference it is 0 in float32 from a lead of 17 on, though the others are
    not, and the gradient's norm then off by up to √C.  Of a teacher's logits p − q is computed from
    the difference of the logarithms, as :func:`kd_loss` does.

    Args:
        logits: (N, C) floating point.
        target: int64 (N,) labels; or (N, C) floating point, by ``target_kind``: probabilities, or a
            teacher's logits for q = softmax(target / T).
        temperature: T, finite and positive.
        target_kind: What a floating point ``target`` holds.

    Returns:
        (N, C) float32, or float64 for float64 logits; the ``g`` of :func:`last_layer_gram`.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices differ, a value is out of range, or a logit or a value of
            ``target`` is NaN.
    """
    temperature = _checks.temperature(temperature)
    kind = _checks.one_of(target_kind, ("probs", "logits"), "target_kind")
    _checks.logits(logits, "logits")
    _checks.tensor(target, "target")
    if target.dtype.is_floating_point:
        _checks.logits_pair(logits, target, "target", first="logits")
    else:
        _checks.labels(target, logits, check_range=True, first="logits")
    _checks.no_nan(logits)
    if target.dtype.is_floating_point:
        _checks.no_nan(target, "target")
    if target.dtype.is_floating_point and kind:
        wide = logits.to(accumulation_dtype(logits))  # or the gradient is rounded to 16 bits
        return kd_value_and_grad(wide, target, temperature, reduction="sum")[2]
    return reference.logit_gradient(logits, target, temperature)


@overload
def last_layer_gram(
    g: Tensor, h: Tensor, *, metric: GramMetric = ..., bias: bool = ..., segments: None = ...
) -> Tensor: ...
@overload
def last_layer_gram(
    g: Tensor, h: Tensor, *, metric: GramMetric = ..., bias: bool = ..., segments: Tensor
) -> list[Tensor]: ...
@torch.no_grad()
def last_layer_gram(
    g: Tensor,
    h: Tensor,
    *,
    metric: GramMetric = "dot",
    bias: bool = True,
    segments: Tensor | None = None,
) -> Tensor | list[Tensor]:
    """Inner products, similarities or distances of all last-layer gradients of a class.

    ``⟨G_i, G_j⟩ = (g_i · g_j)(1 + h_i · h_j)``: two products of n rows instead of one of
    n × C (D + 1) numbers, which for ImageNet-1k (n = 1300, C = 1000, D = 512) are 2.67 GB.  It
    needs two n × n matrices and a copy of ``g`` or ``h``.

    Args:
        g: (N, C) floating point, gradients by the logits (:func:`logit_gradient`).
        h: (N, D) floating point, inputs of the last layer; (N, 0) for the bias alone.
        metric: ``"dot"``; ``"cosine"``; ``"cosine01"``, 0.5 + 0.5 cos, as DeepCore's
            ``cossim_np``; or ``"euclidean"``, √max(K_ii + K_jj − 2 K_ij, 0), whose square has an
            absolute error of some rounding errors of K_ii: near duplicates may be at distance 0.
            The cosine with a gradient of zero is 0 (DeepCore: NaN), that with itself too.
        bias: Whether the layer has one; it adds the 1.
        segments: int64 (S + 1,), offsets of classes (:func:`class_segments`); None is one class.

    Returns:
        (N, N) float32, or float64 for float64 ``g``; with ``segments`` a list, (n_s, n_s) each.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices do not fit, a value is not finite, or the matrices need more
            memory than there is.
    """
    _checks.one_of(metric, get_args(GramMetric), "metric")
    _gradients(g, h, "g", "h")
    bounds = offsets(segments, len(g), "g")
    dtype = accumulation_dtype(g)
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    most = max(sizes, default=0)
    _memory.check_fits(
        (sum(size * size for size in sizes) + most * most) * dtype.itemsize,
        g.device,
        f"the Gram matrices of {len(sizes)} segments of up to {most} rows",
        "give segments of fewer rows, or fewer of them a call",
    )
    # Autocast would round the operands to 16 bits.
    with torch.autocast(g.device.type, enabled=False):
        grams = []
        for start, stop in itertools.pairwise(bounds):
            own_g, own_h = g[start:stop], h[start:stop]
            gram = reference.last_layer_gram(
                own_g.to(dtype), own_h.to(dtype), metric=metric, bias=bias
            )
            same = first_equals(own_g, own_h)
            grams.append(gram if same is None else gram[same][:, same])
    return grams[0] if segments is None else grams


@torch.no_grad()
def grad_align_score(
    g: Tensor, h: Tensor, g_val: Tensor, h_val: Tensor, *, bias: bool = True
) -> Tensor:
    """Inner product of every last-layer gradient and the mean of others, e.g. a validation set's.

    The gain of Glister's and the first step of GradMatch's greedy algorithm:
    ``⟨G_i, Ḡ⟩ = g_i · (M h_i + mean g)`` with ``M = gᵀh / n`` of the others, in N·C·D
    multiplications and C·D numbers.

    Args:
        g: (N, C) floating point, gradients by the logits (:func:`logit_gradient`).
        h: (N, D) floating point, inputs of the last layer.
        g_val: (V, C) floating point, those whose mean is taken; V at least 1.
        h_val: (V, D) floating point.
        bias: Whether the last layer has one.

    Returns:
        (N,) float32, or float64 for float64 ``g``; high is aligned.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: Shapes or devices do not fit, or a value is not finite.
    """
    _gradients(g, h, "g", "h")
    _gradients(g_val, h_val, "g_val", "h_val")
    for one, other, name, first in ((g, g_val, "g_val", "g"), (h, h_val, "h_val", "h")):
        _checks.same_device(one, other, name, first=first)
        if one.shape[1] != other.shape[1]:
            raise ValueError(f"{name} has {other.shape[1]} columns, {first} {one.shape[1]}")
    if not len(g_val):
        raise ValueError("g_val has no rows, so that there is no mean gradient")
    with torch.autocast(g.device.type, enabled=False):
        score = reference.grad_align_score(
            g, h, g_val, h_val, bias=bias, dtype=accumulation_dtype(g)
        )
    same = first_equals(g, h)
    return score if same is None else score[same]


@torch.no_grad()
def knn_topk(
    x: Tensor,
    k: int,
    *,
    metric: KnnMetric = "euclidean",
    segments: Tensor | None = None,
    tile: int = 1024,
    exclude_self: bool = True,
) -> tuple[Tensor, Tensor]:
    """The k nearest neighbours of every row within its class, exactly.

    Products of tiles propose neighbours, norms of differences in float64 decide: the result is that
    of comparing all pairs in float64, ties to the lowest index, whatever the tile and the device.
    A row is left out of its own neighbours by its index, so that a duplicate of it is one.

    Args:
        x: (N, D) floating point.
        k: Neighbours of each row, 1 to the rows of the smallest class (less 1 without itself).
        metric: ``"euclidean"``, ‖x_i − x_j‖ (not squared); or ``"cosine"``, 1 − cos, where the
            cosine with a row of zeros is 0.
        segments: int64 (S + 1,), offsets of classes (:func:`class_segments`); None is one class.
        tile: Rows at a time; up to 4 · tile² distances are in memory, besides ``x``, on the CPU a
            copy of it, and the result.
        exclude_self: Whether a row is not its own neighbour.

    Returns:
        ``(distances, indices)``: (N, k) float32, or float64 for float64 ``x``, not falling along a
        row; and int64 (N, k), rows of ``x``.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or argument is wrong, a class is too small, a value is not finite, or
            so many neighbours need more memory than there is.
    """
    _matrix(x, "x")
    k = _checks.count(k, "k", 1)
    tile = _checks.count(tile, "tile", 1)
    _checks.one_of(metric, get_args(KnnMetric), "metric")
    bounds = offsets(segments, len(x), "x")
    dtype = accumulation_dtype(x)
    # An empty class has no row that lacks neighbours.
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    others = [size - exclude_self if size else k for size in sizes]
    check_sizes(others, k, f"k = {k} neighbours{' beside the row' if exclude_self else ''}")
    largest = max(sizes, default=0)
    proposed = min(max(others, default=0), k + reference.SPARE)
    _memory.check_fits(
        # Distances and indices: the result's, and of a class the proposals' and the decision's.
        len(x) * k * (dtype.itemsize + 8) + largest * (proposed * (dtype.itemsize + 8) + k * 16),
        x.device,
        f"k = {k} neighbours of {len(x):,} rows",
        "give fewer neighbours",
    )
    exponent = 0
    if dtype == torch.float64 and metric == "euclidean" and x.numel():
        # Of the largest value; beyond these, squares of differences leave float64's range.
        exponent = math.frexp(max(abs(float(value)) for value in x.detach().aminmax()))[1]
        exponent = max(-1000, min(exponent, 1000)) if abs(exponent) > 300 else 0
        x = x * 2.0**-exponent if exponent else x
    distances = torch.empty((len(x), k), dtype=dtype, device=x.device)
    indices = torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    native = x.is_cpu and _native.usable(x) and not raw.emulated
    nearest = _neighbours.knn_topk if native else reference.knn_topk
    with torch.autocast(x.device.type, enabled=False):
        for start, stop in itertools.pairwise(bounds):
            if start < stop:
                distances[start:stop], local = nearest(
                    x[start:stop], k, metric=metric, tile=tile, exclude_self=exclude_self,
                    dtype=dtype,
                )  # fmt: skip
                indices[start:stop] = local + start
    return distances * 2.0**exponent if exponent else distances, indices


@torch.no_grad()
def knn_divergence(logp: Tensor, knn: Tensor, *, kind: DivergenceKind = "jeffreys") -> Tensor:
    """Mean divergence between every row's distribution and those of its neighbours.

    The score of contrastive active learning (Margatina et al., "Active Learning by Acquiring
    Contrastive Examples", EMNLP 2021; DeepCore's ``CAL``), from differences of log-probabilities
    alone.

    Args:
        logp: (N, C) floating point log-probabilities (``log_softmax``); −inf is no probability.
        knn: int64 (N, k), rows of ``logp``, k at least 1 (:func:`knn_topk`).
        kind: With p the row's and q the neighbour's distribution ``"jeffreys"``, half the sum of
            both directions, ½ Σ (p − q)(log p − log q), as DeepCore; ``"kl_nb_x"``, KL(q‖p), as the
            original; or ``"kl_x_nb"``, KL(p‖q).  KL(q‖p) is taken as Σ q log(q/p) − q + p, which is
            no sum of terms of both signs.

    Returns:
        (N,) float32, or float64 for float64 ``logp``; +inf where a class has no probability in one
        distribution that the other needs; a class without any in both adds nothing.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or ``kind`` is wrong, an index is out of range, or a row does not hold
            log-probabilities.
    """
    _checks.logits(logp, "logp")
    if logp.ndim != 2:
        raise ValueError(f"logp must have shape (N, C), got {tuple(logp.shape)}")
    _checks.tensor(knn, "knn")
    if knn.dtype != torch.int64:
        raise TypeError(f"knn must be int64, got {knn.dtype}")
    if knn.ndim != 2 or len(knn) != len(logp) or not knn.shape[1]:
        raise ValueError(f"knn must have shape ({len(logp)}, k), got {tuple(knn.shape)}")
    _checks.same_device(logp, knn, "knn", first="logp")
    code = _checks.one_of(kind, get_args(DivergenceKind), "kind")
    if not knn.numel():
        return torch.zeros(0, dtype=accumulation_dtype(logp), device=logp.device)
    if _native.usable(logp):
        wide = logp.to(accumulation_dtype(logp))
        divergence: Tensor = raw.knn_divergence(wide, knn, code)
        if not math.isnan(float(divergence.sum())):  # what the kernel makes of bad arguments
            return divergence
    _distributions(logp, knn)
    return reference.knn_divergence(logp, knn, kind).to(accumulation_dtype(logp))


def _distributions(logp: Tensor, knn: Tensor) -> None:
    """`logp` holds log-probabilities and `knn` rows of it; reads their values."""
    low, high = (int(v) for v in knn.aminmax())
    if not 0 <= low <= high < len(logp):
        raise ValueError(f"knn must hold rows in [0, {len(logp)}), got values from {low} to {high}")
    total = logp.to(accumulation_dtype(logp)).logsumexp(1).expm1()
    wrong = ~(total.abs() < _MASS_ERROR)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"logp must hold log-probabilities; those of row {row} sum to {1 + float(total[row])}"
        )


def _matrix(x: Tensor, name: str) -> None:
    """`x` is floating point (N, D) without NaN or infinities; reads its values."""
    _checks.float_tensor(x, name)
    if x.ndim != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(x.shape)}")
    row = _checks.unsound_row(x)
    if row is not None:
        raise ValueError(f"{name} must be finite; row {row} is not")


def _gradients(g: Tensor, h: Tensor, first: str, second: str) -> None:
    """`g` and `h` are the two factors of the same gradients."""
    _matrix(g, first)
    _matrix(h, second)
    if len(g) != len(h):
        raise ValueError(f"{second} has {len(h)} rows, {first} {len(g)}; they must be the same")
    _checks.same_device(g, h, second, first=first)
