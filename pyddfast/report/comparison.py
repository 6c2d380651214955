"""Students of several sets in several label regimes: trained, judged together, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyddfast._extras import require
from pyddfast.data import DistilledSet, ImageSource
from pyddfast.data.digest import describe_data
from pyddfast.data.stored import read_tensors
from pyddfast.report.figures import accuracy_figure, png_uri, sets_figure, svg
from pyddfast.report.html import write_report
from pyddfast.report.stages import Stages
from pyddfast.report.tables import Difference, Result, differences, percent, summary
from pyddfast.train import (
    Epochs,
    Recipe,
    Regime,
    RunFolder,
    Scale,
    StudentResult,
    environment,
    predict,
    progress,
    train_student,
)
from pyddfast.train.distributed import resolve_device
from pyddfast.train.models import ModelSpec, build_model, describe_model, model_digest
from pyddfast.train.student import check_student, paper_recipe_of

__all__ = [
    "REGIMES",
    "Comparison",
    "ComparisonConfig",
    "Setting",
    "compare_sets",
    "judge",
    "page",
    "recipe_lines",
    "table_note",
    "times",
    "train_cells",
]

REGIMES: dict[Regime, str] = {"hl": "HL", "sl": "SL", "sl-kd": "SL+KD"}

# Images of a set's row in the report: 20 fill a page's width.
_IMAGES_A_ROW = 20


@dataclass(frozen=True)
class ComparisonConfig:
    """How sets are compared.

    Attributes:
        regimes: Label regimes: hl, sl, sl-kd.
        seeds: Students of each set and regime; at least 2, for their spread.
        seed: Seed of the first; the others follow.
        epochs: Epochs of a student; None: the recipe's, 300 in the paper.
        batch_size: Images a step; None: the recipe's, 256 at small scale.  Sets of fewer images
            take one step an epoch there, where the paper's smallest take four.
        scale: Columns of the paper's Table 1; None: small up to 64 pixels, else large.
    """

    regimes: tuple[Regime, ...] = ("hl", "sl", "sl-kd")
    seeds: int = 5
    seed: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    scale: Scale | None = None

    def __post_init__(self) -> None:
        if not self.regimes or len(set(self.regimes)) != len(self.regimes):
            raise ValueError(f"regimes must be different and at least one, got {self.regimes}")
        if unknown := [regime for regime in self.regimes if regime not in REGIMES]:
            raise ValueError(f"regimes must be of {', '.join(REGIMES)}, got {unknown[0]!r}")
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, for their spread, got {self.seeds}")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Setting:
    """What the students of all cells share.

    Attributes:
        model: A name of ``pyddfast.models``, (name, options), or a function ``seed -> nn.Module``.
        test_set: What measures them.
        teacher: Network for SL and SL+KD.
        teacher_info: JSON facts about it, with its test accuracy.
        seeds: One student each.
        epochs: None: the recipe's.
        scale: Columns of Table 1; None: by the images' size.
        device: Where they are trained.
        batch_size: None: the recipe's.
    """

    model: ModelSpec
    test_set: ImageSource
    teacher: nn.Module | None
    teacher_info: Mapping[str, Any] | None
    seeds: tuple[int, ...]
    epochs: int | None
    scale: Scale | None
    device: torch.device
    batch_size: int | None = None

    def recipe(self, distilled: DistilledSet, regime: Regime) -> Recipe:
        """How students of a set are trained."""
        change = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return paper_recipe_of(distilled, regime, self.scale, **change)


@dataclass(frozen=True)
class Comparison:
    """What was measured, and what can be said about it.

    Attributes:
        results: A cell of the table each: the students of one set in one regime.
        judged: Every pair of sets within a regime and of regimes within a set.
        sentences: The same in words.
        report: ``report.html``, where it was written.
    """

    results: tuple[Result, ...]
    judged: tuple[Difference, ...]
    sentences: tuple[str, ...]
    report: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Cells, differences and summary as JSON values."""
        return {
            "cells": [
                {
                    "method": r.method,
                    "regime": r.regime,
                    "accuracies": list(r.accuracies),
                    "test_count": r.test_count,
                    "mean": r.mean,
                    "std": r.std,
                    "sampling_error": r.sampling_error,
                }
                for r in self.results
            ],
            "differences": [
                {
                    "first": [d.first.method, d.first.regime],
                    "second": [d.second.method, d.second.regime],
                    "value": d.value,
                    "half_width": d.half_width,
                    "distinguishable": d.distinguishable,
                }
                for d in self.judged
            ],
            "summary": list(self.sentences),
        }


