"""Compiles the CUDA kernels against the emulator, with g++ or clang++ alone.

    from tests.simt import build
    host = build.load_host()                                   # the module simt_host
    library = build.build_torch_library("pyddfast_simt", [...])  # a path for torch.ops.load_library

Everything goes to `build/simt/` (or `$PYDDFAST_SIMT_BUILD_DIR`), one folder per content hash of
sources, headers, flags and compiler, so a second call only reads.  Environment: `CXX`;
`PYDDFAST_SIMT_SANITIZE=1` builds with ASan and UBSan (the process must then run under
`sanitizer_environment()`); `PYDDFAST_SIMT_UCONTEXT=1` takes the portable context switch.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CSRC = REPO / "csrc"

# torch 2.11, the oldest torch that the library loads under (as in setup.py).
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"


def sanitized() -> bool:
    """Whether this process builds with ASan and UBSan."""
    return os.environ.get("PYDDFAST_SIMT_SANITIZE") == "1"


@functools.cache
def compiler() -> tuple[str, ...]:
    """The C++ compiler: `$CXX`, g++ or clang++."""
    if command := os.environ.get("CXX"):
        return tuple(shlex.split(command))
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise FileNotFoundError("no C++ compiler: install g++ or clang++, or set CXX")
    return (found,)


@functools.cache
def compiler_version() -> str:
    return subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout


def is_clang() -> bool:
    return "clang" in compiler_version()


def common_flags(sanitize: bool | None = None) -> list[str]:
    flags = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-Wall", "-Wextra"]
    # a*b+c is rounded twice unless the source says fma: nvcc may fuse it, and a result must not
    # depend on that.
    flags += ["-ffp-contract=off", "-Wno-unknown-pragmas"]
    # Relative, as sources are (see _run): file names in errors and barrier sites then start at the
    # repository.
    flags += ["-Icsrc", "-Itests/simt", "-DPYDDFAST_SIMT"]
    # A __shared__ variable of an inline function must not be merged between modules.
    flags += ["-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    if not is_clang():
        flags.append("-fno-gnu-unique")
    if sanitized() if sanitize is None else sanitize:
        flags += ["-fsanitize=address,undefined", "-fno-sanitize=vptr"]
        flags += ["-fno-sanitize-recover=undefined"]
    return flags


def kernel_flags() -> list[str]:
    """For .cu files: also the compiler's checks that simt_emulator.cpp answers."""
    flags = ["-fsanitize=alignment,bounds", *common_flags(), "-ftls-model=global-dynamic"]
    return [*flags, "-x", "c++"]


def link_flags() -> list[str]:
    flags = ["-shared", "-Wl,-z,defs"] if not sanitized() else ["-shared"]
    if sanitized():
        flags.append("-fsanitize=address,undefined")
        if is_clang():
            flags.append("-shared-libasan")
    return flags


def build_folder() -> Path:
    return Path(os.environ.get("PYDDFAST_SIMT_BUILD_DIR", REPO / "build" / "simt"))


