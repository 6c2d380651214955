"""Reads, checks and writes result files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "schema.json"
RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1


def validate(run: Any) -> None:
    """Raises ``jsonschema.ValidationError`` where the run does not follow `schema.json`."""
    import jsonschema  # not needed to measure: a GPU machine may be without it

    jsonschema.validate(run, json.loads(SCHEMA.read_text()))


def read(path: Path) -> dict[str, Any]:
    """One checked run; a file that is not JSON or not of the schema is named in the error."""
    try:
        run: dict[str, Any] = json.loads(path.read_text())
        validate(run)
    except Exception as error:
        raise ValueError(f"{path} is not a benchmark result: {error}") from error
    return run


def write(run: dict[str, Any], path: Path) -> None:
    """Writes the run whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(run, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
