"""The documents keep their word: Python, commands, names and links of every page are tried out."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyddfast import __version__, cli, data, models
from pyddfast.cli import options

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
MODULES = (
    "ops",
    "nn",
    "models",
    "data",
    "train",
    "methods",
    "coresets",
    "analysis",
    "report",
    "random",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    A Python block that cannot run in a test has the line ``<!-- not run: why -->`` above it.
    """

    language: str
    code: str
    line: int  # of the page, before the block's first
    runs: bool


def blocks(path: Path) -> list[Block]:
    text = path.read_text()
    fence = r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)\n(.*?)^```$"
    found = [
        Block(m[2], m[3], text[: m.start(3)].count("\n"), m[1] is None)
        for m in re.finditer(fence, text, re.MULTILINE | re.DOTALL)
    ]
    assert len(found) * 2 == len(re.findall(r"^\s*```", text, re.MULTILINE)), "a fence of its own"
    return found


WITH_PYTHON = [p for p in [*TOP, *PAGES] if any(b.language == "python" for b in blocks(p))]
WITH_COMMANDS = [p for p in [*TOP, *PAGES] if any(b.language == "bash" for b in blocks(p))]

# What makes a page's trainings short.  The data are small too, see `small_data`.
SHORTER: dict[str, dict[str, str]] = {
    "README.md": {"epochs=5": "epochs=1", "train.Epochs(100)": "train.Steps(2)"},
    "docs/dynamics.md": {
        "downstream_epochs=300": "downstream_epochs=5, ticks=6",
        "epochs=30": "epochs=12",  # two windows of ten
        "epochs=20": "epochs=1",
        '"convnet-d3", ipc=10)': '"convnet-d3", ipc=10, downstream_epochs=5, ticks=6)',
    },
    "docs/coresets.md": {"epochs=20": "epochs=1", "repeats=10": "repeats=1"},
    "docs/methods.md": {"epochs=20": "epochs=1"},
    "docs/synthesis.md": {
        "epochs=20": "epochs=1",
        "SRe2LConfig(ipc=10)": "SRe2LConfig(ipc=10, iterations=2)",
    },
}


def shorter(path: Path, code: str, unused: set[str]) -> str:
    for old, new in SHORTER.get(name_of(path), {}).items():
        if old in code:
            unused.discard(old)
            code = code.replace(old, new)
    # A network of one thin layer is enough here.
    thin = '("convnet-d1", {"width": 8, "norm": "batch"})'
    code = code.replace('("convnet-d3", {"norm": "batch"})', thin)
    return code.replace(', "convnet-d3"', ', ("convnet-d1", {"width": 8})')


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty images of each class in place of the embedded 600 and 200."""
    load = data.load

    @functools.wraps(load)
    def load_small(name: str, **options: Any) -> data.ImageDataset:
        assert name == "fashion-mnist-mini", "a block that runs needs embedded data"
        whole = load(name, **options)
        rows = [(whole.labels == label).nonzero()[:20, 0] for label in range(10)]
        return whole.subset(torch.cat(rows))

    monkeypatch.setattr(data, "load", load_small)
    monkeypatch.setattr(options, "load", load_small)


Namespace = dict[str, Any]


def command_lines(block: Block) -> list[list[str]]:
    """The words after ``pyddfast`` of every command line of a bash block."""
    lines = block.code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    calls = [w[w.index("pyddfast") + 1 :] for w in words if "pyddfast" in w]
    return [call for call in calls if "--help" not in call]


def function_of(words: list[str]) -> tuple[Any, str]:
    """Module and name of the function behind a command."""
    for command, (function, _) in cli.COMMANDS.items():
        if tuple(words[: len(command)]) == command:
            module, _, name = function.rpartition(".")
            return importlib.import_module(f"pyddfast.cli.{module}"), name
    raise AssertionError(f"no such command: {words}")


# What makes the commands short of the page whose Python reads what its commands write.
WITH_RUNS = ROOT / "docs" / "getting-started.md"
THIN = "--model convnet-d1 --model-option width=8"
QUICK = {
    "distill_rded": "--teacher-model convnet-d1 --teacher-option width=8 --teacher-epochs 1",
    "train": f"{THIN} --steps 2 --seeds 1 --evaluations 1",
    "coreset_cad_prune": f"{THIN} --downstream-epochs 5 --ticks 6",
    "score": THIN,
    "coreset_recorded": "--ipc 2",
}


def run_page(path: Path) -> list[Namespace]:
    """Run a page's blocks in order in one namespace, as a reader would; check those not to run.

    Returns:
        The names after each Python block that ran.
    """
    names: Namespace = {"__name__": "page"}
    after = []
    unused = set(SHORTER.get(name_of(path), {}))
    for block in blocks(path):
        if block.language == "bash" and path == WITH_RUNS:
            for words in command_lines(block):
                if (name := function_of(words)[1]) in QUICK:
                    assert cli.main([*words, *QUICK[name].split()]) == 0, words
        if block.language != "python":
            continue
        code = "\n" * block.line + shorter(path, block.code, unused)  # errors name the page's line
        if block.runs:
            exec(compile(code, str(path), "exec"), names)
            after.append(dict(names))
        else:
            check_names(ast.parse(code, str(path)), names)
    assert not unused, f"SHORTER lists what is not there: {unused}"
    return after


def check_names(tree: ast.Module, names: dict[str, Any]) -> None:
    """Imports work, names are bound, attributes of modules exist, and their arguments too."""
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not is_read(n)}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "page", "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and is_read(node):
            known = node.id in names or node.id in bound or hasattr(builtins, node.id)
            assert known, f"line {node.lineno}: {node.id} is not defined on the page"
        if isinstance(node, ast.Attribute):
            resolve(node, names)
        if isinstance(node, ast.Call) and (function := resolve(node.func, names)) is not None:
            given = {keyword.arg for keyword in node.keywords}
            assert given <= inspect.signature(function).parameters.keys(), ast.unparse(node)


def is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that ``module.name`` means; None for what is only known when it runs."""
    if isinstance(node, ast.Name):
        found = names.get(node.id)
        return found if inspect.ismodule(found) or inspect.isroutine(found) else None
    if isinstance(node, ast.Attribute) and (owner := resolve(node.value, names)) is not None:
        return getattr(owner, node.attr)
    return None


