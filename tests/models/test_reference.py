"""Every network of torchvision and timm: names, sizes and float64 outputs as theirs."""

import json

import pytest
import torch

from pyddfast import models
from tests.models.reference import CASES, PATH, describe, fill, images

COMMITTED = json.loads(PATH.read_text())


def build(case: str, num_classes: int):
    name, options = CASES[case]
    options = {"image_size": (34, 39), **options}
    if name.startswith("resnet"):
        return models.ResNet(num_classes, depth=int(name.removeprefix("resnet")), **options)
    network = {"mobilenet_v2": models.MobileNetV2, "efficientnet_lite0": models.EfficientNetLite0}
    return network[name](num_classes, **options)


@pytest.mark.parametrize("case", CASES)
def test_names_sizes_and_logits_are_the_official_ones(case):
    found = describe(lambda num_classes: build(case, num_classes))
    expected = COMMITTED[case]
    assert found["state"] == expected["state"]
    assert found["parameters"] == expected["parameters"]
    # float64 through up to 155 layers; another BLAS sums in another order.
    torch.testing.assert_close(
        torch.tensor(found["logits"], dtype=torch.float64),
        torch.tensor(expected["logits"], dtype=torch.float64),
        rtol=1e-8,
        atol=1e-8,
    )


# Trainable parameters as torchvision's and timm's documentation state them.
COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_published_parameter_counts(name, count):
    assert COMMITTED[name]["parameters"] == count


@pytest.mark.parametrize(
    ("case", "features"),
    [("resnet34", 512), ("resnet50", 2048), ("mobilenet_v2", 1280), ("efficientnet_lite0", 1280)],
)
def test_embed_is_what_the_last_layer_sees(case, features):
    with torch.device("meta"):
        model = build(case, 5)
    with torch.no_grad():
        fill(model)
        embedded = model.embed(images())
    assert embedded.shape == (2, features)
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    logits = embedded @ last.weight.T + last.bias
    expected = torch.tensor(COMMITTED[case]["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_dropout_acts_on_the_features_in_training_only(name):
    model = models.create(name, 3, 3, 16, dropout=0.75).double()
    x = images()[:, :, :16, :16]
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()  # so that only dropout depends on the mode
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
    seen = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), torch.random.fork_rng():
        features = model.embed(x)
        torch.manual_seed(0)
        model(x)
        model.eval()(x)
    assert torch.equal(seen[1], features)
    kept = seen[0] != 0
    # 2560 draws at 1/4: five standard errors.
    positive = features != 0
    share = float(kept.sum() / positive.sum())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / int(positive.sum())) ** 0.5
    torch.testing.assert_close(seen[0][kept], 4 * features[kept])
