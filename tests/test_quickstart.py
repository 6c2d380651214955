"""The quickstart on a small part of its data: numbers, repeatability, resumption, the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyddfast import data, models
from pyddfast import quickstart as module
from pyddfast.coresets import TrainingDynamics
from pyddfast.data import DistilledSet, ImageDataset
from pyddfast.quickstart import QuickstartConfig, quickstart
from pyddfast.report import comparison, percent
from pyddfast.train import predict

CONFIG = QuickstartConfig(
    ipc=2,
    seeds=2,
    epochs=2,
    teacher_epochs=1,
    el2n_models=1,
    el2n_epochs=1,
    cad_ticks=5,
    width=4,
    seed=3,
)


def load_small(name: str, *, split: str) -> ImageDataset:
    """The first images of each class."""
    whole = data.load("fashion-mnist-mini", split=split)
    each = 12 if split == "train" else 10
    rows = [(whole.labels == label).nonzero()[:each, 0] for label in range(10)]
    return whole.subset(torch.cat(rows))


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", load_small)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", load_small)
        return quickstart(tmp_path_factory.mktemp("runs") / "whole", CONFIG, show=False).folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_every_cell_is_the_accuracy_of_the_weights_in_the_folder(finished: Path) -> None:
    cells = read(finished, "results.json")["cells"]
    assert [(c["method"], c["regime"]) for c in cells] == [
        (method, regime)
        for method in ("Random", "EL2N-Easy", "CAD-Prune", "RDED", "CA2D")
        for regime in ("HL", "SL", "SL+KD")
    ]
    test_set = module.load("fashion-mnist-mini", split="test")
    folders = {shown: name for name, shown in module.METHODS.items()}
    for cell in cells:
        regime = cell["regime"].lower().replace("+", "-")
        folder = finished / "students" / f"{folders[cell['method']]}-{regime}"
        for accuracy, seed in zip(cell["accuracies"], (3000, 3001), strict=True):
            network = models.create("convnet-d3", 10, 1, 28, width=4)
            network.load_state_dict(load_file(folder / f"seed{seed}.safetensors"))
            right = predict(network, test_set).argmax(1) == test_set.labels
            assert accuracy == pytest.approx(float(right.double().mean()), abs=1e-12)


def test_the_sets_are_balanced_and_say_where_they_come_from(finished: Path) -> None:
    train_set = module.load("fashion-mnist-mini", split="train")
    sets = {name: DistilledSet.load(finished / "sets" / name) for name in module.METHODS}
    for name, made in sets.items():
        assert made.class_counts.tolist() == [2] * 10
        assert made.meta["method"] == name
    for name in ("random", "el2n-easy", "cad-prune"):
        picks = sets[name].meta["source_indices"]
        assert torch.equal(sets[name].images, train_set.images[picks])
    assert sets["rded"].factor == 1
    # The recorded run read back gives CAD-Prune's images, and the pool of CA2D's.
    dynamics = TrainingDynamics.load(finished / "cad" / "recorder.safetensors")
    cad = dynamics.values("cad")
    best = [
        cad.masked_fill(train_set.labels != label, -1.0).topk(2).indices.tolist()
        for label in range(10)
    ]
    assert sets["cad-prune"].meta["source_indices"] == [i for pair in best for i in pair]
    assert sets["ca2d"].factor == 1
    assert sets["ca2d"].meta["candidates"] == "highest CAD"
    # The scoring network read back gives the same easiest images.
    network = models.create("convnet-d3", 10, 1, 28, width=4)
    network.load_state_dict(load_file(finished / "el2n" / "net0" / "teacher.safetensors"))
    p = predict(network, train_set).double().softmax(1)
    el2n = (p - torch.nn.functional.one_hot(train_set.labels, 10)).norm(dim=1)
    easiest = [
        el2n.masked_fill(train_set.labels != label, 9.0).topk(2, largest=False).indices.tolist()
        for label in range(10)
    ]
    assert sets["el2n-easy"].meta["source_indices"] == [i for pair in easiest for i in pair]


def test_a_stopped_run_continues_to_the_same_numbers(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    train_student = comparison.train_student

    def stopping(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return train_student(*args, **keywords)

    monkeypatch.setattr(comparison, "train_student", stopping)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        quickstart(folder, CONFIG, show=False)
    assert not (folder / "report.html").exists()
    kept = folder / "teacher" / "teacher.safetensors"
    written = kept.stat().st_mtime_ns
    calls = 10
    result = quickstart(folder, CONFIG, resume=True, show=False)
    assert kept.stat().st_mtime_ns == written
    # Two runs, one of them stopped: equal in every number.
    assert (folder / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    for path in sorted(finished.rglob("*.safetensors")):
        assert (folder / path.relative_to(finished)).read_bytes() == path.read_bytes(), path
    stages = [row["stage"] for row in map(json.loads, (folder / "metrics.jsonl").open())]
    assert len(stages) == len(set(stages)) == 1 + 5 + 15
    assert result.report.is_file()


class Page(HTMLParser):
    """Text and references of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.text.append(text)


def test_the_page_shows_the_results_and_stands_alone(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    results = read(finished, "results.json")
    for cell in results["cells"]:
        assert f"{percent(cell['mean'])} ± {percent(cell['std'])}" in text
    for sentence in results["summary"]:
        assert sentence in text
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in page.references)
    assert sum(r.startswith("data:") for r in page.references) == 1
    assert not page.tags & {"script", "link", "iframe"}
    assert not re.search(r"url\((?!#)", html)
    assert "2 epochs instead of 300" in text
    assert "1 network instead of 10, after 1 epoch instead of 20" in text
    # The recipes: HL's momentum, and all of the teacher's.
    assert "SGD, momentum 0.9 (Nesterov), learning rate 0.01, weight decay 0.0005" in text
    assert "SGD, momentum 0.9 (Nesterov), learning rate 0.05, weight decay 0.0005" in text
    assert "random resized crop of 64 to 100 %, flip" in text
    cpu = read(finished, "config.json")["environment"]["cpu"]
    assert cpu in text
    assert len(cpu) > 2
    assert "Small-scale SL+KD is not in the paper" in text
    assert "--ipc 2 --seeds 2 --epochs 2" in text
    # 15 students' stages, 5 sets, the teacher and the sum have a time.
    assert len(re.findall(r"<td>[a-z0-9 -]+</td><td class=\"number\">[\d.]+</td>", html)) == 22


def test_refuses_before_any_work(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="resume"):
        quickstart(finished, CONFIG, show=False)
    other = QuickstartConfig(**{**vars(CONFIG), "seed": 4})
    with pytest.raises(ValueError, match="seed was 3, now 4"):
        quickstart(finished, other, resume=True, show=False)
    with pytest.raises(ValueError, match="larger than a class"):
        quickstart(tmp_path / "new", QuickstartConfig(ipc=13), show=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "settings",
    [{"seeds": 1}, {"cad_ticks": 3}, {"ipc": 0}, {"epochs": 0}, {"width": 0}, {"seed": -1}],
)
def test_config_refuses(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        QuickstartConfig(**settings)