@pytest.mark.usefixtures("one_thread", "small_data")
@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_the_python_of_every_page_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    after = run_page(path)
    if check := VALUES.get(name_of(path)):
        check(after, capsys.readouterr().out)


def check_readme(after: list[Namespace], out: str) -> None:
    own_script, codebase, _ = after
    student, teacher = own_script["student"].detach().double(), own_script["teacher"].double()
    p, q = (student / 20).softmax(1), (teacher / 20).softmax(1)
    loss = float((q * (q / p).log()).sum() / 256)
    assert own_script["loss"].item() == pytest.approx(loss, rel=1e-5)
    assert own_script["hardest"].tolist() == (p - q).norm(dim=1).topk(10).indices.tolist()
    s, t = codebase["output"].detach().double() / 20, codebase["soft_label"].double() / 20
    gradient = (s.softmax(1) - t.softmax(1)) / (20 * 64 * 4)  # batch 64, accumulated over 4
    error = (codebase["output"].grad - gradient).norm() / gradient.norm()
    assert error < 1e-6
    lines = out.splitlines()
    found = [re.fullmatch(r"(hl|sl|sl-kd): (\S+) ± (\S+) over 3 seeds", line) for line in lines]
    assert [match[1] for match in found if match] == ["hl", "sl", "sl-kd"]
    for match in found:
        assert match is not None
        assert 0 < float(match[2]) < 1
        assert math.isfinite(float(match[3]))


def check_drop_in(after: list[Namespace], out: str) -> None:
    names = after[-1]  # with the numbers that the page gives
    assert names["exact"].item() == pytest.approx(0.002817, abs=5e-7)
    assert names["ours"].item() == pytest.approx(names["exact"].item(), rel=1e-6)
    assert names["theirs"].item() == pytest.approx(0.003495, abs=5e-7)


def check_getting_started(after: list[Namespace], out: str) -> None:
    made = data.DistilledSet.load(Path("runs/aum-low/set"))
    picks = torch.tensor(made.meta["source_indices"])
    score = load_file("runs/scores/scores.safetensors")["aum"]
    labels = options.load("fashion-mnist-mini").labels  # the small part
    for label in range(10):
        mine = picks[labels[picks] == label]
        assert len(mine) == 2
        others = torch.isin((labels == label).nonzero()[:, 0], mine, invert=True)
        assert score[mine].max() <= score[labels == label][others].min()


