"""The hooks of SRe2L, CDA, DWA and FADRM against the official formula in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyddfast.compat import dwa, fadrm, sre2l
from tests.compat.restated import Recorder, channels, images, network, norm

BOUND = 1e-10  # of the value and of the gradient, relative


pytestmark = pytest.mark.usefixtures("one_thread")


def layers(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def restated(layer: nn.BatchNorm2d, r_var: float) -> Recorder:
    def measure(x):
        mean, var = channels(x)
        return r_var * norm(layer.running_var - var) + norm(layer.running_mean - mean)

    return Recorder(layer, measure)


def recover_step(model: nn.Module, hooks: list, x: torch.Tensor):
    """The loss of the recover scripts: cross-entropy and the hooks', the first weighted by 10."""
    x = x.clone().requires_grad_()
    logits = model(x)
    loss = F.cross_entropy(logits, torch.arange(len(x)))
    weights = [10.0] + [1.0] * (len(hooks) - 1)
    loss = loss + 0.01 * sum(h.r_feature * w for h, w in zip(hooks, weights, strict=True))
    (gradient,) = torch.autograd.grad(loss, x)
    return [loss.detach(), *(h.r_feature.detach() for h in hooks)], gradient


@pytest.mark.parametrize(
    ("make", "r_var"),
    [
        (sre2l.BNFeatureHook, 1.0),
        (fadrm.BNFeatureHook, 1.0),
        (lambda layer: dwa.BNFeatureHook(layer, SimpleNamespace(r_var=2)), 2.0),  # ImageNet
        (lambda layer: dwa.BNFeatureHook(layer, SimpleNamespace(r_var=11.0)), 11.0),  # CIFAR
    ],
    ids=["sre2l", "fadrm", "dwa-2", "dwa-11"],
)
def test_values_and_gradients_are_the_official_ones(make, r_var) -> None:
    model = network()
    ours = [make(layer) for layer in layers(model)]
    results = [recover_step(model, ours, images(seed)) for seed in (1, 2)]
    for hook in ours:
        hook.close()
    theirs = [restated(layer, r_var) for layer in layers(model)]
    for (values, gradient), seed in zip(results, (1, 2), strict=True):
        expected, slope = recover_step(model, theirs, images(seed))
        for value, reference in zip(values, expected, strict=True):
            assert abs(value - reference) <= BOUND * abs(reference)
        assert (gradient - slope).norm() <= BOUND * slope.norm()


def test_a_matching_layer_has_distance_and_gradient_0() -> None:
    layer = nn.BatchNorm2d(3).double().eval()
    x = images(1).requires_grad_()
    mean, var = channels(x.detach())
    hook = sre2l.BNFeatureHook(layer)
    layer(x)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    layer(x)
    assert hook.r_feature < 1e-14
    layer.running_mean.zero_()
    layer.running_var.zero_()
    layer(torch.zeros_like(x).requires_grad_())
    hook.r_feature.backward()
    assert hook.r_feature == 0


def test_half_precision_inputs_get_float32_statistics() -> None:
    # FADRM runs under autocast: the official hook would round the statistics to float16.
    layer = nn.BatchNorm2d(3).eval()
    hook = fadrm.BNFeatureHook(layer)
    x = images(1).half()
    layer(x)
    mean, var = channels(x.double())
    expected = norm(1 - var) + norm(mean)
    assert hook.r_feature.dtype is torch.float32
    assert abs(hook.r_feature - expected) <= 1e-6 * expected


def test_close_leaves_the_model_as_it_was() -> None:
    model = network()
    before = model(images(1))
    hooks = [sre2l.BNFeatureHook(layer) for layer in layers(model)]
    assert torch.equal(model(images(1)), before)
    for hook in hooks:
        hook.close()
        hook.close()
    values = [hook.r_feature for hook in hooks]
    model(images(2))
    assert all(hook.r_feature is value for hook, value in zip(hooks, values, strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers(model))


def test_one_import_line_replaces_the_names() -> None:
    names = {"BNFeatureHook": None, "clip": None, "save_images": "kept"}
    exec("from pyddfast.compat.sre2l import *", names)
    assert names["BNFeatureHook"] is sre2l.BNFeatureHook
    assert names["clip"] is sre2l.clip
    assert names["save_images"] == "kept"


def test_errors() -> None:
    with pytest.raises(TypeError, match="module is a BatchNorm module, not Conv2d"):
        sre2l.BNFeatureHook(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="without running statistics"):
        sre2l.BNFeatureHook(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(TypeError, match=r"args\.r_var is a Python number, not str"):
        dwa.BNFeatureHook(nn.BatchNorm2d(3), SimpleNamespace(r_var="2"))
    layer = nn.BatchNorm2d(3)
    sre2l.BNFeatureHook(layer)
    with pytest.raises(ValueError, match=r"training mode; .* call model\.eval\(\)"):
        layer(torch.zeros(2, 3, 4, 4))
    assert layer.num_batches_tracked == 0
    replica = layer.eval()._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="BNFeatureHook does not work under nn"):
        replica(torch.zeros(2, 3, 4, 4))
