"""FKD soft labels: ``relabel/utils_fkd.py`` of VILA-Lab/SRe2L (8d00cba), without its PyTorch patch.

DWA, D4M, FADRM, CV-DD and LPLD have the same file.  Two lines change in a training script: this
import behind its own, and ``collate_fn=fkd_collate`` in the loader.  The transforms stay the
script's: :class:`ImageFolder_FKD_MIX` hands them each image's crop and flip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pyddfast._extras import require
from pyddfast.data import LabelBatch, SoftLabels, read_fkd
from pyddfast.data.folder import scan
from pyddfast.data.softlabels_fkd import SAMPLER_SEED, FKDFolder, sampler_orders

__all__ = [
    "ImageFolder_FKD_MIX",
    "cutmix",
    "fkd_collate",
    "get_FKD_info",
    "get_img2batch_idx_list",
    "mix_aug",
    "mixup",
    "rand_bbox",
]

_MODES = ("fkd_save", "fkd_load")
Mixed = tuple[Tensor, Tensor | None, float | None, list[int] | None]


class _Arguments(Protocol):
    """The script's arguments; ``cutmix`` and ``mixup`` are Beta parameters."""

    mode: str
    mix_type: str | None
    cutmix: float
    mixup: float


class _Batch(list[Any]):
    """Samples of one batch with what was stored for all of it."""

    def __init__(self, samples: list[Any], stored: list[Any]) -> None:
        super().__init__(samples)
        self.stored = stored


def get_FKD_info(fkd_path: str | Path) -> tuple[int, int, int]:  # noqa: N802
    """Epochs, batch size and images of official files or of a store; prints them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged.
    """
    labels = _open(fkd_path)
    epochs, batch_size, num_img = _epochs(labels), _sizes(labels)[0], sum(_sizes(labels))
    print("======= FKD: dataset info ======")
    print(f"path: {fkd_path}")
    print(f"num img: {num_img}")
    print(f"batch size: {batch_size}")
    print(f"max epoch: {epochs}")
    print("================================")
    return epochs, batch_size, num_img


def get_img2batch_idx_list(
    num_img: int = 50000, batch_size: int = 1024, seed: int = SAMPLER_SEED, epochs: int = 300
) -> list[dict[int, int]]:
    """For each epoch: first image of a batch to the batch's number, by torch's sampler."""
    orders = islice(sampler_orders(num_img, seed), epochs)
    return [{first: batch for batch, first in enumerate(order[::batch_size])} for order in orders]


