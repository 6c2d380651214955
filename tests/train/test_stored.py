"""Relabelling, and students that replay what was stored."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pyddfast.data import (
    DistilledSet,
    Normalization,
    SoftLabels,
    SoftLabelWriter,
    export_fkd,
    import_fkd,
    recode,
)
from pyddfast.models import create
from pyddfast.train import Epochs, Execution, Recipe, Samples, Steps, recipe, relabel, train_student
from pyddfast.train.views import make_views

COUNT, CLASSES, SIDE = 22, 5, 16
MODEL = ("convnet-d1", {"width": 8, "norm": "batch"})


def make_set(**changes: Any) -> DistilledSet:
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "images": torch.randint(
            256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator
        ),
        "labels": torch.arange(COUNT) % CLASSES,
        "num_classes": CLASSES,
        "normalization": Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
        "factor": 2,
        "kind": "patches",
    }
    return DistilledSet(**{**values, **changes})


def make_teacher() -> nn.Module:
    return create(MODEL[0], num_classes=CLASSES, in_channels=3, image_size=SIDE, seed=9, **MODEL[1])


def make_recipe(**changes: Any) -> Recipe:
    # The last of three batches is smaller; rrc_scale so that crops shrink and grow.
    values = {"batch_size": 8, "epochs": 3, "warmup_epochs": 0, "rrc_scale": (0.3, 1.0)}
    return recipe("sl-kd", "large", **{**values, **changes})


def train(tmp_path: Path, name: str, **options: Any) -> dict[str, Tensor]:
    defaults: dict[str, Any] = {
        "test_set": make_set(),
        "seeds": (7,),
        "evaluations": 1,
        "device": "cpu",
        "progress": False,
        "out": tmp_path / name,
    }
    train_student(options.pop("on", make_set()), "sl-kd", MODEL, **{**defaults, **options})
    return load_file(tmp_path / name / "seed7.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cutmix": None, "patch_shuffle": "off"},
        {"image_size": 12},  # views of another size than the images
        {"patch_shuffle_first": False},
    ],
)
def test_a_replay_trains_as_the_teacher_beside_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    used = make_recipe(**changes)
    side = used.image_size or SIDE
    teacher = create(MODEL[0], num_classes=CLASSES, image_size=side, seed=9, **MODEL[1])
    options = {"test_set": make_set(), "recipe": used}
    online = train(tmp_path, "online", teacher=teacher, **options)
    store = relabel(
        make_set(),
        teacher,
        out=tmp_path / "relabel",
        recipe=used,
        form="float32",
        seed=7,
        device="cpu",
        progress=False,
    )
    replayed = train(tmp_path, "replayed", labels=store)  # the store's own recipe
    assert online.keys() == replayed.keys()
    for name, value in online.items():
        assert torch.equal(replayed[name], value), name
    # A training over official files that were made of the store is the same one.
    shuffled = store.info.patches_shuffled
    lost = pytest.warns(UserWarning, match="loses patches_shuffled") if shuffled else nullcontext()
    with lost:
        files = export_fkd(store, tmp_path / "files")
    again = import_fkd(files, tmp_path / "again", patches_shuffled=shuffled)
    imported = train(tmp_path, "imported", labels=again, recipe=used)
    for name, value in online.items():
        assert torch.equal(imported[name], value), name
    if shuffled:  # what the warning is about
        unsaid = import_fkd(files, tmp_path / "unsaid")
        other = train(tmp_path, "other", labels=unsaid, recipe=used)
        assert not all(torch.equal(other[name], value) for name, value in online.items())
    elif "patch_shuffle" in changes:
        with pytest.raises(ValueError, match=r"patches_shuffled must be False .* of 7 elements"):
            import_fkd(files, tmp_path / "refused", patches_shuffled=True)
        assert not (tmp_path / "refused").exists()


def test_a_store_of_other_images_is_refused(tmp_path: Path) -> None:
    other = make_set(images=make_set().images.flip(0))
    options: dict[str, Any] = {
        "out": tmp_path / "relabel",
        "recipe": make_recipe(),
        "device": "cpu",
        "progress": False,
    }
    store = relabel(make_set(), make_teacher(), **options)
    with pytest.raises(ValueError, match="images_sha256"):
        relabel(other, make_teacher(), **options)
    with pytest.raises(ValueError, match="made for other images"):
        train(tmp_path, "other", on=other, labels=store)
    # What official files may say, of whatever image.
    far = tmp_path / "far"
    with SoftLabelWriter(far, store.info) as writer:
        for epoch, number in itertools.product(range(3), range(3)):
            batch = store.batch(epoch, number)
            writer.write(dataclasses.replace(batch, mix_bbox=(0, 0, 10**9, 10**9)))
    with pytest.raises(ValueError, match="mix_bbox of epoch 0, batch 0 leaves the views"):
        train(tmp_path, "far-student", labels=SoftLabels(far))


def test_parts_of_a_batch_are_replayed_whole(tmp_path: Path) -> None:
    store = relabel(
        make_set(),
        make_teacher(),
        out=tmp_path / "relabel",
        recipe=make_recipe(),
        seed=7,
        device="cpu",
        progress=False,
    )
    model = ("convnet-d1", {"width": 8})  # without batch norm, parts do not matter
    options: dict[str, Any] = {"labels": store, "budget": Steps(2), "device": "cpu"}
    weights = []
    for accumulate in (1, 3):
        out = tmp_path / str(accumulate)
        train_student(
            make_set(),
            "sl-kd",
            model,
            test_set=make_set(),
            seeds=(7,),
            progress=False,
            evaluations=1,
            out=out,
            execution=Execution(accumulate=accumulate),
            **options,
        )
        weights.append(load_file(out / "seed7.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


def test_logits_are_the_teachers_on_the_official_view(tmp_path: Path) -> None:
    """Each stored batch, replayed by Pillow from its own file alone."""
    distilled = make_set(kind="synthetic", factor=1)
    teacher = make_teacher()
    store = relabel(
        distilled,
        teacher,
        out=tmp_path / "relabel",
        recipe=make_recipe(),
        form="float32",
        device="cpu",
        progress=False,
    )
    export_fkd(store, tmp_path / "files")
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    flips, shares = [], []
    for epoch in range(3):
        for number in range(3):
            file = tmp_path / "files" / f"epoch_{epoch}" / f"batch_{number}.tar"
            coords, flip, order, lam, box, logits, index = torch.load(file, weights_only=True)
            views = []
            for i, c, f in zip(index, coords, flip, strict=True):
                image = Image.fromarray(distilled.images[i].permute(1, 2, 0).numpy())
                top, left, rows, cols = (float(v) * SIDE for v in c)
                view = image.crop((left, top, left + cols, top + rows))
                view = view.resize((SIDE, SIDE), Image.BILINEAR)
                view = view.transpose(Image.FLIP_LEFT_RIGHT) if f else view
                views.append(torch.from_numpy(np.array(view)).permute(2, 0, 1) / 255)
            x = (torch.stack(views) - mean) / std
            y0, x0, y1, x1 = box
            x[:, :, y0:y1, x0:x1] = x[order][:, :, y0:y1, x0:x1]
            assert lam == 1 - (y1 - y0) * (x1 - x0) / SIDE**2
            with torch.no_grad():
                want = teacher.eval()(x)
            # Pillow rounds pixels to whole numbers: 0.5/255 over std, through a small network.
            assert (want - logits).abs().max() < 0.02 * want.abs().max()
            flips.append(flip)
            shares.append(coords[:, 2] * coords[:, 3])
    assert 0.2 < torch.cat(flips).float().mean() < 0.8
    assert 0.25 < torch.cat(shares).min() < torch.cat(shares).max() <= 1


KILLED = """
import os, signal, sys
from pyddfast.data import SoftLabelWriter
from pyddfast.train import relabel
from tests.train.test_stored import make_recipe, make_set, make_teacher
write = SoftLabelWriter.write
def stop(self, batch):
    write(self, batch)
    if self.done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
