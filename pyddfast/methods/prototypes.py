"""Prototypes of a class: centres of its images' latents, and D4M's JSON file of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyddfast._extras import require
from pyddfast.data.atomic import new_file
from pyddfast.data.stored import read_json

__all__ = ["class_prototypes", "read_prompts", "read_prototypes", "write_prototypes"]


def class_prototypes(
    latents: Tensor, clusters: int, batch_size: int, *, seed: int, fit_rest: bool = True
) -> Tensor:
    """Centres of scikit-learn's mini-batch k-means over the latents in their order.

    Args:
        latents: (N, C, H, W) of one class.
        clusters: How many centres.
        batch_size: Latents in a partial fit, at least ``clusters``.
        seed: Of the centres' initialisation.
        fit_rest: Whether the last N mod ``batch_size`` latents are fitted too.

    Returns:
        float32 (clusters, C, H, W).

    Raises:
        ValueError: The first batch has fewer latents than centres, or there is none.
        ModuleNotFoundError: scikit-learn, of the ``generative`` extra, is not installed.
    """
    flat = latents.flatten(1).float()
    whole = len(flat) if fit_rest else len(flat) - len(flat) % batch_size
    if min(whole, batch_size) < clusters:
        raise ValueError(
            f"{clusters} prototypes need as many latents in the first batch, there are "
            f"{min(whole, batch_size)}"
        )
    cluster: Any = require("sklearn.cluster", "generative")
    model = cluster.MiniBatchKMeans(
        n_clusters=clusters, random_state=seed % 2**32, batch_size=batch_size, n_init="auto"
    )
    for batch in torch.split(flat[:whole], batch_size):
        model.partial_fit(batch.numpy())
    centres: Tensor = torch.from_numpy(model.cluster_centers_).to(torch.float32)
    return centres.view(clusters, *latents.shape[1:])


def write_prototypes(
    path: str | Path, prompts: Sequence[str], prototypes: Iterable[Tensor]
) -> None:
    """Write D4M's file: ``{prompt: [prototype as nested lists, ...], ...}``, whole or not at all.

    Args:
        path: A ``.json`` file; an old one is replaced.
        prompts: One a class, all different.
        prototypes: (K, C, H, W) of each class in turn; only one of them has to be in memory.

    Raises:
        OSError: It could not be written.
    """
    with new_file(Path(path)) as file:
        for number, (prompt, centres) in enumerate(zip(prompts, prototypes, strict=True)):
            entry = f"{json.dumps(prompt)}: {json.dumps(centres.tolist())}"
            file.write(f"{', ' if number else '{'}{entry}".encode())
        file.write(b"}")


def read_prototypes(path: str | Path) -> dict[str, Tensor]:
    """Prototypes by prompt of a file that D4M's code or :func:`write_prototypes` wrote.

    Returns:
        float32 (K, C, H, W) of each prompt.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged or holds something else.
    """
    content = read_json(Path(path))
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no prototypes: a JSON object by prompt is needed")
    found = {}
    for prompt, centres in content.items():
        try:
            found[prompt] = torch.tensor(centres, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: prototypes of {prompt!r} are no array: {error}") from error
        if found[prompt].ndim != 4 or not bool(found[prompt].isfinite().all()):
            raise ValueError(
                f"{path}: prototypes of {prompt!r} must be finite (K, C, H, W), got shape "
                f"{tuple(found[prompt].shape)}"
            )
    return found


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of D4M's label file: a class a line, in label order, what comes before a tab.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no UTF-8 text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    return [line.split("\t")[0].strip() for line in text.rstrip().splitlines()]
