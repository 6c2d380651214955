"""Model folders that are damaged, incomplete or hostile, and models whose arithmetic overflows."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from generative_cases import tiny_dit, tiny_sd
from safetensors.torch import load_file, save_file
from small_scale_cases import squares

from benchmarks.generative_models import small_text, small_unet, small_vae, write_sd
from pyddfast.methods import D4MConfig, Job, MinimaxConfig, d4m, minimax
from pyddfast.methods.latents import LatentCoder, open_pipeline

CPU = Job(device="cpu")
SD = D4MConfig(ipc=1, steps=4)
DIT = MinimaxConfig(ipc=1, epochs=1, steps=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"sd": tiny_sd(root / "sd"), "dit": tiny_dit(root / "dit")}


def removed(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def weights(file: str, change: Callable[[dict[str, torch.Tensor]], object]):
    def rewrite(folder: Path) -> None:
        held = load_file(folder / file)
        change(held)
        save_file(held, folder / file)

    return rewrite


def without(file: str, end: str):
    return weights(file, lambda held: held.pop(next(name for name in held if name.endswith(end))))


def settings(file: str, **changes: object) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        held = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**held, **changes}))

    return rewrite


def pickled(part: str, name: str, weights: str) -> Callable[[Path], None]:
    """Weights in a pickle that would write a file; the safetensors file is gone."""

    def rewrite(folder: Path) -> None:
        (folder / part / weights).unlink()

        class Evil:
            def __reduce__(self):
                return (Path.touch, (folder / "executed",))

        torch.save({"weight": Evil()}, folder / part / name)

    return rewrite


def looped(file: str) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(Path(file).name)

    return rewrite


NET = "diffusion_pytorch_model.safetensors"
CASES = [
    # Without its words a tokenizer of two tokens was made, to which all prompts are alike.
    ("sd", removed("tokenizer"), "has neither tokenizer.json nor vocab.json and merges.txt"),
    ("sd", removed("tokenizer/tokenizer.json"), "has neither tokenizer.json"),
    ("sd", removed("tokenizer/tokenizer_config.json"), "model_max_length is .* takes 24 tokens"),
    ("sd", removed("vae"), "vae/config.json is missing"),
    ("sd", removed("text_encoder/config.json"), "text_encoder/config.json is missing"),
    # What a file of weights lacks was drawn at random, by another seed each time.
    ("sd", without("text_encoder/model.safetensors", "weight"), "text_encoder has no weights for"),
    ("sd", without(f"unet/{NET}", "bias"), r"unet has no weights for .* \(1 such\)"),
    ("dit", without(f"transformer/{NET}", "weight"), "transformer has no weights for"),
    (
        "sd",
        settings("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        "FlowMatchEulerDiscreteScheduler has none",
    ),
    ("sd", pickled("unet", "diffusion_pytorch_model.bin", NET), "no file named .*safetensors"),
    ("sd", pickled("text_encoder", "pytorch_model.bin", "model.safetensors"), "safetensors"),
    ("sd", looped(f"unet/{NET}"), "no file named .*safetensors"),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_folder_that_is_not_whole_is_refused(models, tmp_path, case):
    kind, change, message = CASES[case]
    folder = tmp_path / "model"
    shutil.copytree(models[kind], folder)
    change(folder)
    out = tmp_path / "run"
    method, config = (d4m, SD) if kind == "sd" else (minimax, DIT)
    with pytest.raises(ValueError, match=f"model: {folder} cannot be loaded: .*{message}"):
        method(squares(), folder, config, job=Job(device="cpu", out=out))
    assert not out.exists()
    assert not (folder / "executed").exists()


def test_an_inpainting_model_is_refused_by_its_unet(tmp_path):
    parts = small_vae(), small_unet(channels=9), small_text()
    folder = write_sd(tmp_path / "model", *parts)
    settings("model_index.json", _class_name="StableDiffusionInpaintPipeline")(folder)
    with pytest.raises(ValueError, match="its VAE makes 4, its UNet takes 9"):
        d4m(squares(), folder, SD, job=CPU)


def test_the_published_dit_says_transformer_2d(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models["dit"], folder)
    settings("model_index.json", transformer=["diffusers", "Transformer2DModel"])(folder)
    settings("transformer/config.json", _class_name="Transformer2DModel")(folder)
    made = minimax(squares(), folder, DIT, job=CPU)
    assert torch.equal(made.images, minimax(squares(), models["dit"], DIT, job=CPU).images)


def test_words_and_merges_make_the_same_tokenizer(models, tmp_path):
    """Stable Diffusion 1.5 has no tokenizer.json."""
    folder = tmp_path / "model"
    shutil.copytree(models["sd"], folder)
    held = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(held["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    ids = [
        open_pipeline(
            path, "StableDiffusionImg2ImgPipeline", dtype=torch.float32, device=torch.device("cpu")
        ).tokenizer(["an ankle boot"])["input_ids"]
        for path in (folder, models["sd"])
    ]
    assert ids[0] == ids[1]
    assert len(ids[0][0]) == 2 + len("anankleboot")


def spoilt(file: str, name: str, value: float) -> Callable[[Path], None]:
    return weights(file, lambda held: held[name].fill_(value))


def test_what_is_not_finite_is_no_black_image(models, tmp_path):
    for part, name, what in (
        ("unet", "conv_out.bias", "generated images"),
        ("vae", "encoder.conv_out.bias", "encoded latents"),
    ):
        folder = tmp_path / part
        shutil.copytree(models["sd"], folder)
        spoilt(f"{part}/{NET}", name, float("nan"))(folder)
        with pytest.raises(FloatingPointError, match=f"{what} are not finite: .* damaged"):
            d4m(squares(), folder, SD, job=CPU)
    folder = tmp_path / "dit"
    shutil.copytree(models["dit"], folder)
    spoilt(f"vae/{NET}", "decoder.conv_out.bias", 1e30)(folder)  # infinite in fp16 alone
    with pytest.raises(FloatingPointError, match=r"generated images .* overflows in float16"):
        LatentCoder(
            open_pipeline(folder, "DiTPipeline", dtype=torch.float16, device=torch.device("cpu")),
            1,
        ).decode(torch.zeros(1, 4, 4, 4))
    spoilt(f"vae/{NET}", "decoder.conv_out.bias", float("inf"))(folder)
    with pytest.raises(FloatingPointError, match="generated images are not finite"):
        minimax(squares(), folder, DIT, job=CPU)


def test_a_run_goes_on_with_the_same_scale_of_latents_alone(models, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(models["sd"], folder)
    d4m(squares(), folder, SD, job=Job(device="cpu", out=out))
    moved = shutil.move(folder, tmp_path / "moved")
    d4m(squares(), moved, SD, job=Job(device="cpu", out=out, resume=True))
    settings("vae/config.json", scaling_factor=0.5)(moved)
    with pytest.raises(ValueError, match="model"):
        d4m(squares(), moved, SD, job=Job(device="cpu", out=out, resume=True))


def test_more_steps_than_the_model_has_are_refused_before_any_work(models, tmp_path):
    job = Job(device="cpu", out=tmp_path / "run")
    with pytest.raises(ValueError, match="steps must be at most the model's 1000, got 1001"):
        d4m(squares(), models["sd"], dataclasses.replace(SD, steps=1001), job=job)
    with pytest.raises(ValueError, match="steps must be at most the model's 1000, got 1001"):
        minimax(squares(), models["dit"], dataclasses.replace(DIT, steps=1001), job=job)
    assert not (tmp_path / "run").exists()
