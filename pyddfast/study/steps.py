"""What each kind of job does: settings and the folders of what it needs in, files and JSON out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pyddfast import coresets
from pyddfast.analysis.corruptions import corrupted
from pyddfast.analysis.objectives import evaluate_objectives
from pyddfast.analysis.ood import corruption_accuracy, corruption_sets
from pyddfast.coresets import TrainingDynamics
from pyddfast.coresets.cad_prune import check_cad
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder, load
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import read_json, read_tensors, write_tensors
from pyddfast.study.objectives import OBJECTIVES
from pyddfast.study.sets import METHODS, Ingredients
from pyddfast.train import (
    Budget,
    Epochs,
    Samples,
    predict,
    teacher_recipe,
    train_experts,
    train_student,
    train_teacher,
)
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, build_model
from pyddfast.train.student import paper_recipe_of
from pyddfast.train.teacher_folder import load_teacher

__all__ = ["STEPS", "Step", "data_facts", "images", "unpack_right"]

# Scores of the one recorded training.
RECORDED = ("dyn_unc", "dual", "aum", "forgetting")


@lru_cache(maxsize=4)
def images(name: str, root: str | None, image_size: int | None, split: str) -> ImageDataset:
    """A split in memory; a process reads it once."""
    found = load(name, root=root, split=split, image_size=image_size)
    return found if isinstance(found, ImageDataset) else found.resident()


def data_facts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of both splits, for the keys of jobs."""
    return {split: describe_data(images(**data, split=split)) for split in ("train", "test")}


@dataclass(frozen=True)
class Step:
    """A job at work.

    Attributes:
        settings: Of the job.
        needs: Folders of the jobs that it needs.
        folder: Its own; ``work`` in it is what an interrupted job goes on from.
        device: None: CUDA where there is one, else the CPU.
        on_progress: Told (done, total) by long jobs.
    """

    settings: Mapping[str, Any]
    needs: Mapping[str, Path]
    folder: Path
    device: str | None = None
    on_progress: Callable[[int, int], None] = field(default=lambda done, total: None)

    @property
    def work(self) -> Path:
        """Run folder of the function that does the work."""
        return self.folder / "work"

    @property
    def train(self) -> ImageDataset:
        """Training split."""
        return images(**self.settings["data"], split="train")

    @property
    def test(self) -> ImageDataset:
        """Test split."""
        return images(**self.settings["data"], split="test")

    @property
    def model(self) -> ModelSpec:
        """The network of the settings."""
        network = self.settings["network"]
        return network["model"], network["options"]

    def common(self) -> dict[str, Any]:
        """Arguments that trainings share."""
        return {
            "test_set": self.test,
            "seed": self.settings["seed"],
            "device": self.device,
            "out": self.work,
            "progress": False,
        }


def _teacher(step: Step) -> dict[str, Any]:
    if step.settings["folder"]:
        found = load_teacher(Path(step.settings["folder"]), step.test, step.device)
        # Where the jobs that need it look for it.
        link = step.folder / "teacher"
        if not link.is_symlink():
            link.symlink_to(Path(step.settings["folder"]).resolve())
    else:
        out = step.folder / "teacher"
        options = {**step.common(), "out": out}
        found = train_teacher(step.train, step.model, epochs=step.settings["epochs"], **options)
    return {key: found.record[key] for key in ("accuracy", "sha256")}


def _embedding(step: Step) -> dict[str, Any]:
    teacher = load_teacher(step.needs["teacher"], step.test, step.device)
    found = coresets.embed(step.train, teacher.model, out=step.work, progress=False)
    tensors = {"logits": found.logits, "features": found.features}
    write_tensors(step.folder / "embedding.safetensors", tensors, dict(found.meta))
    return {"images": len(found)}


def _young(step: Step) -> dict[str, Any]:
    scores = coresets.el2n_scores(
        step.train, step.model, repeats=step.settings["networks"], epochs=step.settings["epochs"],
        **step.common(),
    )  # fmt: skip
    scores.save(step.folder / "el2n.npz")
    return {"mean": float(scores.values.mean())}


def _recorded(step: Step) -> dict[str, Any]:
    dynamics = TrainingDynamics(
        len(step.train), window=step.settings["window"], record=("one_minus_p",)
    )
    found = coresets.record_training(
        step.train, step.model, dynamics, epochs=step.settings["epochs"], **step.common()
    )
    for name in RECORDED:
        found.scores(name).save(step.folder / f"{name}.npz")
    return {"accuracy": found.teacher.record["accuracy"]}


def _cad(step: Step) -> dict[str, Any]:
    s = step.settings
    options: dict[str, Any] = {"ipc": s["ipc"], "downstream_epochs": s["epochs"],
                               "ticks": s["ticks"]}  # fmt: skip
    _, used, samples = check_cad(step.train, **options)
    recipe = teacher_recipe(used.epochs, batch_size=used.batch_size, schedule=s["schedule"])
    scores = coresets.cad_scores(step.train, step.model, recipe=recipe, **options, **step.common())
    scores.save(step.folder / "cad.npz")
    return {"samples": samples}


def _experts(step: Step) -> dict[str, Any]:
    s = step.settings
    found = train_experts(
        step.train, step.model, count=s["count"], epochs=s["epochs"], **step.common()
    )
    return {"experts": len(found)}


def _set(step: Step) -> dict[str, Any]:
    s = step.settings
    parts = Ingredients(
        step.train, step.test, step.model, step.needs, s["ipc"], s["epochs"], step.work,
        s["seed"], step.device, step.on_progress,
    )  # fmt: skip
    target = step.folder / "set"
    if not target.exists():  # a kill between the set and the note that it is done
        _repeated(METHODS[s["method"]].make(parts, **s["options"]), s.get("repeat", 1)).save(target)
    made = DistilledSet.load(target)
    return {"images": len(made), "kind": made.kind}


