"""Small image files of every kind that the readers meet."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth colour image, as a photo is: neighbouring pixels are alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def jpeg(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def jpeg_folder(root: Path, count: int = 7) -> Path:
    """Photos of different sizes, upright, lying and small, in two classes."""
    sizes = [(75, 100), (100, 75), (60, 60), (41, 97), (90, 31), (64, 80), (120, 90)]
    files = {
        f"{'ab'[i % 2]}/{i}.jpg": jpeg(photo(*sizes[i % len(sizes)], seed=i)) for i in range(count)
    }
    return write(root, files)


def unusual() -> dict[str, bytes]:
    """Files that decode, each in its own way."""
    image = photo(40, 52, seed=3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    deep = (np.arange(40 * 52).reshape(40, 52) * 31 % 65536).astype(np.uint16)
    return {
        "grey.jpg": jpeg(image.convert("L")),
        "cmyk.jpg": jpeg(image.convert("CMYK")),
        "progressive.jpg": jpeg(image, progressive=True),
        "rotated.jpg": jpeg(image, exif=exif),
        "behind.jpg": jpeg(image) + b"something behind the image",
        "alpha.png": png(image.convert("RGBA")),
        "palette.png": png(image.convert("P")),
        "sixteen.png": png(Image.fromarray(deep)),
        "plain.jpg": jpeg(image),
    }


def unreadable() -> dict[str, bytes]:
    """Files that have an image's name only."""
    content = jpeg(photo(40, 52, seed=4))
    return {
        "empty.jpg": b"",
        "text.jpg": b"no image",
        "cut.jpg": content[: len(content) // 2],
        # Sound to a look at its first and last bytes.
        "hollow.jpg": content[: len(content) // 2] + b"\xff\xd9",
        "cut.png": png(photo(40, 52))[:400],
    }
