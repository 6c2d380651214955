"""``pyddfast evaluate``: trained weights on any test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from pyddfast.cli.options import Flat, ModelOptions, WhitenableData
from pyddfast.cli.sets import test_view
from pyddfast.cli.tables import new_table, print_table
from pyddfast.data import ImageDataset, Normalization, ResidentDataset
from pyddfast.data.datasets import Whitened, describe_whitening
from pyddfast.data.stored import read_json, read_tensors
from pyddfast.models import create
from pyddfast.train import evaluate as accuracy
from pyddfast.train import sampling_error
from pyddfast.train.distributed import resolve_device
from pyddfast.train.teacher import RECORD, WEIGHTS

__all__ = ["Trained", "evaluate", "find_trained", "load_trained"]


@dataclass(frozen=True)
class Trained:
    """Weights and what their run tells about them; None where there is no run."""

    files: list[Path]
    model: tuple[str, dict[str, Any]] | None
    side: int | None
    normalization: Normalization | None
    whitened: Whitened | None


def evaluate(
    weights: Annotated[Path, tyro.conf.Positional],
    data: Annotated[WhitenableData, Flat] = WhitenableData(),  # noqa: B008
    *,
    model: str | None = None,
    model_option: tuple[str, ...] = (),
    image_size: int | None = None,
    test_resize: int | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> None:
    """Measure trained weights on the test split of a data set.

    Args:
        weights: A run of train, a teacher's folder, or one safetensors file.
        data: Whose test split.
        model: Name of the network: convnet-d1 to convnet-d8, mlp, resnet18, resnet34, resnet50,
            resnet101, resnet152, mobilenet_v2, efficientnet_lite0.  Needed where the weights have
            no run beside them.
        model_option: Its options, each NAME=VALUE.
        image_size: Side of the images; default that of the training.
        test_resize: Shorter side that a folder's images are resized to before the centre is cut;
            default 8/7 of the side (256 for 224), up to 64 pixels the side.
        batch_size: Images at once.
        device: cpu or cuda; default CUDA where there is one.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    target = resolve_device(device)
    trained = find_trained(weights)
    spec = ModelOptions(model, model_option).spec() if model is not None else trained.model
    if spec is None:
        raise ValueError(f"{weights} has no run beside it that tells its network: give --model")
    assert isinstance(spec, tuple)
    name, options = spec
    if trained.whitened not in (None, data.whitened):
        option = {True: "give --zca", "kip": "give --zca-kip"}.get(trained.whitened)
        raise ValueError(
            f"the images that {weights} was trained on are {describe_whitening(trained.whitened)}: "
            f"{option or 'leave --zca and --zca-kip out'}"
        )
    side = trained.side if image_size is None else image_size
    if data.of_any_size:
        if side is None:
            raise ValueError("--image-size is needed: nothing tells the size of the training")
        source = data.load("test", side, test_view(side, test_resize))
    else:
        source = data.load("test", image_size)
    held = ResidentDataset(source, device=target, on_overflow="stream")
    channels, height, width = held.image_shape
    size = side if side is not None and side != height else None
    rows = new_table("Test accuracy (%)", "weights", "accuracy", "standard error")
    for file in trained.files:
        network = create(
            name,
            num_classes=held.num_classes,
            in_channels=channels,
            image_size=(size or height, size or width),
            **options,
        )
        load_trained(network, file)
        found = accuracy(
            network.to(target),
            held,
            normalization=trained.normalization,
            size=size,
            batch_size=batch_size,
        )
        error = sampling_error(found, len(held))
        rows.add_row(file.name, f"{100 * found:.2f}", f"{100 * error:.2f}")
    print_table(rows)
    of = source.name if isinstance(source, ImageDataset) else source.root
    print(f"{len(held):,} test images of {of}")


def load_trained(network: nn.Module, file: Path) -> None:
    """Fill a network with the weights of a file."""
    tensors, _ = read_tensors(file)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the network: {error}") from error


def find_trained(weights: Path) -> Trained:
    """The weights of a run of train, a teacher's folder, or one file, and what the run tells."""
    if weights.is_file():
        return _told([weights], weights.parent)
    if not weights.is_dir():
        raise FileNotFoundError(f"{weights} is neither a folder nor a file")
    for folder in (weights, weights / "students", weights / "teacher"):
        files = sorted(folder.glob("seed*.safetensors"), key=lambda file: (len(file.name), file))
        if (folder / RECORD).is_file() and (folder / WEIGHTS).is_file():
            files = [folder / WEIGHTS]
        if files:
            return _told(files, folder)
    raise FileNotFoundError(f"{weights} holds neither students nor a teacher")


def _told(files: list[Path], folder: Path) -> Trained:
    """What the run in ``folder`` says about its network and images."""
    file = folder / "config.json"
    if not file.is_file():
        return Trained(files, None, None, None, None)
    try:
        config = read_json(file)["config"]
        model, of = config["model"], config.get("set") or config["dataset"]
        shape = of.get("image_shape")
        return Trained(
            files,
            (model["name"], dict(model["options"])) if "name" in model else None,
            config["recipe"]["image_size"] or (shape[-1] if shape else None),
            Normalization(tuple(of["normalization"]["mean"]), tuple(of["normalization"]["std"])),
            (config.get("test_set") or {}).get("whitened", False),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not the configuration of a training: {error!r}") from error
