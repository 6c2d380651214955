"""How near cheap scores come to GraNd of all weights: ``python -m benchmarks.grand_correlation``.

Spearman's rank correlation over half of the 6,000 embedded images of Fashion-MNIST, which the
networks have trained on, with labels at temperature 1 and with a teacher's at 20.  Writes
``benchmarks/results/grand/correlation.json``.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import nn

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast import data
from pyddfast.coresets import el2n_of_models, el2n_sl_of_models, grand_of_models
from pyddfast.coresets.el2n import scoring_networks
from pyddfast.train import train_teacher

# Narrow, and half the images, so that the gradients of all weights take some minutes.
MODEL = ("convnet-d3", {"width": 32})
NETWORKS = 5
EPOCHS = 5
TEACHER_EPOCHS = 10
EVERY = 2
TEMPERATURE = 20.0  # of EL2N-SL's paper


def compare(images: data.ImageDataset, nets: list[nn.Module], teacher: nn.Module | None) -> Any:
    """The correlations of EL2N or EL2N-SL, and of the last layer's GraNd, with that of all."""
    options: dict[str, Any] = {"progress": False, "teacher": teacher}
    if teacher is None:
        name, cheap = "el2n", el2n_of_models(images, nets)
    else:
        options["temperature"] = TEMPERATURE
        name, cheap = "el2n_sl", el2n_sl_of_models(images, nets, teacher, temperature=TEMPERATURE)
    last, whole = (
        grand_of_models(images, nets, layer=k, **options).values for k in ("last", "all")
    )
    return {
        "temperature": options.get("temperature", 1.0),
        name: round(float(spearmanr(cheap.values, whole).statistic), 4),
        "grand_last_layer": round(float(spearmanr(last, whole).statistic), 4),
    }


def main() -> None:
    """Trains, scores and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grand_correlation")
    parser.add_argument("--threads", type=int, help="CPU threads, default: torch's")
    parser.add_argument("--out", type=Path, default=RESULTS / "grand" / "correlation.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    meta = metadata.collect(torch.device("cpu"))
    train, test = data.load("fashion-mnist-mini"), data.load("fashion-mnist-mini", split="test")
    networks, about = scoring_networks(
        train, MODEL, repeats=NETWORKS, epochs=EPOCHS, test_set=test, device="cpu", progress=False
    )
    nets = list(networks)
    teacher = train_teacher(
        train, MODEL, test_set=test, epochs=TEACHER_EPOCHS, device="cpu", progress=False
    )
    images = train.subset(torch.arange(0, len(train), EVERY))
    result = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "metadata": meta,
        "data": f"fashion-mnist-mini, {len(images)} of {len(train)} images",
        "networks": {key: about[key] for key in ("model", "epochs", "seed", "accuracies")},
        "teacher": {"epochs": TEACHER_EPOCHS, "accuracy": teacher.record["accuracy"]},
        "spearman_with_grand_of_all_weights": {
            "labels": compare(images, nets, None),
            "teacher": compare(images, nets, teacher.model),
        },
    }
    write(result, options.out)
    print(result["spearman_with_grand_of_all_weights"])


if __name__ == "__main__":
    main()