def compare_sets(
    sets: Mapping[str, DistilledSet],
    model: ModelSpec,
    config: ComparisonConfig | None = None,
    *,
    test_set: ImageSource,
    teacher: nn.Module | None = None,
    teacher_info: Mapping[str, Any] | None = None,
    out: str | Path,
    resume: bool = True,
    device: torch.device | str | None = None,
    show: bool = True,
) -> Comparison:
    """Train students of every set in every regime, and say which differences are more than chance.

    Args:
        sets: Sets by the name that tables show; of the same classes and images a class.
        model: The student: a name of ``pyddfast.models``, (name, options), or a function
            ``seed -> nn.Module``.
        config: Regimes, seeds, length; default :class:`ComparisonConfig`.
        test_set: What measures the students.
        teacher: Network for SL and SL+KD; hl alone needs none.
        teacher_info: JSON facts about it for the report, e.g. its test accuracy.
        out: Run folder: ``results.json``, ``report.html``, and every student under ``students/``.
        resume: Go on with what ``out`` holds; finished students are read, not trained again.
        device: None: CUDA where there is one, else the CPU.
        show: Progress on stderr.

    Returns:
        Accuracies of all cells, judged by t-tests with Holm's correction on seeds and test images.

    Raises:
        ValueError: There are fewer than two sets, they or the test set do not fit together, the
            teacher is missing, or ``out`` holds another run.
        FileExistsError: ``out`` holds something else, or a run and ``resume`` is False.
        BlockingIOError: Another process works in ``out``.
        ModuleNotFoundError: The ``methods`` extra is not installed.
    """
    config = ComparisonConfig() if config is None else config
    for module in ("jinja2", "matplotlib", "safetensors", "scipy"):
        require(module, "methods")
    setting = Setting(
        model=model,
        test_set=test_set,
        teacher=teacher,
        teacher_info=teacher_info,
        seeds=tuple(range(config.seed, config.seed + config.seeds)),
        epochs=config.epochs,
        scale=config.scale,
        device=resolve_device(device),
        batch_size=config.batch_size,
    )
    recipes = _check(sets, config.regimes, setting)
    facts = {
        "task": "compare",
        "sets": {
            name: {"ipc": one.ipc, "method": one.meta.get("method"), **describe_data(one)}
            for name, one in sets.items()
        },
        "model": describe_model(model),
        "test_set": describe_data(test_set),
        "teacher": None if teacher is None else model_digest(teacher),
        **asdict(config),
        "device": str(setting.device),
    }
    with RunFolder(out, facts, resume=resume) as folder:
        cells = len(sets) * len(config.regimes)
        stages = Stages(folder, show=show)
        with progress("compare", cells, enabled=stages.bars) as advance:
            stages.advance = advance
            students = train_cells(
                sets, config.regimes, setting, out=folder.path / "students", stages=stages, units=1
            )
        shown = {name: name for name in sets}
        measured = judge(students, shown, sets, setting)
        folder.write_json("results.json", measured.to_dict())
        report = _write_page(folder, measured, sets, recipes, setting, stages)
    return Comparison(measured.results, measured.judged, measured.sentences, report)


