"""Folders of any names and files: read, or refused with the reason; nothing else happens."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyddfast.data import IMAGENET_NORMALIZATION, DistilledSet, read_layout
from tests.data import pictures

SMALL, OTHER = (pictures.jpeg(pictures.photo(size, 9)) for size in (8, 9))
# Names of the layouts, near misses, other scripts' digits, and what is no label.
FOLDER = st.one_of(
    st.sampled_from(["new000", "new012", "00000", "00007", "0", "7", "n01518878", "n02102040"]),
    st.sampled_from(
        ["new12", "007", "N01518878", "n0151887", "cat", ".hidden", "-1", "new", "\u0663"]
    ),
    st.from_regex(r"(new)?[0-9]{1,14}", fullmatch=True),
    st.text("0123456789newN._- \u0663\u4e94", min_size=1, max_size=8),
)
NAME = st.one_of(
    st.sampled_from(["0.jpg", "1.JPEG", "class000_id000.jpg", "notes.txt", ".0.jpg", "10.png"]),
    st.text("0123456789ab._-", min_size=1, max_size=8).map(lambda stem: f"{stem}.jpg"),
)
CONTENT = st.one_of(st.just(SMALL), st.just(OTHER), st.binary(max_size=40), st.just(SMALL[:60]))
TREE = st.dictionaries(FOLDER, st.dictionaries(NAME, CONTENT, max_size=3), max_size=4)


def usable(name: str) -> bool:
    return name.strip(".") != "" and "/" not in name


@given(
    tree=TREE,
    layout=st.sampled_from(["auto", "sre2l", "rded", "d4m", "synset"]),
    num_classes=st.sampled_from([None, 1, 13]),
    names=st.sampled_from([(), ("cat", "dog"), ("7", "0")]),
)
@example(tree={"99999999999999": {"0.jpg": SMALL}}, layout="auto", num_classes=None, names=())
@example(tree={"new000": {"0.jpg": SMALL}}, layout="auto", num_classes=None, names=())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_folder_is_read_or_refused(
    tree: dict[str, dict[str, bytes]],
    layout: str,
    num_classes: int | None,
    names: tuple[str, ...],
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for folder, files in tree.items():
            if usable(folder):
                (root / folder).mkdir(exist_ok=True)
                for name, content in files.items():
                    if usable(name):
                        (root / folder / name).write_bytes(content)
        try:
            made = read_layout(
                root,
                layout,  # type: ignore[arg-type]
                num_classes=num_classes,
                class_names=names,
            )
        except (ValueError, FileNotFoundError) as error:
            if temporary not in str(error) and "class_names" not in str(error):
                raise
            return
        # What was read: every image of the folders that are not hidden, each a whole one.
        shown = [
            file
            for file in root.glob("*/*")
            if not file.name.startswith(".") and not file.parent.name.startswith(".")
            and file.suffix.lower() in (".jpg", ".jpeg", ".png")
        ]  # fmt: skip
        assert len(made) == len(shown) > 0
        assert 0 <= int(made.labels.min()) <= int(made.labels.max()) < made.num_classes


STORED = DistilledSet(
    torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), 2, IMAGENET_NORMALIZATION
)


@given(
    file=st.sampled_from(["set.json", "set.safetensors"]),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=9)), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_damaged_set_is_refused(file: str, edits: list[tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "set"
        STORED.save(root)
        whole = (root / file).read_bytes()
        damaged = bytearray(whole)
        for at, new in edits:
            damaged[at % len(whole) : at % len(whole) + len(new)] = new
        (root / file).write_bytes(bytes(damaged))
        if bytes(damaged) == whole:
            assert torch.equal(read_layout(root).images, STORED.images)
            return
        with pytest.raises(ValueError, match=r"set\.(json|safetensors)"):
            read_layout(root)
