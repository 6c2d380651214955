from __future__ import annotations

import importlib.metadata

import torch

from pyddfast import __version__
from pyddfast.info import format_info, info, missing_extras
from pyddfast.ops import _native


def test_info_is_what_is_loaded():
    found = info()
    assert found["pyddfast"] == __version__
    assert found["torch"] == torch.__version__
    assert found["backends"][:1] == ["cpu"]
    assert ("cuda" in found["backends"]) == bool(found["cuda_architectures"])
    text = format_info()
    for value in (__version__, torch.__version__, str(_native.LIBRARY), found["cpu_dispatch"]):
        assert value in text


def test_a_library_that_does_not_load_is_reported(monkeypatch):
    monkeypatch.setattr(_native, "load_error", "no library for a reason")
    assert info()["backends"] == []
    assert "no library for a reason" in format_info()
    assert "reference implementations" in format_info()


def test_missing_extras_are_named(monkeypatch):
    requirements = [
        "torch>=2.11",
        'no-such-thing>=2; extra == "gone"',
        'pytest>=8; extra == "test"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requirements)
    assert missing_extras() == {"gone": ["no-such-thing"]}
