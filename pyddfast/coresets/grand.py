"""GraNd: the norm of the gradient of a sample's loss (Paul et al., NeurIPS 2021).

By all weights of the network (``layer="all"``), or by those of its last layer (``"last"``), which
is what DeepCore and most tables call GraNd: the gradient norm by the logits times √(1 + ‖h‖²), h
the layer's inputs, at no extra pass.  Where the logits' own gradients are orthogonal and of one
norm c, GraNd of the whole network is c · EL2N, and with soft labels c · EL2N-SL ("Rethinking
Dataset Distillation", §4).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pyddfast.coresets import embedding
from pyddfast.coresets.el2n import scoring_networks
from pyddfast.coresets.embedding import PART, evaluating
from pyddfast.coresets.parts import in_parts
from pyddfast.coresets.selection import Scores
from pyddfast.coresets.semantics import Semantics, check_semantics
from pyddfast.data import ImageDataset, ImageSource, network_input
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import tensors_digest
from pyddfast.ops import logit_gradient, sample_scores
from pyddfast.train.distributed import Ranks
from pyddfast.train.evaluate import images_of
from pyddfast.train.models import ModelSpec
from pyddfast.train.recipes import Recipe

__all__ = ["Layer", "check_grand", "grand_of_models", "grand_scores"]

Layer: TypeAlias = Literal["last", "all"]

# Of the gradients that are held at once: 5 of a ResNet-18's, 200 of a ConvNet-D3's.
_MEMORY = 256 * 2**20
# Images of a file of the pass by all weights: on two CPU cores seconds of a ConvNet-D3 and some
# minutes of a ResNet-18 at 224 pixels, so that a kill loses no more.
_PART = 256
# As in predict().
_BATCH = 256
# Batches of DeepCore's selection run, whose mean loss divides each gradient by their size.
_OFFICIAL_BATCH = 256


def grand_of_models(
    dataset: ImageSource,
    models: Iterable[nn.Module],
    *,
    layer: Layer = "last",
    teacher: nn.Module | None = None,
    temperature: float = 1.0,
    semantics: Semantics = "paper",
    memory: int = _MEMORY,
    device: torch.device | str | None = None,
    meta: dict[str, Any] | None = None,
    out: str | Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 frozen
    progress: bool = True,
) -> Scores:
    """GraNd of trained networks, averaged over them.

    The loss is −log softmax(f / T)_y, or KL(softmax(teacher / T) ‖ softmax(f / T)).

    Args:
        dataset: Images of one size; un-augmented, all networks in evaluation mode (so batch norm
            is a part of the network with constant statistics).
        models: One or more networks, taken one after the other.
        layer: By whose weights: ``"last"``, 4 (C + D) bytes a sample; ``"all"``, a forward and a
            backward pass whose gradients are kept sample by sample.
        teacher: Gives soft labels; None: the data set's labels.
        temperature: T.
        semantics: ``"official"``: DeepCore's scores of the last layer, divided by the size of the
            sample's batch of 256, so that those of a smaller last batch are larger.
        memory: Bytes that the gradients of ``layer="all"`` may take at once; those of one sample
            (4 bytes a weight) are held in any case, and the activations beside them.
        device: Where to run; default where each network's parameters are.
        meta: For the record of the scores.
        out: Folder of the passes, ``gradients0``, ``gradients1`` ..., which are written in parts: a
            stopped call goes on, a finished one is read.
        ranks: The processes of the job: each does its share of the parts, with the same bytes as
            one alone; needs ``out``.
        progress: Show it on stderr.

    Returns:
        float64 scores (N,); high is hard, or far from the teacher.

    Raises:
        ValueError: What :func:`check_grand` refuses; there is no image or no network, one gives
            another number of logits than classes, or, for ``"last"``, does not end in a
            ``torch.nn.Linear``; or ``out`` holds another run or a damaged file.
    """
    check_grand(layer, temperature, semantics, soft=teacher is not None, memory=memory)
    if not len(dataset):
        raise ValueError("the data set holds no image")
    total, count = torch.zeros(len(dataset), dtype=torch.float64), 0
    part, run = (PART, _of_last_layer) if layer == "last" else (_PART, _of_all_weights)
    options: dict[str, Any] = {"layer": layer, "temperature": temperature}
    if layer == "all":
        options["memory"] = memory  # how many gradients go together, which rounds
    with ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(evaluating(teacher, device))
        for number, model in enumerate(models):
            config = {} if out is None else {
                "task": "grand", "part": part, **options,
                "dataset": describe_data(dataset),
                "weights": tensors_digest(model.state_dict()),
                "teacher": None if teacher is None else tensors_digest(teacher.state_dict()),
            }  # fmt: skip
            with evaluating(model, device) as target:
                work = partial(run, dataset, model, teacher, temperature, memory, target)
                rows = in_parts(
                    "gradients", work, len(dataset), part,
                    config=config,
                    out=None if out is None else Path(out) / f"gradients{number}",
                    ranks=ranks,
                    progress=progress,
                )  # fmt: skip
            total += rows["norms"]
            count += 1
    if count == 0:
        raise ValueError("models must hold at least one network")
    values = total / count
    if semantics == "official":
        starts = torch.arange(len(dataset)) // _OFFICIAL_BATCH * _OFFICIAL_BATCH
        values /= (len(dataset) - starts).clamp(max=_OFFICIAL_BATCH)
    about = {
        "models": count,
        "mode": "eval",
        "layer": layer,
        "loss_to": "label" if teacher is None else "teacher",
        "temperature": temperature,
        "semantics": semantics,
    }
    name = "grand" if layer == "all" else "grand, last layer"
    high = "hard" if teacher is None else "far from the teacher"
    return Scores(values, name, high, {**about, **(meta or {})})


def grand_scores(
    dataset: ImageDataset,
    model: ModelSpec = "convnet-d3",
    *,
    layer: Layer = "last",
    teacher: nn.Module | None = None,
    temperature: float = 1.0,
    semantics: Semantics = "paper",
    memory: int = _MEMORY,
    repeats: int = 10,
    epochs: int = 20,
    recipe: Recipe | None = None,
    test_set: ImageSource | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    out: str | Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 frozen
    progress: bool = True,
) -> Scores:
    """Train ``repeats`` networks for a few epochs and average their GraNd.

    The networks are those of :func:`pyddfast.coresets.el2n_scores`; ten, as in both sources.

    Args:
        dataset: Training data, scored as well.
        model: As :func:`pyddfast.train.train_teacher` takes it.
        layer: As for :func:`grand_of_models`, as the next four.
        teacher: Gives soft labels.
        temperature: T.
        semantics: The formula, or DeepCore's scaling.
        memory: Bytes for gradients.
        repeats: Number of networks.
        epochs: Passes over the data before the score is taken.
        recipe: How to train; its epochs are replaced by ``epochs``.
        test_set: For the networks' accuracy in the record; default ``dataset`` itself.
        seed: Seed of all networks.
        device: Default CUDA where there is one, else the CPU.
        out: Folder of the networks' runs and of their passes (``net0``, ``gradients0`` ...);
            finished ones are not repeated.
        ranks: As for :func:`grand_of_models`; ``torchrun`` shares the trainings in any case.
        progress: Show it on stderr.

    Returns:
        float64 scores (N,).

    Raises:
        ValueError: As :func:`grand_of_models` and ``el2n_scores``.
    """
    check_grand(layer, temperature, semantics, soft=teacher is not None, memory=memory)
    networks, meta = scoring_networks(
        dataset,
        model,
        repeats=repeats,
        epochs=epochs,
        recipe=recipe,
        test_set=test_set,
        seed=seed,
        device=device,
        out=out,
        progress=progress,
    )
    scores = grand_of_models(
        dataset,
        networks,
        layer=layer,
        teacher=teacher,
        temperature=temperature,
        semantics=semantics,
        memory=memory,
        out=out,
        ranks=ranks,
        progress=progress,
    )
    return replace(scores, meta={**scores.meta, **meta})


def check_grand(
    layer: str, temperature: float, semantics: str, *, soft: bool, memory: int = _MEMORY
) -> None:
    """Refuse options before anything is trained; arguments as for :func:`grand_of_models`.

    Args:
        layer: ``"last"`` or ``"all"``.
        temperature: T.
        semantics: ``"paper"`` or ``"official"``.
        soft: Whether a teacher gives the labels.
        memory: Bytes for gradients.

    Raises:
        ValueError: One is out of range, or the official code has no such score.
    """
    check_semantics(semantics)
    if layer not in get_args(Layer):
        raise ValueError(f"layer must be one of {get_args(Layer)}, got {layer!r}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if memory < 1:
        raise ValueError(f"memory must be at least 1 byte, got {memory}")
    if semantics == "official" and (layer != "last" or soft or temperature != 1):
        raise ValueError(
            "semantics='official' is GraNd of the last layer, of labels, at temperature 1; "
            f"got layer={layer!r}, {'soft' if soft else 'hard'} labels, temperature={temperature}"
        )


def _targets(
    dataset: ImageSource, teacher: nn.Module | None, start: int, stop: int, device: torch.device
) -> Tensor:
    """Labels of samples [start, stop), or the teacher's float64 logits; on ``device``."""
    if teacher is None:
        return dataset.labels[start:stop].to(device)
    with torch.no_grad():
        logits = torch.cat(
            [
                teacher(_input(dataset, first, min(first + _BATCH, stop), device))
                for first in range(start, stop, _BATCH)
            ]
        )
    if logits.shape[-1] != dataset.num_classes:
        raise ValueError(
            f"the teacher gives {logits.shape[-1]} logits, "
            f"the data set has {dataset.num_classes} classes"
        )
    return logits.double()


