"""Optional dependencies, imported where they are used and named by their extra if missing."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Args:
        module: Dotted module name, e.g. ``"PIL.Image"``.
        extra: Name of the extra in ``pyproject.toml`` that installs it, e.g. ``"methods"``.

    Returns:
        The imported module.

    Raises:
        ModuleNotFoundError: The module's package is not installed.  An import error inside an
            installed package is passed on unchanged, since installing the extra would not help.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"this needs the module {package!r}, which is not installed; "
            f"install it with: pip install 'pyddfast[{extra}]'",
            name=error.name,
        ) from error
