"""D4M on a tiny Stable Diffusion model, through diffusers' loading code, step by step."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from generative_cases import tiny_dit, tiny_sd
from PIL import Image
from sklearn.cluster import MiniBatchKMeans
from small_scale_cases import squares

from pyddfast.data import read_layout, write_layout
from pyddfast.methods import D4MConfig, Job, d4m, read_prompts, read_prototypes, write_prototypes
from pyddfast.methods.prototypes import class_prototypes
from pyddfast.random import Purpose, generator, permutation

CPU = Job(device="cpu")
PROMPTS = ["a shirt", "trousers", "an ankle boot"]
SHORT = D4MConfig(ipc=4, clusters=2, steps=5, km_expand=2, batch_size=3, seed=3)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd(tmp_path_factory.mktemp("sd") / "model")


def latents_of(data, sd):
    """Of every image, one by one, in float64."""
    vae = diffusers.AutoencoderKL.from_pretrained(sd / "vae").double()
    found = []
    with torch.no_grad():
        for index, image in enumerate(data.images.double()):
            posterior = vae.encode(image[None] / 255 * 2 - 1).latent_dist
            noise = torch.randn(4, 4, 4, generator=generator(3, Purpose.LATENT, index))
            found.append((posterior.mean + posterior.std * noise)[0] * vae.config.scaling_factor)
    return torch.stack(found)


@pytest.mark.parametrize(
    ("semantics", "rest"),
    [
        ("paper", [1, 1, 1]),  # 9 latents in batches of 4: the ninth too
        ("official", [0, 0, 0]),  # a rest of 1 is less than 2 prototypes: nobody's
    ],
)
def test_prototypes_are_scikit_learns(sd, tmp_path, semantics, rest):
    data = squares()
    config = dataclasses.replace(SHORT, semantics=semantics)
    d4m(data, sd, config, prompts=PROMPTS, job=Job(device="cpu", out=tmp_path / "run"))
    found = read_prototypes(tmp_path / "run" / "squares-ipc2-kmexpand2.json")
    assert list(found) == PROMPTS
    latents, order = latents_of(data, sd), permutation(3, Purpose.PROTOTYPE, len(data))
    for label, prompt in enumerate(PROMPTS):
        members = order[data.labels[order] == label]
        model = MiniBatchKMeans(n_clusters=2, random_state=3, batch_size=4, n_init="auto")
        flat = latents[members].flatten(1).float().numpy()
        for start in (0, 4, 8)[: 2 + rest[label]]:
            model.partial_fit(flat[start : start + 4])
        want = torch.from_numpy(model.cluster_centers_).view(2, 4, 4, 4)
        # Float32 of the VAE against float64, through k-means.
        torch.testing.assert_close(found[prompt], want, rtol=1e-4, atol=1e-4)


def test_official_fits_the_rest_of_the_last_class_alone(sd, tmp_path):
    data = squares(per_class=7)
    config = dataclasses.replace(SHORT, semantics="official")  # 7 = 4 + 3, and 3 >= 2
    job = Job(device="cpu", out=tmp_path / "run")
    d4m(data, sd, config, prompts=PROMPTS, job=job)
    found = read_prototypes(tmp_path / "run" / "squares-ipc2-kmexpand2.json")
    latents, order = latents_of(data, sd).float(), permutation(3, Purpose.PROTOTYPE, len(data))
    last = int(data.labels[order[-1]])
    for label, prompt in enumerate(PROMPTS):
        own = latents[order[data.labels[order] == label]]
        want = class_prototypes(own, 2, 4, seed=3, fit_rest=label == last)
        torch.testing.assert_close(found[prompt], want, rtol=1e-4, atol=1e-4)
        other = class_prototypes(own, 2, 4, seed=3, fit_rest=label != last)
        assert not torch.allclose(want, other, atol=1e-3)


def test_an_image_is_the_prototype_denoised_alone(sd):
    data = squares()
    g = torch.Generator().manual_seed(0)
    given = {prompt: torch.randn(2, 4, 4, 4, generator=g) for prompt in PROMPTS}
    config = dataclasses.replace(SHORT, image_size=6)
    made = d4m(data, sd, config, prompts=PROMPTS, prototypes=given, job=CPU)
    assert made.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (made.kind, made.meta["model_size"]) == ("synthetic", 8)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    unet, scheduler = pipe.unet.double(), pipe.scheduler
    encode = pipe.text_encoder.double()
    with torch.no_grad():
        for place, label in enumerate(made.labels.tolist()):
            slot = place % 4
            words = pipe.tokenizer(
                ["cartoon, anime, painting", PROMPTS[label]],
                padding="max_length", max_length=24, truncation=True, return_tensors="pt",
            )  # fmt: skip
            text = encode(words.input_ids).last_hidden_state
            noise = torch.randn(1, 4, 4, 4, generator=generator(3, Purpose.DENOISE, label, slot))
            scheduler.set_timesteps(5)
            # A strength of 0.7 skips 5 - int(3.5) = 2 of 5 steps.
            times = scheduler.timesteps[2:]
            x = scheduler.add_noise(given[PROMPTS[label]][slot % 2][None], noise, times[:1])
            x = x.double()
            for t in times:
                away, towards = unet(torch.cat([x, x]), t, text).sample.chunk(2)
                x = scheduler.step(away + 8.0 * (towards - away), t, x).prev_sample
            pixels = pipe.vae.double().decode(x / pipe.vae.config.scaling_factor).sample
            grey = ((pixels[0, 0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            want = np.asarray(Image.fromarray(grey).resize((6, 6), Image.Resampling.BICUBIC))
            # A level of rounding in float32, spread by the bicubic filter.
            assert np.abs(made.images[place, 0].numpy().astype(int) - want).max() <= 2


def test_batches_change_nothing_but_rounding_and_files_go_round(sd, tmp_path):
    data = squares()
    job = Job(device="cpu", out=tmp_path / "run")
    made = d4m(data, sd, SHORT, prompts=PROMPTS, job=job)
    single = d4m(data, sd, dataclasses.replace(SHORT, batch_size=1), prompts=PROMPTS, job=CPU)
    assert (made.images.int() - single.images.int()).abs().max() <= 1
    half = d4m(data, sd, dataclasses.replace(SHORT, precision="bf16"), prompts=PROMPTS, job=CPU)
    assert 0 < (made.images.float() - half.images.float()).abs().mean() < 10  # of a spread of 50
    # From the JSON file, with other noise in the second round of the prototypes.
    file = tmp_path / "run" / "squares-ipc2-kmexpand2.json"
    again = d4m(data, sd, SHORT, prompts=PROMPTS, prototypes=file, job=CPU)
    assert torch.equal(again.images, made.images)
    assert not torch.equal(made.images[0], made.images[2])
    assert json.loads(file.read_text())[PROMPTS[1]] == read_prototypes(file)[PROMPTS[1]].tolist()
    write_prototypes(tmp_path / "copy.json", PROMPTS, read_prototypes(file).values())
    assert (tmp_path / "copy.json").read_bytes() == file.read_bytes()
    write_layout(made, tmp_path / "official", "d4m")
    back = read_layout(tmp_path / "official", normalization=data.normalization)
    assert torch.equal(back.images, made.images)
    assert (tmp_path / "official" / "2" / "2-image30.png").is_file()


def test_progress_counts_latents_and_denoising_steps(sd):
    seen = []
    job = Job(device="cpu", on_progress=lambda done, total: seen.append((done, total)))
    d4m(squares(), sd, SHORT, prompts=PROMPTS, job=job)
    assert seen[-1] == (27 + 12 * 3, 27 + 12 * 3)


def test_grey_images_and_an_rgb_model(tmp_path):
    sd = tiny_sd(tmp_path / "rgb", channels=3)
    made = d4m(squares(), sd, SHORT, prompts=PROMPTS, job=CPU)
    assert made.images.shape == (12, 1, 8, 8)
    assert made.images.float().std() > 1


def test_the_official_label_file(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("tench, Tinca tinca\t0\ngoldfish\n\n")
    assert read_prompts(file) == ["tench, Tinca tinca", "goldfish"]
    # A mark of the encoding is no letter, and what comes after the tab is no prompt.
    file.write_bytes("\ufeffa shirt \t0\n\t1\n".encode() + b"boot")
    assert read_prompts(file) == ["a shirt", "", "boot"]
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"labels\.txt is no UTF-8 text"):
        read_prompts(file)


def test_bad_input_is_refused_by_name(sd, tmp_path, monkeypatch):
    data = squares()

    def refused(message, kind=ValueError, *, data=data, model=sd, config=SHORT, **given):
        with pytest.raises(kind, match=message):
            d4m(data, model, config, **{"prompts": PROMPTS, "job": CPU, **given})

    refused("is no folder", FileNotFoundError, model=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused("model_index.json is missing", FileNotFoundError, model=tmp_path / "empty")
    refused("holds a DiTPipeline, this needs a Stable", model=tiny_dit(tmp_path / "dit"))
    broken = tiny_sd(tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    refused("broken cannot be loaded", model=broken)
    few = squares(per_class=3)
    refused(
        r"needs 4 images of every class, class 0 \(a\) has 3",
        data=few, config=dataclasses.replace(SHORT, clusters=4),
    )  # fmt: skip
    refused("km_expand = 2 and semantics='official' needs 4", data=few,
            config=dataclasses.replace(SHORT, semantics="official"))  # fmt: skip
    refused("3 are needed, got 2", prompts=PROMPTS[:2])
    refused("prompt of class 1 is missing", prompts=["a", " ", "b"])
    refused("classes 0 and 2 have the same prompt", prompts=["a", "b", "a"])
    synsets = dataclasses.replace(data, class_names=("n01440764", "n01443537", "n01484850"))
    refused("prompts are missing: the class names are identifiers", data=synsets, prompts=None)
    refused("class 1 is the identifier n01443537", prompts=["a", "n01443537", "b"])
    refused("prompts must be a list, one a class, got the string 'abc'", TypeError, prompts="abc")
    floats = dataclasses.replace(data, images=data.images.float())
    refused("must hold uint8 images", data=floats)
    refused("prototypes has none of 'trousers'", prototypes={"a shirt": torch.zeros(2, 4, 4, 4)})
    wrong = {prompt: torch.zeros(2, 4, 3, 3) for prompt in PROMPTS}
    refused(r"must be \(K, 4, 4, 4\) at model_size 8", prototypes=wrong)
    nan = {prompt: torch.full((2, 4, 4, 4), torch.nan) for prompt in PROMPTS}
    refused("prototypes of 'a shirt' must be finite", prototypes=nan)
    lists = {prompt: [[[[0.0]]]] for prompt in PROMPTS}
    refused("prototypes of 'a shirt' must be a tensor, got list", TypeError, prototypes=lists)
    three = {prompt: torch.zeros(3, 4, 4, 4) for prompt in PROMPTS}
    refused("ipc a multiple", prototypes=three)
    refused("must be a multiple of 2", config=dataclasses.replace(SHORT, model_size=7))
    with pytest.raises(ValueError, match="ipc must be a multiple of clusters, got 4 and 3"):
        D4MConfig(ipc=4, clusters=3)
    with pytest.raises(ValueError, match="strength must lie in"):
        D4MConfig(strength=1.5)
    with pytest.raises(ValueError, match="less than one step"):
        D4MConfig(strength=0.1, steps=5)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", full)
    refused(r"denoising ran out of memory: lower batch_size \(3\)", MemoryError)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(r"'diffusers', which is not installed.*pyddfast\[generative\]", ModuleNotFoundError)


def test_nothing_of_the_extra_is_imported_before_it_is_used():
    code = "import sys, pyddfast.methods, pyddfast.cli.generative as g; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "pyddfast.methods.d4m" in modules
    assert not {"diffusers", "transformers", "accelerate", "sklearn"} & set(modules)
