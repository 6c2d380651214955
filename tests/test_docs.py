"""The documents: their Python runs, links lead to files, every page is listed, versions agree."""

import math
import re
from pathlib import Path

import pytest
import torch

from pyddfast import __version__

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def one_thread():
    """Work this small is slower on several threads, and far slower where other work runs beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_ops_examples_of_the_readme() -> None:
    own_script, codebase, _ = python_blocks(ROOT / "README.md")
    names: dict = {}
    exec(own_script, names)
    student, teacher = names["student"].detach().double(), names["teacher"].double()
    p, q = (student / 20).softmax(1), (teacher / 20).softmax(1)
    assert names["loss"].item() == pytest.approx(float((q * (q / p).log()).sum() / 256), rel=1e-5)
    assert names["hardest"].tolist() == (p - q).norm(dim=1).topk(10).indices.tolist()
    names = {}
    exec(codebase, names)
    s, t = names["output"].detach().double() / 20, names["soft_label"].double() / 20
    gradient = (s.softmax(1) - t.softmax(1)) / (20 * 64 * 4)  # batch 64, accumulated over 4
    error = (names["output"].grad - gradient).norm() / gradient.norm()
    assert error < 1e-6


@pytest.mark.usefixtures("one_thread")
def test_the_methods_example_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    text = python_blocks(ROOT / "README.md")[2]
    # The same calls in seconds: one epoch, two steps, a small network.
    for old, new in {
        "epochs=5": "epochs=1",
        "train.Epochs(100)": "train.Steps(2)",
        '"convnet-d3"': '("convnet-d1", {"width": 8})',
    }.items():
        assert old in text
        text = text.replace(old, new)
    exec(text, {})
    lines = capsys.readouterr().out.splitlines()
    found = [re.fullmatch(r"(hl|sl|sl-kd): (\S+) ± (\S+) over 3 seeds", line) for line in lines]
    assert [match[1] for match in found if match] == ["hl", "sl", "sl-kd"]
    for match in found:
        assert match is not None
        assert 0 < float(match[2]) < 1
        assert math.isfinite(float(match[3]))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_complete_examples_of_the_docs_run(path: Path) -> None:
    # A block that imports torch is meant to run as it stands; others continue a reader's own code.
    for block in python_blocks(path):
        compile(block, str(path), "exec")
        if "import torch\n" in block:
            exec(block, {})


@pytest.mark.parametrize("path", [*TOP, *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = re.findall(r"([\w/-]+\.md)", navigation)
    assert sorted(listed) == sorted(str(p.relative_to(ROOT / "docs")) for p in PAGES)


def test_versions_agree() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
