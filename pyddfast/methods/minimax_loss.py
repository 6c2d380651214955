"""The terms of Minimax Diffusion's loss, and the two memory banks that it compares with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MemoryBanks", "Schedule", "minimax_terms", "noise_schedule", "variational_bound"]


class Schedule:
    """The noise schedule of a diffusion model: x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

    Args:
        betas: float64 (T,).

    Attributes:
        alphas_cumprod: ᾱ, float64 (T,).
    """

    def __init__(self, betas: Tensor) -> None:
        self._betas = betas.double().cpu()
        self.alphas_cumprod = (1 - self._betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        variance = self._betas * (1 - before) / (1 - self.alphas_cumprod)
        # The first one is 0: its logarithm is cut off at the second one's.
        self._log_variance = torch.cat([variance[1:2], variance[1:]]).log()
        self._of_start = self._betas * before.sqrt() / (1 - self.alphas_cumprod)
        self._of_noisy = (1 - before) * (1 - self._betas).sqrt() / (1 - self.alphas_cumprod)

    def __len__(self) -> int:
        return len(self._betas)

    def add_noise(self, start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t of x_0 and ε, (B, C, H, W) each; times (B,)."""
        kept = _at(self.alphas_cumprod, times, start)
        return kept.sqrt() * start + (1 - kept).sqrt() * noise

    def start(self, noisy: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The x_0 that x_t and a predicted ε tell."""
        kept = _at(self.alphas_cumprod, times, noisy)
        return (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()

    def posterior(self, start: Tensor, noisy: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of q(x_{t-1} | x_t, x_0), and the logarithm of its variance."""
        mean = _at(self._of_start, times, start) * start + _at(self._of_noisy, times, start) * noisy
        return mean, _at(self._log_variance, times, start)

    def log_beta(self, times: Tensor, like: Tensor) -> Tensor:
        """Log β_t, broadcastable to ``like``."""
        return _at(self._betas.log(), times, like)


def _at(values: Tensor, times: Tensor, like: Tensor) -> Tensor:
    return values[times.cpu()].to(like.device, like.dtype)[:, None, None, None]


def variational_bound(
    schedule: Schedule, start: Tensor, noisy: Tensor, times: Tensor, noise: Tensor, values: Tensor
) -> Tensor:
    """The variational bound that trains a learned variance (improved DDPM, equations 4 to 6, 15).

    Args:
        schedule: The noise schedule.
        start: x_0, (B, C, H, W).
        noisy: x_t.
        times: int64 (B,).
        noise: The predicted ε; no gradient goes there.
        values: The model's variance channels: −1 is the posterior's variance, 1 is β_t.

    Returns:
        Bits a latent value, (B,): a Kullback-Leibler divergence; at t = 0 the decoder's negative
        log-likelihood in 256 levels of [−1, 1].
    """
    true_mean, low = schedule.posterior(start, noisy, times)
    mean, _ = schedule.posterior(schedule.start(noisy, noise.detach(), times), noisy, times)
    share = (values + 1) / 2
    log_variance = share * schedule.log_beta(times, start) + (1 - share) * low
    divergence = 0.5 * (
        log_variance
        - low
        - 1
        + (low - log_variance).exp()
        + (true_mean - mean) ** 2 * (-log_variance).exp()
    )
    likelihood = _log_likelihood(start, mean, 0.5 * log_variance)
    bits = torch.where((times == 0)[:, None, None, None], -likelihood, divergence)
    return bits.flatten(1).mean(1) / math.log(2)


def _log_likelihood(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Of a Gaussian in 256 levels of [−1, 1], by the official code's tanh for the normal CDF."""
    centred, scale = values - mean, (-log_scale).exp()
    above, below = _cdf(scale * (centred + 1 / 255)), _cdf(scale * (centred - 1 / 255))
    least = 1e-12
    inside = (above - below).clamp(min=least).log()
    lowest, highest = above.clamp(min=least).log(), (1 - below).clamp(min=least).log()
    return torch.where(values < -0.999, lowest, torch.where(values > 0.999, highest, inside))


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class MemoryBanks:
    """The last real and the last generated latents of each class.

    Args:
        classes: Of the phase.
        size: Most latents of a class in each bank.
        values: Of a latent.
        device: Where they lie.

    Attributes:
        real: float32 (classes, size, values); of a class, the first ``filled`` rows count.
        generated: The same for predicted x_0.
        seen: Latents of each class so far, int64 (classes,), on the CPU.
    """

    def __init__(self, classes: int, size: int, values: int, device: torch.device) -> None:
        self.real = torch.zeros(classes, size, values, device=device)
        self.generated = torch.zeros_like(self.real)
        self.seen = torch.zeros(classes, dtype=torch.int64)

    def filled(self, row: int) -> int:
        """Latents of a class that are kept."""
        return min(int(self.seen[row]), self.real.shape[1])

    @torch.no_grad()
    def add(self, rows: Sequence[int], real: Tensor, generated: Tensor) -> None:
        """Keep a batch, (B, values) each; the oldest of a full class goes."""
        for number, row in enumerate(rows):
            place = int(self.seen[row]) % self.real.shape[1]
            self.real[row, place] = real[number]
            self.generated[row, place] = generated[number]
            self.seen[row] += 1


def minimax_terms(
    predicted: Tensor,
    rows: Sequence[int],
    banks: MemoryBanks,
    semantics: Literal["paper", "official"],
) -> tuple[Tensor, Tensor]:
    """Representativeness and diversity: L_r and L_d of Gu et al., equations 4 and 5.

    L_r = 1 − min over the class's real bank of the cosine, L_d = max over its generated bank.

    Args:
        predicted: The predicted x_0, float32 (B, values).
        rows: The class of each, as a row of the banks.
        banks: As they were before this batch.
        semantics: ``"paper"``: the mean over the batch of each sample's terms.  ``"official"``: one
            least and one greatest cosine for all of a class's samples together, and the mean over
            the batch's classes.  What has no bank yet counts as 0 in both.

    Returns:
        Two scalars.
    """
    least, most = predicted.new_zeros(()), predicted.new_zeros(())
    classes = sorted(set(rows))
    unit = F.normalize(predicted, dim=1)
    for row in classes:
        count = banks.filled(row)
        if count == 0:
            continue
        own = unit[[number for number, of in enumerate(rows) if of == row]]
        real = own @ F.normalize(banks.real[row, :count], dim=1).T
        generated = own @ F.normalize(banks.generated[row, :count], dim=1).T
        if semantics == "official":
            least = least + (1 - real.min()) / len(classes)
            most = most + generated.max() / len(classes)
        else:
            least = least + (1 - real.amin(1)).sum() / len(rows)
            most = most + generated.amax(1).sum() / len(rows)
    return least, most


def noise_schedule(scheduler: Any) -> Schedule:
    """The schedule of a diffusers scheduler, in float64.

    Raises:
        ValueError: Its model predicts something other than the noise.
    """
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise ValueError(f"model must predict the noise (epsilon), its scheduler says {kind}")
    return Schedule(scheduler.betas)
