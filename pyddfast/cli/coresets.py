"""The commands of coresets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pyddfast.cli.options import DataOptions, Flat, ModelOptions, TeacherOptions, plain
from pyddfast.cli.score import read_scores
from pyddfast.cli.sets import class_progress, make_set
from pyddfast.coresets import (
    Scores,
    Selection,
    TrainingDynamics,
    aum_scores,
    beta_sampling,
    cad_scores,
    dual_scores,
    dyn_unc_scores,
    el2n_best,
    el2n_scores,
    el2n_sl_scores,
    forgetting_scores,
    random_scores,
    select,
)
from pyddfast.coresets.cad_prune import check_cad
from pyddfast.coresets.el2n import check_offsets
from pyddfast.coresets.recorded import check_recording
from pyddfast.coresets.selection import Strategy, check_ipc
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder
from pyddfast.data.stored import tensors_digest
from pyddfast.methods.ca2d import ca2d
from pyddfast.methods.rded import RDEDConfig, check_rded
from pyddfast.train import Epochs, teacher_recipe

__all__ = [
    "CADOptions",
    "CoresetOptions",
    "coreset_aum",
    "coreset_cad_prune",
    "coreset_dual",
    "coreset_dyn_unc",
    "coreset_el2n",
    "coreset_el2n_best",
    "coreset_el2n_easy",
    "coreset_el2n_sl",
    "coreset_forgetting",
    "coreset_random",
    "coreset_recorded",
    "distill_ca2d",
]


@dataclass(frozen=True)
class CoresetOptions:
    """The set to make, and where.

    Attributes:
        out: Run folder; the set goes to OUT/set.
        ipc: Images a class.
        image_size: Side in pixels that images of a folder are resized and cut to.
        seed: Seed of the networks that score.
        resume: Go on with the stopped run in OUT.
        png: Write every image to OUT/png as well.
        device: cpu or cuda; default CUDA where there is one.
    """

    out: Path
    ipc: int = 10
    image_size: int | None = None
    seed: int = 0
    resume: bool = False
    png: bool = False
    device: str | None = None

    def facts(self) -> dict[str, Any]:
        """What a resumed run has to agree in."""
        return {"ipc": self.ipc, "image_size": self.image_size, "seed": self.seed}


@dataclass(frozen=True)
class CADOptions:
    """The compute-matched run of CAD-Prune.

    Attributes:
        downstream_epochs: Epochs that the set will be trained for; the run sees as many images.
        ticks: Number of equally spaced snapshots, or epoch: one an epoch.
        cad_window: J, ticks a window; default all but W.
        cad_average: W, windows that are averaged.
        drop_last: Leave the window at the last tick out, as the formula does.
        signal: Whose deviation: p_y or el2n.
        mode: eval: a pass over the data a tick; train: the training's own logits.
    """

    downstream_epochs: int = 300
    ticks: int | Literal["epoch"] = 30
    cad_window: int | None = None
    cad_average: int = 2
    drop_last: bool = True
    signal: Literal["p_y", "el2n"] = "p_y"
    mode: Literal["train", "eval"] = "eval"


def coreset_el2n(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 10,
    epochs: int = 20,
) -> None:
    """Pick the images with the highest EL2N of each class: what young networks find hardest.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
    """

    def scores(source: ImageDataset) -> Scores:
        return el2n_scores(
            source,
            model.spec(),
            repeats=repeats,
            epochs=epochs,
            seed=to.seed,
            device=to.device,
            out=to.out / "el2n",
        )

    _check_networks(repeats, epochs)
    _coreset("el2n", to, data, model, scores, {"repeats": repeats, "epochs": epochs})


def coreset_el2n_best(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 10,
    epochs: int = 20,
    offsets: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    student_epochs: int | None = None,
    student_seeds: int = 1,
) -> None:
    """Pick the window of the EL2N ranking that hard-label students do best on; trains on each.

    The windows are judged on the test split, as in the paper's tables: the best is an optimistic
    choice.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network, and the student.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
        offsets: Starts of the windows, as shares of the positions they can start at.
        student_epochs: Epochs of a student; default the paper's.
        student_seeds: Students a window.
    """
    if student_seeds < 1:
        raise ValueError(f"--student-seeds must be at least 1, got {student_seeds}")
    check_offsets(offsets)
    _check_networks(repeats, epochs)
    budget = None if student_epochs is None else Epochs(student_epochs)

    def pick(source: ImageDataset) -> Selection:
        scores = el2n_scores(
            source,
            model.spec(),
            repeats=repeats,
            epochs=epochs,
            seed=to.seed,
            device=to.device,
            out=to.out / "el2n",
        )
        return el2n_best(
            source,
            scores,
            ipc=to.ipc,
            test_set=data.resident("test", to.image_size),
            model=model.spec(),
            offsets=offsets,
            budget=budget,
            seeds=tuple(range(to.seed, to.seed + student_seeds)),
            device=to.device,
            out=to.out / "windows",
        )

    facts = {
        "repeats": repeats,
        "epochs": epochs,
        "offsets": list(offsets),
        "student_epochs": student_epochs,
        "student_seeds": student_seeds,
    }
    _picked("el2n-best", to, data, model, pick, facts)


def coreset_el2n_sl(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    temperature: float = 20.0,
    repeats: int = 10,
    epochs: int = 20,
) -> None:
    """Pick the images with the highest EL2N-SL: where young networks are farthest from a teacher.

    Args:
        to: The set.
        data: Which data.
        model: The scoring network.
        teacher: Gives the soft labels.
        temperature: T of both softmaxes.
        repeats: Networks that the score is averaged over.
        epochs: Epochs before they score.
    """

    def scores(source: ImageDataset) -> Scores:
        known = teacher.get(data, to.image_size, to.out, to.seed, to.device)
        return el2n_sl_scores(
            source,
            known.model,
            model.spec(),
            temperature=temperature,
            repeats=repeats,
            epochs=epochs,
            seed=to.seed,
            device=to.device,
            out=to.out / "el2n",
        )

    _check_networks(repeats, epochs)
    teacher.check()
    facts = {"temperature": temperature, "repeats": repeats, "epochs": epochs, **plain(teacher)}
    _coreset("el2n-sl", to, data, model, scores, facts)


def coreset_forgetting(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 5,
    epochs: int = 200,
    never_learned: Literal["max", "inf", "zero"] = "max",
) -> None:
    """Pick the images of each class that a training forgets most often.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
        never_learned: Images never classified correctly: max: so many events more as presentations;
            inf: first of all; zero: no event.
    """
    facts = {"repeats": repeats, "epochs": epochs, "never_learned": never_learned}
    _dynamics("forgetting", forgetting_scores, to, data, model, facts)


def coreset_aum(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 1,
    epochs: int = 150,
) -> None:
    """Pick the images with the largest area under the margin: easy, and surely labelled right.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
    """
    _dynamics("aum", aum_scores, to, data, model, {"repeats": repeats, "epochs": epochs})


def coreset_dyn_unc(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 1,
    epochs: int = 60,
    window: int = 10,
    mode: Literal["train", "eval"] = "eval",
    drop_last: bool = True,
) -> None:
    """Pick the images with the highest Dyn-Unc: whose probability varies most within a window.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
        window: J, epochs a window.
        mode: eval: a pass over the data an epoch; train: the training's own logits.
        drop_last: Leave the window at the last epoch out, as the formula does.
    """
    facts = {
        "repeats": repeats,
        "epochs": epochs,
        "window": window,
        "mode": mode,
        "drop_last": drop_last,
    }
    _dynamics("dyn-unc", dyn_unc_scores, to, data, model, facts)


def coreset_dual(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    *,
    repeats: int = 1,
    epochs: int = 30,
    window: int = 10,
) -> None:
    """Pick the images with the highest DUAL score: uncertain and hard.

    Args:
        to: The set.
        data: Which data.
        model: The network.
        repeats: Trainings that the score is averaged over.
        epochs: Epochs of a training.
        window: J, epochs a window.
    """
    facts = {"repeats": repeats, "epochs": epochs, "window": window}
    _dynamics("dual", dual_scores, to, data, model, facts)


def coreset_recorded(
    to: Annotated[CoresetOptions, Flat],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    scores: Path,
    score: str,
    strategy: Strategy = "topk",
    offset: float = 0.0,
    bins: int = 50,
    beta: float | None = None,
) -> None:
    """Pick by a score of a finished "pyddfast score": no training, any number of sets from one run.

    Args:
        to: The set.
        data: The data that the run scored.
        scores: Folder of that run.
        score: One of its scores, e.g. forgetting, aum, dual, cad, el2n.
        strategy: topk: the highest; bottomk: the lowest; window: those after the highest OFFSET;
            stratified: from all BINS of the range.
        offset: Start of the window, as a share of the positions it can start at.
        bins: Of stratified.
        beta: Draw by DUAL's Beta sampling for so large a share pruned (0.9 keeps a tenth) instead
            of taking the highest; needs one_minus_p in the run.
    """
    if beta is not None and strategy != "topk":
        raise ValueError(f"--beta draws by itself, so --strategy must be topk, got {strategy}")
    source = data.resident("train", to.image_size)
    known = read_scores(scores, score, source)
    if beta is not None:
        rest = read_scores(scores, "one_minus_p", source)
        known = beta_sampling(known, rest.values, pruned=beta, seed=to.seed)

    def pick() -> DistilledSet:
        return select(
            known,
            source.labels,
            strategy=strategy,
            ipc=to.ipc,
            offset=offset,
            bins=bins,
            seed=to.seed,
            num_classes=source.num_classes,
        ).to_distilled(source)

    facts = {
        "task": "coreset recorded",
        **to.facts(),
        "scores": tensors_digest({"scores": known.values}),
        "score": score,
        "strategy": strategy,
        "offset": offset,
        "bins": bins,
        "beta": beta,
        **plain(data),
    }
    make_set(to.out, facts, source, to.ipc, pick, resume=to.resume, png=to.png)


def coreset_cad_prune(
    to: Annotated[CoresetOptions, Flat],
    cad: Annotated[CADOptions, Flat] = CADOptions(),
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
) -> None:
    """Pick the images with the highest CAD: still learnt at the end of a compute-matched run.

    Args:
        to: The set.
        cad: The run.
        data: Which data.
        model: The network.
    """
    _check_cad(data.resident("train", to.image_size), to, cad)
    _coreset("cad-prune", to, data, model, lambda source: _cad(source, to, cad, model), plain(cad))


def distill_ca2d(
    to: Annotated[CoresetOptions, Flat],
    cad: Annotated[CADOptions, Flat] = CADOptions(),
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
    teacher: Annotated[TeacherOptions, Flat] = TeacherOptions(),  # noqa: B008
    *,
    scores: Path | None = None,
    pool: int = 300,
    factor: int | None = None,
    num_crops: int = 5,
    batch_size: int | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    channels_last: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    workers: int | None = None,
) -> None:
    """Distill a data set by CA2D: RDED among the images with the highest CAD of each class.

    Under torchrun the processes share the classes; it needs --scores and --teacher.

    Args:
        to: The set.
        cad: The compute-matched run that ranks the images.
        data: Which data.
        model: The network of that run.
        teacher: The observer of the crops.
        scores: Folder of a finished "pyddfast score" on the same data, whose CAD ranks the images
            instead of a run of its own; images are then decoded when needed, at their own sizes.
        pool: Images of each class that compete, by falling CAD.
        factor: Each image is factor x factor patches; default 1 below 128 pixels, 2 from there on.
        num_crops: Random crops of each image.
        batch_size: Crops in one forward pass of the teacher; default 500, on a CPU fewer.
        precision: Arithmetic of the teacher: fp32, or bf16 or fp16 by autocast.
        channels_last: Memory format in which the teacher runs.
        on_error: An image that cannot be decoded: raise stops with its name; skip leaves it out.
        workers: Threads that decode images; default all cores.
    """
    ranks = teacher.ranks()
    if ranks.world > 1 and scores is None:
        raise ValueError("under torchrun give the scores of a finished run: --scores")
    source: ImageDataset | ImageFolder
    if scores is None:
        source = resident = data.resident("train", to.image_size)
        _check_cad(resident, to, cad)

        def rank() -> Scores:
            return _cad(resident, to, cad, model)

    else:
        source = data.load("train")  # crops are cut at the images' own sizes
        known_cad = read_scores(scores, "cad", source)

        def rank() -> Scores:
            return known_cad

    config = RDEDConfig(
        ipc=to.ipc,
        factor=factor,
        image_size=to.image_size,
        num_crops=num_crops,
        pool=pool,
        seed=to.seed,
        batch_size=batch_size,
        precision=precision,
        channels_last=channels_last,
        on_error=on_error,
    )
    check_rded(source, config)
    teacher.check()

    def make() -> DistilledSet:
        values = rank()  # before the teacher, whose training is shorter
        side = to.image_size or (None if isinstance(source, ImageDataset) else 224)
        known = teacher.get(data, side, to.out, to.seed, to.device)
        with class_progress("CA2D", source.num_classes, ranks) as show:
            return ca2d(
                source,
                known.model,
                values,
                config,
                out=to.out / "crops",
                workers=workers,
                on_progress=show,
            )

    facts = {
        "task": "distill ca2d",
        "scores": None if scores is None else str(scores),
        **plain(config),
        **to.facts(),
        **plain(cad),
        **plain(data),
        **plain(model),
        **plain(teacher),
    }
    del facts["on_error"]  # as for RDED
    make_set(to.out, facts, source, to.ipc, make, resume=to.resume, png=to.png, ranks=ranks)


def _check_networks(repeats: int, epochs: int) -> None:
    """Scoring networks that can be trained."""
    if repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {repeats}")
    teacher_recipe(epochs)


def _check_cad(source: ImageDataset, to: CoresetOptions, cad: CADOptions) -> None:
    check_ipc(to.ipc, source.class_counts.tolist())
    check_cad(source, ipc=to.ipc, **plain(cad))


def _cad(source: ImageDataset, to: CoresetOptions, cad: CADOptions, model: ModelOptions) -> Scores:
    return cad_scores(
        source,
        model.spec(),
        ipc=to.ipc,
        **plain(cad),
        seed=to.seed,
        device=to.device,
        out=to.out / "cad",
    )


def _dynamics(
    name: str,
    function: Callable[..., Scores],
    to: CoresetOptions,
    data: DataOptions,
    model: ModelOptions,
    options: dict[str, Any],
) -> None:
    """A coreset of the highest of a score of recorded trainings."""
    if options["repeats"] < 1:
        raise ValueError(f"--repeats must be at least 1, got {options['repeats']}")
    check_recording(
        TrainingDynamics(1, window=options.get("window", 10)),
        (name.replace("-", "_"),),
        teacher_recipe(options["epochs"]),
        mode=options.get("mode", "train"),
        drop_last=options.get("drop_last"),
    )

    def scores(source: ImageDataset) -> Scores:
        return function(
            source,
            model.spec(),
            seed=to.seed,
            device=to.device,
            out=to.out / "networks",
            **options,
        )

    _coreset(name, to, data, model, scores, options)


def _coreset(
    name: str,
    to: CoresetOptions,
    data: DataOptions,
    model: ModelOptions,
    scores: Callable[[ImageDataset], Scores],
    options: dict[str, Any],
) -> None:
    """A coreset of the highest scores of each class."""

    def pick(source: ImageDataset) -> Selection:
        return select(
            scores(source),
            source.labels,
            ipc=to.ipc,
            num_classes=source.num_classes,
            method=name,
        )

    _picked(name, to, data, model, pick, options)


def _picked(
    name: str,
    to: CoresetOptions,
    data: DataOptions,
    model: ModelOptions,
    pick: Callable[[ImageDataset], Selection],
    options: dict[str, Any],
) -> None:
    source = data.resident("train", to.image_size)
    facts = {
        "task": f"coreset {name}",
        **to.facts(),
        **options,
        **plain(data),
        **plain(model),
    }

    def make() -> DistilledSet:
        return pick(source).to_distilled(source)

    make_set(to.out, facts, source, to.ipc, make, resume=to.resume, png=to.png)


def coreset_random(
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
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
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    model: Annotated[ModelOptions, Flat] = ModelOptions(),  # noqa: B008
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
