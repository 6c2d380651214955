from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY: dict[str, Any] = {
    "title": "A tiny study",
    "data": {"name": "fashion-mnist-mini"},
    "network": {"model": "mlp", "options": {"width": 8}},
    "sets": ["random"],
    "ipc": [2],
    "seeds": 2,
    "budgets": [{"epochs": 2}],
}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study that takes a second; keywords replace its keys."""

    def write(**keys: Any) -> Path:
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump({**TINY, **keys}))
        return file

    return write
