"""What small-scale distillation matches: gradients (DC), mean features (DM), parameters (TM).

Differentiable to any order.  ``gradient_distance`` has kernels for its value and its gradient to
the synthetic side; the other two are compositions of torch operators, next to the networks that
they compare a few small launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import (
    differentiable_grads,
    functorch_active,
    leaves_to_twin,
    needs_graph,
    savable,
)
from pyddfast.ops._native import raw
from pyddfast.ops.reference import match as reference

__all__ = ["GradientMetric", "feature_mean_distance", "gradient_distance", "parameter_distance"]

GradientMetric = Literal["ours", "mse", "cos"]
METRICS: tuple[GradientMetric, ...] = ("ours", "mse", "cos")


def gradient_distance(
    grads_syn: Sequence[Tensor],
    grads_real: Sequence[Tensor],
    metric: GradientMetric = "ours",
) -> Tensor:
    r"""Distance between two gradients of one network, as DC, DSA and their successors match them.

    ``"ours"`` sums over the rows of all tensors with two or more dimensions, a row being the
    weights of one output: :math:`\sum_i 1 - \langle s_i, r_i\rangle / (|s_i| |r_i| + 10^{-6})`.
    Tensors with one dimension (biases, scales and shifts of norms) do not count.  ``"mse"`` is the
    squared distance over all values of all tensors, ``"cos"`` one minus the cosine of all values.

    Args:
        grads_syn: gradients of the synthetic batch, in the order of ``parameters()``.
        grads_real: gradients of the real batch, the same shapes and devices.
        metric: which distance.

    Returns:
        A scalar in the dtype of the gradients (float32 for 16-bit ones), differentiable in both.  A
        row of zeros has distance 1; where it is the synthetic one, its gradient is
        :math:`-10^6 r_i`, as of the official code, and a second one does not exist.

    Raises:
        TypeError: an argument that is no sequence of floating-point tensors.
        ValueError: lengths, shapes or devices differ, nothing is given, or an unknown metric.

    Source: Zhao, Mopuri and Bilen, ICLR 2021 (DC); VICO-UoE/DatasetCondensation,
    ``utils.py:match_loss``.
    """
    _checks.one_of(metric, METRICS, "metric")
    _check_lists(grads_syn, grads_real, "grads_syn", "grads_real")
    matched = [i for i, s in enumerate(grads_syn) if metric != "ours" or s.ndim > 1]
    syn, real = ([grads[i] for i in matched] for grads in (grads_syn, grads_real))
    if not _has_kernel(syn, real):
        return reference.gradient_distance(grads_syn, grads_real, metric)
    if needs_graph(*syn):
        distance: Tensor = _GradientDistance.apply(  # type: ignore[no-untyped-call]
            metric, *map(savable, syn), *map(savable, real)
        )
        return distance
    result: Tensor = raw.gradient_distance(syn, real, METRICS.index(metric))[0]
    return result


def _has_kernel(syn: list[Tensor], real: list[Tensor]) -> bool:
    """Whether the kernels serve these lists.

    They have no gradient to the real side, which no method asks for.  Inductor fuses the
    composition with what is around it.
    """
    if not syn or torch.compiler.is_compiling() or functorch_active():
        return False
    dtype, device = syn[0].dtype, syn[0].device
    if any(x.dtype is not dtype or x.device != device or x.numel() == 0 for x in [*syn, *real]):
        return False
    return not needs_graph(*real) and _native.usable(*syn)


class _GradientDistance(torch.autograd.Function):
    """The distance of two lists, the synthetic one first; double backward by the twin."""

    @staticmethod
    def forward(ctx: Any, metric: GradientMetric, *tensors: Tensor) -> Any:
        half = len(tensors) // 2
        distance, coefficients = raw.gradient_distance(
            list(tensors[:half]), list(tensors[half:]), METRICS.index(metric)
        )
        ctx.save_for_backward(*tensors, coefficients)
        ctx.metric = metric
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        *tensors, coefficients = ctx.saved_tensors
        half = len(tensors) // 2
        syn, real = tensors[:half], tensors[half:]
        if leaves_to_twin(grad):

            def twin(*values: Tensor) -> Tensor:
                return reference.gradient_distance(values[:half], values[half:], ctx.metric)

            wanted = ctx.needs_input_grad[1:]
            return None, *differentiable_grads(twin, tuple(tensors), wanted, grad)
        flat = raw.gradient_distance_grad(
            grad.contiguous(), syn, real, coefficients, METRICS.index(ctx.metric)
        )
        parts = flat.split([s.numel() for s in syn])
        grads = [part.view(s.shape) for part, s in zip(parts, syn, strict=True)]
        return None, *grads, *[None] * half


def feature_mean_distance(features_syn: Tensor, features_real: Tensor) -> Tensor:
    r"""Squared distance of mean features, :math:`\sum_c |\bar f^{syn}_c - \bar f^{real}_c|^2`.

    Args:
        features_syn: (..., N, D) features of N synthetic images; leading dimensions, such as one a
            class, have means of their own and are summed.  (N, D) of all images is eq. 5 of the
            paper, (classes, N, D) the official code's loss of all classes.
        features_real: (..., M, D), the same leading dimensions; M may differ from N.

    Returns:
        A scalar in the dtype of the features (float32 for 16-bit ones), differentiable in both.

    Raises:
        TypeError: a tensor that is not floating point.
        ValueError: shapes or devices do not fit, or there is no image.

    Source: Zhao and Bilen, WACV 2023 (DM); ``main_DM.py`` of VICO-UoE/DatasetCondensation.
    """
    _checks.float_tensor(features_syn, "features_syn")
    _checks.float_tensor(features_real, "features_real")
    for name, features in (("features_syn", features_syn), ("features_real", features_real)):
        if features.ndim < 2 or features.shape[-2] == 0:
            raise ValueError(
                f"{name} has shape {tuple(features.shape)}; (..., images >= 1, D) is needed"
            )
    syn, real = features_syn.shape, features_real.shape
    if (syn[:-2], syn[-1]) != (real[:-2], real[-1]):
        raise ValueError(
            f"features_real has shape {tuple(real)}, features_syn {tuple(syn)}; "
            "they may differ in the last dimension but one only"
        )
    _checks.same_device(features_syn, features_real, "features_real", first="features_syn")
    return reference.feature_mean_distance(features_syn, features_real)


def parameter_distance(
    params: Tensor | Sequence[Tensor],
    target: Tensor | Sequence[Tensor],
    start: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Squared distance of parameters, normalised by that of the expert's own way.

    :math:`|\theta_N - \theta^*|^2 / |\theta_0 - \theta^*|^2`: the loss of trajectory matching (TM,
    DATM), eq. 4 of the paper.

    Args:
        params: parameters of the student after its steps: a flat vector or a list of tensors.
        target: the expert's later snapshot, in the same form.
        start: the expert's snapshot that the student started from; None leaves the distance as it
            is.  Where it equals ``target`` the result is not finite.

    Returns:
        A scalar in the dtype of the parameters (float32 for 16-bit ones), differentiable in all.

    Raises:
        TypeError: an argument that is no tensor and no sequence of floating-point tensors.
        ValueError: lengths, shapes or devices differ, or nothing is given.

    Source: Cazenavette et al., CVPR 2022; ``distill.py`` of GeorgeCazenavette/mtt-distillation.
    """
    given = [_as_list(params), _as_list(target), None if start is None else _as_list(start)]
    _check_lists(given[0], given[1], "params", "target")
    if given[2] is not None:
        _check_lists(given[0], given[2], "params", "start")
    return reference.parameter_distance(given[0], given[1], given[2])  # type: ignore[arg-type]


def _as_list(params: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [params] if isinstance(params, Tensor) else params


def _check_lists(first: object, second: object, first_name: str, second_name: str) -> None:
    """Both are sequences of floating-point tensors of the same shapes and devices."""
    for name, tensors in ((first_name, first), (second_name, second)):
        if not isinstance(tensors, Sequence):
            raise TypeError(f"{name} is a sequence of tensors, not {type(tensors).__name__}")
        for index, tensor in enumerate(tensors):
            _checks.float_tensor(tensor, f"{name}[{index}]")
    assert isinstance(first, Sequence)
    assert isinstance(second, Sequence)
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{first_name} has {len(first)} tensors, {second_name} {len(second)}; "
            "as many, and at least one, are needed"
        )
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.shape != b.shape:
            raise ValueError(
                f"{second_name}[{index}] has shape {tuple(b.shape)}, {first_name}[{index}] "
                f"{tuple(a.shape)}; they must be the same"
            )
        _checks.same_device(a, b, f"{second_name}[{index}]", first=f"{first_name}[{index}]")
