"""Small diffusion models, randomly initialised, and their folders in the diffusers layout."""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

__all__ = [
    "random_weights",
    "scheduler",
    "sd_pipeline",
    "small_dit",
    "small_text",
    "small_unet",
    "small_vae",
    "tokenizer",
    "write_dit",
    "write_sd",
]

# Prompts of class names: words are spelt letter by letter.
_LETTERS = string.ascii_lowercase + string.digits + ",/.-'"
_WORDS = 24  # tokens of a prompt


def small_vae(width: int = 8, channels: int = 1, factor: int = 2) -> Any:
    """A VAE with 4 latent channels and ``factor`` (a power of two) pixels a latent's side."""
    levels = factor.bit_length()
    return diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(width * 2**k for k in range(levels)),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


def small_text(width: int = 16) -> Any:
    """A text encoder of one layer over the letters of a prompt."""
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=2 * len(_LETTERS) + 2,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=_WORDS,
            bos_token_id=2 * len(_LETTERS),
            eos_token_id=2 * len(_LETTERS) + 1,
        )
    ).eval()


def small_unet(width: int = 8, side: int = 4, text: int = 16, channels: int = 4) -> Any:
    """A UNet of two levels that attends to text on the lower one."""
    return diffusers.UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        cross_attention_dim=text,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def small_dit(
    width: int = 16,
    layers: int = 2,
    side: int = 4,
    classes: int = 3,
    patch: int = 2,
    *,
    learn_sigma: bool = False,
) -> Any:
    """A class-conditional DiT on patches of ``patch`` latents a side."""
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=width // 2,
        in_channels=4,
        out_channels=8 if learn_sigma else 4,
        num_layers=layers,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=classes,
    ).eval()


def scheduler(kind: str) -> Any:
    """Stable Diffusion's own and DiT's own schedule."""
    if kind == "sd":
        return diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            skip_prk_steps=True, steps_offset=1,
        )  # fmt: skip
    return diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)


def tokenizer() -> Any:
    """Letters as tokens."""
    vocabulary: dict[str, int] = {}
    for end in ("", "</w>"):
        for letter in _LETTERS:
            vocabulary[letter + end] = len(vocabulary)
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        words, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        words.write_text(json.dumps(vocabulary))
        merges.write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer(str(words), str(merges), model_max_length=_WORDS)


def sd_pipeline(vae: Any, unet: Any, text: Any) -> Any:
    """A Stable Diffusion pipeline of these parts."""
    return diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=scheduler("sd"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_sd(folder: Path, vae: Any, unet: Any, text: Any) -> Path:
    """Save a Stable Diffusion model; its folder."""
    sd_pipeline(vae, unet, text).save_pretrained(folder)
    return folder


def write_dit(folder: Path, vae: Any, dit: Any) -> Path:
    """Save a DiT; its folder."""
    diffusers.DiTPipeline(dit, vae, scheduler("dit")).save_pretrained(folder)
    return folder


def random_weights(seed: int, *models: Any) -> None:
    """Normal weights of order 1 / sqrt(fan in), in place: nothing is zero as DiT's are at first."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for model in models:
            for weight in model.parameters():
                spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
                drawn = torch.randn(weight.shape, generator=g) * spread
                weight.copy_(drawn + (1.0 if weight.ndim == 1 and weight.mean() == 1 else 0.0))
