"""The commands of scores and coresets on a small part of real data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyddfast import data
from pyddfast.cli import main, options
from pyddfast.coresets import (
    Scores,
    Selection,
    TrainingDynamics,
    beta_sampling,
    cal_scores,
    contextual_diversity,
    craig,
    embed,
    entropy_scores,
    facility_location,
    glister,
    grad_match,
    grand_of_models,
    graph_cut,
    herding,
    k_centers,
    k_means_medoids,
    least_confidence_scores,
    margin_scores,
    moderate_scores,
    select,
)
from pyddfast.coresets.recorded import Recorded
from pyddfast.data import DistilledSet, ImageDataset
from pyddfast.train import train_teacher
from tests.processes import TORCHRUN, run_python

MODEL = ["--model", "convnet-d1", "--model-option", "width=4", "norm=batch"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> ImageDataset:
    """Six images of each class."""

    def load(name: str, *, split: str = "train", **rest: Any) -> ImageDataset:
        whole = data.load("fashion-mnist-mini", split=split)
        first = 6 if name == "other" else 0
        rows = [(whole.labels == k).nonzero()[first : first + 6, 0] for k in range(10)]
        return whole.subset(torch.cat(rows))

    monkeypatch.setattr(options, "load", load)
    return load("fashion-mnist-mini")


def test_score_writes_every_score_of_one_run(small: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["score", "--epochs", "6", "--window", "3", "--cad-window", "3", *MODEL]
    assert main([*command, "--out", str(out)]) == 0
    values = load_file(out / "scores.safetensors")
    dynamics = TrainingDynamics.load(out / "run" / "recorder.safetensors")
    assert dynamics.tick == 6
    names = {"forgetting", "correctness", "first_learned", "el2n", "aum", "dyn_unc", "dual", "cad"}
    assert values.keys() == names | {"entropy", "nll", "one_minus_p"}
    for name, value in values.items():
        assert torch.equal(value, dynamics.values(name)), name
    about = json.loads((out / "scores.json").read_text())
    assert about["aum"]["high_means"] == "easy"
    assert about["cad"]["meta"]["cad_window"] == 3
    # Resumed, the same bytes; with another window, an error.
    before = (out / "scores.safetensors").read_bytes()
    (out / "scores.safetensors").unlink()
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert (out / "scores.safetensors").read_bytes() == before
    assert main([*command, "--out", str(out), "--resume", "--seed", "1"]) == 2


@pytest.mark.parametrize("kind", ["image", "view"])
def test_score_against_a_teacher(kind: str, small: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["score", "--epochs", "5", "--window", "3", "--cad-window", "3", "--grand", *MODEL]
    command += ["--soft-labels", kind, "--teacher-epochs", "1", "--mode", "eval"]
    command += ["--teacher-option", "width=4", "--temperature", "10"]
    assert main([*command, "--out", str(out)]) == 0
    values = load_file(out / "scores.safetensors")
    dynamics = TrainingDynamics.load(out / "run" / "recorder.safetensors")
    about = json.loads((out / "scores.json").read_text())
    assert about["el2n_sl"]["meta"]["soft_temperature"] == 10
    assert about["sharp"]["meta"]["temperature"] == 1
    assert about["sharp"]["meta"]["teacher"]["soft_labels"] == kind
    assert (about["grand"]["meta"]["layer"], about["grand"]["meta"]["loss_to"]) == ("last", "label")
    for name in ("el2n_sl", "sharp", "grand", "dual"):
        assert torch.equal(values[name], dynamics.values(name))
    # The gradient of a bias alone is EL2N; that of the weights comes on top.
    assert (values["grand"] > values["el2n"]).all()
    words = ["coreset", "recorded", "--scores", str(out), "--score", "el2n_sl", "--ipc", "2"]
    assert main([*words, "--out", str(tmp_path / "set")]) == 0
    picks = torch.tensor(DistilledSet.load(tmp_path / "set" / "set").meta["source_indices"])
    for label in range(10):
        members = values["el2n_sl"][small.labels == label]
        got = values["el2n_sl"][picks[2 * label : 2 * label + 2]]
        assert torch.equal(got, members.sort(descending=True).values[:2])


def test_a_score_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Recorded.scores

    def scores(self: Recorded, name: str) -> Any:
        if name == "dual":
            raise ValueError("dual: no room for it")
        return plain(self, name)

    monkeypatch.setattr(Recorded, "scores", scores)
    out = tmp_path / "run"
    words = ["score", "--epochs", "8", "--ticks", "7", "--window", "2", "--cad-window", "2"]
    assert main([*words, "--cad-average", "1", *MODEL, "--out", str(out)]) == 0
    assert capsys.readouterr().err.endswith("not written: dual: no room for it\n")
    values = load_file(out / "scores.safetensors")
    assert "dual" not in values
    # Seven ticks of eight epochs: the first one is of two.
    dynamics = TrainingDynamics.load(out / "run" / "recorder.safetensors")
    assert dynamics.tick == 7
    assert torch.equal(values["dyn_unc"], dynamics.values("dyn_unc"))
    assert (8 * values["correctness"]).frac().abs().max() == 0


def test_missing_png_files_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["coreset", "aum", "--epochs", "1", "--ipc", "1", *MODEL, "--png", "--out", str(out)]
    assert main(words) == 0
    next((out / "png" / "00003").glob("*.png")).unlink()
    assert main([*words, "--resume"]) == 2
    assert "png has 9 of 10 images" in capsys.readouterr().err
    shutil.rmtree(out / "png")
    assert main([*words, "--resume"]) == 0
    assert len(list((out / "png").glob("*/*.png"))) == 10


CAD = ["--downstream-epochs", "6", "--ticks", "5"]


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["el2n", "--repeats", "1", "--epochs", "1"], "el2n/net0"),
        (["el2n-sl", "--repeats", "1", "--epochs", "1", "--teacher-epochs", "1"], "teacher"),
        (["grand", "--repeats", "2", "--epochs", "1"], "networks/net1"),
        (["forgetting", "--repeats", "2", "--epochs", "2"], "networks/net1"),
        (["aum", "--epochs", "2"], "networks/net0"),
        (["dyn-unc", "--epochs", "4", "--window", "3"], "networks/net0"),
        (["dual", "--epochs", "3", "--window", "3"], "networks/net0"),
        (["cad-prune", *CAD], "cad"),
    ],
)
def test_coresets_are_the_highest_of_their_score(
    words: list[str], folder: str, small: ImageDataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(["coreset", *words, "--ipc", "2", *MODEL, "--out", str(out)]) == 0
    made = DistilledSet.load(out / "set")
    picks = made.meta["source_indices"]
    assert torch.equal(made.images, small.images[picks])
    assert made.class_counts.tolist() == [2] * 10
    assert made.meta["method"] == words[0]
    assert (out / folder / "teacher.json").is_file()
    recorder = out / folder / "recorder.safetensors"
    if words[0] in ("aum", "dyn-unc", "dual", "cad-prune"):
        score = {"dyn-unc": "dyn_unc", "cad-prune": "cad"}.get(words[0], words[0])
        values = TrainingDynamics.load(recorder).values(score)
        for label in range(10):
            members = values[small.labels == label]
            want = members.sort(descending=True).values[:2]
            assert values[picks[2 * label : 2 * label + 2]].tolist() == want.tolist()


def test_el2n_best_sweeps_windows(tmp_path: Path) -> None:
    words = ["coreset", "el2n-best", "--repeats", "1", "--epochs", "1", "--student-epochs", "2"]
    out = tmp_path / "run"
    assert (
        main([*words, "--offsets", "0", "0.5", "1", "--ipc", "2", *MODEL, "--out", str(out)]) == 0
    )
    sweep = DistilledSet.load(out / "set").meta["sweep"]
    assert sweep["offsets"] == [0, 0.5, 1]
    each = [
        json.loads((out / "windows" / f"window{k}" / "result.json").read_text())["mean"]
        for k in range(3)
    ]
    assert sweep["accuracies"] == each
    meta = DistilledSet.load(out / "set").meta
    assert meta["offset"] == sweep["offsets"][each.index(max(each))]


def test_ca2d_takes_its_pool_from_the_ranking(small: ImageDataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["distill", "ca2d", "--ipc", "2", "--pool", "3", *CAD, *MODEL, "--teacher-epochs", "1"]
    assert main([*words, "--teacher-option", "width=4", "--out", str(out)]) == 0
    made = DistilledSet.load(out / "set")
    cad = TrainingDynamics.load(out / "cad" / "recorder.safetensors").values("cad")
    for label, rows in enumerate(torch.tensor(made.meta["source_indices"]).view(10, 2)):
        order = cad.masked_fill(small.labels != label, -1.0).sort(descending=True, stable=True)
        assert set(rows.tolist()) <= set(order.indices[:3].tolist())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "--epochs", "9"], r"dyn_unc with window = 10 .* needs 11 ticks, there are 9"),
        (["score", "--epochs", "2", "--ticks", "30"], "ticks = 30 in mode 'train' needs 30 whole"),
        (["score", "--epochs", "40000"], "the recorder counts to 32766"),
        (["score", "--teacher", "/nope", "--soft-labels", "none"], "--soft-labels none leaves out"),
        (["score", "--teacher", "/nope"], "/nope/teacher.json is missing"),
        (["score", "--soft-labels", "view", "--temperature", "0"], "soft_temperature is 0"),
        (
            ["coreset", "cad-prune", "--ticks", "5", "--cad-window", "6", "--ipc", "1"],
            r"J = 6 and W = 2 make 8 at least, there are 5",
        ),
        (["coreset", "cad-prune", "--ipc", "1", "--cad-average", "0"], "cad_average must be"),
        (["coreset", "cad-prune", "--ipc", "7"], "ipc = 7"),
        (["coreset", "dyn-unc", "--epochs", "10", "--ipc", "1"], "needs 11 ticks, there are 10"),
        (["coreset", "aum", "--repeats", "0", "--ipc", "1"], "--repeats must be at least 1"),
        (["coreset", "el2n", "--epochs", "0", "--ipc", "1"], "epochs"),
        (["coreset", "el2n-best", "--offsets", "0.5", "1.5", "--ipc", "1"], "offsets must lie in"),
        (["coreset", "el2n-best", "--student-seeds", "0", "--ipc", "1"], "--student-seeds"),
        (["coreset", "el2n-best", "--student-epochs", "0", "--ipc", "1"], "Epochs must be"),
        (
            ["coreset", "grand", "--teacher", "/nope", "--ipc", "1"],
            "--teacher is for --labels soft",
        ),
        (
            ["coreset", "grand", "--layer", "all", "--semantics", "official", "--ipc", "1"],
            "of the last",
        ),
        (["coreset", "el2n-sl", "--teacher", "/nope", "--ipc", "1"], "/nope/teacher.json is miss"),
        # Before the network is trained.
        (["coreset", "el2n-sl", "--temperature", "0", "--ipc", "1"], "--temperature must be posi"),
        (["coreset", "grad-match", "--lam", "-1", "--ipc", "1"], "--lam must be finite and not"),
        (["coreset", "graph-cut", "--lam", "nan", "--ipc", "1"], "--lam must be finite"),
        (["coreset", "glister", "--eta", "inf", "--ipc", "1"], "--eta must be positive and finite"),
        (["coreset", "k-centers", "--seed", "-1", "--ipc", "1"], "--seed must lie in"),
        (["score", "--temperature", "5"], "--temperature is of el2n_sl, which --teacher DIR"),
        (["score", "--teacher-epochs", "5"], "the --teacher options are for el2n_sl and sharp"),
        (["distill", "ca2d", "--teacher", "/nope", "--ipc", "1"], "/nope/teacher.json is missing"),
        (["distill", "ca2d", "--ipc", "2", "--pool", "1"], "ipc = 2"),
    ],
)
def test_errors_are_one_line_and_nothing_is_left(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


def test_sets_from_one_scored_run(
    small: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "scores"
    command = ["score", "--epochs", "6", "--window", "3", "--cad-window", "3", *MODEL]
    assert main([*command, "--out", str(run)]) == 0
    values = load_file(run / "scores.safetensors")

    def picks(name: str, *options: str) -> list[int]:
        out = tmp_path / name
        words = ["coreset", "recorded", "--scores", str(run), "--ipc", "2", "--out", str(out)]
        assert main([*words, *options]) == 0
        found: list[int] = DistilledSet.load(out / "set").meta["source_indices"]
        return found

    def expected(score: torch.Tensor) -> list[int]:
        return [
            i
            for label in range(10)
            for i in score.masked_fill(small.labels != label, -torch.inf)
            .sort(descending=True, stable=True)
            .indices[:2]
            .tolist()
        ]

    assert picks("aum", "--score", "aum") == expected(values["aum"])
    low = picks("easy", "--score", "el2n", "--strategy", "bottomk")
    assert low == expected(-values["el2n"])
    drawn = picks("beta", "--score", "dual", "--beta", "0.5")
    keys = beta_sampling(Scores(values["dual"], "dual", "hard"), values["one_minus_p"], pruned=0.5)
    assert drawn == expected(keys.values)
    coded = picks("coded", *("--score", "dual", "--beta", "0.5", "--c-d", "11", "--c-total", "16"))
    assert coded == expected(
        beta_sampling(
            Scores(values["dual"], "dual", "hard"),
            values["one_minus_p"],
            **{"pruned": 0.5, "c_d": 11.0, "c_total": 16},
        ).values
    )
    words = ["coreset", "recorded", "--scores", str(run), "--out", str(tmp_path / "no")]
    for wrong, message in (
        (["--score", "sharp"], "holds no sharp, only aum, cad"),
        (["--score", "aum", "--data", "other"], "scored other images or labels"),
        (["--score", "dual", "--beta", "0.5", "--strategy", "bottomk"], "strategy must be topk"),
        (["--score", "dual", "--c-total", "16"], "are of DUAL's Beta sampling, which --beta"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
    for damaged, message in (
        ("scores.json", "scores.json does not say what aum means"),
        ("config.json", "scored other images or labels"),
    ):
        kept = (run / damaged).read_bytes()
        (run / damaged).write_text('{"config": [], "aum": []}')
        assert main([*words, "--score", "aum"]) == 2
        assert message in capsys.readouterr().err
        (run / damaged).write_text("[]")
        assert main([*words, "--score", "aum"]) == 2
        assert message in capsys.readouterr().err
        (run / damaged).write_bytes(kept)


EMBEDDED = {
    "entropy": lambda e: select(entropy_scores(e), e.labels, ipc=2),
    "least-confidence": lambda e: select(least_confidence_scores(e), e.labels, ipc=2),
    "margin": lambda e: select(margin_scores(e), e.labels, ipc=2),
    "moderate": lambda e: select(moderate_scores(e), e.labels, ipc=2),
    "cal": lambda e: select(cal_scores(e), e.labels, ipc=2),
    "glister": lambda e: glister(e, ipc=2),
    "k-centers": lambda e: k_centers(e, ipc=2),
    "herding": lambda e: herding(e, ipc=2),
    "contextual-diversity": lambda e: contextual_diversity(e, ipc=2),
    "facility-location": lambda e: facility_location(e, ipc=2),
    "graph-cut": lambda e: graph_cut(e, ipc=2),
    "craig": lambda e: craig(e, ipc=2),
    "grad-match": lambda e: grad_match(e, ipc=2),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a trained network."""
    out = tmp_path_factory.mktemp("network")
    train_teacher(
        data.load("fashion-mnist-mini", split="test"),
        ("convnet-d1", {"width": 4, "norm": "batch"}),
        test_set=data.load("fashion-mnist-mini", split="test"),
        epochs=1,
        out=out,
        progress=False,
    )
    return out


