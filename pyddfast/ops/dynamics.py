"""Training dynamics: a batch of logits, written into a state of a few bytes a sample."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pyddfast.ops import _checks, _native
from pyddfast.ops._autograd import functorch_active
from pyddfast.ops._native import raw
from pyddfast.ops.reference import dynamics as reference
from pyddfast.ops.reference.dynamics import DynamicsState
from pyddfast.ops.scores import sample_scores

__all__ = ["DynamicsState", "Signal", "check_dynamics_update", "dynamics_update_"]

Signal: TypeAlias = Literal["1-p", "nlp", "el2n"]

_SUMS = ("aum", "el2n", "el2n_sl", "entropy", "nll", "grand", "sharp")
_DTYPES = {
    "last_correct": torch.uint8,
    "seen": torch.int16,
    "forgetting": torch.int16,
    "correct": torch.int16,
    "first_learned": torch.int16,
    **dict.fromkeys(_SUMS, torch.float32),
}


@torch.no_grad()
def dynamics_update_(
    state: DynamicsState,
    logits: Tensor,
    target: Tensor,
    indices: Tensor,
    tick: Tensor,
    *,
    temperature: float = 1.0,
    teacher: Tensor | None = None,
    features: Tensor | None = None,
    signal: Signal = "1-p",
    soft_temperature: float | None = None,
) -> None:
    """Record one presentation of each sample of a batch, in place; no gradient flows.

    The scores are those of :func:`pyddfast.ops.scores.sample_scores`; N × C logits an epoch become
    a few numbers a sample.  Clearing a slot of the ring before its tick begins is the caller's
    part: :class:`pyddfast.coresets.TrainingDynamics` does it.

    Args:
        state: Of all N samples; its tensors are contiguous and on one device.
        logits: (B, C) floating point; may hold −inf beside finite ones, not NaN or +inf.
        target: int64 (B,) labels.
        indices: int64 (B,), which samples these are; each at most once.
        tick: int64 scalar tensor on the device, not negative.  A tensor, so that a captured graph
            can be replayed in another tick.
        temperature: T of every probability, finite and positive.
        teacher: (B, C) floating point logits as ``logits``, for ``el2n_sl`` and ``sharp``.
        features: (B, D) finite floating point inputs of the last layer, for ``grand``.
        signal: What the ring holds: ``"1-p"`` (1 − p_y), ``"nlp"`` (−log p_y) or ``"el2n"``.  Not
            p_y itself: easy samples have p_y = 1 in half precision.
        soft_temperature: T of ``el2n_sl``, as ``temperature``; 20 in its paper.  ``grand`` then is
            the gradient norm of the label's loss; where it is None and ``el2n_sl`` is recorded, of
            the loss to the teacher.

    Raises:
        TypeError: A dtype is wrong, or a temperature is not a number.
        ValueError: Shapes or devices do not fit; ``soft_temperature`` is given and ``el2n_sl`` is
            not recorded; ``el2n_sl`` or ``sharp`` is recorded without a
            teacher or ``grand`` without features, or one of the two is given and nothing records
            it; an index is out of range or occurs twice, a label is out of range, logits, teacher
            or features hold what they may not, or the tick is negative.  The state is unchanged
            then.  Values are checked on the CPU; elsewhere under ``PYDDFAST_DEBUG=1`` only, since
            it waits for the device: without it a row whose index, label or values may not be leaves
            the kernel's part of the state as it is, and of equal indices any one may win.
    """
    batch = (logits, target, indices, tick)
    _check_arguments(state, *batch, temperature, teacher, features, signal, soft_temperature)
    native = not functorch_active() and _native.usable(state.ring, logits, teacher, features)
    on_cuda = native and _native.recomputes(logits)  # the CPU kernel checks by itself
    twin_on_cpu = not native and state.ring.device.type == "cpu"
    readable = _readable()
    if readable and (twin_on_cpu or (_native.debug() and (on_cuda or not native))):
        _check_values(state, *batch, teacher, features)
    if not native:
        reference.dynamics_update_(
            state, *batch, float(temperature), teacher, features, signal, soft_temperature
        )
        return
    # The kernel has one temperature.
    joint = state if soft_temperature is None else state._replace(el2n_sl=None)
    with_teacher = teacher if joint.el2n_sl is not None else None
    arguments = (*joint[:-1], *batch, with_teacher, features)
    code = get_args(Signal).index(signal)
    if readable:
        if teacher is not None and with_teacher is None and not on_cuda:
            _check_finite("teacher", teacher.amax(-1), indices)  # the kernel does not see it
        try:
            raw.dynamics_update_(*arguments, float(temperature), code)
        except RuntimeError:  # the CPU kernel met a row that may not be: which, and why?
            _check_values(state, *batch, teacher, features)
            raise
    else:
        raw.dynamics_update_(*arguments, float(temperature), code)
    if state.el2n_sl is not None and soft_temperature is not None:
        soft = sample_scores(logits, target, temperature=soft_temperature, teacher=teacher)
        state.el2n_sl[indices] += soft.el2n_sl.to(state.el2n_sl.dtype)
    if state.sharp is not None:
        assert teacher is not None  # checked above
        cosine = reference.teacher_cosine(logits, target, teacher, float(temperature))
        state.sharp[indices] += cosine.to(state.sharp.dtype)


@torch.no_grad()
def check_dynamics_update(
    state: DynamicsState,
    logits: Tensor,
    target: Tensor,
    indices: Tensor,
    tick: Tensor,
    *,
    temperature: float = 1.0,
    teacher: Tensor | None = None,
    features: Tensor | None = None,
    signal: Signal = "1-p",
    soft_temperature: float | None = None,
) -> None:
    """Raise what :func:`dynamics_update_` would raise, and write nothing; arguments as there."""
    batch = (logits, target, indices, tick)
    _check_arguments(state, *batch, temperature, teacher, features, signal, soft_temperature)
    if _readable() and (state.ring.device.type == "cpu" or _native.debug()):
        _check_values(state, *batch, teacher, features)


def _readable() -> bool:
    """Whether tensors have values that may be looked at."""
    return not torch.compiler.is_compiling() and not functorch_active()


def _check_arguments(
    state: DynamicsState,
    logits: Tensor,
    target: Tensor,
    indices: Tensor,
    tick: Tensor,
    temperature: float,
    teacher: Tensor | None,
    features: Tensor | None,
    signal: Signal,
    soft_temperature: float | None,
) -> None:
    """All but the values of tensors."""
    _checks.temperature(temperature)
    _checks.one_of(signal, get_args(Signal), "signal")
    _check_state(state)
    if soft_temperature is not None:
        _checks.temperature(soft_temperature, "soft_temperature")
        if state.el2n_sl is None:
            raise ValueError("soft_temperature is given; the state does not record el2n_sl")
    device = state.ring.device
    _check_rows("logits", logits, device)
    rows, classes = logits.shape
    if classes == 0:
        raise ValueError("logits has shape (B, 0); at least one class is needed")
    for name, value in (("target", target), ("indices", indices), ("tick", tick)):
        _checks.tensor(value, name)
        if value.dtype is not torch.int64:
            raise TypeError(f"{name} has dtype {value.dtype}; it must be int64")
        shape = () if name == "tick" else (rows,)
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed is {shape}")
        _on_device(name, value, device)
    if teacher is not None:
        _check_rows("teacher", teacher, device)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"teacher has shape {tuple(teacher.shape)}, logits {tuple(logits.shape)}; "
                "they must be the same"
            )
    if features is not None:
        _check_rows("features", features, device)
        if features.shape[1] == 0:
            raise ValueError(f"features has shape {tuple(features.shape)}; D >= 1 is needed")
        if len(features) != rows:
            raise ValueError(
                f"features has {len(features)} rows, logits {rows}; they must be the same"
            )
    for name in ("el2n_sl", "sharp"):
        if getattr(state, name) is not None and teacher is None:
            raise ValueError(f"teacher is None; the state records {name}, which needs its logits")
    if teacher is not None and state.sharp is None and state.el2n_sl is None:
        raise ValueError("teacher is given; the state records neither el2n_sl nor sharp")
    if (state.grand is None) != (features is None):
        have, lack = ("features", "grand") if state.grand is None else ("grand", "features")
        raise ValueError(f"{have} without {lack}: a state records grand from features")


def _check_state(state: DynamicsState) -> None:
    """The state's tensors fit each other."""
    if not isinstance(state, DynamicsState):
        raise TypeError(f"state is a DynamicsState, not {type(state).__name__}")
    ring = state.ring
    if ring.dtype not in (torch.float32, torch.float16):
        raise TypeError(f"state.ring has dtype {ring.dtype}; allowed are float32 and float16")
    if ring.dim() != 2 or ring.shape[1] == 0:
        raise ValueError(f"state.ring has shape {tuple(ring.shape)}; allowed is (N, R >= 1)")
    for name, tensor in zip(state._fields, state, strict=True):
        if tensor is None:
            continue
        if name != "ring" and tensor.dtype is not _DTYPES[name]:
            raise TypeError(f"state.{name} has dtype {tensor.dtype}; allowed is {_DTYPES[name]}")
        if name != "ring" and tensor.shape != ring.shape[:1]:
            raise ValueError(
                f"state.{name} has shape {tuple(tensor.shape)}; the ring is of {len(ring)} samples"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"state.{name} is not contiguous; it must be")
        _on_device(f"state.{name}", tensor, ring.device)


