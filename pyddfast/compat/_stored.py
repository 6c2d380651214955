"""Statistics of the training data that a first pass stores: the ``running.npz`` of G-VBSM and EDC.

NumPy archives without pickle; their keys are the attributes of the hooks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pyddfast.compat._hooks import Statistic
from pyddfast.data.atomic import write_bytes


def load(path: Path, keys: tuple[str, ...], device: torch.device) -> dict[str, Tensor]:
    """The arrays of a file, on `device`.

    Raises:
        ValueError: The file is not such an archive, or one of `keys` is missing; it is named.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: torch.from_numpy(archive[key]).to(device) for key in keys}
    except (
        AttributeError,
        KeyError,
        ValueError,
        OSError,
        EOFError,
        TypeError,
        BadZipFile,
    ) as error:
        raise ValueError(
            f"{path} does not hold the statistics {', '.join(keys)} ({error}); remove it to have "
            "them taken again"
        ) from error


def save(path: Path, statistics: Mapping[str, Statistic]) -> None:
    """Write the arrays to a file, whole or not at all; makes its folder."""
    arrays = {
        key: value.cpu().numpy() if isinstance(value, Tensor) else np.array(value)
        for key, value in statistics.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
