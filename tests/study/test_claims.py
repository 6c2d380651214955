"""What a study says of the paper's claims, from values that were made up for it."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from pyddfast.study import plan, read_study
from pyddfast.study.jobs import Plan
from pyddfast.study.page import claims, said
from pyddfast.study.results import measure
from pyddfast.study.sections import sections

AB = [{"method": "random", "label": "A"}, {"method": "random", "label": "B", "repeat": 2}]


@dataclass
class Made:
    """A store whose students have made-up accuracies."""

    accuracy: Any
    values: Any = None
    diverged: Any = lambda job: False

    def done(self, job):
        if job.kind == "student":
            value = self.accuracy(job)
            right = round(1000 * value[-1])
            bits = "".join("ff" for _ in range(right // 8)).ljust(250, "0")
            history = [{"epoch": 2.0 * (k + 1), "accuracy": a} for k, a in enumerate(value)]
            shown = int(bits, 16).bit_count() / 1000
            result = {
                "accuracy": shown, "history": history, "test_count": 1000, "right": bits,
                "diverged": self.diverged(job),
            }  # fmt: skip
            return {"result": result, "seconds": 2.0, "environment": {"cpu": "big"}}
        # An objective has values of its own, or all have the same.
        values = (self.values or {}).get(job.settings.get("name"), self.values)
        result = {"images": 100, "values": values}
        return {"result": result, "seconds": 1.0, "environment": {"cpu": "small"}}

    def failed(self, job):
        return None


def found(study, accuracy, values=None, **store):
    made: Plan = plan(study)
    folder: Any = Made(accuracy, values, **store)
    measured = measure(study, made, folder)
    return measured, sections(study, made, folder, measured)


def told(study, accuracy, values=None, **store):
    return [said(claim) for claim in claims(*found(study, accuracy, values, **store))]


@pytest.mark.parametrize(
    ("first", "second", "expected", "words"),
    [
        (0.8, 0.4, "above", "shows"),
        (0.4, 0.8, "above", "does not show"),
        (0.4, 0.4, "above", "cannot be told"),
        (0.8, 0.4, "not above", "does not show"),
        (0.4, 0.8, "not above", "shows"),
        (0.4, 0.4, "not above", "shows"),
    ],
)
def test_a_claim_about_two_rows(tiny, first, second, expected, words):
    claim = {"says": "A leads B", "first": "A", "second": "B", "expected": expected}
    study = read_study(
        tiny(
            sets=[
                {"method": "random", "label": "A"},
                {"method": "random", "label": "B", "repeat": 2},
            ],
            seeds=3,
            claims=[claim],
        )
    )

    def accuracy(job):
        return [second if job.needs["set"].settings.get("repeat") else first]

    (line,) = told(study, accuracy)
    assert line.startswith(
        f"A leads B (HL IPC 2): {words}; A − B = {100 * (first - second):+.1f} ±"
    )


def test_dcs_that_follows_the_error_is_not_near_zero(tiny):
    sets = [{"method": "el2n-window", "label": f"w{k}", "options": {"offset": k / 10}}
            for k in range(10)]  # fmt: skip
    study = read_study(
        tiny(sets=sets, ipc=[2, 4], seeds=1, objectives=[{"name": "sre2l"}], show=["dcs"],
             teachers=[{"network": {"model": "mlp"}, "epochs": 1}])
    )  # fmt: skip

    def accuracy(job):
        settings = job.needs["set"].settings
        return [0.5 + 0.032 * settings["options"]["offset"] * 10 + 0.008 * settings["ipc"]]

    along = {f"w{k}, IPC {ipc}": {"value": -float(k)} for k in range(10) for ipc in (2, 4)}
    against = {name: {"value": -one["value"]} for name, one in along.items()}
    says = "DCS of sre2l is zero or negative once size is adjusted (HL)"
    (line,) = told(study, accuracy, along)
    assert line.startswith(f"{says}: does not show; +1.00 ")
    (line,) = told(study, accuracy, against)
    assert line.startswith(f"{says}: shows; -1.00 ")


@pytest.mark.parametrize(
    ("epochs", "apart", "words"),
    [
        (20, 0.0, "shows"),
        (20, 0.2, "does not show"),
        # Six points leave b and τ open: that no difference can be told says nothing.
        (6, 0.0, "cannot be told"),
    ],
)
@pytest.mark.filterwarnings("ignore:the curve")
def test_the_same_law_or_not(tiny, epochs, apart, words):
    study = read_study(
        tiny(sets=AB, regimes=["sl-kd"], evaluations=epochs, show=["scaling-law"],
             teachers=[{"network": {"model": "mlp"}, "epochs": 1}])
    )  # fmt: skip

    def accuracy(job):
        twice = bool(job.needs["set"].settings.get("repeat"))
        x = [sum(2 ** (-j / 5) / (j + 1) for j in range(2 * k + 2)) for k in range(epochs)]
        noise = [0.0005 * math.sin(9.0 * k + twice) for k in range(epochs)]
        return [
            0.9 - math.exp(-(0.4 + apart * twice) * p) + n for p, n in zip(x, noise, strict=True)
        ]

    (line,) = told(study, accuracy)
    assert line.startswith(f"SL+KD IPC 2: A and B have the same law: {words}; Δb ")


def test_a_set_that_converges_three_times_as_slowly(tiny):
    study = read_study(
        tiny(
            sets=[
                {"method": "random", "label": "Distilled", "repeat": 2},
                {"method": "random", "label": "Coreset"},
            ],
            seeds=3,
            evaluations=20,
            show=["convergence"],
        )
    )

    def accuracy(job):
        # Reached at epoch 24 or 8, a little apart from seed to seed.
        reach = 12 if job.needs["set"].settings.get("repeat") else 4
        top = 0.6 + 0.008 * job.settings["seed"]
        return [top - 0.4 * max(0, 1 - (k + 1) / reach) for k in range(20)]

    (line,) = told(study, accuracy)
    start = "Distilled, HL IPC 2 converges at least 2 times as slowly as Coreset: shows; 3."
    assert line.startswith(start)

    # Neither is settled by half of the training: a low ratio is a lower bound, and tells nothing.
    def still_falling(job):
        top = 0.6 + 0.008 * job.settings["seed"]
        if job.needs["set"].settings.get("repeat"):
            return accuracy(job)
        return [top - 0.2 * (k < 4) - 0.016 * (k < 19) for k in range(20)]

    with pytest.warns(UserWarning, match="still falls in the second half"):
        (line,) = told(study, still_falling)
    assert ": cannot be told; 0." in line

    # The other rows are compared with the last one alone, and with none where it has no curve.
    def flat(job):
        return accuracy(job) if job.needs["set"].settings.get("repeat") else [0.4] * 20

    assert told(study, flat) == []


def test_a_curve_of_several_networks_is_their_mean(tiny):
    study = read_study(
        tiny(seeds=2, evaluations=4, mean_of_students=True,
             students=["mlp", {"model": "mlp", "options": {"width": 4}, "label": "other"}])
    )  # fmt: skip

    def accuracy(job):
        rises = 0.16 if job.settings["network"]["options"] else 0.08
        return [0.4 + rises * k + 0.08 * job.settings["seed"] for k in range(4)]

    measured, _ = found(study, accuracy)
    (seeds,) = measured.histories.values()
    assert [[point["accuracy"] for point in seed] for seed in seeds] == [
        pytest.approx([0.4 + 0.12 * k + 0.08 * seed for k in range(4)]) for seed in (0, 1)
    ]


def test_one_student_a_cell_decides_no_claim(tiny):
    claims = [
        {"says": "A leads B", "first": "A", "second": "B"},
        {"says": "A does not lead B", "first": "A", "second": "B", "expected": "not above"},
    ]

    def accuracy(job):
        return [0.4 if job.needs["set"].settings.get("repeat") else 0.8]

    one = told(read_study(tiny(sets=AB, seeds=1, claims=claims)), accuracy)
    assert [line.split(": ")[1][:14] for line in one] == ["cannot be told"] * 2
    two = told(read_study(tiny(sets=AB, seeds=2, claims=claims)), accuracy)
    assert [line.split(": ")[1].split(";")[0] for line in two] == ["shows", "does not show"]


def test_a_claim_without_its_cells_is_not_left_out(tiny):
    claim = {"says": "A leads B", "first": "A", "second": "B"}
    nowhere = {**claim, "says": "A leads B at 50", "ipc": [50]}
    study = read_study(tiny(sets=AB, ipc=[2, 3], claims=[claim, nowhere]))
    measured, parts = found(
        study,
        lambda job: [0.8],
        diverged=lambda job: job.settings["seed"] == 1 and job.needs["set"].settings["ipc"] == 3,
    )
    # A student whose loss was not finite has no accuracy that means anything.
    assert measured.missing == {
        (row, "HL IPC 3"): f"diverged: the loss of student mlp of {row}, IPC 3, hl, seed 1 was not "
        "finite"
        for row in "AB"
    }
    assert [said(claim) for claim in claims(measured, parts)][1:] == [
        "A leads B (HL IPC 3): cannot be told; not measured.",
        "A leads B at 50: cannot be told; not measured.",
    ]


def test_the_machines_are_those_of_the_jobs(tiny):
    measured, _ = found(read_study(tiny()), lambda job: [0.8])
    # Two students of two seconds, and a set of one.
    assert measured.machines == ({"cpu": "big"}, {"cpu": "small"})


WINDOWS = [{"method": "el2n-window", "label": f"w{k}", "options": {"offset": k / 10}}
           for k in range(10)]  # fmt: skip


def _rising(job):
    settings = job.needs["set"].settings
    return [0.5 + 0.032 * settings["options"]["offset"] * 10 + 0.008 * settings["ipc"]]


def test_objectives_are_compared_over_the_sets_that_both_have(tiny):
    objectives = [{"name": "dm"}, {"name": "tm"}]
    study = read_study(tiny(sets=WINDOWS, ipc=[2, 4], seeds=1, objectives=objectives, show=["dcs"]))
    dm = {f"w{k}, IPC {ipc}": {"value": -float(k)} for k in range(10) for ipc in (2, 4)}
    tm = {name: {"value": -one["value"]} for name, one in dm.items()}
    tm["w3, IPC 2"] = {"value": None}  # the student of TM diverged
    (line,) = told(study, _rising, {"dm": dm, "tm": tm})
    assert line.startswith("DCS of DM is above TM's (HL): shows; +2.00 ")


def test_a_score_that_cannot_be_has_its_reason_in_the_report(tiny):
    study = read_study(tiny(sets=WINDOWS, seeds=1, objectives=[{"name": "dm"}], show=["dcs"]))
    values = {f"w{k}, IPC 2": {"value": float(k)} for k in range(10)}
    _, (part,) = found(study, _rising, values)
    ((objective, score, *_, sets),) = part.rows
    assert (objective, sets) == ("dm, HL", "10")
    assert score.startswith("none: size is 2 everywhere")


def test_networks_have_a_score_each(tiny):
    study = read_study(
        tiny(sets=WINDOWS, ipc=[2, 4], seeds=1, objectives=[{"name": "dm"}], show=["dcs"],
             students=["mlp", {"model": "mlp", "options": {"width": 4}, "label": "other"}])
    )  # fmt: skip

    def accuracy(job):
        high = job.settings["network"]["options"]
        return [1.34 - _rising(job)[0]] if high else _rising(job)

    values = {f"w{k}, IPC {ipc}": {"value": -float(k)} for k in range(10) for ipc in (2, 4)}
    _, (part,) = found(study, accuracy, values)
    assert [row[:2] + row[-1:] for row in part.rows] == [
        ("dm, HL, mlp", "+1.00", "20"),
        ("dm, HL, other", "-1.00", "20"),
    ]


def test_a_repetition_is_not_asked_whether_a_set_is_poor(tiny):
    twice = [{**one, "label": f"{one['label']} twice", "repeat": 2} for one in WINDOWS]
    study = read_study(
        tiny(sets=[*WINDOWS, *twice], ipc=[2, 4], seeds=1, objectives=[{"name": "dm"}],
             show=["dcs"])
    )  # fmt: skip

    def accuracy(job):
        settings = job.needs["set"].settings
        # w0 is at chance; the repetition of w1 is, though the set itself is not.
        poor = settings["options"]["offset"] == (0.1 if settings.get("repeat") else 0.0)
        return [0.104] if poor else _rising(job)

    values = {f"{one['label']}, IPC {ipc}": {"value": float(k)}
              for ipc in (2, 4) for k, one in enumerate([*WINDOWS, *twice])}  # fmt: skip
    _, (part,) = found(study, accuracy, values)
    assert part.values["dm, HL"]["dropped"] == [
        f"{name}, IPC {ipc}" for ipc in (2, 4) for name in ("w0", "w0 twice")
    ]


def test_an_accuracy_is_that_of_the_same_predictions_as_the_comparisons(tiny):
    class Turned(Made):
        def done(self, job):
            kept = super().done(job)
            if job.kind == "student":  # another rounding along the training turned an image
                kept["result"]["accuracy"] += 0.001
            return kept

    study = read_study(tiny(seeds=2))
    measured = measure(study, plan(study), Turned(lambda job: [0.8]))
    (cell,) = measured.cells.values()
    assert cell.accuracies == (0.8, 0.8)