def _hash(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def _with_headers(source: Path) -> list[Path]:
    """The file and, in order, the headers of this repository that it includes."""
    found = [source]
    for path in found:  # grows
        for name in re.findall(r'^\s*#\s*include\s+"(.+)"', path.read_text(), re.MULTILINE):
            candidates = (folder / name for folder in (path.parent, CSRC, HERE))
            header = next((c.resolve() for c in candidates if c.is_file()), None)
            if header is not None and header not in found:
                found.append(header)
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> None:
    # Without the sanitizers of this process, under which a compiler takes several times as long.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def _publish(command: Sequence[str], target: Path) -> None:
    """Runs `command -o <temporary file>`, which then becomes `target` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _run([*command, "-o", f"{scratch}/{target.name}"])
        os.replace(f"{scratch}/{target.name}", target)


def _build(name: str, units: Sequence[tuple[Path, Sequence[str]]], link: Sequence[str]) -> Path:
    """Compiles each (source, flags) and links them to `<build folder>/<name>-<hash>/<name>.so`."""

    def object_of(source: Path, flags: Sequence[str]) -> Path:
        parts: list[str | bytes] = [compiler_version(), *compiler(), *flags]
        for path in _with_headers(source):
            parts += [str(path), path.read_bytes()]
        return build_folder() / "objects" / f"{source.stem}-{_hash(parts)}.o"

    objects = [object_of(source, flags) for source, flags in units]
    link = [*link_flags(), f"-Wl,-soname,{name}.so", *link]
    target = build_folder() / f"{name}-{_hash([*map(str, objects), *link])}" / f"{name}.so"
    if target.exists():
        return target

    def compile_one(unit: tuple[Path, Sequence[str]], output: Path) -> None:
        source, flags = unit
        if not output.exists():
            relative = source.relative_to(REPO) if source.is_relative_to(REPO) else source
            _publish([*compiler(), *flags, "-c", str(relative)], output)

    with _locked(build_folder() / f"{name}.lock"):
        if not target.exists():  # else built by another process meanwhile
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, units, objects))
            _publish([*compiler(), *map(str, objects), *link], target)
    return target


def build_runtime() -> Path:
    """The emulator itself, shared by all modules, so that they have one state."""
    flags = common_flags()
    # Its interface is what modules link to.
    flags = [f for f in flags if not f.startswith("-fvisibility")]
    if os.environ.get("PYDDFAST_SIMT_UCONTEXT") == "1":
        flags.append("-DPYDDFAST_SIMT_UCONTEXT")
    return _build("libsimt", [(HERE / "simt_emulator.cpp", flags)], ["-ldl"])


def _link_runtime() -> list[str]:
    runtime = build_runtime()
    return [str(runtime), f"-Wl,-rpath,{runtime.parent}"]


def build_host() -> Path:
    """The pybind11 module `simt_host`: control of the emulator and its self-test kernels."""
    import pybind11

    # The bindings hold nothing that is worth an optimiser's or a sanitiser's time.
    flags = [*common_flags(sanitize=False), "-O0", f"-isystem{pybind11.get_include()}"]
    flags.append(f"-isystem{sysconfig.get_paths()['include']}")
    units = [(HERE / "selftest.cu", kernel_flags()), (HERE / "simt_host.cpp", flags)]
    # Python's own symbols come from the interpreter.
    return _build("simt_host", units, [*_link_runtime(), "-Wl,-z,lazy", "-Wl,-z,undefs"])


@functools.cache
def load_host() -> ModuleType:
    """The module `simt_host`, built if needed."""
    path = str(build_host())
    loader = importlib.machinery.ExtensionFileLoader("simt_host", path)
    spec = importlib.util.spec_from_loader("simt_host", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def build_torch_library(
    name: str,
    sources: Sequence[Path | str],
    *,
    defines: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Path:
    """Builds a torch extension library whose CUDA kernels run emulated.

    Args:
        name: of the library; the file is `<name>.so`.
        sources: `.cu` files (compiled against the emulator) and `.cpp` files (torch's stable ABI,
            with torch's headers on the include path), relative to the repository or absolute.
        defines: macros, `"NAME"` or `"NAME=value"`, for all sources.
        flags: further compiler flags for all sources.

    Returns:
        The library's path, for `torch.ops.load_library`.

    Raises:
        FileNotFoundError: a source does not exist, or there is no compiler.
        RuntimeError: a source does not compile; the text is the compiler's.
    """
    import torch
    from torch.utils import cpp_extension

    extra = [*(f"-D{define}" for define in defines), *flags]
    # The stable ABI keeps the text of the headers out of the hash: torch's version stands for it.
    torch_flags = [STABLE_ABI, *(f"-isystem{p}" for p in cpp_extension.include_paths())]
    torch_flags.append(f'-DPYDDFAST_SIMT_TORCH="{torch.__version__}"')
    units: list[tuple[Path, Sequence[str]]] = []
    for source in (REPO / s for s in sources):
        if not source.is_file():
            raise FileNotFoundError(f"build_torch_library: no source {source}")
        if source.suffix == ".cu":
            units.append((source, [*extra, *kernel_flags()]))
        else:
            units.append((source, [*extra, *common_flags(), *torch_flags]))
    torch_folder = Path(torch.__file__).resolve().parent / "lib"
    link = [*_link_runtime(), f"-L{torch_folder}", f"-Wl,-rpath,{torch_folder}"]
    return _build(name, units, [*link, "-ltorch_cpu", "-lc10"])


def written_barriers(sources: Iterable[Path | str]) -> set[str]:
    """The barrier calls in files, as `file:line`, to hold against `simt_host.barrier_sites()`.

    Text alone decides: a call in code that no launch reaches is listed too, that is the point.
    `csrc/common/simt.h`, which defines the calls, is left out.
    """
    call = re.compile(r"\b(__syncthreads|__syncwarp|cluster_sync)\s*\(")
    sites = set()
    for path in {REPO / s for s in sources} - {CSRC / "common" / "simt.h"}:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if call.search(line.split("//")[0]):
                sites.add(f"{path.relative_to(REPO)}:{number}")
    return sites


def plain_environment() -> dict[str, str]:
    """This process's environment, with the repository on Python's path."""
    return {**os.environ, "PYTHONPATH": str(REPO)}


def sanitizer_environment() -> dict[str, str]:
    """The environment in which a Python process can load what `PYDDFAST_SIMT_SANITIZE=1` builds."""
    libraries = []
    for library in ("libclang_rt.asan-x86_64.so",) if is_clang() else ("libasan.so",):
        command = [*compiler(), f"-print-file-name={library}"]
        libraries.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    # An exception that crosses Python's C++ extensions needs the C++ library loaded before ASan's.
    command = [*compiler(), "-print-file-name=libstdc++.so.6"]
    libraries.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return {
        **plain_environment(),
        "PYDDFAST_SIMT_SANITIZE": "1",
        "LD_PRELOAD": ":".join(libraries),
        # Python and torch keep memory until the end; they also allocate before ASan is ready.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=77",
        "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=77",
    }