def _check_rows(name: str, value: Tensor, device: torch.device) -> None:
    _checks.float_tensor(value, name)
    if value.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; two dimensions are needed")
    _on_device(name, value, device)


def _on_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the state on {device}")


def _check_values(
    state: DynamicsState,
    logits: Tensor,
    target: Tensor,
    indices: Tensor,
    tick: Tensor,
    teacher: Tensor | None,
    features: Tensor | None,
) -> None:
    count = len(state.ring)
    if int(tick) < 0:
        raise ValueError(f"tick is {int(tick)}; it must not be negative")
    if not len(logits):
        return
    for name, value, limit in (("target", target, logits.shape[1]), ("indices", indices, count)):
        low, high = torch.aminmax(value)
        if int(low) < 0 or int(high) >= limit:
            raise ValueError(
                f"{name} has values from {int(low)} to {int(high)}; allowed are 0 to {limit - 1}"
            )
    ordered = indices.sort().values
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(
            f"indices has {int(twice[0])} more than once; a batch presents a sample once"
        )
    # A largest logit that is finite means no NaN, no +inf, and one class that is possible.
    _check_finite("logits", logits.amax(-1), indices)
    if teacher is not None:
        _check_finite("teacher", teacher.amax(-1), indices)
    if features is not None:
        _check_finite("features", features.abs().amax(-1), indices)


def _check_finite(name: str, largest: Tensor, indices: Tensor) -> None:
    """``largest`` is finite in every row of the argument ``name``."""
    bad = ~largest.isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        what = "inf" if name == "features" else "+inf, or -inf throughout,"
        raise ValueError(f"{name} has NaN or {what} in row {row} (sample {int(indices[row])})")
