"""Reads, checks and writes result files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parent / "schema.json"
RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1


# What makes a row one of its kind: a second one would hide the first.
KEYS = {
    "results": ("op", "part", "shape", "dtype", "provider"),
    "accuracy": ("op", "shape", "dtype", "temperature", "kl", "provider"),
    "steps": ("step", "setting", "provider"),
}


def is_ours(provider: str) -> bool:
    """No peer: another form of our own op (`ours (one pass)`) is none either."""
    return provider.startswith("ours")


def validate(run: Any) -> None:
    """Checks a run.

    Raises:
        jsonschema.ValidationError: It does not follow `schema.json`.
        ValueError: Two rows are of the same case and provider.
    """
    import jsonschema  # not needed to measure: a GPU machine may be without it

    jsonschema.validate(run, json.loads(SCHEMA.read_text()))
    for part, keys in KEYS.items():
        seen = set()
        for row in run.get(part, []):
            key = tuple(str(row[name]) for name in keys)
            if key in seen:
                raise ValueError(f"{part} has two rows of {', '.join(key)}")
            seen.add(key)


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def read(path: Path) -> dict[str, Any]:
    """One checked run; a file that is not JSON or not of the schema is named in the error."""
    try:
        run: dict[str, Any] = json.loads(path.read_text(), parse_constant=_no_number)
        validate(run)
    except Exception as error:
        raise ValueError(f"{path} is not a benchmark result: {error}") from error
    return run


def write(run: dict[str, Any], path: Path) -> None:
    """Writes the run whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