SoftLabelWriter.write = stop
relabel(make_set(), make_teacher(), out=sys.argv[1], recipe=make_recipe(), device="cpu")
"""


def test_a_killed_relabelling_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": make_recipe(), "device": "cpu", "progress": False}
    whole = relabel(make_set(), make_teacher(), out=tmp_path / "whole", **options)
    out = tmp_path / "out"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, str(out), "4"]  # inside the second epoch
    assert subprocess.run(command, check=False, cwd=root).returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="is unfinished"):
        SoftLabels(out / "labels")
    again = relabel(make_set(), make_teacher(), out=out, **options)
    assert {f.name for f in again.path.iterdir()} == {f.name for f in whole.path.iterdir()}
    for file in whole.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes()
    with pytest.raises(ValueError, match="another configuration: seed was 0, now 1"):
        relabel(make_set(), make_teacher(), out=out, seed=1, **options)


def test_a_killed_replay_ends_with_the_same_bytes(tmp_path: Path) -> None:
    store = relabel(
        make_set(),
        make_teacher(),
        out=tmp_path / "relabel",
        recipe=make_recipe(),
        device="cpu",
        progress=False,
    )
    whole = train(tmp_path, "whole", labels=store, checkpoint_seconds=0)

    class StopError(Exception):
        pass

    class Stopping(SoftLabels):
        def batch(self, epoch: int, position: int) -> Any:
            if (epoch, position) == (1, 2):
                raise StopError
            return super().batch(epoch, position)

    with pytest.raises(StopError):
        train(tmp_path, "out", labels=Stopping(store.path), checkpoint_seconds=0)
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()
    for name, value in train(tmp_path, "out", labels=store, checkpoint_seconds=0).items():
        assert torch.equal(value, whole[name])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    used = make_recipe()
    store = relabel(
        make_set(),
        make_teacher(),
        out=tmp_path / "relabel",
        recipe=used,
        device="cpu",
        progress=False,
    )

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            train(tmp_path, "never", labels=store, **options)

    refused(
        "images in another order",
        on=make_set(labels=torch.arange(COUNT).flip(0) % CLASSES),
    )
    refused("batch size 8, .* has 11", recipe=make_recipe(batch_size=11))
    refused("made with image_size None, .* has 12", recipe=make_recipe(image_size=12))
    refused("labels for 3 epochs, the training has 4", budget=Epochs(4))
    refused("stored batches are replayed whole", budget=Samples(COUNT + 5))
    dsa = recipe("sl-kd", "small", batch_size=8)
    refused("of views by augmentation 'rrc', the recipe has 'dsa'", recipe=dsa)
    with pytest.raises(ValueError, match="a store of labels is for regime 'sl-kd', got 'sl'"):
        train_student(make_set(), "sl", MODEL, test_set=make_set(), labels=store)
    with pytest.raises(ValueError, match="need a recipe of regime 'sl-kd' with augmentation 'rrc'"):
        relabel(make_set(), make_teacher(), out=tmp_path / "no", recipe=dsa)
    wrong = create(MODEL[0], num_classes=6, image_size=SIDE, **MODEL[1])
    with pytest.raises(ValueError, match=r"logits \(8, 6\) for 8 images of 5 classes"):
        relabel(make_set(), wrong, out=tmp_path / "no", recipe=used, device="cpu")
    file = store.path / "logits.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged: epoch 2 has not the SHA-256"):
        train(tmp_path, "damaged", labels=SoftLabels(store.path))


def test_mixup_is_replayed(tmp_path: Path) -> None:
    """Files with MixUp: the student's loss is the KL on the mixed views."""
    used = make_recipe(patch_shuffle="off")
    teacher = make_teacher()
    store = relabel(
        make_set(), teacher, out=tmp_path / "relabel", recipe=used, device="cpu", progress=False
    )
    files = export_fkd(store, tmp_path / "files")
    for file in files.rglob("*.tar"):
        value = torch.load(file, weights_only=True)
        value[3], value[4] = 0.25, None
        torch.save(value, file)
    mixed = import_fkd(files, tmp_path / "mixed")
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.scale + x.new_zeros(len(x), CLASSES)

    train_student(
        make_set(),
        "sl-kd",
        lambda seed: Spy(),
        test_set=make_set(),
        labels=mixed,
        recipe=used,
        budget=Steps(1),
        seeds=(0,),
        device="cpu",
        progress=False,
    )
    batch = mixed.batch(0, 0)
    plain = dataclasses.replace(used, cutmix=None)
    views = make_views(make_set().images, make_set().normalization, plain, seed=0)
    assert batch.index is not None
    assert batch.mix_index is not None
    x = views(batch.index, torch.zeros_like(batch.index), 0)
    torch.testing.assert_close(seen[0], 0.25 * x + 0.75 * x[batch.mix_index])


def test_shortened_forms_train(tmp_path: Path) -> None:
    used = make_recipe()
    store = relabel(
        make_set(),
        make_teacher(),
        out=tmp_path / "relabel",
        recipe=used,
        form="float32",
        device="cpu",
        progress=False,
    )
    full = train(tmp_path, "full", labels=store)
    short = train(tmp_path, "short", labels=recode(store, tmp_path / "int8", "int8"))
    # AdamW's steps are of the size of the learning rate, 1e-3, whatever the gradient's.
    for name, value in full.items():
        assert (short[name] - value).abs().max() <= 2 * 9 * 1e-3
