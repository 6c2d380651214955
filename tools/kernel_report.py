"""Registers, shared memory and spills of every CUDA kernel, as ptxas reports them.

    python tools/kernel_report.py            # compares with csrc/kernel_report.json
    python tools/kernel_report.py --write    # rewrites it
    python tools/kernel_report.py --shipped  # every architecture of a release: minutes

Needs nvcc, but no GPU.  A spilled register is traffic that no test of values can see, and what a
kernel needs of registers decides how many of its CTAs share an SM, so both are held in the report:
no spills at all, and not more registers than the committed report says, plus SLACK.  The register
rule holds within one release of nvcc; another one allocates differently.  On the other
architectures of a release, kernels may spill as much as the report says (``--shipped --write``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

REPO = Path(__file__).resolve().parents[1]
REPORT = REPO / "csrc" / "kernel_report.json"
SETUP = REPO / "setup.py"
# The oldest architecture that is supported, and the one that has clusters.
ARCHITECTURES = (80, 90)
# As in setup.py, as far as it concerns ptxas.
FLAGS = ("-std=c++20", "-O3", "-lineinfo")
# Registers are allocated to a thread in units of 8: within one, no CTA is lost on an SM.
SLACK = 8


class Usage(TypedDict):
    """What one kernel needs on one architecture."""

    registers: int
    shared_bytes: int
    spill_bytes: int


class Report(TypedDict):
    """`kernels[source][kernel]["sm_90"]`, and the release of nvcc that compiled them.

    `spills` has the bytes that kernels spill on the other architectures, likewise.
    """

    nvcc: str
    kernels: dict[str, dict[str, dict[str, Usage]]]
    spills: dict[str, dict[str, dict[str, int]]]


def find_nvcc() -> str | None:
    """The nvcc by CUDA_HOME, PATH or the usual folder, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    in_home = Path(home) / "bin" / "nvcc"
    return str(in_home) if in_home.is_file() else shutil.which("nvcc")


def nvcc_release(nvcc: str) -> str:
    """The release, such as "13.0"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        raise ValueError(f"no release number in the output of {nvcc} --version: {text!r}")
    return match[1]


def demangle(names: list[str]) -> list[str]:
    """C++ names, without parameters and without the file's hash in anonymous namespaces."""
    # nvcc names an anonymous namespace after the path of the file; what demanglers know is _N_1.
    plain = [
        re.sub(r"\d+_GLOBAL__N__[0-9a-f]{8}_\d+_\w*?_cu_[0-9a-f]{8}", "12_GLOBAL__N_1", n)
        for n in names
    ]
    command = ["c++filt", "--no-params"]
    result = subprocess.run(
        command, input="\n".join(plain), capture_output=True, text=True, check=True
    )
    short = [
        re.sub(r"\(anonymous namespace\)::|pyddfast::", "", n) for n in result.stdout.splitlines()
    ]
    return [re.sub(r"^void ", "", n) for n in short]


def parse(log: str) -> dict[str, dict[str, Usage]]:
    """Usage by mangled name and architecture from the output of `nvcc -Xptxas -v`."""
    kernels: dict[str, dict[str, Usage]] = {}
    entry = r"Compiling entry function '(\S+)' for '(\w+)'\n(.*?Used \d+ registers[^\n]*)"
    for name, architecture, text in re.findall(entry, log, re.DOTALL):
        registers = re.search(r"Used (\d+) registers", text)
        shared = re.search(r"(\d+) bytes smem", text)
        assert registers is not None  # `entry` contains it
        kernels.setdefault(name, {})[architecture] = {
            "registers": int(registers[1]),
            "shared_bytes": int(shared[1]) if shared else 0,
            "spill_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill", text)),
        }
    return kernels


def shipped() -> tuple[int, ...]:
    """The architectures that setup.py builds a release for."""
    found = re.search(r'^ARCHITECTURES = "([\d.;+PTX]+)"$', SETUP.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"no list ARCHITECTURES in {SETUP}")
    return tuple(int(re.sub(r"\D", "", a)) for a in found[1].split(";"))


