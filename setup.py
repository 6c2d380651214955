"""Builds `pyddfast/_C.so`: CPU kernels always, CUDA kernels where nvcc is found.

The library uses torch's stable ABI and links neither Python nor libtorch_cuda, so one file serves
every Python and every torch from 2.11 on, with or without CUDA.  Environment:

  PYDDFAST_CUDA         auto (default: with CUDA if nvcc is found), 0 or 1
  TORCH_CUDA_ARCH_LIST  CUDA architectures; default: those of the visible GPUs, else ARCHITECTURES
  MAX_JOBS              parallel compilations
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils import cpp_extension

ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
STABLE_ABI = "0x020b000000000000"  # torch 2.11, the oldest torch that the library loads under
# Never -ffast-math: it breaks the rounding tricks of the exponential, and infinities.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
    "-g0",  # Python's own flags ask for debug information: two thirds of the library's size
]
NVCC_FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler=-fvisibility=hidden", "--threads=2"]

# How functions are cloned for several instruction sets; common/simd.h has the same numbers.
CLONES = {
    2: '"arch=x86-64-v4","arch=x86-64-v3","default"',
    1: '"arch=skylake-avx512","arch=haswell","default"',
}


def compiles(source: str, *flags: str) -> bool:
    """Whether the C++ compiler turns `source` into a shared library without a warning."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*shlex.split(cpp_extension.get_cxx_compiler()), "-Werror", *flags, "-fPIC"]
        command += ["-shared", "-x", "c++", "-", "-o", f"{folder}/probe.so"]
        return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0


def clones() -> int:
    """The best cloning scheme that this compiler and this machine type have; 0 for none."""
    probe = "__attribute__((target_clones({}))) float f(float x) {{ return x + 1; }}"
    return next((n for n, targets in CLONES.items() if compiles(probe.format(targets))), 0)


def find_nvcc() -> Path | None:
    """Nvcc by CUDA_HOME, PATH or the usual folder, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    candidates = [f"{home}/bin/nvcc"] if home else []
    candidates += [on_path] if on_path else []
    candidates += ["/usr/local/cuda/bin/nvcc", *sorted(glob("/usr/local/cuda-*/bin/nvcc"))[::-1]]
    return next((Path(c).resolve() for c in candidates if Path(c).is_file()), None)


def cuda_home(nvcc: Path) -> Path:
    """The toolkit's folder as nvcc itself reports it (nvcc may be a wrapper script)."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True
    )
    for line in dry_run.stderr.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=").strip()).resolve()
    return nvcc.parent.parent


def with_cuda() -> Path | None:
    """The CUDA toolkit to build with, or None for a CPU build."""
    mode = os.environ.get("PYDDFAST_CUDA", "auto").lower()
    if mode not in ("auto", "0", "1"):
        sys.exit(f"PYDDFAST_CUDA is auto, 0 or 1, not {mode!r}")
    nvcc = None if mode == "0" else find_nvcc()
    if nvcc is None and mode == "1":
        sys.exit("PYDDFAST_CUDA=1 but nvcc was not found: set CUDA_HOME to the CUDA toolkit")
    return cuda_home(nvcc) if nvcc else None


def extension() -> Extension:
    """The one native library."""
    sources = sorted(glob("csrc/**/*.cpp", recursive=True))
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI), ("PYDDFAST_CLONES", str(clones()))]
    cxx = list(CXX_FLAGS)
    if compiles("int main() {}", "-mprefer-vector-width=512"):
        cxx.append("-mprefer-vector-width=512")  # else GCC uses half of an AVX-512 register
    libraries, library_dirs = [], []
    if home := with_cuda():
        if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
            os.environ["TORCH_CUDA_ARCH_LIST"] = ARCHITECTURES
        cpp_extension.CUDA_HOME = str(home)  # a CPU build of torch does not look for it
        sources += sorted(glob("csrc/**/*.cu", recursive=True))
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or "native"
        macros += [("PYDDFAST_CUDA", "1"), ("PYDDFAST_ARCHITECTURES", f'"{architectures}"')]
        libraries = ["cudart_static", "rt", "pthread", "dl"]
        library_dirs = [str(p) for p in (home / "lib64", home / "lib") if p.is_dir()]
    return cpp_extension.CppExtension(
        "pyddfast._C",
        sources,
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": NVCC_FLAGS},
        libraries=libraries,
        library_dirs=library_dirs,
    )


class Wheel(bdist_wheel):
    """One wheel for every Python: the library does not use Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        return ("py3", "none", super().get_tag()[2])


def main() -> None:
    """Runs setup."""
    try:
        extensions = [extension()] if shutil.which(cpp_extension.get_cxx_compiler()) else []
    except subprocess.CalledProcessError as error:
        sys.exit(f"the C++ compiler could not be run: {error}")
    if not extensions:
        print("no C++ compiler: pyddfast will run its (slower) reference implementations")
    build = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)
    setup(ext_modules=extensions, cmdclass={"build_ext": build, "bdist_wheel": Wheel})


main()