def _check(
    sets: Mapping[str, DistilledSet], regimes: Sequence[Regime], setting: Setting
) -> dict[str, tuple[Recipe, float]]:
    """Refuse before work starts; the recipe of each regime and the epochs it trains for."""
    if len(sets) < 2:
        raise ValueError(f"a comparison needs at least two sets, got {len(sets)}")
    first_name, first = next(iter(sets.items()))
    recipes: dict[str, tuple[Recipe, float]] = {}
    for name, one in sets.items():
        if Path(name).name != name:
            raise ValueError(f"a set's name becomes a folder's, which {name!r} cannot be")
        for what, value, wanted in (
            ("images a class", one.ipc, first.ipc),
            ("classes", one.num_classes, first.num_classes),
            ("channels and pixels", tuple(one.images.shape[1:]), tuple(first.images.shape[1:])),
        ):
            if value != wanted:
                raise ValueError(
                    f"the sets must be alike: {name!r} has {value} {what}, {first_name!r} {wanted}"
                )
    for one in sets.values():
        for regime in regimes:
            used, plan, _ = check_student(
                one,
                regime,
                setting.model,
                test_set=setting.test_set,
                has_teacher=setting.teacher is not None,
                recipe=setting.recipe(one, regime),
                budget=_budget(setting),
                seeds=setting.seeds,
                evaluations=1,
                device=setting.device,
            )
            recipes[REGIMES[regime]] = (used, plan.epochs)
    return recipes


def _budget(setting: Setting) -> Epochs | None:
    return None if setting.epochs is None else Epochs(setting.epochs)


def train_cells(
    sets: Mapping[str, DistilledSet],
    regimes: Sequence[Regime],
    setting: Setting,
    *,
    out: Path,
    stages: Stages,
    units: int,
) -> dict[tuple[str, Regime], StudentResult]:
    """Students of every set in every regime, each cell a stage and a run folder in ``out``.

    Args:
        sets: By name.
        regimes: In this order.
        setting: What the cells share.
        out: ``out/NAME-REGIME`` are the run folders.
        stages: Of the whole run.
        units: Of a cell.

    Returns:
        Results by name and regime.
    """
    results: dict[tuple[str, Regime], StudentResult] = {}
    for name, distilled in sets.items():
        for regime in regimes:

            def work(
                name: str = name, distilled: DistilledSet = distilled, regime: Regime = regime
            ) -> str:
                result = train_student(
                    distilled,
                    regime,
                    setting.model,
                    test_set=setting.test_set,
                    teacher=None if regime == "hl" else setting.teacher,
                    teacher_info=setting.teacher_info,
                    recipe=setting.recipe(distilled, regime),
                    budget=_budget(setting),
                    seeds=setting.seeds,
                    evaluations=1,
                    device=setting.device,
                    out=out / f"{name}-{regime}",
                    progress=stages.bars,
                )
                results[name, regime] = result
                return f"{percent(result.mean)} ± {percent(result.std)} %"

            stages.run(f"students {name} {regime}", work, units=units)
    return results


def judge(
    students: Mapping[tuple[str, Regime], StudentResult],
    shown: Mapping[str, str],
    sets: Mapping[str, DistilledSet],
    setting: Setting,
) -> Comparison:
    """The table's cells, and their differences judged together.

    Args:
        students: As :func:`train_cells` returns them.
        shown: The name that tables show, by set.
        sets: By name.
        setting: As there.

    Returns:
        Without a report.
    """
    results = tuple(
        Result(
            shown[name],
            REGIMES[regime],
            tuple(seed.last_accuracy for seed in student.seeds),
            student.test_count,
            _per_image(student, sets[name], setting),
        )
        for (name, regime), student in students.items()
    )
    judged = differences(results)
    return Comparison(results, tuple(judged), tuple(summary(judged)))


