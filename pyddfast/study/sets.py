"""How a study makes each set: what has to be trained before, and the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from pyddfast import coresets, methods
from pyddfast.coresets import Embedding, Scores, Selection
from pyddfast.data import DistilledSet, ImageDataset, Trajectories
from pyddfast.data.stored import read_tensors
from pyddfast.methods.dc import LOOPS
from pyddfast.study.options import ConfigOptions, Options
from pyddfast.train import Epochs
from pyddfast.train.models import ModelSpec
from pyddfast.train.teacher_folder import load_teacher

__all__ = ["METHODS", "Ingredients", "Method"]


@dataclass(frozen=True)
class Ingredients:
    """What a set is made of.

    Attributes:
        train: The data.
        test: Measures the students of EL2N-Best's sweep.
        model: The network that distils.
        needs: Folders of the finished jobs that the method asked for.
        ipc: Images a class.
        epochs: Of a student.
        out: Where the method keeps what it needs to go on after a kill.
        seed: Of the set.
        device: Where to work; None: CUDA where there is one, else the CPU.
        on_progress: Told (done, total).
    """

    train: ImageDataset
    test: ImageDataset
    model: ModelSpec
    needs: Mapping[str, Path]
    ipc: int
    epochs: int | None
    out: Path
    seed: int
    device: torch.device | str | None = None
    on_progress: Callable[[int, int], None] = field(default=lambda done, total: None)

    @cached_property
    def teacher(self) -> nn.Module:
        """Observer, or the network that is inverted."""
        return self.teachers[0]

    @cached_property
    def teachers(self) -> list[nn.Module]:
        """All of them, in the study's order."""
        folders = [folder for name, folder in self.needs.items() if name.startswith("teacher")]
        return [load_teacher(folder, self.train, self._device).model for folder in folders]

    @cached_property
    def embedding(self) -> Embedding:
        """Logits and features of all training images."""
        tensors, meta = read_tensors(self.needs["embedding"] / "embedding.safetensors")
        return Embedding(tensors["logits"], tensors["features"], self.train.labels.cpu(), meta)

    @cached_property
    def experts(self) -> Trajectories:
        """Trajectories of TM and DATM."""
        return Trajectories(self.needs["experts"] / "work")

    @property
    def job(self) -> methods.Job:
        """Where a method works."""
        return methods.Job(device=self.device, out=self.out, on_progress=self.on_progress)

    def scores(self, need: str, name: str) -> Scores:
        """A score that a job before has written."""
        return Scores.load(self.needs[need] / f"{name}.npz")

    def top(self, scores: Scores, **options: Any) -> DistilledSet:
        """The images of each class that are first."""
        return self.picked(
            coresets.select(scores, self.train.labels.cpu(), ipc=self.ipc, **options)
        )

    def picked(self, selection: Selection) -> DistilledSet:
        """The images of a selection."""
        return selection.to_distilled(self.train)

    @property
    def _device(self) -> str | None:
        return None if self.device is None else str(self.device)


Make: TypeAlias = Callable[..., DistilledSet]


@dataclass(frozen=True)
class Method:
    """A way to a set.

    Attributes:
        shown: Its name in tables.
        needs: Jobs that come first: teacher (the first one), teachers (all), embedding, young,
            recorded, cad, cad-early, experts.
        make: Called with the ingredients and the options.
        steps: Images that its own training passes forward and backward, from (train images,
            classes, ipc, epochs of a student, options); None: next to nothing.
        options: What it can be told.
    """

    shown: str
    needs: tuple[str, ...]
    make: Make
    steps: Callable[[int, int, int, int, Mapping[str, Any]], float] | None = None
    options: Options = field(default_factory=Options)


def _embedded(shown: str, scores: Callable[..., Scores]) -> Method:
    def make(i: Ingredients, **options: Any) -> DistilledSet:
        return i.top(scores(i.embedding, **options))

    return Method(shown, ("embedding",), make, options=Options(scores, ("embedding",)))


def _greedy(shown: str, method: Callable[..., Selection]) -> Method:
    def make(i: Ingredients, **options: Any) -> DistilledSet:
        return i.picked(method(i.embedding, ipc=i.ipc, **options))

    given = ("embedding", "validation", "ipc", "fraction")
    return Method(shown, ("embedding",), make, options=Options(method, given))


