"""The report on a set, with teachers whose answers are known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from pyddfast.data import DistilledSet, Normalization
from pyddfast.train import check_set

CLASSES, IPC = 12, 6


class Oracle(nn.Module):
    """Reads the class from the first pixel, and is wrong about every ``wrong``-th image."""

    def __init__(self, order: Tensor, wrong: int = 0) -> None:
        super().__init__()
        self.order, self.wrong = order, wrong

    def forward(self, x: Tensor) -> Tensor:
        shown = (x[:, 0, 0, 0] * 255).round().long()
        answers = self.order[shown]
        if self.wrong:
            answers[:: self.wrong] = (answers[:: self.wrong] + 5) % len(self.order)
        return nn.functional.one_hot(answers, len(self.order)).float()


def make_set(names: tuple[str, ...] = (), ipc: int = IPC) -> DistilledSet:
    labels = torch.arange(CLASSES).repeat_interleave(ipc)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 5, 4).contiguous()
    return DistilledSet(images, labels, CLASSES, Normalization((0.0,), (1.0,)), names)


TEXT = torch.tensor([0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3])  # ranks of "0" ... "11" as text
NAMES = tuple("klmnopabcdef")
SHUFFLED = torch.tensor([3, 0, 7, 1, 10, 4, 11, 2, 8, 5, 6, 9])


@pytest.mark.parametrize(
    ("order", "names", "suggestion"),
    [
        (TEXT, (), "the numbers sorted as text"),  # D4M's folders read by torchvision
        (TEXT.argsort(), (), "the numbers in their own order instead of sorted as text"),
        (torch.tensor([6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]), NAMES, "class names sorted as text"),
        (torch.arange(CLASSES).roll(1), (), "labels that begin at 1"),  # label 1 is class 0
        (torch.arange(CLASSES).roll(-1), (), "labels that begin at 0"),
        (SHUFFLED, (), "the order in suggested_labels"),  # none that has a name
    ],
)
def test_a_wrong_order_is_found(order: Tensor, names: tuple[str, ...], suggestion: str) -> None:
    report = check_set(make_set(names), Oracle(order, wrong=9))
    right = 1 - len(range(0, CLASSES * IPC, 9)) / (CLASSES * IPC)
    assert report.suggestion is not None
    assert suggestion in report.suggestion
    assert report.suggested_accuracy == pytest.approx(right)
    assert report.suggested_labels == tuple(order.tolist())
    assert "it would be right about 88.89%" in report.warnings[-1]


def test_a_right_order_is_left_alone() -> None:
    report = check_set(make_set(), Oracle(torch.arange(CLASSES), wrong=3))
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.suggestion is None
    assert report.warnings == ()
    assert (report.count, report.num_classes, report.ipc) == (72, 12, (6, 6))
    assert (report.channels, report.image_size, report.layout) == (1, (5, 4), None)
    assert json.loads(json.dumps(report.to_dict()))["ipc"] == [6, 6]


class Undecided(nn.Module):
    """Right about two images of each five, and the class before about the others."""

    def forward(self, x: Tensor) -> Tensor:
        shown = (x[:, 0, 0, 0] * 255).round().long()
        before = torch.arange(len(x)) % 5 < 3
        answers = torch.where(before, (shown - 1) % CLASSES, shown)
        return nn.functional.one_hot(answers, CLASSES).float()


def test_an_order_that_fits_a_little_better_is_not_suggested() -> None:
    report = check_set(make_set(ipc=5), Undecided())
    assert report.accuracy == pytest.approx(0.4)  # 0.6 with labels that begin at 1
    assert (report.suggestion, report.warnings) == (None, ())


def test_chance_is_told_without_a_guess_at_the_order() -> None:
    constant = Oracle(torch.zeros(CLASSES, dtype=torch.int64))
    report = check_set(make_set(), constant)
    assert report.accuracy == pytest.approx(1 / CLASSES)
    assert report.suggestion is None
    (warning,) = report.warnings
    assert "right about 8.33% of the images, guessing is about 8.33%" in warning
    # One image a class: a matching would fit anything, so none is tried.
    few = check_set(make_set(ipc=1), Oracle(SHUFFLED))
    assert few.suggestion is None


def test_counts_are_told() -> None:
    whole = make_set()
    keep = (whole.labels != 3) & ~((whole.labels == 5) & (torch.arange(72) % 2 == 0))
    images, labels = whole.images[keep], whole.labels[keep]
    report = check_set(DistilledSet(images, labels, CLASSES, whole.normalization))
    assert report.warnings == (
        "1 of 12 classes have no image",
        "classes have from 3 to 6 images",
    )
    assert (report.empty_classes, report.ipc, report.accuracy) == ((3,), (3, 6), None)


def test_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match="the teacher has 13 classes, the set 12"):
        check_set(make_set(), Oracle(torch.arange(13)))
