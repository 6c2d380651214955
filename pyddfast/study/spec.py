"""What a study is: the keys of its YAML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from pyddfast.train import Regime
from pyddfast.train import recipe as published_recipe

__all__ = [
    "SCALES",
    "Budget",
    "Claim",
    "Corruptions",
    "Data",
    "Experts",
    "Network",
    "ObjectiveSpec",
    "Scoring",
    "SetSpec",
    "Study",
    "Trained",
]

SCALES = ("published", "full", "smoke")
Show: TypeAlias = Literal[
    "grid", "convergence", "scaling-law", "dcs", "tm-curve", "dynamics", "ood"
]
# Read by pydantic: an unknown key is an error, and a value of another type is not bent to fit.
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class Data:
    """Which data: as :func:`pyddfast.data.load` takes it.

    Attributes:
        name: Of the data set.
        root: Its folder, where it is not embedded.
        image_size: Side of the images in pixels; None: as they are.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: str
    root: Path | None = None
    image_size: int | None = None

    def facts(self) -> dict[str, Any]:
        """As jobs have it in their settings."""
        root = str(self.root) if self.root else None
        return {"name": self.name, "root": root, "image_size": self.image_size}


@dataclass(frozen=True)
class Network:
    """A network by name.

    Attributes:
        model: Name, as :func:`pyddfast.models.create` takes it.
        options: Its options.
        label: In tables; None: the model's name.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def shown(self) -> str:
        """Its name in tables."""
        return self.label or self.model

    def facts(self) -> dict[str, Any]:
        """What it computes, without its name in tables."""
        return {"model": self.model, "options": self.options}


@dataclass(frozen=True)
class Trained:
    """A network that is trained on the full data.

    Attributes:
        network: Which.
        epochs: Of its training.
        folder: One that :func:`pyddfast.train.train_teacher` trained before; it is read instead.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    network: Network
    epochs: int
    folder: Path | None = None


@dataclass(frozen=True)
class SetSpec:
    """A set to compare.

    Attributes:
        method: A name of ``pyddfast.study.sets.METHODS``.
        label: In tables; None: the method's own name.
        options: Of the method, beside those of ``Study.settings``.
        repeat: Each image so many times: a degenerate set of the same pixels.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    method: str
    label: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    repeat: int = 1


@dataclass(frozen=True)
class Scoring:
    """The trainings that coresets need; the defaults are the published ones.

    Attributes:
        network: Which network scores; None: the study's.
        epochs: Of the network of features, logits and gradients; DeepCore's 40.
        young: Networks of EL2N and their epochs.
        recorded: Epochs of the recorded training; 30 is DUAL's.
        window: J of Dyn-Unc and DUAL, epochs.
        ticks: Snapshots of CAD-Prune's run.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    network: Network | None = None
    epochs: int = 40
    young: tuple[int, int] = (10, 20)
    recorded: int = 30
    window: int = 10
    ticks: int = 30

    def __post_init__(self) -> None:
        if min(self.epochs, *self.young, self.recorded, self.window) < 1:
            raise ValueError("scoring: epochs, young, recorded and window must be at least 1")
        if self.recorded <= self.window:
            raise ValueError(
                f"scoring: recorded must be more than window, got {self.recorded} and {self.window}"
            )
        if self.ticks < 4:  # CAD's W of 2, and as many after it
            raise ValueError(f"scoring: ticks must be at least 4, got {self.ticks}")


@dataclass(frozen=True)
class Experts:
    """The trajectories of TM and DATM.

    Attributes:
        count: How many.
        epochs: Of each.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    count: int = 100
    epochs: int = 50

    def __post_init__(self) -> None:
        if self.count < 1 or self.epochs < 1:
            raise ValueError("experts: count and epochs must be at least 1")


@dataclass(frozen=True)
class Budget:
    """How long a student is trained; nothing given: the recipe's epochs.

    Attributes:
        epochs: For every size, or by images a class.
        samples: Images that every student sees, whatever its set's size.
        batch_size: Images a step; None: the recipe's.  Smaller ones give short trainings steps.
        label: In tables, where there are several budgets.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    epochs: int | dict[int, int] | None = None
    samples: int | None = None
    batch_size: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.samples is not None:
            raise ValueError("a budget has epochs or samples, not both")
        epochs = self.epochs.values() if isinstance(self.epochs, dict) else (self.epochs,)
        if any(v is not None and v < 1 for v in (*epochs, self.samples, self.batch_size)):
            raise ValueError("budgets: epochs, samples and batch_size must be at least 1")

    def epochs_at(self, ipc: int) -> int | None:
        """Epochs for sets of that size; None: the recipe's.

        Raises:
            ValueError: There is no entry for it.
        """
        if not isinstance(self.epochs, dict):
            return self.epochs
        if ipc not in self.epochs:
            known = ", ".join(map(str, self.epochs))
            raise ValueError(f"budgets: epochs has no entry for ipc {ipc}, only for {known}")
        return self.epochs[ipc]


