"""What a study says of the paper's claims, from values that were made up for it."""

from dataclasses import dataclass
from typing import Any

import pytest

from pyddfast.study import plan, read_study
from pyddfast.study.jobs import Plan
from pyddfast.study.page import claims, said
from pyddfast.study.results import measure
from pyddfast.study.sections import sections


@dataclass
class Made:
    """A store whose students have made-up accuracies."""

    accuracy: Any
    values: Any = None

    def done(self, job):
        if job.kind == "student":
            value = self.accuracy(job)
            right = round(1000 * value[-1])
            bits = "".join("ff" for _ in range(right // 8)).ljust(250, "0")
            history = [{"epoch": 2.0 * (k + 1), "accuracy": a} for k, a in enumerate(value)]
            shown = int(bits, 16).bit_count() / 1000
            result = {"accuracy": shown, "history": history, "test_count": 1000, "right": bits}
            return {"result": result, "seconds": 1.0}
        return {"result": {"images": 100, "values": self.values}, "seconds": 1.0}

    def failed(self, job):
        return None


def told(study, accuracy, values=None):
    store: Any = Made(accuracy, values)
    made: Plan = plan(study)
    measured = measure(study, made, store)
    return [said(claim) for claim in claims(measured, sections(study, made, store, measured))]


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
