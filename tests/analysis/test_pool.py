"""The pool of subsets of DCS."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from synthesis_cases import NORMALIZATION

from pyddfast.analysis.pool import dcs_subsets, subset_images
from pyddfast.coresets import Embedding, Scores, graph_cut, select
from pyddfast.coresets.cal import cal_scores
from pyddfast.data import ImageDataset, ImageFolder

CLASSES, EACH = 3, 20
GEN = torch.Generator().manual_seed(0)
LABELS = torch.arange(CLASSES * EACH) % CLASSES
EL2N = Scores(torch.rand(len(LABELS), generator=GEN), "el2n", "hard")
EMBEDDING = Embedding(
    torch.randn(len(LABELS), CLASSES, generator=GEN), torch.randn(len(LABELS), 5, generator=GEN),
    LABELS,
)  # fmt: skip
IPCS, OFFSETS = (2, 6), (0.0, 0.5)


def pool(**options):
    return dcs_subsets(EL2N, EMBEDDING, ipcs=IPCS, offsets=OFFSETS, **options)


def test_families_sizes_and_doubles():
    made = pool()
    assert [one.name for one in made][:10] == [
        "el2n-ipc2", "el2n-ipc2-x2", "el2n-pareto0-ipc2", "el2n-pareto0-ipc2-x2",
        "el2n-pareto0.5-ipc2", "el2n-pareto0.5-ipc2-x2", "cal-ipc2", "cal-ipc2-x2",
        "graph-cut-ipc2", "graph-cut-ipc2-x2",
    ]  # fmt: skip
    assert len(made) == 2 * 5 * 2
    by_name = {one.name: one for one in made}
    expected = {
        "el2n-ipc6": select(EL2N, LABELS, strategy="bottomk", ipc=6),
        "el2n-pareto0-ipc6": select(EL2N, LABELS, ipc=6),
        "el2n-pareto0.5-ipc6": select(EL2N, LABELS, strategy="window", ipc=6, offset=0.5),
        "cal-ipc6": select(cal_scores(EMBEDDING), LABELS, ipc=6),
        # The beginning of a larger greedy pick is the smaller one.
        "graph-cut-ipc2": graph_cut(EMBEDDING, ipc=2),
    }
    for name, selection in expected.items():
        assert torch.equal(by_name[name].selection.indices, selection.indices), name
        double = by_name[f"{name}-x2"]
        assert torch.equal(double.selection.indices, selection.indices.repeat_interleave(2))
        assert (double.parent, double.ipc) == (name, by_name[name].ipc)


def test_the_worst_of_each_size_are_dropped_with_their_doubles():
    names = [one.name for one in pool() if one.parent == one.name]
    chance = 1 - 1 / CLASSES
    errors = dict.fromkeys(names, 0.3)
    errors["cal-ipc2"] = 0.3 + 0.5 * (chance - 0.3) + 1e-9  # just below half of the best
    errors["graph-cut-ipc2"] = 0.3 + 0.5 * (chance - 0.3) - 1e-9
    errors["el2n-ipc6"] = 0.1  # the best of six: 0.3 and 0.38 are above half of it, 0.4 is not
    errors["cal-ipc6"], errors["graph-cut-ipc6"] = 0.4, 0.38
    kept = pool(errors=errors)
    gone = {one["name"] for one in kept.dropped}
    assert gone == {"cal-ipc2", "cal-ipc6"}
    assert len(kept) == 20 - 4
    assert not any(one.parent in gone for one in kept)
    report = kept.record()
    json.dumps(report, allow_nan=False)
    assert report["dropped"][1] == {
        "name": "cal-ipc6",
        "ipc": 6,
        "error": 0.4,
        "largest_error": pytest.approx(chance - 0.5 * (chance - 0.1)),
    }
    assert "0.5 of the best" in report["rule"]
    assert len(pool().without_worst(errors, chance=chance, least=0.0)) == 20


def test_published_number_of_points():
    """Seven sizes of 13 subsets are 91; without twelve, doubled, the paper's 158."""
    count = 800
    labels = torch.arange(2 * count) % 2
    gen = torch.Generator().manual_seed(1)
    scores = Scores(torch.rand(len(labels), generator=gen), "el2n", "hard")
    features = torch.randn(len(labels), 4, generator=gen)
    made = dcs_subsets(scores, Embedding(features[:, :2], features, labels))
    assert len(made) == 2 * 91
    errors = dict.fromkeys((one.name for one in made), 0.1)
    errors |= dict.fromkeys([n for n in errors if n.startswith("el2n-pareto")][:24:2], 0.49)
    assert len(made.without_worst(errors, chance=0.5)) == 158


def test_images_of_a_subset_in_memory_and_of_a_folder(tmp_path):
    pixels = torch.randint(0, 256, (6, 3, 5, 5), generator=GEN, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    for position, label in enumerate(labels.tolist()):
        (tmp_path / "ab"[label]).mkdir(exist_ok=True)
        Image.fromarray(pixels[position].permute(1, 2, 0).numpy()).save(
            tmp_path / "ab"[label] / f"{position}.png"
        )
    folder = ImageFolder(tmp_path, image_size=5, normalization=NORMALIZATION)
    picks = torch.tensor([5, 0, 5])
    for data in (ImageDataset(pixels, labels, ("a", "b"), NORMALIZATION), folder):
        found = subset_images(data, picks)
        assert torch.equal(torch.stack([found[i] for i in range(3)]), pixels[picks])
        assert found.labels.tolist() == [1, 0, 1]
        assert found.num_classes == 2


def test_bad_input():
    short = Scores(torch.rand(4), "el2n", "hard")
    with pytest.raises(ValueError, match="el2n is of 4 images, the embedding of 60"):
        dcs_subsets(short, EMBEDDING)
    with pytest.raises(
        ValueError, match=r"ipcs must be different sizes of at least 1, got \[2, 2\]"
    ):
        dcs_subsets(EL2N, EMBEDDING, ipcs=(2, 2))
    with pytest.raises(ValueError, match="ipc = 21"):
        dcs_subsets(EL2N, EMBEDDING, ipcs=(21,))
    with pytest.raises(ValueError, match=r"errors lacks 10 subsets, first 'el2n-ipc2'"):
        pool(errors={})
    with pytest.raises(ValueError, match=r"errors must lie in \[0, 1\], got 90"):
        pool(errors={one.name: 90 for one in pool()})
    with pytest.raises(ValueError, match=r"least must lie in \[0, 1\], got 2"):
        pool(errors={}, least=2)
