"""Minimax Diffusion: a class-conditional DiT, fine-tuned to represent a class with variety.

"Efficient Dataset Distillation via Minimax Diffusion" (Gu et al., CVPR 2024); official code
vimar-gu/MinimaxDiffusion, ``train_dit.py`` and ``sample.py``.  The loss is
‖ε_θ − ε‖² + λ_r L_r + λ_d L_d: predicted latents are pulled to the least similar of the last real
latents of their class and pushed away from the most similar of the last predicted ones.  Images are
sampled from the moving average of the fine-tuned weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyddfast._extras import require
from pyddfast.data import DistilledSet, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.methods.chunks import Chunk, plan_chunks
from pyddfast.methods.generation import Generation
from pyddfast.methods.latents import (
    LatentCoder,
    check_steps,
    fixed_precision,
    naming_memory,
    open_pipeline,
    pipeline_digest,
    resize_pixels,
)
from pyddfast.methods.minimax_loss import Schedule, noise_schedule
from pyddfast.methods.minimax_tuning import PhaseTuning, Tuning, difffit
from pyddfast.methods.recover import Job
from pyddfast.methods.small_scale import optimise
from pyddfast.methods.synthesis import check_counts, check_pixels
from pyddfast.random import Purpose, generator
from pyddfast.train.distributed import Ranks, resolve_device

__all__ = ["MinimaxConfig", "check_minimax", "minimax"]

# The official code guides these of the four latent channels ("for exact reproducibility").
_OFFICIAL_GUIDED = 3


@dataclass(frozen=True)
class MinimaxConfig:
    """Settings of Minimax Diffusion; the defaults are the published ones.

    Attributes:
        ipc: Images of each class.
        epochs: Of the fine-tuning, over the images of a phase.
        batch_size: Images of a step of the fine-tuning.
        lr: Learning rate of AdamW, without weight decay.
        lambda_r: Weight of representativeness.
        lambda_d: Weight of diversity.
        memory_size: Latents of each class in each of the two memory banks.
        ema_decay: Of the average of the weights that images are sampled from.
        phase_classes: Classes that are fine-tuned together, each phase from the given weights.
        model_classes: The model's class of each label, in label order; none: the labels
            themselves.
        steps: Of sampling.
        guidance_scale: Of sampling; 1: no guidance.
        sample_batch: Images that are sampled together; no effect but rounding.  A killed run keeps
            whole batches: with a large model on a CPU take 1.
        image_size: Side of the set's images.  None: the model's.
        semantics: "paper" follows the formulas; "official" takes one least and one greatest cosine
            for all samples of a class in a batch, adds the variational bound where the model has a
            learned variance, and guides three of the four latent channels.
        seed: Of every draw.
        precision: Arithmetic of the DiT: fp32, or bf16 by autocast.  None: bf16 on a GPU, fp32
            elsewhere.
    """

    ipc: int = 10
    epochs: int = 8
    batch_size: int = 8
    lr: float = 1e-3
    lambda_r: float = 0.002
    lambda_d: float = 0.008
    memory_size: int = 64
    ema_decay: float = 0.9999
    phase_classes: int = 10
    model_classes: tuple[int, ...] = ()
    steps: int = 50
    guidance_scale: float = 4.0
    sample_batch: int = 10
    image_size: int | None = None
    semantics: Literal["paper", "official"] = "paper"
    seed: int = 0
    precision: Literal["fp32", "bf16"] | None = None

    def __post_init__(self) -> None:
        check_counts(
            self, "ipc", "epochs", "batch_size", "memory_size", "phase_classes", "steps",
            "sample_batch", "image_size",
        )  # fmt: skip
        for number in self.model_classes:
            if type(number) is not int:
                raise TypeError(f"model_classes must be ints, got {number!r}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("lambda_r", "lambda_d"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if not 1 <= self.guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be at least 1, got {self.guidance_scale}")
        if self.semantics not in ("paper", "official"):
            raise ValueError(f"semantics must be paper or official, got {self.semantics!r}")
        if self.precision not in (None, "fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {self.precision!r}")
        generator(self.seed, Purpose.SAMPLE)  # raises where it is no seed


def minimax(
    data: ImageSource,
    model: str | Path,
    config: MinimaxConfig | None = None,
    *,
    job: Job | None = None,
) -> DistilledSet:
    """Distill a data set by Minimax Diffusion.

    Draws are keyed by image and epoch, by class and number in the class when sampling.  Under
    ``torchrun`` the processes divide the phases of the fine-tuning, then the images.

    In a run folder ``phases/NUMBER`` holds a phase's checkpoint and metrics while it is fine-tuned
    and ``phases/NUMBER.safetensors`` the averaged weights when it is done; batches of images are
    kept when they are finished.

    Args:
        data: Real images, of any sizes; bytes.
        model: Local folder of a DiT in the diffusers layout.
        config: Settings; default :class:`MinimaxConfig`.
        job: Device, run folder, progress.

    Returns:
        A set of kind ``"synthetic"``, uint8, class by class.

    Raises:
        FileNotFoundError: The model's folder is not there.
        ValueError: The model is of another kind or has no such class; a phase has fewer images
            than a batch; images are not bytes or have channels that the model does not take; a file
            in the run folder is damaged or of another job.
        FloatingPointError: The loss is no longer finite, or latents or images are not.
        MemoryError: A batch does not fit; what is finished stays.
        FileExistsError: The run folder holds something else.
        ModuleNotFoundError: diffusers, of the ``generative`` extra, is missing.
    """
    config, job = config or MinimaxConfig(), job or Job()
    phases = check_minimax(data, config)
    target = resolve_device(job.device)
    precision = fixed_precision(config.precision, target)
    assert precision != "fp16"
    # Weights stay fp32 for the optimiser; bf16 is autocast's.
    pipe = open_pipeline(model, "DiTPipeline", dtype=torch.float32, device=target)
    coder = LatentCoder(pipe, data.normalization.channels)
    size = pipe.transformer.config.sample_size * coder.factor
    config = replace(
        config,
        model_classes=config.model_classes or tuple(range(data.num_classes)),
        image_size=config.image_size or size,
        precision=precision,
    )
    check_steps(config.steps, pipe.scheduler)
    _check_model(pipe, coder, config)
    schedule = noise_schedule(pipe.scheduler)
    settings = asdict(config)
    facts = {
        "task": "distill minimax",
        **settings,
        "model": pipeline_digest(pipe),
        "dataset": describe_data(data),
        "device": target.type,
    }
    trained = difffit(pipe.transformer)
    chunks = [
        chunk
        for phase in phases
        for chunk in plan_chunks(phase, config.ipc, config.sample_batch, "class")
    ]
    chunks = [replace(chunk, index=index) for index, chunk in enumerate(chunks)]
    with Generation(facts, job, beside="phases", parts=len(phases), chunks=chunks) as work:
        tuned = _tune(data, phases, pipe, trained, coder, schedule, config, work, job)
        images = work.generate(_Sampling(pipe, trained, tuned, coder, config), config.steps)
    return DistilledSet(
        images=images,
        labels=torch.arange(data.num_classes).repeat_interleave(config.ipc),
        num_classes=data.num_classes,
        normalization=data.normalization,
        class_names=tuple(data.class_names),
        kind="synthetic",
        meta={"method": "minimax", **settings},
    )


def check_minimax(data: ImageSource, config: MinimaxConfig) -> list[range]:
    """Whether :func:`minimax` can do it, before a model is loaded.

    Args:
        data: As for :func:`minimax`.
        config: As for :func:`minimax`.

    Returns:
        The labels of each phase.

    Raises:
        ValueError: As :func:`minimax`, of images and classes.
    """
    check_pixels(data, "Minimax Diffusion encodes pixels: data")
    classes = data.num_classes
    if config.model_classes and len(config.model_classes) != classes:
        raise ValueError(
            f"model_classes must be one for each of {classes} classes, got "
            f"{len(config.model_classes)}"
        )
    counts = torch.bincount(data.labels, minlength=classes)
    if int(counts.min()) == 0:
        raise ValueError(f"the data has no image of class {int(counts.argmin())}")
    starts = range(0, classes, config.phase_classes)
    phases = [range(start, min(classes, start + config.phase_classes)) for start in starts]
    for phase in phases:
        count = int(counts[phase.start : phase.stop].sum())
        if count < config.batch_size:
            raise ValueError(
                f"batch_size = {config.batch_size} is more than the {count} images of classes "
                f"{phase.start} to {phase.stop - 1}: lower it or raise phase_classes"
            )
    return phases


def _check_model(pipe: Any, coder: LatentCoder, config: MinimaxConfig) -> None:
    """What the model has to have."""
    dit = pipe.transformer.config
    known = dit.num_embeds_ada_norm
    wrong = [name for name in config.model_classes if not 0 <= name < known]
    if wrong:
        raise ValueError(f"model_classes has {wrong[0]}, the model has classes 0 to {known - 1}")
    if dit.in_channels != coder.latent_channels:
        raise ValueError(
            f"the model's DiT takes latents of {dit.in_channels} channels, its VAE makes "
            f"{coder.latent_channels}"
        )


def _tune(
    data: ImageSource,
    phases: Sequence[range],
    pipe: Any,
    trained: dict[str, nn.Parameter],
    coder: LatentCoder,
    schedule: Schedule,
    config: MinimaxConfig,
    work: Generation,
    job: Job,
) -> list[dict[str, Tensor]]:
    """The averaged weights of every phase; this process fine-tunes its own."""
    settings = Tuning(
        config.epochs, config.batch_size, config.lr, config.lambda_r, config.lambda_d,
        config.memory_size, config.ema_decay, config.semantics, config.seed,
        size=pipe.transformer.config.sample_size * coder.factor, bf16=config.precision == "bf16",
    )  # fmt: skip
    initial = {name: parameter.detach().clone() for name, parameter in trained.items()}
    counts = torch.bincount(data.labels, minlength=data.num_classes)
    lengths = [
        config.epochs * (int(counts[p.start : p.stop].sum()) // config.batch_size) for p in phases
    ]
    sampled = config.steps * work.images
    # In images through the network.
    work.expect(config.batch_size * sum(lengths[number] for number in work.parts) + sampled)
    made: dict[int, dict[str, Tensor]] = {}
    key = None if work.store is None else work.store.key
    for number in work.parts:
        if work.store is not None and work.store.read(_file(number)) is not None:
            work.advance(config.batch_size * lengths[number])
            continue
        phase = PhaseTuning(
            data, phases[number], pipe.transformer, trained, initial, coder, schedule,
            config.model_classes, settings, number,
        )  # fmt: skip
        out = None if work.store is None else work.store.run.path / _folder(number)
        optimise(
            phase, phase.steps, facts={"task": "minimax phase", "phase": number, "job": key},
            job=replace(job, out=out, resume=True, on_progress=_told(work, config.batch_size)),
            ranks=Ranks(), advice=f"lower lr ({config.lr:g})",
        )  # fmt: skip
        if work.store is None:
            made[number] = phase.ema
        else:
            work.store.write(_file(number), phase.ema, {})
    if work.store is not None:
        work.ranks.wait()
        for number in range(len(phases)):
            made[number] = work.store.need(_file(number))[0]
    return [made[number] for number in range(len(phases))]


def _told(work: Generation, each: int) -> Any:
    """Progress of a phase as that of the job."""
    last = 0

    def tell(done: int, _: int) -> None:
        nonlocal last
        work.advance(each * (done - last))
        last = done

    return tell


class _Sampling:
    """The second stage: images of a batch by ancestral sampling with guidance."""

    def __init__(
        self,
        pipe: Any,
        trained: dict[str, nn.Parameter],
        tuned: Sequence[dict[str, Tensor]],
        coder: LatentCoder,
        config: MinimaxConfig,
    ) -> None:
        self._pipe, self._trained, self._tuned = pipe, trained, tuned
        self._coder, self._config, self._loaded = coder, config, -1
        diffusers = require("diffusers", "generative")
        dit = pipe.transformer.config
        learned = (dit.out_channels or dit.in_channels) == 2 * dit.in_channels
        self._scheduler: Any = diffusers.DDPMScheduler.from_config(
            {
                key: pipe.scheduler.config[key]
                for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
            },
            trained_betas=pipe.scheduler.config.get("trained_betas"),
            variance_type="learned_range" if learned else "fixed_large",
            clip_sample=False,
            # First and last time included, as the official respacing.
            timestep_spacing="linspace",
        )

    @torch.no_grad()
    def __call__(self, chunk: Chunk) -> Tensor:
        """Images of a batch, uint8 (B, C, S, S)."""
        config, model, device = self._config, self._pipe.transformer, self._pipe.device
        assert config.image_size is not None
        phase = chunk.labels[0] // config.phase_classes
        if self._loaded != phase:
            for name, parameter in self._trained.items():
                parameter.copy_(self._tuned[phase][name])
            self._loaded = phase
        draws = [
            generator(config.seed, Purpose.SAMPLE, label, slot)
            for label, slot in zip(chunk.labels, chunk.slots, strict=True)
        ]
        side, channels = model.config.sample_size, model.config.in_channels
        x = torch.stack([torch.randn(channels, side, side, generator=g) for g in draws]).to(device)
        classes = [config.model_classes[label] for label in chunk.labels]
        nothing = [model.config.num_embeds_ada_norm] * len(classes)
        guided = config.guidance_scale > 1
        given = torch.tensor(classes + nothing if guided else classes, device=device)
        self._scheduler.set_timesteps(config.steps)
        with naming_memory("sampling", f"lower sample_batch ({config.sample_batch})"):
            for time in self._scheduler.timesteps:
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=config.precision == "bf16"
                ):
                    out = model(
                        torch.cat([x, x]) if guided else x,
                        timestep=time.to(device).expand(len(given)),
                        class_labels=given,
                    ).sample
                out = out.float()
                if guided:
                    out = self._guide(*out.chunk(2), channels=channels)
                x = self._scheduler.step(out, time, x, generator=draws).prev_sample
            return resize_pixels(self._coder.decode(x), config.image_size)

    def _guide(self, towards: Tensor, away: Tensor, *, channels: int) -> Tensor:
        """ε between the class's and that of no class; a learned variance stays the class's."""
        count = _OFFICIAL_GUIDED if self._config.semantics == "official" else channels
        away = away[:, :count]
        eps = away + self._config.guidance_scale * (towards[:, :count] - away)
        return torch.cat([eps, towards[:, count:]], 1)


def _folder(number: int) -> str:
    return f"phases/{number:06d}"


def _file(number: int) -> str:
    return f"phases/{number:06d}.safetensors"