def compile_file(
    nvcc: str, source: Path, architectures: tuple[int, ...]
) -> dict[str, dict[str, Usage]]:
    """Compiles one file for all architectures; usage by readable name (a file may have none)."""
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *targets, *FLAGS, "-Xptxas=-v", f"-I{REPO / 'csrc'}"]
        command += ["-c", str(source), "-o", f"{folder}/object.o"]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"nvcc could not compile {source}:\n{result.stderr}")
    kernels = parse(result.stdout + result.stderr)
    names = list(kernels)
    return dict(sorted(zip(demangle(names), kernels.values(), strict=True)))


def measure(nvcc: str, architectures: tuple[int, ...] = ARCHITECTURES) -> Report:
    """Compiles every kernel file."""
    sources = sorted((REPO / "csrc").glob("**/*.cu"))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        kernels = list(pool.map(lambda s: compile_file(nvcc, s, architectures), sources))
    if not any(kernels):
        raise RuntimeError(f"ptxas reported no kernel in {REPO / 'csrc'}")
    names = [source.relative_to(REPO / "csrc").as_posix() for source in sources]
    return {
        "nvcc": nvcc_release(nvcc),
        "kernels": dict(zip(names, kernels, strict=True)),
        "spills": {},
    }


def to_commit(measured: Report, committed: Report) -> Report:
    """What was measured, in the form of the report.

    Spills on architectures that were not measured stay as they are, of the kernels that are left.
    """
    own = {f"sm_{a}" for a in ARCHITECTURES}
    kernels: dict[str, dict[str, dict[str, Usage]]] = {}
    spills: dict[str, dict[str, dict[str, int]]] = {}
    for source, of_source in measured["kernels"].items():
        kernels[source] = {}
        for kernel, usages in of_source.items():
            kernels[source][kernel] = {a: u for a, u in usages.items() if a in own}
            found = committed["spills"].get(source, {}).get(kernel, {})
            found = {a: n for a, n in found.items() if a not in usages}
            others = {a: u["spill_bytes"] for a, u in usages.items() if a not in own}
            found |= {a: n for a, n in others.items() if n}
            if found:
                spills.setdefault(source, {})[kernel] = found
    return {"nvcc": measured["nvcc"], "kernels": kernels, "spills": spills}


def violations(measured: Report, committed: Report) -> list[str]:
    """What a measured report breaks of the rules above, one sentence each."""
    found = []
    same_nvcc = measured["nvcc"] == committed["nvcc"]
    for source in sorted(measured["kernels"].keys() | committed["kernels"].keys()):
        now = measured["kernels"].get(source, {})
        before = committed["kernels"].get(source, {})
        for kernel in sorted(now.keys() | before.keys()):
            where = f"{source}: {kernel}"
            if kernel not in now or kernel not in before:
                has = "measured" if kernel in now else "committed"
                found.append(f"{where} is only in the {has} report")
                continue
            spills = committed["spills"].get(source, {}).get(kernel, {})
            for architecture, usage in now[kernel].items():
                if usage["spill_bytes"] > spills.get(architecture, 0):
                    found.append(f"{where} on {architecture} spills {usage['spill_bytes']} bytes")
                if architecture not in before[kernel]:
                    continue
                limit = before[kernel][architecture]["registers"] + SLACK
                if same_nvcc and usage["registers"] > limit:
                    found.append(
                        f"{where} on {architecture} uses {usage['registers']} registers; the "
                        f"committed report, plus {SLACK}, allows {limit}"
                    )
    return found


def load() -> Report:
    """The committed report."""
    report: Report = json.loads(REPORT.read_text())
    return report


def main() -> None:
    """Measures; writes or compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite {REPORT.name}")
    parser.add_argument("--shipped", action="store_true", help="every architecture of a release")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("nvcc was not found: set CUDA_HOME to the CUDA toolkit")
    measured = measure(nvcc, shipped() if arguments.shipped else ARCHITECTURES)
    report = to_commit(measured, load()) if arguments.write else load()
    found = violations(measured, report)
    if found:
        sys.exit("\n".join(found))
    if arguments.write:
        REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
