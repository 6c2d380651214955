"""D4M: class prototypes in the latent space of a diffusion model, denoised with the class's prompt.

"D⁴M: Dataset Distillation via Disentangled Diffusion Model" (Su et al., CVPR 2024); official code
suduo94/D4M, ``distillation/``.  The VAE's latents of a class's real images are clustered by
mini-batch k-means; noise is added to each centre and taken away again by image-to-image denoising
with the class's prompt; the result is decoded and resized.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pyddfast.data import DistilledSet, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import tensors_digest
from pyddfast.methods.chunks import Chunk, plan_chunks
from pyddfast.methods.generation import Generation, views
from pyddfast.methods.latents import (
    DTYPES,
    LatentCoder,
    Precision,
    check_steps,
    fixed_precision,
    keyed_normal,
    naming_memory,
    open_pipeline,
    pipeline_digest,
    resize_pixels,
    stretched_view,
)
from pyddfast.methods.prototypes import class_prototypes, read_prototypes, write_prototypes
from pyddfast.methods.recover import Job
from pyddfast.methods.synthesis import check_counts, check_pixels, common_size
from pyddfast.random import Purpose, generator, permutation
from pyddfast.train.distributed import resolve_device

__all__ = ["D4MConfig", "check_d4m", "d4m"]

# WordNet identifiers, the class names of ImageNet's folders.
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class D4MConfig:
    """Settings of D4M; the defaults are those of the official scripts for ImageNet.

    Attributes:
        ipc: Images of each class.
        clusters: Prototypes of each class; ipc is a multiple of it, and each prototype is denoised
            with ipc / clusters noises.  None: ipc.
        km_expand: Latents in a partial fit of the k-means, in multiples of the prototypes.
        strength: Share of the noise schedule that is added to a prototype and taken away again.
        guidance_scale: Weight of the prompt against the negative prompt; 1: no guidance.
        negative_prompt: What images are kept away from.
        steps: Of the whole noise schedule; strength of them are run.
        model_size: Side in pixels at which images are encoded and decoded.  None: the model's.
        image_size: Side of the set's images.  None: that of the data set, or 224 for images of
            several sizes.
        semantics: "paper" fits all latents; "official" leaves the last incomplete batch of latents
            out, but of the class whose image happens to come last.
        seed: Of every draw.
        batch_size: Images that are encoded or denoised together; no effect but rounding.  A killed
            run keeps whole batches: with a large model on a CPU take 1.
        precision: Arithmetic of the model: fp32, bf16 or fp16 (official).  None: bf16 on a GPU,
            fp32 elsewhere.
    """

    ipc: int = 10
    clusters: int | None = None
    km_expand: int = 1
    strength: float = 0.7
    guidance_scale: float = 8.0
    negative_prompt: str = "cartoon, anime, painting"
    steps: int = 50
    model_size: int | None = None
    image_size: int | None = None
    semantics: Literal["paper", "official"] = "paper"
    seed: int = 0
    batch_size: int = 10
    precision: Precision | None = None

    def __post_init__(self) -> None:
        check_counts(
            self, "ipc", "clusters", "km_expand", "steps", "model_size", "image_size", "batch_size"
        )
        if self.clusters is not None and self.ipc % self.clusters:
            raise ValueError(
                f"ipc must be a multiple of clusters, got {self.ipc} and {self.clusters}"
            )
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie in (0, 1], got {self.strength}")
        if int(self.strength * self.steps) < 1:
            raise ValueError(
                f"strength {self.strength} of steps {self.steps} is less than one step"
            )
        if not 1 <= self.guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale must be at least 1, got {self.guidance_scale}")
        if self.semantics not in ("paper", "official"):
            raise ValueError(f"semantics must be paper or official, got {self.semantics!r}")
        if self.precision not in (None, *DTYPES):
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {self.precision}")
        generator(self.seed, Purpose.DENOISE)  # raises where it is no seed


def d4m(
    data: ImageSource,
    model: str | Path,
    config: D4MConfig | None = None,
    *,
    prompts: Sequence[str] | None = None,
    prototypes: str | Path | Mapping[str, Tensor] | None = None,
    job: Job | None = None,
) -> DistilledSet:
    """Distill a data set by D4M.

    Draws are keyed by image, class and number in the class, so that batch size and number of
    processes change results by rounding alone.  Under ``torchrun`` the processes divide the classes
    for the prototypes, then the images.

    In a run folder each class's prototypes and each batch of images is kept when it is finished,
    encoded latents of an unfinished class at least every ``job.checkpoint_seconds``; the prototypes
    of all classes are written as D4M's JSON file ``NAME-ipcK-kmexpandE.json``.

    Args:
        data: Real images, of any sizes; bytes.
        model: Local folder of a Stable Diffusion model in the diffusers layout.
        config: Settings; default :class:`D4MConfig`.
        prompts: One a class, in label order; None: the class names.
        prototypes: Of an earlier run: D4M's JSON file, or (K, C, H, W) by prompt; none are
            clustered then.
        job: Device, run folder, progress.

    Returns:
        A set of kind ``"synthetic"``, uint8, class by class; of ``ipc / K`` rounds, each with one
        image of every prototype.

    Raises:
        FileNotFoundError: The model's folder or the file of prototypes is not there.
        ValueError: The model is of another kind; prompts are missing, empty, equal or WordNet
            identifiers; a class has fewer images than prototypes; prototypes do not fit; images
            are not bytes or have channels that the model does not take; a file in the run folder
            is damaged or of another job.
        TypeError: ``prompts`` is one string, or prototypes are no tensors.
        FloatingPointError: Latents or images are not finite.
        MemoryError: A batch does not fit; what is finished stays.
        FileExistsError: The run folder holds something else.
        ModuleNotFoundError: diffusers or scikit-learn, of the ``generative`` extra, is missing.
    """
    config, job = config or D4MConfig(), job or Job()
    words = check_d4m(data, config, prompts=prompts)
    given = _given_prototypes(prototypes, words, config)
    target = resolve_device(job.device)
    precision = fixed_precision(config.precision, target)
    pipe = open_pipeline(
        model, "StableDiffusionImg2ImgPipeline", dtype=DTYPES[precision], device=target
    )
    coder = LatentCoder(pipe, data.normalization.channels)
    config = replace(
        config,
        clusters=config.clusters or (config.ipc if given is None else len(given[0])),
        model_size=config.model_size or pipe.unet.config.sample_size * coder.factor,
        image_size=config.image_size or common_size(data) or 224,
        precision=precision,
    )
    check_steps(config.steps, pipe.scheduler)
    _check_model(data, config, coder, given, pipe.unet.config.in_channels)
    settings = asdict(config)
    facts = {
        "task": "distill d4m",
        # Batches that are finished are files, so their size is part of the job.
        **settings,
        "prompts": words,
        "prototypes": None
        if given is None
        else tensors_digest(dict(zip(words, given, strict=True))),
        "model": pipeline_digest(pipe),
        "dataset": describe_data(data),
        "device": target.type,
    }
    chunks = plan_chunks(range(data.num_classes), config.ipc, config.batch_size, "class")
    with Generation(facts, job, beside="prototypes", parts=data.num_classes, chunks=chunks) as work:
        if given is None:
            clustering = _Clustering(data, coder, config, work)
            work.expect(clustering.count + _steps(config) * work.images)
            given = clustering.run()
            _write_json(work, data, words, given, config)
        else:
            work.expect(_steps(config) * work.images)
        images = work.generate(_Denoising(pipe, coder, words, given, config), _steps(config))
    return DistilledSet(
        images=images,
        labels=torch.arange(data.num_classes).repeat_interleave(config.ipc),
        num_classes=data.num_classes,
        normalization=data.normalization,
        class_names=tuple(data.class_names),
        kind="synthetic",
        meta={"method": "d4m", **settings, "prompts": words},
    )


def check_d4m(
    data: ImageSource, config: D4MConfig, *, prompts: Sequence[str] | None = None
) -> list[str]:
    """Whether :func:`d4m` can do it, before a model is loaded.

    Args:
        data: As for :func:`d4m`.
        config: As for :func:`d4m`.
        prompts: As for :func:`d4m`.

    Returns:
        The prompt of each class.

    Raises:
        TypeError: ``prompts`` is one string.
        ValueError: As :func:`d4m`, of prompts and images.
    """
    check_pixels(data, "D4M encodes pixels: data")
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list, one a class, got the string {prompts!r}")
    words = list(data.class_names if prompts is None else prompts)
    if len(words) != data.num_classes:
        raise ValueError(
            f"prompts must be one a class: {data.num_classes} are needed, got {len(words)}"
        )
    if prompts is None and all(_SYNSET.fullmatch(word) for word in words):
        raise ValueError(
            f"prompts are missing: the class names are identifiers such as {words[0]}, which no "
            "text encoder knows"
        )
    seen: dict[str, int] = {}
    for label, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"the prompt of class {label} is missing, got {word!r}")
        if _SYNSET.fullmatch(word):
            raise ValueError(
                f"the prompt of class {label} is the identifier {word}, which no text encoder knows"
            )
        if word in seen:
            raise ValueError(f"classes {seen[word]} and {label} have the same prompt {word!r}")
        seen[word] = label
    return words


def _given_prototypes(
    given: str | Path | Mapping[str, Tensor] | None, words: Sequence[str], config: D4MConfig
) -> list[Tensor] | None:
    """Prototypes of an earlier run in label order, checked against the prompts."""
    if given is None:
        return None
    found = given if isinstance(given, Mapping) else read_prototypes(given)
    missing = [word for word in words if word not in found]
    if missing:
        raise ValueError(f"prototypes has none of {missing[0]!r} ({len(missing)} such prompts)")
    for word in words:
        if not isinstance(found[word], Tensor):
            raise TypeError(
                f"prototypes of {word!r} must be a tensor, got {type(found[word]).__name__}"
            )
        if not bool(found[word].isfinite().all()):
            raise ValueError(f"prototypes of {word!r} must be finite")
    centres = [found[word].float() for word in words]
    shapes = {tuple(part.shape) for part in centres}
    if len(shapes) > 1 or centres[0].ndim != 4:
        raise ValueError(f"prototypes must have one shape (K, C, H, W), got {sorted(shapes)[:2]}")
    count = len(centres[0])
    if config.clusters not in (None, count) or config.ipc % count:
        raise ValueError(
            f"prototypes has {count} of each class: clusters must be that and ipc a multiple, got "
            f"clusters = {config.clusters} and ipc = {config.ipc}"
        )
    return centres


def _check_model(
    data: ImageSource,
    config: D4MConfig,
    coder: LatentCoder,
    given: Sequence[Tensor] | None,
    latents: int,
) -> None:
    """What model, data and settings have to agree in, before any work."""
    assert config.clusters is not None
    assert config.model_size is not None
    if coder.latent_channels != 4 or latents != 4:
        # The pipeline of diffusers tells latents from images by it; an inpainting UNet takes 9.
        raise ValueError(
            "model must have latents of 4 channels: its VAE makes "
            f"{coder.latent_channels}, its UNet takes {latents}"
        )
    if config.model_size % coder.factor:
        raise ValueError(
            f"model_size must be a multiple of {coder.factor} (the VAE's), got {config.model_size}"
        )
    side = config.model_size // coder.factor
    if given is not None:
        if tuple(given[0].shape[1:]) != (4, side, side):
            raise ValueError(
                f"prototypes must be (K, 4, {side}, {side}) at model_size {config.model_size}, got "
                f"{tuple(given[0].shape)}"
            )
        return
    counts = torch.bincount(data.labels, minlength=data.num_classes)
    needed, why = config.clusters, f"clusters = {config.clusters}"
    if config.semantics == "official":
        needed *= config.km_expand
        why += f" with km_expand = {config.km_expand} and semantics='official'"
    if int(counts.min()) < needed:
        label = int(counts.argmin())
        raise ValueError(
            f"{why} needs {needed} images of every class, class {label} "
            f"({data.class_names[label]}) has {int(counts[label])}"
        )


class _Clustering:
    """The first stage: latents and prototypes of the classes of this process."""

    def __init__(
        self, data: ImageSource, coder: LatentCoder, config: D4MConfig, work: Generation
    ) -> None:
        self._data, self._coder, self._config, self._work = data, coder, config, work
        # The official loader shuffles once over all classes: each takes its part of that order.
        order = permutation(config.seed, Purpose.PROTOTYPE, len(data))
        labels = data.labels.cpu()[order]
        self._last = int(labels[-1])
        self._members = [order[labels == label].tolist() for label in range(data.num_classes)]
        self.count = sum(len(self._members[label]) for label in work.parts)

    def run(self) -> list[Tensor]:
        """The prototypes of all classes."""
        store, made = self._work.store, {}
        for label in self._work.parts:
            found = None if store is None else store.read(_file(label))
            if found is None:
                centres = self._centres(label)
                if store is None:
                    made[label] = centres
                else:
                    store.write(_file(label), {"prototypes": centres}, {})
            else:
                self._work.advance(len(self._members[label]))
            if store is not None:
                store.run.remove(_part(label))  # a kill may have come before
        if store is not None:
            self._work.ranks.wait()
            for label in range(len(self._members)):
                made[label] = store.need(_file(label))[0]["prototypes"]
        return [made[label] for label in range(len(self._members))]

    def _centres(self, label: int) -> Tensor:
        config = self._config
        assert config.clusters is not None
        batch = config.km_expand * config.clusters
        # The official code looks after its loop, when only the last image's class is at hand.
        looked_at = label == self._last and len(self._members[label]) % batch >= config.clusters
        return class_prototypes(
            self._latents(label),
            config.clusters,
            batch,
            seed=config.seed,
            fit_rest=config.semantics == "paper" or looked_at,
        )

    def _latents(self, label: int) -> Tensor:
        """All latents of a class in its order, from its checkpoint on."""
        config, coder, work = self._config, self._coder, self._work
        assert config.model_size is not None
        members, side = self._members[label], config.model_size // coder.factor
        stored = None if work.store is None else work.store.read(_part(label))
        parts = [] if stored is None else [stored[0]["latents"]]
        done = sum(len(part) for part in parts)
        work.advance(done)
        images = views(self._data, members[done:], stretched_view, config.model_size)
        while batch := list(islice(images, config.batch_size)):
            keys = [(index,) for index in members[done : done + len(batch)]]
            shape = (coder.latent_channels, side, side)
            noise = keyed_normal(config.seed, Purpose.LATENT, keys, shape)
            with naming_memory("encoding", f"lower batch_size ({config.batch_size})"):
                parts.append(coder.encode(torch.stack(batch), noise).cpu())
            done += len(batch)
            work.advance(len(batch))
            if work.store is not None and work.due():
                work.store.write(_part(label), {"latents": torch.cat(parts)}, {})
        return torch.cat(parts)


class _Denoising:
    """The second stage: noise is added to prototypes and taken away by the class's prompt."""

    def __init__(
        self,
        pipe: Any,
        coder: LatentCoder,
        words: Sequence[str],
        centres: Sequence[Tensor],
        config: D4MConfig,
    ) -> None:
        self._pipe, self._coder, self._words = pipe, coder, words
        self._centres, self._config = centres, config

    def __call__(self, chunk: Chunk) -> Tensor:
        """Images of a batch, uint8 (B, C, S, S)."""
        config, pairs = self._config, list(zip(chunk.labels, chunk.slots, strict=True))
        assert config.image_size is not None
        # Rounds of all prototypes, as the official code repeats them.
        start = torch.stack(
            [self._centres[label][slot % len(self._centres[label])] for label, slot in pairs]
        )
        with naming_memory("denoising", f"lower batch_size ({config.batch_size})"):
            latents = self._pipe(
                prompt=[self._words[label] for label in chunk.labels],
                negative_prompt=[config.negative_prompt] * len(pairs),
                image=start,
                strength=config.strength,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance_scale,
                generator=[generator(config.seed, Purpose.DENOISE, *pair) for pair in pairs],
                output_type="latent",
            ).images
            return resize_pixels(self._coder.decode(latents), config.image_size)


def _write_json(
    work: Generation,
    data: ImageSource,
    words: Sequence[str],
    centres: Sequence[Tensor],
    config: D4MConfig,
) -> None:
    """The official file, once."""
    if work.store is None or not work.store.first:
        return
    name = re.sub(r"[^\w.-]", "_", getattr(data, "name", None) or "data")
    path = work.store.run.path / f"{name}-ipc{config.clusters}-kmexpand{config.km_expand}.json"
    if not path.exists():
        write_prototypes(path, words, centres)


def _steps(config: D4MConfig) -> int:
    """Denoising steps of an image."""
    return int(config.strength * config.steps)


def _file(label: int) -> str:
    return f"prototypes/{label:06d}.safetensors"


def _part(label: int) -> str:
    return f"prototypes/{label:06d}.part.safetensors"
