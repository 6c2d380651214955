"""Every coreset method on Fashion-MNIST: ``python -m benchmarks.coresets_study --scale smoke``.

Selects 10 and 50 images a class by each method and trains hard-label students of them: width-32
ConvNet-D3, several seeds.  One table has what the selection took (images that its trainings see,
time and memory of its own) and the students' accuracy.  ``smoke`` is the embedded subset,
some 15 minutes on two idle cores; ``medium`` all 60,000 images; ``full`` the paper's 300 epochs as
well.  The cost is estimated and printed first.  The run folder resumes, and the result file grows
with it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import metadata
from benchmarks.memory import Peak
from benchmarks.schema import RESULTS, write
from pyddfast import coresets
from pyddfast.coresets import Embedding, Recorded, Scores, Selection, TrainingDynamics
from pyddfast.coresets.windows import OFFSETS
from pyddfast.data import ImageDataset, load
from pyddfast.ops import sample_scores
from pyddfast.train import Epochs, RunFolder, Teacher, predict, train_student, train_teacher

SEED = 0
# The papers' network at a quarter of its width, for two CPU cores.
STUDENT = ("convnet-d3", {"width": 32})
# The same for scores and features; batch norm trains faster than instance norm there.
NETWORK = ("convnet-d3", {"norm": "batch", "width": 32})
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package


@dataclass(frozen=True)
class Scale:
    """How long everything is trained.

    Attributes:
        data: Name of the data set.
        network: Epochs of the network that gives features, logits and gradients.
        recorded: Epochs of the recorded training.
        young: Networks and epochs of EL2N and EL2N-SL.
        window: J of Dyn-Unc and DUAL, epochs.
        ticks: Snapshots of CAD-Prune's run.
        students: Epochs of a student, by images a class.
    """

    data: str
    network: int
    recorded: int
    young: tuple[int, int]
    window: int
    ticks: int
    students: dict[int, int]


SCALES = {
    # Shortened to what two cores do in a quarter of an hour.
    "smoke": Scale("fashion-mnist-mini", 10, 15, (2, 5), 5, 10, {10: 30, 50: 10}),
    # All images, and trainings shortened to about an hour on two idle cores.
    "medium": Scale("fashion-mnist", 8, 12, (2, 4), 4, 10, {10: 60, 50: 25}),
    # Published lengths, the recorded training DUAL's.
    "full": Scale("fashion-mnist", 40, 30, (10, 20), 10, 30, {10: 300, 50: 300}),
}


class Study:
    """The data, and the trainings that methods share; each is run when it is first asked for."""

    def __init__(self, scale: Scale, run: RunFolder, root: Path | None) -> None:
        self.scale, self.run = scale, run
        self._young: dict[str, Scores] = {}
        self.train, self.test = self._load(root, "train"), self._load(root, "test")

    def _load(self, root: Path | None, split: str) -> ImageDataset:
        found = load(self.scale.data, root=root, split=split)
        assert isinstance(found, ImageDataset)
        return found

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep how long the block took the first time; resumed, it only reads."""
        began = time.perf_counter()
        yield
        if self.run.read_json(f"seconds/{name}.json") is None:
            self.run.write_json(f"seconds/{name}.json", time.perf_counter() - began)

    def seconds(self, *names: str) -> float:
        """What trainings took together."""
        return sum(self.run.read_json(f"seconds/{name}.json") or 0.0 for name in names)

    @cached_property
    def network(self) -> Teacher:
        """The network of features, logits and gradients; EL2N-SL's teacher."""
        with self.timed("network"):
            return train_teacher(
                self.train, NETWORK, test_set=self.test, epochs=self.scale.network, seed=SEED,
                out=self.run.path / "network",
            )  # fmt: skip

    @cached_property
    def embedding(self) -> Embedding:
        """One pass of it."""
        teacher = self.network
        with self.timed("embedding"):
            return coresets.embed(
                self.train,
                teacher.model,
                meta={"network": NETWORK, "accuracy": teacher.record["accuracy"]},
                out=self.run.path / "embedding",
            )

    @cached_property
    def recorded(self) -> Recorded:
        """One recorded training on all data."""
        dynamics = TrainingDynamics(
            len(self.train), window=self.scale.window, record=("one_minus_p",)
        )
        with self.timed("recorded"):
            return coresets.record_training(
                self.train, NETWORK, dynamics, epochs=self.scale.recorded, test_set=self.test,
                seed=SEED, out=self.run.path / "recorded",
            )  # fmt: skip

    def young(self, name: str) -> Scores:
        """EL2N or EL2N-SL, of the same networks."""
        if name in self._young:
            return self._young[name]
        repeats, epochs = self.scale.young
        options: dict[str, Any] = {
            "repeats": repeats,
            "epochs": epochs,
            "test_set": self.test,
            "seed": SEED,
            "out": self.run.path / "young",
        }
        with self.timed("young" if name == "el2n" else name):
            if name == "el2n":
                found = coresets.el2n_scores(self.train, NETWORK, **options)
            else:
                teacher = self.network.model
                found = coresets.el2n_sl_scores(self.train, teacher, NETWORK, **options)
        self._young[name] = found
        return found

    @cached_property
    def gradients(self) -> Scores:
        """GraNd of all weights, of the network of features."""
        model = self.network.model
        with self.timed("gradients"):
            return coresets.grand_of_models(
                self.train, [model], layer="all", out=self.run.path / "gradients"
            )

    def top(self, scores: Scores, ipc: int, **options: Any) -> Selection:
        """The highest of each class."""
        return coresets.select(scores, self.train.labels, ipc=ipc, **options)

    def student(self, picked: Selection, ipc: int, seeds: int, out: Path) -> list[float]:
        """Test accuracies of students of the picks."""
        result = train_student(
            picked.to_distilled(self.train), "hl", STUDENT, test_set=self.test,
            budget=Epochs(self.scale.students[ipc]), seeds=tuple(range(seeds)), evaluations=1,
            out=out, progress=False,
        )  # fmt: skip
        return [one.last_accuracy for one in result.seeds]


