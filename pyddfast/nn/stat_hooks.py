"""The frame of the losses over statistics at the inputs of a model's layers: its hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StatHooks", "layer_input", "refuse_replica", "with_input"]

Seen = TypeVar("Seen")


class StatHooks(Generic[Seen]):
    """What each layer has shown of a model's last forward; a context manager that ends in `close`.

    Args:
        model: Its forward begins anew.
        names: Of the layers, for messages.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self._seen: list[Seen | None] = [None] * len(self.names)
        self._hooks = [model.register_forward_pre_hook(self._begin)]

    def _watch(self, layer: nn.Module, hook: Callable[..., Any]) -> None:
        """Call ``hook(layer, args, kwargs)`` before a layer, until `close`."""
        self._hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def _take(self) -> list[Seen]:
        """What the layers have shown, once.

        Raises:
            RuntimeError: It is closed, or a layer has shown nothing since the last call.
        """
        if not self._hooks:
            raise RuntimeError(f"{type(self).__name__} is closed: build another one")
        missing = [name for name, s in zip(self.names, self._seen, strict=True) if s is None]
        if missing:
            raise RuntimeError(
                f"no forward since the last call has reached {missing[0]!r} "
                f"({len(missing)} of {len(self.names)} layers are without statistics): call the "
                "loss once after each forward of the whole model"
            )
        seen = [s for s in self._seen if s is not None]
        self._forget()
        return seen

    def _forget(self) -> None:
        self._seen = [None] * len(self.names)

    def close(self) -> None:
        """Removes the hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Without the statistics: their graph cannot be copied with a model that has the hooks."""
        return {**self.__dict__, "_seen": [None] * len(self.names)}

    def _begin(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """The pre-hook of the model: a forward that fails leaves nothing of the one before."""
        self._forget()


def refuse_replica(owner: object, layer: nn.Module) -> None:
    """Raise a RuntimeError in a replica of ``nn.DataParallel``, which shares its model's hooks."""
    if getattr(layer, "_is_replica", False):
        raise RuntimeError(
            f"{type(owner).__name__} does not work under nn.DataParallel with several devices: its "
            "replicas would overwrite each other's statistics.  Use one device "
            "(CUDA_VISIBLE_DEVICES=0) or one process a device (torchrun)"
        )


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's input, its first argument, in a pre-hook with keywords."""
    return args[0] if args else next(iter(kwargs.values()), None)


def with_input(
    x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another input, as a pre-hook with keywords returns them."""
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): x}
