"""The interface of the pipelines and their Pillow implementation; test_dali.py holds DALI to it."""

import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pyddfast.data import (
    ImageFolder,
    Normalization,
    Request,
    draw_request,
    image_sizes,
    normalize,
    open_pipeline,
    replay_request,
)
from pyddfast.data.softlabels_batch import LabelBatch, coords_of
from pyddfast.ops import multi_crop
from pyddfast.ops.augment import draw_crop_boxes
from pyddfast.random import Purpose, uniform
from tests.data import pictures

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ImageFolder(pictures.jpeg_folder(tmp_path_factory.mktemp("photos")))


def opened(folder, **options):
    return open_pipeline(folder, **{"size": 32, "backend": "pil", "workers": 2, **options})


def decoded(folder, index):
    with Image.open(folder.paths[index]) as image:
        return np.asarray(image.convert("RGB"))


def test_training_views_against_float64(folder):
    sizes = image_sizes(folder)
    ids = torch.tensor([3, 0, 6, 3, 5])
    request = draw_request(1, ids, torch.tensor([0, 0, 1, 2, 5]), sizes)
    (batch,) = opened(folder)([request])
    assert torch.equal(batch.ids, ids)
    assert torch.equal(batch.rows, torch.arange(5))
    assert torch.equal(batch.labels, folder.labels[ids])
    assert batch.images.dtype == torch.float32
    mean, std = (
        torch.tensor(x).double()[:, None, None] for x in vars(folder.normalization).values()
    )
    assert request.flips.any()
    assert not request.flips.all()
    for i, index in enumerate(ids.tolist()):
        top, left, height, width = request.boxes[i].tolist()
        cut = decoded(folder, index)[top : top + height, left : left + width]
        exact = F.interpolate(
            torch.tensor(cut).permute(2, 0, 1)[None].double(),
            size=(32, 32),
            mode="bilinear",
            antialias=True,
        )[0]
        exact = exact.flip(-1) if request.flips[i] else exact
        # Pillow rounds to a byte after each of its two passes.
        found = (batch.images[i].double() * std + mean) * 255
        assert float((found - exact).abs().max()) <= 1.1


def test_evaluation_views_are_those_of_the_folder(folder):
    (batch,) = opened(folder, resize=40)([Request(torch.arange(7))])
    view = ImageFolder(folder.root, image_size=32, resize=40)
    exact = torch.stack(
        [normalize(view[i], view.normalization, dtype=torch.float64) for i in range(7)]
    )
    assert float((batch.images - exact).abs().max()) < 1e-6
    # Flips hold for these views too.
    (turned,) = opened(folder, resize=40)([Request(torch.arange(7), flips=torch.ones(7) > 0)])
    assert torch.equal(turned.images, batch.images.flip(-1))


def test_candidates_are_multi_crop_of_the_whole_image(folder):
    ids = torch.tensor([2, 4])
    boxes = torch.tensor([[[0, 0, 90, 31], [5, 7, 20, 12]], [[10, 3, 80, 28], [0, 0, 1, 1]]])
    (batch,) = opened(folder, size=8, pad_to=16)([Request(ids, boxes)])
    images = [torch.tensor(decoded(folder, i)).permute(2, 0, 1) for i in ids.tolist()]
    mean, std = folder.normalization.mean, folder.normalization.std
    exact = multi_crop(images, boxes, size=8, pad_to=16, mean=mean, std=std, dtype=torch.float64)
    assert batch.images.shape == (2, 2, 3, 16, 16)
    assert float((batch.images - exact).abs().max()) < 1e-5


