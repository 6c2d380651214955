"""RDED: the most confident crops of real images, tiled to images.

"On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm"
(Sun et al., CVPR 2024); official code LINs-lab/RDED, ``synthesize/``.  For every class: a pool of
images, several random crops of each, the teacher's confidence in each crop; the best crop of every
image, the most confident images, and factor × factor of those patches to an image.

Where the official code leaves the result to chance (directory order, an unseeded shuffle, an
unstable sort) this one is defined: classes in label order, keyed draws, ties to the lowest rank.
The picks do not depend on the number of workers or ranks nor on where a stopped job went on, and
on batch size and device only by the rounding of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.data.ahead import default_workers
from pyddfast.data.digest import describe_data
from pyddfast.methods.candidates import Candidates, candidate_pools, check_enough
from pyddfast.methods.engine import frozen
from pyddfast.methods.job_folder import JobFolder
from pyddfast.methods.patch_crops import CandidateBackend, check_backend
from pyddfast.methods.patch_scoring import ClassPatches, Scoring, score_classes
from pyddfast.methods.synthesis import check_pixels, common_size
from pyddfast.ops.patches import mosaic
from pyddfast.train.checkpoint import CHECKPOINT_SECONDS
from pyddfast.train.distributed import join_ranks, resolve_device
from pyddfast.train.models import model_digest

__all__ = ["RDEDConfig", "check_rded", "default_factor", "rded"]

_BATCH = 500
# glibc hands blocks beyond 32 MiB back to the kernel and takes new pages for the next batch, which
# costs a third more processor time at 224 px.  A forward pass has to stay below it with the first
# layer's output, five times an image in a ResNet.
_CPU_BATCH_BYTES = 32 << 20
_CPU_FORWARD_BYTES = 6 << 20


@dataclass(frozen=True)
class RDEDConfig:
    """Settings of RDED; the defaults are the published ones.

    Attributes:
        ipc: Images a class of the distilled set.
        factor: Each image is factor × factor patches.  None: 1 below 128 px, 2 from there on.  The
            papers use 1 up to 64 px and 2 from 128 px; between, 2 would make patches of less than
            64 px, so 1 is kept.
        image_size: Side of an image in pixels.  None: that of the data set, or 224 for images of
            several sizes.
        num_crops: Random crops of each image.
        pool: Images of each class that compete, drawn at random.
        scale: Smallest and largest share of the image that a crop covers.
        ratio: Smallest and largest width / height of a crop.
        semantics: "paper" rounds pixels to bytes and takes whole classes smaller than the pool;
            "official" cuts pixels off as the official code (a darkening of half a level on
            average) and refuses such classes, where that code fails.
        seed: Seed of the pool and of the crops.
        batch_size: Crops in one forward pass of the teacher; no effect on the result but rounding.
            None: 500; on a CPU only so many as fill 6 MiB (10 of 224 px).
        precision: Arithmetic of the teacher: fp32, or bf16 or fp16 by autocast.
        channels_last: Memory format in which the teacher runs.
        on_error: An image that cannot be decoded: "raise" stops with its name (what is finished in
            a run folder stays, also for a later "skip"); "skip" leaves it out with a warning and
            records it.
    """

    ipc: int = 10
    factor: int | None = None
    image_size: int | None = None
    num_crops: int = 5
    pool: int = 300
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    semantics: Literal["paper", "official"] = "paper"
    seed: int = 0
    batch_size: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        for name in ("ipc", "num_crops", "pool", "factor", "image_size", "batch_size"):
            value = getattr(self, name)
            if value is None and name in ("factor", "image_size", "batch_size"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, allowed in (
            ("semantics", ("paper", "official")),
            ("precision", ("fp32", "bf16", "fp16")),
            ("on_error", ("raise", "skip")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )


def default_factor(image_size: int) -> int:
    """1 below 128 px, 2 from there on."""
    return 1 if image_size < 128 else 2


def rded(
    dataset: ImageSource,
    teacher: nn.Module,
    config: RDEDConfig | None = None,
    *,
    candidates: Candidates | None = None,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    resume: bool = True,
    workers: int | None = None,
    backend: CandidateBackend = "pil",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> DistilledSet:
    """Distill a data set by RDED.

    Under ``torchrun`` each process takes a range of the classes and gets the whole set.

    Args:
        dataset: Real images, of any sizes; each is decoded once.
        teacher: The observer: normalised float32 images (B, C, S, S) to logits (B, num_classes).
            Run in evaluation mode; its mode is restored.
        config: Settings; default :class:`RDEDConfig`.
        candidates: The pool of each class in order, as positions in ``dataset``: a list in label
            order or a mapping by label.  All of them compete, whatever ``config.pool`` is; ties go
            to the earlier one.  CA2D passes the head of its ranking here.
        device: Where the teacher runs, and is moved to; default where its parameters are.
        out: Run folder, where each class goes when it is finished: its images, and boxes and scores
            of all its crops.  The same call after a kill goes on with the others, and inside a
            class from its checkpoint, and gives the same bytes.  None keeps nothing; several
            processes need one.
        resume: Continue what ``out`` holds; False refuses a folder that is not empty.
        workers: Threads that decode; default the cores of this process, 0: none.
        backend: What decodes: ``"pil"``: the data set; ``"dali"``: DALI, from the files of an
            :class:`pyddfast.data.ImageFolder`, with the same crops on the CPU (on a GPU, whose
            decoder rounds otherwise: unverified).
        checkpoint_seconds: At most this long, and a batch, between two checkpoints of a class.
        on_progress: Called with (classes done, classes of this process in all) after each class.

    Returns:
        A set of kind ``"patches"``, ``ipc`` images of every class in label order, the most
        confident patches in its first images' first tiles.  For every image and tile (row by row)
        ``meta`` holds ``source_indices``, ``boxes`` (top, left, height, width in source pixels),
        ``crops`` (number of the crop) and ``scores`` (−log p_y), (N, factor²) each; ``skipped``
        are positions of images that could not be decoded.

    Raises:
        ValueError: The images are floats, normalised or whitened.
        ValueError: ``ipc · factor²`` is more than a class or its pool has, a candidate is out of
            range, repeated or of another class, the factor does not fit the image, or DALI cannot
            read the data set: all before any work.  The teacher gives another number of logits, or
            NaN.  An image cannot be decoded.  A file in ``out`` is damaged or of another job.
        FileExistsError: ``out`` holds something else.
        FileNotFoundError: An image's file has gone, whatever ``config.on_error`` is.
        OSError: A file could not be written; what is finished stays.
    """
    config = RDEDConfig() if config is None else config
    check_pixels(dataset, "RDED cuts patches of pixels: dataset")
    size, factor, pools = check_rded(dataset, config, candidates=candidates)
    check_backend(dataset, backend)
    if workers is None:
        workers = default_workers()
    elif workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    parameter = next(teacher.parameters(), None)
    if device is None:
        target = torch.device("cpu") if parameter is None else parameter.device
    else:
        target = resolve_device(device)
    ranks = join_ranks()
    if ranks.world > 1 and out is None:
        raise ValueError(f"out must be given where {ranks.world} processes share the work")
    batch_size = forward_size = config.batch_size or _BATCH
    if config.batch_size is None and target.type == "cpu":
        image_bytes = 4 * dataset.normalization.channels * size**2
        batch_size = max(1, min(_BATCH, _CPU_BATCH_BYTES // image_bytes))
        forward_size = max(1, min(_BATCH, _CPU_FORWARD_BYTES // image_bytes))
    scoring = Scoring(
        count=config.ipc * factor**2,
        patch_size=size // factor,
        image_size=size,
        num_crops=config.num_crops,
        scale=config.scale,
        ratio=config.ratio,
        seed=config.seed,
        batch_size=batch_size,
        forward_size=forward_size,
        precision=config.precision,
        channels_last=config.channels_last,
        on_error=config.on_error,
    )
    resolved = {"factor": factor, "image_size": size, "batch_size": forward_size}
    settings = {**asdict(config), **resolved}
    store = None
    if out is not None:
        facts = {
            "task": "rded",
            # A class that could be finished is the same for both values of on_error.
            **{key: value for key, value in settings.items() if key != "on_error"},
            "pools": pools if candidates is not None else None,
            "source": describe_data(dataset),
            "teacher": model_digest(teacher),
            # Of a GPU: the one decoder that does not give Pillow's bytes.
            **({"decoder": "dali"} if backend == "dali" and target.type == "cuda" else {}),
        }
        store = JobFolder(out, facts, ranks, resume=resume, parts="classes")

    # Neighbours share a batch at the border of their ranges, so ranges have few borders.
    share = [len(pools) * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1)]
    mine = range(*share)
    missing = [c for c in mine if store is None or not (store.run.path / _name(c)).is_file()]
    done = len(mine) - len(missing)
    made: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}
    with frozen([teacher], target, channels_last=config.channels_last):
        for found in score_classes(
            dataset,
            teacher,
            pools,
            missing,
            scoring,
            device=target,
            workers=workers,
            backend=backend,
            stored=lambda label: None if store is None else store.read(_part_name(label)),
            store=None if store is None else lambda label, s: store.write(_part_name(label), *s),
            checkpoint_seconds=checkpoint_seconds,
        ):
            part = _part(found, dataset, size, factor, config)
            if store is None:
                made[found.label] = part
            else:
                store.write(_name(found.label), *part)
                store.run.remove(_part_name(found.label))
            done += 1
            if on_progress is not None:
                on_progress(done, len(mine))
    if store is not None:
        ranks.wait()
        for label in range(len(pools)):
            stored = store.need(_name(label))
            if stored[1]["label"] != label:
                raise ValueError(f"{store.run.path / _name(label)} holds another class")
            made[label] = stored
            if store.first:
                store.run.remove(_part_name(label))  # a kill may have come before
        ranks.wait()
    record = {
        key: _tiles([tensors[key] for _, (tensors, _) in sorted(made.items())], config.ipc)
        for key in ("source_indices", "crops", "boxes", "scores")
    }
    return DistilledSet(
        images=torch.cat([made[label][0]["images"] for label in range(len(pools))]),
        labels=torch.arange(len(pools)).repeat_interleave(config.ipc),
        num_classes=dataset.num_classes,
        normalization=dataset.normalization,
        class_names=tuple(dataset.class_names),
        factor=factor,
        kind="patches",
        meta={
            "method": "rded",
            **settings,
            "candidates": "given" if candidates is not None else "random",
            "pool_sizes": [len(pool) for pool in pools],
            **record,
            "skipped": [
                index for _, (_, state) in sorted(made.items()) for index, _ in state["skipped"]
            ],
        },
    )


def check_rded(
    dataset: ImageSource, config: RDEDConfig, *, candidates: Candidates | None = None
) -> tuple[int, int, list[list[int]]]:
    """Whether :func:`rded` can do it, without any work: for callers that train a teacher first.

    Args:
        dataset: As for :func:`rded`.
        config: As for :func:`rded`.
        candidates: As for :func:`rded`.

    Returns:
        Image size, factor, and the ordered pool of each class.

    Raises:
        ValueError: As :func:`rded`, but for the teacher.
    """
    size = config.image_size or common_size(dataset) or 224
    factor = default_factor(size) if config.factor is None else config.factor
    if factor > size:
        raise ValueError(f"factor must be at most the image size {size}, got {factor}")
    pools = candidate_pools(dataset, candidates, pool=config.pool, seed=config.seed)
    needed = config.ipc * factor**2
    why = f"ipc = {config.ipc} with factor = {factor} needs {needed} images a class"
    if config.semantics == "official" and candidates is None and config.pool > needed:
        needed = config.pool
        why = f"semantics='official' needs pool = {needed} images a class"
    source = "candidates"
    if candidates is None:
        source = f"images within the pool of {config.pool}"
    check_enough(pools, needed, dataset, why=why, source=source)
    return size, factor, pools


def _name(label: int) -> str:
    return f"classes/{label:06d}.safetensors"


def _part_name(label: int) -> str:
    return f"classes/{label:06d}.part.safetensors"


def _part(
    found: ClassPatches, dataset: ImageSource, size: int, factor: int, config: RDEDConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a finished class: its images, its picks, and all its crops."""
    images = mosaic(
        found.patches,
        size=size,
        factor=factor,
        mean=dataset.normalization.mean,
        std=dataset.normalization.std,
        quantize="round" if config.semantics == "paper" else "truncate",
    )
    picked = found.picked
    crops = found.scores[picked].argmin(dim=1)
    return {
        "images": images.cpu(),
        "source_indices": found.pool[picked],
        "crops": crops,
        "boxes": found.boxes[picked, crops],
        "scores": found.scores[picked, crops],
        "pool": found.pool,
        "pool_boxes": found.boxes,
        "pool_scores": found.scores,
    }, {"label": found.label, "skipped": [list(entry) for entry in found.skipped]}


def _tiles(ranked: list[Tensor], ipc: int) -> list[Any]:
    """Values by rank of every class as they lie in its images: t, ipc + t, 2 ipc + t, ..."""
    rows = torch.stack(ranked)
    of_image = rows.view(len(ranked), -1, ipc, *rows.shape[2:]).transpose(1, 2).flatten(0, 1)
    listed: list[Any] = of_image.tolist()
    return listed