class ImageFolder_FKD_MIX(Dataset[Any]):  # noqa: N801
    """Images of class folders with the views and labels that were stored for them.

    Args:
        fkd_path: official files (``epoch_<e>/batch_<b>.tar``), or a store of
            :class:`pyddfast.data.SoftLabels`, which is one read a batch in few files.
        mode: ``"fkd_save"``: labels are being made; ``"fkd_load"``: they are replayed.
        args_epoch: epochs of the training; at most those stored.
        args_bs: batch size of the training; that of the stored batches.
        root: holds one folder a class; classes and files in text order, as torchvision has them.
        transform: called as ``transform(image, coords, flip)``; returns ``(image, flip, coords)``.
        target_transform: of the class number.
        loader: from a path to an image; None: Pillow, RGB.

    Attributes:
        samples: (path, class number) of every image.
        classes: folder names.
        class_to_idx: folder name to class number.

    Raises:
        FileNotFoundError: images or labels are missing.
        ValueError: an argument does not fit the stored labels, or there are not as many images.
    """

    def __init__(
        self,
        fkd_path: str | Path,
        mode: str,
        args_epoch: int | None = None,
        args_bs: int | None = None,
        *,
        root: str | Path,
        transform: Callable[..., Any],
        target_transform: Callable[[int], Any] | None = None,
        loader: Callable[[str], Any] | None = None,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be 'fkd_save' or 'fkd_load', got {mode!r}")
        self.fkd_path, self.mode, self.root = fkd_path, mode, root
        self.transform, self.target_transform = transform, target_transform
        self.loader = _load_rgb if loader is None else loader
        listing = scan(Path(root))
        self.classes = list(listing.class_names)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        paths = [str(path) for path in listing.paths]
        self.samples = list(zip(paths, listing.labels.tolist(), strict=True))
        self.imgs, self.targets = self.samples, listing.labels.tolist()
        self.epoch: int | None = None
        self._ready: LabelBatch | None = None
        if mode == "fkd_save":
            return
        max_epoch, batch_size, num_img = get_FKD_info(fkd_path)
        if args_epoch is None or args_epoch > max_epoch:
            raise ValueError(f"`--epochs` is {args_epoch}, {fkd_path} has labels for {max_epoch}")
        if args_bs != batch_size:
            raise ValueError(
                f"`--batch-size` is {args_bs}, {fkd_path} was made with {batch_size}; "
                "`--gradient-accumulation-steps` divides a batch for the model"
            )
        if num_img != len(self.samples):
            raise ValueError(
                f"{fkd_path} has labels for {num_img} images, {root} has {len(self.samples)}"
            )
        self._labels = _open(fkd_path)
        if isinstance(self._labels, SoftLabels):
            orders = (self._labels.order(epoch).tolist() for epoch in range(max_epoch))
            self.img2batch_idx_list = [
                {first: batch for batch, first in enumerate(order[::batch_size])}
                for order in orders
            ]
        else:
            self.img2batch_idx_list = get_img2batch_idx_list(
                num_img=num_img, batch_size=batch_size, epochs=max_epoch
            )

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the stored epoch that is replayed; before the loader is iterated.

        Raises:
            ValueError: that epoch of the store is damaged.
        """
        if self.mode == "fkd_load" and isinstance(self._labels, SoftLabels):
            self._labels.verify(epoch)
        self.epoch = epoch

    def load_batch_config(self, img_idx: int) -> list[Any]:
        """What was stored for the batch that begins with an image, its views aside.

        A PyTorch that was patched as SRe2L's ``validate/README.md`` says calls this before it reads
        the batch; the stock one does not need it.
        """
        self._ready = self._read(img_idx)
        return _stored(self._ready)

    def __getitem__(self, index: int) -> Any:
        """One sample for new labels: (image, class number, flip, coords).

        Raises:
            ValueError: in mode ``"fkd_load"``, where views belong to whole batches.
        """
        if self.mode == "fkd_load":
            raise ValueError(
                "stored views are those of whole batches: read them by a DataLoader with "
                "collate_fn=fkd_collate"
            )
        return self._sample(index, None, None)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A whole batch, which the stock ``DataLoader`` asks for at once."""
        if self.mode == "fkd_save":
            return [self[index] for index in indices]
        prepared, self._ready = self._ready, None
        labels = self._read(indices[0]) if prepared is None else prepared
        if len(indices) != len(labels):
            raise ValueError(
                f"the loader asks for {len(indices)} images, the stored batch has {len(labels)}: "
                "its batch size or drop_last differs"
            )
        if labels.index is not None and labels.index.tolist() != list(indices):
            raise ValueError("the loader's images are not those of the stored batch, in its order")
        samples = [
            self._sample(index, coords, flip)
            for index, coords, flip in zip(indices, labels.coords, labels.flip, strict=True)
        ]
        # The patched loader collates samples alone and adds the rest itself.
        return samples if prepared is not None else _Batch(samples, _stored(labels))

    def _read(self, img_idx: int) -> LabelBatch:
        if self.epoch is None:
            raise ValueError("call set_epoch(epoch) before the loader is iterated")
        position = self.img2batch_idx_list[self.epoch].get(img_idx)
        if position is None:
            raise ValueError(
                f"image {img_idx} begins no stored batch of epoch {self.epoch}: the loader's order "
                f"is not that of the labels (sampler seed {SAMPLER_SEED}, one sampler for all "
                "epochs from 0 on)"
            )
        if isinstance(self._labels, SoftLabels):
            return self._labels.batch(self.epoch, position)
        return read_fkd(Path(self.fkd_path, f"epoch_{self.epoch}", f"batch_{position}.tar"))

    def _sample(self, index: int, coords: Tensor | None, flip: Tensor | None) -> Any:
        path, target = self.samples[index]
        image, flip_status, coords_status = self.transform(self.loader(path), coords, flip)
        label = target if self.target_transform is None else self.target_transform(target)
        return image, label, flip_status, coords_status


def fkd_collate(batch: list[Any]) -> Any:
    """``collate_fn`` of a loader over :class:`ImageFolder_FKD_MIX`, in both modes.

    Returns:
        In mode ``"fkd_load"`` the patched loader's ``([images, target, flip, coords], mix_index,
        mix_lam, mix_bbox, soft_label)``; else what torch's default makes.
    """
    samples = default_collate(list(batch))
    return (samples, *batch.stored) if isinstance(batch, _Batch) else samples


def rand_bbox(size: Sequence[int], lam: float) -> tuple[int, int, int, int]:
    """CutMix's box in images of ``size`` (B, C, H, W), from NumPy's global generator.

    Returns:
        Begin and end along H and W, as ``(h0, w0, h1, w1)``; the share is ``1 - lam`` before the
        box is clipped at the border.
    """
    cut = np.sqrt(1.0 - lam)
    ends = []
    for side in (size[2], size[3]):
        half = int(side * cut) // 2
        centre = int(np.random.randint(side))  # noqa: NPY002 the official stream
        ends.append((max(centre - half, 0), min(centre + half, side)))
    (h0, h1), (w0, w1) = ends
    return h0, w0, h1, w1


def cutmix(
    images: Tensor,
    args: _Arguments,
    rand_index: Tensor | None = None,
    lam: float | None = None,
    bbox: Sequence[int] | None = None,
) -> Mixed:
    """CutMix with one box and order for the batch, in place.

    Args:
        images: (B, C, H, W), changed.
        args: ``mode`` and, to draw anew, ``cutmix``.
        rand_index: stored order; with ``"fkd_save"`` drawn from torch's global generator.
        lam: stored weight; likewise drawn from NumPy's.
        bbox: stored box; likewise.

    Returns:
        ``images``, the order on the CPU, the weight, and the box as plain ints.

    Raises:
        ValueError: the mode is unknown, or something stored is missing.
    """
    if args.mode == "fkd_save":
        rand_index = torch.randperm(len(images))
        lam = np.random.beta(args.cutmix, args.cutmix)  # noqa: NPY002 the official stream
        bbox = rand_bbox(images.shape, lam)
    order = _check(args, rand_index, lam)
    if bbox is None:
        raise ValueError("mode 'fkd_load' needs the stored bbox")
    h0, w0, h1, w1 = (int(v) for v in bbox)
    images[:, :, h0:h1, w0:w1] = images[order.to(images.device), :, h0:h1, w0:w1]
    return images, order.cpu(), lam, [h0, w0, h1, w1]


def mixup(
    images: Tensor, args: _Arguments, rand_index: Tensor | None = None, lam: float | None = None
) -> Mixed:
    """MixUp with one weight and order for the batch; arguments and errors as :func:`cutmix`."""
    if args.mode == "fkd_save":
        rand_index = torch.randperm(len(images))
        lam = np.random.beta(args.mixup, args.mixup)  # noqa: NPY002 the official stream
    order = _check(args, rand_index, lam)
    assert lam is not None  # _check
    mixed = lam * images + (1 - lam) * images[order.to(images.device)]
    return mixed, order.cpu(), lam, None


def mix_aug(
    images: Tensor,
    args: _Arguments,
    rand_index: Tensor | None = None,
    lam: float | None = None,
    bbox: Sequence[int] | None = None,
) -> Mixed:
    """The mixing that ``args.mix_type`` names: ``"mixup"``, ``"cutmix"``, else none."""
    if args.mix_type == "mixup":
        return mixup(images, args, rand_index, lam)
    if args.mix_type == "cutmix":
        return cutmix(images, args, rand_index, lam, bbox)
    return images, None, None, None


def _check(args: _Arguments, rand_index: Tensor | None, lam: float | None) -> Tensor:
    if args.mode not in _MODES:
        raise ValueError(f"mode must be 'fkd_save' or 'fkd_load', got {args.mode!r}")
    if rand_index is None or lam is None:
        raise ValueError("mode 'fkd_load' needs the stored rand_index and lam")
    return rand_index


def _open(fkd_path: str | Path) -> SoftLabels | FKDFolder:
    path = Path(fkd_path)
    if (path / "epoch_0").is_dir():
        return FKDFolder.scan(path)
    return SoftLabels(path)


def _epochs(labels: SoftLabels | FKDFolder) -> int:
    return labels.info.epochs if isinstance(labels, SoftLabels) else labels.epochs


def _sizes(labels: SoftLabels | FKDFolder) -> tuple[int, ...]:
    return labels.info.batch_sizes if isinstance(labels, SoftLabels) else labels.batch_sizes


def _stored(labels: LabelBatch) -> list[Any]:
    box = None if labels.mix_bbox is None else list(labels.mix_bbox)
    return [labels.mix_index, labels.mix_lam, box, labels.logits]


def _load_rgb(path: str) -> Any:
    image_module = require("PIL.Image", "methods")
    try:
        with image_module.open(path) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:
        # Decoders fail in many types; what the user needs is the file's name.
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
