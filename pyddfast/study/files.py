"""Studies as YAML files: those of the package, and how one is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pyddfast._extras import require
from pyddfast.study.names import nearest
from pyddfast.study.spec import SCALES, Study

__all__ = ["STUDIES", "read_study", "shipped"]

STUDIES = Path(__file__).parent / "studies"


def shipped() -> dict[str, Path]:
    """Files of the studies in the package, by name, in the paper's order."""
    files = {file.stem: file for file in STUDIES.glob("*.yaml") if file.stem != "scales"}

    def order(name: str) -> tuple[int, int, str]:
        kind, _, number = name.partition("-")
        known = {"table": 0, "figure": 1}
        digits = "".join(c for c in number.split("-")[0] if c.isdigit())
        return known.get(kind, 2), int(digits or 0), name

    return {name: files[name] for name in sorted(files, key=order)}


def read_study(
    which: str | Path,
    *,
    scale: str = "published",
    root: Path | None = None,
    seeds: int | None = None,
) -> Study:
    """Read a study of the package by its name, or a YAML file.

    A file has the fields of :class:`Study`, and under ``scales`` those that another scale replaces
    (mappings are merged).  Between the two come the values of ``studies/scales.yaml``, which every
    study shares.

    Args:
        which: A name of :func:`shipped`, or a file.
        scale: ``"published"``: as the file says; ``"full"``: full Fashion-MNIST; ``"smoke"``: its
            embedded subset, minutes on two cores.
        root: Folder of the data, in place of the file's.
        seeds: Students of a cell, in place of the file's.

    Raises:
        FileNotFoundError: There is no such study or file.
        ValueError: A key is unknown (the message has the nearest known ones), a value has the wrong
            type or is out of range, or the file is not YAML.
        ModuleNotFoundError: The ``methods`` extra is not installed.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    file = shipped().get(str(which), Path(which))
    own_file = file.is_file() and file.resolve() not in {f.resolve() for f in shipped().values()}
    if own_file and file.stem in shipped():  # its report would pass for the paper's
        raise ValueError(
            f"{file}: {file.stem} is a study of the package; give the file another name"
        )
    if not file.is_file():
        names = nearest(str(which), shipped(), cutoff=0.4, otherwise="studies are")
        raise FileNotFoundError(f"there is no study and no file {str(which)!r}; {names}")
    values = _read_yaml(file)
    if given := {"name", "scale"} & values.keys():
        raise ValueError(
            f"{file}: {' and '.join(sorted(given))} cannot be given: the file has the name, "
            "--scale the scale"
        )
    own = values.pop("scales", {}) or {}
    if not isinstance(own, dict) or set(own) - set(SCALES):
        raise ValueError(f"{file}: scales must be a mapping of {', '.join(SCALES[1:])}")
    for name, overlay in own.items():
        if not isinstance(overlay, dict):
            raise ValueError(f"{file}: scales.{name} must be a mapping of study keys")
    if scale != "published":
        for overlay in (_read_yaml(STUDIES / "scales.yaml")[scale], own.get(scale, {})):
            values = _merge(values, overlay)
    values |= {"name": file.stem, "scale": scale}
    if root is not None:
        values["data"] = {**values.get("data", {}), "root": str(root)}
    if seeds is not None:
        values["seeds"] = seeds
    return _build(values, file)


def _read_yaml(file: Path) -> dict[str, Any]:
    yaml = require("yaml", "methods")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value if isinstance(key.value, str)]
            if twice := {name for name in names if names.count(name) > 1}:
                # YAML's own readers take the last one and say nothing.
                problem = f"the key {' and '.join(sorted(twice))} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
            return node

    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a mapping of study keys")
    return values


def _merge(values: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Values of ``overlay`` in place of those of ``values``, mappings key by key.

    What has a name (data, a network by its model) is replaced whole: the size of other images, or
    the options of another model, are not inherited.
    """
    merged = dict(values)
    for key, value in overlay.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both and not {"name", "model"} & set(value) else value  # type: ignore[arg-type]
    return merged


def _build(values: dict[str, Any], file: Path) -> Study:
    pydantic = require("pydantic", "methods")
    # As JSON, where strict reading takes a list for a tuple, but no text or bool for a number.
    try:
        text = json.dumps(_spelled_out(values), allow_nan=False)
    except (TypeError, ValueError) as error:  # a date, NaN, a list that holds itself
        raise ValueError(f"{file}: values must be those that JSON has: {error}") from None
    try:
        study: Study = pydantic.TypeAdapter(Study).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise ValueError(f"{file}: " + "; ".join(_said(e) for e in error.errors())) from None
    return study


def _spelled_out(values: dict[str, Any]) -> dict[str, Any]:
    """``sets: [tm]`` is short for ``sets: [{method: tm}]``, ``network: mlp`` for its model."""
    # A set of defaults alone is its method's name, and a network its model's.

    def long(value: Any, key: str) -> Any:
        return {key: value} if isinstance(value, str) else value

    found = dict(values)
    for name, key in (("sets", "method"), ("students", "model")):
        if isinstance(found.get(name), list):
            found[name] = [long(value, key) for value in found[name]]
    found["network"] = long(found.get("network"), "model")
    if found["network"] is None:
        del found["network"]
    return found


def _said(error: Any) -> str:
    """One line of what pydantic found; the nearest names where a key is unknown."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "value_error":  # of our own checks, which say all
        return str(error["ctx"]["error"])
    if error["type"] not in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: {error['msg']}, got {error['input']!r:.60}"
    known = [f.name for f in fields(_kind_at(error["loc"][:-1]))]
    return f"unknown key {where!r}; {nearest(str(error['loc'][-1]), known)}"


def _kind_at(place: tuple[str | int, ...]) -> Any:
    """The dataclass that a place of the file is read into."""
    kind: Any = Study
    for part in place:
        if isinstance(part, str) and part in (hints := get_type_hints(kind)):
            kind = next(_dataclasses(hints[part]), kind)
    return kind


def _dataclasses(hint: Any) -> Iterator[Any]:
    if is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses(inner)
