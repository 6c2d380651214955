"""Expert trajectories: the parameters of networks along their training, for trajectory matching.

The layout is that of MTT, TESLA and DATM: files ``replay_buffer_0.pt``, ``replay_buffer_1.pt`` ...,
each a list of experts, an expert a list of snapshots (before the training and after each epoch), a
snapshot a list of tensors in the order of ``model.parameters()``.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pyddfast.data.atomic import write_bytes

__all__ = ["Trajectories", "write_replay_buffer"]

Snapshot: TypeAlias = list[Tensor]

_FILE = re.compile(r"replay_buffer_(0|[1-9]\d*)\.pt")


class Trajectories:
    """The expert trajectories of a folder, mapped into memory: only what is asked for is read.

    Nothing in a file is executed (``torch.load(weights_only=True)``).

    Args:
        folder: it holds ``replay_buffer_0.pt`` and so on without a gap, as the official buffer
            scripts write them.

    Attributes:
        shapes: of the parameters, in the order of ``model.parameters()``.
        epochs: whole epochs of every expert: the last snapshot's number.

    Raises:
        FileNotFoundError: there is no such file in ``folder``, or one of the row is missing.
        ValueError: a file is damaged or something else, or two experts differ in parameters or
            length; the message names the file.
    """

    shapes: tuple[torch.Size, ...]
    epochs: int

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._experts: list[list[Snapshot]] = []
        for file in _files(self.folder):
            for number, expert in enumerate(_read(file)):
                name = f"{file}, expert {number},"
                shapes = _shapes(expert, name)
                if not self._experts:
                    self.shapes, self.epochs = shapes, len(expert) - 1
                elif (shapes, len(expert)) != (self.shapes, self.epochs + 1):
                    raise ValueError(
                        f"{name} has {len(expert)} snapshots of {_describe(shapes)}, the first "
                        f"expert {self.epochs + 1} of {_describe(self.shapes)}"
                    )
                self._experts.append(expert)

    def __len__(self) -> int:
        """Number of experts."""
        return len(self._experts)

    @property
    def numel(self) -> int:
        """Number of parameters of a network."""
        return sum(shape.numel() for shape in self.shapes)

    def flat(self, expert: int, epoch: int) -> Tensor:
        """The parameters of an expert after so many epochs, float32 (:attr:`numel`,), a copy.

        Raises:
            IndexError: there is no such expert or epoch.
        """
        if not 0 <= expert < len(self):
            raise IndexError(f"expert must lie in [0, {len(self)}), got {expert}")
        if not 0 <= epoch <= self.epochs:
            raise IndexError(f"epoch must lie in [0, {self.epochs}], got {epoch}")
        # Some files hold parameters, which ask for gradients.
        return torch.cat([p.detach().reshape(-1).float() for p in self._experts[expert][epoch]])

    def check(self, model: nn.Module) -> None:
        """Refuse a network of another architecture.

        Raises:
            ValueError: the shapes of its parameters are not those of the experts.
        """
        own = [(name, p.shape) for name, p in model.named_parameters()]
        for (name, shape), stored in zip(own, self.shapes, strict=False):
            if shape != stored:
                raise ValueError(
                    f"the experts in {self.folder} are of another architecture: {name} of the "
                    f"network has shape {tuple(shape)}, theirs {tuple(stored)}"
                )
        if len(own) != len(self.shapes):
            raise ValueError(
                f"the experts in {self.folder} are of another architecture: they have "
                f"{len(self.shapes)} parameters, the network has {len(own)}"
            )


def write_replay_buffer(file: str | Path, experts: Sequence[Sequence[Sequence[Tensor]]]) -> None:
    """Write experts in the official layout, whole or not at all.

    Args:
        file: ``replay_buffer_<n>.pt``; the official scripts put ten experts into one (TESLA one).
        experts: of each its snapshots, of each its parameters in the order of ``parameters()``.

    Raises:
        ValueError: another file name, which no reader would find.
    """
    path = Path(file)
    if _FILE.fullmatch(path.name) is None:
        raise ValueError(f"the file must be called replay_buffer_<number>.pt, got {path.name}")
    # A view would be saved with all of the tensor that it looks into.
    value = [[[p.detach().cpu().clone() for p in snap] for snap in expert] for expert in experts]
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _files(folder: Path) -> list[Path]:
    numbers = sorted(
        int(match[1])
        for entry in (folder.iterdir() if folder.is_dir() else [])
        if (match := _FILE.fullmatch(entry.name))
    )
    if not numbers:
        raise FileNotFoundError(
            f"{folder} holds no expert trajectories (replay_buffer_0.pt); `pyddfast experts` makes "
            "them"
        )
    if missing := sorted(set(range(numbers[-1] + 1)) - set(numbers)):
        raise FileNotFoundError(f"{folder / f'replay_buffer_{missing[0]}.pt'} is missing")
    return [folder / f"replay_buffer_{number}.pt" for number in numbers]


def _read(file: Path) -> list[list[Snapshot]]:
    try:
        # Files from before torch 1.6 are no archives and cannot be mapped.
        mapped = zipfile.is_zipfile(file)
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # Damage surfaces in many types, and torch's text on refused objects is a page long.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{file} cannot be read as trajectories (damaged, or more than tensors): "
            f"{reason[0][:200]}"
        ) from error
    if not isinstance(value, list) or not value:
        raise ValueError(f"{file} must hold a list of experts, got {type(value).__name__}")
    return value


def _shapes(expert: object, name: str) -> tuple[torch.Size, ...]:
    """Shapes of the parameters of one expert, the same in all of its snapshots."""
    if not isinstance(expert, list) or len(expert) < 2:
        raise ValueError(f"{name} must be a list of at least two snapshots")
    shapes: tuple[torch.Size, ...] | None = None
    for epoch, snapshot in enumerate(expert):
        if not isinstance(snapshot, list) or not snapshot or not all(map(_is_plain, snapshot)):
            raise ValueError(f"{name} snapshot {epoch}, is no list of floating-point tensors")
        own = tuple(p.shape for p in snapshot)
        if shapes is None:
            shapes = own
        elif own != shapes:
            raise ValueError(f"{name} snapshot {epoch}, has other parameters than snapshot 0")
    assert shapes is not None
    return shapes


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor of numbers, dense and in memory."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.is_cpu
    )


def _describe(shapes: tuple[torch.Size, ...]) -> str:
    return f"{len(shapes)} tensors with {sum(s.numel() for s in shapes):,} parameters"