def _scored(shown: str, need: str, name: str, strategy: str = "topk") -> Method:
    def make(i: Ingredients) -> DistilledSet:
        return i.top(i.scores(need, name), strategy=strategy)

    return Method(shown, (need,), make)


def _random(i: Ingredients) -> DistilledSet:
    return i.top(coresets.random_scores(len(i.train), seed=i.seed), method="random")


def _el2n_best(i: Ingredients, **options: Any) -> DistilledSet:
    budget = None if i.epochs is None else Epochs(i.epochs)
    picked = coresets.el2n_best(
        i.train, i.scores("young", "el2n"), ipc=i.ipc, test_set=i.test, model=i.model,
        budget=budget, device=i.device, out=i.out, progress=False, **options,
    )  # fmt: skip
    return i.picked(picked)


def _el2n_window(i: Ingredients, *, offset: float) -> DistilledSet:
    """A window of EL2N that begins at a share of the class: one Pareto fraction."""
    return i.top(i.scores("young", "el2n"), strategy="window", offset=offset)


def _rded(i: Ingredients, **options: Any) -> DistilledSet:
    config = methods.RDEDConfig(ipc=i.ipc, seed=i.seed, **options)
    return methods.rded(
        i.train, i.teacher, config, device=i.device, out=i.out, on_progress=i.on_progress
    )


def _ca2d(i: Ingredients, **options: Any) -> DistilledSet:
    config = methods.RDEDConfig(ipc=i.ipc, seed=i.seed, **options)
    return methods.ca2d(
        i.train, i.teacher, i.scores("cad", "cad"), config, device=i.device, out=i.out,
        on_progress=i.on_progress,
    )  # fmt: skip


def _inverted(
    shown: str, method: Make, config: Callable[..., Any], need: str = "teacher"
) -> Method:
    def make(i: Ingredients, **options: Any) -> DistilledSet:
        return method(i.train, i.teachers, config(ipc=i.ipc, seed=i.seed, **options), job=i.job)

    def steps(count: int, classes: int, ipc: int, epochs: int, o: Mapping[str, Any]) -> float:
        return float(o.get("iterations") or 1000) * classes * ipc

    return Method(shown, (need,), make, steps, ConfigOptions(config))


def _generated(shown: str, method: Make, config: Callable[..., Any]) -> Method:
    """Of a diffusion model's folder."""

    def make(i: Ingredients, *, model: str, **options: Any) -> DistilledSet:
        return method(i.train, model, config(ipc=i.ipc, seed=i.seed, **options), job=i.job)

    return Method(shown, (), make, options=ConfigOptions(config, needed=("model",)))


def _matched(shown: str, method: Make, config: Callable[..., Any], *, loops: bool) -> Method:
    """DC, DSA and DM."""

    def make(i: Ingredients, **options: Any) -> DistilledSet:
        return method(i.train, i.model, config(ipc=i.ipc, seed=i.seed, **options), job=i.job)

    def steps(count: int, classes: int, ipc: int, epochs: int, o: Mapping[str, Any]) -> float:
        real, made = classes * o.get("real_batch", 256), classes * ipc
        if not loops:  # the real batch has no backward pass
            return float((o.get("iterations") or 20_000) * (real / 3 + made))
        outer, inner = LOOPS.get(ipc, (10, 50))
        outer, inner = o.get("outer_loops") or outer, o.get("inner_epochs") or inner
        return float((o.get("iterations") or 1000) * outer * (real + 3 * made + inner * made))

    return Method(shown, (), make, steps, ConfigOptions(config))


def _followed(shown: str, method: Make, config: Callable[..., Any]) -> Method:
    """TM and DATM."""

    def make(i: Ingredients, **options: Any) -> DistilledSet:
        chosen = config(ipc=i.ipc, seed=i.seed, **options)
        return method(i.train, i.experts, chosen, model=i.model, job=i.job)

    def steps(count: int, classes: int, ipc: int, epochs: int, o: Mapping[str, Any]) -> float:
        # The unrolled steps are run once more and differentiated twice: some five times the work.
        batch = min(o.get("batch_syn") or classes * ipc, classes * ipc)
        return float((o.get("iterations") or 5000) * (o.get("syn_steps") or 50) * 5 * batch)

    return Method(shown, ("experts",), make, steps, ConfigOptions(config))


