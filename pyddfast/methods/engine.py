"""The loop that optimises images against frozen teachers, under SRe2L and its successors.

The images are made in chunks of ``batch_size``, which share the statistics.  Chunks do not depend
on each other, so ranks divide them and a stopped job makes only those that are missing.  What a
chunk draws is keyed by its number, the step, and the class and number of each image: not by rank,
nor by what was made before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import Normalization, normalize
from pyddfast.methods.chunks import Chunk, ChunkStore, Order, plan_chunks
from pyddfast.methods.objective import Forward, Objective, Site
from pyddfast.methods.synthesis import Task
from pyddfast.ops.synthesis import (
    crop_flip_roll,
    draw_crop_flip_roll,
    to_uint8,
)
from pyddfast.train.checkpoint import CHECKPOINT_SECONDS
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.models import model_digest

__all__ = ["FirstViews", "Loop", "Stage", "Synthesized", "frozen", "synthesize"]

# The official codes report every 100 steps; a row reads the losses back, which waits for the GPU.
_LOG_EVERY = 100
# Steps before a capture: lazy initialisation (cuDNN plans, Adam's state) must not be recorded.
# torch's own examples take 3.
_WARM_UP = 3


@dataclass(frozen=True)
class Stage:
    """Steps at one size.

    Attributes:
        size: Side in pixels.
        iterations: Steps.
    """

    size: int
    iterations: int


@dataclass(frozen=True)
class Loop:
    """What is run, every value decided; the fields are those of the methods' configs.

    Attributes:
        classes: Labels, in the order of the result.
        ipc: Images a class.
        stages: One after the other; the last one's size is that of the images.  Each has a new
            Adam; one cosine runs through all.
        batch_size: Images of a chunk.
        order: How images come into chunks; see :func:`plan_chunks`.
        lr: Adam's rate at the start of the cosine.
        residual: Share of the first images, resized, in what a later stage starts from.
        jitter: Smallest and largest roll.
        min_scale: Smallest share of the area that a crop covers, by step; None: no crop, no flip.
        pad: Instead of that: crops of the images' size out of them with so many pixels of the mean
            colour around, and flips.
        precision: Arithmetic of the teacher.
        channels_last: Memory format of the teacher's input.
        cuda_graph: Capture the step.
        quantize: How pixels become bytes.
        seed: Of the augmentation.
    """

    classes: tuple[int, ...]
    ipc: int
    stages: tuple[Stage, ...]
    batch_size: int
    order: Order
    lr: float
    residual: float
    jitter: tuple[int, int]
    min_scale: Callable[[int], float] | None
    pad: int | None
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    cuda_graph: bool
    quantize: Literal["round", "truncate"]
    seed: int

    @property
    def iterations(self) -> int:
        """Steps of a chunk."""
        return sum(stage.iterations for stage in self.stages)

    @property
    def chunks(self) -> list[Chunk]:
        """All batches."""
        return plan_chunks(self.classes, self.ipc, self.batch_size, self.order)


@dataclass(frozen=True)
class Synthesized:
    """The images of all chunks, and the last metrics row of each.

    Attributes:
        images: uint8 (len(classes) · ipc, C, S, S), in the order of ``classes``.
        labels: int64, the same length.
        rows: One a chunk.
    """

    images: Tensor
    labels: Tensor
    rows: list[dict[str, Any]]


FirstViews = Callable[[Chunk], tuple[Tensor, Tensor, Tensor]]


def synthesize(
    task: Task,
    teachers: Sequence[nn.Module],
    loop: Loop,
    *,
    initial: Callable[[Chunk], Tensor],
    objective: Callable[[Site], Objective],
    prepare: Callable[[Chunk, FirstViews], Tensor | None] | None = None,
    facts: Mapping[str, Any],
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Synthesized:
    """Optimise the images of every chunk.

    A step: one crop, flip and roll for all images; cross-entropy of the teacher whose turn it is,
    plus the objective; Adam; pixels clamped.

    Args:
        task: Classes and normalisation.
        teachers: Taken in turn, one a step.  Run in evaluation mode without gradients of their
            weights; both are put back.
        loop: What to run.
        initial: The first images of a chunk, float32 (B, C, S, S), normalised; a function of the
            chunk alone.
        objective: The rest of the loss, given where the job runs.
        prepare: Called before a chunk's first step, e.g. to change the teachers' weights, with a
            function that gives a chunk's first images (with gradient), their views at step 0 and
            the labels.  What it returns is added to the images' gradient at step 0.  It must
            depend on the chunk alone.
        facts: JSON values that name this job, for ``config.json``.
        device: None: CUDA where there is one, else the CPU.
        out: Run folder; finished chunks, checkpoints and metrics go there.  None keeps nothing.
        resume: Continue what ``out`` holds.
        checkpoint_seconds: At most this long between two checkpoints of a chunk.
        on_progress: Called with (steps done, steps of this process in all).

    Returns:
        All images; under ``torchrun`` every process gets them.

    Raises:
        ValueError: Teachers and task do not fit together, a teacher has no BatchNorm or weights
            that are not finite, the losses become NaN, a file in ``out`` is damaged or of another
            job, or several processes have no ``out``.
        FileExistsError: ``out`` holds something else.
        OSError: A file could not be written, e.g. because the disk is full; what is finished stays.
    """
    target = resolve_device(device)
    if loop.cuda_graph and target.type != "cuda":
        raise ValueError(f"cuda_graph needs a CUDA device, got {target}")
    ranks = join_ranks()
    if ranks.world > 1 and out is None:
        raise ValueError(f"out must be given where {ranks.world} processes share the work")
    with frozen(teachers, target, channels_last=loop.channels_last), ExitStack() as opened:
        for size in sorted({stage.size for stage in loop.stages}):
            _check_teachers(task, teachers, size, target)
        config = {**facts, "teachers": [model_digest(teacher) for teacher in teachers]}
        store = None if out is None else ChunkStore(out, config, ranks, resume=resume)
        if store is not None and store.first:
            opened.enter_context(store.run)  # unfit teachers leave no folder behind
        chunks = loop.chunks
        mine = chunks[ranks.rank :: ranks.world]
        total, before = len(mine) * loop.iterations, 0
        made: dict[int, tuple[Tensor, list[dict[str, Any]]]] = {}
        site = Site(teachers, target, store, ranks, checkpoint_seconds)
        with closing(objective(site)) as beside:
            for chunk in mine:
                finished = None if store is None else store.finished(chunk)
                if finished is None:
                    finished = _make_chunk(
                        task,
                        site,
                        beside,
                        loop,
                        chunk,
                        initial=initial,
                        prepare=prepare,
                        on_step=partial(_tell, on_progress, before, total),
                    )
                if store is None:
                    made[chunk.index] = finished
                before += loop.iterations
                _tell(on_progress, before, total, 0)
        if store is not None:
            ranks.wait()
            for chunk in chunks:
                found = store.finished(chunk)
                if found is None:
                    raise ValueError(f"{store.file(chunk)} has disappeared")
                made[chunk.index] = found
            store.write_metrics([row for chunk in chunks for row in made[chunk.index][1]])
            ranks.wait()
    return _collect(loop, chunks, made)


def _tell(
    on_progress: Callable[[int, int], None] | None, before: int, total: int, step: int
) -> None:
    if on_progress is not None:
        on_progress(before + step, total)


def _collect(
    loop: Loop, chunks: Sequence[Chunk], made: Mapping[int, tuple[Tensor, list[dict[str, Any]]]]
) -> Synthesized:
    place = {label: number for number, label in enumerate(loop.classes)}
    first = made[chunks[0].index][0]
    images = first.new_empty((len(loop.classes) * loop.ipc, *first.shape[1:]))
    for chunk in chunks:
        rows = [
            place[label] * loop.ipc + slot
            for label, slot in zip(chunk.labels, chunk.slots, strict=True)
        ]
        images[rows] = made[chunk.index][0]
    labels = torch.tensor(loop.classes).repeat_interleave(loop.ipc)
    return Synthesized(images, labels, [made[chunk.index][1][-1] for chunk in chunks])


@contextmanager
def frozen(
    teachers: Sequence[nn.Module], device: torch.device, *, channels_last: bool
) -> Iterator[None]:
    """Teachers in evaluation mode, on the device, without gradients; modes are put back."""
    if not teachers:
        raise ValueError("teachers must hold at least one teacher, got none")
    for number, teacher in enumerate(teachers):
        if isinstance(teacher, nn.DataParallel):
            raise ValueError(
                f"teacher {number} is an nn.DataParallel: its replicas have statistics of their "
                "own; give its .module, and use torchrun for several GPUs"
            )
    modes = [(m, m.training) for teacher in teachers for m in teacher.modules()]
    wants = [(p, p.requires_grad) for teacher in teachers for p in teacher.parameters()]
    try:
        for teacher in teachers:
            teacher.to(device).eval().requires_grad_(False)
            if channels_last:
                teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)


def _check_teachers(
    task: Task, teachers: Sequence[nn.Module], size: int, device: torch.device
) -> None:
    """Finite weights and statistics, and as many logits as classes for images of that size.

    Every BatchNorm layer is reached: one that is not has no statistics to match.
    """
    channels = task.normalization.channels
    for number, teacher in enumerate(teachers):
        for name, value in teacher.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(f"teacher {number} holds values in {name} that are not finite")
        layers = {m: n for n, m in teacher.named_modules() if isinstance(m, nn.BatchNorm2d)}
        reached: set[nn.Module] = set()
        hooks = [
            layer.register_forward_pre_hook(lambda module, _, seen=reached: seen.add(module))
            for layer in layers
        ]
        try:
            with torch.no_grad():
                logits = teacher(torch.zeros((1, channels, size, size), device=device))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"teacher {number} does not take images of {channels} x {size} x {size}: {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if unused := [name for layer, name in layers.items() if layer not in reached]:
            raise ValueError(
                f"teacher {number} does not reach its BatchNorm layer {unused[0]!r}, whose "
                "statistics are to be matched: put nn.Identity() in place of what is unused"
            )
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"teacher {number} gives a {type(logits).__name__}; logits (B, classes), a tensor, "
                "are needed"
            )
        if logits.shape != (1, task.num_classes):
            raise ValueError(
                f"teacher {number} gives {logits.shape[-1]} logits, "
                f"there are {task.num_classes} classes"
            )


def _make_chunk(
    task: Task,
    site: Site,
    objective: Objective,
    loop: Loop,
    chunk: Chunk,
    *,
    initial: Callable[[Chunk], Tensor],
    prepare: Callable[[Chunk, FirstViews], Tensor | None] | None,
    on_step: Callable[[int], None],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Optimise one chunk, from its checkpoint if there is one."""
    store = site.store
    step = _Step(task, site, objective, loop, chunk, initial(chunk))
    if prepare is not None:

        def first_views(other: Chunk) -> tuple[Tensor, Tensor, Tensor]:
            images = initial(other).to(site.device).requires_grad_()
            params = _draw(loop, other, 1)[0].to(site.device)
            labels = torch.tensor(other.labels, device=site.device)
            return images, crop_flip_roll(images, params), labels

        step.first_gradient = prepare(chunk, first_views)
    rows: list[dict[str, Any]] = []
    if store is not None:
        found = store.checkpoint(chunk)
        if found is not None:
            step.restore(found[0], found[1]["scaler"])
            rows = found[1]["rows"]
        store.forget_after(chunk, step.done)
    saved = time.perf_counter()
    while step.done < loop.iterations:
        step.run()
        on_step(step.done)
        if step.done % _LOG_EVERY == 0 or step.done == loop.iterations:
            row = step.row()
            if step.done == loop.iterations:
                row["teacher_accuracy"] = step.teacher_accuracy()
            rows.append(row)
            if store is not None:
                store.log(row)
        if (
            store is not None
            and step.done < loop.iterations
            and time.perf_counter() - saved >= site.checkpoint_seconds
        ):
            tensors, scaler = step.state()
            store.save_checkpoint(chunk, tensors, {"scaler": scaler, "rows": rows})
            saved = time.perf_counter()
    images = step.pixels().cpu()
    if store is not None:
        store.finish(chunk, images, rows)
    return images, rows


