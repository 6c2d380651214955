"""The commands that analyse tables of measured values."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pyddfast.analysis import (
    ars,
    convergence,
    convergence_ratio,
    dcs,
    dcs_difference,
    fit_scaling_law,
    lrs,
    scaling_law_difference,
)
from pyddfast.cli import main

Rows = list[dict[str, Any]]

SUBSETS: Rows = [
    {"sre2l": x, "dm": w, "error": y, "ood": z, "size": s, "parent": f"p{i // 2}"}
    for i, (x, w, y, z, s) in enumerate(
        [
            (3.1, 0.9, 0.80, 0.95, 1),
            (2.9, 1.0, 0.84, 0.94, 1),
            (3.0, 0.95, 0.82, 0.97, 1),
            (2.0, 0.6, 0.61, 0.9, 10),
            (2.2, 0.62, 0.60, 0.85, 10),
            (2.1, 0.7, 0.64, 0.88, 10),
            (1.2, 0.2, 0.43, 0.7, 50),
            (1.0, 0.3, 0.45, 0.72, 50),
            (1.1, 0.25, 0.44, 0.69, 50),
            (1.3, 0.1, 0.42, 0.71, 50),
        ]
    )
]


def write(file: Path, rows: Rows) -> str:
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(file)


def column(name: str, rows: Rows = SUBSETS) -> list[Any]:
    return [row[name] for row in rows]


def results(out: Path) -> Any:
    found = json.loads((out / "results.json").read_text())
    assert (out / "figure.svg").read_text().startswith("<svg")
    return found["results"]


def test_dcs_of_every_objective_and_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = write(tmp_path / "subsets.csv", SUBSETS), tmp_path / "out"
    words = ["analyze", "dcs", table, "--objective", "sre2l", "dm", "--error", "error", "ood"]
    options = ["--groups", "parent", "--n-boot", "300", "--seed", "4", "--out", str(out)]
    assert main([*words, *options]) == 0
    found = results(out)
    given: dict[str, Any] = {"groups": column("parent"), "n_boot": 300, "seed": 4}
    scores = {
        (x, y): dcs(column(x), column(y), column("size"), **given)
        for x in ("sre2l", "dm")
        for y in ("error", "ood")
    }
    assert [(row["objective"], row["error"]) for row in found["scores"]] == list(scores)
    for row, score in zip(found["scores"], scores.values(), strict=True):
        assert (row["rho"], tuple(row["ci"]), row["p"]) == (score.rho, score.ci, score.p)
    # Not those of another objective with another error.
    assert len(found["differences"]) == 4
    first = found["differences"][0]
    assert first["first"] + first["second"] == ["sre2l", "error", "sre2l", "ood"]
    value, interval = dcs_difference(scores["sre2l", "error"], scores["sre2l", "ood"])
    assert (first["difference"], tuple(first["ci"])) == (value, interval)
    said = capsys.readouterr().out
    for (x, y), score in scores.items():
        assert re.search(rf"{x} with {y} +{re.escape(f'{score.rho:+.2f}')} ", said)
    assert f"sre2l with error - sre2l with ood: {value:+.2f}" in said
    # The same from JSON, and nothing is overwritten.
    again = write(tmp_path / "subsets.json", SUBSETS)
    assert main(["analyze", "dcs", again, *words[3:], *options]) == 2
    assert "is not empty" in capsys.readouterr().err
    other = tmp_path / "other"
    assert main(["analyze", "dcs", again, *words[3:], *options[:-1], str(other)]) == 0
    assert results(other) == found


def test_a_missing_value_is_null_in_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "dm": 1.0} for row in SUBSETS]
    rows[2]["sre2l"] = ""
    table, out = write(tmp_path / "subsets.csv", rows), tmp_path / "out"
    options = ["--objective", "sre2l", "dm", "--n-boot", "10", "--out", str(out)]
    assert main(["analyze", "dcs", table, *options]) == 0
    first, second = results(out)["scores"]
    assert (first["n"], first["dropped"]) == (9, 1)
    assert (second["rho"], second["ci"]) == (None, [None, None])
    assert results(out)["differences"] == []
    assert re.search(r"dm with error +\+?nan +– ", capsys.readouterr().out)


def test_scaling_law_of_two_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = [1, 2, 4, 6, 8, 10, 15, 20, 30, 50]
    errors = {
        "random": [0.453, 0.415, 0.389, 0.375, 0.367, 0.366, 0.365, 0.362, 0.357, 0.355],
        "easy": [0.597, 0.563, 0.535, 0.535, 0.530, 0.531, 0.531, 0.532, 0.534, 0.536],
    }
    rows = [  # two seeds each, whose mean is the curve
        {"curve": name, "epochs": epoch, "error": error + shift}
        for name, curve in errors.items()
        for shift in (-0.001, 0.001)
        for epoch, error in zip(epochs, curve, strict=True)
    ]
    table, out = write(tmp_path / "curves.csv", rows), tmp_path / "out"
    options = ["--samples", "100000", "--d", "0.1", "--a", "shared", "--n-boot", "20"]
    words = ["analyze", "scaling-law", table, *options, "--predict", "200", "--out", str(out)]
    assert main(words) == 0
    laws = fit_scaling_law(epochs, errors, 1e5, d=0.1, a="shared", n_boot=20)
    found = results(out)
    for row, law in zip(found["laws"], laws.values(), strict=True):
        assert row["b"] == pytest.approx(law.b, rel=1e-6)
        assert row["tau"] == pytest.approx(law.tau, rel=1e-6)
        assert row["delta"] == pytest.approx(2 ** (-1 / row["tau"]))
        assert row["ci_profile"]["b"] == pytest.approx(law.ci_profile["b"], rel=1e-4)
        assert row["predicted"]["200"] == pytest.approx(float(law.predict(200)))
    value, _ = scaling_law_difference(laws["random"], laws["easy"])["b"]
    assert found["differences"][0]["b"][0] == pytest.approx(value, rel=1e-4)
    said = capsys.readouterr().out
    assert f"random - easy: b {value:+.3g}" in said
    assert re.search(r"random after 200 epochs: 3\d\.\d\d % \(", said)
    assert re.search(r"easy +d +0.1 +fixed +fixed", said)
    figure = (out / "figure.svg").read_text()
    assert f"random: b {laws['random'].b:.3f}" in figure.replace("−", "-")


def test_convergence_of_two_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = [10, 20, 40, 80, 160, 320]
    curves = {
        "distilled": [[0.6, 0.5, 0.44, 0.42, 0.4, 0.4], [0.61, 0.5, 0.43, 0.41, 0.4, 0.4]],
        "coreset": [[0.5, 0.42, 0.4, 0.4, 0.4, 0.4], [0.51, 0.43, 0.41, 0.4, 0.4, 0.4]],
    }
    rows = [
        {"curve": name, "seed": seed, "epochs": epoch, "error": error}
        for name, seeds in curves.items()
        for seed, errors in enumerate(seeds)
        for epoch, error in reversed(list(zip(epochs, errors, strict=True)))
    ]
    table, out = write(tmp_path / "curves.json", rows), tmp_path / "out"
    assert main(["analyze", "convergence", table, "--out", str(out)]) == 0
    slow, fast = (convergence(epochs, seeds) for seeds in curves.values())
    found = results(out)
    assert [row["epochs"] for row in found["curves"]] == [slow.epochs, fast.epochs]
    ratio, interval = convergence_ratio(slow, fast)
    assert found["ratios"] == [
        {"first": "distilled", "second": "coreset", "ratio": ratio, "ci": list(interval)}
    ]
    assert f"distilled / coreset: {ratio:.2f} (" in capsys.readouterr().out
    rows[0]["epochs"] = 321
    other = ["analyze", "convergence", write(tmp_path / "other.json", rows)]
    assert main([*other, "--out", str(tmp_path / "x")]) == 2
    assert "the seeds of distilled have different epochs" in capsys.readouterr().err


def test_scores_of_dd_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"set": name, "full_hard": 0.6, "synthetic_hard": 0.4, "synthetic": value, "random": 0.4}
        for name, values in {"DM": (0.5, 0.52), "DC": (0.45, 0.41)}.items()
        for value in values
    ]
    table, out = write(tmp_path / "scores.csv", rows), tmp_path / "out"
    assert main(["analyze", "lrs", table, "--out", str(out)]) == 0
    dm, dc = results(out)
    assert dm["mean"] == lrs(0.6, 0.4, [0.5, 0.52], 0.4).mean
    assert dc["values"] == list(lrs(0.6, 0.4, [0.45, 0.41], 0.4).values)
    assert f"{dm['mean']:.3f}" in capsys.readouterr().out
    one = [dict(zip(("a", "b", "c", "d"), (0.5, 0.3, 0.4, 0.2), strict=True))]
    names = ("synthetic-augmented", "random-augmented", "synthetic-plain", "random-plain")
    options = [w for name, key in zip(names, "abcd", strict=True) for w in (f"--{name}", key)]
    single = write(tmp_path / "mine.csv", one)
    assert main(["analyze", "ars", single, *options, "--out", str(tmp_path / "a")]) == 0
    (found,) = results(tmp_path / "a")
    assert (found["set"], found["mean"], found["std"]) == (
        "mine",
        ars(0.5, 0.3, 0.4, 0.2).mean,
        None,
    )
    for row in rows:
        row["full_hard"] = 60
    assert (
        main(["analyze", "lrs", write(tmp_path / "p.csv", rows), "--out", str(tmp_path / "p")]) == 2
    )
    assert "divide percentages by 100" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a\n1", "must be a .csv or a .json file"),
        ("t.csv", None, "there is no file"),
        ("t.csv", "", "has no rows"),
        ("t.csv", "error,size", "has no rows"),
        ("t.csv", "objective,objective\n1,2", "names a column twice"),
        ("t.csv", "objective,error\n1,2\n3", "row 2 has 1 values, the header 2"),
        ("t.csv", "error,size\n1,2", "has no column 'objective', only error, size"),
        ("t.csv", "objective,error,size\n1,x,2", "error of row 1 is 'x', not a number"),
        ("t.json", "[1, 2]", "must hold a list of rows or an object of columns"),
        ("t.json", '{"objective": [1], "error": []}', "the columns have different lengths"),
        ("t.json", "{", "is not valid JSON"),
    ],
)
def test_refuses_a_table(
    name: str,
    content: str | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, out = tmp_path / name, tmp_path / "out"
    if content is not None:
        table.write_text(content)
    assert main(["analyze", "dcs", str(table), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_objective_is_no_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = write(tmp_path / "subsets.csv", SUBSETS), tmp_path / "out"
    assert main(["analyze", "dcs", table, "--objective", "--out", str(out)]) == 2
    assert "--objective and --error must name a column each" in capsys.readouterr().err
    assert not out.exists()


def test_rows_without_a_group_are_no_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**row, "parent": "" if i in (3, 7) else row["parent"]} for i, row in enumerate(SUBSETS)
    ]
    table, out = write(tmp_path / "t.csv", rows), tmp_path / "out"
    options = ["--objective", "dm", "--groups", "parent", "--out", str(out)]
    assert main(["analyze", "dcs", table, *options]) == 2
    assert "parent of row 4 is empty" in capsys.readouterr().err


def test_columns_of_json_and_their_nulls(tmp_path: Path) -> None:
    table, out = tmp_path / "t.json", tmp_path / "out"
    columns = {"objective": [1, 3, 2, 4, None], "error": [0.1, 0.2, 0.3, 0.4, 0.5]}
    table.write_text(json.dumps(columns))
    options = ["--adjust", "none", "--n-boot", "10", "--out", str(out)]
    assert main(["analyze", "dcs", str(table), *options]) == 0
    (score,) = results(out)["scores"]
    assert score["rho"] == pytest.approx(0.8)
    assert (score["n"], math.isnan(score["p"])) == (4, False)


def test_no_number_of_a_table_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = write(tmp_path / "subsets.csv", SUBSETS)
    out = str(tmp_path / "out")
    command = ["analyze", "dcs", table, "--objective", "sre2l", "--size", "size", "--out", out]
    assert main(command) == 0
    shown = capsys.readouterr().out
    score = dcs(column("sre2l"), column("error"), column("size"))
    assert "…" not in shown
    assert f"{score.rho:+.2f}" in shown
    assert f"{score.ci[0]:+.2f} to {score.ci[1]:+.2f}" in shown


def test_one_seed_has_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"epochs": e, "error": x} for e, x in zip([1, 2, 4, 8], [0.6, 0.4, 0.3, 0.3], strict=True)
    ]
    table = write(tmp_path / "curve.csv", rows)
    assert main(["analyze", "convergence", table, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "–" in shown
    assert "nan" not in shown
