"""The training-dynamics recorder: every score of a training from one pass over its logits.

A *tick* is what its scores count in: an epoch, or any other stretch of the training in which each
sample is to be seen once.  Within a tick :meth:`TrainingDynamics.update` takes the batches, in any
order; :meth:`TrainingDynamics.end_tick` ends it.  A sample's state is some 60 bytes, whatever the
number of ticks and classes.

Window scores take the standard deviation (ddof = 1) of p_y over J consecutive ticks.  It is taken
by two passes over the last ticks' 1 − p_y, kept in a ring: running sums of squares in float32 lose
three of the seven digits, and p_y itself rounds to 1 for easy samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from pyddfast.coresets.selection import Scores
from pyddfast.data.stored import read_tensors, write_tensors
from pyddfast.ops import _checks
from pyddfast.ops.dynamics import DynamicsState, Signal, check_dynamics_update, dynamics_update_
from pyddfast.ops.reference.dynamics import COUNT_LIMIT

__all__ = ["DYNAMICS_SCORES", "Extra", "Missing", "NeverLearned", "TrainingDynamics"]

Missing: TypeAlias = Literal["skip", "nan", "carry"]
NeverLearned: TypeAlias = Literal["max", "inf", "zero"]
Extra: TypeAlias = Literal["el2n_sl", "entropy", "nll", "grand", "sharp", "one_minus_p"]

# Name of each score: what a high value means.
DYNAMICS_SCORES: dict[str, str] = {
    "forgetting": "hard",
    "correctness": "easy",
    "first_learned": "learned late",
    "el2n": "hard",
    "aum": "easy",
    "dyn_unc": "uncertain",
    "dual": "uncertain and hard",
    "cad": "uncertain",
    "el2n_sl": "far from the teacher",
    "entropy": "uncertain",
    "nll": "hard",
    "grand": "hard",
    "sharp": "label and teacher pull the same way",
    "one_minus_p": "hard",
}
# Those of windows: they need a sample in every tick of a window.
WINDOW_SCORES = ("dyn_unc", "dual", "cad", "one_minus_p")
_MEANS = ("el2n", "aum", "el2n_sl", "entropy", "nll", "grand", "sharp")
# 64 Ki rows of a ring of 30 are 16 MB in float64: what a pass over the ring takes at once.
_CHUNK = 1 << 16
# DUAL of an easy sample goes with (1 - p)^2, below float32's smallest number from 1 - p = 1e-23 on.
# Its sums are kept times this power of two, which changes no digit; 32767 windows still fit.
_DUAL_SCALE = 2.0**110


class TrainingDynamics:
    """Records a training of N samples; see the module's text.

    Under ``torch.compile`` call :meth:`update` outside the compiled region, or accept a graph break
    there.  Under autocast nothing changes: the scores are computed in wide precision.

    Args:
        count: N.
        window: J of Dyn-Unc and DUAL; 10 in both papers.
        ring: Ticks that are kept; default ``window``, or what ``cad_window`` needs if that is more.
            CAD needs its J + W last ticks.
        cad_window: J of CAD; None takes all ticks but W, for which the ring must hold all ticks.
        cad_average: W of CAD, the number of windows it averages.
        record: Further sums to keep, 4 bytes a sample each: ``"el2n_sl"``, ``"entropy"``,
            ``"nll"``, ``"grand"`` (needs features), ``"sharp"`` (like ``"el2n_sl"`` it needs a
            teacher), ``"one_minus_p"`` (mean of 1 − p_y over the windows, for DUAL's sampling).
        signal: What the ring holds: ``"1-p"``, ``"nlp"`` (keeps the digits of samples with small
            p_y, too) or ``"el2n"`` (for CAD of EL2N; then there is no Dyn-Unc and DUAL).
        ring_dtype: float32, or float16 for half the ring.
        temperature: T of all probabilities, finite and positive.
        soft_temperature: T of ``el2n_sl`` alone (20 in its paper), ``grand`` then being of the
            label's loss; None: ``temperature``, and with ``el2n_sl`` ``grand`` is of the loss to
            the teacher.
        missing: What a tick without a sample means for its windows: ``"skip"`` leaves such windows
            out, ``"nan"`` makes the score NaN, ``"carry"`` repeats the sample's previous tick.
        initially_correct: Whether a first wrong presentation is a forgetting event; False as in
            Toneva et al. and DeepCore, True as in CCS.
        device: Of the state; batches are moved there, so best where the logits are.

    Raises:
        TypeError: A temperature is not a number.
        ValueError: A size or temperature is out of range, a name is unknown, or
            ``soft_temperature`` is given and ``el2n_sl`` is not recorded.

    Attributes:
        tick: Number of ended ticks.
    """

    def __init__(
        self,
        count: int,
        *,
        window: int = 10,
        ring: int | None = None,
        cad_window: int | None = None,
        cad_average: int = 2,
        record: Sequence[Extra] = (),
        signal: Signal = "1-p",
        ring_dtype: torch.dtype = torch.float32,
        temperature: float = 1.0,
        soft_temperature: float | None = None,
        missing: Missing = "skip",
        initially_correct: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value, least in (
            ("count", count, 1),
            # One value has no standard deviation.
            ("window", window, 2),
            ("cad_window", 2 if cad_window is None else cad_window, 2),
            ("cad_average", cad_average, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        needed = max(window, 0 if cad_window is None else cad_window + cad_average)
        length = needed if ring is None else ring
        if length < needed:
            raise ValueError(
                f"ring must hold at least {needed} ticks for window = {window}, "
                f"cad_window = {cad_window} and cad_average = {cad_average}, got {ring}"
            )
        for name, given, allowed in (
            ("missing", missing, get_args(Missing)),
            ("signal", signal, get_args(Signal)),
            ("ring_dtype", ring_dtype, (torch.float32, torch.float16)),
            *(("record", extra, get_args(Extra)) for extra in record),
        ):
            if given not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {given!r}")
        if signal == "el2n" and "one_minus_p" in record:
            raise ValueError("one_minus_p needs a ring of probabilities, got signal='el2n'")
        self.count, self.window, self.ring = count, window, length
        self.cad_window, self.cad_average = cad_window, cad_average
        self.record: tuple[Extra, ...] = tuple(e for e in get_args(Extra) if e in record)
        self.signal: Signal = signal
        self.temperature, self.missing = _checks.temperature(temperature), missing
        self.soft_temperature = soft_temperature
        if soft_temperature is not None:
            self.soft_temperature = _checks.temperature(soft_temperature, "soft_temperature")
            if "el2n_sl" not in self.record:
                raise ValueError(
                    f"soft_temperature is that of el2n_sl; record has none, got {tuple(record)}"
                )
        self.initially_correct = initially_correct
        self.device = torch.device(device)
        self.tick = 0
        self._open = False  # whether the slot of the current tick has been cleared
        # For merging: what ``seen`` was when the recorders last agreed (None: nothing), and the
        # tick of the first update since then.
        self._agreed: Tensor | None = None
        self._since: int | None = None

        def zeros(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(count, dtype=dtype, device=self.device)

        self._state = DynamicsState(
            ring=torch.full((count, length), torch.nan, dtype=ring_dtype, device=self.device),
            last_correct=zeros(torch.uint8) + int(initially_correct),
            seen=zeros(torch.int16),
            forgetting=zeros(torch.int16),
            correct=zeros(torch.int16),
            first_learned=zeros(torch.int16) - 1,
            aum=zeros(),
            el2n=zeros(),
            **{name: zeros() for name in self.record if name != "one_minus_p"},
        )
        # Sums over windows; the newest one joins them when the next tick begins, so that leaving
        # it out is exact.
        self._windows: dict[str, Tensor] = {}
        if signal != "el2n":
            self._windows = {
                "count": zeros(torch.int16),
                "dyn_unc": zeros(),
                "dual": zeros(),
                **({"one_minus_p": zeros()} if "one_minus_p" in self.record else {}),
            }
        self._tick = torch.zeros((), dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes of the state; 67 a sample by default."""
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    @property
    def started(self) -> bool:
        """Whether anything was recorded."""
        return self._open or self.tick > 0

    @torch.no_grad()
    def update(
        self,
        logits: Tensor,
        targets: Tensor,
        indices: Tensor,
        *,
        teacher: Tensor | None = None,
        features: Tensor | None = None,
    ) -> None:
        """Record one presentation of each sample of a batch.

        A sample may be presented again in a later batch of the same tick (repeated augmentation):
        counters and sums take both, the ring keeps the later one.

        Args:
            logits: (B, C) floating point, any device; of training or evaluation mode.
            targets: int64 (B,) labels.
            indices: int64 (B,), which samples these are; each once.
            teacher: (B, C) logits, for ``el2n_sl`` and ``sharp``.
            features: (B, D) inputs of the last layer, for ``grand``.

        Raises:
            TypeError: What :func:`pyddfast.ops.dynamics.dynamics_update_` refuses.
            ValueError: As there; nothing is changed then.
        """
        batch = (
            self._here(logits, "logits"),
            self._here(targets, "targets"),
            self._here(indices, "indices"),
            self._tick,
        )
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "teacher": None if teacher is None else self._here(teacher, "teacher"),
            "features": None if features is None else self._here(features, "features"),
            "signal": self.signal,
            "soft_temperature": self.soft_temperature,
        }
        if not self._open:
            # A batch that is refused must not begin a tick: that forgets the ring's oldest one.
            check_dynamics_update(self._state, *batch, **options)
            self._begin()
        dynamics_update_(self._state, *batch, **options)
        if self._since is None:
            self._since = self.tick

    @torch.no_grad()
    def end_tick(self) -> None:
        """End the tick; in a distributed run call :meth:`all_reduce` before."""
        if self.tick + 1 >= COUNT_LIMIT:
            raise ValueError(f"this is tick {self.tick}; counters end at {COUNT_LIMIT}")
        self._begin()
        ring, slot = self._state.ring, self.tick % self.ring
        if self.missing == "carry" and self.tick:
            now, before = ring[:, slot], ring[:, (self.tick - 1) % self.ring]
            now.copy_(torch.where(now.isnan(), before, now))
        self.tick += 1
        self._tick += 1
        self._open = False

    def scores(
        self,
        name: str,
        *,
        drop_last: bool | None = None,
        never_learned: NeverLearned = "max",
    ) -> Scores:
        """A score of every sample, ready for :func:`pyddfast.coresets.select`.

        Args:
            name: One of ``DYNAMICS_SCORES``.
            drop_last: As for :meth:`values`.
            never_learned: As for :meth:`values`.

        Raises:
            ValueError: What :meth:`values` refuses, or a sample has no value.
        """
        values = self.values(name, drop_last=drop_last, never_learned=never_learned)
        lacking = values.isnan().nonzero().squeeze(1)
        if len(lacking):
            if name in WINDOW_SCORES:
                why = "no complete window of ticks"
            elif int(self._state.seen[int(lacking[0])]):
                why = "no number: -inf logits gave infinite margins of both signs"
            else:
                why = "never been presented"
            raise ValueError(
                f"{name}: {len(lacking)} of {self.count} samples have {why}, "
                f"sample {int(lacking[0])} the first; record every sample in every tick, "
                "or see missing='carry' and values()"
            )
        meta: dict[str, Any] = {"ticks": self.tick, **self._settings()}
        if name in ("dyn_unc", "dual", "cad"):
            meta["drop_last"] = _drops_last(name, drop_last)
        if name == "cad":
            meta["cad_window"] = self._cad_window()
        if name in ("forgetting", "first_learned"):
            meta["never_learned"] = never_learned
        if name == "grand":
            soft = "el2n_sl" in self.record and self.soft_temperature is None
            meta |= {"layer": "last", "loss_to": "teacher" if soft else "label"}
        return Scores(values, name, DYNAMICS_SCORES[name], meta)

    @torch.no_grad()
    def values(
        self,
        name: str,
        *,
        drop_last: bool | None = None,
        never_learned: NeverLearned = "max",
    ) -> Tensor:
        """A score of every sample; NaN where a sample has none.

        ``el2n``, ``el2n_sl``, ``aum`` (of logits), ``entropy``, ``nll``, ``grand`` and ``sharp``
        are means over the presentations so far (so the EL2N of an early epoch is what this returns
        then), ``correctness`` the share of correct ones.  With U_k the standard deviation of p_y
        (for ``cad`` of the signal) over the ticks k .. k + J − 1 of K:

        - ``dyn_unc``: mean of U_k (He et al., "Large-scale Dataset Pruning with Dynamic
          Uncertainty"), without the factor 10 of its code;
        - ``dual``: mean of U_k · (1 − mean of p_y over the window) (Cho et al., "Lightweight
          Dataset Pruning without Full Training via Example Difficulty and Prediction Uncertainty");
        - ``cad``: mean of the W windows U_k, k = K − J − W .. K − J − 1 ("Rethinking Dataset
          Distillation", CAD-Prune).

        Args:
            name: One of ``DYNAMICS_SCORES``.
            drop_last: Leave out the window that ends at the last tick.  Default True for ``cad``
                and ``dyn_unc``, whose formulas end at k = K − J − 1, False for ``dual``.
            never_learned: ``forgetting`` of a sample that was never correct: ``"max"`` adds its
                number of presentations (Toneva et al.), ``"inf"`` is infinite (data diet),
                ``"zero"`` leaves it, so that it looks unforgettable (DeepCore).
                ``first_learned`` then is the number of presentations under ``"max"``.

        Returns:
            float64 (N,), on the CPU.

        Raises:
            ValueError: The name is unknown or not recorded, ticks or the ring are too few, a tick
                has not ended (window scores), or a counter has reached its limit.
        """
        self.check(name, self.tick, drop_last=drop_last, never_learned=never_learned)
        if name in WINDOW_SCORES:
            if self._open:
                raise ValueError(
                    f"{name} counts whole ticks; end tick {self.tick} by end_tick() first"
                )
            last = _drops_last(name, drop_last)
            return self._cad(last) if name == "cad" else self._window_mean(name, last)
        seen = self._state.seen.double().cpu()
        if float(seen.max()) >= COUNT_LIMIT:
            raise ValueError(f"a sample was presented {COUNT_LIMIT} times or more; counters end")
        unseen = seen == 0
        if name in _MEANS:
            total: Tensor = getattr(self._state, name)
            return total.double().cpu() / torch.where(unseen, torch.nan, seen)
        if name == "correctness":
            return self._state.correct.double().cpu() / torch.where(unseen, torch.nan, seen)
        never = (self._state.correct == 0).cpu()
        if name == "forgetting":
            values = self._state.forgetting.double().cpu()
            at_never = {"max": values + seen, "zero": values}
        else:
            values = self._state.first_learned.double().cpu()
            at_never = {"max": seen}
        changed = at_never.get(never_learned, torch.full_like(values, torch.inf))
        return torch.where(never, changed, values).masked_fill(unseen, torch.nan)

    def check(
        self,
        name: str,
        ticks: int,
        *,
        drop_last: bool | None = None,
        never_learned: NeverLearned = "max",
    ) -> None:
        """Raise what :meth:`values` would after so many ticks, before they are recorded.

        Args:
            name: One of ``DYNAMICS_SCORES``.
            ticks: K.
            drop_last: As for :meth:`values`.
            never_learned: As for :meth:`values`.

        Raises:
            ValueError: The name is unknown or not recorded, ticks or the ring are too few, or the
                policy is none or does not suit the score.
        """
        if name not in DYNAMICS_SCORES:
            raise ValueError(f"unknown score {name!r}; known are {', '.join(DYNAMICS_SCORES)}")
        if never_learned not in get_args(NeverLearned):
            raise ValueError(
                f"never_learned must be one of {get_args(NeverLearned)}, got {never_learned!r}"
            )
        if name == "first_learned" and never_learned == "zero":
            raise ValueError("first_learned has no never_learned='zero': 0 is the earliest")
        last = _drops_last(name, drop_last)
        if name == "cad":
            self._check_cad(ticks, last)
        elif name in WINDOW_SCORES:
            if not self._windows:
                raise ValueError(f"{name} needs a ring of probabilities, got signal='el2n'")
            needed = self.window + last
            if ticks < needed and name in self._windows:
                raise ValueError(
                    f"{name} with window = {self.window} and drop_last = {last} needs {needed} "
                    f"ticks, there are {ticks}"
                )
        known = self._windows if name in WINDOW_SCORES else self._state._asdict()
        if name in get_args(Extra) and known.get(name) is None:
            raise ValueError(f"{name} was not recorded; give record=({name!r}, ...)")

    @torch.no_grad()
    def merge(self, other: TrainingDynamics) -> None:
        """Take over the samples that another recorder has seen and this one has not.

        Both come from the same state (or from none), and since then each sample belonged to one of
        them: the two ranks of a tick, or two halves of a data set.  Within one tick both may have
        seen a sample, as those that a ``DistributedSampler`` repeats to fill the last batch: it
        counts as on the one that saw it more often, else as here.

        Raises:
            TypeError: ``other`` is no recorder.
            ValueError: The two differ in their settings or tick, or have seen a sample in different
                ticks.  Nothing is changed then.
        """
        if not isinstance(other, TrainingDynamics):
            raise TypeError(f"other must be a TrainingDynamics, got {type(other).__name__}")
        ours, theirs = (
            {k: v for k, v in r._meta().items() if k not in ("since", "agreed")}
            for r in (self, other)
        )
        if ours != theirs:
            raise ValueError(f"the recorders differ: {_difference(ours, theirs)}")
        mine, yours = self._state.seen, other._state.seen.to(self.device)
        take = yours > mine
        my_base, your_base = self._base(), other._base().to(self.device)
        of_mine, of_yours = _lost(mine, my_base, your_base), _lost(yours, your_base, my_base)
        # Within a tick that both began alike, to be seen by both is no loss.
        spans = self._spans_ticks() or other._spans_ticks()
        _refuse_mixed(torch.where(take, of_mine, of_yours) & ((my_base != your_base) | spans))
        theirs_tensors = other._recorded()
        for name, tensor in self._recorded().items():
            tensor[take] = theirs_tensors[name].to(self.device)[take]
        self._agree()

    @torch.no_grad()
    def all_reduce(self, group: Any = None) -> None:
        """Give every rank the samples of all ranks, by the rule of :meth:`merge`.

        Call it on every rank before each :meth:`end_tick`: in the next tick a sample may belong to
        another rank.  A sample that several ranks have seen counts once, as on the lowest of them.

        Args:
            group: Process group of ``torch.distributed``; default all.

        Raises:
            ValueError: The ranks have seen a sample in different ticks (on every rank).  Nothing is
                changed then.
        """
        self._begin()
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        seen, base = self._state.seen.int(), self._base().int()
        key = seen * ranks + (ranks - 1 - rank)
        best = key.clone()
        dist.all_reduce(best, dist.ReduceOp.MAX, group=group)
        owner = key == best
        owners_base = torch.where(owner, base, torch.zeros_like(base))
        dist.all_reduce(owners_base, group=group)
        lost = ~owner & _lost(seen, base, owners_base)
        # 2: lost in any case; 1: if a rank has updates of several ticks, as the last entry says.
        degree = lost.int() * (1 + (base != owners_base).int())
        degree = torch.cat((degree, degree.new_full((1,), int(self._spans_ticks()))))
        dist.all_reduce(degree, dist.ReduceOp.MAX, group=group)
        _refuse_mixed(degree[:-1] > 1 - degree[-1])
        for tensor in self._recorded().values():
            # Counters as int32, which every backend can add; sums of one value and zeros are exact.
            wide = tensor if tensor.dtype.is_floating_point else tensor.int()
            mask = owner if wide.dim() == 1 else owner[:, None]
            reduced = torch.where(mask, wide, torch.zeros_like(wide))
            dist.all_reduce(reduced, group=group)
            tensor.copy_(reduced)
        self._agree()

    def _base(self) -> Tensor:
        """Presentations of each sample that are common to all recorders."""
        return torch.zeros_like(self._state.seen) if self._agreed is None else self._agreed

    def _spans_ticks(self) -> bool:
        """Whether updates since the recorders agreed belong to more than the newest tick."""
        return self._since is not None and self._since < self.tick - (not self._open)

    def _agree(self) -> None:
        self._agreed, self._since = self._state.seen.clone(), None

    def state_dict(self) -> dict[str, Any]:
        """The whole state: tensors by name, and ``"meta"`` with JSON values."""
        return {**self._tensors(), "meta": self._meta()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave.

        Raises:
            TypeError: It is no mapping.
            ValueError: It is of another size or of other settings, or tensors are missing; nothing
                is changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {type(state).__name__}")
        meta = state.get("meta")
        if not isinstance(meta, Mapping):
            raise ValueError("the state has no 'meta': it is not of a TrainingDynamics")
        want, have = (
            {k: v for k, v in values.items() if k not in _PROGRESS}
            for values in (self._meta(), meta)
        )
        if want != have:
            raise ValueError(f"the state is of another recorder: {_difference(want, have)}")
        _check_progress(meta)
        tensors = self._recorded()
        if meta["agreed"]:
            tensors["agreed"] = torch.empty_like(self._state.seen)
        for name, tensor in tensors.items():
            given = state.get(name)
            if not isinstance(given, Tensor):
                raise ValueError(f"the state has no tensor {name!r}")
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise ValueError(
                    f"the state's {name} is {given.dtype} {tuple(given.shape)}, "
                    f"needed is {tensor.dtype} {tuple(tensor.shape)}"
                )
        for name in ("seen", "forgetting", "correct", "first_learned", "agreed"):
            if name not in tensors:
                continue
            low, high = -1 if name == "first_learned" else 0, state["seen"]
            if bool(((state[name] < low) | (state[name] > high)).any()):
                raise ValueError(
                    f"the state's {name} has a value below {low} or above the presentations"
                )
        for name, tensor in tensors.items():
            tensor.copy_(state[name])
        self.tick, self._open, self._since = meta["tick"], meta["open"], meta["since"]
        self._agreed = tensors.get("agreed")
        self._tick.fill_(self.tick)

    def save(self, path: str | Path) -> None:
        """Write the state as a safetensors file, whole or not at all."""
        write_tensors(Path(path), self._tensors(), self._meta())

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> TrainingDynamics:
        """The recorder that :meth:`save`, or a recorded run (recorder.safetensors), wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or something else.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist")
        tensors, meta = read_tensors(file)
        try:
            settings = {k: v for k, v in meta.items() if k not in _PROGRESS}
            settings["ring_dtype"] = getattr(torch, settings["ring_dtype"])
            # Before memory is taken for what the file does not hold.
            shape = tuple(tensors["ring"].shape)
            if shape != (settings["count"], settings["ring"]):
                raise ValueError(
                    f"its ring is {shape}, its meta says {(settings['count'], settings['ring'])}"
                )
            recorder = cls(**settings, device=device)
            recorder.load_state_dict({**tensors, "meta": meta})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # What is not a recorder's meta fails in one of these ways.
            raise ValueError(f"{file} holds no training dynamics: {error}") from error
        return recorder

    def _here(self, tensor: Tensor, name: str) -> Tensor:
        _checks.tensor(tensor, name)
        # A copy to the host that does not block could be read before it has arrived.
        return tensor.detach().to(self.device, non_blocking=self.device.type == "cuda")

    def _begin(self) -> None:
        """Before the first sample of a tick: add the window that ended, and clear the slot."""
        if self._open:
            return
        if self._windows and self.tick >= self.window:
            for rows, terms in self._newest_window():
                for name, value in terms.items():
                    self._windows[name][rows] += value.to(self._windows[name].dtype)
        self._state.ring[:, self.tick % self.ring] = torch.nan
        self._open = True

    def _newest_window(self) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """What the window that ends at the last tick adds to the sums, chunk by chunk."""
        for rows, signal in self._last_ticks(self.window):
            rest = -torch.expm1(-signal) if self.signal == "nlp" else signal  # 1 - p_y
            std, mean = rest.std(1, correction=1), rest.mean(1)
            complete = ~std.isnan()
            terms = {"dyn_unc": std, "dual": std * mean * _DUAL_SCALE}
            if "one_minus_p" in self.record:
                terms["one_minus_p"] = mean
            if self.missing != "nan":
                terms = {k: torch.where(complete, v, 0.0) for k, v in terms.items()}
            yield rows, {**terms, "count": complete}

    def _last_ticks(self, count: int) -> Iterator[tuple[slice, Tensor]]:
        """The signal of the last ended ticks, oldest first: float64 (rows, count)."""
        slots = [(self.tick - count + j) % self.ring for j in range(count)]
        for start in range(0, self.count, _CHUNK):
            rows = slice(start, min(start + _CHUNK, self.count))
            yield rows, _wide(self._state.ring[rows][:, slots])

    def _window_mean(self, name: str, drop_last: bool) -> Tensor:
        total, count = self._windows[name].double(), self._windows["count"].double()
        if not drop_last:
            for rows, terms in self._newest_window():
                total[rows] += terms[name]
                count[rows] += terms["count"]
        if name == "dual":
            total = total / _DUAL_SCALE
        return (total / torch.where(count == 0, torch.nan, count)).cpu()

    def _cad_window(self) -> int:
        return self.tick - self.cad_average if self.cad_window is None else self.cad_window

    def _check_cad(self, ticks: int, drop_last: bool) -> None:
        W = self.cad_average
        J = ticks - W if self.cad_window is None else self.cad_window
        if J < 2 or ticks < J + W:
            needed = (2 if self.cad_window is None else J) + W
            raise ValueError(
                f"cad needs J + W ticks; J = {'ticks - W' if self.cad_window is None else J} and "
                f"W = {W} make {needed} at least, there are {ticks}"
            )
        span = J + W - (not drop_last)
        if span > self.ring:
            raise ValueError(
                f"cad with J = {J} and W = {W} needs the last {span} ticks, the ring holds "
                f"{self.ring}: give cad_window, or a ring as long as the run"
            )

    def _cad(self, drop_last: bool) -> Tensor:
        J, W = self._cad_window(), self.cad_average
        # Windows end at tick K - 1, or one before it.
        span = J + W - (not drop_last)
        values = torch.empty(self.count, dtype=torch.float64)
        for rows, signal in self._last_ticks(span):
            if self.signal == "nlp":
                signal = -torch.expm1(-signal)
            windows = torch.stack([signal[:, k : k + J].std(1, correction=1) for k in range(W)])
            mean = windows.mean(0) if self.missing == "nan" else windows.nanmean(0)
            values[rows] = mean.cpu()
        return values

    def _recorded(self) -> dict[str, Tensor]:
        state = {k: v for k, v in self._state._asdict().items() if v is not None}
        return {**state, **{f"windows_{k}": v for k, v in self._windows.items()}}

    def _tensors(self) -> dict[str, Tensor]:
        merged = {} if self._agreed is None else {"agreed": self._agreed}
        return {**self._recorded(), **merged}

    def _settings(self) -> dict[str, Any]:
        soft = self.soft_temperature  # files without it are of recorders without it
        return {
            "count": self.count,
            "window": self.window,
            "ring": self.ring,
            "cad_window": self.cad_window,
            "cad_average": self.cad_average,
            "record": list(self.record),
            "signal": self.signal,
            "ring_dtype": str(self._state.ring.dtype).removeprefix("torch."),
            "temperature": self.temperature,
            "missing": self.missing,
            "initially_correct": self.initially_correct,
            **({} if soft is None else {"soft_temperature": soft}),
        }

    def _meta(self) -> dict[str, Any]:
        return {
            **self._settings(),
            "tick": self.tick,
            "open": self._open,
            "since": self._since,
            "agreed": self._agreed is not None,
        }


def _drops_last(name: str, drop_last: bool | None) -> bool:
    return name in ("cad", "dyn_unc") if drop_last is None else drop_last


# What of the meta changes while it records; the rest are settings.
_PROGRESS = ("tick", "open", "since", "agreed")


def _check_progress(meta: Mapping[str, Any]) -> None:
    """The progress in a state's meta is one that a recorder can have."""
    for name in _PROGRESS:
        if name not in meta:
            raise ValueError(f"the state's meta has no {name!r}")
    tick = meta["tick"]
    if type(tick) is not int or not 0 <= tick < COUNT_LIMIT:
        raise ValueError(f"the state's tick must be an int in [0, {COUNT_LIMIT}), got {tick!r}")
    for name in ("open", "agreed"):
        if type(meta[name]) is not bool:
            raise ValueError(f"the state's {name!r} must be true or false, got {meta[name]!r}")
    since = meta["since"]
    if since is not None and (type(since) is not int or not 0 <= since <= tick):
        raise ValueError(f"the state's since must be null or a tick up to {tick}, got {since!r}")


def _lost(seen: Tensor, base: Tensor, base_of_other: Tensor) -> Tensor:
    """Samples of which a recorder knows presentations that the other one, which wins, does not.

    Those since they agreed, or those that they never agreed on.
    """
    return (seen > base) | (seen > base_of_other)


def _refuse_mixed(mixed: Tensor) -> None:
    if bool(mixed.any()):
        sample = int(mixed.nonzero()[0])
        raise ValueError(
            f"sample {sample} was seen by several recorders in different ticks; "
            "merge (all_reduce) at the end of every tick"
        )


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    keys = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
    return "; ".join(f"{k} is {ours.get(k)!r} here, {theirs.get(k)!r} there" for k in keys)


def _wide(tensor: Tensor) -> Tensor:
    # MPS has no float64.
    return tensor.float() if tensor.device.type == "mps" else tensor.double()
