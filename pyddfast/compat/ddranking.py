"""DD-Ranking 0.2.0: ``ddranking.aug.DSA``.

:func:`install` puts the class here in its place, wherever the package has imported it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import Tensor

from pyddfast.ops.dsa import DSAConfig, draw_dsa_official, dsa

__all__ = ["DSA", "install"]

# The order in which the entry is drawn; it is not VICO's.
_STRATEGY = "scale_rotate_flip_color_crop_cutout"
_MODES = {"S": "single", "M": "all"}


class DSA:
    """The official class: the same draws from torch's global generators.

    Args:
        params: ``flip``, ``rotate``, ``saturation``, ``brightness``, ``contrast``, ``scale``,
            ``crop``, ``cutout``; ``siamese`` and ``latestseed`` are written.
        seed: -1: parameters of each image; else one draw for the batch, which reseeds the global
            generators before each draw.
        aug_mode: ``"S"``: one entry for the batch, ``"M"``: all of them.

    Raises:
        ValueError: A parameter is missing or out of range, or ``aug_mode`` is another one.
    """

    def __init__(self, params: dict[str, Any], seed: int = -1, aug_mode: str = "S") -> None:
        names = (
            "flip",
            "scale",
            "rotate",
            "crop",
            "cutout",
            "brightness",
            "saturation",
            "contrast",
        )
        missing = [name for name in names if name not in params]
        if missing:
            raise ValueError(f"params lacks {missing}; it needs {names}")
        if aug_mode not in _MODES:
            raise ValueError(f"aug_mode must be one of {sorted(_MODES)}, got {aug_mode!r}")
        self.params, self.seed, self.aug_mode = params, seed, aug_mode
        self._config = DSAConfig(**{name: params[name] for name in names})

    def __call__(self, images: Tensor) -> Tensor:
        """Augment (N, C, H, W) floating-point images."""
        self.params["siamese"] = self.seed != -1
        drawn, self.params["latestseed"] = draw_dsa_official(
            images,
            seed=self.seed,
            strategy=_STRATEGY,
            mode=_MODES[self.aug_mode],
            config=self._config,
        )
        return dsa(images, drawn, align_corners=True).contiguous()


def install() -> list[str]:
    """Replace ``DSA`` in every module of the installed package.

    Returns:
        The modules.

    Raises:
        ModuleNotFoundError: ddranking is not installed.
    """
    importlib.import_module("ddranking.metrics")
    changed = []
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] == "ddranking" and hasattr(module, "DSA"):
            module.DSA = DSA  # type: ignore[attr-defined]
            changed.append(name)
    return changed