def _per_image(
    student: StudentResult, distilled: DistilledSet, setting: Setting
) -> tuple[float, ...]:
    """For each test image the share of the seeds that are right."""
    labels = setting.test_set.labels
    size = student.config["recipe"]["image_size"]
    height, width = distilled.images.shape[-2:] if size is None else (size, size)
    right = torch.zeros(len(setting.test_set), dtype=torch.float64)
    for seed in student.seeds:
        network = build_model(
            setting.model,
            seed.seed,
            num_classes=distilled.num_classes,
            in_channels=distilled.images.shape[1],
            image_size=(height, width),
        )
        assert seed.weights is not None  # the students have a folder
        network.load_state_dict(read_tensors(seed.weights)[0])
        logits = predict(
            network.to(setting.device),
            setting.test_set,
            normalization=distilled.normalization,
            size=size,
        )
        right += logits.argmax(1).cpu() == labels
    return tuple((right / len(student.seeds)).tolist())


# ---- the page --------------------------------------------------------------------------------


def _write_page(
    folder: RunFolder,
    measured: Comparison,
    sets: Mapping[str, DistilledSet],
    recipes: Mapping[str, tuple[Recipe, float]],
    setting: Setting,
    stages: Stages,
) -> Path:
    first = next(iter(sets.values()))
    info = setting.teacher_info or {}
    known = f", test accuracy {percent(info['accuracy'])} %" if "accuracy" in info else ""
    facts = [
        f"Test set: {len(setting.test_set):,} images, {first.num_classes} classes.",
        f"Students: {_model_name(setting.model)}, {len(setting.seeds)} seeds a cell.",
        "No teacher."
        if setting.teacher is None
        else f"Teacher: {type(setting.teacher).__name__}{known}; it labels the images in SL and "
        "every augmented view in SL+KD.",
        *(
            f"{name}: {len(one)} images of {one.images.shape[-2]} × {one.images.shape[-1]} pixels, "
            f"kind “{one.kind}”, method {one.meta.get('method', 'unknown')}."
            for name, one in sets.items()
        ),
        "Accuracy after the last epoch; no epoch was chosen on the test set.",
    ]
    shortened = [
        f"{name} students train for {epochs:g} epochs instead of {used.epochs}; learning-rate "
        "steps keep their share of the training."
        for name, (used, epochs) in recipes.items()
        if epochs != used.epochs
    ]
    if setting.batch_size is not None:
        shortened.append(f"Students take {setting.batch_size} images a step, not the paper's.")
    shortened += [note for used, _ in recipes.values() for note in used.notes]
    context = {
        "title": "pyddfast compare",
        "lead": (
            f"Students trained on {first.ipc} images per class, from {len(sets)} sets. "
            "Every number on this page was measured in this run."
        ),
        "facts": facts,
        "shortened": shortened,
        "sets_note": "The first images of every class, a row a class.",
        **page(
            measured,
            sets,
            table_note=table_note(len(setting.test_set), len(setting.seeds)),
            chance=1 / first.num_classes,
        ),
        **recipe_lines(recipes),
        **times(stages, setting.device),
        "command": f"{folder.path.name}/config.json",
    }
    return write_report(folder.path / "report.html", "comparison.html", context)


def table_note(test_count: int, seeds: int) -> str:
    """What the numbers of the table are."""
    return (
        f"Per cent of {test_count:,} test images after the last epoch: mean ± standard "
        f"deviation over {seeds} seeds, and below it the standard error that "
        f"{test_count:,} test images leave."
    )


def _model_name(model: ModelSpec) -> str:
    described = describe_model(model)
    options = ", ".join(f"{k}={v}" for k, v in described.get("options", {}).items())
    return f"{described['name']}{f' ({options})' if options else ''}"


