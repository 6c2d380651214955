"""select(): against Python's sort, its ties, budgets and errors; the set it makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyddfast.coresets import Scores, random_scores, select
from pyddfast.data import ImageDataset, Normalization

GEN = torch.Generator().manual_seed(8)


def scores(values: list[float] | Tensor) -> Scores:
    return Scores(torch.as_tensor(values, dtype=torch.float64), "toy", "hard", {"seed": 4})


def dataset(count: int, classes: int) -> ImageDataset:
    images = torch.randint(0, 256, (count, 1, 4, 4), generator=GEN, dtype=torch.uint8)
    labels = torch.arange(count) * 7 % classes
    names = tuple(f"c{i}" for i in range(classes))
    return ImageDataset(images, labels, names, Normalization((0.3,), (0.4,)))


@pytest.mark.parametrize("strategy", ["topk", "bottomk"])
def test_picks_are_pythons_stable_sort_of_each_class(strategy: str) -> None:
    labels = torch.randint(0, 4, (200,), generator=GEN)
    # Sixteen levels, so that ties are everywhere.
    values = torch.randint(0, 16, (200,), generator=GEN).double()
    picked = select(scores(values), labels, strategy=strategy, ipc=9)  # type: ignore[arg-type]
    sign = -1 if strategy == "topk" else 1
    want: list[int] = []
    for label in range(4):
        members = [i for i in range(200) if labels[i] == label]
        want += sorted(members, key=lambda i: (sign * float(values[i]), i))[:9]
    assert picked.indices.tolist() == want
    assert picked.scores is not None
    assert picked.scores.tolist() == values[want].tolist()
    assert picked.order == "ranked"


def test_window_slides_from_the_highest_to_the_lowest_scores() -> None:
    values = [5.0, 1, 4, 2, 3, 0, 6, 7]  # class 0: 5 4 3 6, class 1: 1 2 0 7
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])

    def window(offset: float) -> list[float]:
        picked = select(scores(values), labels, strategy="window", ipc=2, offset=offset)
        assert picked.scores is not None
        return picked.scores.tolist()

    assert window(0.0) == [6, 5, 7, 2]
    assert window(0.5) == [5, 4, 2, 1]
    assert window(1.0) == [4, 3, 1, 0]


def test_fraction_rounds_each_class_halves_to_even() -> None:
    labels = torch.tensor([0] * 5 + [1] * 7 + [2] * 10)
    picked = select(scores(torch.arange(22.0)), labels, fraction=0.5)
    # 2.5 -> 2, 3.5 -> 4, 5
    assert torch.bincount(labels[picked.indices]).tolist() == [2, 4, 5]
    assert len(select(scores(torch.arange(22.0)), labels, fraction=0.0)) == 0
    everything = select(scores(torch.arange(22.0)), labels, fraction=1.0)
    assert sorted(everything.indices.tolist()) == list(range(22))


def test_random_choice_is_balanced_nested_and_keyed() -> None:
    labels = torch.arange(1000) % 5
    large = select(random_scores(1000, seed=3), labels, ipc=20)
    small = select(random_scores(1000, seed=3), labels, ipc=6)
    assert torch.bincount(labels[large.indices]).tolist() == [20] * 5
    assert small.indices.view(5, 6).tolist() == large.indices.view(5, 20)[:, :6].tolist()
    other = select(random_scores(1000, seed=4), labels, ipc=20)
    assert not torch.equal(large.indices, other.indices)
    # More samples do not move the scores of the first ones.
    assert torch.equal(
        random_scores(1200, seed=3).values[:1000], random_scores(1000, seed=3).values
    )
    # Uniform: each of 50 runs of 20 samples is hit about 2 times; chi-squared of 49 degrees.
    hits = torch.bincount(large.indices // 20, minlength=50).double()
    assert ((hits - 2).square() / 2).sum() < 90  # 99.9 % point: 85.4


def test_to_distilled_keeps_order_labels_and_provenance() -> None:
    data = dataset(60, 3)
    picked = select(scores(torch.rand(60, generator=GEN)), data.labels, ipc=4)
    made = picked.to_distilled(data)
    assert torch.equal(made.images, data.images[picked.indices])
    assert made.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (made.ipc, made.kind, made.factor) == (4, "real", 1)
    assert made.normalization == data.normalization
    assert made.meta["source_indices"] == picked.indices.tolist()
    assert made.meta["scoring"] == {"seed": 4}
    assert made.meta["method"] == "toy-topk"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "ipc or fraction"),
        ({"ipc": 1, "fraction": 0.1}, "ipc or fraction"),
        ({"ipc": -1}, "ipc"),
        ({"ipc": 3}, "class 1 has 2"),
        ({"ipc": 1, "num_classes": 4}, "class 3 has 0"),
        ({"ipc": 1, "num_classes": 2}, r"\[0, 2\)"),
        ({"fraction": 1.1}, "fraction"),
        ({"ipc": 1, "strategy": "best"}, "strategy"),
        ({"ipc": 1, "offset": 0.5}, "window"),
        ({"ipc": 1, "strategy": "window", "offset": 1.5}, "offset"),
    ],
)
def test_refuses(keywords: dict[str, object], message: str) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    with pytest.raises(ValueError, match=message):
        select(scores(torch.arange(8.0)), labels, **keywords)  # type: ignore[arg-type]


def test_refuses_scores_that_have_no_order() -> None:
    with pytest.raises(ValueError, match="sample 1"):
        scores([0.0, float("nan")])
    with pytest.raises(TypeError, match="floating"):
        Scores(torch.tensor([1, 2]), "toy", "hard")
    with pytest.raises(ValueError, match="labels"):
        select(scores([0.0, 1.0]), torch.tensor([0]), ipc=1)