def test_views_do_not_depend_on_batches_workers_or_prefetch(folder):
    sizes = image_sizes(folder)
    ids = torch.tensor([6, 1, 0, 5, 2, 4, 3, 1, 6])
    visits = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1])

    def views(batch, **options):
        requests = (
            draw_request(9, i, v, sizes)
            for i, v in zip(ids.split(batch), visits.split(batch), strict=True)
        )
        return torch.cat([batch.images for batch in opened(folder, **options)(requests)])

    whole = views(9)
    assert torch.equal(views(2, workers=1, prefetch=0), whole)
    assert torch.equal(views(4, workers=3, prefetch=5), whole)


def test_a_stream_continues_where_it_was_left(folder):
    sizes = image_sizes(folder)
    requests = [draw_request(2, ids, ids * 0, sizes) for ids in torch.arange(7).split(2)]
    whole = [batch.images for batch in opened(folder)(requests)]
    rest = [batch.images for batch in opened(folder)(requests[2:])]
    assert len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_batches_are_prepared_ahead_but_no_further(folder):
    asked = []

    def requests():
        for step in range(6):
            asked.append(step)
            yield Request(torch.tensor([step]))

    stream = opened(folder, prefetch=2)(requests())
    assert next(stream).ids.tolist() == [0]
    assert asked == [0, 1, 2]
    assert next(stream).ids.tolist() == [1]
    assert asked == [0, 1, 2, 3]
    before = threading.active_count()
    stream.close()  # the caller stops early: the threads end
    assert threading.active_count() < before


def test_drawn_requests_are_keyed_by_sample_and_visit(folder):
    sizes = image_sizes(folder)
    ids, visits = torch.tensor([5, 0]), torch.tensor([3, 0])
    request = draw_request(7, ids, visits, sizes, scale=(0.3, 0.9), flip=0.25)
    for i in range(2):
        size = tuple(sizes[ids[i]].tolist())
        box = draw_crop_boxes(7, ids[i : i + 1], visits[i : i + 1], size, scale=(0.3, 0.9))
        assert torch.equal(request.boxes[i], box[0])
    assert torch.equal(request.flips, uniform(7, Purpose.FLIP, ids, visits) < 0.25)
    with pytest.raises(ValueError, match=r"flip must be a probability, got 1\.5"):
        draw_request(7, ids, visits, sizes, flip=1.5)


