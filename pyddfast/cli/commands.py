"""The commands: each is a function, its options are its parameters and the config dataclasses."""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from pyddfast.cli.sets import SetOptions, test_view
from pyddfast.coresets import el2n_scores, random_scores, select
from pyddfast.coresets.selection import check_ipc
from pyddfast.data import (
    EFFICIENTNET_LITE_NORMALIZATION,
    DistilledSet,
    ImageDataset,
    ImageFolder,
    ImageSource,
    ResidentDataset,
    SoftLabels,
    export_png,
    load,
    write_layout,
)
from pyddfast.data.digest import describe_data
from pyddfast.methods.cda import PUBLISHED as CDA_PUBLISHED
from pyddfast.methods.cda import CDAConfig, cda
from pyddfast.methods.chunks import plan_chunks
from pyddfast.methods.dwa import PUBLISHED as DWA_PUBLISHED
from pyddfast.methods.dwa import DWAConfig, dwa
from pyddfast.methods.edc import PUBLISHED as EDC_PUBLISHED
from pyddfast.methods.edc import EDCConfig, edc
from pyddfast.methods.fadrm import PUBLISHED as FADRM_PUBLISHED
from pyddfast.methods.fadrm import FADRMConfig, fadrm
from pyddfast.methods.gvbsm import PUBLISHED as GVBSM_PUBLISHED
from pyddfast.methods.gvbsm import GVBSMConfig, gvbsm
from pyddfast.methods.rded import RDEDConfig, check_rded, rded
from pyddfast.methods.recover import Job
from pyddfast.methods.sre2l import PUBLISHED as SRE2L_PUBLISHED
from pyddfast.methods.sre2l import SRe2LConfig, sre2l
from pyddfast.methods.synthesis import SynthesisConfig, TaskInfo, resolve
from pyddfast.models import create, load_pretrained
from pyddfast.quickstart import QuickstartConfig
from pyddfast.quickstart import quickstart as run_quickstart
from pyddfast.report import Result, differences, percent, summary
from pyddfast.report.comparison import REGIMES
from pyddfast.train import (
    Budget,
    Epochs,
    Execution,
    Recipe,
    Regime,
    RunFolder,
    Samples,
    Scale,
    Steps,
    Teacher,
    progress,
    teacher_recipe,
    train_student,
    train_teacher,
)
from pyddfast.train import recipe as published_recipe
from pyddfast.train.distributed import Ranks, join_ranks, resolve_device
from pyddfast.train.models import ModelSpec
from pyddfast.train.stored import open_labels, stored_recipe
from pyddfast.train.student import check_student
from pyddfast.train.teacher import RECORD, WEIGHTS, load_weights, read_record

__all__ = [
    "DataOptions",
    "ModelOptions",
    "SynthesisOptions",
    "TeacherOptions",
    "class_progress",
    "coreset_el2n_easy",
    "coreset_random",
    "distill_cda",
    "distill_dwa",
    "distill_edc",
    "distill_fadrm",
    "distill_gvbsm",
    "distill_rded",
    "distill_sre2l",
    "load_set",
    "load_teacher",
    "make_set",
    "new_table",
    "plain",
    "print_table",
    "quickstart",
    "recipe_changes",
    "show_results",
    "train",
]

# The fields of a config dataclass become options of the command, without a prefix.
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class DataOptions:
    """Which data.

    Attributes:
        data: Name of the data set: fashion-mnist-mini (embedded), fashion-mnist, cifar10, cifar100,
            tiny-imagenet, imagenet, or folder (ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE).
        root: Its folder (of cifar10 and cifar100 also the archive), where it is not embedded.
    """

    data: str = "fashion-mnist-mini"
    root: Path | None = None

    @property
    def of_any_size(self) -> bool:
        """Whether its images are files, which are resized and cut when they are read."""
        return self.data in ("folder", "imagenet")

    def load(
        self, split: str, image_size: int | None = None, resize: int | None = None
    ) -> ImageDataset | ImageFolder:
        """The data set, lazily decoded where it is a folder of images."""
        return load(self.data, root=self.root, split=split, image_size=image_size, resize=resize)

    def resident(self, split: str, image_size: int | None = None) -> ImageDataset:
        """The data set in memory."""
        loaded = self.load(split, image_size)
        return loaded if isinstance(loaded, ImageDataset) else loaded.resident()


