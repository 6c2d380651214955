"""Reading a teacher that was trained before."""

from __future__ import annotations

from pathlib import Path

from pyddfast.data import ImageSource
from pyddfast.data.datasets import describe_whitening
from pyddfast.models import create
from pyddfast.train.distributed import resolve_device
from pyddfast.train.teacher import RECORD, WEIGHTS, Teacher, load_weights, read_record

__all__ = ["load_teacher", "teacher_folder"]


def load_teacher(folder: Path, data: ImageSource, device: str | None) -> Teacher:
    """Read a teacher that :func:`pyddfast.train.train_teacher` wrote.

    Args:
        folder: Its run folder, or the folder of a run that trained one (``folder/teacher``).
        data: A data set of the teacher's image size and classes.
        device: Where it goes; default CUDA where there is one.

    Raises:
        FileNotFoundError: There is no teacher.
        ValueError: A file is damaged, the model was not made by name, or it is one for other data.
    """
    folder = teacher_folder(folder)
    channels, height, width = data[0].shape
    target = resolve_device(device)
    record = read_record(folder / RECORD)
    learned = record.get("config", {}).get("dataset", {}).get("whitened", False)
    whitened = getattr(data, "whitened", False)
    if learned != whitened:
        raise ValueError(
            f"the images that the teacher in {folder} learned are {describe_whitening(learned)}, "
            f"these are {describe_whitening(whitened)} (--zca, --zca-kip)"
        )
    try:
        model = record["config"]["model"]
        network = create(
            model["name"],
            num_classes=data.num_classes,
            in_channels=channels,
            image_size=(height, width),
            **model["options"],
        )
        load_weights(network, folder / WEIGHTS, record)
    except Exception as error:
        # A missing key, an unknown option, a network of another size: each its own type.
        raise ValueError(
            f"{folder} holds no teacher for {data.num_classes} classes of "
            f"{channels} x {height} x {width} images: {error}"
        ) from error
    return Teacher(network.to(target).eval(), record)


def teacher_folder(folder: Path) -> Path:
    """The folder itself, or the one of the teacher in it.

    Raises:
        FileNotFoundError: It holds no teacher.
    """
    if (folder / "teacher" / RECORD).is_file():
        folder = folder / "teacher"
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; a teacher's folder needs it")
    return folder
