"""Shapes and dtypes of the native operators' outputs, for ``torch.compile`` and fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyddfast.ops._native import load_error
from pyddfast.ops.reference.kd import accumulation_dtype

NONE = 0  # code of reduction="none"
KD_ROW, SOFT_CE_ROW, MSE_CE_ROW = 8, 4, 2  # numbers a row that the forwards keep (csrc/kd/*_math.h)
PLANE_STATS = 3  # numbers a plane that norm_relu_pool keeps (csrc/block/norm_relu_pool_math.h)
SCORES = 13  # numbers that a row of sample_scores has (csrc/scores/scores_math.h)


def _loss(student: Tensor, reduction: int) -> Tensor:
    shape = (student.shape[0],) if reduction == NONE else ()
    return student.new_empty(shape, dtype=accumulation_dtype(student))


def _rows(student: Tensor, *size: int) -> Tensor:
    return student.new_empty((student.shape[0], *size), dtype=accumulation_dtype(student))


def _kd_loss(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _loss(student, rest[-1]), _rows(student, KD_ROW)


def _kd_loss_score(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _loss(student, rest[-1]), _rows(student), _rows(student, KD_ROW)


def _kd_value_and_grad(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, reduction, wide_grad = rest
    dtype = accumulation_dtype(student) if wide_grad else student.dtype
    grad = student.new_empty(student.shape, dtype=dtype)
    return _loss(student, reduction), _rows(student), grad


def _soft_ce(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _loss(student, rest[-1]), _rows(student, SOFT_CE_ROW)


def _mse_ce(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _loss(student, rest[-1]), _rows(student, MSE_CE_ROW)


def _value_and_grad(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    grad = student.new_empty(student.shape, dtype=accumulation_dtype(student))
    return _loss(student, rest[-1]), grad


def _grad_first(grad_loss: Tensor, first: Tensor, *_: Any) -> Tensor:
    return first.new_empty(first.shape)


def _grad_second(grad_loss: Tensor, first: Tensor, second: Tensor, *_: Any) -> Tensor:
    return second.new_empty(second.shape)


def _channel_stats(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty((x.shape[1],), dtype=accumulation_dtype(x)) for _ in range(3))


def _bn_eval_stats(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_channel_stats(x)


def _like_x(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _patch_stats(x: Tensor, cell: int) -> tuple[Tensor, ...]:
    cells = -(-x.shape[2] // cell) * (-(-x.shape[3] // cell))
    sizes = (x.shape[1], x.shape[1], cells, cells, x.shape[1] + cells)
    return tuple(x.new_empty((size,), dtype=accumulation_dtype(x)) for size in sizes)


def _patch_stats_grad(x: Tensor, *_: Any) -> Tensor:
    height, width = x.shape[2:]
    planes = (width == 1 or x.stride(3) == 1) and (height == 1 or x.stride(2) == width)
    return x.new_empty(x.shape) if planes else torch.empty_like(x)


def _bn_distance(mean: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, target_mean, _, sizes, *_ = rest
    layers, targets = len(sizes), target_mean.shape[0]
    return mean.new_empty(()), mean.new_empty((layers,)), mean.new_empty((layers, targets, 2))


def _bn_distance_grad(*arguments: Any) -> tuple[Tensor, ...]:
    _, _, mean, var, target_mean, target_var, *_, wants_targets = arguments
    none = target_mean.new_empty((0, *mean.shape))
    targets = (target_mean, target_var) if wants_targets else (none, none)
    return tuple(tensor.new_empty(tensor.shape) for tensor in (mean, var, *targets))


def _sample_scores(
    logits: Tensor, target: Tensor, teacher: Tensor | None, features: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    columns = SCORES if features is not None else SCORES - 1
    scores = logits.new_empty((columns, logits.shape[0]), dtype=accumulation_dtype(logits))
    return scores, logits.new_empty((logits.shape[0],), dtype=torch.bool)


def _augment(images: Tensor, index: Tensor, *rest: Any) -> Tensor:
    *_, height, width, _, _, dtype, channels_last = rest
    views = images.new_empty((index.shape[0], images.shape[1], height, width), dtype=dtype)
    return views.to(memory_format=torch.channels_last) if channels_last else views


def _multi_crop(
    images: list[Tensor], boxes: Tensor, size: int, pad_to: int, mean: list[float], *rest: Any
) -> Tensor:
    shape = (boxes.shape[1], boxes.shape[0], len(mean), pad_to, pad_to)
    return images[0].new_empty(shape, dtype=rest[-1])


def _mosaic(patches: Tensor, size: int, factor: int, *rest: Any) -> Tensor:
    dtype = torch.uint8 if rest[-1] else patches.dtype
    shape = (patches.shape[0] // factor**2, patches.shape[1], size, size)
    return patches.new_empty(shape, dtype=dtype)


def _crop_flip_roll(x: Tensor, params: Tensor, height: int, width: int, adjoint: bool) -> Tensor:
    return x.new_empty((*x.shape[:2], height, width))


def _norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    height, width = (side // 2 for side in x.shape[2:]) if rest[-1] else x.shape[2:]
    stats = x.new_empty((*x.shape[:2], PLANE_STATS), dtype=accumulation_dtype(x))
    return x.new_empty((*x.shape[:2], height, width)), stats


def _norm_relu_pool_grad(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, weight, bias))


def _norm_relu_pool_double_grad(*arguments: Any) -> tuple[Tensor, ...]:
    _, _, _, *tensors = arguments[:6]
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _views(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _gradient_distance(syn: list[Tensor], real: list[Tensor], metric: int) -> tuple[Tensor, Tensor]:
    rows = sum(s.shape[0] for s in syn) if metric == 0 else 1
    dtype = accumulation_dtype(syn[0])
    return syn[0].new_empty((), dtype=dtype), syn[0].new_empty((rows, 2), dtype=dtype)


def _gradient_distance_grad(grad: Tensor, syn: list[Tensor], *_: Any) -> Tensor:
    return syn[0].new_empty((sum(s.numel() for s in syn),))


def _greedy_rows(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    state, picks = rest[4], rest[5]
    return torch.empty_like(picks), state.new_empty(picks.shape), torch.empty_like(state)


def _facility_location(similarity: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    picks = similarity.new_empty((rest[3],), dtype=torch.int64)
    return picks, similarity.new_empty((rest[3],), dtype=torch.float64)


def _knn_decide(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], rest[4])
    return (
        x.new_empty(shape, dtype=torch.float64),
        x.new_empty(shape, dtype=torch.int64),
        x.new_empty((x.shape[0],), dtype=torch.bool),
    )


_FAKES: dict[str, Callable[..., Any]] = {
    "kd_loss": _kd_loss,
    "kd_loss_score": _kd_loss_score,
    "kd_value_and_grad": _kd_value_and_grad,
    "kd_grad_student": _grad_first,
    "kd_grad_teacher": _grad_second,
    "soft_ce": _soft_ce,
    "soft_ce_value_and_grad": _value_and_grad,
    "soft_ce_grad_student": _grad_first,
    "soft_ce_grad_target": _grad_second,
    "mse_ce": _mse_ce,
    "mse_ce_value_and_grad": _value_and_grad,
    "mse_ce_grad_student": _grad_first,
    "mse_ce_grad_teacher": _grad_second,
    "channel_stats": _channel_stats,
    "channel_stats_grad": _like_x,
    "bn_eval_stats": _bn_eval_stats,
    "bn_eval_stats_grad": _like_x,
    "patch_stats": _patch_stats,
    "patch_stats_grad": _patch_stats_grad,
    "bn_distance": _bn_distance,
    "bn_distance_grad": _bn_distance_grad,
    "sample_scores": _sample_scores,
    "augment": _augment,
    "multi_crop": _multi_crop,
    "mosaic": _mosaic,
    "crop_flip_roll": _crop_flip_roll,
    "norm_relu_pool": _norm_relu_pool,
    "norm_relu_pool_grad": _norm_relu_pool_grad,
    "norm_relu_pool_double_grad": _norm_relu_pool_double_grad,
    "dsa_color": _views,
    "dsa_shift": _views,
    "dsa_warp": _views,
    "dynamics_update_": lambda *_: None,
    "gradient_distance": _gradient_distance,
    "gradient_distance_grad": _gradient_distance_grad,
    "greedy_rows": _greedy_rows,
    "facility_location": _facility_location,
    "knn_divergence": lambda logp, *_: _rows(logp),
    "knn_propose_": lambda *_: None,
    "knn_decide": _knn_decide,
}


def register() -> None:
    """Registers the fake kernels; once, after the library is loaded."""
    if load_error is None:
        for name, fake in _FAKES.items():
            torch.library.register_fake(f"pyddfast::{name}", fake)
