"""RDED against a loop-by-loop restatement of the official synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyddfast.data import DistilledSet, ImageDataset, Normalization
from pyddfast.methods.rded import RDEDConfig, default_factor, rded
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.random import Purpose

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def dataset(size: int = 16, per_class: int = 15, classes: int = 3) -> ImageDataset:
    gen = torch.Generator().manual_seed(size)
    count = per_class * classes
    return ImageDataset(
        images=torch.randint(0, 256, (count, 3, size, size), generator=gen, dtype=torch.uint8),
        labels=torch.arange(count) % classes,
        class_names=tuple("abc"[:classes]),
        normalization=NORMALIZATION,
    )


class Ragged:
    """Images of several sizes, decoded when asked for."""

    def __init__(self, images: Sequence[Tensor], labels: Tensor) -> None:
        self.images_list, self.labels = images, labels
        self.class_names, self.normalization, self.num_classes = ("a", "b"), NORMALIZATION, 2

    def __len__(self) -> int:
        return len(self.images_list)

    def __getitem__(self, index: int, /) -> Tensor:
        return self.images_list[index]


def linear_teacher(size: int, classes: int = 3) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, classes), nn.Dropout(0.5))
    gen = torch.Generator().manual_seed(1)
    weight = model[1].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=gen) / 10)
    return model


def restated(
    data: ImageDataset, teacher: nn.Module, made: DistilledSet, pool: list[int], label: int
) -> tuple[list[int], list[int], list[float], Tensor]:
    """Picks, crops, scores and float images of one class from the boxes that RDED drew."""
    meta = made.meta
    size, factor, ipc, crops = (meta[k] for k in ("image_size", "factor", "ipc", "num_crops"))
    patch = size // factor
    mean = torch.tensor(NORMALIZATION.mean)[:, None, None]
    std = torch.tensor(NORMALIZATION.std)[:, None, None]
    boxes = draw_crop_boxes(
        meta["seed"],
        torch.tensor(pool).repeat_interleave(crops),
        torch.arange(crops).repeat(len(pool)),
        (size, size),
        ratio=(1.0, 1.0),
        purpose=Purpose.MULTI_CROP,
    ).view(-1, crops, 4)
    entries = []
    for rank, index in enumerate(pool):
        best: tuple[float, int, Tensor] | None = None
        for m in range(crops):
            top, left, height, width = boxes[rank, m].tolist()
            cut = data.images[index][None, :, top : top + height, left : left + width] / 255
            small = F.interpolate(cut, size=(patch, patch), mode="bilinear", antialias=True)
            normalized = (small[0] - mean) / std
            canvas = torch.zeros(1, 3, size, size)
            start = (size - patch) // 2
            canvas[0, :, start : start + patch, start : start + patch] = normalized
            score = -teacher(canvas).double().log_softmax(-1)[0, label].item()
            if best is None or score < best[0]:
                best = (score, m, normalized)
        assert best is not None
        entries.append((best[0], rank, best[1], best[2]))
    entries.sort(key=lambda entry: entry[:2])
    entries = entries[: ipc * factor**2]
    images = torch.zeros(ipc, 3, size, size)
    for t in range(ipc):
        for k in range(factor**2):
            y, x = k // factor * patch, k % factor * patch
            images[t, :, y : y + patch, x : x + patch] = entries[k * ipc + t][3]
    order = [entries[k * ipc + t] for t in range(ipc) for k in range(factor**2)]
    return (
        [pool[entry[1]] for entry in order],
        [entry[2] for entry in order],
        [entry[0] for entry in order],
        (images * std + mean) * 255,
    )


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("semantics", ["paper", "official"])
def test_rded_is_the_official_synthesis(factor: int, semantics: str) -> None:
    data, teacher = dataset(), linear_teacher(16).eval()
    config = RDEDConfig(ipc=2, factor=factor, pool=12, num_crops=4, semantics=semantics, seed=5)  # type: ignore[arg-type]
    pools = [[i for i in range(45) if i % 3 == c][3:][::-1] for c in range(3)]
    made = rded(data, teacher, config, candidates=pools)
    assert (made.factor, made.kind, made.ipc) == (factor, "patches", 2)
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for label in range(3):
        picks, crops, scores, images = restated(data, teacher, made, pools[label], label)
        rows = slice(2 * label, 2 * label + 2)
        assert list(chain(*made.meta["source_indices"][rows])) == picks
        assert list(chain(*made.meta["crops"][rows])) == crops
        assert list(chain(*made.meta["scores"][rows])) == pytest.approx(scores, rel=1e-4)
        want = (
            images.clamp(0, 255).round() if semantics == "paper" else images.clamp(0, 255).trunc()
        )
        # A value on the edge between two bytes may fall to either side by float rounding; pixels
        # that the resize leaves as they are lie on the edges of truncation.
        differs = made.images[rows].float() != want
        edge = images - (0.5 if semantics == "paper" else 0.0)
        assert not (differs & ((edge - edge.round()).abs() > 1e-3)).any()
        assert differs.float().mean() < 0.1
        assert (made.images[rows].float() - images).abs().max() < (
            0.51 if semantics == "paper" else 1.01
        )


def test_random_pool_is_keyed_and_limits_the_picks() -> None:
    data, teacher = dataset(per_class=30), linear_teacher(16)
    config = RDEDConfig(ipc=4, pool=10, seed=3)
    made = rded(data, teacher, config)
    used = [{row[0] for row in made.meta["source_indices"][4 * c : 4 * c + 4]} for c in range(3)]
    everything = rded(data, teacher, RDEDConfig(ipc=10, pool=10, seed=3))
    pool = [{row[0] for row in everything.meta["source_indices"][10 * c :][:10]} for c in range(3)]
    for label in range(3):
        assert used[label] < pool[label]
        assert all(int(data.labels[i]) == label for i in pool[label])
    assert sorted(pool[0]) != sorted(i - 1 for i in pool[1])  # each class has its own draw
    other = rded(data, teacher, RDEDConfig(ipc=4, pool=10, seed=4))
    assert other.meta["source_indices"] != made.meta["source_indices"]
    again = rded(data, teacher, config)
    assert torch.equal(again.images, made.images)
    assert again.meta == made.meta


def test_batches_do_not_change_the_picks_and_boxes_lie_inside() -> None:
    data, teacher = dataset(), linear_teacher(16)
    runs = [rded(data, teacher, RDEDConfig(ipc=3, batch_size=size)) for size in (1, 7, 10_000)]
    for run in runs[1:]:
        assert run.meta["source_indices"] == runs[0].meta["source_indices"]
        assert run.meta["boxes"] == runs[0].meta["boxes"]
    boxes = torch.tensor(runs[0].meta["boxes"])
    assert int(boxes[..., :2].min()) >= 0
    assert int((boxes[..., :2] + boxes[..., 2:]).max()) <= 16


def test_images_of_several_sizes_go_one_by_one_with_the_same_result() -> None:
    gen = torch.Generator().manual_seed(2)
    sizes = [(20, 30), (16, 16), (40, 25), (18, 18)] * 4
    images = [torch.randint(0, 256, (3, *s), generator=gen, dtype=torch.uint8) for s in sizes]
    data = Ragged(images, torch.arange(16) // 8)
    teacher = linear_teacher(16, 2).eval()
    made = rded(data, teacher, RDEDConfig(ipc=1, factor=2, image_size=16, num_crops=3))
    assert made.images.shape == (2, 3, 16, 16)
    # Tile 0 of image 0 is the crop that its record names, resized by torch.
    top, left, height, width = made.meta["boxes"][0][0]
    source = images[made.meta["source_indices"][0][0]]
    cut = source[None, :, top : top + height, left : left + width].float()
    want = F.interpolate(cut, size=(8, 8), mode="bilinear", antialias=True)[0]
    assert (made.images[0, :, :8, :8] - want).abs().max() <= 0.51
    # The same images in one tensor take the other path.
    square = ImageDataset(
        torch.stack(images[1::4] * 2), torch.arange(8) // 4, ("a", "b"), NORMALIZATION
    )
    lazy = Ragged(list(square.images), square.labels)
    config = RDEDConfig(ipc=2, factor=1, image_size=16)
    assert torch.equal(rded(square, teacher, config).images, rded(lazy, teacher, config).images)


def test_ties_go_to_the_first_candidate_and_the_first_crop() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3)

    pools = {c: [i for i in range(45) if i % 3 == c][::-1] for c in range(3)}
    made = rded(dataset(), Constant(), RDEDConfig(ipc=2, factor=2), candidates=pools)
    ranks = [pools[1][rank] for rank in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert list(chain(*made.meta["source_indices"][2:4])) == ranks
    assert {crop for row in made.meta["crops"] for crop in row} == {0}


@pytest.mark.parametrize(
    ("size", "factor"), [(28, 1), (64, 1), (96, 1), (127, 1), (128, 2), (224, 2)]
)
def test_default_factor(size: int, factor: int) -> None:
    assert default_factor(size) == factor


def test_the_teacher_is_evaluated_and_left_as_it_was() -> None:
    data, teacher = dataset(), linear_teacher(16)  # holds a dropout layer
    teacher.train()
    first, second = (rded(data, teacher, RDEDConfig(ipc=2)) for _ in range(2))
    assert teacher.training
    assert first.meta["scores"] == second.meta["scores"]
    assert all(p.grad is None for p in teacher.parameters())


def test_a_progress_callback_hears_of_every_class() -> None:
    heard: list[tuple[int, int]] = []
    rded(dataset(), linear_teacher(16), RDEDConfig(ipc=1), on_progress=lambda *x: heard.append(x))
    assert heard == [(1, 3), (2, 3), (3, 3)]


class Untouched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the error must come before any work")


@pytest.mark.parametrize(
    ("config", "candidates", "message"),
    [
        (RDEDConfig(ipc=16), None, r"needs 16 images.*class 0 'a' has 15"),
        (RDEDConfig(ipc=4, factor=2), None, "needs 16 images"),
        (RDEDConfig(ipc=8, pool=7), None, "pool of 7"),
        (RDEDConfig(ipc=1, semantics="official"), None, "needs pool = 300"),
        (RDEDConfig(ipc=1, factor=17), None, "factor"),
        (RDEDConfig(ipc=2), [[0], [1], [2]], "has 1 candidates"),
        (RDEDConfig(ipc=1), [[0], [1]], "3 classes"),
        (RDEDConfig(ipc=1), {0: [0], 1: [1], 3: [2]}, "keys"),
        (RDEDConfig(ipc=1), [[0], [1], [3]], "candidate 3 of class 2 has the label 0"),
        (RDEDConfig(ipc=1), [[0], [1], [45]], r"\[0, 45\)"),
        (RDEDConfig(ipc=1), [[0, 0], [1], [2]], "more than once"),
    ],
)
def test_refuses_before_any_work(
    config: RDEDConfig, candidates: list[list[int]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rded(dataset(), Untouched(), config, candidates=candidates)


@pytest.mark.parametrize(
    "settings",
    [{"ipc": 0}, {"num_crops": 0}, {"pool": 0}, {"factor": 0}, {"semantics": "mine"}],
)
def test_config_refuses(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RDEDConfig(**settings)  # type: ignore[arg-type]


def test_refuses_a_teacher_of_other_classes() -> None:
    with pytest.raises(ValueError, match="teacher gives 7 logits"):
        rded(dataset(), linear_teacher(16, 7), RDEDConfig(ipc=1))


@pytest.mark.parametrize("change", [{"batch_size": 2.5}, {"ipc": 1.5}, {"pool": True}])
def test_counts_are_whole_numbers(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(TypeError, match=f"{name} must be an int, got {change[name]}"):
        RDEDConfig(**change)
