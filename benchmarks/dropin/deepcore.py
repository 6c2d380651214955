"""DeepCore's methods: ``python -m benchmarks.dropin.deepcore --repo PATH``.

Each official method selects from the embedded Fashion-MNIST subset as published and with its
changed lines, from the same seeds: the network that it trains is the same, bit by bit, so that the
picks can be compared.  Time and memory are those of what follows the training (its pass over the
data included), of forgetting those of the hook; CAL's time has its neighbours as well.  Results go
to ``benchmarks/dropin/deepcore.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.dropin import stubs
from benchmarks.dropin.__main__ import apply, export
from benchmarks.dropin.codebases import Change, Codebase
from benchmarks.dropin.process import run_child
from benchmarks.memory import Peak
from benchmarks.metadata import collect
from benchmarks.schema import write
from pyddfast.data import load

FRACTION = 0.1  # main.py's default: 60 of the 600 images of a class
EPOCHS = 2  # of the official training, which is not what is compared
ROUNDS = 3  # timed runs of each variant, in turn

_METHODS = "deepcore/methods/"
_UTILS = _METHODS + "methods_utils/"
_FORGETTING = _METHODS + "forgetting.py"
_NAME = "from pyddfast.compat.deepcore import "
_MODULE = "from pyddfast.compat.deepcore.{} import {}"


# Where the official similarities stay as they are, so that rounding moves no pick.
_SUBMODULAR = (
    Change(_UTILS + "submodular_function.py", 143, (_NAME + "FacilityLocation, GraphCut",)),
    Change(_UTILS + "submodular_optimizer.py", 155, (_NAME + "LazyGreedy",)),
)
# Without any gradient in memory; their inner products round otherwise.
_FACTORED = (
    *_SUBMODULAR,
    Change(
        _METHODS + "submodular.py", 78, ("    " + _MODULE.format("submodular", "calc_gradient"),)
    ),
    Change(_METHODS + "submodular.py", 120, (_NAME + "cossim_np",)),
)
_BOTH = "orthogonal_matching_pursuit, orthogonal_matching_pursuit_np"


@dataclass(frozen=True)
class Case:
    """One method.

    Attributes:
        method: Official class.
        options: Of it.
        changes: Lines changed.
    """

    method: str
    options: dict[str, Any]
    changes: tuple[Change, ...]


CASES = {
    "k-centers": Case(
        "kCenterGreedy",
        # Over all classes at once, which is where the official matrix grows.
        {"balance": False, "torchvision_pretrain": False, "specific_model": "LeNet"},
        (Change(_METHODS + "kcentergreedy.py", 65, (_NAME + "k_center_greedy",)),),
    ),
    "graph cut": Case("Submodular", {"balance": True, "function": "GraphCut"}, _SUBMODULAR),
    "facility location": Case(
        "Submodular", {"balance": True, "function": "FacilityLocation"}, _SUBMODULAR
    ),
    "Craig": Case("Craig", {"balance": True}, _SUBMODULAR),
    "graph cut, no gradients": Case(
        "Submodular", {"balance": True, "function": "GraphCut"}, _FACTORED
    ),
    "facility location, no gradients": Case(
        "Submodular", {"balance": True, "function": "FacilityLocation"}, _FACTORED
    ),
    "Craig, no gradients": Case(
        "Craig",
        {"balance": True},
        (
            *_SUBMODULAR,
            Change(_METHODS + "craig.py", 72, ("    " + _MODULE.format("craig", "calc_gradient"),)),
        ),
    ),
    "Glister": Case(
        "Glister",
        {"balance": True},
        (
            Change(
                _METHODS + "glister.py", 148, ("    " + _MODULE.format("glister", "finish_run"),)
            ),
        ),
    ),
    "GraNd": Case(
        "GraNd",
        {"balance": True, "repeat": 1},
        (Change(_METHODS + "grand.py", 56, ("    " + _MODULE.format("grand", "finish_run"),)),),
    ),
    "CAL": Case(
        "Cal",
        {"balance": True},
        (Change(_METHODS + "cal.py", 121, ("    " + _NAME + "calc_kl, find_knn",)),),
    ),
    **{
        name: Case(
            "Uncertainty",
            {"balance": True, "selection_method": name},
            (Change(_METHODS + "uncertainty.py", 85, ("    " + _NAME + "rank_uncertainty",)),),
        )
        for name in ("Entropy", "LeastConfidence", "Margin")
    },
    "GradMatch": Case(
        "GradMatch",
        {"balance": True},
        (Change(_METHODS + "gradmatch.py", 123, ("    " + _NAME + _BOTH,)),),
    ),
    "herding": Case(
        "Herding",
        {"balance": True, "specific_model": "LeNet"},
        (Change(_METHODS + "herding.py", 87, ("    " + _NAME + "herding",)),),
    ),
    "forgetting": Case(
        "Forgetting",
        {"balance": True},
        (
            Change(_FORGETTING, 4, ("from pyddfast.coresets import TrainingDynamics",)),
            Change(
                _FORGETTING,
                31,
                (
                    "        return self.recorder.update("
                    "outputs.detach(), targets, torch.as_tensor(batch_inds))",
                ),
            ),
            Change(_FORGETTING, 56, ("        self.recorder.end_tick()",)),
            Change(_FORGETTING, 62, ("        self.recorder = TrainingDynamics(self.n_train)",)),
            Change(
                _FORGETTING,
                65,
                (
                    "        self.forgetting_events = "
                    'self.recorder.values("forgetting", never_learned="zero").float()',
                ),
                removed=(65, 65),
            ),
        ),
    ),
}

DEEPCORE = Codebase(
    name="deepcore",
    url="https://github.com/PatrickZH/DeepCore",
    revision="74ec709f5ccba3b1e921b06c6e312d57741de3f8",
    script="deepcore/__init__.py",
    arguments=(),
    variants={name: case.changes for name, case in CASES.items()},
)


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The embedded subset as the official code takes data sets."""

    def __init__(self) -> None:
        source: Any = load("fashion-mnist-mini")
        self.images = source.images.float() / 255
        self.targets = source.labels
        self.classes = list(source.class_names)
        self.transform = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])


