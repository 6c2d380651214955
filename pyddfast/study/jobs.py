"""The jobs of a study, in an order in which each follows what it needs.

A job's key is the digest of everything that decides its result: what it does, its settings, the
data, the keys of the jobs that it needs, and the versions.  Two studies share the jobs that are
equal, and a job that is done is never done again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pyddfast._version import __version__
from pyddfast.analysis.corruptions import CORRUPTIONS
from pyddfast.study.names import nearest
from pyddfast.study.objectives import objective_options
from pyddfast.study.options import Options
from pyddfast.study.sets import METHODS
from pyddfast.study.spec import Budget, Corruptions, Network, ObjectiveSpec, SetSpec, Study, Trained
from pyddfast.train import Regime

__all__ = ["Cell", "Job", "Plan", "plan"]


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        kind: A name of ``pyddfast.study.steps.STEPS``.
        settings: JSON values that decide the result.
        needs: Jobs whose results it reads, by what they are to it.
        facts: Digests of the data, and versions.
        shown: For people; does not decide anything.
    """

    kind: str
    settings: Mapping[str, Any]
    needs: Mapping[str, Job]
    facts: Mapping[str, Any]
    shown: str

    @cached_property
    def key(self) -> str:
        """Digest of what decides its result; the name of its folder."""
        decides = self.to_dict()
        # Where the data are does not matter: their digests are in the facts.
        data = {key: value for key, value in self.settings["data"].items() if key != "root"}
        decides["settings"]["data"] = data
        text = json.dumps(decides, sort_keys=True, allow_nan=False)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the needed jobs by their keys."""
        return {
            "kind": self.kind,
            "settings": dict(self.settings),
            "needs": {name: job.key for name, job in self.needs.items()},
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Cell:
    """A cell of the table: students that differ in their seed alone, or in seed and network.

    Attributes:
        row: Label of the set.
        regime: Label regime.
        ipc: Images a class.
        student: Label of the network, or ``"mean"``.
        teacher: Label of the teacher; None in HL.
        budget: Label of the length.
        students: Jobs of each seed; several where networks are averaged.
    """

    row: str
    regime: Regime
    ipc: int
    student: str
    teacher: str | None
    budget: str
    students: tuple[tuple[Job, ...], ...]


@dataclass
class Plan:
    """What a study does.

    Attributes:
        jobs: By key; each after those that it needs.
        cells: Of the table.
        sets: Job of each set, by (label, ipc).
        objectives: Job of each objective, which evaluates all sets, by name.
        ood: Job that measures a student on corrupted images, by the student's key.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    sets: dict[tuple[str, int], Job] = field(default_factory=dict)
    objectives: dict[str, Job] = field(default_factory=dict)
    ood: dict[str, Job] = field(default_factory=dict)


def plan(study: Study, facts: Mapping[str, Any] | None = None) -> Plan:
    """Lay out the jobs of a study.

    Args:
        study: Which.
        facts: Digests of the data; None: keys that are of no use for running.

    Raises:
        ValueError: A method is unknown, or its options do not fit the budget.
    """
    return _Planner(
        study, {**(facts or {}), "pyddfast": __version__, "torch": torch.__version__}
    ).run()


