"""What a study is: one YAML file, read into typed values."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_type_hints

from pyddfast._extras import require
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
    "read_study",
    "shipped",
]

STUDIES = Path(__file__).parent / "studies"
SCALES = ("published", "full", "smoke")
Show: TypeAlias = Literal["grid", "convergence", "scaling-law", "dcs", "tm-curve", "ood"]
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


@dataclass(frozen=True)
class Budget:
    """How long a student is trained; nothing given: the recipe's epochs.

    Attributes:
        epochs: For every size, or by images a class.
        samples: Images that every student sees, whatever its set's size.
        label: In tables, where there are several budgets.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    epochs: int | dict[int, int] | None = None
    samples: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.samples is not None:
            raise ValueError("a budget has epochs or samples, not both")

    def epochs_at(self, ipc: int) -> int | None:
        """Epochs for sets of that size; None: the recipe's.

        Raises:
            ValueError: There is no entry for it.
        """
        if not isinstance(self.epochs, dict):
            return self.epochs
        if ipc not in self.epochs:
            raise ValueError(f"budgets: epochs has no entry for ipc {ipc}")
        return self.epochs[ipc]


@dataclass(frozen=True)
class ObjectiveSpec:
    """A distillation objective that is evaluated on every set.

    Attributes:
        name: ``"sre2l"``, ``"dwa"``, ``"dm"``, ``"dc"`` or ``"tm"``.
        options: Of its class in ``pyddfast.analysis.objectives``.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    name: Literal["sre2l", "dwa", "dm", "dc", "tm"]
    options: dict[str, Any] = field(default_factory=dict)


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
            of the objectives the DCS, or TM's loss by starting epoch (``"tm-curve"``); errors
            on corrupted images beside those on the test split, and their DCS (``"ood"``).
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
        if any(spec.repeat < 1 for spec in self.sets):
            raise ValueError("repeat of a set must be at least 1")
        for shown, needed in (("dcs", "objectives"), ("tm-curve", "objectives"), ("ood", "ood")):
            if shown in self.show and not getattr(self, needed):
                raise ValueError(f"show: {shown} needs {needed}")
        if {"convergence", "scaling-law"} & set(self.show) and self.evaluations < 4:
            raise ValueError("show: curves need evaluations of at least 4")
        if self.seeds < 1 or self.evaluations < 1:
            raise ValueError("seeds and evaluations must be at least 1")
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


def shipped() -> dict[str, Path]:
    """Files of the studies in the package, by name, in the paper's order."""
    files = {file.stem: file for file in STUDIES.glob("*.yaml") if file.stem != "scales"}

    def order(name: str) -> tuple[int, int, str]:
        kind, _, number = name.partition("-")
        known = {"table": 0, "figure": 1}
        digits = "".join(c for c in number.split("-")[0] if c.isdigit())
        return known.get(kind, 2), int(digits or 0), name

    return {name: files[name] for name in sorted(files, key=order)}


def read_study(
    which: str | Path,
    *,
    scale: str = "published",
    root: Path | None = None,
    seeds: int | None = None,
) -> Study:
    """Read a study of the package by its name, or a YAML file.

    A file has the fields of :class:`Study`, and under ``scales`` those that another scale replaces
    (mappings are merged).  Between the two come the values of ``studies/scales.yaml``, which every
    study shares.

    Args:
        which: A name of :func:`shipped`, or a file.
        scale: ``"published"``: as the file says; ``"full"``: full Fashion-MNIST; ``"smoke"``: its
            embedded subset, minutes on two cores.
        root: Folder of the data, in place of the file's.
        seeds: Students of a cell, in place of the file's.

    Raises:
        FileNotFoundError: There is no such study or file.
        ValueError: A key is unknown (the message has the nearest known ones), a value has the wrong
            type or is out of range, or the file is not YAML.
        ModuleNotFoundError: The ``methods`` extra is not installed.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    file = shipped().get(str(which), Path(which))
    if not file.is_file():
        near = difflib.get_close_matches(str(which), shipped(), 3, 0.4)
        raise FileNotFoundError(
            f"there is no study and no file {str(which)!r}; "
            f"{'nearest are ' + ', '.join(near) if near else 'studies are ' + ', '.join(shipped())}"
        )
    values = _read_yaml(file)
    own = values.pop("scales", {}) or {}
    if not isinstance(own, dict) or set(own) - set(SCALES):
        raise ValueError(f"{file}: scales must be a mapping of {', '.join(SCALES[1:])}")
    if scale != "published":
        for overlay in (_read_yaml(STUDIES / "scales.yaml")[scale], own.get(scale, {})):
            values = _merge(values, overlay)
    values |= {"name": file.stem, "scale": scale}
    if root is not None:
        values["data"] = {**values.get("data", {}), "root": str(root)}
    if seeds is not None:
        values["seeds"] = seeds
    return _build(values, file)


def _read_yaml(file: Path) -> dict[str, Any]:
    yaml = require("yaml", "methods")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping of study keys")
    return values


def _merge(values: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``overlay`` in place of those of ``values``, mappings key by key.

    What has a name (data, a network by its model) is replaced whole: the size of other images, or
    the options of another model, are not inherited.
    """
    merged = dict(values)
    for key, value in overlay.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both and not {"name", "model"} & set(value) else value  # type: ignore[arg-type]
    return merged


def _build(values: dict[str, Any], file: Path) -> Study:
    pydantic = require("pydantic", "methods")
    # A set of defaults alone is its method's name, and a network its model's.
    try:
        study: Study = pydantic.TypeAdapter(Study).validate_python(_spelled_out(values))
    except pydantic.ValidationError as error:
        raise ValueError(f"{file}: " + "; ".join(_said(e) for e in error.errors())) from None
    return study


def _spelled_out(values: dict[str, Any]) -> dict[str, Any]:
    """``sets: [tm]`` is short for ``sets: [{method: tm}]``, ``network: mlp`` for its model."""

    def long(value: Any, key: str) -> Any:
        return {key: value} if isinstance(value, str) else value

    found = dict(values)
    for name, key in (("sets", "method"), ("students", "model")):
        if isinstance(found.get(name), list):
            found[name] = [long(value, key) for value in found[name]]
    found["network"] = long(found.get("network"), "model")
    if found["network"] is None:
        del found["network"]
    return found


def _said(error: Any) -> str:
    """One line of what pydantic found; the nearest names where a key is unknown."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # of our own checks, which say all
        return str(error["ctx"]["error"])
    if error["type"] not in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: {error['msg']}, got {error['input']!r:.60}"
    known = [f.name for f in fields(_kind_at(error["loc"][:-1]))]
    near = difflib.get_close_matches(str(error["loc"][-1]), known, 3, 0.5)
    names = f"nearest are {', '.join(near)}" if near else f"known are {', '.join(known)}"
    return f"unknown key {where!r}; {names}"


def _kind_at(place: tuple[str | int, ...]) -> Any:
    """The dataclass that a place of the file is read into."""
    kind: Any = Study
    for part in place:
        if isinstance(part, str) and part in (hints := get_type_hints(kind)):
            kind = next(_dataclasses(hints[part]), kind)
    return kind


def _dataclasses(hint: Any) -> Iterator[Any]:
    if is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses(inner)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