Pick = Callable[[Study, int], Selection]
PASS, YOUNG, RECORDED = ("network", "embedding"), ("young",), ("recorded",)


def _el2n_best(study: Study, ipc: int) -> Selection:
    with study.timed(f"windows-{ipc}"):
        return coresets.el2n_best(
            study.train, study.young("el2n"), ipc=ipc, test_set=study.test, model=STUDENT,
            budget=Epochs(study.scale.students[ipc]), out=study.run.path / f"windows-{ipc}",
            progress=False,
        )  # fmt: skip


def _cad_prune(study: Study, ipc: int) -> Selection:
    with study.timed(f"cad-{ipc}"):
        return coresets.cad_prune(
            study.train, NETWORK, ipc=ipc, downstream_epochs=study.scale.students[ipc],
            ticks=study.scale.ticks, test_set=study.test, seed=SEED,
            out=study.run.path / f"cad-{ipc}",
        )  # fmt: skip


def _dual_beta(study: Study, ipc: int) -> Selection:
    recorded = study.recorded
    kept = ipc * study.train.num_classes / len(study.train)
    keys = coresets.beta_sampling(
        recorded.scores("dual"), recorded.dynamics.values("one_minus_p"), pruned=1 - kept, seed=SEED
    )
    return study.top(keys, ipc)


def _ccs(study: Study, ipc: int) -> Selection:
    return coresets.ccs(
        study.young("el2n"), study.train.labels, aum=study.recorded.scores("aum"), mis_ratio=0.2,
        ipc=ipc, seed=SEED,
    )  # fmt: skip


def _grand(study: Study, ipc: int) -> Selection:
    e = study.embedding
    norms = sample_scores(e.logits, e.labels, features=e.features).grand
    assert norms is not None
    return study.top(Scores(norms, "grand", "hard", e.meta), ipc)


def _twice(study: Study, ipc: int) -> Selection:
    random = study.top(coresets.random_scores(len(study.train), seed=SEED), ipc)
    return coresets.repeated(random, study.train.labels, keep_size=True)


def _recorded(name: str, strategy: Any = "topk") -> tuple[tuple[str, ...], Pick]:
    return RECORDED, lambda s, k: s.top(s.recorded.scores(name), k, strategy=strategy)


def _embedded(scores: Callable[..., Scores], **options: Any) -> tuple[tuple[str, ...], Pick]:
    return PASS, lambda s, k: s.top(scores(s.embedding, **options), k)


def _greedy(method: Callable[..., Selection], **options: Any) -> tuple[tuple[str, ...], Pick]:
    return PASS, lambda s, k: method(s.embedding, ipc=k, **options)


