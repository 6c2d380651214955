"""The one place that holds the version (SemVer)."""

__version__ = "0.1.0"
