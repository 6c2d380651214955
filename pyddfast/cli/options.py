"""Options that several commands share: data, network, teacher."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from pyddfast.cli.tables import note
from pyddfast.data import (
    ImageDataset,
    ImageFolder,
    KIPWhitening,
    ZCAWhitening,
    load,
    whiten,
)
from pyddfast.data.datasets import Whitened
from pyddfast.train import Teacher, teacher_recipe, train_teacher
from pyddfast.train.distributed import Ranks, join_ranks
from pyddfast.train.models import ModelSpec
from pyddfast.train.teacher import RECORD, read_record
from pyddfast.train.teacher_folder import load_teacher, teacher_folder

__all__ = [
    "DataOptions",
    "Flat",
    "ModelOptions",
    "TeacherOptions",
    "WhitenableData",
    "assignments",
    "load_teacher",
    "plain",
]


# The fields of a config dataclass become options of the command, without a prefix.
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class DataOptions:
    """Which data.

    Attributes:
        data: Name of the data set: fashion-mnist-mini (embedded), fashion-mnist, cifar10, cifar100,
            tiny-imagenet, imagenet, or folder (ROOT/train/CLASS/IMAGE and ROOT/test/CLASS/IMAGE).
        root: Its folder (of cifar10 and cifar100 also the archive), where it is not embedded.
    """

    data: str = "fashion-mnist-mini"
    root: Path | None = None

    @property
    def of_any_size(self) -> bool:
        """Whether its images are files, which are resized and cut when they are read."""
        return self.data in ("folder", "imagenet")

    def load(
        self, split: str, image_size: int | None = None, resize: int | None = None
    ) -> ImageDataset | ImageFolder:
        """The data set, lazily decoded where it is a folder of images."""
        return load(self.data, root=self.root, split=split, image_size=image_size, resize=resize)

    def resident(self, split: str, image_size: int | None = None) -> ImageDataset:
        """The data set in memory."""
        loaded = self.load(split, image_size)
        return loaded if isinstance(loaded, ImageDataset) else loaded.resident()


@dataclass(frozen=True)
class WhitenableData(DataOptions):
    """Which data, and whether its images are whitened.

    Attributes:
        zca: Whiten the images (ZCA, fitted to the train split) in place of normalising them, as
            trajectory matching was published with for CIFAR and Tiny-ImageNet.  The fit is kept in
            the user's cache folder.
        zca_kip: Whiten them as KIP does, for its sets.
    """

    zca: bool = False
    zca_kip: bool = False

    @property
    def whitened(self) -> Whitened:
        """How its images are whitened."""
        if self.zca and self.zca_kip:
            raise ValueError("give one of --zca and --zca-kip")
        return "kip" if self.zca_kip else self.zca

    def load(
        self, split: str, image_size: int | None = None, resize: int | None = None
    ) -> ImageDataset | ImageFolder:
        """The data set; in memory if it is whitened."""
        loaded = super().load(split, image_size, resize)
        if not self.whitened:
            return loaded
        held = loaded if isinstance(loaded, ImageDataset) else loaded.resident()
        train = held if split == "train" else self._training(image_size, resize)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyddfast"
        made = (
            KIPWhitening(cache=cache)
            if self.whitened == "kip"
            else ZCAWhitening(compute_inv=False, cache=cache)
        )
        return whiten(held, made.fit(train.images))

    def _training(self, image_size: int | None, resize: int | None) -> ImageDataset:
        loaded = super().load("train", image_size, resize)
        return loaded if isinstance(loaded, ImageDataset) else loaded.resident()


@dataclass(frozen=True)
class ModelOptions:
    """Which network.

    Attributes:
        model: Name of the network: convnet-d1 to convnet-d8, mlp, resnet18, resnet34, resnet50,
            resnet101, resnet152, mobilenet_v2, efficientnet_lite0.  A new teacher's is
            teacher-model.
        model_option: Its options, each NAME=VALUE, e.g. width=32 norm=batch.
    """

    model: str = "convnet-d3"
    model_option: tuple[str, ...] = ()

    def spec(self) -> ModelSpec:
        """Name and options as the training functions take them."""
        return self.model, assignments("model-option", self.model_option)


@dataclass(frozen=True)
class TeacherOptions:
    """The teacher: one that was trained before, or a new one.

    Attributes:
        teacher: Folder of a trained teacher (it holds teacher.safetensors and teacher.json), or of
            a run that trained one.
        teacher_model: Network to train as teacher where no folder is given.
        teacher_option: Its options, each NAME=VALUE.
        teacher_epochs: Epochs of that training.
    """

    teacher: Path | None = None
    teacher_model: str = "convnet-d3"
    teacher_option: tuple[str, ...] = ()
    teacher_epochs: int = 20

    def check(self) -> None:
        """Refuse a folder without a teacher before the work that comes first."""
        if self.teacher is not None:
            read_record(teacher_folder(self.teacher) / RECORD)
        else:
            teacher_recipe(self.teacher_epochs)

    def ranks(self) -> Ranks:
        """This process's place under torchrun, where a teacher cannot be trained on the way."""
        ranks = join_ranks()
        if ranks.world > 1 and self.teacher is None:
            raise ValueError("under torchrun give a trained teacher: --teacher")
        return ranks

    def get(
        self, data: DataOptions, side: int | None, out: Path, seed: int, device: str | None
    ) -> Teacher:
        """Load or train it on images of that side; a new one stays in ``out/teacher``."""
        if self.teacher is not None:
            return load_teacher(self.teacher, data.load("test", side), device)
        if not (out / "teacher" / RECORD).is_file():
            note(
                f"no --teacher is given: training {self.teacher_model} for {self.teacher_epochs} "
                f"epochs (--teacher-epochs); it stays in {out / 'teacher'}"
            )
        return train_teacher(
            data.resident("train", side),
            (self.teacher_model, assignments("teacher-option", self.teacher_option)),
            test_set=data.resident("test", side),
            epochs=self.teacher_epochs,
            seed=seed,
            device=device,
            out=out / "teacher",
        )


def assignments(option: str, words: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words; a value is a Python literal if it reads as one, else text."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"--{option} takes NAME=VALUE, got {word!r}")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    return values


def plain(options: Any) -> dict[str, Any]:
    """The fields of a config dataclass as JSON values."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(options).items()
    }