# Name: the trainings that it needs, and how it picks.  In the order of the table.
METHODS: dict[str, tuple[tuple[str, ...], Pick]] = {
    "random": (
        (),
        lambda s, k: s.top(coresets.random_scores(len(s.train), seed=SEED), k),
    ),
    "k-centers": _greedy(coresets.k_centers),
    "k-means medoids": _greedy(coresets.k_means_medoids),
    "facility location": _greedy(coresets.facility_location),
    "facility location, features": _greedy(coresets.facility_location, compared="features"),
    "GraphCut": _greedy(coresets.graph_cut),
    "Craig": _greedy(coresets.craig),
    "Glister": _greedy(coresets.glister),
    "GradMatch": _greedy(coresets.grad_match),
    "herding": _greedy(coresets.herding),
    "contextual diversity": _greedy(coresets.contextual_diversity),
    "CAL": _embedded(coresets.cal_scores),
    "CAL, DeepCore's": _embedded(coresets.cal_scores, semantics="official"),
    "entropy": _embedded(coresets.entropy_scores),
    "least confidence": _embedded(coresets.least_confidence_scores),
    "margin": _embedded(coresets.margin_scores),
    "moderate": _embedded(coresets.moderate_scores),
    "GraNd, last layer": (PASS, _grand),
    "GraNd, all weights": (
        ("network", "gradients"),
        lambda s, k: s.top(s.gradients, k),
    ),
    "forgetting": _recorded("forgetting"),
    "AUM": _recorded("aum"),
    "AUM, lowest": _recorded("aum", "bottomk"),
    "Dyn-Unc": _recorded("dyn_unc"),
    "DUAL": _recorded("dual"),
    "DUAL, Beta": (RECORDED, _dual_beta),
    "EL2N, hardest": (YOUNG, lambda s, k: s.top(s.young("el2n"), k)),
    "EL2N, easiest": (YOUNG, lambda s, k: s.top(s.young("el2n"), k, strategy="bottomk")),
    "EL2N-SL": ((*YOUNG, "network", "el2n-sl"), lambda s, k: s.top(s.young("el2n-sl"), k)),
    "CCS": ((*YOUNG, *RECORDED), _ccs),
    "SelMatch": (
        YOUNG,
        lambda s, k: coresets.selmatch_window(s.young("el2n"), s.train.labels, ipc=k),
    ),
    "EL2N-Best": ((*YOUNG, "windows-{ipc}"), _el2n_best),
    "CAD-Prune": (("cad-{ipc}",), _cad_prune),
    "random, half of it twice": ((), _twice),
}


def prepare(study: Study, needs: tuple[str, ...]) -> None:
    """Run what a method shares with others, so that its own time and memory are its own."""
    for name in needs:
        if name in ("young", "el2n-sl"):
            study.young("el2n" if name == "young" else name)
        elif name in ("network", "embedding", "recorded", "gradients"):
            getattr(study, name)


def images_trained(study: Study, needs: tuple[str, ...], ipc: int) -> int:
    """Images that a method's networks see forward and backward, before it picks."""
    scale, count = study.scale, len(study.train)
    coreset = scale.students[ipc] * ipc * study.train.num_classes
    each = {
        "network": scale.network * count,
        "embedding": 0,
        "gradients": count,
        "recorded": scale.recorded * count,
        "el2n-sl": 0,
        "young": scale.young[0] * scale.young[1] * count,
        f"windows-{ipc}": len(OFFSETS) * coreset,
        f"cad-{ipc}": coreset,
    }
    return sum(each[name] for name in needs)


def select(study: Study, name: str, ipc: int) -> dict[str, Any]:
    """Pick, once; what it took."""
    needs = tuple(need.format(ipc=ipc) for need in METHODS[name][0])
    folder = study.run.path / "picks"
    file = f"picks/{name}-{ipc}.json"
    known = study.run.read_json(file)
    if known is None:
        prepare(study, needs)
        peak, began = Peak(), time.perf_counter()
        picked = METHODS[name][1](study, ipc)
        seconds = time.perf_counter() - began
        largest = peak.bytes()
        picked.save(folder / f"{name}-{ipc}.npz")
        own = [need for need in needs if need.endswith(f"-{ipc}")]
        known = {
            "needs": list(needs),
            "training_seconds": study.seconds(*needs),
            # The method's own trainings are in the line above.
            "selection_seconds": None if own else seconds,
            "peak_bytes": largest,
            "images_trained": images_trained(study, needs, ipc),
            "sweep": picked.meta.get("sweep"),
        }
        study.run.write_json(file, known)
    return {"method": name, "ipc": ipc, **known}


