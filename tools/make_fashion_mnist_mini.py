"""Draw the embedded subset of Fashion-MNIST from the full set.

The rule: image ``i`` of a split (0 = train, 1 = test) gets the 64-bit rank made of the first two
words, high word first, of Philox4x32-10 with key 1708_07747 (the number of the data set's paper,
arXiv:1708.07747) and counter (i, split, 0, 0).  Of each class the images with the smallest ranks
are kept, 600 for training and 200 for testing, and written in their order in the full set.  The
positions in the full set go to ``*-source-indices-idx1-int.gz``.

600 + 200 images a class take 3.5 MB compressed; the package may hold 4 MB.

Run:  python tools/make_fashion_mnist_mini.py [--source DIR] [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyddfast.data.fashion_mnist import CLASS_NAMES, DEBIAN_ROOT, MINI_ROOT, read_fashion_mnist
from pyddfast.data.idx import write_idx
from pyddfast.random import philox

KEY = 170807747
PER_CLASS = {"train": 600, "test": 200}
PREFIX = {"train": "train", "test": "t10k"}


def draw(labels: npt.NDArray[np.int64], split: str, per_class: int) -> npt.NDArray[np.int32]:
    """Return the kept positions, ascending.

    Args:
        labels: int64 (N,), the labels of the full split.
        split: ``"train"`` or ``"test"``.
        per_class: Images to keep of each class.

    Raises:
        ValueError: A class has fewer images than ``per_class``.
    """
    positions = np.arange(len(labels))
    high, low, _, _ = philox(KEY, (positions, ("train", "test").index(split), 0, 0))
    rank = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
    kept = []
    for label, name in enumerate(CLASS_NAMES):
        members = positions[labels == label]
        if len(members) < per_class:
            raise ValueError(f"class {name!r} has {len(members)} images, {per_class} are wanted")
        kept.append(members[np.argsort(rank[members], kind="stable")[:per_class]])
    return np.sort(np.concatenate(kept)).astype(np.int32)


def make(source: Path, out: Path, per_class: dict[str, int]) -> None:
    """Read the full set from ``source`` and write the subset's six files to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    for split, count in per_class.items():
        full = read_fashion_mnist(source, split, name="fashion-mnist")
        kept = draw(full.labels.numpy(), split, count)
        prefix = PREFIX[split]
        write_idx(out / f"{prefix}-images-idx3-ubyte.gz", full.images.numpy()[kept, 0])
        write_idx(
            out / f"{prefix}-labels-idx1-ubyte.gz", full.labels.numpy()[kept].astype(np.uint8)
        )
        write_idx(out / f"{prefix}-source-indices-idx1-int.gz", kept)


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description="Draw the embedded Fashion-MNIST subset.")
    parser.add_argument("--source", type=Path, default=DEBIAN_ROOT)
    parser.add_argument("--out", type=Path, default=MINI_ROOT)
    arguments = parser.parse_args()
    make(arguments.source, arguments.out, PER_CLASS)
    files = sorted(arguments.out.glob("*.gz"))
    for file in files:
        print(f"{file.stat().st_size:>9,} bytes  {file}")
    print(f"{sum(file.stat().st_size for file in files):>9,} bytes in all")


if __name__ == "__main__":
    main()