@dataclass(frozen=True)
class ObjectiveSpec:
    """A distillation objective that is evaluated on every set.

    Attributes:
        name: ``"sre2l"``, ``"dwa"``, ``"dm"``, ``"dc"`` or ``"tm"``.
        options: Of its class in ``pyddfast.analysis.objectives``.
        average: First and last starting epoch, both counted, whose mean is TM's value; None: all.
        network: Of DM, DC and TM; None: the study's.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: Literal["sre2l", "dwa", "dm", "dc", "tm"]
    options: dict[str, Any] = field(default_factory=dict)
    average: tuple[int, int] | None = None
    network: Network | None = None

    @property
    def shown(self) -> str:
        """Its name in tables."""
        return self.name if self.network is None else f"{self.name} of {self.network.shown}"

    def __post_init__(self) -> None:
        if self.network is not None and self.name in ("sre2l", "dwa"):
            raise ValueError(f"objectives: {self.name} is of the first teacher, not of a network")
        if self.average is None:
            return
        low, high = self.options.get("start_epochs", (20, 35))
        first, last = self.average
        if self.name != "tm" or not low <= first <= last <= high:
            raise ValueError(
                f"objectives: average is of tm, within its start_epochs {low} to {high}; got "
                f"{first} to {last} of {self.name}"
            )


@dataclass(frozen=True)
class Corruptions:
    """Corrupted test images that every student is measured on.

    Attributes:
        names: Of ``pyddfast.analysis.corruptions.CORRUPTIONS``; none: all fifteen.
        severities: Of 1 to 5.
        root: A tree in ImageNet-C's layout that is read; None: they are made of the test split.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    names: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    root: Path | None = None

    def __post_init__(self) -> None:
        different = set(self.severities)
        if not different or different - {1, 2, 3, 4, 5} or len(different) < len(self.severities):
            raise ValueError(
                f"ood: severities must be different ones of 1 to 5, got {self.severities}"
            )


