"""The analyses of a study are those of pyddfast.analysis over its sets and students."""

import json

import pytest
import torch

from pyddfast.analysis.dcs import dcs
from pyddfast.analysis.objectives import SRe2LObjective
from pyddfast.data import DistilledSet, load
from pyddfast.report.figures import png
from pyddfast.report.grids import method_grid
from pyddfast.study import Store, prepare, read_study, run_study
from pyddfast.study.jobs import plan
from pyddfast.study.steps import STEPS
from pyddfast.train.teacher_folder import load_teacher

NETWORK = {"model": "convnet-d1", "options": {"width": 2, "norm": "batch"}}


def analysis(result, title):
    """The values of a section, as they are written."""
    return json.loads(result.results.read_text())["analyses"][title]["values"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_dcs_of_objectives_and_students(tiny, tmp_path):
    study = read_study(
        tiny(
            sets=["random", {"method": "random", "repeat": 2}],
            ipc=[1, 2, 3, 4],
            seeds=1,
            network={"model": "mlp", "options": {"width": 32}},
            budgets=[{"epochs": 60}],
            teachers=[{"network": NETWORK, "epochs": 1}],
            objectives=[{"name": "sre2l"}],
            show=["dcs", "grid"],
            grid_class="Bag",
        )
    )
    result = run_study(study, tmp_path / "out", show=False)
    found = json.loads(result.results.read_text())["analyses"]["Distillation correlation score"][
        "values"
    ]
    score = found["sre2l, HL"]
    assert score["size"] == [1, 2, 2, 4, 3, 6, 4, 8]
    direct = dcs(score["objective"], score["error"], score["size"], groups=[0, 0, 1, 1, 2, 2, 3, 3])
    assert (score["rho"], score["ci"]) == (direct.rho, list(direct.ci))
    assert score["p"] is None  # one set and its double at each size: nothing to permute
    # The objective is that of the set as it is stored.
    made, store = prepare(study), Store(tmp_path / "out")
    twice = DistilledSet.load(store.folder(made.sets["Random, 2 times", 3]) / "set")
    assert torch.equal(twice.images[:30], twice.images[30:])
    once = DistilledSet.load(store.folder(made.sets["Random", 3]) / "set")
    assert torch.equal(once.images, twice.images[:30])
    (teacher,) = [job for job in made.jobs.values() if job.kind == "teacher"]
    network = load_teacher(store.folder(teacher), load("fashion-mnist-mini", split="test"), None)
    accuracy = network.record["accuracy"]
    assert json.loads(result.results.read_text())["teachers"] == {"convnet-d1": accuracy}
    (value,) = SRe2LObjective(network.model)([twice])
    assert score["objective"][5] == value.value
    errors = [1 - cell.mean for cell in result.measured.cells.values()]
    assert sorted(score["error"]) == pytest.approx(sorted(errors), rel=1e-12)
    page = result.report.read_text()
    assert f"{direct.rho:+.2f}" in page
    assert "The first five images of the class “Bag”, a row a set." in page
    drawn = {
        name: DistilledSet.load(store.folder(made.sets[name, 1]) / "set")
        for name in ("Random", "Random, 2 times")
    }
    assert (result.folder / "images.png").read_bytes() == png(method_grid(drawn, "Bag"))
    figure = (result.folder / "distillation-correlation-score.svg").read_text()
    assert figure in page


def test_tm_is_averaged_over_the_epochs_that_are_asked_for(tiny, tmp_path, monkeypatch):
    study = read_study(
        tiny(
            ipc=[1, 2],
            objectives=[
                {"name": "tm", "options": {"start_epochs": [0, 3]}, "average": [1, 2]},
            ],
            show=["tm-curve"],
        )
    )
    assert read_study("figure-4a").objectives[0].average == (20, 35)
    # The second set's student diverged: no loss is finite.
    parts = {
        "Random, IPC 1": {f"epoch {k}": v for k, v in enumerate((5.0, 0.5, 0.7, 9.0))},
        "Random, IPC 2": {f"epoch {k}": None for k in range(4)},
    }
    values = {name: {"value": 3.8, "parts": one} for name, one in parts.items()}
    monkeypatch.setitem(STEPS, "experts", lambda step: {"experts": 1})
    monkeypatch.setitem(STEPS, "objective", lambda step: {"sets": {}, "values": values})
    result = run_study(study, tmp_path / "out", show=False)
    section = json.loads(result.results.read_text())["analyses"]["TM's loss by starting epoch"]
    assert section["rows"] == [
        ["Random, IPC 1", "0.5000", "9.0000", "0.6000"],
        ["Random, IPC 2", "", "", "not finite"],
    ]
    assert "mean over epochs 1 to 2" in section["note"]


def test_tm_of_two_networks(tiny, tmp_path, monkeypatch):
    other = {"model": "mlp", "options": {"width": 4}, "label": "other"}
    tm = {"name": "tm", "options": {"start_epochs": [0, 1]}}
    study = read_study(tiny(objectives=[tm, {**tm, "network": other}], show=["tm-curve"]))
    widths = []

    def objective(step):
        own = step.settings["network"]["options"]["width"]
        widths.append(own)
        # It has the trajectories of its own network.
        experts = json.loads((step.needs["experts"] / "job.json").read_text())
        assert experts["settings"]["network"]["options"]["width"] == own
        value = {"value": own / 10, "parts": {"epoch 0": own / 10, "epoch 1": own / 10}}
        return {"sets": {}, "values": {"Random, IPC 2": value}}

    monkeypatch.setitem(STEPS, "experts", lambda step: {"experts": 1})
    monkeypatch.setitem(STEPS, "objective", objective)
    result = run_study(study, tmp_path / "out", show=False)
    assert widths == [8, 4]
    section = json.loads(result.results.read_text())["analyses"]["TM's loss by starting epoch"]
    assert section["rows"] == [
        ["Random, IPC 2", "0.8000", "0.8000", "0.8000"],
        ["Random, IPC 2, other", "0.4000", "0.4000", "0.4000"],
    ]
    networks = [one.network.label for one in read_study("figure-4a").objectives if one.network]
    assert networks == ["ResNet-18"]
    with pytest.raises(ValueError, match="sre2l is of the first teacher, not of a network"):
        read_study(tiny(objectives=[{"name": "sre2l", "network": other}]))
    with pytest.raises(ValueError, match="show: tm-curve needs the objective tm"):
        read_study(tiny(objectives=[{"name": "dm"}], show=["tm-curve"]))


def test_what_cannot_be_told_is_null(tiny, tmp_path):
    study = read_study(
        tiny(
            sets=["random", "el2n-easy"],
            ipc=[1, 2, 3],
            seeds=1,
            scoring={"young": [1, 1]},
            # The network has one BatchNorm layer, whose distance then counts nothing.
            objectives=[{"name": "sre2l", "options": {"first_multiplier": 0.0}}],
            teachers=[{"network": NETWORK, "epochs": 1}],
            show=["dcs"],
        )
    )
    with pytest.warns(UserWarning, match="the objective is 0 everywhere"):
        result = run_study(study, tmp_path / "out", show=False)
    found = json.loads(result.results.read_text())["analyses"]["Distillation correlation score"][
        "values"
    ]
    assert found["sre2l, HL"]["rho"] is None


def test_an_objective_has_the_jobs_that_it_needs(tiny):
    made = plan(
        read_study(tiny(objectives=[{"name": "tm"}, {"name": "dm"}], teachers=[], ipc=[1, 2]))
    )
    assert set(made.objectives["tm"].needs) == {"Random, IPC 1", "Random, IPC 2", "experts"}
    assert set(made.objectives["dm"].needs) == {"Random, IPC 1", "Random, IPC 2"}
    with pytest.raises(ValueError, match="show: dcs needs objectives"):
        read_study(tiny(show=["dcs"]))


def test_curves_are_those_of_the_students(tiny, tmp_path):
    from pyddfast.analysis.convergence import convergence, convergence_ratio
    from pyddfast.analysis.scaling_law import fit_scaling_law

    study = read_study(
        tiny(
            sets=["random", {"method": "random", "label": "Again", "repeat": 2}],
            ipc=[5],
            network={"model": "mlp", "options": {"width": 32}},
            budgets=[{"epochs": 60}],
            evaluations=20,
            show=["convergence", "scaling-law"],
        )
    )
    result = run_study(study, tmp_path / "out", show=False)
    parts = json.loads(result.results.read_text())["analyses"]
    values = {title: part["values"] for title, part in parts.items()}
    curve = values["Convergence"]["Random, HL IPC 5"]
    assert curve["epochs"] == list(range(3, 61, 3))
    seeds = result.measured.histories["Random", "HL IPC 5"]
    assert curve["errors"] == [[1 - point["accuracy"] for point in seed] for seed in seeds]
    direct = convergence(curve["epochs"], curve["errors"])
    assert (curve["within_a_point"], curve["plateau"]) == (direct.epochs, direct.plateau)
    other = values["Convergence"]["Again, HL IPC 5"]
    ratio, _ = convergence_ratio(direct, convergence(other["epochs"], other["errors"]))
    assert values["Convergence"]["Random, HL IPC 5: times the epochs of Again"]["ratio"] == ratio
    law = values["Scaling law"]["Again, HL IPC 5"]
    mean = [sum(at) / 2 for at in zip(*other["errors"], strict=True)]
    fitted = fit_scaling_law(other["epochs"], mean, 100)  # an epoch has the doubled set's images
    assert (law["b"], law["tau"], law["delta"]) == (fitted.b, fitted.tau, fitted.delta)
    gap, low, high = values["Scaling law"]["HL IPC 5: Random − Again"]["b"]
    assert gap == pytest.approx(values["Scaling law"]["Random, HL IPC 5"]["b"] - fitted.b)
    assert low <= gap <= high


def test_ood_measures_the_same_students_on_corrupted_images(tiny, tmp_path):
    from pyddfast.analysis.corruptions import corrupted
    from pyddfast.data.stored import read_tensors
    from pyddfast.models import create
    from pyddfast.train import evaluate

    study = read_study(
        tiny(seeds=1, ood={"names": ["contrast", "brightness"], "severities": [2]}, show=["ood"])
    )
    result = run_study(study, tmp_path / "out", show=False)
    values = analysis(result, "Out of distribution")
    found = values["Random, HL IPC 2"]
    made, store = prepare(study), Store(tmp_path / "out")
    (job,) = [job for job in made.jobs.values() if job.kind == "student"]
    network = create("mlp", 10, 1, 28, width=8)
    network.load_state_dict(read_tensors(store.folder(job) / "work/seed0.safetensors")[0])
    test = load("fashion-mnist-mini", split="test")
    each = [evaluate(network, corrupted(test, name, 2)) for name in ("contrast", "brightness")]
    assert found["ood_accuracy"] == pytest.approx(sum(each) / 2, rel=1e-12)
    assert found["accuracy"] == evaluate(network, test)
    with pytest.raises(ValueError, match=r"ood: names must be of gaussian_noise, .*, got rain"):
        plan(read_study(tiny(ood={"names": ["rain"]}, show=["ood"])))


def test_loss_and_accuracy_along_a_synthesis(tiny, tmp_path):
    from pyddfast.analysis.dynamics import loss_dynamics

    sets = [{"method": "tm", "label": f"{k}", "options": {"iterations": k}} for k in (1, 12)]
    study = read_study(
        tiny(
            sets=sets,
            network={"model": "mlp", "options": {"width": 4}},
            settings={"tm": {"syn_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}},
            experts={"count": 1, "epochs": 2},
            show=["dynamics"],
        )
    )
    result = run_study(study, tmp_path / "out", show=False)
    found = analysis(result, "Loss and accuracy along the synthesis")["IPC 2"]
    store, made = Store(tmp_path / "out"), prepare(study)
    accuracies = {k: result.measured.cells[f"{k}", "HL IPC 2"].accuracies for k in (1, 12)}
    run = store.folder(made.sets["12", 2]) / "work"
    assert found == loss_dynamics(run, accuracies=accuracies).to_dict()
    assert found["rows"] == 12
    # Other methods' runs are not prefixes of each other.
    for method in ("random", "dm"):
        sets = [{"method": method, "options": {"iterations": 3}}]
        with pytest.raises(
            ValueError, match="dynamics needs sets of tm, or of datm, whose options"
        ):
            read_study(tiny(sets=sets, show=["dynamics"]))
