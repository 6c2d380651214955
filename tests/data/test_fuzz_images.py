"""Damaged image files: the readers give an image or an error with the file's name."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyddfast.data import ImageFolder, Request, draw_request, image_sizes, open_pipeline
from tests.data import pictures

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = sorted(pictures.unusual().items())


@st.composite
def damaged(draw):
    """A file with a few bytes changed, removed, put in or cut off, most often near its header."""
    content = bytearray(draw(st.sampled_from(FILES))[1])
    for _ in range(draw(st.integers(1, 6))):
        where = draw(st.integers(0, len(content)) | st.integers(0, min(len(content), 700)))
        put = draw(st.binary(max_size=8))
        cut = draw(st.integers(0, 8))
        content[where : where + cut] = put
    content = content[: draw(st.just(len(content)) | st.integers(0, len(content)))]
    # With an end marker the file gets past the look at its last bytes.
    return bytes(content) + draw(st.sampled_from([b"", b"\xff\xd9"]))


def attempt(function):
    try:
        return function()
    except ValueError as error:
        if "it.jpg" not in str(error):
            raise
        return None


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=damaged())
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it finds
def test_damaged_files(tmp_path, content):
    folder = ImageFolder(pictures.write(tmp_path, {"a/it.jpg": content}))
    sizes = image_sizes(folder, on_error="skip")
    ids = torch.tensor([0])
    image = attempt(lambda: folder[0])
    whole = Request(ids, torch.tensor([[[0, 0, *sizes[0].clamp(min=1).tolist()]]]))
    requests = [whole, Request(ids), draw_request(0, ids, ids, sizes)]
    for request in requests:
        found = {}
        for backend in ("pil", "dali"):
            pipeline = open_pipeline(folder, size=16, backend=backend, workers=1)
            batches = attempt(lambda p=pipeline, r=request: list(p([r])))
            found[backend] = None if batches is None else batches[0].images
            assert batches is None or bool(batches[0].images.isfinite().all())
        assert (found["pil"] is None) == (image is None)
        # Pillow refuses a few files that DALI reads: what is broken lies behind the last row.
        if found["pil"] is not None:
            assert found["dali"] is not None
            if request is whole:
                assert torch.equal(found["pil"], found["dali"])
    if image is not None:
        assert list(image.shape[1:]) == sizes[0].tolist()
