"""The command that scores every image of a data set by one recorded training."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from pyddfast.cli.options import DataOptions, Flat, ModelOptions, TeacherOptions, plain
from pyddfast.coresets import DYNAMICS_SCORES, Scores, TrainingDynamics, record_training
from pyddfast.coresets.recorded import check_recording, training_device
from pyddfast.data import ImageDataset, ImageFolder
from pyddfast.data.digest import data_digest, describe_data
from pyddfast.data.stored import read_json, read_tensors
from pyddfast.ops.dynamics import Signal
from pyddfast.train import RunFolder, teacher_recipe
from pyddfast.train.distributed import join_ranks

__all__ = ["at", "read_scores", "score"]


# T of EL2N-SL in its paper.
_TEMPERATURE = 20.0
_NEEDS = "which --teacher DIR, --soft-labels image or --soft-labels view adds"


def score(
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    out: Path,
    epochs: int = 60,
    ticks: int | Literal["epoch"] = "epoch",
    mode: Literal["train", "eval"] = "train",
    window: int = 10,
    cad_window: int = 6,
    cad_average: int = 2,
    signal: Signal = "1-p",
    half: bool = False,
    soft_labels: Literal["none", "image", "view"] | None = None,
    temperature: float = _TEMPERATURE,
    grand: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Train once on the full data and write its scores of every image.

    OUT/scores.safetensors holds a float64 tensor a score, in the order of the data; OUT/scores.json
    what a high value means and how the training went; OUT/run/recorder.safetensors the recorder.
    Under torchrun the processes share every batch and the passes over the data.  The recorder
    has 67 bytes an image, and 4 more for each of entropy, nll, one_minus_p, el2n_sl, sharp
    and grand.

    Args:
        data: Which data.
        model: The network.
        teacher: Whose soft labels el2n_sl and sharp are measured against.
        out: Run folder.
        epochs: Passes over the data.
        ticks: epoch, or a number of equally spaced ticks.
        mode: train: the training's own logits; eval: a pass over the data a tick.
        window: J of Dyn-Unc and DUAL, in ticks.
        cad_window: J of CAD, in ticks.
        cad_average: W of CAD.
        signal: What the recorder's ring holds: 1-p, nlp or el2n.
        half: Keep the ring in half precision.
        soft_labels: Score el2n_sl and sharp, too: image: against the teacher's label of the
            un-augmented image, made once and kept (4 bytes an image and class); view: of what the
            network itself sees, by a forward pass of the teacher each time; none: leave them out.
            Default image where --teacher is given, else none.
        temperature: T of el2n_sl; all other scores have 1.
        grand: Score grand, too: the gradient norm of the last layer alone, whose inputs are looked
            at.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Seed of the training.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    kind = soft_labels or ("none" if teacher.teacher is None else "image")
    soft = kind != "none"
    if teacher.teacher is not None and not soft:
        raise ValueError("--teacher is for el2n_sl and sharp, which --soft-labels none leaves out")
    if not soft and temperature != _TEMPERATURE:
        raise ValueError(f"--temperature is of el2n_sl, {_NEEDS}")
    if not soft and teacher != TeacherOptions():
        raise ValueError(f"the --teacher options are for el2n_sl and sharp, {_NEEDS}")
    ranks = teacher.ranks() if soft else join_ranks()
    if soft:
        teacher.check()
    source = data.resident("train", image_size)
    dynamics = TrainingDynamics(
        len(source),
        window=window,
        cad_window=cad_window,
        cad_average=cad_average,
        record=(
            "entropy",
            "nll",
            *(() if signal == "el2n" else ("one_minus_p",)),
            *(("el2n_sl", "sharp") if soft else ()),
            *(("grand",) if grand else ()),
        ),
        soft_temperature=temperature if soft else None,
        signal=signal,
        ring_dtype=torch.float16 if half else torch.float32,
        device=training_device(device),
    )
    absent = {"dyn_unc", "dual", "one_minus_p"} if signal == "el2n" else set()
    absent |= {name for name in ("el2n_sl", "sharp", "grand") if name not in dynamics.record}
    names = [name for name in DYNAMICS_SCORES if name not in absent]
    recipe = teacher_recipe(epochs)
    check_recording(dynamics, names, recipe, ticks=ticks, mode=mode, has_teacher=soft)
    facts = {
        "task": "score",
        "epochs": epochs,
        "ticks": ticks,
        "mode": mode,
        "window": window,
        "cad_window": cad_window,
        "cad_average": cad_average,
        "signal": signal,
        "half": half,
        "image_size": image_size,
        "seed": seed,
        **plain(data),
        **plain(model),
    }
    if soft:
        facts |= {"soft_labels": kind, "temperature": temperature, **plain(teacher)}
    if grand:
        facts["grand"] = True
    facts["dataset"] = describe_data(source)
    if data.of_any_size:  # for those who read the files at their own sizes
        facts["files"] = data_digest(data.load("train"))
    with RunFolder(out, facts, resume=resume) if ranks.first else nullcontext() as run:
        ranks.wait()
        known = teacher.get(data, image_size, out, seed, device) if soft else None
        recorded = record_training(
            source,
            model.spec(),
            dynamics,
            epochs=epochs,
            ticks=ticks,
            mode=mode,
            teacher=None if known is None else known.model,
            soft_labels="view" if kind == "view" else "image",
            test_set=data.resident("test", image_size),
            seed=seed,
            device=device,
            out=out / "run",
        )
        if run is None:
            return
        scores, failed = {}, []
        for name in names:
            try:
                scores[name] = recorded.scores(name)
            except ValueError as error:  # the others are worth the training
                failed.append(str(error))
        run.write_tensors("scores.safetensors", {name: s.values for name, s in scores.items()})
        about = {n: {"high_means": s.high_means, "meta": dict(s.meta)} for n, s in scores.items()}
        run.write_json("scores.json", about)
    print(
        f"{len(scores)} scores of {len(source):,} images; test accuracy "
        f"{100 * recorded.teacher.record['accuracy']:.1f} %; "
        f"recorder {dynamics.nbytes / len(source):.0f} bytes an image"
    )
    print(f"scores: {out / 'scores.safetensors'}")
    for reason in failed:
        print(f"not written: {reason}", file=sys.stderr)


def read_scores(folder: Path, name: str, source: ImageDataset | ImageFolder) -> Scores:
    """A score of these images from a run of ``pyddfast score``."""
    file, about = folder / "scores.safetensors", folder / "scores.json"
    facts, count = folder / "config.json", len(source)
    for needed in (file, about, facts):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} is missing; --scores takes a finished run of pyddfast score"
            )
    tensors, _ = read_tensors(file)
    if name not in tensors:
        raise ValueError(f"{file} holds no {name}, only {', '.join(sorted(tensors))}")
    if tensors[name].shape != (count,):
        raise ValueError(f"{file} is of {tensors[name].numel()} images, the data set has {count}")
    # A folder was scored resized, and may be read here at the files' own sizes: another digest.
    known = ("dataset", "sha256") if isinstance(source, ImageDataset) else ("files",)
    if at(read_json(facts), "config", *known) != data_digest(source):
        raise ValueError(f"{folder} scored other images or labels than the data set given")
    entry = read_json(about)
    means, meta = at(entry, name, "high_means"), at(entry, name, "meta")
    if not isinstance(means, str) or not isinstance(meta, dict):
        raise ValueError(f"{about} does not say what {name} means")
    return Scores(tensors[name], name, means, meta)


def at(entry: Any, *names: str) -> Any:
    """What a JSON value holds under these names, or None."""
    for name in names:
        entry = entry.get(name) if isinstance(entry, dict) else None
    return entry