def official_replay(path, coords, flip, size):
    """FKD's reader: shares times the image's sides, not rounded, and PIL's crop (float corners)."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    top, height = coords[0] * image.height, coords[2] * image.height
    left, width = coords[1] * image.width, coords[3] * image.width
    view = image.crop((left, top, left + width, top + height)).resize((size, size), 2)
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


def test_stored_boxes_are_replayed_as_the_official_reader_does(folder):
    sizes = image_sizes(folder)
    ids = torch.arange(7).repeat(5)
    drawn = draw_request(3, ids, torch.arange(35), sizes)
    labels = LabelBatch(
        coords=coords_of(drawn.boxes, sizes[ids]),
        flip=drawn.flips,
        mix_index=None,
        mix_lam=None,
        mix_bbox=None,
        logits=torch.zeros(35, 2),
        index=ids,
    )
    request = replay_request(labels, sizes)
    assert torch.equal(request.boxes, drawn.boxes)
    (batch,) = opened(folder)([request])
    views = [
        official_replay(folder.paths[i], coords, flip, 32)
        for i, coords, flip in zip(
            ids.tolist(), labels.coords.tolist(), labels.flip.tolist(), strict=True
        )
    ]
    exact = normalize(torch.tensor(np.stack(views)).permute(0, 3, 1, 2), folder.normalization)
    assert float((batch.images - exact).abs().max()) < 1e-6
    # Files of six elements leave the images to the caller.
    unnamed = replace(labels, index=None)
    assert torch.equal(replay_request(unnamed, sizes, ids).boxes, drawn.boxes)
    with pytest.raises(ValueError, match="give ids"):
        replay_request(unnamed, sizes)
    with pytest.raises(ValueError, match=r"leaves the image of 75 x 100"):
        replay_request(replace(labels, coords=labels.coords + 1), sizes)


@pytest.mark.parametrize("channels", [1, 3])
def test_unusual_files_follow_the_rules_of_the_folder(tmp_path, channels):
    normalization = Normalization((0.5,) * channels, (0.5,) * channels)
    files = {f"a/{name}": content for name, content in pictures.unusual().items()}
    folder = ImageFolder(pictures.write(tmp_path, files), normalization=normalization)
    (batch,) = opened(folder, resize=36)([Request(torch.arange(len(folder)))])
    view = ImageFolder(tmp_path, image_size=32, resize=36, normalization=normalization)
    for i, path in enumerate(folder.paths):
        exact = normalize(view[i], normalization)
        assert float((batch.images[i] - exact).abs().max()) < 1e-6, path.name
        assert folder[i].shape == (channels, 40, 52), path.name  # not rotated


def test_an_unreadable_file_is_named(tmp_path):
    files = {f"a/{name}": content for name, content in pictures.unreadable().items()}
    good = {"a/good.jpg": pictures.jpeg(pictures.photo(40, 40))}
    folder = ImageFolder(pictures.write(tmp_path, {**files, **good}))
    names = [path.name for path in folder.paths]
    bad = [i for i, name in enumerate(names) if name not in ("good.jpg", "hollow.jpg")]
    for i in bad:
        with pytest.raises(ValueError, match=f"{names[i]} cannot be read as an image"):
            list(opened(folder)([Request(torch.tensor([names.index("good.jpg"), i]))]))
    pipeline = opened(folder, on_error="skip")
    ids = torch.arange(len(folder))
    with pytest.warns(UserWarning, match=r"skipped: .*cannot be read") as caught:
        batch, empty = pipeline([Request(ids), Request(torch.tensor(bad))])
    assert sorted(pipeline.skipped) == bad
    assert len(caught) == len(bad)  # once a file
    assert all(names[i] in pipeline.skipped[i] for i in bad)
    kept = [i for i in ids.tolist() if i not in bad]
    assert batch.rows.tolist() == batch.ids.tolist() == kept
    (alone,) = opened(folder)([Request(torch.tensor(kept))])
    assert torch.equal(batch.images, alone.images)
    assert empty.images.shape == (0, 3, 32, 32)
    assert empty.labels.tolist() == []
    boxes = torch.tensor([[[0, 0, 9, 9]]]).expand(len(bad), 3, 4)
    (none,) = pipeline([Request(torch.tensor(bad), boxes)])
    assert none.images.shape == (3, 0, 3, 32, 32)


def test_a_file_that_has_gone_is_an_error_even_if_bad_ones_are_skipped(tmp_path):
    folder = ImageFolder(pictures.jpeg_folder(tmp_path))
    folder.paths[2].unlink()
    with pytest.raises(FileNotFoundError, match=str(folder.paths[2])):
        list(opened(folder, on_error="skip")([Request(torch.arange(4))]))


def test_an_image_beyond_pillows_limit_is_refused(tmp_path, monkeypatch):
    folder = ImageFolder(pictures.jpeg_folder(tmp_path, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # it raises beyond twice this
    for attempt in (
        lambda: image_sizes(folder),
        lambda: list(opened(folder)([Request(torch.tensor([0]))])),
    ):
        with pytest.raises(ValueError, match=r"0\.jpg cannot be read.*exceeds limit"):
            attempt()


@pytest.mark.parametrize(
    "box",
    # one pixel beyond each border, empty, negative, and a sum that overflows 64 bits
    [
        [1, 0, 75, 100],
        [0, 1, 75, 100],
        [0, 0, 0, 5],
        [0, 0, 5, 0],
        [-1, 0, 5, 5],
        [2**62, 0, 2**62, 1],
    ],
)
def test_a_box_outside_its_image_is_an_error(folder, box):
    for boxes in (torch.tensor([box]), torch.tensor([[[0, 0, 5, 5], box]])):
        request = Request(torch.tensor([0]), boxes)
        with pytest.raises(ValueError, match=r"0\.jpg of 75 x 100 pixels") as caught:
            list(opened(folder, on_error="skip")([request]))
        assert str(box) in str(caught.value)


def test_a_file_too_narrow_to_be_resized_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (1, 65000)).save(tmp_path / "a" / "line.png")
    folder = ImageFolder(tmp_path, image_size=224, resize=256)
    message = r"line\.png of 65000 x 1 pixels cannot be resized: 256 x 16,640,000 are more"
    for attempt in (
        lambda: folder[0],
        folder.verify,
        lambda: list(opened(folder, size=224, resize=256)([Request(torch.tensor([0]))])),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    pipeline = opened(folder, size=224, resize=256, on_error="skip")
    with pytest.warns(UserWarning, match=message):
        (batch,) = pipeline([Request(torch.tensor([0]))])
    assert batch.images.shape == (0, 3, 224, 224)
    # A crop of it has any size.
    (batch,) = opened(folder)([Request(torch.tensor([0]), torch.tensor([[0, 0, 9, 1]]))])
    assert batch.images.shape == (1, 3, 32, 32)


def test_a_caller_that_stops_early_waits_for_no_reader(folder, monkeypatch):
    pipeline = opened(folder, workers=1, prefetch=5)
    read, never = pipeline._open, threading.Event()
    calls = []

    def slow(index):
        calls.append(index)
        if len(calls) > 7:
            never.wait(0.2)
        return read(index)

    monkeypatch.setattr(pipeline, "_open", slow)
    batches = pipeline([Request(torch.arange(7))] * 6)
    next(batches)
    batches.close()
    assert len(calls) < 6 * 7  # what was not begun is not read


def test_requests_that_do_not_fit(folder):
    ids = torch.arange(2)
    for bad in ([1], None):
        with pytest.raises(TypeError, match="ids must be a tensor"):
            Request(bad)
    with pytest.raises(TypeError, match="requests must be of type Request, got Tensor"):
        next(opened(folder)([ids]))
    box = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"ids must be torch\.int64, got torch\.int32"):
        Request(ids.int())
    with pytest.raises(TypeError, match=r"boxes must be torch\.int64, got torch\.float32"):
        Request(ids, box.float())
    with pytest.raises(TypeError, match=r"flips must be torch\.bool, got torch\.int64"):
        Request(ids, box, ids)
    for message, arguments in (
        (r"ids must have shape \(B,\), got \(1, 2\)", (ids[None],)),
        (r"boxes must have shape \(2, 4\) or \(2, m, 4\), got \(1, 4\)", (ids, box[:1])),
        (r"got \(2, 3\)", (ids, box[:, :3])),
        (r"got \(2, 0, 4\)", (ids, box[:, None][:, :0])),
        (r"flips must have shape \(2,\), got \(1,\)", (ids, box, ids[:1] > 0)),
        (r"flips must be None", (ids, box[:, None], ids > 0)),
    ):
        with pytest.raises(ValueError, match=message):
            Request(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "got size=0"),
        ({"resize": 31}, "resize=31"),
        ({"pad_to": 31}, "pad_to=31"),
        ({"workers": 0}, "workers must be positive, got 0"),
        ({"prefetch": -1}, "prefetch must not be negative, got -1"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip', got 'ignore'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"backend": "opencv"}, "backend must be 'auto', 'dali' or 'pil', got 'opencv'"),
    ],
)
def test_options_out_of_range(folder, options, message):
    with pytest.raises(ValueError, match=message):
        opened(folder, **options)


def test_ids_outside_the_folder(folder):
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 7\), got values from 6 to 7"):
        list(opened(folder)([Request(torch.tensor([6, 7]))]))


def test_no_warning_without_a_reason(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(opened(folder)([Request(torch.arange(7))]))) == 1