def _input(dataset: ImageSource, start: int, stop: int, device: torch.device) -> Tensor:
    images = images_of(dataset, start, stop).to(device)
    return network_input(images, dataset.normalization)


def _of_last_layer(
    dataset: ImageSource,
    model: nn.Module,
    teacher: nn.Module | None,
    temperature: float,
    memory: int,
    device: torch.device,
    start: int,
    stop: int,
) -> dict[str, Tensor]:
    """The gradients' norms of samples [start, stop) by the last layer's weights."""
    rows = embedding.run(dataset, model, start, stop, dataset.normalization, device)
    cpu = torch.device("cpu")
    norms = sample_scores(
        rows["logits"].double(),
        dataset.labels[start:stop].cpu(),
        temperature=temperature,
        teacher=None
        if teacher is None
        else _targets(dataset, teacher, start, stop, device).to(cpu),
        features=rows["features"],
    ).grand
    assert norms is not None  # features are given
    return {"norms": norms}


def _of_all_weights(
    dataset: ImageSource,
    model: nn.Module,
    teacher: nn.Module | None,
    temperature: float,
    memory: int,
    device: torch.device,
    begin: int,
    end: int,
) -> dict[str, Tensor]:
    """The gradients' norms of samples [begin, end) by every weight."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    dtype = next(iter(weights.values())).dtype
    one = sum(weight.numel() * weight.element_size() for weight in weights.values())
    chunk = max(1, min(memory // one, end - begin))
    targets = _targets(dataset, teacher, begin, end, device)

    def along(weights: dict[str, Tensor], image: Tensor, direction: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, weights, (image[None],))
        return (logits[0] * direction).sum()

    def square(image: Tensor, direction: Tensor) -> Tensor:
        gradients = grad(along)(weights, image, direction)
        return torch.stack([g.square().sum() for g in gradients.values()]).sum()

    norms = []
    for start in range(begin, end, chunk):
        stop = min(start + chunk, end)
        x = _input(dataset, start, stop, device).to(dtype)
        with torch.no_grad():
            logits = model(x)
        if logits.shape != (len(x), dataset.num_classes):
            raise ValueError(
                f"a network gives logits {tuple(logits.shape)} for {len(x)} images and "
                f"{dataset.num_classes} classes"
            )
        target = targets[start - begin : stop - begin]
        g = logit_gradient(logits, target, temperature=temperature, target_kind="logits")
        # Of length about 1, so that no square underflows for what is already learnt.
        scale = g.abs().amax(1, keepdim=True)
        unit = (g / torch.where(scale > 0, scale, 1.0)).to(dtype)
        norms.append((vmap(square)(x, unit).sqrt() * scale[:, 0]).double().cpu())
    return {"norms": torch.cat(norms)}
