"""Differentiable Siamese augmentation (DSA; Zhao and Bilen, ICML 2021), any transform, any batch.

The official code (VICO-UoE/DatasetCondensation, ``utils.py:DiffAugment``) draws and applies in one
call and reseeds torch's global generator for the Siamese form.  Here the draw is a value:
:func:`draw_dsa` makes :class:`DSAParams`, :func:`dsa` applies them.  The same parameters applied to
the real and to the synthetic batch are the Siamese form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pyddfast.ops import _native
from pyddfast.ops._autograd import (
    functorch_active,
    needs_graph,
    savable,
    values_readable,
    wants_graph,
)
from pyddfast.ops._native import raw
from pyddfast.ops.reference import dsa as reference
from pyddfast.random import Purpose, randint, uniform

__all__ = [
    "STANDARD_STRATEGY",
    "DSAConfig",
    "DSAParams",
    "draw_dsa",
    "draw_dsa_official",
    "dsa",
]

STANDARD_STRATEGY = "color_crop_cutout_flip_scale_rotate"

# An entry of a strategy and the transforms it applies, in the official order.
_ENTRIES: dict[str, tuple[str, ...]] = {
    "color": ("brightness", "saturation", "contrast"),
    "brightness": ("brightness",),
    "saturation": ("saturation",),
    "contrast": ("contrast",),
    "crop": ("crop",),
    "cutout": ("cutout",),
    "flip": ("flip",),
    "scale": ("scale",),
    "rotate": ("rotate",),
}
# Lanes of a sample's draws: fixed, so that a transform's draw does not depend on the strategy.
_LANE = {
    "brightness": 0,
    "saturation": 1,
    "contrast": 2,
    "crop": 3,
    "cutout": 5,
    "flip": 7,
    "scale": 8,
    "rotate": 10,
}
# The Siamese draws share a purpose with the choice of the transform, which is lane 0.
_BATCH_LANE = 1


@dataclass(frozen=True)
class DSAConfig:
    """Strengths of the transforms; defaults are those of the official ``ParamDiffAug``.

    Attributes:
        flip: probability of mirroring.
        scale: largest enlargement; factors are uniform in [1 / scale, scale].
        rotate: largest angle in degrees.
        crop: largest shift as a share of each side, rounded half up.
        cutout: side of the rectangle as a share of each side, rounded half up.
        brightness: width of the uniform shift around 0.
        saturation: largest gain; gains are uniform in [0, saturation].
        contrast: smallest gain; gains are uniform in [contrast, contrast + 1].
    """

    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    crop: float = 0.125
    cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be finite and not negative, got {value}")
        if self.flip > 1:
            raise ValueError(f"flip must be a probability, got {self.flip}")
        if self.scale < 1:
            raise ValueError(f"scale must be at least 1, got {self.scale}")


@dataclass(frozen=True)
class DSAParams:
    """One call's transforms, in order, and their parameters: a row an image, or one for all.

    Attributes:
        transforms: names in the order of application.
        values: parameter of each transform: ``brightness``, ``saturation``, ``contrast``,
            ``rotate`` floating (R,); ``flip`` bool (R,); ``crop``, ``cutout`` int64 (R, 2), rows
            then columns; ``scale`` floating (R, 2), x then y.  R is the batch or 1.
        cutout_size: height and width of the cut rectangle.
    """

    transforms: tuple[str, ...]
    values: dict[str, Tensor]
    cutout_size: tuple[int, int] = (0, 0)

    def to(self, device: torch.device | str) -> DSAParams:
        """The same parameters on another device."""
        moved = {name: v.to(device, non_blocking=True) for name, v in self.values.items()}
        return DSAParams(self.transforms, moved, self.cutout_size)


def dsa(images: Tensor, params: DSAParams, *, align_corners: bool = False) -> Tensor:
    """Apply DSA transforms, differentiably in ``images``.

    Formulas as in the official code: brightness ``x + b``; saturation and contrast
    ``(x - m) g + m`` with the pixel's channel mean or the image's mean; crop a zero-padded shift;
    cutout a zeroed rectangle; scale and rotate bilinear with zeros outside.

    Args:
        images: (N, C, H, W) floating point, normalised.
        params: of :func:`draw_dsa`, on the device of ``images``.
        align_corners: for scale and rotate.  False is what the official DC/DSA/DM and DC-BENCH
            code does on torch >= 1.3; MTT, DATM, TESLA and DD-Ranking pass True.

    Returns:
        (N, C, H, W), the dtype of ``images``.

    Raises:
        TypeError: ``images`` is not floating point, or a parameter has the wrong dtype.
        ValueError: a shape, device or name does not fit, or a factor or angle is not finite (on
            CUDA looked at with ``PYDDFAST_DEBUG=1`` alone; the image is black otherwise).
    """
    _check(images, params)
    if functorch_active() or not _native.usable(images):
        wide = images.float() if images.dtype.itemsize == 2 else images
        return reference.dsa(wide, params, align_corners=align_corners).to(images.dtype)
    for stage in _stages(params, len(images), align_corners):
        images = _mapped(images, stage, adjoint=False)
    return images


# The operators, each with the transforms that one call of it does, in its order.
_OPERATORS: dict[str, tuple[str, ...]] = {
    "color": ("brightness", "saturation", "contrast"),
    "shift": ("crop", "cutout", "flip"),
    "scale": ("scale",),
    "rotate": ("rotate",),
}
_OPERATOR = {name: operator for operator, names in _OPERATORS.items() for name in names}


@dataclass(frozen=True)
class _Stage:
    """One call: its operator, its transforms' parameters (None: left out) and its constants."""

    operator: str
    values: tuple[Tensor | None, ...]
    constants: tuple[int, ...]


