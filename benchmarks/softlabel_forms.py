"""What shorter forms of stored labels cost: ``python -m benchmarks.softlabel_forms``.

Labels: EfficientNet-Lite0 (1,000 classes) on CutMix views of the 20 ImageNet photos of the package
``foolbox``; every form against float32.  Students: trained on stored labels of a teacher of the
embedded Fashion-MNIST subset, in every form, the same views and seeds.  Writes
``benchmarks/results/softlabels/forms.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks import metadata
from benchmarks.schema import RESULTS, write
from pyddfast import coresets, data, models, train
from pyddfast.ops import kd_loss

FORMS = ("float16", "int8", "top100", "top50", "top10")
STUDENT_FORMS = ("float32", "float16", "int8", "top5", "top3", "top1")
EPOCHS = {"labels": 10, "students": 40, "teacher": 10}
SEEDS = 3


def photos() -> data.DistilledSet:
    """The 20 photos, shorter side 256, centre of 224."""
    found = importlib.util.find_spec("foolbox")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the package foolbox is not installed")
    files = sorted(Path(found.submodule_search_locations[0], "data").glob("imagenet_*.jpg"))
    images = []
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.BILINEAR)
        left, top = ((side - 224) // 2 for side in image.size)
        pixels = np.array(image.crop((left, top, left + 224, top + 224)))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1))
    labels = torch.arange(len(images))
    return data.DistilledSet(
        torch.stack(images), labels, 1000, data.EFFICIENTNET_LITE_NORMALIZATION
    )


def label_costs(work: Path) -> list[dict[str, Any]]:
    """How far each form's labels are from float32's."""
    recipe = train.recipe("sl-kd", "large", batch_size=10)
    teacher = models.load_pretrained("efficientnet_lite0")
    options: dict[str, Any] = {"recipe": recipe, "epochs": EPOCHS["labels"], "form": "float32"}
    full = train.relabel(photos(), teacher, out=work / "photos", device="cpu", **options)
    rows = []
    for form in FORMS:
        store = data.recode(full, work / form, form)
        batches = [
            (full.batch(e, b).logits, store.batch(e, b).logits.float())
            for e in range(full.info.epochs)
            for b in range(len(full.info.batch_sizes))
        ]
        exact, kept = (torch.cat(part) for part in zip(*batches, strict=True))
        size = sum(
            (store.path / f"{n}.npy").stat().st_size
            for n in ("logits", "range", "classes")
            if (store.path / f"{n}.npy").exists()
        )
        rows.append(
            {
                "form": form,
                "bytes_a_label": round(size / len(exact)),
                "kl_t20": float(kd_loss(kept, exact, 20.0)),
                "kl_t1": float(kd_loss(kept, exact, 1.0)),
                "same_top1": float((exact.argmax(1) == kept.argmax(1)).float().mean()),
                "max_difference": float((exact - kept).abs().max()),
            }
        )
    uniform = torch.zeros_like(exact)
    rows.append(
        {
            "form": "none (equal logits)",
            "bytes_a_label": 0,
            "kl_t20": float(kd_loss(uniform, exact, 20.0)),
            "kl_t1": float(
                F.kl_div(uniform.log_softmax(1), exact.softmax(1), reduction="batchmean")
            ),
            "same_top1": None,
            "max_difference": None,
        }
    )
    return rows


def student_costs(work: Path) -> list[dict[str, Any]]:
    """Accuracy of students on the labels in each form."""
    source, test = (data.load("fashion-mnist-mini", split=s) for s in ("train", "test"))
    model = ("convnet-d3", {"width": 32, "norm": "batch"})
    teacher = train.train_teacher(
        source, model, test_set=test, epochs=EPOCHS["teacher"], device="cpu"
    )
    picks = coresets.random_scores(len(source), seed=0)
    small = coresets.select(picks, source.labels, ipc=10).to_distilled(source)
    recipe = train.recipe("sl-kd", "large", batch_size=20, epochs=EPOCHS["students"])
    full = train.relabel(
        small, teacher.model, out=work / "mini", recipe=recipe, form="float32", device="cpu"
    )
    rows = []
    for form in STUDENT_FORMS:
        store = full if form == "float32" else data.recode(full, work / f"mini-{form}", form)
        result = train.train_student(
            small,
            "sl-kd",
            model,
            test_set=test,
            labels=store,
            seeds=range(SEEDS),
            evaluations=1,
            device="cpu",
        )
        accuracies = [seed.last_accuracy for seed in result.seeds]
        rows.append(
            {
                "form": form,
                "accuracy": statistics.fmean(accuracies),
                "std": statistics.stdev(accuracies),
                "accuracies": accuracies,
                "test_count": result.test_count,
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as it stands in the documents, in Markdown."""
    lines = [
        "| form | bytes a label | KL to the full label, T = 20 | T = 1 | same top-1 |",
        "|---|---|---|---|---|",
    ]
    for row in result["labels"]:
        same = "" if row["same_top1"] is None else f"{row['same_top1']:.1%}"
        lines.append(
            f"| {row['form']} | {row['bytes_a_label']:,} | {row['kl_t20']:.1e} "
            f"| {row['kl_t1']:.1e} | {same} |"
        )
    lines += ["", "| form, 10 classes | student accuracy (%) |", "|---|---|"]
    lines += [
        f"| {row['form']} | {100 * row['accuracy']:.2f} ± {100 * row['std']:.2f} |"
        for row in result["students"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.softlabel_forms", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "softlabels" / "forms.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        result = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "metadata": metadata.collect(torch.device("cpu")),
            "labels": label_costs(Path(temporary)),
            "students": student_costs(Path(temporary)),
        }
    write(result, options.out)
    print(table(result))


if __name__ == "__main__":
    main()
