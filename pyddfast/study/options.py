"""Options of a study's methods and objectives, checked before anything is trained for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyddfast.study.names import nearest

__all__ = ["ConfigOptions", "Options"]


@dataclass(frozen=True)
class Options:
    """The parameters of a function or class that a study's file may set.

    Attributes:
        of: Which; None: there are none.
        given: Its parameters that the study fills in.
        needed: Options beside its parameters, which must be given.
    """

    of: Callable[..., Any] | None = None
    given: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def check(self, options: Mapping[str, Any], ipc: int, seed: int) -> None:
        """Refuse what the call itself would refuse, after the jobs that it needs.

        Raises:
            ValueError: An option is unknown or missing.
        """
        parameters = inspect.signature(self.of).parameters if self.of else ()
        known = [*self.needed, *(name for name in parameters if name not in self.given)]
        for name in options:
            if name not in known:
                names = nearest(name, known, otherwise="nearest are")
                raise ValueError(f"unknown option {name!r}; {names}")
        if missing := [name for name in self.needed if name not in options]:
            raise ValueError(f"option {missing[0]} must be given")


@dataclass(frozen=True)
class ConfigOptions(Options):
    """Those of a configuration, which checks their values as well."""

    given: tuple[str, ...] = ("ipc", "seed")

    def check(self, options: Mapping[str, Any], ipc: int, seed: int) -> None:
        """Refuse what the configuration refuses.

        Raises:
            ValueError: An option is unknown, missing, of a wrong type or out of range.
        """
        super().check(options, ipc, seed)
        assert self.of is not None
        values = {key: value for key, value in options.items() if key not in self.needed}
        try:
            self.of(ipc=ipc, seed=seed, **values)
        except TypeError as error:  # a value that it cannot compare
            raise ValueError(str(error)) from None