@dataclass(frozen=True)
class ModelOptions:
    """Which network.

    Attributes:
        model: Name of the network: convnet-d1 to convnet-d8, mlp, resnet18, resnet34, resnet50,
            resnet101, resnet152, mobilenet_v2, efficientnet_lite0.  A new teacher's is
            teacher-model.
        model_option: Its options, each NAME=VALUE, e.g. width=32 norm=batch.
    """

    model: str = "convnet-d3"
    model_option: tuple[str, ...] = ()

    def spec(self) -> ModelSpec:
        """Name and options as the training functions take them."""
        return self.model, _assignments("model-option", self.model_option)


@dataclass(frozen=True)
class TeacherOptions:
    """The teacher: one that was trained before, or a new one.

    Attributes:
        teacher: Folder of a trained teacher (it holds teacher.safetensors and teacher.json).
        teacher_model: Network to train as teacher where no folder is given.
        teacher_option: Its options, each NAME=VALUE.
        teacher_epochs: Epochs of that training.
    """

    teacher: Path | None = None
    teacher_model: str = "convnet-d3"
    teacher_option: tuple[str, ...] = ()
    teacher_epochs: int = 20

    def check(self) -> None:
        """Refuse a folder without a teacher before the work that comes first."""
        if self.teacher is not None:
            read_record(_teacher_folder(self.teacher) / RECORD)
        else:
            teacher_recipe(self.teacher_epochs)

    def ranks(self) -> Ranks:
        """This process's place under torchrun, where a teacher cannot be trained on the way."""
        ranks = join_ranks()
        if ranks.world > 1 and self.teacher is None:
            raise ValueError("under torchrun give a trained teacher: --teacher")
        return ranks

    def get(
        self, data: DataOptions, side: int | None, out: Path, seed: int, device: str | None
    ) -> Teacher:
        """Load or train it on images of that side; a new one stays in ``out/teacher``."""
        if self.teacher is not None:
            return load_teacher(self.teacher, data.load("test", side), device)
        if not (out / "teacher" / RECORD).is_file():
            _note(
                f"no --teacher is given: training {self.teacher_model} for {self.teacher_epochs} "
                f"epochs (--teacher-epochs); it stays in {out / 'teacher'}"
            )
        return train_teacher(
            data.resident("train", side),
            (self.teacher_model, _assignments("teacher-option", self.teacher_option)),
            test_set=data.resident("test", side),
            epochs=self.teacher_epochs,
            seed=seed,
            device=device,
            out=out / "teacher",
        )


@dataclass(frozen=True)
class SynthesisOptions:
    """Teachers and outputs of the methods that optimise images.

    Attributes:
        teacher: Folders of trained teachers with BatchNorm; several take turns, one a step.
        pretrained: A published ImageNet-1k network instead, without data: efficientnet_lite0 (its
            package has to be installed).
        teacher_model: Network to train as teacher where neither is given.
        teacher_option: Its options, each NAME=VALUE.
        teacher_epochs: Epochs of that training.
        first_set: Folder of the distilled set for init=set.
        layout: Write the images to OUT/images too: sre2l, rded, d4m or synset (an official code's
            names).
        image_format: Of that: png keeps the pixels, jpeg is what most official codes write.
    """

    teacher: tuple[Path, ...] = ()
    pretrained: Literal["efficientnet_lite0"] | None = None
    teacher_model: str = "convnet-d3"
    teacher_option: tuple[str, ...] = ("norm=batch",)
    teacher_epochs: int = 20
    first_set: Path | None = None
    layout: Literal["sre2l", "rded", "d4m", "synset"] | None = None
    image_format: Literal["png", "jpeg"] = "png"

    def get(
        self, data: DataOptions, side: int | None, out: Path, seed: int, device: str | None
    ) -> list[torch.nn.Module]:
        """The teachers, for images of that side."""
        if self.pretrained is not None:
            return [load_pretrained(self.pretrained)]
        if self.teacher:
            test = data.load("test", side)
            return [load_teacher(folder, test, device).model for folder in self.teacher]
        new = TeacherOptions(None, self.teacher_model, self.teacher_option, self.teacher_epochs)
        return [new.get(data, side, out, seed, device).model]