@dataclass(frozen=True)
class Claim:
    """A statement of the paper that two rows of the table decide.

    Attributes:
        says: The statement.
        first: Label of the row that is said to be higher.
        second: Label of the other.
        regime: In which regime.
        expected: ``"above"``: distinguishably higher; ``"not above"``: its lead is gone.
        ipc: Where; none: at every size.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    says: str
    first: str
    second: str
    regime: Regime = "hl"
    expected: Literal["above", "not above"] = "above"
    ipc: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """A grid: sets × images a class × regimes × teachers × budgets × students × seeds.

    Attributes:
        title: What it is, in a line.
        data: Which data.
        sets: The rows.
        network: Distils, scores, and is the student where ``students`` names none.
        teachers: Label the images in SL and SL+KD, a column each; the first is also the observer of
            RDED and the network that SRe2L and its kin invert.
        ipc: Images a class.
        regimes: Label regimes.
        students: Networks that are trained on the sets; none: ``network``.
        mean_of_students: One column of their mean accuracy in place of one each.
        budgets: Lengths of the students' training, a column each.
        seeds: Students of each cell.
        evaluations: Of a student on the test set; more than 1 gives curves.
        settings: Options of methods, by method.
        scoring: Trainings that coresets need.
        experts: Trajectories that TM and DATM need.
        objectives: Distillation objectives of every set.
        ood: Corrupted images that every student is measured on, beside the test split.
        show: What the report has beside the table: images of the sets (``"grid"``); of the
            students' curves the epochs to their plateau (``"convergence"``) or the scaling law;
            of the objectives the DCS, or TM's loss by starting epoch (``"tm-curve"``); loss
            and accuracy along a TM or DATM synthesis, of sets that differ in their iterations
            (``"dynamics"``); errors on corrupted images beside those on the test split, and their
            DCS (``"ood"``).
        grid_class: The class of the grid's images, a row a set; None: all, a row a class.
        published: Table of ``published.json`` to print beside.
        claims: What the paper says of it.
        notes: Printed in the report.
        seed: Of sets and trainings; students take 0, 1, ... .
        name: Of the study; the file's.
        scale: ``"published"``, ``"full"`` or ``"smoke"``.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    title: str
    data: Data
    sets: tuple[SetSpec, ...]
    network: Network
    ipc: tuple[int, ...]
    teachers: tuple[Trained, ...] = ()
    regimes: tuple[Regime, ...] = ("hl",)
    students: tuple[Network, ...] = ()
    mean_of_students: bool = False
    budgets: tuple[Budget, ...] = (Budget(),)
    seeds: int = 5
    evaluations: int = 1
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    scoring: Scoring = Scoring()
    experts: Experts = Experts()
    objectives: tuple[ObjectiveSpec, ...] = ()
    ood: Corruptions | None = None
    show: tuple[Show, ...] = ()
    grid_class: str | None = None
    published: str | None = None
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    name: str = "study"
    scale: Literal["published", "full", "smoke"] = "published"

    def __post_init__(self) -> None:
        for name in ("sets", "ipc", "budgets", *(() if "grid" in self.show else ("regimes",))):
            if not getattr(self, name):
                raise ValueError(f"{name} must have an entry")
        if any(ipc < 1 for ipc in self.ipc) or len(set(self.ipc)) != len(self.ipc):
            raise ValueError(f"ipc must be different positive ints, got {self.ipc}")
        if len(set(self.regimes)) != len(self.regimes):
            raise ValueError(f"regimes must differ, got {', '.join(self.regimes)}")
        objectives = [objective.shown for objective in self.objectives]
        if len(set(objectives)) != len(objectives):
            raise ValueError(f"objectives must differ, got {', '.join(objectives)}")
        if unmeasured := [c.says for c in self.claims if c.regime not in self.regimes]:
            raise ValueError(
                f"claims: the regime of {unmeasured[0]!r} is none of {', '.join(self.regimes)}"
            )
        if any(teacher.epochs < 1 for teacher in self.teachers):
            raise ValueError("teachers: epochs must be at least 1")
        if any(spec.repeat < 1 for spec in self.sets):
            raise ValueError("repeat of a set must be at least 1")
        for shown, needed in (("dcs", "objectives"), ("ood", "ood")):
            if shown in self.show and not getattr(self, needed):
                raise ValueError(f"show: {shown} needs {needed}")
        if "tm-curve" in self.show and "tm" not in {one.name for one in self.objectives}:
            raise ValueError("show: tm-curve needs the objective tm")
        along = {s.method for s in self.sets if "iterations" in s.options} & {"tm", "datm"}
        if "dynamics" in self.show and len(along) != 1:
            raise ValueError(
                "show: dynamics needs sets of tm, or of datm, whose options have iterations"
            )
        if {"convergence", "scaling-law"} & set(self.show) and self.evaluations < 4:
            raise ValueError("show: curves need evaluations of at least 4")
        if self.seeds < 1 or self.evaluations < 1:
            raise ValueError("seeds and evaluations must be at least 1")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2**64), got {self.seed}")
        if not self.teachers and set(self.regimes) - {"hl"}:
            raise ValueError("teachers is empty: the regimes sl and sl-kd need one")

    @property
    def learners(self) -> tuple[Network, ...]:
        """The students' networks."""
        return self.students or (self.network,)

    def student_epochs(self, budget: Budget, ipc: int) -> int:
        """Epochs of a hard-label student: the compute that CAD-Prune aligns itself with."""
        if budget.samples is not None:
            raise ValueError("CAD-Prune needs a budget of epochs")
        given = budget.epochs_at(ipc)
        large = (self.data.image_size or 0) > 64 or self.data.name == "imagenet"
        scale: Literal["large", "small"] = "large" if large else "small"
        return given or published_recipe("hl", scale=scale, ipc=ipc).epochs

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
