"""Fine-tuning a DiT on the classes of one phase: DiffFit's parameters, AdamW, a moving average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyddfast.data import ImageSource
from pyddfast.methods.generation import views
from pyddfast.methods.latents import (
    LatentCoder,
    centre_view,
    keyed_normal,
    mirrored,
    naming_memory,
)
from pyddfast.methods.minimax_loss import MemoryBanks, Schedule, minimax_terms, variational_bound
from pyddfast.random import Purpose, permutation, randint, uniform

__all__ = ["PhaseTuning", "Terms", "Tuning", "difffit"]

# Draws of an image in an epoch, beside its noises.
_FLIP, _TIME, _DROP, _NOISE = range(4)


class Scaled(nn.Module):
    """A layer whose output is multiplied by learned factors, 1 at first (DiffFit's γ)."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        like = next(inner.parameters())
        self.inner = inner
        self.gamma = nn.Parameter(torch.ones(width, dtype=like.dtype, device=like.device))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, (..., width), scaled."""
        scaled: Tensor = self.gamma * self.inner(*args, **kwargs)
        return scaled


def difffit(model: Any) -> dict[str, nn.Parameter]:
    """Prepare a DiT of diffusers for fine-tuning as the official code does.

    The first half of the blocks gets factors on queries, keys and values, twice on the attention's
    output and once on the MLP's.  Trained are these, all biases, affine norms and the embedding of
    classes.  Where every block has the same embedding of time and class (converted weights: one
    module in the original), the blocks share one again.

    Args:
        model: A ``DiTTransformer2DModel``; changed in place, all gradients off but those trained.

    Returns:
        The trained parameters by name.
    """
    blocks = list(model.transformer_blocks)
    first = blocks[0].norm1.emb
    if all(_equal(block.norm1.emb, first) for block in blocks[1:]):
        for block in blocks[1:]:
            block.norm1.emb = first
    width = model.inner_dim
    for block in blocks[: len(blocks) // 2]:
        attention = block.attn1
        attention.to_q = Scaled(attention.to_q, width)
        attention.to_k = Scaled(attention.to_k, width)
        attention.to_v = Scaled(attention.to_v, width)
        # The attention's own factor, and the block's.
        attention.to_out[0] = Scaled(Scaled(attention.to_out[0], width), width)
        block.ff = Scaled(block.ff, width)
    model.requires_grad_(False)
    trained = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            affine = isinstance(module, nn.LayerNorm)
            if affine or name in ("bias", "gamma") or "class_embedder" in path:
                trained[f"{path}.{name}"] = parameter.requires_grad_()
    return trained


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Tuning:
    """Settings of the fine-tuning; see :class:`pyddfast.methods.minimax.MinimaxConfig`."""

    epochs: int
    batch_size: int
    lr: float
    lambda_r: float
    lambda_d: float
    memory_size: int
    ema_decay: float
    semantics: Literal["paper", "official"]
    seed: int
    size: int
    bf16: bool


class Terms(NamedTuple):
    """The loss of a step, term by term, without weights; scalars.

    Attributes:
        simple: ‖ε_θ − ε‖², the mean over all values.
        bound: The variational bound of a learned variance (official semantics), else 0.
        real: L_r.
        generated: L_d.
    """

    simple: Tensor
    bound: Tensor
    real: Tensor
    generated: Tensor


class PhaseTuning:
    """The weights, the memory banks and a step of one phase.

    Args:
        data: Real images.
        labels: Of the phase.
        model: A DiT that :func:`difffit` prepared.
        trained: What it returned; set to ``initial`` here.
        initial: Values to begin with.
        coder: Of the model's VAE.
        schedule: Of the model's noise.
        model_classes: The model's class of each label.
        settings: Of the fine-tuning.
        phase: Number of the phase; keys the order of the images.
    """

    def __init__(
        self,
        data: ImageSource,
        labels: Sequence[int],
        model: Any,
        trained: Mapping[str, nn.Parameter],
        initial: Mapping[str, Tensor],
        coder: LatentCoder,
        schedule: Schedule,
        model_classes: Sequence[int],
        settings: Tuning,
        phase: int,
    ) -> None:
        self._data, self._model, self._coder, self._schedule = data, model, coder, schedule
        self._classes, self._settings, self._phase = model_classes, settings, phase
        self._row = {label: row for row, label in enumerate(labels)}
        self._labels: list[int] = data.labels.tolist()
        self._members = [i for i, label in enumerate(self._labels) if label in self._row]
        self._each = len(self._members) // settings.batch_size
        self._trained = dict(trained)
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(initial[name])
        self.ema = {name: p.detach().clone() for name, p in self._trained.items()}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=settings.lr, weight_decay=0.0
        )
        for parameter in self._trained.values():
            # There from the start, so that a checkpoint always has them.
            self._optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        side = settings.size // coder.factor
        self._shape = (coder.latent_channels, side, side)
        self.banks = MemoryBanks(
            len(labels), settings.memory_size, coder.latent_channels * side**2, model.device
        )
        # The epoch's images in order, the step that is read next, and the images from it on.
        self._order: list[int] = []
        self._stream: tuple[int, Iterator[Tensor]] = (-1, iter(()))

    @property
    def steps(self) -> int:
        """Of the phase; the last incomplete batch of an epoch is left out, as officially."""
        return self._settings.epochs * self._each

    def run_step(self, step: int) -> Tensor:
        """Take a step; its weighted loss."""
        settings = self._settings
        with naming_memory("fine-tuning", f"lower batch_size ({settings.batch_size})"):
            terms, latents, predicted, rows = self.forward(step)
            loss = (
                terms.simple
                + terms.bound
                + settings.lambda_r * terms.real
                + settings.lambda_d * terms.generated
            )
            self.banks.add(rows, latents, predicted)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        with torch.no_grad():
            weights = [parameter.detach() for parameter in self._trained.values()]
            torch._foreach_lerp_(list(self.ema.values()), weights, 1 - settings.ema_decay)
        return loss

    def forward(self, step: int) -> tuple[Terms, Tensor, Tensor, list[int]]:
        """The terms of a step, its latents and predicted x_0 as rows, and their banks' rows."""
        settings, schedule = self._settings, self._schedule
        ids, epoch, images = self._batch(step)
        device, labels = self._model.device, [self._labels[index] for index in ids]

        def draw(lane: int) -> Tensor:
            return uniform(settings.seed, Purpose.DIFFUSION, ids, epoch, lane)

        keys = [(index, epoch) for index in ids]
        start = self._coder.encode(
            mirrored(images, draw(_FLIP) < 0.5),
            keyed_normal(settings.seed, Purpose.LATENT, keys, self._shape),
        ).to(device)
        own = [(index, epoch, _NOISE) for index in ids]
        noise = keyed_normal(settings.seed, Purpose.DIFFUSION, own, self._shape).to(device)
        times = randint(settings.seed, Purpose.DIFFUSION, 0, len(schedule), ids, epoch, _TIME)
        times = times.to(device)
        noisy = schedule.add_noise(start, noise, times)
        embedder = self._model.transformer_blocks[0].norm1.emb.class_embedder
        # Labels are dropped here, by keyed draws and once for all blocks: the model stays in
        # evaluation mode, where it draws nothing itself.
        given = torch.tensor([self._classes[label] for label in labels])
        given = torch.where(draw(_DROP) < embedder.dropout_prob, embedder.num_classes, given)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            out = self._model(noisy, timestep=times, class_labels=given.to(device)).sample
        out = out.float()
        channels = start.shape[1]
        guess, values = out[:, :channels], out[:, channels:]
        simple = ((noise - guess) ** 2).mean()
        bound = simple.new_zeros(())
        if settings.semantics == "official" and values.shape[1]:
            bound = variational_bound(schedule, start, noisy, times, guess, values).mean()
        predicted = schedule.start(noisy, guess, times).flatten(1)
        rows = [self._row[label] for label in labels]
        real, generated = minimax_terms(predicted, rows, self.banks, settings.semantics)
        return Terms(simple, bound, real, generated), start.flatten(1), predicted.detach(), rows

    def _batch(self, step: int) -> tuple[list[int], int, Tensor]:
        """Positions of the images of a step, its epoch, and the images, uint8."""
        settings = self._settings
        epoch, within = divmod(step, self._each)
        size = settings.batch_size
        if self._stream[0] != step or within == 0:
            count = len(self._members)
            turn = self._phase * settings.epochs + epoch
            order = permutation(settings.seed, Purpose.EPOCH_ORDER, count, turn).tolist()
            self._order = [self._members[place] for place in order[: self._each * size]]
            rest = self._order[within * size :]
            self._stream = step, views(self._data, rest, centre_view, settings.size)
        images = torch.stack(list(islice(self._stream[1], size)))
        self._stream = step + 1, self._stream[1]
        return self._order[within * size : (within + 1) * size], epoch, images

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average and moments, and the banks."""
        kept = {"bank/real": self.banks.real, "bank/generated": self.banks.generated}
        kept["bank/seen"] = self.banks.seen
        for name, parameter in self._trained.items():
            state = self._optimizer.state[parameter]
            kept[f"weight/{name}"] = parameter.detach()
            kept[f"ema/{name}"] = self.ema[name]
            kept[f"mean/{name}"] = state["exp_avg"]
            kept[f"square/{name}"] = state["exp_avg_sq"]
        return kept

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Stand before ``step`` with what :meth:`tensors` returned."""
        with torch.no_grad():
            self.banks.real.copy_(tensors["bank/real"])
            self.banks.generated.copy_(tensors["bank/generated"])
            self.banks.seen.copy_(tensors["bank/seen"])
            for name, parameter in self._trained.items():
                state = self._optimizer.state[parameter]
                parameter.copy_(tensors[f"weight/{name}"])
                self.ema[name].copy_(tensors[f"ema/{name}"])
                state["exp_avg"].copy_(tensors[f"mean/{name}"])
                state["exp_avg_sq"].copy_(tensors[f"square/{name}"])
                state["step"].fill_(step)
