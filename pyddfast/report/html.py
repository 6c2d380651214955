"""Reports as one HTML file that needs nothing beside it: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyddfast._extras import require
from pyddfast.data.atomic import write_bytes

__all__ = ["render", "write_report"]


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of ``pyddfast/report/templates``; every value is escaped.

    Args:
        template: File name, e.g. ``"comparison.html"``.
        context: Values for the template; a missing one is an error, not an empty string.  Mark-up
            (an SVG) comes as ``markupsafe.Markup``.

    Returns:
        The page.
    """
    jinja2 = require("jinja2", "methods")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page: str = environment.get_template(template).render(**context)
    return page


def write_report(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    """Render a template to a file, whole or not at all."""
    write_bytes(path, render(template, context).encode())
    return path
