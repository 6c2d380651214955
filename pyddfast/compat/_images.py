"""What every recover script does to its images and its learning rate.

The formulas are those of ``SRe2L/recover/utils.py`` (VILA-Lab/SRe2L, 8d00cba), which CDA, G-VBSM,
EDC and FADRM share; only the normalisation differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pyddfast import ops
from pyddfast.ops import _checks

Normalization = tuple[Sequence[float], Sequence[float]]
Schedule = Callable[[torch.optim.Optimizer, int, int], None]

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def clip_with(image_tensor: Tensor, normalization: Normalization, use_fp16: bool = False) -> Tensor:
    """Each channel to the range of pixels in [0, 1], in place.

    Args:
        image_tensor: (B, C, ...) floating point, normalised, not a leaf that requires grad.
        normalization: mean and standard deviation of each channel.
        use_fp16: computes the bounds in float16.

    Returns:
        `image_tensor`.

    Raises:
        TypeError: `image_tensor` is not a floating-point tensor.
        ValueError: It has not one channel for each mean.
    """
    for channel, (m, s) in enumerate(_constants(image_tensor, normalization, use_fp16)):
        image_tensor[:, channel].clamp_(float(-m / s), float((1 - m) / s))
    return image_tensor


def denormalize_with(
    image_tensor: Tensor, normalization: Normalization, use_fp16: bool = False
) -> Tensor:
    """Pixels in [0, 1] of normalised images, in place; arguments and errors as `clip_with`."""
    for channel, (m, s) in enumerate(_constants(image_tensor, normalization, use_fp16)):
        image_tensor[:, channel].mul_(float(s)).add_(float(m)).clamp_(0, 1)
    return image_tensor


def _constants(
    images: Tensor, normalization: Normalization, use_fp16: bool
) -> list[tuple[np.floating, np.floating]]:
    _checks.float_tensor(images, "image_tensor")
    mean, std = (np.array(v, np.float16 if use_fp16 else np.float64) for v in normalization)
    if images.ndim < 2 or images.shape[1] != len(mean):
        raise ValueError(
            f"image_tensor has shape {tuple(images.shape)}; (B, {len(mean)}, ...) is needed"
        )
    return list(zip(mean, std, strict=True))


def clip(image_tensor: Tensor, use_fp16: bool = False) -> Tensor:
    """``clip`` of the official ``utils.py``: :func:`clip_with` for ImageNet."""
    return clip_with(image_tensor, IMAGENET, use_fp16)


def denormalize(image_tensor: Tensor, use_fp16: bool = False) -> Tensor:
    """``denormalize`` of the official ``utils.py``: :func:`denormalize_with` for ImageNet."""
    return denormalize_with(image_tensor, IMAGENET, use_fp16)


def get_image_prior_losses(inputs_jit: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of a batch in two norms.

    Args:
        inputs_jit: (B, C, H, W) floating point, H and W at least 2.

    Returns:
        ``(l1, l2)``, scalars: the mean absolute differences to the right, lower, lower left and
        lower right neighbours, summed; and the sum of those differences' Frobenius norms.
    """
    _checks.float_tensor(inputs_jit, "inputs_jit")
    if inputs_jit.ndim != 4 or min(inputs_jit.shape[2:]) < 2:
        raise ValueError(
            f"inputs_jit has shape {tuple(inputs_jit.shape)}; (B, C, H >= 2, W >= 2) is needed"
        )
    x = inputs_jit
    differences = (
        x[..., :-1] - x[..., 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    l1 = torch.stack([d.abs().mean() for d in differences]).sum()
    return l1, ops.image_prior(x, tv=1.0)


def lr_cosine_policy(base_lr: float, warmup_length: int, epochs: int) -> Schedule:
    """Cosine from `base_lr` to 0 after a linear warm-up, set by the second of two counters.

    Returns:
        ``schedule(optimizer, iteration, epoch)``, which sets the learning rate of every group; all
        official scripts pass the iteration twice.
    """

    def schedule(optimizer: torch.optim.Optimizer, iteration: int, epoch: int) -> None:
        if epoch < warmup_length:
            lr = base_lr * (epoch + 1) / warmup_length
        else:
            # NumPy's cosine, whose last bit can differ from that of `math`.
            progress = np.pi * (epoch - warmup_length) / (epochs - warmup_length)
            lr = float(0.5 * (1 + np.cos(progress)) * base_lr)
        for group in optimizer.param_groups:
            group["lr"] = lr

    return schedule
