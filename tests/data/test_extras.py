"""A missing optional dependency is named with the extra that brings it."""

import subprocess
import sys

import pytest
import torch

from pyddfast import data
from pyddfast._extras import require


def test_an_installed_module_is_returned():
    import PIL.Image

    assert require("PIL.Image", "methods") is PIL.Image


def test_a_missing_module_names_its_extra():
    with pytest.raises(ModuleNotFoundError, match=r"'no_such_module'.*pyddfast\[methods\]"):
        require("no_such_module.part", "methods")


def test_a_failing_import_inside_an_installed_module_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError) as caught:
        require("half_installed", "methods")
    assert caught.value.name == "no_such_module"
    assert "pyddfast[" not in str(caught.value)


def test_a_core_only_install_says_what_is_missing_before_writing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    small = data.DistilledSet(
        images=torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        labels=torch.zeros(1, dtype=torch.int64),
        num_classes=1,
        normalization=data.FASHION_MNIST_NORMALIZATION,
    )
    for action, package in (
        (lambda: data.load("folder", root=tmp_path), "PIL"),
        (lambda: data.export_png(small, tmp_path / "out"), "PIL"),
        (lambda: small.save(tmp_path / "out"), "safetensors"),
    ):
        with pytest.raises(ModuleNotFoundError, match=rf"'{package}'.*pyddfast\[methods\]"):
            action()
    assert not (tmp_path / "out").exists()


def test_importing_data_and_the_embedded_set_need_no_extra():
    code = (
        "import sys\n"
        "for name in ('PIL', 'safetensors', 'scipy', 'torchvision', 'rich', 'nvidia.dali'):\n"
        "    sys.modules[name] = None\n"
        "from pyddfast import data, models\n"
        "print(len(data.load('fashion-mnist-mini', split='test')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "2000\n"


def test_a_report_without_scipy_names_the_extra(monkeypatch):
    from pyddfast.report import Result, differences

    monkeypatch.setitem(sys.modules, "scipy.special", None)
    cells = [Result(name, "HL", (0.1, 0.2), 10) for name in ("a", "b")]
    with pytest.raises(ModuleNotFoundError, match=r"'scipy'.*pyddfast\[methods\]"):
        differences(cells)
