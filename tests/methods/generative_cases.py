"""Tiny random diffusion models and data of the tests of D4M and Minimax."""

from __future__ import annotations

from pathlib import Path

from benchmarks.generative_models import (
    random_weights,
    small_dit,
    small_text,
    small_unet,
    small_vae,
    write_dit,
    write_sd,
)


def tiny_sd(folder: Path, **vae) -> Path:
    """8-pixel images, latents of 4 x 4 x 4."""
    parts = small_vae(**vae), small_unet(), small_text()
    random_weights(1, *parts)
    return write_sd(folder, *parts)


def tiny_dit(folder: Path, channels: int = 1, **dit) -> Path:
    """8-pixel images, latents of 4 x 4 x 4, three classes."""
    parts = small_vae(channels=channels), small_dit(**dit)
    random_weights(2, *parts)
    for block in parts[1].transformer_blocks[1:]:  # as in converted weights: one for all blocks
        block.norm1.emb.load_state_dict(parts[1].transformer_blocks[0].norm1.emb.state_dict())
    return write_dit(folder, *parts)
