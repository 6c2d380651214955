"""D4M and Minimax with models trained from scratch: ``python -m benchmarks.generative``.

A small VAE, a text-conditioned UNet and a class-conditional DiT learn the embedded Fashion-MNIST
and are saved in the diffusers layout; D4M and Minimax distil it with them, and students of their
sets are compared in HL, SL and SL+KD with those of random real images, RDED, DM and noise.  Every
stage is kept in the run folder.  Writes ``results/generative/smoke.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import metadata
from benchmarks.generative_models import (
    scheduler,
    small_dit,
    small_text,
    small_unet,
    small_vae,
    tokenizer,
    write_dit,
    write_sd,
)
from benchmarks.schema import RESULTS, write
from pyddfast import methods
from pyddfast.coresets import random_scores, select
from pyddfast.data import DistilledSet, ImageDataset, load
from pyddfast.data.atomic import new_folder
from pyddfast.methods.latents import keyed_normal
from pyddfast.methods.minimax_loss import noise_schedule
from pyddfast.methods.small_scale import RealImages, as_set
from pyddfast.random import Purpose, permutation, randint, uniform
from pyddfast.report import ComparisonConfig, compare_sets
from pyddfast.train import train_teacher

SEED = 0
MODEL = ("convnet-d3", {"width": 16})
SHOWN = ("noise", "random", "RDED", "DM", "D4M", "Minimax")
# Steps of 32 images: minutes on two cores.  Guidance and the moving average are weaker than the
# published ones, which are for models of a thousand times the size and ten thousand steps.
BATCH = 32
VAE_STEPS, UNET_STEPS, DIT_STEPS = 700, 700, 800
DM: dict[str, Any] = {"iterations": 150, "real_batch": 64, "lr_img": 10.0}
D4M: dict[str, Any] = {
    "km_expand": 10, "guidance_scale": 2.0, "negative_prompt": "", "batch_size": 25,
}  # fmt: skip
MINIMAX: dict[str, Any] = {
    "epochs": 1, "batch_size": 32, "ema_decay": 0.99, "guidance_scale": 2.0, "sample_batch": 25,
}  # fmt: skip
DROPPED = 0.1  # share of labels and prompts left out in training, DiT's and Stable Diffusion's


def batches(count: int, steps: int) -> Iterator[tuple[int, Tensor]]:
    """Steps and the images that each of them takes, epoch by epoch."""
    each = count // BATCH
    for step in range(steps):
        order = permutation(SEED, Purpose.EPOCH_ORDER, count, step // each)
        yield step, order[step % each * BATCH :][:BATCH]


def train(
    name: str, weights: list[Any], steps: int, count: int, loss: Callable[[int, Tensor], Tensor]
) -> float:
    """Adam with a cosine to 0; the seconds it took."""
    parameters = [p.requires_grad_() for model in weights for p in model.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began, seen = time.perf_counter(), 0.0
    for step, ids in batches(count, steps):
        value = loss(step, ids)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        seen += float(value.detach())
        if (step + 1) % 50 == 0:
            spent = time.perf_counter() - began
            print(f"{name}: {step + 1}/{steps}, {seen / 50:.4f}, {spent:.0f} s", flush=True)
            seen = 0.0
    for parameter in parameters:
        parameter.requires_grad_(False)
    return time.perf_counter() - began


def train_vae(data: ImageDataset) -> tuple[Any, Tensor, float]:
    """Pixels in [-1, 1] to latents of 4 x 7 x 7 with a weak pull to the normal distribution.

    Returns the VAE, the scaled latents of all images, and the seconds.
    """
    vae = small_vae(width=16, factor=4)
    pixels = data.images.float() / 127.5 - 1

    def loss(step: int, ids: Tensor) -> Tensor:
        posterior = vae.encode(pixels[ids]).latent_dist
        noise = keyed_normal(SEED, Purpose.LATENT, [(step, int(i)) for i in ids], (4, 7, 7))
        got = vae.decode(posterior.mean + posterior.std * noise).sample
        value: Tensor = F.mse_loss(got, pixels[ids]) + 1e-4 * posterior.kl().mean() / 196
        return value

    seconds = train("VAE", [vae], VAE_STEPS, len(data), loss)
    latents = encoded(vae, data)
    # So that scaled latents have variance 1, as Stable Diffusion's 0.18215 does.
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae, latents * vae.config.scaling_factor, seconds


@torch.no_grad()
def encoded(vae: Any, data: ImageDataset) -> Tensor:
    """The posterior's means of all images, unscaled."""
    parts = (data.images.float() / 127.5 - 1).split(256)  # type: ignore[no-untyped-call]
    return torch.cat([vae.encode(part).latent_dist.mean for part in parts])