def child(job_path: str) -> None:
    """One selection in this process, from the current folder."""
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(job["threads"])
    stubs.install(torch.float32)
    sys.path.insert(0, str(Path.cwd()))
    import deepcore.methods as methods  # type: ignore[import-not-found]

    case = CASES[job["case"]]
    arguments = SimpleNamespace(
        print_freq=10**6, selection_batch=256, workers=0, device="cpu", gpu=None, model="LeNet",
        channel=1, im_size=(28, 28), num_classes=10, lr=0.1, selection_optimizer="SGD",
        selection_lr=0.05, selection_momentum=0.9, selection_weight_decay=5e-4,
        selection_nesterov=True, selection_test_interval=0, selection_test_fraction=1.0,
    )  # fmt: skip
    method = getattr(methods, case.method)(
        Images(), arguments, fraction=FRACTION, random_seed=1, epochs=EPOCHS, **case.options
    )
    if case.method == "Cal":
        _small_features(method)
    hook, seconds, peak = case.method == "Forgetting", 0.0, 0
    watched, began = Peak(), time.process_time()
    train, after_loss = method.train, method.after_loss

    def timed_train(*args: Any) -> Any:
        nonlocal watched, began
        found = train(*args)
        watched, began = Peak(), time.process_time()
        return found

    def timed_hook(*args: Any) -> None:
        nonlocal seconds, peak
        own, start = Peak(), time.process_time()
        after_loss(*args)
        seconds += time.process_time() - start
        peak = max(peak, own.bytes())

    gradients: list[Any] = []
    covers = case.options.get("function") == "FacilityLocation"
    if covers:
        calc_gradient = method.calc_gradient

        def kept(*args: Any, **options: Any) -> Any:
            found = calc_gradient(*args, **options)
            gradients.append(_formed(found))
            return found

        method.calc_gradient = kept
    method.train = timed_train
    before = 0.0
    if case.method == "Cal":  # its neighbours come before the training
        find_knn = method.find_knn

        def timed_knn() -> Any:
            nonlocal before
            start = time.process_time()
            found = find_knn()
            before = time.process_time() - start
            return found

        method.find_knn = timed_knn
    if hook:
        method.after_loss = timed_hook
    with contextlib.redirect_stdout(io.StringIO()):
        found = method.select()
    if not hook:
        seconds, peak = before + time.process_time() - began, watched.bytes()
    record = {
        "indices": np.asarray(found["indices"]).tolist(),
        "weights": None if found.get("weights") is None else np.asarray(found["weights"]).tolist(),
        "objective": cover(gradients, np.asarray(found["indices"])) if covers else None,
        "seconds": seconds,
        "peak_bytes": peak,
    }
    Path(job["out"]).write_text(json.dumps(record))


