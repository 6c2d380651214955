"""The spill gate: no kernel spills registers, and none needs more of them than was committed.

The gate itself runs where nvcc is (about half a minute); the rest holds everywhere.
"""

import copy

import pytest

from tools import kernel_report
from tools.kernel_report import Report

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8pyddfast3runILi4EEEvPf' for 'sm_80'
ptxas info    : Function properties for _ZN8pyddfast3runILi4EEEvPf
    8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem, 536 bytes cmem[0]
ptxas info    : Compile time = 1.0 ms
ptxas info    : Compiling entry function '_ZN8pyddfast3runILi4EEEvPf' for 'sm_90'
ptxas info    : Function properties for _ZN8pyddfast3runILi4EEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 55 registers, used 0 barriers
"""


def report(registers: int = 40, spill: int = 0, nvcc: str = "13.0") -> Report:
    usage = {"registers": registers, "shared_bytes": 0, "spill_bytes": spill}
    kernels = {"kd/kd_loss.cu": {"run<4>": {"sm_90": usage}}}
    return {"nvcc": nvcc, "kernels": kernels, "spills": {}}


def test_parse() -> None:
    assert kernel_report.parse(LOG) == {
        "_ZN8pyddfast3runILi4EEEvPf": {
            "sm_80": {"registers": 40, "shared_bytes": 256, "spill_bytes": 20},
            "sm_90": {"registers": 55, "shared_bytes": 0, "spill_bytes": 0},
        }
    }


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        (report(), None),
        (report(registers=40 + kernel_report.SLACK), None),
        (report(registers=41 + kernel_report.SLACK), "uses 49 registers"),
        # Another compiler allocates differently, but may not spill either.
        (report(registers=99, nvcc="13.1"), None),
        (report(spill=4, nvcc="13.1"), "spills 4 bytes"),
        (report(spill=4), "spills 4 bytes"),
        ({"nvcc": "13.0", "kernels": {}, "spills": {}}, "only in the committed report"),
    ],
)
def test_violations(measured: Report, complaint: str | None) -> None:
    found = kernel_report.violations(measured, report())
    assert len(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]


def test_a_new_kernel_has_to_be_committed() -> None:
    measured = copy.deepcopy(report())
    measured["kernels"]["new.cu"] = measured["kernels"]["kd/kd_loss.cu"]
    assert kernel_report.violations(measured, report()) == [
        "new.cu: run<4> is only in the measured report"
    ]


def test_an_architecture_of_a_release_may_not_spill_more_than_committed() -> None:
    measured = report()
    kernel = measured["kernels"]["kd/kd_loss.cu"]["run<4>"]
    kernel["sm_120"] = {"registers": 200, "shared_bytes": 0, "spill_bytes": 0}
    assert kernel_report.violations(measured, report()) == []
    kernel["sm_120"]["spill_bytes"] = 8
    (found,) = kernel_report.violations(measured, report())
    assert "on sm_120 spills 8 bytes" in found
    committed = kernel_report.to_commit(measured, report())
    assert committed == {**report(), "spills": {"kd/kd_loss.cu": {"run<4>": {"sm_120": 8}}}}
    assert kernel_report.violations(measured, committed) == []
    kernel["sm_120"]["spill_bytes"] = 12
    assert len(kernel_report.violations(measured, committed)) == 1
    # Measured without that architecture, the report keeps it; kernels that are gone take it along.
    assert kernel_report.to_commit(report(), committed) == committed
    gone: Report = {"nvcc": "13.0", "kernels": {"kd/kd_loss.cu": {}}, "spills": {}}
    assert kernel_report.to_commit(gone, committed)["spills"] == {}


def test_a_release_has_the_architectures_of_the_report() -> None:
    assert kernel_report.shipped() == (80, 86, 89, 90, 100, 120)
    assert set(kernel_report.ARCHITECTURES) <= set(kernel_report.shipped())


def test_committed_report() -> None:
    kernels = kernel_report.load()["kernels"]
    csrc = kernel_report.REPO / "csrc"
    assert set(kernels) == {p.relative_to(csrc).as_posix() for p in csrc.glob("**/*.cu")}
    usages = [u for file in kernels.values() for kernel in file.values() for u in kernel.items()]
    assert {architecture for architecture, _ in usages} == {"sm_80", "sm_90"}
    assert {usage["spill_bytes"] for _, usage in usages} == {0}
    others = {f"sm_{a}" for a in kernel_report.shipped()} - {"sm_80", "sm_90"}
    for source, spills in kernel_report.load()["spills"].items():
        assert spills.keys() <= kernels[source].keys()
        for kernel, of_kernel in spills.items():
            assert of_kernel.keys() <= others, kernel
            # Bytes written and read: some of the 80 to 255 registers of a thread.
            assert all(0 < spilled <= 128 for spilled in of_kernel.values()), kernel


if (nvcc := kernel_report.find_nvcc()) is not None:

    def test_kernels_as_committed() -> None:
        assert nvcc is not None
        measured = kernel_report.measure(nvcc)
        assert kernel_report.violations(measured, kernel_report.load()) == []
