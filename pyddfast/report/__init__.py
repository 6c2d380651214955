"""Tables that know their uncertainty, figures, and self-contained HTML reports."""

from pyddfast.report.figures import accuracy_figure, png_uri, set_figure, svg
from pyddfast.report.html import render, write_report
from pyddfast.report.tables import Difference, Result, compare, differences, summary

__all__ = [
    "Difference",
    "Result",
    "accuracy_figure",
    "compare",
    "differences",
    "png_uri",
    "render",
    "set_figure",
    "summary",
    "svg",
    "write_report",
]
