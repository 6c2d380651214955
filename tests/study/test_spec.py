"""Study files: shipped ones, overlays, and what is wrong with a file."""

import re
from datetime import date
from pathlib import Path

import pytest
import torch

from pyddfast.analysis.pool import DCS_IPCS
from pyddfast.coresets.windows import OFFSETS
from pyddfast.models import create
from pyddfast.study import plan, prepare, read_study, shipped
from pyddfast.study.results import published_table
from pyddfast.study.spec import SCALES, Data


def test_shipped_studies_can_be_planned_at_every_scale():
    for name in shipped():
        for scale in SCALES:
            study = read_study(name, scale=scale)
            made = plan(study)
            assert (study.name, study.scale) == (name, scale)
            cells = len(study.sets) * len(study.ipc) * len(study.budgets)
            per_regime = [len(study.teachers) if r != "hl" else 1 for r in study.regimes]
            networks = 1 if study.mean_of_students else len(study.learners)
            assert len(made.cells) == cells * sum(per_regime) * networks
            if study.published:
                published_table(study.published)


def test_networks_of_shipped_studies_take_the_images_of_fashion_mnist():
    built = set()
    for name in shipped():
        for scale in ("full", "smoke"):
            for job in plan(read_study(name, scale=scale)).jobs.values():
                network = job.settings.get("network")
                if network and repr(network) not in built:
                    with torch.device("meta"):
                        create(network["model"], 10, 1, 28, **network["options"])
                    built.add(repr(network))
    assert len(built) > 5


def test_scales_replace_data_and_merge_settings(tiny):
    file = tiny(
        settings={"dm": {"iterations": 7, "init": "noise"}},
        scales={"smoke": {"settings": {"dm": {"iterations": 9}}, "ipc": [3]}},
    )
    assert read_study(file).settings == {"dm": {"iterations": 7, "init": "noise"}}
    small = read_study(file, scale="smoke")
    # The file's own overlay comes after the shared one.
    assert small.settings["dm"] == {
        "iterations": 9, "init": "noise", "real_batch": 64, "lr_img": 10.0,
    }  # fmt: skip
    assert (small.ipc, small.network.options, small.seeds) == ((3,), {"width": 16}, 3)
    # Data and networks are replaced whole.
    sized = tiny(data={"name": "imagenet", "image_size": 224})
    assert read_study(sized, scale="smoke").data == Data("fashion-mnist-mini")
    assert read_study(file, scale="full").data.name == "fashion-mnist"
    assert read_study(file, seeds=7, root=Path("x")).seeds == 7


@pytest.mark.parametrize("name", ["figure-2", "figure-3a", "figure-3b"])
def test_the_pool_of_dcs_is_that_of_dcs_subsets(name):
    study = read_study(name)
    assert study.ipc == DCS_IPCS
    windows = [spec for spec in study.sets if spec.method == "el2n-window"]
    assert [one.options["offset"] for one in windows[::2]] == list(OFFSETS)
    assert [one.repeat for one in study.sets] == [1, 2] * 13
    others = {spec.method for spec in study.sets} - {"el2n-window"}
    assert others == {"el2n-easy", "cal", "graph-cut"}


def test_the_papers_claims_about_rows_have_a_study():
    said = {
        "saturates": ["figure-1"],
        "Quality decides in HL": ["table-10"],
        "TM leads K-centers in HL": ["table-3", "table-4", "table-5"],
        "TM's lead is gone in SL": ["table-3", "table-4", "table-5"],
        "on par with EL2N-Best": ["table-9", "table-10", "table-11"],
        "Compute-aware scores are above": ["table-11"],
        "CA2D is above RDED": ["table-6", "table-9"],
        "at low resolution": ["table-8"],
    }
    studies = {name: read_study(name) for name in shipped()}
    for words, names in said.items():
        assert names == [n for n, s in studies.items() if any(words in c.says for c in s.claims)]


