"""``pyddfast analyze objective`` and ``subsets``: objectives' values, and sets to take them of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import tyro

from pyddfast.analysis.objectives import (
    DCObjective,
    DMObjective,
    DWAObjective,
    ImageSet,
    Objective,
    SRe2LObjective,
    TMObjective,
    evaluate_objectives,
)
from pyddfast.analysis.pool import DCS_IPCS, LEAST, check_ipcs, dcs_subsets, subset_images
from pyddfast.cli.options import Flat, ModelOptions, TeacherOptions, WhitenableData, plain
from pyddfast.cli.sets import load_set
from pyddfast.cli.tables import new_table, note, print_table
from pyddfast.coresets import Scores, Selection, el2n_scores, embed
from pyddfast.coresets.windows import OFFSETS, check_offsets
from pyddfast.data import ImageDataset
from pyddfast.data.digest import data_digest, describe_data
from pyddfast.data.stored import read_json
from pyddfast.train import RunFolder
from pyddfast.train.teacher_folder import load_teacher

__all__ = ["analyze_objective", "analyze_subsets"]

Name: TypeAlias = Literal["sre2l", "dwa", "dm", "dc", "tm"]


@dataclass(frozen=True)
class ObjectiveOptions:
    """Switches of the objectives; what changes a value is written beside it.

    Attributes:
        statistics: sre2l, dwa: whole (of the set as one) or batches (mean of the batches' losses).
        first_multiplier: sre2l, dwa: weight of the first layer; 10 in the methods' code.
        ce: sre2l, dwa: add the teacher's cross-entropy, and weigh the statistics by bn-weight.
        bn_weight: sre2l, dwa: weight of the statistics against the cross-entropy.
        crop: sre2l, dwa: crop and mirror batches as the recover step does.
        var_weight: dwa: lambda_var.
        perturb: dwa: a teacher perturbed by each batch; needs --statistics batches.
        networks: dm, dc: random networks.
        per_class: dm: means by class; no-per-class: one mean, as equation 5 is written.
        real_batch: dm, dc: real images of a class and network; default all.
        start_epochs: tm: first and last starting epoch.
        syn_steps: tm: steps of the student.
        expert_epochs: tm: epochs of the expert that they are to reach.
        num_experts: tm: only the first so many experts.
        batch_syn: tm: images of a student's step; default the whole set.
        student_lr: tm: the student's learning rate; default the set's learned one, else 0.01.
        labels: tm: class indices, or the labels that are stored with the set.
        seed: Of all draws.
    """

    statistics: Literal["whole", "batches"] = "whole"
    first_multiplier: float = 1.0
    ce: bool = False
    bn_weight: float = 0.01
    crop: bool = False
    var_weight: float = 2.0
    perturb: bool = False
    networks: int = 10
    per_class: bool = True
    real_batch: int | None = None
    start_epochs: tuple[int, int] = (20, 35)
    syn_steps: int = 80
    expert_epochs: int = 2
    num_experts: int | None = None
    batch_syn: int | None = None
    student_lr: float | None = None
    labels: Literal["class", "stored"] = "class"
    seed: int = 0


def analyze_objective(
    sets: Annotated[tuple[Path, ...], tyro.conf.Positional],
    options: Annotated[ObjectiveOptions, Flat] = ObjectiveOptions(),
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    which: tuple[Name, ...],
    out: Path,
    teacher: Path | None = None,
    experts: Path | None = None,
    image_size: int | None = None,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Evaluate distillation objectives on finished sets, without a gradient, whatever their size.

    Args:
        sets: Folders of sets or of their runs, picks of the train split (selection.npz), or the
            folder of `pyddfast analyze subsets`, whose subsets are all taken.
        options: Switches.
        data: The training set that the sets were made of.
        model: Network of dm, dc and tm.
        which: Objectives: sre2l dwa dm dc tm.
        out: Run folder; the values go to OUT/objectives.json, a table of them (for
            pyddfast analyze dcs, once it has the errors) to OUT/table.json.
        teacher: Folder of a trained teacher with BatchNorm, for sre2l and dwa.
        experts: Folder of trajectories, for tm.
        image_size: Side in pixels that images of a folder are resized and cut to.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    if not which:
        raise ValueError("--which must name at least one objective")
    source = data.load("train", image_size)
    listed = [item for folder in sets for item in _sets(folder, source)]
    found = {name: one for name, _, one in listed}
    if len(found) < len(listed) or not found:
        raise ValueError(f"give one set or more of different names, got {[x[0] for x in listed]}")
    groups = {name: group for name, group, _ in listed}
    for name, one in found.items():
        _check(name, one, source)
    objectives = [
        _objective(name, options, source, model, teacher, experts, device) for name in which
    ]
    facts = {
        "task": "analyze objective",
        "dataset": describe_data(source),
        "sets": {name: data_digest(one) for name, one in found.items()},
        "objectives": {one.name: one.settings() for one in objectives},
    }
    record: dict[str, Any] = {"objectives": {}}
    with RunFolder(out, facts, resume=resume) as run:
        for objective in objectives:
            part = run.read_json(f"values/{objective.name}.json")
            if part is None:
                part = evaluate_objectives([objective], found)
                run.write_json(f"values/{objective.name}.json", part)
            record["sets"] = part["sets"]
            record["objectives"].update(part["objectives"])
        run.write_json("objectives.json", record)
        run.write_json("table.json", _rows(record, groups))
    table = new_table("L(S, D)", "set", "images", *which)
    for name, one in found.items():
        values = [record["objectives"][each]["values"][name]["value"] for each in which]
        shown = ("not finite" if value is None else f"{value:.6g}" for value in values)
        table.add_row(name, f"{len(one):,}", *shown)
    print_table(table)
    print(f"values: {out / 'objectives.json'}")


def analyze_subsets(
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    network: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    out: Path,
    ipcs: tuple[int, ...] = DCS_IPCS,
    offsets: tuple[float, ...] = OFFSETS,
    el2n: Path | None = None,
    repeats: int = 10,
    epochs: int = 20,
    errors: Path | None = None,
    least: float = LEAST,
    sets: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Make the pool of subsets of DCS: EL2N, its Pareto windows, CAL, GraphCut, and their doubles.

    Args:
        data: Which data.
        network: The trained network whose features and logits CAL and GraphCut take.
        model: Network of EL2N.
        out: Run folder; picks go to OUT/NAME/selection.npz, the list to OUT/pool.json.
        ipcs: Images a class.
        offsets: Starts of the Pareto windows, from hard to easy.
        el2n: Scores that are there already (.npz); default those of new networks.
        repeats: Networks of EL2N.
        epochs: Epochs before they score.
        errors: JSON with the test error of a student by subset, {"el2n-ipc10": 0.41, ...}: the
            extremely poor ones are left out.
        least: Share of the best subset's accuracy above chance that is not extremely poor.
        sets: Write OUT/NAME/set too, to train on.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Of the networks.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    network.check()
    known = None if errors is None else _errors(errors)
    source = data.load("train", image_size)
    # Before anything is trained.
    check_ipcs(ipcs, source.labels, source.num_classes)
    check_offsets(offsets)
    facts = {
        "task": "analyze subsets",
        "dataset": describe_data(source),
        **plain(network),
        **plain(model),
        "el2n": None if el2n is None else str(el2n),
        "repeats": repeats,
        "epochs": epochs,
        "seed": seed,
    }
    with RunFolder(out, facts, resume=resume) as run:
        trained = network.get(data, image_size, out, seed, device)
        if el2n is not None:
            scores = Scores.load(el2n)
        elif (out / "el2n.npz").is_file():
            scores = Scores.load(out / "el2n.npz")
        else:
            held = source if isinstance(source, ImageDataset) else source.resident()
            scores = el2n_scores(
                held,
                model.spec(),
                repeats=repeats,
                epochs=epochs,
                seed=seed,
                device=device,
                out=out / "el2n",
            )
            scores.save(out / "el2n.npz")
        embedding = embed(source, trained.model, out=out / "embedding", device=device)
        pool = dcs_subsets(scores, embedding, ipcs=ipcs, offsets=offsets, errors=known, least=least)
        for one in pool:
            folder = out / one.name
            folder.mkdir(exist_ok=True)
            one.selection.save(folder / "selection.npz")
            if sets and not (folder / "set").exists():
                one.selection.to_distilled(source).save(folder / "set")
        run.write_json("pool.json", pool.record())
    note(pool.rule)
    for gone in pool.dropped:
        note(f"dropped {gone['name']}: error {gone['error']:.3f} > {gone['largest_error']:.3f}")
    print(f"{len(pool)} subsets: {out / 'pool.json'}")


def _check(name: str, one: ImageSet, source: Any) -> None:
    """A set is of the data that the objectives compare it with."""
    for what, given, needed in (
        ("classes", one.num_classes, source.num_classes),
        ("images of shape", tuple(one[0].shape), tuple(source[0].shape)),
        ("normalization", one.normalization, source.normalization),
    ):
        if given != needed:
            raise ValueError(f"{name} has {what} {given}, the data {needed}")


def _rows(record: dict[str, Any], groups: dict[str, str]) -> list[dict[str, Any]]:
    """A row a set: sizes, its group for the bootstrap of DCS, and the values."""
    values = {name: one["values"] for name, one in record["objectives"].items()}
    return [
        {
            "set": name,
            "group": groups[name],
            "images": size["count"],
            "ipc": size["ipc"],
            **{each: found[name]["value"] for each, found in values.items()},
        }
        for name, size in record["sets"].items()
    ]


def _sets(folder: Path, source: Any) -> Iterator[tuple[str, str, ImageSet]]:
    """Name, group and images of each set of a path of the command line."""
    if (folder / "pool.json").is_file():
        for entry in read_json(folder / "pool.json")["subsets"]:
            picks = Selection.load(folder / entry["name"] / "selection.npz")
            yield entry["name"], entry["parent"], subset_images(source, picks.indices)
    elif folder.suffix == ".npz":
        # `selection.npz` tells nothing, the folder of the run does.
        name = folder.parent.name if folder.stem == "selection" else folder.stem
        yield name, name, subset_images(source, Selection.load(folder).indices)
    else:
        named = folder.parent if folder.name == "set" else folder
        yield named.name, named.name, load_set(folder)


def _objective(
    name: Name,
    options: ObjectiveOptions,
    source: Any,
    model: ModelOptions,
    teacher: Path | None,
    experts: Path | None,
    device: str | None,
) -> Objective:
    if name in ("sre2l", "dwa"):
        if teacher is None:
            raise ValueError(f"{name} needs --teacher, a trained network with BatchNorm")
        shared: dict[str, Any] = {
            key: getattr(options, key)
            for key in ("statistics", "first_multiplier", "ce", "bn_weight", "crop", "seed")
        }
        network = load_teacher(teacher, source, device).model
        if name == "sre2l":
            return SRe2LObjective(network, device=device, **shared)
        return DWAObjective(
            network,
            var_weight=options.var_weight,
            perturb=options.perturb,
            device=device,
            **shared,
        )
    if name == "tm":
        if experts is None:
            raise ValueError("tm needs --experts, the folder that pyddfast experts writes")
        return TMObjective(
            experts,
            model.spec(),
            start_epochs=options.start_epochs,
            syn_steps=options.syn_steps,
            expert_epochs=options.expert_epochs,
            num_experts=options.num_experts,
            batch_syn=options.batch_syn,
            lr=options.student_lr,
            labels=options.labels,
            seed=options.seed,
            device=device,
        )
    random: dict[str, Any] = {
        "networks": options.networks,
        "real_batch": options.real_batch,
        "seed": options.seed,
        "device": device,
    }
    if name == "dm":
        return DMObjective(source, model.spec(), per_class=options.per_class, **random)
    return DCObjective(source, model.spec(), **random)


def _errors(file: Path) -> dict[str, float]:
    found = read_json(file)
    if not isinstance(found, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()
    ):
        raise ValueError(f"{file} must hold an object of subsets and errors")
    return {name: float(value) for name, value in found.items()}
