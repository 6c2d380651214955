"""select(): against Python's sort, its ties, budgets and errors; the set it makes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyddfast.coresets import Scores, beta_sampling, mean_scores, random_scores, select
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


@pytest.mark.parametrize(
    ("count", "ipc", "offset", "start"),
    [
        # Binary fractions: the floats' products are 902.99..., 28.99... and 57.99...
        (1300, 10, 0.7, 903),
        (110, 10, 0.29, 29),
        (110, 10, 0.58, 58),
        # Rounded down where the share is not whole.
        (14, 10, 0.7, 2),
    ],
)
def test_offsets_are_the_decimals_that_were_written(
    count: int, ipc: int, offset: float, start: int
) -> None:
    picked = select(
        scores(torch.arange(count).flip(0).double()), torch.zeros(count, dtype=torch.int64),
        strategy="window", ipc=ipc, offset=offset,
    )  # fmt: skip
    assert picked.indices.tolist() == list(range(start, start + ipc))


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
    with pytest.raises(TypeError, match=r"scores must be Scores, got Tensor"):
        select(torch.zeros(2), torch.tensor([0, 0]), ipc=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list"):
        select(scores([0.0, 1.0]), [0, 0], ipc=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ipc must be an int, got 1\.5"):
        select(scores([0.0, 1.0]), torch.tensor([0, 0]), ipc=1.5)  # type: ignore[arg-type]


def test_stratified_takes_the_same_of_every_bin_where_it_has_them() -> None:
    # Five bins of width 2 over [0, 10] with 1, 2, 3, 4 and 10 scores.
    sizes = [1, 2, 3, 4, 10]
    values = torch.cat([torch.linspace(2 * b, 2 * b + 1.9, n) for b, n in enumerate(sizes)])
    values[-1] = 10
    labels = torch.zeros(20, dtype=torch.int64)

    def taken(budget: int, **options: object) -> list[int]:
        picked = select(
            scores(values), labels, strategy="stratified", bins=5, ipc=budget, **options
        )  # type: ignore[arg-type]
        assert len(set(picked.indices.tolist())) == budget
        assert picked.order == "none"
        bins = (values[picked.indices] / 2).long().clamp(max=4)
        return torch.bincount(bins, minlength=5).tolist()

    # 12: the emptiest bin has 1 of its 2; then 2 of 2, 3 of 3, 3 of 4, and what is left.
    assert taken(12) == [1, 2, 3, 3, 3]
    assert taken(5) == [1, 1, 1, 1, 1]
    assert taken(20) == sizes
    assert taken(0) == [0] * 5
    # With the emptiest bin last, too, the others share what it lacks.
    back = sizes[::-1]
    other = torch.cat([torch.linspace(2 * b, 2 * b + 1.9, n) for b, n in enumerate(back)])
    other[-1] = 10
    picked = select(scores(other), labels, strategy="stratified", bins=5, ipc=12)
    bins = (other[picked.indices] / 2).long().clamp(max=4)
    assert torch.bincount(bins, minlength=5).tolist() == [3, 3, 3, 2, 1]
    # Which of a bin is a keyed draw.
    first = [
        select(scores(values), labels, strategy="stratified", bins=5, ipc=5, seed=s) for s in (0, 1)
    ]
    assert first[0].indices.tolist() != first[1].indices.tolist()
    flat = select(scores(torch.ones(20)), labels, strategy="stratified", ipc=4)
    assert len(set(flat.indices.tolist())) == 4
    with pytest.raises(ValueError, match="finite"):
        select(scores([1.0, torch.inf]), labels[:2], strategy="stratified", ipc=1)
    with pytest.raises(ValueError, match="bins"):
        select(scores(values), labels, strategy="stratified", bins=0, ipc=1)


def test_beta_sampling_draws_by_the_weights_of_its_formula() -> None:
    p = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    dual = Scores(torch.tensor([0.2, 0.5, 0.4, 0.1, 0.0], dtype=torch.float64), "dual", "hard")
    # The anchor is the mean of all five (fewer than ten), r = 0.5, c_d = 1.
    b = 15 * (1 - 0.5) * (1 - 0.5)
    for total in (15, 16):
        density = torch.distributions.Beta(total - b, b, validate_args=False)
        weight = density.log_prob(p).exp() * dual.values
        want = weight / weight.sum()
        draws = torch.zeros(5)
        for seed in range(4000):
            keys = beta_sampling(dual, 1 - p, pruned=0.5, c_d=1, c_total=total, seed=seed)
            draws[keys.values.argmax()] += 1 / 4000
        # Three standard errors of 4000 draws are 0.024 at most.
        assert (draws - want).abs().max() < 0.024
        assert keys.values[4] == -torch.inf
        assert (keys.meta["a"], keys.meta["b"]) == (total - b, pytest.approx(b))


def test_beta_samplings_anchor_is_the_mean_of_the_ten_highest_scores() -> None:
    rest = torch.linspace(0.01, 0.99, 40, dtype=torch.float64)
    dual = Scores(rest.flip(0) + 1, "dual", "hard")  # the ten easiest are the highest
    keys = beta_sampling(dual, rest, pruned=0.5)
    want = 15 * float(rest[:10].mean()) * (1 - 0.5**4)
    assert keys.meta["b"] == pytest.approx(want)
    assert keys.meta["a"] == pytest.approx(15 - want)


def test_beta_sampling_does_not_take_samples_for_being_certain() -> None:
    # At 97 % pruned b < 1: the density is infinite at p = 1, where DUAL goes to 0 faster.
    rest = torch.cat((torch.full((300,), 1e-26), torch.linspace(0.01, 0.4, 700))).double()
    dual = Scores(0.4 * rest * rest * (1 - rest), "dual", "hard")
    keys = beta_sampling(dual, rest, pruned=0.97)
    assert keys.meta["b"] < 1
    picked = select(keys, torch.zeros(1000, dtype=torch.int64), ipc=30)
    assert int(picked.indices.min()) >= 300
    # Three log weights apart from Beta's normalisation, and Gumbel draws that do not depend on p.
    one, two, three = (
        beta_sampling(
            Scores(torch.tensor([score, 0.1], dtype=torch.float64), "dual", "hard"),
            torch.tensor([rest, 0.5], dtype=torch.float64),
            pruned=0.97,
        ).values
        for score, rest in ((1e-52, 1e-26), (1e-50, 1e-26), (1e-52, 1e-28))
    )
    assert float(two[0] - one[0]) == pytest.approx(math.log(100), rel=1e-9)
    shapes = [15 * (r + 0.5) / 2 * (1 - 0.97**4) for r in (1e-26, 1e-28)]
    moved = (shapes[1] - 1) * math.log(1e-28) - (shapes[0] - 1) * math.log(1e-26)
    assert float(three[0] - one[0]) == pytest.approx(moved, rel=1e-6)


def test_beta_samplings_weight_is_0_where_nothing_moved() -> None:
    # p = 0 where a < 1, p = 1 where b < 1, and a score of 0 beside both: infinities and NaN.
    for rest, pruned in (([1.0, 0.9], 0.0), ([0.0, 0.02], 0.97), ([1e-20, 0.02], 0.97)):
        dual = Scores(torch.tensor([0.0, 0.1], dtype=torch.float64), "dual", "hard")
        keys = beta_sampling(dual, torch.tensor(rest).double(), pruned=pruned)
        assert keys.values[0] == -torch.inf
        assert keys.values[1].isfinite()
    certain = Scores(torch.tensor([0.2, 0.1], dtype=torch.float64), "dual", "hard")
    assert beta_sampling(certain, torch.tensor([0.0, 0.02]), pruned=0.97).values[0] == -torch.inf


def test_beta_sampling_takes_easier_samples_the_more_is_pruned() -> None:
    p = torch.linspace(0.01, 0.99, 999, dtype=torch.float64)
    dual = Scores(p * (1 - p), "dual", "hard")
    labels = torch.zeros(999, dtype=torch.int64)
    means = []
    for pruned in (0.3, 0.9):
        keys = beta_sampling(dual, 1 - p, pruned=pruned)
        means.append(float(p[select(keys, labels, fraction=1 - pruned).indices].mean()))
    assert means[0] + 0.1 < means[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruned": 1.5}, "pruned"),
        ({"one_minus_p": torch.tensor([0.5, 1.5])}, "one_minus_p must lie"),
        ({"one_minus_p": torch.tensor([0.5])}, "one_minus_p has shape"),
        ({"c_total": 14}, "c_total"),
        ({"scores": scores([0.5, -0.1])}, "must not be negative"),
    ],
)
def test_beta_sampling_refuses(change: dict[str, object], message: str) -> None:
    given = {"scores": scores([0.5, 0.1]), "one_minus_p": torch.tensor([0.5, 0.5]), "pruned": 0.5}
    with pytest.raises(ValueError, match=message):
        beta_sampling(**{**given, **change})  # type: ignore[arg-type]


def test_mean_of_scores() -> None:
    mean = mean_scores([scores([1.0, 2.0]), scores([3.0, 8.0])], meta={"seeds": 2})
    assert mean.values.tolist() == [2, 5]
    assert mean.meta["each"] == [{"seed": 4}] * 2
    assert (mean.name, mean.high_means, mean.meta["seeds"]) == ("toy", "hard", 2)
    with pytest.raises(ValueError, match="at least one"):
        mean_scores([])
    with pytest.raises(ValueError, match="toy of 1 samples, toy of 2"):
        mean_scores([scores([1.0]), scores([1.0, 2.0])])
