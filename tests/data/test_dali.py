"""The DALI pipeline on the CPU, held to the Pillow one."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from pyddfast.data import (
    IMAGENET_NORMALIZATION,
    ImageFolder,
    Normalization,
    Request,
    draw_request,
    image_sizes,
    open_pipeline,
)
from pyddfast.data.dali import DALIPipeline
from pyddfast.data.folder import Listing
from tests.data import pictures

pytestmark = pytest.mark.usefixtures("one_thread")

# In units of 1/255.  Decoded pixels are equal; each resize rounds to bytes once or twice, or (our
# training views) not at all, and is within 1.01 of the exact one.
LARGEST, MEAN = 2.02, 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ImageFolder(pictures.jpeg_folder(tmp_path_factory.mktemp("photos")))


def opened(folder, backend, **options):
    return open_pipeline(folder, backend=backend, **{"size": 32, "workers": 2, **options})


def assert_near(found, expected, normalization=IMAGENET_NORMALIZATION):
    std = torch.tensor(normalization.std)[:, None, None]
    difference = ((found - expected) * std * 255).abs()
    assert found.shape == expected.shape
    assert float(difference.max()) <= LARGEST
    assert float(difference.mean()) <= MEAN


def test_training_views_agree_with_pillow(folder):
    sizes = image_sizes(folder)
    ids = torch.arange(7).repeat(4)
    visits = torch.arange(4).repeat_interleave(7)
    request = draw_request(1, ids, visits, sizes)
    (dali,), (pil,) = (opened(folder, backend)([request]) for backend in ("dali", "pil"))
    assert_near(dali.images, pil.images)
    assert torch.equal(dali.ids, ids)
    assert torch.equal(dali.labels, folder.labels[ids])


@pytest.mark.parametrize("resize", [32, 47])  # no cut along the shorter side; a cut of 7 and 8
def test_evaluation_views_agree_with_pillow(folder, resize):
    request = Request(torch.arange(7))
    dali, pil = (
        next(opened(folder, backend, resize=resize)([request])) for backend in ("dali", "pil")
    )
    assert_near(dali.images, pil.images)


def test_candidates_equal_pillows(folder):
    request = Request(torch.tensor([2, 4]), torch.tensor([[[0, 0, 9, 9], [5, 7, 20, 12]]] * 2))
    dali, pil = (
        next(opened(folder, backend, size=8, pad_to=16)([request])) for backend in ("dali", "pil")
    )
    assert torch.equal(dali.images, pil.images)  # one decoder, then one op


def test_real_photos():
    spec = find_spec("foolbox")  # located, not imported
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent / "data"
    paths = tuple(sorted(root.glob("imagenet_*.jpg")))
    assert len(paths) == 20
    listing = Listing(("photo",), paths, torch.zeros(20, dtype=torch.int64))
    folder = ImageFolder(root, listing=listing)
    sizes = image_sizes(folder)
    ids = torch.arange(20)
    whole = Request(ids, torch.cat([torch.zeros_like(sizes), sizes], dim=1)[:, None])
    dali, pil = (next(opened(folder, backend)([whole])) for backend in ("dali", "pil"))
    assert torch.equal(dali.images, pil.images)
    for request in (draw_request(0, ids, ids, sizes), Request(ids)):
        dali, pil = (
            next(opened(folder, backend, size=112, resize=128)([request]))
            for backend in ("dali", "pil")
        )
        assert_near(dali.images, pil.images)


def test_views_do_not_depend_on_the_batch_or_the_threads(folder):
    sizes = image_sizes(folder)
    ids = torch.arange(7).repeat(2)

    def views(batch, pipeline):
        requests = [draw_request(9, i, i * 0 + step, sizes) for step, i in enumerate(ids.split(7))]
        split = [
            Request(*parts)
            for r in requests
            for parts in zip(
                r.ids.split(batch), r.boxes.split(batch), r.flips.split(batch), strict=True
            )
        ]
        return torch.cat([batch.images for batch in pipeline(split)])

    whole = views(7, opened(folder, "dali"))
    assert torch.equal(views(1, opened(folder, "dali", workers=1, prefetch=0)), whole)
    again = opened(folder, "dali")
    assert torch.equal(views(2, again), whole)
    assert torch.equal(views(7, again), whole)  # a larger batch than the graph was made for


def test_a_stream_continues_where_it_was_left(folder):
    sizes = image_sizes(folder)
    requests = [draw_request(2, ids, ids * 0, sizes) for ids in torch.arange(7).split(2)]
    whole = [batch.images for batch in opened(folder, "dali")(requests)]
    rest = [batch.images for batch in opened(folder, "dali")(requests[2:])]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_two_streams_of_one_pipeline_do_not_mix(folder):
    pipeline = opened(folder, "dali")
    requests = [Request(ids) for ids in torch.arange(7).split(2)]
    expected = [batch.images for batch in pipeline(requests)]
    for (one, other), images in zip(
        zip(pipeline(requests), pipeline(requests), strict=True), expected, strict=True
    ):
        assert torch.equal(one.images, images)
        assert torch.equal(other.images, images)


def test_batches_stay_when_later_ones_are_made(folder):
    stream = opened(folder, "dali", prefetch=0)([Request(torch.tensor([i])) for i in range(4)])
    first = next(stream).images
    copy = first.clone()
    assert not torch.equal(list(stream)[-1].images, copy)
    assert torch.equal(first, copy)


@pytest.mark.parametrize("channels", [1, 3])
def test_unusual_files_have_pillows_pixels(tmp_path, channels):
    normalization = Normalization((0.5,) * channels, (0.5,) * channels)
    files = {f"a/{name}": content for name, content in pictures.unusual().items()}
    folder = ImageFolder(pictures.write(tmp_path, files), normalization=normalization)
    ids = torch.arange(len(folder))
    whole = Request(ids, torch.tensor([[[0, 0, 40, 52]]]).expand(len(ids), 1, 4))
    dali, pil = (next(opened(folder, backend, size=40)([whole])) for backend in ("dali", "pil"))
    assert torch.equal(dali.images, pil.images)
    dali, pil = (next(opened(folder, backend)([Request(ids)])) for backend in ("dali", "pil"))
    assert_near(dali.images, pil.images, normalization)


def damaged(tmp_path):
    files = {f"a/{name}": content for name, content in pictures.unreadable().items()}
    good = {f"b/{i}.jpg": pictures.jpeg(pictures.photo(40, 40, seed=i)) for i in range(2)}
    # Sound to a look at header and end, so that DALI's decoder is what refuses it: a coding table
    # with more entries than there are codes.
    content = bytearray(pictures.jpeg(pictures.photo(40, 52)))
    counts = content.index(b"\xff\xc4") + 5
    content[counts : counts + 16] = b"\xff" * 16
    files["a/tables.jpg"] = bytes(content)
    return ImageFolder(pictures.write(tmp_path, {**files, **good}))


def test_an_unreadable_file_is_named(tmp_path):
    folder = damaged(tmp_path)
    for i, path in enumerate(folder.paths):
        if path.parent.name == "a" and path.name != "hollow.jpg":
            with pytest.raises(ValueError, match=f"{path.name} cannot be read as an image"):
                list(opened(folder, "dali")([Request(torch.tensor([i]))]))


@pytest.mark.filterwarnings("ignore:skipped")
def test_the_same_files_are_skipped_as_with_pillow(tmp_path):
    folder = damaged(tmp_path)
    requests = [Request(ids) for ids in torch.arange(len(folder)).split(3)]
    kept = {}
    for backend in ("dali", "pil"):
        pipeline = opened(folder, backend, on_error="skip")
        kept[backend] = list(pipeline(requests)), pipeline.skipped
    assert kept["dali"][1] == kept["pil"][1]
    assert len(kept["pil"][1]) == 5
    rows, images = (
        {backend: torch.cat([getattr(b, name) for b in kept[backend][0]]) for backend in kept}
        for name in ("rows", "images")
    )
    assert torch.equal(rows["dali"], rows["pil"])
    assert_near(images["dali"], images["pil"])


def test_a_box_outside_its_image_is_an_error(folder):
    request = Request(torch.tensor([0]), torch.tensor([[0, 1, 75, 100]]))
    with pytest.raises(ValueError, match=r"\[0, 1, 75, 100\].*0\.jpg of 75 x 100 pixels"):
        list(opened(folder, "dali")([request]))


def test_auto_is_dali_where_it_is_installed(folder, monkeypatch):
    assert isinstance(opened(folder, "auto"), DALIPipeline)
    monkeypatch.setattr("pyddfast.data.pipelines.find_spec", lambda name: None)
    assert type(opened(folder, "auto")).__name__ == "PILPipeline"


def test_without_dali_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ModuleNotFoundError, match=r"pyddfast\[dali\]"):
        opened(folder, "dali")


def test_a_device_that_is_not_there(folder):
    for backend in ("dali", "pil"):
        with pytest.raises(ValueError, match="device 'cuda:99' cannot be used here"):
            opened(folder, backend, device="cuda:99")


@pytest.mark.cuda
def test_views_made_on_a_gpu(folder):
    sizes = image_sizes(folder)
    ids = torch.arange(7)
    whole = torch.tensor([[[0, 0, 31, 31]]]).expand(7, 1, 4)
    for request in (draw_request(1, ids, ids, sizes), Request(ids), Request(ids, whole)):
        gpu = next(opened(folder, "dali", device="cuda")([request]))
        cpu = next(opened(folder, "pil")([request]))
        assert gpu.images.is_cuda
        std = np.array(IMAGENET_NORMALIZATION.std)[:, None, None] * 255
        difference = np.abs((gpu.images.cpu() - cpu.images).numpy() * std)
        assert difference.mean() <= 2.0  # nvJPEG rounds its inverse transform otherwise
