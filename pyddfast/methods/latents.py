"""Local diffusion models in the diffusers layout: loading them, images to latents and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data.stored import read_json
from pyddfast.random import generator
from pyddfast.train.models import model_digest

__all__ = [
    "DTYPES",
    "LatentCoder",
    "Precision",
    "centre_view",
    "check_steps",
    "fixed_precision",
    "keyed_normal",
    "mirrored",
    "naming_memory",
    "open_pipeline",
    "pipeline_digest",
    "resize_pixels",
    "stretched_view",
]

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# `_class_name` of model_index.json: what each of our methods can run.  The three pipelines of
# Stable Diffusion have the same parts.
_KINDS = {
    "StableDiffusionImg2ImgPipeline": (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    ),
    "DiTPipeline": ("DiTPipeline",),
}
# Their networks, as library and class.
_PARTS = {
    "StableDiffusionImg2ImgPipeline": {
        "vae": ("diffusers", "AutoencoderKL"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "text_encoder": ("transformers", "CLIPTextModel"),
    },
    "DiTPipeline": {
        "vae": ("diffusers", "AutoencoderKL"),
        "transformer": ("diffusers", "DiTTransformer2DModel"),
    },
}


def open_pipeline(
    folder: str | Path,
    kind: Literal["StableDiffusionImg2ImgPipeline", "DiTPipeline"],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Load a local model folder by diffusers' own code, from safetensors files alone.

    Args:
        folder: In the diffusers layout: ``model_index.json`` and a folder a part.
        kind: Pipeline of diffusers to run it with.
        dtype: Of the weights.
        device: Where they go.

    Returns:
        The pipeline, every part in evaluation mode and without gradients.  A safety checker is not
        loaded: it turns images black.

    Raises:
        FileNotFoundError: The folder or its ``model_index.json`` is not there.
        ValueError: It holds another kind of model, or cannot be loaded.
        ModuleNotFoundError: diffusers, of the ``generative`` extra, is not installed.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"model: {path} is no folder; give a local one in the diffusers layout"
        )
    index = path / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"model: {index} is missing; the diffusers layout has it")
    facts = read_json(index)
    found = facts.get("_class_name") if isinstance(facts, dict) else None
    if found not in _KINDS[kind]:
        raise ValueError(f"model: {path} holds a {found}, this needs a {_KINDS[kind][0]}")
    diffusers = require("diffusers", "generative")
    options: dict[str, Any] = {}
    if kind != "DiTPipeline":
        options = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
        options["requires_safety_checker"] = False
    try:
        with _without_bars():
            if kind != "DiTPipeline":
                _check_tokenizer(path / "tokenizer")
            for name, (library, network) in _PARTS[kind].items():
                options[name] = _load_network(path / name, library, network, dtype)
            pipe = getattr(diffusers, kind).from_pretrained(
                str(path), dtype=dtype, local_files_only=True, use_safetensors=True, **options
            )
        _check_together(pipe)
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, KeyError) as error:
        # Damaged or missing parts: what the loaders raise differs from part to part.
        raise ValueError(f"model: {path} cannot be loaded: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    for part in _networks(pipe):
        part.eval().requires_grad_(False)
    return pipe.to(device)


def _load_network(folder: Path, library: str, kind: str, dtype: torch.dtype) -> Any:
    """A part of the model, all of its weights from the file: loaders draw those that it lacks."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder / 'config.json'} is missing")
    network, told = getattr(require(library, "generative"), kind).from_pretrained(
        str(folder),
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    missing = sorted(told["missing_keys"])
    if missing:
        raise ValueError(f"{folder} has no weights for {missing[0]} ({len(missing)} such)")
    return network


def _check_tokenizer(folder: Path) -> None:
    """Its words: without them the loader makes a tokenizer to which all prompts are alike."""
    names = ("tokenizer.json",), ("vocab.json", "merges.txt")
    if not any(all((folder / name).is_file() for name in group) for group in names):
        raise ValueError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt")


def _check_together(pipe: Any) -> None:
    """What loads part by part but does not run together."""
    if not hasattr(pipe.scheduler, "betas"):
        raise ValueError(
            f"its scheduler must have a noise schedule, {type(pipe.scheduler).__name__} has none"
        )
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return
    encoder = pipe.text_encoder.config
    if tokenizer.model_max_length > encoder.max_position_embeddings:
        raise ValueError(
            f"its tokenizer's model_max_length is {tokenizer.model_max_length}, the text encoder "
            f"takes {encoder.max_position_embeddings} tokens"
        )
    if len(tokenizer) > encoder.vocab_size:
        raise ValueError(
            f"its tokenizer has {len(tokenizer)} tokens, the text encoder knows "
            f"{encoder.vocab_size}"
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Loading shows no bars of its own: a job has one."""
    names = ("diffusers.utils.logging", "transformers.utils.logging")
    logs = [require(name, "generative") for name in names]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def pipeline_digest(pipe: Any) -> str:
    """SHA-256 of the weights, the settings of scheduler and VAE, and the tokenizer's words."""
    digest = hashlib.sha256("".join(model_digest(part) for part in _networks(pipe)).encode())
    # The factor that scales latents is no weight; names with _ are of the folder and the library.
    coder = {key: value for key, value in pipe.vae.config.items() if not key.startswith("_")}
    digest.update(json.dumps(coder, sort_keys=True, default=str).encode())
    digest.update(json.dumps(dict(pipe.scheduler.config), sort_keys=True, default=str).encode())
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is not None:
        digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()


def _networks(pipe: Any) -> list[torch.nn.Module]:
    parts = sorted(pipe.components.items())
    return [part for _, part in parts if isinstance(part, torch.nn.Module)]


def fixed_precision(precision: Precision | None, device: torch.device) -> Precision:
    """The arithmetic of a job; None: bf16 on a GPU, else fp32."""
    return precision or ("bf16" if device.type == "cuda" else "fp32")


def keyed_normal(
    seed: int, purpose: int, keys: Sequence[tuple[int, ...]], shape: Sequence[int]
) -> Tensor:
    """Standard normal float32 (len(keys), *shape) on the CPU; a row depends on its key alone."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, purpose, *k)) for k in keys])


class LatentCoder:
    """Images to the latents of a pipeline's VAE and back.

    Args:
        pipe: The pipeline.
        channels: Of the images.

    Attributes:
        factor: Pixels a latent's side.
        latent_channels: Of a latent.

    Raises:
        ValueError: RGB images and a VAE of grey ones.
    """

    def __init__(self, pipe: Any, channels: int) -> None:
        self._vae: Any = pipe.vae
        config = self._vae.config
        if channels not in (1, config.in_channels):
            raise ValueError(
                f"the images have {channels} channels, the model's VAE takes {config.in_channels}"
            )
        self._channels = channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.latent_channels: int = config.latent_channels

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Draw latents from the VAE's posterior, times its scaling factor.

        Args:
            images: uint8 (B, C, S, S); grey ones go to all channels of an RGB VAE.
            noise: Standard normal (B, latent channels, S / factor, S / factor).

        Returns:
            float32, of the shape of ``noise``.

        Raises:
            FloatingPointError: A latent is not finite.
        """
        vae = self._vae
        pixels = images.to(vae.device, vae.dtype) / 127.5 - 1
        posterior = vae.encode(pixels.expand(-1, vae.config.in_channels, -1, -1)).latent_dist
        drawn = posterior.mean + posterior.std * noise.to(vae.device, vae.dtype)
        scaled: Tensor = (drawn * vae.config.scaling_factor).float()
        _check_finite(scaled, "encoded latents", vae.dtype)
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of scaled latents: uint8 (B, C, S, S) on the CPU; grey is the channels' mean.

        Raises:
            FloatingPointError: A value is not finite: it would become a black pixel.
        """
        vae = self._vae
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        pixels: Tensor = vae.decode(scaled).sample
        _check_finite(pixels, "generated images", vae.dtype)
        if self._channels == 1:
            pixels = pixels.mean(1, keepdim=True)
        return ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    if bool(values.isfinite().all()):
        return
    why = "the model's weights are damaged, or its fine-tuning has diverged"
    if dtype != torch.float32:
        why = f"the model overflows in {str(dtype).removeprefix('torch.')}: try precision fp32"
    raise FloatingPointError(f"{what} are not finite: {why}")


def check_steps(steps: int, scheduler: Any) -> None:
    """Refuse more steps than the model's noise has, before any work.

    Raises:
        ValueError: There are more.
    """
    most = scheduler.config.num_train_timesteps
    if steps > most:
        raise ValueError(f"steps must be at most the model's {most}, got {steps}")


def stretched_view(image: Tensor, size: int) -> Tensor:
    """A uint8 image (C, H, W) as (C, size, size), the aspect not kept (D4M's view; bilinear)."""
    return _resized(image, size, size, "BILINEAR")


def centre_view(image: Tensor, size: int) -> Tensor:
    """The centre of a uint8 image (C, H, W), its shorter side resized, as (C, size, size).

    DiT's view (from ADM): halved by boxes as long as it stays twice too large, then bicubic.
    """
    height, width = image.shape[-2:]
    while min(height, width) >= 2 * size:
        height, width = height // 2, width // 2
        image = _resized(image, height, width, "BOX")
    scale = size / min(height, width)
    height, width = round(height * scale), round(width * scale)
    image = _resized(image, height, width, "BICUBIC")
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top : top + size, left : left + size]


def resize_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, S, S) to (N, C, size, size), by Pillow's bicubic as D4M saves its images."""
    if images.shape[-1] == size:
        return images
    return torch.stack([_resized(image, size, size, "BICUBIC") for image in images])


def _resized(image: Tensor, height: int, width: int, how: str) -> Tensor:
    if tuple(image.shape[-2:]) == (height, width):
        return image
    pil: Any = require("PIL.Image", "methods")
    method = getattr(pil.Resampling, how)
    planes = [
        np.asarray(pil.fromarray(plane.numpy()).resize((width, height), method))
        for plane in image.cpu().contiguous()
    ]
    return torch.from_numpy(np.stack(planes))


def mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W), those where ``flips`` (B,) holds mirrored."""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


@contextmanager
def naming_memory(what: str, advice: str) -> Iterator[None]:
    """Say what ran out of memory, and what to lower.

    Raises:
        MemoryError: In place of torch's own error, of a GPU or of the CPU's allocator.
    """
    try:
        yield
    except RuntimeError as error:
        # torch.OutOfMemoryError is a RuntimeError; the CPU's allocator raises a plain one.
        short = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not short:
            raise
        raise MemoryError(f"{what} ran out of memory: {advice}") from error