def _folder(i: Ingredients, *, path: str) -> DistilledSet:
    made = DistilledSet.load(path.replace("{ipc}", str(i.ipc)))
    expected = i.ipc * i.train.num_classes
    if (len(made), made.num_classes) != (expected, i.train.num_classes):
        raise ValueError(
            f"{path} has {len(made)} images of {made.num_classes} classes; IPC {i.ipc} of these "
            f"data is {expected} of {i.train.num_classes}"
        )
    return made


_FILLED_IN = (
    "dataset", "scores", "ipc", "test_set", "model", "budget", "device", "out", "progress",
)  # fmt: skip

METHODS: dict[str, Method] = {
    "random": Method("Random", (), _random),
    "k-centers": _greedy("K-centers", coresets.k_centers),
    "k-means-medoids": _greedy("k-means medoids", coresets.k_means_medoids),
    "facility-location": _greedy("Facility location", coresets.facility_location),
    "graph-cut": _greedy("GraphCut", coresets.graph_cut),
    "craig": _greedy("Craig", coresets.craig),
    "glister": _greedy("Glister", coresets.glister),
    "grad-match": _greedy("GradMatch", coresets.grad_match),
    "herding": _greedy("Herding", coresets.herding),
    "cal": _embedded("CAL", coresets.cal_scores),
    "entropy": _embedded("Entropy", coresets.entropy_scores),
    "least-confidence": _embedded("Least confidence", coresets.least_confidence_scores),
    "margin": _embedded("Margin", coresets.margin_scores),
    "moderate": _embedded("Moderate", coresets.moderate_scores),
    "forgetting": _scored("Forgetting", "recorded", "forgetting"),
    "aum": _scored("AUM", "recorded", "aum"),
    "dyn-unc": _scored("Dyn-Unc", "recorded", "dyn_unc"),
    "dual": _scored("DUAL", "recorded", "dual"),
    "el2n": _scored("EL2N, hardest", "young", "el2n"),
    "el2n-easy": _scored("EL2N-Easy", "young", "el2n", "bottomk"),
    "el2n-window": Method(
        "EL2N-Pareto", ("young",), _el2n_window, options=Options(needed=("offset",))
    ),
    "el2n-best": Method(
        "EL2N-Best",
        ("young",),
        _el2n_best,
        lambda count, classes, ipc, epochs, o: 10.0 * epochs * ipc * classes,
        Options(coresets.el2n_best, _FILLED_IN),
    ),
    "cad-prune": _scored("CAD-Prune", "cad", "cad"),
    "cad-early": _scored("CAD, early in a long run", "cad-early", "cad"),
    "rded": Method(
        "RDED",
        ("teacher",),
        _rded,
        lambda count, classes, ipc, epochs, o: min(300 * classes, count) * 5 / 3,
        ConfigOptions(methods.RDEDConfig),
    ),
    "ca2d": Method(
        "CA2D",
        ("teacher", "cad"),
        _ca2d,
        lambda count, classes, ipc, epochs, o: min(300 * classes, count) * 5 / 3,
        ConfigOptions(methods.RDEDConfig),
    ),
    "sre2l": _inverted("SRe2L", methods.sre2l, methods.SRe2LConfig),
    "cda": _inverted("CDA", methods.cda, methods.CDAConfig),
    "dwa": _inverted("DWA", methods.dwa, methods.DWAConfig),
    "fadrm": _inverted("FADRM", methods.fadrm, methods.FADRMConfig),
    "gvbsm": _inverted("G-VBSM", methods.gvbsm, methods.GVBSMConfig, "teachers"),
    "edc": _inverted("EDC", methods.edc, methods.EDCConfig, "teachers"),
    "d4m": _generated("D4M", methods.d4m, methods.D4MConfig),
    "minimax": _generated("Minimax", methods.minimax, methods.MinimaxConfig),
    "dc": _matched("DC", methods.dc, methods.DCConfig, loops=True),
    "dsa": _matched("DSA", methods.dsa, methods.DSAMatchingConfig, loops=True),
    "dm": _matched("DM", methods.dm, methods.DMConfig, loops=False),
    "tm": _followed("TM", methods.tm, methods.TMConfig),
    "datm": _followed("DATM", methods.datm, methods.DATMConfig),
    "folder": Method("Set of a folder", (), _folder, options=Options(needed=("path",))),
}
