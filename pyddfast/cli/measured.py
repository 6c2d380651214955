"""Tables of measured values: CSV with a header, or JSON."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyddfast._version import __version__
from pyddfast.data.atomic import new_folder, write_bytes
from pyddfast.data.stored import finite, read_json

__all__ = ["Measured", "interval_text", "read_measured", "write_analysis", "write_with_figure"]


@dataclass(frozen=True)
class Measured:
    """A table.

    Attributes:
        file: Where it comes from.
        columns: By name, values of equal number.
    """

    file: Path
    columns: Mapping[str, list[Any]]

    def values(self, name: str) -> list[Any]:
        """A column as it stands.

        Raises:
            ValueError: There is none of this name.
        """
        if name not in self.columns:
            raise ValueError(f"{self.file} has no column {name!r}, only {', '.join(self.columns)}")
        return self.columns[name]

    def numbers(self, name: str) -> list[float]:
        """A column of numbers; what is empty or null is NaN.

        Raises:
            ValueError: As :meth:`values`, or a value is no number; the message names its row.
        """
        found = []
        for row, value in enumerate(self.values(name)):
            try:
                found.append(math.nan if value in (None, "") else float(value))
            except (TypeError, ValueError):
                raise ValueError(
                    f"{self.file}: {name} of row {row + 1} is {value!r}, not a number"
                ) from None
        return found

    def names(self, name: str) -> list[str]:
        """A column of names, none of them empty.

        Raises:
            ValueError: As :meth:`values`, or a value is empty or null; the message names its row.
        """
        found = self.values(name)
        for row, value in enumerate(found):
            if value is None or value == "":
                raise ValueError(f"{self.file}: {name} of row {row + 1} is empty")
        return [str(value) for value in found]

    def parts(self, name: str) -> dict[str, Measured]:
        """The rows of each value of a column, in the order of the table.

        A table without the column is one part, of the file's name.
        """
        if name not in self.columns:
            return {self.file.stem: self}
        rows: dict[str, list[int]] = {}
        for row, value in enumerate(self.names(name)):
            rows.setdefault(value, []).append(row)
        return {
            value: Measured(
                self.file, {column: [v[row] for row in at] for column, v in self.columns.items()}
            )
            for value, at in rows.items()
        }


def read_measured(file: Path) -> Measured:
    """Read FILE.csv (its first line names the columns) or FILE.json.

    JSON holds a list of rows, each an object, or an object of columns.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is neither, has no rows, or its rows or columns are not alike.
    """
    if file.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"{file} must be a .csv or a .json file")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    columns = _csv(file) if file.suffix.lower() == ".csv" else _json(file)
    if not columns or not min(map(len, columns.values())):
        raise ValueError(f"{file} has no rows")
    return Measured(file, columns)


def write_analysis(
    out: Path, name: str, table: Path, options: Mapping[str, Any], results: Any, figure: str
) -> None:
    """Write what an analysis of a table found with :func:`write_with_figure`, and say where.

    Raises:
        FileExistsError: ``out`` holds something.
    """
    content = {
        "analysis": name,
        "pyddfast": __version__,
        "table": {"name": table.name, "sha256": hashlib.sha256(table.read_bytes()).hexdigest()},
        "options": dict(options),
        "results": results,
    }
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_with_figure(out, text, figure)
    print(f"results: {out / 'results.json'}")


def write_with_figure(out: Path, results: str, figure: str) -> None:
    """Write OUT/results.json and OUT/figure.svg, both or none.

    Raises:
        FileExistsError: ``out`` holds something.
    """
    with new_folder(out) as folder:
        write_bytes(folder / "results.json", results.encode() + b"\n")
        write_bytes(folder / "figure.svg", figure.encode())


def interval_text(ends: tuple[float, float], form: str) -> str:
    """Both ends in a format; a dash where the values leave it open, such as one seed."""
    if any(math.isnan(end) for end in ends):
        return "–"
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def _csv(file: Path) -> dict[str, list[Any]]:
    try:
        rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig")), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no CSV: {error}") from error
    rows = [row for row in rows if row]
    if not rows:
        return {}
    header = [name.strip() for name in rows[0]]
    if len(set(header)) != len(header):
        raise ValueError(f"{file} names a column twice: {', '.join(header)}")
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(header):
            raise ValueError(
                f"{file}: row {number} has {len(row)} values, the header {len(header)}"
            )
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(header)}


def _json(file: Path) -> dict[str, list[Any]]:
    content = read_json(file)
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        names = list(dict.fromkeys(name for row in content for name in row))
        return {name: [row.get(name) for row in content] for name in names}
    if isinstance(content, dict) and all(isinstance(column, list) for column in content.values()):
        if len({len(column) for column in content.values()}) > 1:
            raise ValueError(f"{file}: the columns have different lengths")
        return content
    raise ValueError(f"{file} must hold a list of rows or an object of columns")
