"""Out of distribution: students on corrupted images, and whether objectives foresee it (DCS)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyddfast.analysis._inputs import Values
from pyddfast.analysis.corruptions import CORRUPTIONS, SEVERITIES
from pyddfast.analysis.dcs import DCS, Adjust, dcs, dcs_difference
from pyddfast.data import ImageDataset, ImageFolder, Normalization, ResidentDataset
from pyddfast.data.folder import Listing
from pyddfast.data.layouts import open_layout
from pyddfast.train import evaluate, progress

__all__ = ["CorruptionAccuracy", "OODScore", "corruption_accuracy", "corruption_sets", "ood_dcs"]


def corruption_sets(
    root: str | Path,
    class_names: Sequence[str],
    *,
    normalization: Normalization | None = None,
    image_size: int | None = None,
    resize: int | None = None,
) -> dict[tuple[str, int], ImageFolder]:
    """The data sets of a tree in ImageNet-C's layout, ``CORRUPTION/SEVERITY/CLASS/IMAGE``.

    A tree may hold some of the classes only (Mini-ImageNet-C, ImageNet-R's subset): labels are
    those of ``class_names``, so that a network of all classes is judged by all of its logits.

    Args:
        root: ImageNet-C, or what :func:`write_corruptions` wrote; other folders are left alone.
        class_names: All classes that the networks know, in label order; class folders are named
            by them, or by numbers, which are labels.
        normalization: Of the networks; None: ImageNet's, for RGB only.
        image_size: Side that images are resized and cut to; None: as they are.
        resize: Shorter side before the cut.

    Returns:
        By corruption and severity, in the published order, then others by name.

    Raises:
        FileNotFoundError: There is no such tree, or a class folder without images.
        ValueError: A class folder's name is no class.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    found = {}
    names = [entry.name for entry in root.iterdir() if entry.is_dir()]
    known = [name for name in CORRUPTIONS if name in names]
    for name in [*known, *sorted(set(names) - set(known))]:
        for level in SEVERITIES:
            folder = root / name / str(level)
            if not folder.is_dir():
                continue
            listed, _ = open_layout(folder, class_names=class_names, normalization=normalization)
            found[name, level] = ImageFolder(
                folder,
                image_size=image_size,
                resize=resize,
                normalization=listed.normalization,
                name=name,
                split=str(level),
                listing=Listing(tuple(class_names), listed.paths, listed.labels),
            )
    if not found:
        raise FileNotFoundError(
            f"{root} holds no CORRUPTION/SEVERITY folders such as {root / 'fog' / '3'}"
        )
    return found


@dataclass(frozen=True)
class CorruptionAccuracy:
    """A network's accuracy on corrupted images, in [0, 1].

    Attributes:
        accuracies: By corruption and severity.
    """

    accuracies: Mapping[tuple[str, int], float]

    @property
    def mean(self) -> float:
        """Over corruptions of their means over severities; 1 minus it is the OOD error of DCS."""
        means = list(self.by_corruption().values())
        return sum(means) / len(means)

    def by_corruption(self) -> dict[str, float]:
        """Means over severities."""
        return self._means(0)

    def by_severity(self) -> dict[int, float]:
        """Means over corruptions."""
        return self._means(1)

    def _means(self, part: int) -> dict[Any, float]:
        groups: dict[Hashable, list[float]] = {}
        for key, accuracy in self.accuracies.items():
            groups.setdefault(key[part], []).append(accuracy)
        return {key: sum(values) / len(values) for key, values in groups.items()}


def corruption_accuracy(
    models: Mapping[str, nn.Module],
    sets: Mapping[tuple[str, int], ImageDataset | ImageFolder],
    *,
    normalization: Normalization | None = None,
    size: int | None = None,
    batch_size: int = 256,
) -> dict[str, CorruptionAccuracy]:
    """Networks on every corrupted set.

    Args:
        models: By name; all on one device.
        sets: Of :func:`corruption_sets` or :func:`pyddfast.analysis.corruptions.corrupted`.
        normalization: Of the networks; None: each set's own.
        size: Side to resize to; None: as the images are.
        batch_size: Images at once.

    Raises:
        ValueError: There is no network or no set, or images of a set differ in size.
    """
    if not models or not sets:
        raise ValueError(f"networks and sets are needed, got {len(models)} and {len(sets)}")
    found: dict[str, dict[tuple[str, int], float]] = {name: {} for name in models}
    device = next(next(iter(models.values())).parameters(), torch.empty(0)).device
    with progress("corrupted sets", len(models) * len(sets)) as advance:
        for key, one in sets.items():
            # Decoded once for all networks, and ahead.
            held = ResidentDataset(one, device=device, on_overflow="stream")
            for name, model in models.items():
                found[name][key] = evaluate(
                    model, held, normalization=normalization, size=size, batch_size=batch_size
                )
                advance(1)
    return {name: CorruptionAccuracy(accuracies) for name, accuracies in found.items()}


@dataclass(frozen=True)
class OODScore:
    """DCS on errors in and out of distribution, of the same subsets.

    Attributes:
        id: On the ordinary test set.
        ood: On the other one.
        difference: ``ood.rho - id.rho``.
        ci: Its 95 % interval, from paired resamples.
    """

    id: DCS
    ood: DCS
    difference: float
    ci: tuple[float, float]


def ood_dcs(
    objective: Values,
    error: Values,
    ood_error: Values,
    size: Values | None = None,
    *,
    adjust: Adjust = "partial",
    groups: Sequence[Hashable] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> OODScore:
    """DCS beside itself: does the objective foresee OOD errors as it foresees ID errors?

    Args:
        objective: As of :func:`pyddfast.analysis.dcs`, as all arguments but ``ood_error``.
        error: On the ordinary test set.
        ood_error: (n,), on corrupted images, of the same students.
        size: As there.
        adjust: As there.
        groups: As there.
        n_boot: As there.
        seed: As there.

    Raises:
        ValueError: As there.
    """
    scores = [
        dcs(objective, values, size, adjust=adjust, groups=groups, n_boot=n_boot, seed=seed)
        for values in (error, ood_error)
    ]
    difference, interval = dcs_difference(scores[1], scores[0])
    return OODScore(scores[0], scores[1], difference, interval)