def _stages(params: DSAParams, count: int, align_corners: bool) -> list[_Stage]:
    """The calls that the transforms take: neighbours share one where their order is its own."""
    groups: list[list[str]] = []
    for name in params.transforms:
        order = _OPERATORS[_OPERATOR[name]]
        last = groups[-1][-1] if groups else None
        if last in order and order.index(last) < order.index(name):
            groups[-1].append(name)
        else:
            groups.append([name])
    stages = []
    for group in groups:
        operator = _OPERATOR[group[0]]
        values = [params.values[name] if name in group else None for name in _OPERATORS[operator]]
        given = [value for value in values if value is not None]
        if count > 1 and len({len(value) for value in given}) > 1:
            values = [v if v is None else v.expand(count, *v.shape[1:]) for v in values]
        constants = params.cutout_size if operator == "shift" else (int(align_corners),)
        stages.append(_Stage(operator, tuple(values), constants))
    return stages


def _raw(x: Tensor, stage: _Stage, adjoint: bool) -> Tensor:
    result: Tensor
    if stage.operator == "color":
        brightness, *gains = stage.values
        if gains == [None, None] and (adjoint or brightness is None):
            return x
        # The gains are their own adjoint; the gradient does not see a constant.
        result = raw.dsa_color(x, None if adjoint else brightness, *gains)
    elif stage.operator == "shift":
        result = raw.dsa_shift(x, *stage.values, *stage.constants, adjoint)
    else:
        rotate, align_corners = stage.operator == "rotate", bool(stage.constants[0])
        result = raw.dsa_warp(x, stage.values[0], rotate, align_corners, adjoint)
    return result


def _mapped(x: Tensor, stage: _Stage, *, adjoint: bool) -> Tensor:
    """Images to views, or a gradient to views to one to images."""
    if not needs_graph(x):
        return _raw(x, stage, adjoint)
    values = [savable(value) for value in stage.values]
    result: Tensor = _Map.apply(  # type: ignore[no-untyped-call]
        x, stage.operator, stage.constants, adjoint, *values
    )
    return result