def test_published_values_are_the_papers():
    table = published_table("table-3")
    assert table.text("TM", "HL IPC 10") == "38.18 ± 0.42"
    assert table.text("K-centers", "SL IPC 50") == "46.24 ± 0.12"
    assert published_table("table-7").text("CA2D", "HL IPC 50") == "41.72 ± 0.40 ⚠"
    assert published_table("table-6").text("CA2D", "HL IPC 50") == "41.56 ⚠"
    assert table.text("DSA", "HL IPC 10") == ""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"regime": ["hl"]}, "unknown key 'regime'; nearest are regimes"),
        ({"scoring": {"epoch": 3}}, "unknown key 'scoring.epoch'; nearest are epochs"),
        ({"sets": [{"metod": "random"}]}, "unknown key 'sets.0.metod'; nearest are method"),
        ({"ipc": ["ten"]}, "ipc.0: .*got 'ten'"),
        ({"ipc": [2, 2]}, "ipc must be different positive ints"),
        ({"seeds": 0}, r"tiny.yaml: seeds and evaluations must be at least 1$"),
        ({"regimes": ["sl"]}, "teachers is empty: the regimes sl and sl-kd need one"),
        ({"budgets": [{"epochs": 1, "samples": 1}]}, "epochs or samples, not both"),
        ({"seeds": True}, "seeds: .*valid integer, got True"),
        ({"seeds": "2"}, "seeds: .*valid integer, got '2'"),
        ({"title": date(2020, 1, 1)}, "tiny.yaml: values must be those that JSON has: .*date"),
        ({"name": "x"}, "tiny.yaml: name cannot be given"),
        ({"objectives": [{"name": "dm"}] * 2}, "objectives must differ, got dm, dm"),
        (
            {
                "objectives": [
                    {"name": "tm", "options": {"start_epochs": [0, 9]}, "average": [5, 10]}
                ]
            },
            "average is of tm, within its start_epochs 0 to 9; got 5 to 10 of tm",
        ),
        ({"objectives": [{"name": "dm", "average": [20, 35]}]}, "average is of tm"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*64\), got -1"),
        ({"seed": 2**64}, r"seed must lie in \[0, 2\*\*64\), got 18446744073709551616"),
        ({"scoring": {"young": [0, 1]}}, "scoring: epochs, young, recorded and window must be at"),
        ({"scoring": {"recorded": 10}}, "recorded must be more than window, got 10 and 10"),
        ({"scoring": {"ticks": 3}}, "scoring: ticks must be at least 4, got 3"),
        ({"experts": {"epochs": 0}}, "experts: count and epochs must be at least 1"),
        ({"regimes": ["hl", "hl"]}, "regimes must differ, got hl, hl"),
        ({"budgets": [{"epochs": 0}]}, "budgets: epochs, samples and batch_size must"),
        ({"budgets": [{"epochs": {2: 0}}]}, "epochs, samples and batch_size must be at least 1"),
        ({"budgets": [{"samples": 0}]}, "epochs, samples and batch_size must be at least 1"),
        ({"budgets": [{"batch_size": 0}]}, "epochs, samples and batch_size must be at least 1"),
        ({"teachers": [{"network": {"model": "mlp"}, "epochs": 0}]}, "teachers: epochs must"),
        ({"ood": {"severities": [9]}}, r"different ones of 1 to 5, got \(9,\)"),
        ({"ood": {"severities": []}}, r"different ones of 1 to 5, got \(\)"),
        (
            {"claims": [{"says": "x", "first": "Random", "second": "Random", "regime": "sl"}]},
            "claims: the regime of 'x' is none of hl",
        ),
        ({"scales": {"smoke": None}}, "scales.smoke must be a mapping"),
        ({"scales": {"small": {}}}, "scales must be a mapping of full, smoke"),
    ],
)
def test_a_wrong_file_names_what_is_wrong(tiny, keys, message):
    with pytest.raises(ValueError, match=message):
        read_study(tiny(**keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sets": ["k-center"]}, "unknown method 'k-center'; nearest are k-centers"),
        ({"sets": ["random", "random"]}, "sets need different labels"),
        ({"settings": {"dn": {}}}, "settings: unknown methods dn"),
        (
            {"sets": ["dm"], "settings": {"dm": {"iteration": 9}}},
            "DM, IPC 2: unknown option 'iteration'; nearest are iterations",
        ),
        ({"sets": ["dm"], "settings": {"dm": {"iterations": -1}}}, "DM, IPC 2: .*iterations"),
        ({"sets": ["dm"], "settings": {"dm": {"lr_img": "fast"}}}, "DM, IPC 2: .*'str'"),
        ({"sets": ["dm"], "settings": {"dm": {"seed": 1}}}, "unknown option 'seed'"),
        (
            {"sets": [{"method": "herding", "options": {"k": 1}}]},
            "unknown option 'k'; nearest are normalize, semantics",
        ),
        ({"sets": ["el2n-window"]}, "EL2N-Pareto, IPC 2: option offset must be given"),
        ({"sets": [{"method": "random", "options": {"x": 1}}]}, "'x'; nearest are none"),
        (
            {"objectives": [{"name": "dm", "options": {"batch": 9}}]},
            "objective dm: unknown option 'batch'; nearest are",
        ),
        ({"sets": ["rded"]}, "teachers is empty"),
        ({"students": ["mlp", "mlp"]}, "students need different labels, got 'mlp', 'mlp'"),
        ({"budgets": [{"epochs": 2}, {"epochs": 3}]}, "budgets need different labels, got '', ''"),
        (
            {"regimes": ["sl"], "teachers": [{"network": {"model": "mlp"}, "epochs": 1}] * 2},
            "teachers need different labels, got 'mlp', 'mlp'",
        ),
        ({"budgets": [{"epochs": {10: 3}}]}, "no entry for ipc 2, only for 10"),
        (
            {"claims": [{"says": "x", "first": "TM", "second": "Random"}]},
            "claims: 'TM' is no label of sets",
        ),
    ],
)
def test_a_study_that_does_not_fit_together_is_refused(tiny, keys, message):
    with pytest.raises(ValueError, match=message):
        plan(read_study(tiny(**keys)))