def page(
    measured: Comparison,
    sets: Mapping[str, DistilledSet],
    *,
    table_note: str,
    chance: float,
) -> dict[str, Any]:
    """Table, figure, sentences and images: the part of the page that all comparisons share.

    Args:
        measured: As :func:`judge` returns it.
        sets: By the name shown.
        table_note: Under the table.
        chance: Accuracy of guessing, a line in the figure.

    Returns:
        Values for ``comparison.html``.
    """
    markup = require("markupsafe", "methods").Markup
    results = measured.results
    cells = {(r.method, r.regime): r for r in results}
    methods = list(dict.fromkeys(r.method for r in results))
    regimes = list(dict.fromkeys(r.regime for r in results))
    figure = accuracy_figure(results, chance=chance)
    return {
        "regimes": regimes,
        "rows": [
            {"method": method, "cells": [_cell(cells[method, regime]) for regime in regimes]}
            for method in methods
        ],
        "table_note": table_note,
        "accuracy_svg": markup(
            svg(figure, alt="Test accuracy by label regime and set; the table has the numbers")
        ),
        "figure_note": (
            "Bars: mean over seeds. Circles: seeds. Error bars: ± 1 standard error of the mean, "
            "from seeds and test images together."
        ),
        "summary": [sentence.replace("± ", "±\u00a0") for sentence in measured.sentences],
        "summary_note": (
            "Differences of the unrounded accuracies in points, with the half-width of their "
            "interval. A difference is named "
            "only if it is larger than seed spread and test-sampling error together: a t-test at "
            "5 % for the whole list (Holm; the intervals are Bonferroni's, a little wider, so that "
            "a named difference may lie just inside its own), the seed spread of a "
            "cell taken as its own or as that of all cells, whichever is larger, the test images "
            "compared one by one. An order on one small data set with shortened training says "
            "nothing about another."
        ),
        "sets_image": png_uri(sets_figure(dict(sets), columns=max(1, _IMAGES_A_ROW // len(sets)))),
        "sets_alt": "Images of the sets, a row a class",
    }


def recipe_lines(recipes: Mapping[str, tuple[Recipe, float]]) -> dict[str, Any]:
    """The page's table of recipes.

    Args:
        recipes: Recipe and epochs as trained, by the column's name.

    Returns:
        Values for ``comparison.html``.
    """
    names = ("loss", "optimizer", "schedule", "batch size", "augmentation", "labels")
    return {
        "recipe_names": list(recipes),
        "recipes": [
            {"name": "epochs", "values": [f"{epochs:g}" for _, epochs in recipes.values()]},
            *(
                {"name": name, "values": [_setting(used, name) for used, _ in recipes.values()]}
                for name in names
            ),
        ],
    }


def times(stages: Stages, device: torch.device) -> dict[str, Any]:
    """The page's times and versions.

    Args:
        stages: Of the run.
        device: Where it ran.

    Returns:
        Values for ``comparison.html``.
    """
    versions = environment()
    return {
        "timings": stages.table(),
        "timing_note": (
            f"On {device} with {versions['threads']} threads. A stage that was stopped and "
            "continued counts from its continuation."
        ),
        "environment": list(versions.items()),
    }


def _cell(result: Result) -> dict[str, str]:
    return {
        "text": f"{percent(result.mean)} ± {percent(result.std or 0.0)}",
        "sampling": percent(result.sampling_error),
    }


def _setting(used: Recipe, name: str) -> str:
    """A line of the recipe table."""
    if name == "loss":
        return "cross-entropy" if used.loss == "ce" else f"KL, T = {used.temperature:g}"
    if name == "optimizer":
        label = "AdamW"
        if used.optimizer == "sgd":
            nesterov = " (Nesterov)" if used.nesterov else ""
            label = f"SGD, momentum {used.momentum:g}{nesterov}"
        return f"{label}, learning rate {used.lr:g}, weight decay {used.weight_decay:g}"
    if name == "schedule":
        if used.schedule == "step":
            share = f"{used.milestone} of {used.epochs} epochs"
            return f"× {used.gamma:g} after {share} (as a share of the training)"
        return used.schedule
    if name == "batch size":
        return str(used.batch_size)
    if name == "augmentation":
        low, high = used.rrc_scale
        crop = f"random resized crop of {100 * low:g} to {100 * high:g} %, flip"
        return {"dsa": "DSA", "rrc": crop, "none": "none"}[used.augmentation]
    return {
        "hl": "the class",
        "sl": "the teacher's, once an image",
        "sl-kd": "the teacher's, of every view",
    }[used.regime]