def estimate(study: Study, seeds: int) -> float:
    """Seconds of the whole run on this machine now, from one pass forward."""
    probe = study.train.subset(torch.arange(min(1024, len(study.train))))
    network = train_teacher(probe, NETWORK, test_set=probe, epochs=1, progress=False).model
    began = time.perf_counter()
    predict(network, probe)
    forward = (time.perf_counter() - began) / len(probe)
    trained = 0
    for ipc, epochs in study.scale.students.items():
        coreset = epochs * ipc * study.train.num_classes
        trained += coreset * (seeds * len(METHODS) + len(OFFSETS) + 1)
        trained += study.scale.ticks * len(study.train) // 3
    young = study.scale.young[0] * study.scale.young[1]
    trained += (study.scale.network + study.scale.recorded + young + 1) * len(study.train)
    return 3 * forward * trained  # a backward pass takes about two forward ones


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a method, each size's students and the cost of the largest one's picks.

    By the accuracy of the smallest size.  Images trained do not depend on the machine; the time of
    the trainings is in the file.
    """
    sizes = sorted({row["ipc"] for row in rows})
    lines = [
        "| method |"
        + "".join(f" IPC {ipc} |" for ipc in sizes)
        + " images trained | picking | memory |",
        "| --- |" + " ---: |" * (len(sizes) + 3),
    ]

    def first(row: dict[str, Any]) -> float:
        return -sum(row["accuracies"]) if row["ipc"] == sizes[0] else 0.0

    for name in dict.fromkeys(row["method"] for row in sorted(rows, key=first)):
        own = {row["ipc"]: row for row in rows if row["method"] == name}
        last = own[max(own)]
        cells = []
        for ipc in sizes:
            values = torch.tensor(own[ipc]["accuracies"]) * 100 if ipc in own else None
            cells.append("" if values is None else f"{values.mean():.1f} ± {values.std():.1f}")
        picking = last["selection_seconds"]
        cells.append(f"{last['images_trained']:,}")
        cells.append("" if picking is None else f"{picking:.2f} s")
        cells.append(f"{last['peak_bytes'] / 2**20:.0f} MiB")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the study.

    Raises:
        SystemExit: An option is out of range, or the data are not where it says.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coresets_study",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--seeds", type=int, default=3, help="students of each set")
    parser.add_argument("--root", type=Path, help="folder of Fashion-MNIST, for medium and full")
    parser.add_argument("--run", type=Path, help="run folder; default runs/coresets-SCALE")
    parser.add_argument("--out", type=Path, help="result; default results/coresets/SCALE.json")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, for their spread, got {options.seeds}")
    scale = SCALES[options.scale]
    root = None if options.scale == "smoke" else options.root or FASHION_MNIST
    out = options.out or RESULTS / "coresets" / f"{options.scale}.json"
    try:
        load(scale.data, root=root, split="test")
    except FileNotFoundError as error:
        parser.error(f"{error}; --root names the folder")
    facts = {"study": "coresets", "scale": options.scale, "seeds": options.seeds}
    with RunFolder(options.run or Path("runs") / f"coresets-{options.scale}", facts) as run:
        study = Study(scale, run, root)
        minutes = estimate(study, options.seeds) / 60
        print(f"about {minutes:,.0f} minutes in all on this machine as it is now", flush=True)
        machine = metadata.collect(torch.device("cpu"))
        rows: list[dict[str, Any]] = []
        # One size after the other, so that what is there of a stopped run can be compared.
        for ipc in scale.students:
            for name in METHODS:
                row = select(study, name, ipc)
                picked = Selection.load(run.path / "picks" / f"{name}-{ipc}.npz")
                folder = run.path / "students" / f"{name}-{ipc}"
                row["accuracies"] = study.student(picked, ipc, options.seeds, folder)
                rows.append(row)
                mean = 100 * sum(row["accuracies"]) / options.seeds
                print(f"{name}, IPC {ipc}: {mean:.1f} %", flush=True)
                write(
                    {
                        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                        "metadata": machine,
                        "scale": options.scale,
                        "data": scale.data,
                        "images": len(study.train),
                        "test_images": len(study.test),
                        "settings": dict(vars(scale)),
                        "student": STUDENT,
                        "network": {
                            "model": NETWORK,
                            "accuracy": study.network.record["accuracy"],
                        },
                        "seeds": options.seeds,
                        "complete": len(rows) == len(METHODS) * len(scale.students),
                        "rows": rows,
                    },
                    out,
                )
    print(table(rows), f"written: {out}", sep="\n")


if __name__ == "__main__":
    main()
