"""Which of two meanings: the formula of a paper, or what its official code does."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = ["Semantics", "check_semantics"]

Semantics: TypeAlias = Literal["paper", "official"]


def check_semantics(semantics: str) -> None:
    """Raise unless it is one of the two.

    Raises:
        ValueError: It is not.
    """
    if semantics not in get_args(Semantics):
        raise ValueError(f"semantics must be one of {get_args(Semantics)}, got {semantics!r}")