@pytest.mark.parametrize("name", EMBEDDED)
def test_coresets_of_one_pass(
    name: str, network: Path, small: ImageDataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["coreset", name, "--ipc", "2", "--teacher", str(network), "--out", str(out)]
    assert main(words) == 0
    picked = Selection.load(out / "selection.npz")
    embedding = embed(small, options.load_teacher(network, small, None).model, progress=False)
    assert picked.indices.tolist() == EMBEDDED[name](embedding).indices.tolist()
    assert picked.meta["method"] == name
    source = picked.meta["scoring"]["network"]
    assert source == {"name": "convnet-d1", "options": {"norm": "batch", "width": 4}}
    made = DistilledSet.load(out / "set")
    assert made.meta["source_indices"] == picked.indices.tolist()
    if name not in ("k-centers", "craig", "entropy"):  # one of each kind
        return
    # Resumed without the set: from the stored pass, the same bytes.
    before = (out / "selection.npz").read_bytes()
    shutil.rmtree(out / "set")
    assert main([*words, "--resume"]) == 0
    assert (out / "selection.npz").read_bytes() == before


def test_k_means_is_an_algorithm_of_k_centers(
    network: Path, small: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["coreset", "k-centers", "--algorithm", "k-means", "--teacher", str(network)]
    assert main([*words, "--ipc", "2", "--seed", "3", "--out", str(tmp_path / "run")]) == 0
    model = options.load_teacher(network, small, None).model
    want = k_means_medoids(embed(small, model, progress=False), ipc=2, seed=3)
    picked = Selection.load(tmp_path / "run" / "selection.npz")
    assert picked.indices.tolist() == want.indices.tolist()
    assert main([*words, "--init", "mean", "--out", str(tmp_path / "other")]) == 2
    assert "options of --algorithm greedy" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_torchrun_shares_the_pass_over_the_data(network: Path, tmp_path: Path) -> None:
    words = ["coreset", "k-centers", "--teacher", str(network), "--ipc", "3", "--device", "cpu"]
    run_python(*TORCHRUN, "-m", "pyddfast", *words, "--out", str(tmp_path / "two"))
    parts = sorted(file.name for file in (tmp_path / "two" / "embedding").glob("part*"))
    assert parts == [f"part-{number:05d}.safetensors" for number in range(3)]  # of 6000 images
    run_python("-m", "pyddfast", *words, "--out", str(tmp_path / "one"))
    for name in ("embedding/part-00001.safetensors", "selection.npz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_torchrun_shares_trainings_and_gradients(tmp_path: Path) -> None:
    words = ["coreset", "grand", "--layer", "all", "--repeats", "1", "--epochs", "1", *MODEL]
    words += ["--ipc", "3", "--device", "cpu", "--out", str(tmp_path)]
    run_python(*TORCHRUN, "-m", "pyddfast", *words)
    whole = data.load("fashion-mnist-mini")
    net = options.load_teacher(tmp_path / "networks" / "net0", whole, "cpu").model
    scores = grand_of_models(whole, [net], layer="all", progress=False)
    want = select(scores, whole.labels, ipc=3)
    found = Selection.load(tmp_path / "selection.npz")
    assert found.indices.tolist() == want.indices.tolist()
    # Another number of threads rounds otherwise.
    torch.testing.assert_close(found.scores, want.scores, rtol=1e-4, atol=0)


def test_selmatch_takes_its_window(
    small: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "scores"
    command = ["score", "--epochs", "6", "--window", "3", "--cad-window", "3", *MODEL]
    assert main([*command, "--out", str(run)]) == 0
    values = load_file(run / "scores.safetensors")
    words = ["coreset", "selmatch", "--scores", str(run), "--ipc", "2"]
    for score, sign in (("el2n", 1), ("aum", -1)):  # high is hard, high is easy
        out = tmp_path / score
        assert main([*words, "--score", score, "--beta", "1.5", "--out", str(out)]) == 0
        want = [
            i
            for label in range(10)
            for i in (sign * values[score])
            .masked_fill(small.labels != label, -torch.inf)
            .sort(descending=True, stable=True)
            .indices[3:5]
            .tolist()
        ]
        meta = DistilledSet.load(out / "set").meta
        assert (meta["source_indices"], meta["real"]) == (want, 1)
    for wrong, message in (
        (["--alpha", "2"], "alpha must lie in [0, 1], got 2"),
        (["--beta", "inf"], "beta must be finite and not negative, got inf"),
        (["--beta", "3"], "class 0"),
    ):
        assert main([*words, *wrong, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_repeated_sets(
    small: ImageDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    assert main(["coreset", "random", "--ipc", "4", "--seed", "3", "--out", str(base)]) == 0
    picks = torch.tensor(DistilledSet.load(base / "set").meta["source_indices"])
    words = ["coreset", "repeated", "--coreset", str(base)]
    assert main([*words, "--out", str(out)]) == 0
    twice = DistilledSet.load(out / "set")
    assert twice.meta["source_indices"] == picks.repeat_interleave(2).tolist()
    assert torch.equal(twice.images, small.images[picks].repeat_interleave(2, 0))
    assert Selection.load(out / "selection.npz").meta["repeated"]["times"] == 2
    assert main([*words, "--keep-size", "--out", str(tmp_path / "half")]) == 0
    half = DistilledSet.load(tmp_path / "half" / "set").meta["source_indices"]
    assert half == picks.view(10, 4)[:, :2].flatten().repeat_interleave(2).tolist()
    for wrong, message in (
        (["--times", "0"], "times must be at least 1, got 0"),
        (["--times", "3", "--keep-size"], "class 0 has 4 picks"),
        (["--data", "other"], "picked from other images or labels"),
        (["--coreset", str(tmp_path)], "selection.npz is missing"),
    ):
        assert main([*words, *wrong, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    (base / "selection.npz").write_bytes((base / "selection.npz").read_bytes()[:200])
    assert main([*words, "--out", str(tmp_path / "no")]) == 2
    assert "selection.npz is no selection file, or damaged" in capsys.readouterr().err