def test_what_the_report_would_lack_is_said_before_any_work(tiny):
    with pytest.raises(ValueError, match=r"grid_class must be one of T-shirt.*got 'Shoe'"):
        prepare(read_study(tiny(show=["grid"], grid_class="Shoe")))
    with pytest.raises(ValueError, match=r"published must be one of table-3.*got 'table-33'"):
        prepare(read_study(tiny(published="table-33")))


def test_a_file_does_not_pass_for_a_study_of_the_package(tiny, tmp_path):
    copied = tmp_path / "table-3.yaml"
    copied.write_text(tiny().read_text())
    with pytest.raises(
        ValueError, match="table-3 is a study of the package; give the file another"
    ):
        read_study(copied)
    assert read_study(shipped()["table-3"]) == read_study("table-3")


def test_no_such_study_or_no_yaml(tmp_path):
    with pytest.raises(FileNotFoundError, match="'table3'; nearest are table-3"):
        read_study("table3")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not valid YAML"):
        read_study(tmp_path / "bad.yaml")
    # Python objects are not made: nothing of a file is executed.
    (tmp_path / "twice.yaml").write_text("title: a\ndata: {name: b, name: c}\n")
    with pytest.raises(ValueError, match="the key name is given twice"):
        read_study(tmp_path / "twice.yaml")
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match="is not valid YAML"):
        read_study(tmp_path / "evil.yaml")
    with pytest.raises(ValueError, match="scale must be one of published, full, smoke"):
        read_study("table-3", scale="tiny")


def test_the_study_of_the_docs_can_be_planned(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "studies.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "own.yaml").write_text(block)
    made = plan(read_study(tmp_path / "own.yaml"))
    # Four sets in two regimes.
    assert len(made.cells) == 8
    assert [cell.row for cell in made.cells[-2:]] == ["EL2N 30 %"] * 2
