"""Installs a wheel into a fresh virtual environment and uses it there, from an empty directory.

    python tools/check_installed.py dist/pyddfast-*.whl

Torch and the other dependencies come from the Python that runs this script; pyddfast itself, its
native library, its data and its command must come from the wheel.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Runs in the fresh environment.  Expected values are closed forms: for student logits (0, 0) and
# teacher probabilities (a, 1-a), KL = log 2 - H(a) and EL2N-SL = sqrt(2) |a - 1/2|.
CHECK = """
import math, sys
from importlib import resources
import torch
import pyddfast
from pyddfast import data, ops

root = resources.files("pyddfast")
assert str(root).startswith(sys.prefix), f"imported from {root}, not from {sys.prefix}"
assert root.joinpath("py.typed").is_file(), "py.typed is not in the wheel"
assert [f for f in root.iterdir() if f.name.endswith(".so")], "no native library in the wheel"

student = torch.zeros(3, 2, requires_grad=True)
a = torch.tensor([0.5, 0.75, 1.0])
loss, score = ops.kd_loss(
    student, torch.stack([a, 1 - a], 1), 1.0,
    teacher_kind="probs", reduction="none", return_score=True,
)
entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
expected = torch.tensor([0.0, math.log(2) - entropy, math.log(2)])
torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=1e-7)
torch.testing.assert_close(score, math.sqrt(2) * (a - 0.5), rtol=1e-6, atol=1e-7)
loss.sum().backward()
torch.testing.assert_close(student.grad[:, 0], 0.5 - a, rtol=1e-6, atol=1e-7)

mini = data.load("fashion-mnist-mini", split="test")
counts = torch.bincount(mini.labels)
assert len(mini) >= 2000 and len(counts) == 10 and counts.min() == counts.max(), counts
print(f"pyddfast {pyddfast.__version__}: native library, data and values are right in {root}")
"""


def check(wheel: Path) -> None:
    """Raises ``CalledProcessError`` where the installed copy does not work."""
    with tempfile.TemporaryDirectory() as folder:
        environment, empty = Path(folder, "venv"), Path(folder, "empty")
        empty.mkdir()
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        # Our package directories come last on its path, and their .pth files (an editable
        # pyddfast) are not followed.
        ours = [path for path in sys.path if path.endswith("-packages")]
        purelib = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = subprocess.run(purelib, check=True, capture_output=True, text=True).stdout.strip()
        Path(site, "shared.pth").write_text("\n".join(ours))
        pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed"]
        subprocess.run([*pip, str(wheel.resolve())], check=True)
        # -W error: a library that does not load would only warn and fall back to the twins.
        subprocess.run([python, "-W", "error::RuntimeWarning", "-c", CHECK], cwd=empty, check=True)
        subprocess.run([environment / "bin" / "pyddfast", "info"], cwd=empty, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} WHEEL (one file, given: {sys.argv[1:]})")
    check(Path(sys.argv[1]))
