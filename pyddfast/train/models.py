"""A model as callers name it: a name, a name with options, or a function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from pyddfast import models
from pyddfast.data.stored import tensors_digest
from pyddfast.random import Purpose, generator

__all__ = ["ModelSpec", "build_model", "describe_model", "model_digest"]

ModelSpec: TypeAlias = str | tuple[str, Mapping[str, Any]] | Callable[[int], nn.Module]


def build_model(
    spec: ModelSpec, seed: int, *, num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> nn.Module:
    """Build a freshly initialised model for a seed.

    Args:
        spec: a name of ``pyddfast.models``, (name, options), or a function ``seed -> nn.Module``.
            What such a function draws from torch's global CPU generator is keyed by the seed too,
            and the generator is put back afterwards.
        seed: of the initialisation.
        num_classes: logits; ignored by a function.
        in_channels: image channels; ignored by a function.
        image_size: height and width of the views; ignored by a function.

    Raises:
        TypeError: ``spec`` is none of these, or a function returned no module.
    """
    if callable(spec):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(seed, Purpose.MODEL_INIT).initial_seed())
            model = spec(seed)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model returned {type(model).__name__}, not an nn.Module")
        return model
    name, options = _name_and_options(spec)
    return models.create(
        name,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        seed=seed,
        **options,
    )


def describe_model(spec: ModelSpec) -> dict[str, Any]:
    """The model for a configuration; JSON values where the options are."""
    if callable(spec):
        return {"function": getattr(spec, "__qualname__", type(spec).__qualname__)}
    name, options = _name_and_options(spec)
    return {"name": name, "options": options}


def model_digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of a model's parameters and buffers."""
    return tensors_digest(model.state_dict())


def _name_and_options(spec: object) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, tuple) and len(spec) == 2:
        name, options = spec
        if isinstance(name, str) and isinstance(options, Mapping):
            return name, dict(options)
    raise TypeError(
        "model must be a name, (name, options) or a function of the seed, "
        f"got {type(spec).__name__}"
    )