def _repeated(made: DistilledSet, times: int) -> DistilledSet:
    """Every image so many times."""
    if times == 1:
        return made
    soft = made.soft_labels
    return replace(
        made,
        images=made.images.repeat(times, 1, 1, 1),
        labels=made.labels.repeat(times),
        soft_labels=None if soft is None else soft.repeat(times, 1),
        meta={**made.meta, "repeated": times},
    )


def _objective(step: Step) -> dict[str, Any]:
    s, device = step.settings, step.device
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in s["options"].items()}
    sets = {
        name: DistilledSet.load(folder / "set")
        for name, folder in step.needs.items()
        if name not in ("teacher", "experts")
    }
    common = {**options, "seed": s["seed"], "device": device}
    given: tuple[Any, ...]
    if s["name"] in ("sre2l", "dwa"):
        given = (load_teacher(step.needs["teacher"], step.test, device).model,)
    elif s["name"] == "tm":
        given = (step.needs["experts"] / "work", step.model)
    else:
        given = (step.train, step.model)
    objective = OBJECTIVES[s["name"]](*given, **common)
    found = evaluate_objectives([objective], sets)
    (values,) = found["objectives"].values()
    return {"sets": found["sets"], **values}


def _student(step: Step) -> dict[str, Any]:
    s, test = step.settings, step.test
    made = DistilledSet.load(step.needs["set"] / "set")
    known = None
    if "teacher" in step.needs:
        known = load_teacher(step.needs["teacher"], test, step.device)
    budget: Budget | None = None
    if s["samples"] is not None:
        budget = Samples(s["samples"])
    elif s["epochs"] is not None:
        budget = Epochs(s["epochs"])
    options = {key: value for key, value in step.common().items() if key != "seed"}
    if "batch_size" in s:
        options["recipe"] = paper_recipe_of(made, s["regime"], batch_size=s["batch_size"])
    found = train_student(
        made, s["regime"], step.model, teacher=None if known is None else known.model,
        teacher_info=None if known is None else {"accuracy": known.record["accuracy"]},
        budget=budget, seeds=(s["seed"],), evaluations=s["evaluations"], **options,
    )  # fmt: skip
    (seed,) = found.seeds
    network, size = _trained(step, made, step.folder)
    logits = predict(network, test, normalization=made.normalization, size=size)
    right = logits.argmax(1).cpu() == test.labels.cpu()
    return {
        "accuracy": seed.last_accuracy,
        "epochs": seed.last_epoch,
        "diverged": seed.diverged,
        "history": [
            {"epoch": row["epoch"], "accuracy": row["test_accuracy"]} for row in seed.history
        ],
        "test_count": len(test),
        # Image by image, for paired comparisons: eight to a byte.
        "right": np.packbits(right.numpy()).tobytes().hex(),
    }


def _trained(step: Step, made: DistilledSet, folder: Path) -> tuple[nn.Module, int | None]:
    """A student that a job has trained, and the side that its images are resized to."""
    number = step.settings["seed"]
    size = read_json(folder / "work" / "config.json")["config"]["recipe"]["image_size"]
    height, width = made.images.shape[-2:] if size is None else (size, size)
    network = build_model(
        step.model, number, num_classes=made.num_classes, in_channels=made.images.shape[1],
        image_size=(height, width),
    )  # fmt: skip
    network.load_state_dict(read_tensors(folder / "work" / f"seed{number}.safetensors")[0])
    return network.to(resolve_device(step.device)), size


def _corrupt(step: Step) -> dict[str, Any]:
    s = step.settings
    made = {
        str(severity): corrupted(step.test, s["name"], severity, seed=s["seed"]).images
        for severity in s["severities"]
    }
    write_tensors(step.folder / "images.safetensors", made)
    return {"images": sum(len(images) for images in made.values())}


def _ood(step: Step) -> dict[str, Any]:
    s, test = step.settings, step.test
    made = DistilledSet.load(step.needs["set"] / "set")
    network, size = _trained(step, made, step.needs["student"])
    sets: dict[tuple[str, int], ImageDataset | ImageFolder] = {}
    if s["root"] is not None:
        found = corruption_sets(
            s["root"], test.class_names, normalization=made.normalization,
            image_size=test.images.shape[-1],
        )  # fmt: skip
        sets = {
            key: one
            for key, one in found.items()
            if key[1] in s["severities"] and (not s["names"] or key[0] in s["names"])
        }
    else:
        for name in step.needs.keys() - {"set", "student"}:
            tensors, _ = read_tensors(step.needs[name] / "images.safetensors")
            for severity, pixels in tensors.items():
                sets[name, int(severity)] = replace(test, images=pixels)
    accuracies = corruption_accuracy(
        {"student": network}, sets, normalization=made.normalization, size=size
    )["student"]
    return {"accuracy": accuracies.mean, "by_corruption": accuracies.by_corruption()}


def unpack_right(result: Mapping[str, Any]) -> torch.Tensor:
    """For each test image whether the student was right, bool (test_count,)."""
    packed = np.frombuffer(bytes.fromhex(result["right"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=result["test_count"]).astype(bool))


STEPS: dict[str, Callable[[Step], dict[str, Any]]] = {
    "teacher": _teacher,
    "embedding": _embedding,
    "young": _young,
    "recorded": _recorded,
    "cad": _cad,
    "experts": _experts,
    "set": _set,
    "objective": _objective,
    "student": _student,
    "corrupt": _corrupt,
    "ood": _ood,
}