def _draw(loop: Loop, chunk: Chunk, count: int) -> Tensor:
    """The augmentation of the chunk's first ``count`` steps, int64 (count, 7)."""
    # Steps of equal size and scale are drawn together; a curriculum has one scale a step.
    same: dict[tuple[int, float | None], list[int]] = {}
    sizes = (stage.size for stage in loop.stages for _ in range(stage.iterations))
    for step, size in zip(range(count), sizes, strict=False):
        scale = None if loop.min_scale is None else loop.min_scale(step)
        same.setdefault((size, scale), []).append(step)
    params = torch.empty((count, 7), dtype=torch.int64)
    for (size, scale), members in same.items():
        steps = torch.tensor(members)
        params[steps] = draw_crop_flip_roll(
            loop.seed,
            steps,
            chunk.index,
            (size, size),
            scale=None if scale is None else (scale, 1.0),
            pad=loop.pad or 0,
            flip=scale is not None or loop.pad is not None,
            shift=loop.jitter,
        )
    return params


def _resized(images: Tensor, size: int) -> Tensor:
    """As the official code changes sizes: bilinear without antialiasing."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


class _Step:
    """The state of one chunk's optimisation, and its step.

    Everything a step reads lies on the device (augmentation, learning rates, counter), and what it
    reports stays there, so that a step neither waits for the device nor changes between calls.
    """

    def __init__(
        self,
        task: Task,
        site: Site,
        objective: Objective,
        loop: Loop,
        chunk: Chunk,
        first: Tensor,
    ) -> None:
        self.teachers, self.objective, self.loop, self.chunk = (
            site.teachers,
            objective,
            loop,
            chunk,
        )
        self.normalization: Normalization = task.normalization
        device = site.device
        self.first = first.to(device)
        self.labels = torch.tensor(chunk.labels, device=device)
        self.params = _draw(loop, chunk, loop.iterations).to(device)
        turn = torch.arange(loop.iterations, dtype=torch.float64) * (math.pi / loop.iterations)
        self.rates = (0.5 * loop.lr * (1 + turn.cos())).float().to(device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.history = torch.zeros((loop.iterations, 2), device=device)
        self.rate = self.rates[:1].clone()
        # The bounds of clamp_normalized as tensors: one call instead of two a channel.
        mean, std = task.normalization.mean, task.normalization.std
        bounds = [[(v - m) / s for m, s in zip(mean, std, strict=True)] for v in (0, 1)]
        self.range = torch.tensor(bounds, device=device)[:, :, None, None].unbind()
        self.scaler = torch.amp.GradScaler(device.type, enabled=loop.precision == "fp16")
        self.done = 0
        self.first_gradient: Tensor | None = None
        objective.begin(chunk)
        ends = [0]
        for stage in loop.stages:
            ends.append(ends[-1] + stage.iterations)
        self.starts = {start: number for number, start in enumerate(ends[:-1])}
        self._enter(_resized(self.first, loop.stages[0].size))

    def _enter(self, images: Tensor) -> None:
        """Begin a stage with these images: a new Adam, new graphs."""
        # A copy: the first images are needed again, and Adam and the clamp write in place.
        self.images = images.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        kind = self.images.device.type
        # (0.5, 0.9) and 1e-8: every official code of the family.
        self.optimizer = torch.optim.Adam(
            [self.images],
            lr=self.rate[0],
            betas=(0.5, 0.9),
            eps=1e-8,
            capturable=kind == "cuda",
            fused=kind in ("cuda", "cpu"),
        )
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.warmed: dict[int, int] = {}

    def _next_stage(self, stage: Stage) -> None:
        images, first = (_resized(x, stage.size) for x in (self.images.detach(), self.first))
        self._enter((1 - self.loop.residual) * images + self.loop.residual * first)

    def run(self) -> None:
        """One step."""
        stage = self.starts.get(self.done, 0)
        if stage > 0:
            self._next_stage(self.loop.stages[stage])
        turn = self.done % len(self.teachers)
        if not self.loop.cuda_graph:
            self._advance(turn)
        elif turn in self.graphs:
            self.graphs[turn].replay()
        elif self.warmed.get(turn, 0) < _WARM_UP:
            # Capture wants the lazy initialisation to have happened on a side stream.
            side = torch.cuda.Stream(self.images.device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(self.images.device))
            with torch.cuda.stream(side):
                self._advance(turn)
            torch.cuda.current_stream(self.images.device).wait_stream(side)
            self.warmed[turn] = self.warmed.get(turn, 0) + 1
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._advance(turn)
            self.graphs[turn] = graph
            graph.replay()
        self.done += 1

    def _advance(self, turn: int) -> None:
        torch.index_select(self.rates, 0, self.counter, out=self.rate)
        params = self.params.index_select(0, self.counter)[0]
        views, logits = self._look(self.images, params, turn)
        cross_entropy = F.cross_entropy(logits, self.labels)
        added, statistics = self.objective(
            Forward(
                turn=turn,
                images=self.images,
                views=views,
                logits=logits,
                predict=lambda images: self._look(images, params, turn)[1],
            )
        )
        loss = cross_entropy + added
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.done == 0 and self.first_gradient is not None:
            assert self.images.grad is not None
            self.images.grad += self.scaler.scale(self.first_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.images.clamp_(*self.range)
            report = torch.stack((cross_entropy, statistics))[None]
            self.history.index_copy_(0, self.counter, report)
            self.counter += 1

    def _look(self, images: Tensor, params: Tensor, turn: int) -> tuple[Tensor, Tensor]:
        """Views of images, and a teacher's logits of them."""
        size = images.shape[-1]
        if self.loop.pad is not None:
            images = F.pad(images, (self.loop.pad,) * 4)
        views = crop_flip_roll(images, params, size)
        if self.loop.channels_last:
            views = views.contiguous(memory_format=torch.channels_last)
        dtype = torch.bfloat16 if self.loop.precision == "bf16" else torch.float16
        with torch.autocast(
            views.device.type,
            dtype=dtype,
            enabled=self.loop.precision != "fp32",
            cache_enabled=False,
        ):
            logits = self.teachers[turn](views)
        return views, logits.float()

    def row(self) -> dict[str, Any]:
        """The losses of the last step, read back.

        Raises:
            ValueError: They are not finite.
        """
        cross_entropy, statistics = self.history[self.done - 1].tolist()
        if not math.isfinite(cross_entropy) or not math.isfinite(statistics):
            losses = self.history[: self.done].isfinite().all(1)
            step = int((~losses).nonzero()[0])
            raise ValueError(
                f"the losses of chunk {self.chunk.index} are not finite from step {step} on "
                f"(lr = {self.loop.lr}, precision = {self.loop.precision}); lower lr or take fp32"
            )
        return {
            "chunk": self.chunk.index,
            "step": self.done,
            "cross_entropy": cross_entropy,
            self.objective.name: statistics,
            "lr": float(self.rates[self.done - 1]),
        }

    def pixels(self) -> Tensor:
        """The images as bytes."""
        mean, std = self.normalization.mean, self.normalization.std
        return to_uint8(self.images.detach(), mean=mean, std=std, quantize=self.loop.quantize)

    @torch.no_grad()
    def teacher_accuracy(self) -> float:
        """Share of the images, as bytes, that the first teacher puts in their class."""
        logits = self.teachers[0](normalize(self.pixels(), self.normalization))
        return float((logits.argmax(1) == self.labels).double().mean())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What :meth:`restore` needs."""
        adam = self.optimizer.state[self.images]
        zero = torch.zeros_like(self.images)  # fp16: no step may have been taken yet
        return {
            "images": self.images,
            "exp_avg": adam.get("exp_avg", zero),
            "exp_avg_sq": adam.get("exp_avg_sq", zero),
            "adam_step": adam.get("step", torch.tensor(0.0)),
            "counter": self.counter,
            "history": self.history,
            **{f"objective.{name}": value for name, value in self.objective.state().items()},
        }, self.scaler.state_dict()

    def restore(self, tensors: Mapping[str, Tensor], scaler: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        device = self.images.device
        self._enter(tensors["images"].to(device))  # the size may be that of a later stage
        step = tensors["adam_step"]
        self.optimizer.state[self.images] = {
            # Adam keeps its step count on the device only where it is capturable.
            "step": step.to(device) if device.type == "cuda" else step.clone(),
            "exp_avg": tensors["exp_avg"].to(device),
            "exp_avg_sq": tensors["exp_avg_sq"].to(device),
        }
        self.counter.copy_(tensors["counter"])
        self.history.copy_(tensors["history"])
        prefix = "objective."
        self.objective.restore(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        self.scaler.load_state_dict(scaler)
        self.done = int(tensors["counter"])
