"""From a method's settings to a distilled set: what the methods share around the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.methods.chunks import Chunk
from pyddfast.methods.engine import FirstViews, Loop, Stage, synthesize
from pyddfast.methods.objective import BatchNormObjective, Objective, Site
from pyddfast.methods.synthesis import (
    SynthesisConfig,
    Task,
    Teachers,
    initial_flip,
    initial_noise,
    initial_sources,
    resized,
)
from pyddfast.train.checkpoint import CHECKPOINT_SECONDS

__all__ = ["Job", "batch_norm", "recover", "teacher_list"]


@dataclass(frozen=True)
class Job:
    """Where and how a synthesis runs; nothing here changes its result.

    Attributes:
        device: None: CUDA where there is one, under ``torchrun`` each process its own.
        out: Run folder; None keeps nothing on disk.
        resume: Continue what ``out`` holds; False refuses a folder that is not empty.
        checkpoint_seconds: At most this long between two checkpoints.
        on_progress: Called with (steps done, steps of this process in all).
    """

    device: torch.device | str | None = None
    out: str | Path | None = None
    resume: bool = True
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    on_progress: Callable[[int, int], None] | None = None


def teacher_list(teachers: Teachers) -> list[nn.Module]:
    """One teacher or several as a list.

    Raises:
        TypeError: One of them is no module.
    """
    listed = [teachers] if isinstance(teachers, nn.Module) else list(teachers)
    for teacher in listed:
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"a teacher must be an nn.Module, got {type(teacher).__name__}")
    return listed


def batch_norm(
    config: SynthesisConfig, *, var_weight: float = 1.0, tv: float = 0.0, l2: float = 0.0
) -> Callable[[Site], Objective]:
    """The objective of SRe2L and its nearest kin, for settings that are resolved."""
    assert config.bn_weight is not None
    return partial(
        BatchNormObjective,
        weight=config.bn_weight,
        first_multiplier=config.first_multiplier,
        var_weight=var_weight,
        mode=config.bn_mode,
        tv=tv,
        l2=l2,
    )


def recover(
    name: str,
    task: Task,
    teachers: Sequence[nn.Module],
    config: SynthesisConfig,
    job: Job,
    *,
    source: ImageSource | None = None,
    min_scale: Callable[[int], float] | None,
    objective: Callable[[Site], Objective],
    pad: int | None = None,
    stages: Sequence[Stage] = (),
    residual: float = 0.0,
    with_replacement: bool = False,
    facts: Mapping[str, Any] | None = None,
    prepare: Callable[[Chunk, FirstViews], Tensor | None] | None = None,
) -> DistilledSet:
    """Run a method whose settings are resolved.

    Args:
        name: Of the method.
        task: Classes and normalisation.
        teachers: Taken in turn.
        config: Without None.
        job: Where and how.
        source: Of the first images; None: ``task``, where it has images.
        min_scale: See :class:`Loop`; for ``config.crop``.
        objective: See :func:`synthesize`.
        pad: See :class:`Loop`.
        stages: See :class:`Loop`; default: one, of ``config``'s size and iterations.
        residual: See :class:`Loop`.
        with_replacement: Draw the first images with replacement, and mirror every second one.
        facts: More JSON values that name the job.
        prepare: See :func:`synthesize`.

    Raises:
        ValueError: First images are asked for and there is no source, or too small a one, and as
            :func:`synthesize`.
    """
    size, channels = config.image_size, task.normalization.channels
    assert size is not None
    assert config.iterations is not None
    assert config.batch_size is not None
    assert config.lr is not None
    assert config.jitter is not None
    chosen: dict[int, list[int]] = {}
    images = _source(task, config, source)
    if images is not None:
        chosen = initial_sources(
            images,
            config.classes,
            config.ipc,
            seed=config.seed,
            shuffled=config.init == "data" and config.semantics == "paper",
            with_replacement=with_replacement,
        )

    def initial(chunk: Chunk) -> Tensor:
        places = list(zip(chunk.labels, chunk.slots, strict=True))
        if images is None:
            shape = (channels, size, size)
            return torch.stack([initial_noise(config.seed, c, slot, shape) for c, slot in places])
        first = []
        for label, slot in places:
            image = resized(images[chosen[label][slot]], size, task.normalization)
            mirrored = with_replacement and initial_flip(config.seed, label, slot)
            first.append(image.flip(-1) if mirrored else image)
        return torch.stack(first)

    loop = Loop(
        classes=config.classes,
        ipc=config.ipc,
        stages=tuple(stages) or (Stage(size, config.iterations),),
        batch_size=config.batch_size,
        order=config.order,
        lr=config.lr,
        residual=residual,
        jitter=config.jitter,
        min_scale=min_scale if config.crop else None,
        pad=pad,
        precision=config.precision,
        channels_last=config.channels_last,
        cuda_graph=config.cuda_graph,
        quantize="round" if config.semantics == "paper" else "truncate",
        seed=config.seed,
    )
    made = synthesize(
        task,
        teachers,
        loop,
        initial=initial,
        objective=objective,
        prepare=prepare,
        facts={
            "task": f"distill {name}",
            **asdict(config),
            "num_classes": task.num_classes,
            "normalization": asdict(task.normalization),
            "first_images": chosen,
            "source": None if images is None else describe_data(images),
            **(facts or {}),
        },
        **vars(job),
    )
    # Chunks differ in size; each image counts once.
    correct = sum(
        row["teacher_accuracy"] * len(chunk.labels)
        for row, chunk in zip(made.rows, loop.chunks, strict=True)
    )
    return DistilledSet(
        images=made.images,
        labels=made.labels,
        num_classes=task.num_classes,
        normalization=task.normalization,
        class_names=tuple(task.class_names),
        kind="synthetic",
        meta={
            "method": name,
            **asdict(config),
            "teacher_accuracy": correct / len(made.labels),
        },
    )


def _source(task: Task, config: SynthesisConfig, source: ImageSource | None) -> ImageSource | None:
    """Where first images come from; None for noise."""
    if config.init == "noise":
        if source is not None:
            raise ValueError("init='noise' takes no source of first images; give init='data'")
        return None
    if source is None and config.init == "data" and isinstance(task, ImageSource):
        source = task
    if config.init == "set" and not isinstance(source, DistilledSet):
        raise ValueError("init='set' needs a distilled set as source of first images")
    if source is None:
        raise ValueError(f"init={config.init!r} needs a source of first images")
    if source.normalization.channels != task.normalization.channels:
        raise ValueError(
            f"the source of first images has {source.normalization.channels} channels, "
            f"the task {task.normalization.channels}"
        )
    return source