def noise_loss(kind: str, latents: Tensor, predict: Callable[..., Tensor]) -> Any:
    """The squared error of the predicted noise, at keyed times of a model's schedule."""
    schedule = noise_schedule(scheduler(kind))

    def loss(step: int, ids: Tensor) -> Tensor:
        noise = keyed_normal(SEED, Purpose.DIFFUSION, [(step, int(i), 3) for i in ids], (4, 7, 7))
        times = randint(SEED, Purpose.DIFFUSION, 0, len(schedule), ids, step, 1)
        noisy = schedule.add_noise(latents[ids], noise, times)
        dropped = uniform(SEED, Purpose.DIFFUSION, ids, step, 2) < DROPPED
        return F.mse_loss(predict(noisy, times, ids, dropped), noise)

    return loss


def train_unet(data: ImageDataset, latents: Tensor) -> tuple[Any, Any, float]:
    """A UNet on the prompts of the class names, its text encoder, and the seconds."""
    unet, text = small_unet(width=32, side=7), small_text()
    prompts = [*data.class_names, ""]
    words = tokenizer()(prompts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():  # random and frozen: ten prompts are far enough apart
        states = text(words.input_ids).last_hidden_state

    def predict(noisy: Tensor, times: Tensor, ids: Tensor, dropped: Tensor) -> Tensor:
        rows = torch.where(dropped, len(prompts) - 1, data.labels[ids])
        found: Tensor = unet(noisy, times, states[rows]).sample
        return found

    loss = noise_loss("sd", latents, predict)
    return unet, text, train("UNet", [unet], UNET_STEPS, len(data), loss)


def train_dit(data: ImageDataset, latents: Tensor) -> tuple[Any, float]:
    """A DiT on the labels, and the seconds."""
    dit = small_dit(width=96, layers=4, side=7, classes=10, patch=1)
    for block in dit.transformer_blocks:  # one embedding for all, as in the original
        block.norm1.emb = dit.transformer_blocks[0].norm1.emb

    def predict(noisy: Tensor, times: Tensor, ids: Tensor, dropped: Tensor) -> Tensor:
        rows = torch.where(dropped, 10, data.labels[ids])
        found: Tensor = dit(noisy, timestep=times, class_labels=rows).sample
        return found

    seconds = train("DiT", [dit], DIT_STEPS, len(data), noise_loss("dit", latents, predict))
    for block in dit.transformer_blocks[1:]:  # files have one a block
        block.norm1.emb = copy.deepcopy(dit.transformer_blocks[0].norm1.emb)
    return dit, seconds


def trained_models(data: ImageDataset, folder: Path) -> dict[str, float]:
    """Both model folders, ``models/sd`` and ``models/dit``; the seconds of each training."""
    kept = folder / "models"
    if not kept.exists():
        torch.manual_seed(SEED)
        with new_folder(kept) as new:
            vae, latents, vae_seconds = train_vae(data)
            unet, text, unet_seconds = train_unet(data, latents)
            write_sd(new / "sd", vae, unet, text)
            dit, dit_seconds = train_dit(data, latents)
            write_dit(new / "dit", vae, dit)
            seconds = {"VAE": vae_seconds, "UNet": unet_seconds, "DiT": dit_seconds}
            (new / "seconds.json").write_text(json.dumps(seconds))
    found: dict[str, float] = json.loads((kept / "seconds.json").read_text())
    return found


def make(name: str, ipc: int, data: ImageDataset, teacher: Any, folder: Path) -> DistilledSet:
    """A set by name, kept in the folder."""
    stored = folder / "sets" / f"{name}-{ipc}"
    if stored.exists():
        return DistilledSet.load(stored)
    print(f"{name} at IPC {ipc}", flush=True)
    job = methods.Job(device="cpu", out=folder / "distil" / f"{name}-{ipc}")
    if name == "noise":
        real = RealImages(data, torch.device("cpu"), SEED)
        made = as_set(real.initial(ipc, "noise"), real, {"method": "noise"})
    elif name == "random":
        picked = select(random_scores(len(data), seed=SEED + 1), data.labels, ipc=ipc)
        made = picked.to_distilled(data)
    elif name == "RDED":
        made = methods.rded(data, teacher.model, methods.RDEDConfig(ipc=ipc, seed=SEED))
    elif name == "DM":
        config = methods.DMConfig(ipc=ipc, seed=SEED, **DM)
        made = methods.dm(data, MODEL, config, job=job)
    elif name == "D4M":
        chosen = methods.D4MConfig(ipc=ipc, seed=SEED, **D4M)
        made = methods.d4m(data, folder / "models" / "sd", chosen, job=job)
    else:
        given = methods.MinimaxConfig(ipc=ipc, seed=SEED, **MINIMAX)
        made = methods.minimax(data, folder / "models" / "dit", given, job=job)
    made.save(stored)
    return made


def images_per_second(data: ImageDataset, folder: Path, ipc: int) -> dict[str, dict[int, float]]:
    """Of denoising, one image at a time as the official codes do and 20 together.

    Timed between the first finished batch of 40 images and the last.
    """
    name = f"fashion-mnist-mini-ipc{ipc}-kmexpand{D4M['km_expand']}.json"
    centres = methods.read_prototypes(folder / "distil" / f"D4M-{ipc}" / name)
    few = data.subset([int(i) for c in range(10) for i in (data.labels == c).nonzero()[:4, 0]])
    found: dict[str, dict[int, float]] = {"D4M": {}, "Minimax": {}}
    for size in (1, 20):
        for method, rates in found.items():
            seen: list[tuple[float, int]] = []

            def told(done: int, _: int, seen: list[tuple[float, int]] = seen) -> None:
                seen.append((time.perf_counter(), done))

            job = methods.Job(device="cpu", on_progress=told)
            if method == "D4M":
                config = methods.D4MConfig(**{**D4M, "ipc": 4, "batch_size": size})
                four = {prompt: of_class[:4] for prompt, of_class in centres.items()}
                methods.d4m(data, folder / "models" / "sd", config, prototypes=four, job=job)
                steps = int(config.strength * config.steps)
            else:
                given = methods.MinimaxConfig(
                    **{**MINIMAX, "ipc": 4, "batch_size": 40, "sample_batch": size}
                )
                methods.minimax(few, folder / "models" / "dit", given, job=job)
                steps, seen = given.steps, seen[1:]  # one step of fine-tuning
            images = (seen[-1][1] - seen[0][1]) / steps
            rates[size] = images / (seen[-1][0] - seen[0][0])
    return found


def table(run: dict[str, Any]) -> str:
    """Accuracies of a result file in Markdown, mean and standard deviation over students."""
    cells = {(cell["method"], cell["regime"]): cell for cell in run["compared"]["cells"]}
    regimes = list(dict.fromkeys(regime for _, regime in cells))
    lines = [f"| set | {' | '.join(regimes)} |", "|---|" + "---|" * len(regimes)]
    for name in SHOWN:
        found = [cells[name, regime] for regime in regimes]
        shown = [f"{100 * cell['mean']:.1f} ± {100 * cell['std']:.1f}" for cell in found]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Trains the models, makes the sets and compares them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generative",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="students a set and regime")
    parser.add_argument("--epochs", type=int, default=400, help="of a student")
    parser.add_argument("--run", type=Path, default=Path("runs/generative"))
    options = parser.parse_args()
    # Small layers: a second thread adds a quarter at most.
    torch.set_num_threads(1)
    data, test = (load("fashion-mnist-mini", split=split) for split in ("train", "test"))
    assert isinstance(data, ImageDataset)
    folder = options.run
    folder.mkdir(parents=True, exist_ok=True)
    seconds = trained_models(data, folder)
    teacher = train_teacher(
        data, MODEL, test_set=test, epochs=10, seed=SEED, out=folder / "teacher"
    )
    sets = {name: make(name, options.ipc, data, teacher, folder) for name in SHOWN}
    compared = compare_sets(
        sets,
        MODEL,
        ComparisonConfig(seeds=options.seeds, epochs=options.epochs),
        test_set=test,
        teacher=teacher.model,
        teacher_info={"accuracy": teacher.record["accuracy"]},
        out=folder / "compared",
    )
    out = RESULTS / "generative" / "smoke.json"
    run = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": metadata.collect(torch.device("cpu")),
        "command": f"python -m benchmarks.generative --ipc {options.ipc} --seeds {options.seeds} "
        f"--epochs {options.epochs}",
        "data": "fashion-mnist-mini",
        "model": MODEL,
        "student_epochs": options.epochs,
        "teacher_accuracy": teacher.record["accuracy"],
        "training": {
            "batch": BATCH,
            "steps": {"VAE": VAE_STEPS, "UNet": UNET_STEPS, "DiT": DIT_STEPS},
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
        },
        "settings": {"DM": DM, "D4M": D4M, "Minimax": MINIMAX},
        "images_per_second": {
            name: {size: round(rate, 2) for size, rate in rates.items()}
            for name, rates in images_per_second(data, folder, options.ipc).items()
        },
        "compared": compared.to_dict(),
    }
    write(run, out)
    print(table(run), *compared.sentences, f"written: {out}", sep="\n")


if __name__ == "__main__":
    main()
