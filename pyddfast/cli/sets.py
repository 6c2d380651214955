"""Reading the set that students are trained on, and the images that measure them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pyddfast.coresets.selection import check_ipc
from pyddfast.data import DistilledSet, ImageDataset, ImageFolder, ResidentDataset, export_png
from pyddfast.data.digest import describe_data
from pyddfast.train import RunFolder, progress
from pyddfast.train.distributed import Ranks
from pyddfast.train.student import SMALL_SIDE

__all__ = ["SetOptions", "class_progress", "load_set", "make_set", "set_folder", "test_view"]


@dataclass(frozen=True)
class SetOptions:
    """How a set is read.

    Attributes:
        layout: Names of the class folders of a set that an official code wrote: sre2l (new000),
            rded (00000), d4m (0), synset (n01440764); auto tells it by them.  Numbers are labels,
            names are looked up among the test classes.  A set of this library knows its own.
        factor: Patches an axis of each of its images (RDED: 2 at 224 pixels), for PatchShuffle.
        limit_bytes: Most that the images may take on the device; default three quarters of what is
            free there.
        on_overflow: What more than that is: error, or stream, with the same results.
        test_resize: Shorter side that a folder's test images are resized to before the centre is
            cut; default 8/7 of the side (256 for 224), up to 64 pixels the side.
    """

    layout: Literal["auto", "sre2l", "rded", "d4m", "synset"] = "auto"
    factor: int = 1
    limit_bytes: int | None = None
    on_overflow: Literal["error", "stream"] = "error"
    test_resize: int | None = None

    def open(
        self, folder: Path, task: ImageDataset | ImageFolder, device: torch.device, *, tell: bool
    ) -> ResidentDataset:
        """The set of a folder, or of the run in it, for the classes of ``task``.

        Args:
            folder: Its folder.
            task: The test data, whose classes are the task's.
            device: Where the images go.
            tell: Say on stderr how an official code's folders are understood.
        """
        path = set_folder(folder)
        known = (path / "set.json").is_file()
        if known and self.factor != 1:
            raise ValueError(f"--factor is for official codes' folders; {path / 'set.json'} has it")
        made = ResidentDataset.open(
            path,
            self.layout,
            num_classes=None if known else task.num_classes,
            class_names=() if known else task.class_names,
            normalization=None if known else task.normalization,
            factor=self.factor,
            device=device,
            limit_bytes=self.limit_bytes,
            on_overflow=self.on_overflow,
        )
        if tell and not known:
            self._say_order(made, path)
        return made

    def _say_order(self, made: ResidentDataset, path: Path) -> None:
        """What labels mean is told: a wrong order trains without complaint, to chance."""
        source = made.source
        assert isinstance(source, ImageFolder)
        first = source.paths[0].parent.name
        name = made.class_names[int(made.labels[0])]
        print(
            f"{path}: {len(made):,} images, layout {source.name}; folder {first} is class "
            f"{int(made.labels[0])}, {name}",
            file=sys.stderr,
        )
        if missing := int((made.class_counts == 0).sum()):
            print(
                f"warning: {missing} of {made.num_classes} classes have no image in the set",
                file=sys.stderr,
            )


def set_folder(folder: Path) -> Path:
    """The folder itself, or the set of the run in it."""
    return folder / "set" if (folder / "set").is_dir() else folder


def test_view(side: int, resize: int | None) -> int:
    """Shorter side of a test image before the centre of ``side`` is cut.

    8 to 7, as 256 to 224 in ImageNet's usual test view (RDED, ``validation/main.py``, for any
    side); the sides of the small sets, up to 64 pixels, are not cut.
    """
    if resize is not None:
        return resize
    return side if side <= SMALL_SIDE else side // 7 * 8


def load_set(folder: Path) -> DistilledSet:
    """The set of a folder, or of the run in it."""
    if (folder / "config.json").is_file() and not (folder / "set").is_dir():
        raise FileNotFoundError(
            f"{folder} is a run without a set: it was stopped, and its command with --resume goes "
            "on, or it is a run that makes none"
        )
    return DistilledSet.load(folder / "set" if (folder / "set").is_dir() else folder)


def make_set(
    out: Path,
    facts: dict[str, Any],
    source: ImageDataset | ImageFolder,
    ipc: int,
    make: Callable[[], DistilledSet],
    *,
    resume: bool,
    png: bool,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> None:
    """Make a set in a run folder, unless the resumed run has it already.

    ``make`` runs in every process, the rest in the first one.
    """
    if ipc < 1:
        raise ValueError(f"--ipc must be at least 1, got {ipc}")
    check_ipc(ipc, torch.bincount(source.labels, minlength=source.num_classes).tolist())
    folder = out / "set"
    config = {**facts, "dataset": describe_data(source)}
    with RunFolder(out, config, resume=resume) if ranks.rank == 0 else nullcontext() as run:
        ranks.wait()
        # A set's folder appears whole, so one that is there is finished.
        if not folder.exists():
            began = time.perf_counter()
            made = make()
            if run is not None:
                seconds = time.perf_counter() - began
                run.log({"stage": "set", "seconds": round(seconds, 3), "images": len(made)})
                made.save(folder)
        ranks.wait()
        if run is None:
            return
        made = DistilledSet.load(folder)
        if png:
            _export(made, out / "png")
    size = "x".join(str(side) for side in made.images.shape[-2:])
    print(f"{len(made):,} images of {size}, {made.ipc} for each of {made.num_classes} classes")
    print(f"set: {folder}")


def _export(made: DistilledSet, folder: Path) -> None:
    """Write the PNG files, unless they are there already."""
    if not folder.exists():
        export_png(made, folder)
    # Whole when it appeared; somebody may have removed some since.
    found = sum(1 for _ in folder.glob("*/*.png"))
    if found < len(made):
        raise FileExistsError(
            f"{folder} has {found} of {len(made)} images; remove it, and --resume writes all again"
        )


@contextmanager
def class_progress(name: str, classes: int, ranks: Ranks) -> Iterator[Callable[[int, int], None]]:
    """Progress over the classes of this process, shown by the first one."""
    share = classes * (ranks.rank + 1) // ranks.world - classes * ranks.rank // ranks.world
    with progress(name, share, enabled=ranks.rank == 0) as advance:
        shown = 0

        def show(done: int, _: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        yield show