class _Map(torch.autograd.Function):
    """Linear up to a constant, so that the backward of either map is the other one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        operator: str,
        constants: tuple[int, ...],
        adjoint: bool,
        *values: Tensor | None,
    ) -> Any:
        ctx.save_for_backward(*values)
        ctx.call = operator, constants, adjoint
        result = _raw(x, _Stage(operator, values, constants), adjoint)
        return result.view_as(result) if result is x else result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        operator, constants, adjoint = ctx.call
        values = ctx.saved_tensors
        stage = _Stage(operator, values, constants)
        none = (None,) * (3 + len(values))
        if adjoint and operator == "color":
            stage = _Stage(operator, (None, *values[1:]), constants)
        if wants_graph():
            return _mapped(grad, stage, adjoint=not adjoint), *none
        return _raw(grad, stage, not adjoint), *none


def draw_dsa(
    seed: int,
    ids: Tensor | None,
    visits: Tensor | None,
    step: int,
    image_size: tuple[int, int],
    *,
    strategy: str = STANDARD_STRATEGY,
    mode: str = "single",
    config: DSAConfig | None = None,
) -> DSAParams:
    """Draw the transforms of one call (``rng="counter"``: Philox, nothing is reseeded).

    Args:
        seed: the run's seed.
        ids: int64 (B,), sample ids for parameters of each image, keyed by (seed, id, visit); None
            for the Siamese form: one row for all, keyed by (seed, step).
        visits: int64 (B,), how often each sample was drawn before; None exactly with ``ids``.
        step: global step; it keys the choice of ``mode="single"``.
        image_size: height and width.
        strategy: entries joined by ``_``: color (brightness, saturation, contrast), crop, cutout,
            flip, scale, rotate, or one of color's three alone.
        mode: ``"single"``: one entry for the whole batch, uniformly (the official "S", used by
            every published run); ``"all"``: every entry in order (the official "M").
        config: strengths.

    Returns:
        CPU parameters; ``.to(device)`` moves them.

    Raises:
        ValueError: an unknown entry or mode, or only one of ``ids`` and ``visits``.
    """
    config = config or DSAConfig()
    entries = parse_strategy(strategy)
    if mode not in ("single", "all"):
        raise ValueError(f"mode must be 'single' or 'all', got {mode!r}")
    if (ids is None) != (visits is None):
        raise ValueError("ids and visits must be given together")
    if mode == "single":
        choice = int(randint(seed, Purpose.DSA_BATCH, 0, len(entries), step))
        entries = (entries[choice],)
    transforms = tuple(name for entry in entries for name in _ENTRIES[entry])
    if len(set(transforms)) != len(transforms):
        raise ValueError(f"strategy {strategy!r} names a transform twice")
    if ids is None or visits is None:
        purpose, first_lane = Purpose.DSA_BATCH, _BATCH_LANE
        first, second = torch.tensor([step]), torch.zeros(1, dtype=torch.int64)
    else:
        purpose, first_lane = Purpose.DSA, 0
        first, second = ids.cpu(), visits.cpu()

    def unit(name: str, count: int = 1) -> Tensor:
        lanes = first_lane + _LANE[name] + torch.arange(count)
        return uniform(seed, purpose, first[:, None], second[:, None], lanes)

    height, width = image_size
    values: dict[str, Tensor] = {}
    for name in transforms:
        if name == "brightness":
            values[name] = (unit(name)[:, 0] - 0.5) * config.brightness
        elif name == "saturation":
            values[name] = unit(name)[:, 0] * config.saturation
        elif name == "contrast":
            values[name] = unit(name)[:, 0] + config.contrast
        elif name == "crop":
            reach = torch.tensor([half_up(height * config.crop), half_up(width * config.crop)])
            values[name] = (unit(name, 2) * (2 * reach + 1)).floor().long() - reach
        elif name == "cutout":
            size = (half_up(height * config.cutout), half_up(width * config.cutout))
            # An even rectangle has one more place, so that both borders are cut as often.
            places = torch.tensor([height + (1 - size[0] % 2), width + (1 - size[1] % 2)])
            values[name] = (unit(name, 2) * places).floor().long()
        elif name == "flip":
            values[name] = unit(name)[:, 0] < config.flip
        elif name == "scale":
            low = 1.0 / config.scale
            values[name] = unit(name, 2) * (config.scale - low) + low
        else:
            degrees = (unit(name)[:, 0] - 0.5) * 2 * config.rotate
            values[name] = degrees * (math.pi / 180)
    cut = (half_up(height * config.cutout), half_up(width * config.cutout))
    return DSAParams(transforms, values, cut if "cutout" in values else (0, 0))


def draw_dsa_official(
    images: Tensor,
    *,
    seed: int = -1,
    strategy: str = STANDARD_STRATEGY,
    mode: str = "single",
    config: DSAConfig | None = None,
) -> tuple[DSAParams, int]:
    """Draw as the official ``DiffAugment`` does (``rng="official"``), from the same streams.

    For runs that must repeat an official code's.  Torch's **global** generators are consumed with
    the same shapes, dtypes, devices and order; with a seed they are reseeded before every draw, a
    side effect that the official codes have too.

    Args:
        images: (N, C, H, W) floating point; shape, dtype and device decide the draws.
        seed: -1: parameters of each image from the generators as they are; else the Siamese form:
            draw k follows ``torch.manual_seed(seed + k)`` and its element 0 serves the batch.
        strategy: as for :func:`draw_dsa`.
        mode: as for :func:`draw_dsa`.
        config: strengths.

    Returns:
        Parameters on the device of ``images``, and the seed of the next draw (the official
        ``param.latestseed``; -1 stays -1).

    Raises:
        ValueError: as :func:`draw_dsa`, or a seed below -1.
    """
    config = config or DSAConfig()
    entries = parse_strategy(strategy)
    if mode not in ("single", "all"):
        raise ValueError(f"mode must be 'single' or 'all', got {mode!r}")
    if seed < -1:
        raise ValueError(f"seed must be -1 or not negative, got {seed}")
    siamese, latest = seed != -1, seed
    n, (height, width) = len(images), images.shape[-2:]
    device, dtype = images.device, images.dtype

    def reseed() -> None:
        nonlocal latest
        if latest != -1:
            torch.manual_seed(latest)
            latest += 1

    def rand(*, on_device: bool = True, as_images: bool = False) -> Tensor:
        reseed()
        where = device if on_device else torch.device("cpu")
        draws = torch.rand(n, device=where, dtype=dtype if as_images else None)
        return draws[:1] if siamese else draws

    def integers(low: int, high: int) -> Tensor:
        reseed()
        draws = torch.randint(low, high, (n,), device=device)
        return draws[:1] if siamese else draws

    if mode == "single":
        reseed()
        entries = (entries[int(torch.randint(0, len(entries), (1,)))],)
    transforms = tuple(name for entry in entries for name in _ENTRIES[entry])
    if len(set(transforms)) != len(transforms):
        raise ValueError(f"strategy {strategy!r} names a transform twice")
    cut = (half_up(height * config.cutout), half_up(width * config.cutout))
    values: dict[str, Tensor] = {}
    for name in transforms:
        if name == "brightness":
            values[name] = (rand(as_images=True) - 0.5) * config.brightness
        elif name == "saturation":
            values[name] = rand(as_images=True) * config.saturation
        elif name == "contrast":
            values[name] = rand(as_images=True) + config.contrast
        elif name == "crop":
            reach = half_up(height * config.crop), half_up(width * config.crop)
            values[name] = torch.stack([integers(-r, r + 1) for r in reach], dim=1)
        elif name == "cutout":
            places = height + (1 - cut[0] % 2), width + (1 - cut[1] % 2)
            values[name] = torch.stack([integers(0, p) for p in places], dim=1)
        elif name == "flip":
            values[name] = rand() < config.flip
        elif name == "scale":
            low = 1.0 / config.scale
            factors = [rand(on_device=False) * (config.scale - low) + low for _ in range(2)]
            values[name] = torch.stack(factors, dim=1).to(device)
        else:
            angle = (rand(on_device=False) - 0.5) * 2 * config.rotate / 180 * math.pi
            values[name] = angle.to(device)
    return DSAParams(transforms, values, cut if "cutout" in values else (0, 0)), latest


def parse_strategy(strategy: str) -> tuple[str, ...]:
    """Entries of a strategy string.

    Raises:
        ValueError: it is empty or names an unknown entry.
    """
    entries = tuple(strategy.split("_"))
    unknown = [entry for entry in entries if entry not in _ENTRIES]
    if unknown:
        raise ValueError(
            f"strategy {strategy!r} has unknown entries {unknown}; allowed: {sorted(_ENTRIES)}"
        )
    return entries


def half_up(value: float) -> int:
    """Round half up, as the official ``int(x + 0.5)``."""
    return int(value + 0.5)


def _check(images: Tensor, params: DSAParams) -> None:
    if not images.dtype.is_floating_point:
        raise TypeError(f"images must be floating point, got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
    for name in params.transforms:
        if name not in _LANE:
            raise ValueError(f"params.transforms has {name!r}; allowed: {sorted(_LANE)}")
        if name not in params.values:
            raise ValueError(f"params.values lacks {name!r}")
        value = params.values[name]
        tail: Sequence[int] = (2,) if name in ("crop", "cutout", "scale") else ()
        rows = value.shape[0] if value.ndim else 0
        if tuple(value.shape[1:]) != tuple(tail) or rows not in (1, len(images)):
            raise ValueError(
                f"params.values[{name!r}] must have shape {(len(images), *tail)} or "
                f"{(1, *tail)}, got {tuple(value.shape)}"
            )
        if name == "flip":
            fits = value.dtype == torch.bool
        elif name in ("crop", "cutout"):
            fits = value.dtype == torch.int64
        else:
            fits = value.dtype.is_floating_point
        if not fits:
            raise TypeError(f"params.values[{name!r}] has dtype {value.dtype}")
        if value.device != images.device:
            raise ValueError(
                f"params.values[{name!r}] is on {value.device}, images are on {images.device}; "
                "use .to()"
            )
        # The kernels would take NaN for a pixel outside the image: black, not NaN.
        readable = (images.is_cpu or _native.debug()) and values_readable(value)
        if (
            name in ("scale", "rotate")
            and readable
            and not math.isfinite(value.sum().item())  # a third of the time of isfinite
            and not bool(value.isfinite().all())
        ):
            raise ValueError(f"params.values[{name!r}] must be finite, got {value.tolist()}")
