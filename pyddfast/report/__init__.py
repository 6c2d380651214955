"""Tables that know their uncertainty, figures, and self-contained HTML reports."""

from pyddfast.report.comparison import Comparison, ComparisonConfig, compare_sets
from pyddfast.report.figures import accuracy_figure, png_uri, sets_figure, svg
from pyddfast.report.html import render, write_report
from pyddfast.report.tables import Difference, Result, compare, differences, percent, summary

__all__ = [
    "Comparison",
    "ComparisonConfig",
    "Difference",
    "Result",
    "accuracy_figure",
    "compare",
    "compare_sets",
    "differences",
    "percent",
    "png_uri",
    "render",
    "sets_figure",
    "summary",
    "svg",
    "write_report",
]
