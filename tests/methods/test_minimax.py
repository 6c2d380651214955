"""Minimax Diffusion on a tiny DiT, through diffusers' loading code, step by step in float64."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import diffusers
import pytest
import torch
from generative_cases import tiny_dit, tiny_sd
from small_scale_cases import squares
from torch.distributions import Normal, kl_divergence

from pyddfast.data import read_layout, write_layout
from pyddfast.data.stored import read_tensors
from pyddfast.methods import Job, MinimaxConfig, minimax
from pyddfast.methods.latents import LatentCoder, centre_view, open_pipeline
from pyddfast.methods.minimax_loss import MemoryBanks, Schedule, variational_bound
from pyddfast.methods.minimax_tuning import PhaseTuning, Tuning, difffit
from pyddfast.random import Purpose, generator, permutation, randint, uniform

CPU = Job(device="cpu")
SEED = 7
SHORT = MinimaxConfig(
    ipc=3, epochs=2, batch_size=5, lr=0.01, memory_size=4, ema_decay=0.8, steps=4,
    sample_batch=4, lambda_r=0.5, lambda_d=0.7, seed=SEED,
)  # fmt: skip


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dit(tmp_path_factory.mktemp("dit") / "model")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dit(tmp_path_factory.mktemp("learned") / "model", learn_sigma=True)


def betas():
    return torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)


def cosines(a, b):
    return torch.stack(
        [torch.stack([torch.dot(x, y) / (x.norm() * y.norm()) for y in b]) for x in a]
    )


def official_terms(model, vae, data, step, ids, epoch, memory, semantics):
    """``training_losses`` and the memories of ``train_dit.py``, with our draws, in float64."""
    labels = data.labels[ids].tolist()
    bars = (1 - betas()).cumprod(0)
    starts, noises, times, given = [], [], [], []
    for index, label in zip(ids, labels, strict=True):
        flip, _, drop = (uniform(SEED, Purpose.DIFFUSION, index, epoch, k) for k in (0, 1, 2))
        times.append(int(randint(SEED, Purpose.DIFFUSION, 0, 1000, index, epoch, 1)))
        image = data.images[index].double()
        posterior = vae.encode((image.flip(-1) if flip < 0.5 else image)[None] / 255 * 2 - 1)
        noise = torch.randn(4, 4, 4, generator=generator(SEED, Purpose.LATENT, index, epoch))
        drawn = posterior.latent_dist.mean + posterior.latent_dist.std * noise
        starts.append(drawn[0].detach() * vae.config.scaling_factor)
        noises.append(
            torch.randn(4, 4, 4, generator=generator(SEED, Purpose.DIFFUSION, index, epoch, 3))
        )
        given.append(3 if drop < 0.1 else label)
    start, noise, time = torch.stack(starts), torch.stack(noises).double(), torch.tensor(times)
    kept = bars[time][:, None, None, None]
    noisy = kept.sqrt() * start + (1 - kept).sqrt() * noise
    out = model(noisy, timestep=time, class_labels=torch.tensor(given)).sample
    guess, values = out[:, :4], out[:, 4:]
    simple = ((noise - guess) ** 2).flatten(1).mean(1).mean()
    bound = torch.tensor(0.0).double()
    if semantics == "official" and values.shape[1]:
        bound = variational_bound(Schedule(betas()), start, noisy, time, guess, values).mean()
    predicted = ((1 / kept).sqrt() * noisy - (1 / kept - 1).sqrt() * guess).flatten(1)
    real = generated = torch.tensor(0.0).double()
    for label in set(labels):
        mine = predicted[torch.tensor(labels) == label]
        reals, generateds = memory.setdefault(label, ([], []))
        if reals:
            near, far = cosines(mine, reals), cosines(mine, generateds)
            if semantics == "official":
                real = real + (1 - near.min()) / len(set(labels))
                generated = generated + far.max() / len(set(labels))
            else:
                real = real + sum(1 - row.min() for row in near) / len(labels)
                generated = generated + sum(row.max() for row in far) / len(labels)
        reals += list(start.flatten(1)[torch.tensor(labels) == label])
        generateds += list(mine.detach())
        del reals[:-4], generateds[:-4]
    return simple, bound, real, generated


@pytest.mark.parametrize("semantics", ["paper", "official"])
def test_fine_tuning_is_the_official_loop(dit, learned, semantics):
    data = squares()
    folder = learned if semantics == "official" else dit
    models = []
    for dtype in (torch.float32, torch.float64):
        pipe = open_pipeline(folder, "DiTPipeline", dtype=dtype, device=torch.device("cpu"))
        models.append((pipe, difffit(pipe.transformer)))
    (pipe, trained), (exact, weights) = models
    initial = {name: p.detach().clone() for name, p in trained.items()}
    settings = Tuning(2, 5, 0.01, 0.5, 0.7, 4, 0.8, semantics, SEED, 8, False)
    phase = PhaseTuning(
        data, [0, 1, 2], pipe.transformer, trained, initial, LatentCoder(pipe, 1),
        Schedule(betas()), [0, 1, 2], settings, 0,
    )  # fmt: skip
    assert phase.steps == 2 * (27 // 5)
    optimizer = torch.optim.AdamW(weights.values(), lr=0.01, weight_decay=0)
    average = {name: p.detach().clone() for name, p in weights.items()}
    memory: dict = {}
    for step in range(phase.steps):
        epoch, within = divmod(step, 5)
        order = permutation(SEED, Purpose.EPOCH_ORDER, 27, epoch).tolist()
        ids = order[5 * within : 5 * within + 5]
        terms = official_terms(
            exact.transformer, exact.vae, data, step, ids, epoch, memory, semantics
        )
        if step:  # the float64 weights, so that rounding does not add up over Adam's steps
            for name, p in trained.items():
                p.data.copy_(weights[name])
        own = phase.forward(step)[0]
        for got, want in zip(own, terms, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=2e-5)
        loss = terms[0] + terms[1] + 0.5 * terms[2] + 0.7 * terms[3]
        optimizer.zero_grad()
        loss.backward()
        want = {name: p.grad.clone() for name, p in weights.items()}
        optimizer.step()
        torch.testing.assert_close(phase.run_step(step).double(), loss, rtol=2e-4, atol=2e-5)
        for name, p in trained.items():
            torch.testing.assert_close(p.grad.double(), want[name], rtol=2e-3, atol=2e-4)
        for name, kept in average.items():
            kept.mul_(0.8).add_(weights[name].detach(), alpha=0.2)
    # The last four of each class, in both banks, in any order.
    for label in range(3):
        assert phase.banks.filled(label) == 4
        for bank, held in zip(
            (phase.banks.real, phase.banks.generated), memory[label], strict=True
        ):
            got = bank[label].double()
            far = torch.cdist(got, torch.stack(held)).amin(0)
            assert float(far.max()) < 1e-2 * float(got.norm(dim=1).mean())
    assert terms[2] > 0
    for name, kept in average.items():
        torch.testing.assert_close(phase.ema[name].double(), kept, rtol=1e-2, atol=5e-3)


def test_a_bank_forgets_the_oldest():
    banks = MemoryBanks(2, 3, 1, torch.device("cpu"))
    for number in range(5):
        banks.add([1], torch.tensor([[float(number)]]), torch.tensor([[10.0 + number]]))
    assert (banks.filled(0), banks.filled(1)) == (0, 3)
    assert sorted(banks.real[1].flatten().tolist()) == [2, 3, 4]
    assert sorted(banks.generated[1].flatten().tolist()) == [12, 13, 14]


def test_the_bound_is_a_divergence_and_at_0_a_likelihood():
    g = torch.Generator().manual_seed(0)
    start, noise, guess, values = (
        torch.randn(3, 2, 2, 2, generator=g, dtype=torch.float64) * s for s in (0.5, 1, 1, 0.5)
    )
    times = torch.tensor([1, 400, 0])
    schedule = Schedule(betas())
    noisy = schedule.add_noise(start, noise, times)
    got = variational_bound(schedule, start, noisy, times, guess, values)
    bars = (1 - betas()).cumprod(0)
    for row, t in enumerate((1, 400)):
        beta, bar, before = betas()[t], bars[t], bars[t - 1]
        variance = beta * (1 - before) / (1 - bar)

        def mean(x0, row=row, beta=beta, bar=bar, before=before):
            return (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * noisy[row]) / (
                1 - bar
            )

        x0 = (noisy[row] - (1 - bar).sqrt() * guess[row]) / bar.sqrt()
        share = (values[row] + 1) / 2
        own = (share * beta.log() + (1 - share) * variance.log()).exp()
        want = kl_divergence(
            Normal(mean(start[row]), variance.sqrt()), Normal(mean(x0), own.sqrt())
        )
        torch.testing.assert_close(got[row], want.mean() / math.log(2))
    # At t = 0 the exact normal distribution: the official code's tanh is near it.
    beta, after = betas()[0], betas()[1]
    low = after * (1 - bars[0]) / (1 - bars[1])
    x0 = (noisy[2] - (1 - bars[0]).sqrt() * guess[2]) / bars[0].sqrt()
    scale = (
        (((values[2] + 1) / 2) * beta.log() + (1 - (values[2] + 1) / 2) * low.log()).mul(0.5).exp()
    )
    inside = start[2].abs() < 0.99
    exact = Normal(x0, scale)
    mass = exact.cdf(start[2] + 1 / 255) - exact.cdf(start[2] - 1 / 255)
    mass = torch.where(start[2] > 0.999, 1 - exact.cdf(start[2] - 1 / 255), mass)
    mass = torch.where(start[2] < -0.999, exact.cdf(start[2] + 1 / 255), mass)
    assert inside.any()
    want = -mass.clamp(min=1e-12).log2().mean()
    torch.testing.assert_close(got[2], want, rtol=0.02, atol=0.02)


def test_what_is_trained_is_difffits(dit, tmp_path):
    pipe = diffusers.DiTPipeline.from_pretrained(dit)
    x, t, y = torch.ones(2, 4, 4, 4), torch.tensor([3, 500]), torch.tensor([0, 2])
    with torch.no_grad():
        before = pipe.transformer(x, timestep=t, class_labels=y).sample
        trained = difffit(pipe.transformer)
        torch.testing.assert_close(pipe.transformer(x, timestep=t, class_labels=y).sample, before)
    first, second = pipe.transformer.transformer_blocks
    assert first.norm1.emb is second.norm1.emb
    emb = "transformer_blocks.0.norm1.emb"
    wrapped = {
        "attn1.to_q.inner.bias", "attn1.to_k.inner.bias", "attn1.to_v.inner.bias",
        "attn1.to_out.0.inner.inner.bias", "ff.inner.net.0.proj.bias", "ff.inner.net.2.bias",
        "norm1.linear.bias", "attn1.to_q.gamma", "attn1.to_k.gamma", "attn1.to_v.gamma",
        "attn1.to_out.0.gamma", "attn1.to_out.0.inner.gamma", "ff.gamma",
    }  # fmt: skip
    plain = {name.replace(".inner", "") for name in wrapped if "gamma" not in name}
    assert set(trained) == {
        *(f"transformer_blocks.0.{name}" for name in wrapped),
        *(f"transformer_blocks.1.{name}" for name in plain),
        f"{emb}.timestep_embedder.linear_1.bias", f"{emb}.timestep_embedder.linear_2.bias",
        f"{emb}.class_embedder.embedding_table.weight",
        "pos_embed.proj.bias", "proj_out_1.bias", "proj_out_2.bias",
    }  # fmt: skip
    off = [p for p in pipe.transformer.parameters() if p.requires_grad]
    assert len(off) == len(trained)
    # Blocks that have become different keep their own embedding.
    other = diffusers.DiTPipeline.from_pretrained(dit).transformer
    with torch.no_grad():
        other.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.add_(1)
    assert "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight" in difffit(other)


@pytest.mark.parametrize("semantics", ["paper", "official"])
def test_sampling_is_the_official_loop(dit, learned, tmp_path, semantics):
    """``p_sample_loop`` over respaced betas, one image at a time in float64."""
    folder = learned if semantics == "official" else dit
    config = dataclasses.replace(SHORT, semantics=semantics, phase_classes=2)
    made = minimax(squares(), folder, config, job=Job(device="cpu", out=tmp_path / "run"))
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (made.images.dtype, made.images.shape) == (torch.uint8, (9, 1, 8, 8))
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    weights, bars = difffit(pipe.transformer), (1 - betas()).cumprod(0)
    pipe.transformer.double(), pipe.vae.double()
    places = [0, 333, 666, 999]  # 4 of 1000, ends included
    guided = 3 if semantics == "official" else 4
    for index, label in enumerate(made.labels.tolist()):
        tuned, _ = read_tensors(tmp_path / "run" / "phases" / f"{label // 2:06d}.safetensors")
        g = generator(SEED, Purpose.SAMPLE, label, index % 3)
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(tuned[name])
            x = torch.randn(4, 4, 4, generator=g).double()[None]
            for k in (3, 2, 1, 0):
                bar, before = (
                    bars[places[k]],
                    bars[places[k - 1]] if k else torch.tensor(1.0).double(),
                )
                beta = 1 - bar / before
                time = torch.tensor([places[k]] * 2)
                out = pipe.transformer(
                    torch.cat([x, x]), timestep=time, class_labels=torch.tensor([label, 3])
                ).sample
                eps = out[:1].clone()
                eps[:, :guided] = out[1:, :guided] + 4.0 * (out[:1, :guided] - out[1:, :guided])
                eps, values = eps[:, :4], eps[:, 4:]
                x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
                x = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - bar)
                if k:
                    low = beta * (1 - before) / (1 - bar)
                    share = (values + 1) / 2 if values.shape[1] else 1
                    variance = (share * beta.log() + (1 - share) * low.log()).exp()
                    noise = torch.randn(1, 4, 4, 4, generator=g).double()
                    x = x + variance.sqrt() * noise
            pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
            want = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()
        assert (made.images[index].double() - want[0]).abs().max() <= 1


def test_batches_of_sampling_change_nothing_but_rounding(dit, tmp_path):
    data = dataclasses.replace(squares(), class_names=("n01440764", "n01443537", "n01484850"))
    made = minimax(data, dit, SHORT, job=CPU)
    single = minimax(data, dit, dataclasses.replace(SHORT, sample_batch=1), job=CPU)
    assert (made.images.int() - single.images.int()).abs().max() <= 1
    write_layout(made, tmp_path / "official", "synset")
    back = read_layout(tmp_path / "official", normalization=data.normalization)
    assert torch.equal(back.images, made.images)
    assert (tmp_path / "official" / "n01484850" / "2.png").is_file()


def test_classes_of_the_model_are_chosen_and_bf16_is_near(tmp_path):
    folder = tiny_dit(tmp_path / "dit", classes=5)
    chosen = dataclasses.replace(SHORT, model_classes=(4, 0, 2))
    made = minimax(squares(), folder, chosen, job=CPU)
    other = minimax(squares(), folder, SHORT, job=CPU)
    assert not torch.equal(made.images, other.images)
    half = minimax(squares(), folder, dataclasses.replace(chosen, precision="bf16"), job=CPU)
    assert 0 < (half.images.float() - made.images.float()).abs().mean() < 10


def test_progress_counts_images_through_the_network(dit):
    seen = []
    job = Job(device="cpu", on_progress=lambda done, total: seen.append((done, total)))
    minimax(squares(), dit, dataclasses.replace(SHORT, phase_classes=2), job=job)
    # Phases of 18 and 9 images: 3 and 1 steps an epoch.
    assert seen[-1] == (5 * 2 * 4 + 9 * 4, 5 * 2 * 4 + 9 * 4)


def test_the_view_is_adms():
    image = torch.arange(40 * 64, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 40, 64)
    got = centre_view(image, 10)
    assert got.shape == (1, 10, 10)
    # Halved twice by boxes to 10 x 16, then the middle 10 columns.
    means = image.double().view(1, 10, 4, 16, 4).mean((2, 4))[:, :, 3:13]
    assert (got.double() - means).abs().max() <= 2  # Pillow rounds after each axis


def test_bad_input_is_refused_by_name(dit, tmp_path, monkeypatch):
    data = squares()

    def refused(message, kind=ValueError, *, data=data, model=dit, job=CPU, **changes):
        with pytest.raises(kind, match=message):
            minimax(data, model, dataclasses.replace(SHORT, **changes), job=job)

    refused("is no folder", FileNotFoundError, model=tmp_path / "none")
    refused("holds a StableDiffusionPipeline, this needs a DiT", model=tiny_sd(tmp_path / "sd"))
    refused("must be one for each of 3 classes, got 2", model_classes=(0, 1))
    refused("model_classes has 3, the model has classes 0 to 2", model_classes=(0, 1, 3))
    for name in (1.5, True):
        with pytest.raises(TypeError, match=f"model_classes must be ints, got {name}"):
            dataclasses.replace(SHORT, model_classes=(0, 1, name))
    refused("batch_size = 10 is more than the 9 images", batch_size=10, phase_classes=1)
    refused("must hold uint8 images", data=dataclasses.replace(data, images=data.images.float()))
    rgb = dataclasses.replace(
        data,
        images=data.images.expand(-1, 3, -1, -1),
        normalization=type(data.normalization)((0.5,) * 3, (0.5,) * 3),
    )
    refused("3 channels, the model's VAE takes 1", data=rgb)
    for name, value, message in (
        ("lr", 0.0, "lr must be positive"),
        ("ema_decay", 1.0, "ema_decay must lie"),
        ("lambda_d", -1.0, "lambda_d must not be negative"),
        ("guidance_scale", 0.5, "guidance_scale must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SHORT, **{name: value})
    out = tmp_path / "run"
    minimax(data, dit, SHORT, job=Job(device="cpu", out=out))
    refused("lambda_r", job=Job(device="cpu", out=out), lambda_r=0.1)
    refused("loss of steps .* lower lr", FloatingPointError, lr=1e20)

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(diffusers.DiTTransformer2DModel, "forward", full)
    refused(r"fine-tuning ran out of memory: lower batch_size \(5\)", MemoryError)