class _Planner:
    def __init__(self, study: Study, facts: Mapping[str, Any]) -> None:
        self.study, self.facts, self.made = study, facts, Plan()
        self.labels = [_label(spec) for spec in study.sets]
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"sets need different labels, got {', '.join(self.labels)}")
        # Cells of one name would be written over one another.
        labelled = {
            "students": [network.shown for network in study.learners],
            "budgets": [budget.label or "" for budget in study.budgets],
            "teachers": [t.network.shown for t in study.teachers if set(study.regimes) - {"hl"}],
        }
        for what, names in labelled.items():
            if len(set(names)) != len(names):
                raise ValueError(f"{what} need different labels, got {', '.join(map(repr, names))}")
        if unknown := sorted(study.settings.keys() - METHODS.keys()):
            raise ValueError(f"settings: unknown methods {', '.join(unknown)}")
        for claim in study.claims:
            for name in (claim.first, claim.second):
                if name not in self.labels:
                    raise ValueError(f"claims: {name!r} is no label of sets: {self.labels}")
        self.data = study.data.facts()

    def run(self) -> Plan:
        study = self.study
        for ipc in study.ipc:
            for label, spec in zip(self.labels, study.sets, strict=True):
                made = self.set_of(label, spec, ipc)
                self.made.sets[label, ipc] = made
                for regime in study.regimes:
                    teachers = study.teachers if regime != "hl" else (None,)
                    for teacher in teachers:
                        for budget in study.budgets:
                            self.cells(label, made, regime, ipc, teacher, budget)
        for asked in study.objectives:
            self.made.objectives[asked.shown] = self.objective(asked)
        if study.ood is not None:
            corrupted = self.corrupted(study.ood)
            for cell in self.made.cells:
                for student in (job for jobs in cell.students for job in jobs):
                    self.made.ood[student.key] = self.measured_ood(student, study.ood, corrupted)
        return self.made

    def corrupted(self, of: Corruptions) -> dict[str, Job]:
        """Corrupted test images, a job a corruption; none where a tree of them is read."""
        if of.root is not None:
            return {}
        if unknown := [name for name in of.names if name not in CORRUPTIONS]:
            raise ValueError(
                f"ood: names must be of {', '.join(CORRUPTIONS)}, got {', '.join(unknown)}"
            )
        severities, seed = list(of.severities), self.study.seed
        return {
            name: self.job(
                "corrupt", {"name": name, "severities": severities, "seed": seed}, {},
                f"test images, {name}",
            )
            for name in of.names or CORRUPTIONS
        }  # fmt: skip

    def measured_ood(self, student: Job, of: Corruptions, corrupted: dict[str, Job]) -> Job:
        settings = {
            "network": student.settings["network"],
            "seed": student.settings["seed"],
            "root": str(of.root) if of.root else None,
            "names": list(of.names),
            "severities": list(of.severities),
        }
        needs = {"set": student.needs["set"], "student": student, **corrupted}
        return self.job("ood", settings, needs, f"{student.shown}, on corrupted images")

    def objective(self, spec: ObjectiveSpec) -> Job:
        """All sets at once: what they share, such as statistics of the data, is computed once."""
        _check(objective_options(spec.name), spec.options, f"objective {spec.name}")
        needs = {f"{label}, IPC {ipc}": job for (label, ipc), job in self.made.sets.items()}
        network = spec.network or self.study.network
        if spec.name == "tm":
            needs["experts"] = self.experts(network)
        elif spec.name in ("sre2l", "dwa"):
            needs["teacher"] = self.need("teacher", 0)
        settings = {
            "name": spec.name,
            "options": spec.options,
            "network": network.facts(),
            "seed": self.study.seed,
        }
        return self.job("objective", settings, needs, f"objective {spec.shown}")

    def cells(
        self, label: str, made: Job, regime: Regime, ipc: int, teacher: Trained | None,
        budget: Budget,
    ) -> None:  # fmt: skip
        study = self.study
        by_network = {
            network.shown: tuple(
                self.student(label, made, regime, ipc, teacher, budget, network, seed)
                for seed in range(study.seeds)
            )
            for network in study.learners
        }
        if study.mean_of_students:
            rows = {"mean": tuple(zip(*by_network.values(), strict=True))}
        else:
            rows = {name: tuple((job,) for job in jobs) for name, jobs in by_network.items()}
        shown = teacher.network.shown if teacher else None
        for name, students in rows.items():
            self.made.cells.append(
                Cell(label, regime, ipc, name, shown, budget.label or "", students)
            )

    def student(
        self, label: str, made: Job, regime: Regime, ipc: int, teacher: Trained | None,
        budget: Budget, network: Network, seed: int,
    ) -> Job:  # fmt: skip
        settings = {
            "regime": regime,
            "network": network.facts(),
            "seed": seed,
            "epochs": budget.epochs_at(ipc),
            "samples": budget.samples,
            "evaluations": self.study.evaluations,
            # Left out where it is the recipe's: a job's key does not change.
            **({"batch_size": budget.batch_size} if budget.batch_size else {}),
        }
        needs = {"set": made}
        if teacher is not None:
            needs["teacher"] = self.teacher(teacher)
        shown = f"student {network.shown} of {label}, IPC {ipc}, {regime}, seed {seed}"
        return self.job("student", settings, needs, shown)

    def set_of(self, label: str, spec: SetSpec, ipc: int) -> Job:
        method = _method(spec)
        study = self.study
        options = {**study.settings.get(spec.method, {}), **spec.options}
        _check(method.options, options, f"{label}, IPC {ipc}", ipc, study.seed)
        needs: dict[str, Job] = {}
        for need in method.needs:
            if need == "teachers":
                needs |= {f"teacher {k}": self.teacher(t) for k, t in enumerate(study.teachers)}
            else:
                needs[need] = self.need(need, ipc)
        settings = {
            "method": spec.method,
            "options": options,
            "network": study.network.facts(),
            "ipc": ipc,
            # Only the sweep of EL2N-Best trains students.
            "epochs": study.budgets[0].epochs_at(ipc) if spec.method == "el2n-best" else None,
            **({"repeat": spec.repeat} if spec.repeat > 1 else {}),
            **(
                _content(str(spec.options.get("path")).replace("{ipc}", str(ipc)), "set.json")
                if spec.method == "folder"
                else {}
            ),
            "seed": study.seed,
        }
        return self.job("set", settings, needs, f"set {label}, IPC {ipc}")

    def need(self, name: str, ipc: int) -> Job:
        study, scoring = self.study, self.study.scoring
        network = scoring.network or study.network
        common = {"network": network.facts(), "seed": study.seed}
        if name == "teacher":
            if not study.teachers:
                raise ValueError("teachers is empty: a method of sets needs one")
            return self.teacher(study.teachers[0])
        if name == "embedding":
            scorer = self.teacher(Trained(network, scoring.epochs))
            return self.job("embedding", {"seed": study.seed}, {"teacher": scorer}, "embedding")
        if name == "young":
            settings = {**common, "networks": scoring.young[0], "epochs": scoring.young[1]}
            return self.job("young", settings, {}, "EL2N scores")
        if name == "recorded":
            settings = {**common, "epochs": scoring.recorded, "window": scoring.window}
            return self.job("recorded", settings, {}, "recorded training")
        if name in ("cad", "cad-early"):
            settings = {
                **common,
                "ipc": ipc,
                "epochs": study.student_epochs(study.budgets[0], ipc),
                "ticks": scoring.ticks,
                "schedule": "cosine" if name == "cad" else "constant",
            }
            return self.job("cad", settings, {}, f"{name} scores for IPC {ipc}")
        assert name == "experts", name
        return self.experts(study.network)

    def experts(self, network: Network) -> Job:
        study = self.study
        settings = {"network": network.facts(), **asdict(study.experts), "seed": study.seed}
        return self.job("experts", settings, {}, "experts")

    def teacher(self, trained: Trained) -> Job:
        settings = {
            "network": trained.network.facts(),
            "epochs": trained.epochs,
            "folder": str(trained.folder) if trained.folder else None,
            "seed": self.study.seed,
            **(
                _content(trained.folder, "teacher.json", "teacher/teacher.json")
                if trained.folder
                else {}
            ),
        }
        return self.job("teacher", settings, {}, f"teacher {trained.network.shown}")

    def job(
        self, kind: str, settings: Mapping[str, Any], needs: Mapping[str, Job], shown: str
    ) -> Job:
        made = Job(kind, {**settings, "data": self.data}, needs, self.facts, shown)
        return self.made.jobs.setdefault(made.key, made)


def _check(
    allowed: Options, options: Mapping[str, Any], shown: str, ipc: int = 1, seed: int = 0
) -> None:
    try:
        allowed.check(options, ipc, seed)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None


def _label(spec: SetSpec) -> str:
    again = f", {spec.repeat} times" if spec.repeat > 1 else ""
    return spec.label or f"{_method(spec).shown}{again}"


def _content(folder: str | Path, *records: str) -> dict[str, str]:
    """Digest of what was made before the study: another one there later is another job.

    A record holds the digests of the files beside it.  Without one the job fails and says so.
    """
    for file in (Path(folder) / record for record in records):
        if file.is_file():
            return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {}


def _method(spec: SetSpec) -> Any:
    if spec.method not in METHODS:
        names = nearest(spec.method, METHODS, cutoff=0.4)
        raise ValueError(f"sets: unknown method {spec.method!r}; {names}")
    return METHODS[spec.method]
