"""What to say of a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["nearest"]


def nearest(
    name: str, known: Collection[str], *, cutoff: float = 0.5, otherwise: str = "known are"
) -> str:
    """The known names that are most like it, or all of them after ``otherwise``."""
    near = difflib.get_close_matches(name, known, 3, cutoff)
    if near:
        return f"nearest are {', '.join(near)}"
    return f"{otherwise} {', '.join(known) or 'none'}"