def _small_features(method: Any) -> None:
    """CAL's features: of an untrained LeNet, for the pretrained ResNet-18 at 224 pixels."""
    nets = sys.modules[type(method).__module__].nets

    def small(*, channel: int, num_classes: int, pretrained: bool, **options: Any) -> Any:
        torch.manual_seed(0)
        return nets.LeNet(channel, num_classes, **{**options, "im_size": (28, 28)})

    nets.ResNet18 = small


def _formed(gradients: Any) -> Any:
    """A matrix, of gradients that the changed code does not form as well."""
    if isinstance(gradients, np.ndarray):
        return gradients
    g, h = gradients.g.numpy(), gradients.h.numpy()
    return np.concatenate([g, (g[:, :, None] * h[:, None]).reshape(len(g), -1)], axis=1)


def cover(gradients: list[np.ndarray[Any, Any]], picks: np.ndarray[Any, Any]) -> float:
    """The facility-location objective of picks, a matrix of gradients a class, in float64."""
    targets, total = Images().targets.numpy(), 0.0
    for label, rows in enumerate(gradients):
        unit = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        own = np.searchsorted(np.flatnonzero(targets == label), picks[targets[picks] == label])
        total += float((0.5 + 0.5 * unit @ unit[own].T).max(axis=1).sum())
    return total


def run(name: str, folder: Path, work: Path) -> dict[str, Any]:
    """One run of a variant in a process of its own."""
    job = {"case": name}
    return run_child(("benchmarks.dropin.deepcore", "--child"), job, work, folder=folder)


def compare(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """What the changed lines changed."""
    old, new = before[0], after[0]
    again = all(one["indices"] == old["indices"] for one in before)
    shared = len(set(old["indices"]) & set(new["indices"]))
    weights = None
    if old["weights"] is not None and old["indices"] == new["indices"]:
        gap = np.abs(np.array(old["weights"]) - np.array(new["weights"]))
        weights = float(gap.max() / np.abs(old["weights"]).max())
    row = {
        "lines": sum(change.count for change in CASES[name].changes),
        "changes": [
            {key: value for key, value in asdict(change).items() if key != "count"}
            for change in CASES[name].changes
        ],
        "picks": len(old["indices"]),
        "rounds": len(before),
        "official_repeats_itself": again,
        "equal": old["indices"] == new["indices"],
        "shared_picks": shared,
        "largest_weight_error": weights,
        "objective": None
        if old["objective"] is None
        else {"official": old["objective"], "changed": new["objective"]},
    }
    for key in ("seconds", "peak_bytes"):
        row[key] = {
            "official": statistics.median(one[key] for one in before),
            "changed": statistics.median(one[key] for one in after),
        }
    return row


def main() -> None:
    """Compares every method with itself."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dropin.deepcore")
    parser.add_argument("--repo", type=Path, help="clone of DeepCore, bare is enough")
    parser.add_argument("--case", action="append", choices=CASES, help="only these methods")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("deepcore.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if options.repo is None:
        raise SystemExit("--repo PATH: a clone of " + DEEPCORE.url)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, name in enumerate(options.case or CASES):
            work = Path(temporary) / str(number)
            folders = work / "official", work / "changed"
            for folder in folders:
                folder.mkdir(parents=True)
                export(DEEPCORE, options.repo, folder)
            apply(CASES[name].changes, folders[1])
            records: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
            for _ in range(options.rounds):
                for kept, folder in zip(records, folders, strict=True):
                    kept.append(run(name, folder, work))
            rows[name] = compare(name, *records)
            print(name, {k: v for k, v in rows[name].items() if k != "changes"}, flush=True)
    write(
        {
            "url": DEEPCORE.url,
            "revision": DEEPCORE.revision,
            "metadata": collect(torch.device("cpu")),
            "data": "fashion-mnist-mini",
            "fraction": FRACTION,
            "methods": rows,
        },
        options.out,
    )


if __name__ == "__main__":
    main()