def check_analyses(after: list[Namespace], out: str) -> None:
    score = after[0]["score"]
    assert f"{score.raw_rho:.2f}, {score.rho:.2f}" == "0.79, -0.89"  # as the page says


VALUES = {
    "README.md": check_readme,
    "docs/analyses.md": check_analyses,
    "docs/drop-in/kl.md": check_drop_in,
    "docs/getting-started.md": check_getting_started,
}


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=name_of)
def test_every_command_line_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [w for b in blocks(path) if b.language == "bash" for w in command_lines(b)]
    for words in calls:
        module, name = function_of(words)
        called = []

        @functools.wraps(getattr(module, name))  # its options
        def noted(*args: Any, called: list[str] = called, name: str = name, **options: Any) -> None:
            called.append(name)

        monkeypatch.setattr(module, name, noted)
        assert cli.main(words) == 0, words
        assert called == [name]


def test_the_help_lists_every_name_and_nothing_of_python(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in cli.COMMANDS:
        assert cli.main([*words, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "``" not in shown, words  # mark-up, and names that are no option
        assert not re.search(r"[Dd]istil\b", shown), words  # the commands' spelling
        # Not every --data: where files of other codes are read it is one of theirs.
        if "Name of the data set:" in shown:
            listed = shown.partition("Name of the data set:")[2].partition("(default:")[0]
            assert set(data.names()) <= set(re.findall(r"[\w-]+", listed)), words
        # Nor every --model: those of D4M and Minimax are folders.
        if "--model " in shown and "Local folder of a" not in shown:
            listed = shown.partition("Name of the network:")[2].partition("(default:")[0]
            spelt = set(re.findall(r"[\w-]+", listed))
            convnets = {name for name in models.names() if name.startswith("convnet-d")}
            assert {min(convnets), max(convnets)} <= spelt, words  # from one to the other
            assert set(models.names()) - convnets <= spelt, words


def code_spans(path: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=name_of)
def test_names_and_signatures_in_the_text_are_those_of_the_code(path: Path) -> None:
    for span in code_spans(path):
        match = re.match(rf"(?:pyddfast\.)?((?:{'|'.join(MODULES)})(?:\.[A-Za-z_]\w*)+)(.*)", span)
        if match is None or match[1].endswith((".py", ".html")):
            continue
        first, *rest = match[1].split(".")
        found: Any = importlib.import_module(f"pyddfast.{first}")
        if first == "nn" and hasattr(torch.nn, rest[0]):
            found = torch.nn
        for name in rest:
            assert hasattr(found, name), f"{span}: there is no {name}"
            found = getattr(found, name)
        if match[2].startswith("(") and match[2].endswith(")"):
            check_signature(span, match[2], found)


def check_signature(span: str, written: str, function: Any) -> None:
    """Arguments as written exist, in this order, with these defaults; ``…`` stands for more."""
    real = inspect.signature(function).parameters
    try:
        tree = ast.parse(f"def f{written.replace(', …', '')}: pass").body[0]
        assert "..." not in written
    except (SyntaxError, AssertionError):  # a call, with values or with ...
        call = ast.parse(f"f{written}", mode="eval").body
        while isinstance(call, ast.Call) and not isinstance(call.func, ast.Name):
            call = call.func.value if isinstance(call.func, ast.Attribute) else call.func
        assert isinstance(call, ast.Call), span
        assert {keyword.arg for keyword in call.keywords} <= real.keys(), span
        return
    assert isinstance(tree, ast.FunctionDef)
    arguments = tree.args
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
    pairs = [*zip(arguments.args, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    names = [argument.arg for argument, _ in pairs]
    assert set(names) <= real.keys(), f"{span}: there is no {set(names) - real.keys()}"
    assert names == [name for name in real if name in names], f"{span}: another order"
    for argument, default in pairs:
        parameter = real[argument.arg]
        if argument in arguments.kwonlyargs:
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{span}: {argument.arg}"
        if default is not None:
            value = eval(ast.unparse(default), {"torch": torch})
            assert parameter.default == value, f"{span}: {argument.arg}"


@pytest.mark.parametrize("path", [*TOP, *PAGES], ids=name_of)
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