def quickstart(
    config: Annotated[QuickstartConfig, Flat] = QuickstartConfig(),  # noqa: B008
    *,
    out: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Train a teacher, make five small sets, train students in three label regimes, report.

    Runs on the embedded subset of Fashion-MNIST; no download, no GPU needed.

    Args:
        config: Settings.
        out: Run folder; default runs/quickstart-DATE-TIME.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
        threads: CPU threads; default all cores.  Equal numbers need equal threads.
    """
    if resume and out is None:
        raise ValueError("--resume needs --out: the folder of the run to go on with")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    folder = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    _note(f"run folder {folder}; if it is stopped: pyddfast quickstart --out {folder} --resume")
    result = run_quickstart(folder, config, resume=resume, device=device)
    show_results(result.results)
    print(f"\nThe teacher has {percent(result.teacher_accuracy)} %.")
    print(f"{result.seconds:.0f} s. Report: {result.report}")


def distill_rded(
    config: Annotated[RDEDConfig, Flat] = RDEDConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),
    *,
    out: Path,
    resume: bool = False,
    png: bool = False,
    workers: int | None = None,
    device: str | None = None,
) -> None:
    """Distill a data set by RDED: the crops that a teacher is surest of, tiled to images.

    Under torchrun the processes share the classes.

    Args:
        config: Settings of RDED.
        data: Which data.
        teacher: The observer.
        out: Run folder; the set goes to OUT/set, each finished class to OUT/crops/classes.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        workers: Threads that decode images; default all cores.
        device: cpu or cuda; default CUDA where there is one.
    """
    source = data.load("train")
    check_rded(source, config)
    ranks = teacher.ranks()

    def make() -> DistilledSet:
        side = config.image_size or (None if isinstance(source, ImageDataset) else 224)
        known = teacher.get(data, side, out, config.seed, device)
        with class_progress("RDED", source.num_classes, ranks) as show:
            return rded(
                source, known.model, config, out=out / "crops", workers=workers, on_progress=show
            )

    facts = {"task": "distill rded", **plain(config), **plain(data), **plain(teacher)}
    del facts["on_error"]  # a stopped run may go on without the file that stopped it
    make_set(out, facts, source, config.ipc, make, resume=resume, png=png, ranks=ranks)


def distill_sre2l(
    config: Annotated[SRe2LConfig, Flat] = SRe2LConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    options: Annotated[SynthesisOptions, Flat] = SynthesisOptions(),
    *,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by SRe2L: a class for the teacher, BatchNorm statistics as on the data.

    Under torchrun the processes share the work.

    Args:
        config: Settings of SRe2L.
        data: Which data: classes, normalisation, and what a new teacher learns.
        options: Teachers and outputs.
        out: Run folder; the set goes to OUT/set.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    _synthesise(sre2l, SRE2L_PUBLISHED, config, data, options, out, resume=resume, device=device)


def distill_cda(
    config: Annotated[CDAConfig, Flat] = CDAConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    options: Annotated[SynthesisOptions, Flat] = SynthesisOptions(),
    *,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by CDA: SRe2L with crops that start large and shrink.

    Under torchrun the processes share the work.

    Args:
        config: Settings of CDA.
        data: Which data: classes, normalisation, and what a new teacher learns.
        options: Teachers and outputs.
        out: Run folder; the set goes to OUT/set.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    _synthesise(cda, CDA_PUBLISHED, config, data, options, out, resume=resume, device=device)


def distill_dwa(
    config: Annotated[DWAConfig, Flat] = DWAConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    options: Annotated[SynthesisOptions, Flat] = SynthesisOptions(),
    *,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by DWA: from real images, the teacher's weights moved for each batch.

    Under torchrun the processes share the work.

    Args:
        config: Settings of DWA.
        data: Which data: classes, normalisation, first images, and what a new teacher learns.
        options: Teachers and outputs.
        out: Run folder; the set goes to OUT/set.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    _synthesise(dwa, DWA_PUBLISHED, config, data, options, out, resume=resume, device=device)


def distill_fadrm(
    config: Annotated[FADRMConfig, Flat] = FADRMConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    options: Annotated[SynthesisOptions, Flat] = SynthesisOptions(),
    *,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by FADRM: from real images, mixed in again between stages.

    Under torchrun the processes share the work.

    Args:
        config: Settings of FADRM.
        data: Which data: classes, normalisation, first images, and what a new teacher learns.
        options: Teachers and outputs.
        out: Run folder; the set goes to OUT/set.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    _synthesise(fadrm, FADRM_PUBLISHED, config, data, options, out, resume=resume, device=device)


def distill_gvbsm(
    config: Annotated[GVBSMConfig, Flat] = GVBSMConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    options: Annotated[SynthesisOptions, Flat] = SynthesisOptions(),
    *,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by G-VBSM: several teachers, and statistics of convolutions too.

    Under torchrun the processes share the work.

    Args:
        config: Settings of G-VBSM.
        data: Which data: statistics, and what a new teacher learns.
        options: Teachers and outputs.
        out: Run folder; the set goes to OUT/set.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    _synthesise(
        gvbsm,
        GVBSM_PUBLISHED,
        config,
        data,
        options,
        out,
        resume=resume,
        device=device,
        statistics=True,
    )


def distill_edc(
    config: Annotated[EDCConfig, Flat] = EDCConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),
    options: Annotated[SynthesisOptions, Flat] = SynthesisOptions(),
    *,
    out: Path,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Synthesise images by EDC: from real images, in small batches, by statistics of classes too.

    Under torchrun the processes share the work.

    Args:
        config: Settings of EDC.
        data: Which data: statistics, first images, and what a new teacher learns.
        options: Teachers and outputs.
        out: Run folder; the set goes to OUT/set.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    _synthesise(
        edc,
        EDC_PUBLISHED,
        config,
        data,
        options,
        out,
        resume=resume,
        device=device,
        statistics=True,
    )


def coreset_random(
    data: Annotated[DataOptions, Flat] = DataOptions(),
    *,
    out: Path,
    ipc: int = 10,
    image_size: int | None = None,
    seed: int = 0,
    resume: bool = False,
    png: bool = False,
) -> None:
    """Pick images at random, the same number of every class.

    Args:
        data: Which data.
        out: Run folder; the set goes to OUT/set.
        ipc: Images a class.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Seed of the choice.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
    """
    source = data.load("train", image_size)

    def make() -> DistilledSet:
        scores = random_scores(len(source), seed=seed)
        classes = source.num_classes
        return select(
            scores, source.labels, ipc=ipc, num_classes=classes, method="random"
        ).to_distilled(source)

    facts = {
        "task": "coreset random",
        "ipc": ipc,
        "image_size": image_size,
        "seed": seed,
        **plain(data),
    }
    make_set(out, facts, source, ipc, make, resume=resume, png=png)


def coreset_el2n_easy(
    data: Annotated[DataOptions, Flat] = DataOptions(),
    model: Annotated[ModelOptions, Flat] = ModelOptions(),
    *,
    out: Path,
    ipc: int = 10,
    image_size: int | None = None,
    repeats: int = 10,
    epochs: int = 20,
    seed: int = 0,
    resume: bool = False,
    png: bool = False,
    device: str | None = None,
) -> None:
    """Pick the images with the lowest EL2N of each class: what young networks find easiest.

    Args:
        data: Which data.
        model: The scoring network.
        out: Run folder; the set goes to OUT/set.
        ipc: Images a class.
        image_size: Side in pixels that images of a folder are resized and cut to.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
        seed: Seed of the networks.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """
    source = data.resident("train", image_size)

    def make() -> DistilledSet:
        scores = el2n_scores(
            source,
            model.spec(),
            repeats=repeats,
            epochs=epochs,
            seed=seed,
            device=device,
            out=out / "el2n",
        )
        return select(
            scores,
            source.labels,
            strategy="bottomk",
            ipc=ipc,
            num_classes=source.num_classes,
            method="el2n-easy",
        ).to_distilled(source)

    facts = {
        "task": "coreset el2n-easy",
        "ipc": ipc,
        "image_size": image_size,
        "repeats": repeats,
        "epochs": epochs,
        "seed": seed,
        **plain(data),
        **plain(model),
    }
    make_set(out, facts, source, ipc, make, resume=resume, png=png)


def train(
    data: Annotated[DataOptions, Flat] = DataOptions(),
    model: Annotated[ModelOptions, Flat] = ModelOptions(),
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),
    sets: Annotated[SetOptions, Flat] = SetOptions(),  # noqa: B008
    execution: Annotated[Execution, Flat] = Execution(),  # noqa: B008
    *,
    set: Path,
    regime: Literal["hl", "sl", "sl-kd"],
    out: Path,
    scale: Literal["small", "large"] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    samples: int | None = None,
    recipe: tuple[str, ...] = (),
    seeds: int = 3,
    seed: int = 0,
    evaluations: int = 10,
    labels: Literal["auto", "stored"] | Path = "auto",
    deterministic: bool = False,
    resume: bool = False,
    device: str | None = None,
) -> None:
    """Train students from scratch on a set and measure them on the test split of the data.

    The recipes are Table 1 of "Rethinking Dataset Distillation: Hard Truths About Soft Labels".
    Under torchrun the processes share every batch.

    Args:
        data: Whose test split measures the students (and whose train split a new teacher learns).
        model: The student.
        teacher: The teacher of sl and sl-kd.
        sets: How the set is read.
        execution: How the passes are computed.
        set: Folder of a set: of the distill and coreset commands, or an official code's images.
        regime: hl: hard labels; sl: one soft label an image; sl-kd: a teacher on every view.
        out: Run folder.
        scale: Columns of Table 1; default small up to 64 pixels, else large.
        epochs: Train for so many epochs instead of the published number.
        steps: Train for so many optimiser steps instead.
        samples: Train for so many images seen instead.
        recipe: Changes of the recipe, each NAME=VALUE, e.g. lr=0.1 batch_size=64.
        seeds: Number of students.
        seed: Seed of the first; the others follow.
        evaluations: Test evaluations a student, evenly spread.
        labels: stored: the set's own soft labels instead of a teacher's; a folder: the labels of
            every view that relabel or labels import stored there, for sl-kd.
        deterministic: Deterministic algorithms on CUDA.
        resume: Go on with the stopped run in OUT.
        device: cpu or cuda; default CUDA where there is one.
    """
    target = resolve_device(device)
    ranks = join_ranks()
    task = data.load("test")
    distilled = sets.open(set, task, target, tell=ranks.first)
    used_labels = open_labels(labels) if isinstance(labels, Path) else labels
    if isinstance(used_labels, SoftLabels):
        used = _replayed_recipe(used_labels, scale, recipe)
    else:
        used = _recipe(regime, scale, distilled.ipc, max(distilled.image_shape[1:]), recipe)
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {seeds}")
    budget = _budget(epochs, steps, samples)
    # The stored size, or that of the views where the recipe resizes.
    side = used.image_size or max(distilled.image_shape[1:])
    sized = side if data.of_any_size else None
    cut = None if sized is None else test_view(sized, sets.test_resize)
    test_set = ResidentDataset(
        task if sized is None else data.load("test", sized, cut),
        device=target,
        limit_bytes=sets.limit_bytes,
        on_overflow="stream",
    )
    needs_teacher = regime != "hl" and labels == "auto"
    if ranks.world > 1 and needs_teacher and teacher.teacher is None:
        raise ValueError("under torchrun give a trained teacher: --teacher")
    check_student(
        distilled,
        regime,
        model.spec(),
        test_set=test_set,
        has_teacher=needs_teacher,
        labels=used_labels,
        recipe=used,
        budget=budget,
        seeds=range(seed, seed + seeds),
        evaluations=evaluations,
        device=device,
        execution=execution,
    )
    facts = {
        "task": "train",
        "set": str(set),
        "layout": sets.layout,
        "factor": distilled.factor,
        "test_resize": cut,
        "labels": str(labels),
        "regime": regime,
        "recipe": used.to_dict(),
        "budget": None if budget is None else repr(budget),
        "seeds": seeds,
        "seed": seed,
        **plain(data),
        **plain(model),
        **plain(teacher),
    }
    with RunFolder(out, facts, resume=resume) if ranks.first else nullcontext():
        ranks.wait()
        known = teacher.get(data, sized, out, seed, device) if needs_teacher else None
        result = train_student(
            distilled,
            regime,
            model.spec(),
            test_set=test_set,
            teacher=None if known is None else known.model,
            teacher_info=None if known is None else {"accuracy": known.record["accuracy"]},
            labels=used_labels,
            recipe=used,
            budget=budget,
            seeds=tuple(range(seed, seed + seeds)),
            evaluations=evaluations,
            device=device,
            deterministic=deterministic,
            execution=execution,
            out=out / "students",
        )
    if not ranks.first:
        return
    table = new_table(
        f"{REGIMES[regime]} students, test accuracy (%)", "seed", "last", "best", "at epoch"
    )
    for student in result.seeds:
        table.add_row(
            str(student.seed),
            f"{100 * student.last_accuracy:.2f}",
            f"{100 * student.best_accuracy:.2f}",
            f"{student.best_epoch:g}",
        )
    print_table(table)
    spread = f" ± {100 * result.std:.2f} over seeds" if seeds > 1 else ""
    print(
        f"mean {100 * result.mean:.2f} %{spread}; {result.test_count:,} test images leave a "
        f"standard error of {100 * result.sampling_error:.2f}"
    )
    if result.diverged:
        print(f"diverged, so that these numbers mean nothing: seeds {list(result.diverged)}")
    if not used.in_paper:
        print("this recipe is not in the paper")
    print(f"results: {out / 'students' / 'result.json'}")


def _teacher_folder(folder: Path) -> Path:
    """The folder itself, or the one of the teacher in it."""
    if (folder / "teacher" / "teacher.json").is_file():
        folder = folder / "teacher"
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; a teacher's folder needs it")
    return folder


def load_teacher(folder: Path, data: ImageSource, device: str | None) -> Teacher:
    """Read a teacher that :func:`pyddfast.train.train_teacher` wrote.

    Args:
        folder: Its run folder, or the folder of a run that trained one (``folder/teacher``).
        data: A data set of the teacher's image size and classes.
        device: Where it goes; default CUDA where there is one.

    Raises:
        FileNotFoundError: There is no teacher.
        ValueError: A file is damaged, the model was not made by name, or it is one for other data.
    """
    folder = _teacher_folder(folder)
    channels, height, width = data[0].shape
    target = resolve_device(device)
    record = read_record(folder / RECORD)
    try:
        model = record["config"]["model"]
        network = create(
            model["name"],
            num_classes=data.num_classes,
            in_channels=channels,
            image_size=(height, width),
            **model["options"],
        )
        load_weights(network, folder / WEIGHTS, record)
    except Exception as error:
        # A missing key, an unknown option, a network of another size: each its own type.
        raise ValueError(
            f"{folder} holds no teacher for {data.num_classes} classes of "
            f"{channels} x {height} x {width} images: {error}"
        ) from error
    return Teacher(network.to(target).eval(), record)


def _synthesise(
    method: Callable[..., DistilledSet],
    published: dict[str, dict[str, Any]],
    config: SynthesisConfig,
    data: DataOptions,
    options: SynthesisOptions,
    out: Path,
    *,
    resume: bool,
    device: str | None,
    statistics: bool = False,
) -> None:
    """Make a set by optimisation in a run folder, as one process or as a rank of torchrun.

    With ``statistics`` the method takes them from the data.
    """
    if options.pretrained is not None and options.teacher:
        raise ValueError("give at most one of --teacher and --pretrained")
    source: ImageDataset | ImageFolder | None = None
    if options.pretrained is None or config.init == "data" or statistics:
        source = data.load("train")
    if options.pretrained is not None:
        # The one published network there is; a data set shares its order of classes.
        names = () if source is None else source.class_names
        task: Any = TaskInfo(1000, EFFICIENTNET_LITE_NORMALIZATION, names)
    else:
        task = source
    first: Any = source if config.init == "data" else None
    if (config.init == "set") != (options.first_set is not None):
        raise ValueError("--init set and --first-set need each other")
    if options.first_set is not None:
        first = load_set(options.first_set)
    settings = resolve(config, task, published)
    ranks = join_ranks()
    if ranks.world > 1 and not options.teacher and options.pretrained is None:
        raise ValueError("under torchrun give a trained teacher: --teacher or --pretrained")
    side = settings.image_size if config.image_size or data.data == "folder" else None
    ready = options.teacher or options.pretrained is not None
    teachers = options.get(data, side, out, config.seed, device) if ready else []

    name = method.__name__
    facts = {
        "task": f"distill {name}",
        **plain(config),
        **plain(data),
        "teacher": [str(folder) for folder in options.teacher],
        "pretrained": options.pretrained,
        "first_set": None if options.first_set is None else str(options.first_set),
        "dataset": None if first is None else describe_data(first),
    }
    if statistics:
        assert source is not None
        facts["statistics"] = describe_data(source)
        method = partial(method, data=source)
    folder = out / "set"
    with RunFolder(out, facts, resume=resume) if ranks.rank == 0 else nullcontext() as run:
        ranks.wait()
        if not folder.exists():
            began = time.perf_counter()
            if not ready:
                teachers = options.get(data, side, out, config.seed, device)
            assert settings.batch_size is not None
            assert settings.iterations is not None
            chunks = plan_chunks(
                settings.classes, settings.ipc, settings.batch_size, settings.order
            )
            total = len(chunks[ranks.rank :: ranks.world]) * settings.iterations
            with progress(name, total, enabled=ranks.rank == 0) as advance:
                shown = 0

                def show(done: int, _: int) -> None:
                    nonlocal shown
                    advance(done - shown)
                    shown = done

                job = Job(device=device, out=out / "synthesis", on_progress=show)
                made = method(task, teachers, config, source=first, job=job)
            if run is not None:
                seconds = round(time.perf_counter() - began, 3)
                run.log({"stage": "set", "seconds": seconds, "images": len(made)})
                made.save(folder)
        ranks.wait()
        if run is None:
            return
        made = DistilledSet.load(folder)
        if options.layout is not None and not (out / "images").exists():
            write_layout(made, out / "images", options.layout, image_format=options.image_format)
    height, width = made.images.shape[-2:]
    print(f"{len(made):,} images of {height}x{width}, {config.ipc} for each class")
    print(f"the teacher puts {100 * made.meta['teacher_accuracy']:.1f} % of them in their class")
    print(f"set: {folder}")


def make_set(
    out: Path,
    facts: dict[str, Any],
    source: ImageDataset | ImageFolder,
    ipc: int,
    make: Callable[[], DistilledSet],
    *,
    resume: bool,
    png: bool,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> None:
    """Make a set in a run folder, unless the resumed run has it already.

    ``make`` runs in every process, the rest in the first one.
    """
    if ipc < 1:
        raise ValueError(f"--ipc must be at least 1, got {ipc}")
    check_ipc(ipc, torch.bincount(source.labels, minlength=source.num_classes).tolist())
    folder = out / "set"
    config = {**facts, "dataset": describe_data(source)}
    with RunFolder(out, config, resume=resume) if ranks.rank == 0 else nullcontext() as run:
        ranks.wait()
        # A set's folder appears whole, so one that is there is finished.
        if not folder.exists():
            began = time.perf_counter()
            made = make()
            if run is not None:
                seconds = time.perf_counter() - began
                run.log({"stage": "set", "seconds": round(seconds, 3), "images": len(made)})
                made.save(folder)
        ranks.wait()
        if run is None:
            return
        made = DistilledSet.load(folder)
        if png:
            _export(made, out / "png")
    size = "x".join(str(side) for side in made.images.shape[-2:])
    print(f"{len(made):,} images of {size}, {made.ipc} for each of {made.num_classes} classes")
    print(f"set: {folder}")


def _export(made: DistilledSet, folder: Path) -> None:
    """Write the PNG files, unless they are there already."""
    if not folder.exists():
        export_png(made, folder)
    # Whole when it appeared; somebody may have removed some since.
    found = sum(1 for _ in folder.glob("*/*.png"))
    if found < len(made):
        raise FileExistsError(
            f"{folder} has {found} of {len(made)} images; remove it, and --resume writes all again"
        )


@contextmanager
def class_progress(name: str, classes: int, ranks: Ranks) -> Iterator[Callable[[int, int], None]]:
    """Progress over the classes of this process, shown by the first one."""
    share = classes * (ranks.rank + 1) // ranks.world - classes * ranks.rank // ranks.world
    with progress(name, share, enabled=ranks.rank == 0) as advance:
        shown = 0

        def show(done: int, _: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        yield show


def load_set(folder: Path) -> DistilledSet:
    """The set of a folder, or of the run in it."""
    if (folder / "config.json").is_file() and not (folder / "set").is_dir():
        raise FileNotFoundError(
            f"{folder} is a run without a set: it was stopped, and its command with --resume goes "
            "on, or it is a run that makes none"
        )
    return DistilledSet.load(folder / "set" if (folder / "set").is_dir() else folder)


def _recipe(
    regime: Regime, scale: Scale | None, ipc: int, side: int, changes: Sequence[str]
) -> Recipe:
    # 64 pixels are the largest of the paper's small-scale sets (Tiny-ImageNet).
    chosen: Scale = scale or ("small" if side <= 64 else "large")
    return published_recipe(regime, chosen, ipc, **recipe_changes(changes))


def recipe_changes(words: Sequence[str]) -> dict[str, Any]:
    """The fields of a recipe that ``NAME=VALUE`` words set."""
    given = _assignments("recipe", words)
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"--recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return given


def _replayed_recipe(store: SoftLabels, scale: Scale | None, changes: Sequence[str]) -> Recipe:
    """That of the stored views; of imported ones the published SL+KD at their batch size."""
    made = stored_recipe(store)
    if made is None:
        batch = f"batch_size={store.info.batch_size}"
        return _recipe("sl-kd", scale or "large", 1, 0, [batch, *changes])
    if scale not in (None, made.scale):
        raise ValueError(f"--scale {scale} is not that of {store.path}, {made.scale}")
    return replace(made, **recipe_changes(changes))


def _budget(epochs: int | None, steps: int | None, samples: int | None) -> Budget | None:
    given = [
        kind(count)
        for kind, count in ((Epochs, epochs), (Steps, steps), (Samples, samples))
        if count is not None
    ]
    if len(given) > 1:
        raise ValueError("give at most one of --epochs, --steps and --samples")
    return given[0] if given else None


def _assignments(option: str, words: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words; a value is a Python literal if it reads as one, else text."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"--{option} takes NAME=VALUE, got {word!r}")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def plain(options: Any) -> dict[str, Any]:
    """The fields of a config dataclass as JSON values."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(options).items()
    }


def show_results(results: Sequence[Result]) -> None:
    """The table of accuracies by set and regime, and which differences are more than chance."""
    cells = {(r.method, r.regime): r for r in results}
    regimes = list(dict.fromkeys(r.regime for r in results))
    table = new_table("Test accuracy (%), mean ± std over seeds", "set", *regimes)
    for method in dict.fromkeys(r.method for r in results):
        row = (cells[method, regime] for regime in regimes)
        table.add_row(method, *(f"{percent(r.mean)} ± {percent(r.std or 0.0)}" for r in row))
    print_table(table)
    worst = max(r.sampling_error for r in results)
    print(f"Test images leave a standard error of up to {percent(worst)} points on each.\n")
    for sentence in summary(differences(results), brief=True):
        print(f"- {sentence}")


def new_table(title: str, *columns: str) -> Table:
    """An empty table; its first column is text, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Write a table to stdout."""
    Console().print(table)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
