"""``pyddfast analyze corrupt`` and ``ood``: corrupted test images, and accuracy on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyddfast.analysis.corruptions import CORRUPTIONS, SEVERITIES, write_corruptions
from pyddfast.analysis.ood import corruption_accuracy, corruption_sets
from pyddfast.cli.evaluation import find_trained, load_trained
from pyddfast.cli.options import DataOptions, Flat, ModelOptions
from pyddfast.cli.sets import test_view
from pyddfast.cli.tables import new_table, print_table
from pyddfast.data.atomic import write_bytes
from pyddfast.models import create
from pyddfast.train import evaluate
from pyddfast.train.distributed import resolve_device

__all__ = ["analyze_corrupt", "analyze_ood"]


def analyze_corrupt(
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    out: Path,
    corruptions: tuple[str, ...] = CORRUPTIONS,
    severities: tuple[int, ...] = SEVERITIES,
    image_size: int | None = None,
    test_resize: int | None = None,
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Write the test split under ImageNet-C's corruptions, in its layout; needs pyddfast[ood].

    The same command again goes on where a stopped one was.

    Args:
        data: Whose test split.
        out: Run folder; images go to OUT/CORRUPTION/SEVERITY/CLASS/.
        corruptions: Kinds; default all 15.
        severities: Of 1 to 5.
        image_size: Side that images of a folder are resized and cut to first.
        test_resize: Shorter side before the centre is cut, as of train.
        seed: Of the draws.
        workers: Processes.
    """
    if not corruptions or not severities:
        raise ValueError("--corruptions and --severities must not be empty")
    resize = None if image_size is None else test_view(image_size, test_resize)
    source = data.load("test", image_size, resize if data.of_any_size else None)
    write_corruptions(
        source, out, corruptions=corruptions, severities=severities, seed=seed, workers=workers
    )
    print(f"{len(corruptions) * len(severities)} sets of {len(source):,} images: {out}")


def analyze_ood(
    weights: Annotated[tuple[Path, ...], tyro.conf.Positional],
    data: Annotated[DataOptions, Flat] = DataOptions(),  # noqa: B008
    *,
    tree: Path,
    out: Path,
    model: str | None = None,
    model_option: tuple[str, ...] = (),
    image_size: int | None = None,
    test_resize: int | None = None,
    batch_size: int = 256,
    device: str | None = None,
) -> None:
    """Measure trained weights on a tree of corrupted images, beside the ordinary test split.

    A tree of some classes only (Mini-ImageNet-C) is judged by the logits of all.

    Args:
        weights: Runs of train, teachers' folders, or safetensors files.
        data: The task: its classes, and the ordinary test split.
        tree: ImageNet-C, or what pyddfast analyze corrupt wrote.
        out: JSON file for the accuracies.
        model: Name of the network: convnet-d1 to convnet-d8, mlp, resnet18, resnet34, resnet50,
            resnet101, resnet152, mobilenet_v2, efficientnet_lite0.  Needed where the weights have
            no run beside them.
        model_option: Its options, each NAME=VALUE.
        image_size: Side that files are resized and cut to; default that of the training.
        test_resize: Shorter side before the centre is cut.
        batch_size: Images at once.
        device: cpu or cuda; default CUDA where there is one.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; give another file")
    if not weights:
        raise ValueError("give at least one run, folder or file of weights")
    target = resolve_device(device)
    runs = {path: find_trained(path) for path in weights}
    names = _names({path: trained.files for path, trained in runs.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, dict[str, Any]] = {}
    for path, trained in runs.items():
        spec = ModelOptions(model, model_option).spec() if model is not None else trained.model
        if spec is None:
            raise ValueError(f"{path} has no run beside it that tells its network: give --model")
        assert isinstance(spec, tuple)
        side = trained.side if image_size is None else image_size
        sized = data.of_any_size and side is not None
        resize = test_view(side, test_resize) if sized and side is not None else None
        ordinary = data.load("test", side if sized else None, resize)
        sets = corruption_sets(
            tree,
            ordinary.class_names,
            normalization=trained.normalization or ordinary.normalization,
            image_size=side if sized else None,
            resize=resize,
        )
        channels, height, width = ordinary[0].shape
        size = side if side is not None and side != height else None
        for file in trained.files:
            network = create(
                spec[0],
                num_classes=ordinary.num_classes,
                in_channels=channels,
                image_size=(size or height, size or width),
                **spec[1],
            )
            load_trained(network, file)
            network.to(target)
            name = names[file]
            options: dict[str, Any] = {
                "normalization": trained.normalization,
                "size": size,
                "batch_size": batch_size,
            }
            found = corruption_accuracy({name: network}, sets, **options)[name]
            record[name] = {
                "id": evaluate(network, ordinary, **options),
                "ood": found.mean,
                "by_corruption": found.by_corruption(),
                "by_severity": {str(k): v for k, v in found.by_severity().items()},
                "accuracies": {
                    f"{kind} {level}": v for (kind, level), v in found.accuracies.items()
                },
            }
    content = {"tree": str(tree), "weights": record}
    write_bytes(out, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    columns = list(record)
    table = new_table("Accuracy (%)", "images", *columns)
    kinds = list(record[columns[0]]["by_corruption"])
    for shown, key in (("ordinary test", "id"), ("corrupted, mean", "ood")):
        table.add_row(shown, *(f"{100 * record[name][key]:.2f}" for name in columns))
    for kind in kinds:
        values = (record[name]["by_corruption"][kind] for name in columns)
        table.add_row(kind, *(f"{100 * value:.2f}" for value in values))
    print_table(table)
    print(f"accuracies: {out}")


def _names(files: Mapping[Path, Sequence[Path]]) -> dict[Path, str]:
    """Short names of weights by run, whole paths where two were the same."""
    short = {
        file: f"{path.name}/{file.stem}" if file != path else file.stem
        for path, own in files.items()
        for file in own
    }
    if len(set(short.values())) == len(short):
        return short
    return {file: str(file) for file in short}
