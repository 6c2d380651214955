"""BNStatLoss against the official hook restated in float64; StatsAccumulator against one pass."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyddfast.models import ResNet
from pyddfast.nn import BNStatLoss, StatsAccumulator
from pyddfast.nn.bn_stats import layer_distances
from tests.tolerances import FLOAT32, assert_close

pytestmark = pytest.mark.usefixtures("one_thread")


class OfficialHook:
    """SRe2L's recover/utils.py:BNFeatureHook, restated."""

    def __init__(self, layer: nn.BatchNorm2d, r_var: float) -> None:
        self.r_var = r_var
        self.hook = layer.register_forward_hook(self.measure)

    def measure(self, layer: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
        x = inputs[0]
        mean = x.mean([0, 2, 3])
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.feature = self.r_var * torch.norm(layer.running_var - var, 2)
        self.feature = self.feature + torch.norm(layer.running_mean - mean, 2)


def network() -> nn.Module:
    """A ResNet-18 for few pixels whose running statistics are not the initial ones."""
    model = ResNet(7, image_size=32, stem="imagenet").double()
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for t in (layer.running_mean, layer.weight.data, layer.bias.data):
                t.copy_(torch.randn(t.shape, generator=generator, dtype=t.dtype) * 0.5)
            layer.running_var.copy_(
                0.5 + torch.rand(layer.running_var.shape, generator=generator, dtype=torch.float64)
            )
    return model.eval().requires_grad_(False)


def images(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)


def official(model: nn.Module, x: Tensor, first: float, r_var: float) -> tuple[Tensor, ...]:
    """Features, loss with a cross-entropy like term, and its gradient to the images."""
    model = copy.deepcopy(model).double()
    x = x.double().requires_grad_()
    hooks = [OfficialHook(m, r_var) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    logits = model(x)
    scales = [first] + [1.0] * (len(hooks) - 1)
    loss = sum(w * h.feature for w, h in zip(scales, hooks, strict=True))
    loss = loss + logits.square().sum()
    features = torch.stack([h.feature for h in hooks])
    return features.detach(), loss, torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("mode", ["tap", "fused"])
@pytest.mark.parametrize(("first", "r_var"), [(10.0, 1.0), (3.0, 11.0)])  # SRe2L; DWA on CIFAR
def test_equals_the_official_hook(mode, first, r_var):
    model, x = network(), images().requires_grad_()
    want_features, want_loss, want_grad = official(model, x.detach(), first, r_var)
    with BNStatLoss(model, first_multiplier=first, var_weight=r_var, mode=mode) as bn_loss:
        for _ in range(2):  # the second forward as the first
            logits = model(x)
            loss = bn_loss() + logits.square().sum()
            (grad,) = torch.autograd.grad(loss, x)
            assert_close(bn_loss.per_layer, want_features, 1e-10)
            assert_close(loss, want_loss, 1e-10)
            assert_close(grad, want_grad, 1e-10)
    assert not bn_loss.per_layer.requires_grad


@pytest.mark.parametrize("mode", ["tap", "fused"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32(mode, layout):
    model, x = network().float().to(memory_format=layout), images().float()
    _, want_loss, want_grad = official(model, x, 10.0, 1.0)
    x = x.to(memory_format=layout).requires_grad_()
    with BNStatLoss(model, mode=mode) as bn_loss:
        logits = model(x)
        loss = bn_loss() + logits.square().sum()
        (grad,) = torch.autograd.grad(loss, x)
    # Twenty layers of float32 convolutions lie in between.
    assert_close(loss, want_loss, 10 * FLOAT32)
    assert_close(grad, want_grad, 100 * FLOAT32)


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_close_restores_the_model(mode):
    model, x = network(), images()
    before = model(x)
    forwards = {m: m.__dict__.get("forward") for m in model.modules()}
    bn_loss = BNStatLoss(model, mode=mode)
    assert_close(model(x), before, 1e-12)
    bn_loss.close()
    bn_loss.close()
    assert {m: m.__dict__.get("forward") for m in model.modules()} == forwards
    assert all(not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError, match="closed"):
        bn_loss()


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_an_error_inside_the_block_restores_the_model(mode):
    model = network()
    with pytest.raises(KeyError), BNStatLoss(model, mode=mode):
        raise KeyError
    assert all(not m._forward_pre_hooks and "forward" not in m.__dict__ for m in model.modules())


def test_new_running_statistics_are_noticed():
    model, x = network(), images()
    with BNStatLoss(model) as bn_loss:
        model(x)
        first = bn_loss()
        with torch.no_grad():
            model.bn1.running_mean.add_(1.0)
        model(x)
        second = bn_loss()
    features = official(model, x, 10.0, 1.0)[0]
    assert_close(second, features.sum() + 9 * features[0], 1e-10)
    assert abs(float(first - second)) > 1e-3


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_running_statistics_that_change_without_a_new_version(mode):
    model, x = network(), images()
    with BNStatLoss(model, mode=mode) as bn_loss:
        model(x)
        bn_loss()
        bn = model.layer1[0].bn1
        version = bn.running_mean._version
        bn.running_mean.data.fill_(5.0)
        F.batch_norm(
            images(3)[:, :1].expand(-1, 64, -1, -1),
            model.bn1.running_mean,
            model.bn1.running_var,
            training=True,
            momentum=1.0,
        )
        assert bn.running_mean._version == version
        model(x)
        value = bn_loss()
    features = official(model, x, 10.0, 1.0)[0]
    assert_close(value, features.sum() + 9 * features[0], 1e-10)


class BNReLU(nn.BatchNorm2d):
    """A layer with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def test_a_forward_that_is_not_torchs_stays():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), BNReLU(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    )
    model = model.double().eval()
    changed, x = model[3], images()

    def doubled(x: Tensor) -> Tensor:
        return 2 * nn.BatchNorm2d.forward(changed, x)

    changed.forward = doubled
    want, features = model(x), official(nn.Sequential(*model), x, 1.0, 1.0)[0]
    with BNStatLoss(model, first_multiplier=1.0, mode="fused") as bn_loss:
        assert torch.equal(model[:4](x), nn.Sequential(*model[:4])(x))
        assert_close(model(x), want, 1e-12)
        assert_close(bn_loss(), features.sum(), 1e-10)
    assert changed.forward is doubled
    # One that is put in while the loss is open stays as well.
    with BNStatLoss(model, mode="fused"):
        model[4].forward = doubled
    assert model[4].forward is doubled


@pytest.mark.parametrize("mode", ["tap", "fused"])
@pytest.mark.parametrize("first", [0, 1])
def test_two_losses_of_a_model_close_in_any_order(mode, first):
    model, x = network(), images()
    features, before = official(model, x, 10.0, 1.0)[0], model(x)
    want = features.sum() + 9 * features[0]
    losses = [BNStatLoss(model, mode="fused"), BNStatLoss(model, mode=mode)]
    for opened in (losses, losses[1 - first :][:1]):
        assert_close(model(x), before, 1e-12)
        for bn_loss in opened:
            assert_close(bn_loss(), want, 1e-10)
        losses[first].close()
    losses[1 - first].close()
    assert all(not m._forward_pre_hooks and "forward" not in m.__dict__ for m in model.modules())
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_a_forward_that_fails_leaves_no_statistics(mode):
    model = network()
    with BNStatLoss(model, mode=mode) as bn_loss:
        model(images(5))
        stop = model.layer3.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(images(6))
        with pytest.raises(RuntimeError, match=r"reached 'layer3.0.bn1' \(10 of 20"):
            bn_loss()
        stop.remove()


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_an_input_by_its_name(mode):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3).double()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(input=x)
            return y

    model, x = Named().eval(), images()
    with BNStatLoss(model, first_multiplier=1.0, mode=mode) as bn_loss:
        assert_close(model(x), model.bn.double()(x), 1e-12)
        assert_close(bn_loss(), official(nn.Sequential(model.bn), x, 1.0, 1.0)[0].sum(), 1e-10)


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_a_copy_between_forward_and_loss(mode):
    model, x = network(), images().requires_grad_()
    with BNStatLoss(model, mode=mode) as bn_loss:
        before = model(x)
        copied = copy.deepcopy(model)
        value = bn_loss()
        with torch.no_grad():
            model.layer4[1].bn2.weight.add_(1.0)
        assert torch.equal(copied(x), before)
        model(x)
        assert torch.equal(value, bn_loss())  # the copy's forwards are its own


def test_the_last_forward_counts():
    model = network()
    with BNStatLoss(model) as bn_loss:
        model(images(5))
        with torch.no_grad():
            model(images(6))
        model(images(7))
        value = bn_loss()
        model(images(7))
        assert torch.equal(value, bn_loss())


def test_chosen_layers():
    model, x = network(), images()
    layers = [model.layer1[0].bn1, model.bn1]
    features = official(model, x, 1.0, 1.0)[0]
    with BNStatLoss(model, first_multiplier=4.0, layers=layers) as bn_loss:
        model(x)
        value = bn_loss()
    assert_close(bn_loss.per_layer, features[[1, 0]], 1e-10)
    assert_close(value, 4 * features[1] + features[0], 1e-10)


def test_more_layers_than_one_launch_takes():
    model = nn.Sequential(*[nn.BatchNorm2d(2) for _ in range(300)]).double().eval()
    x = images()[:, :2]
    features, _, _ = official(model, x, 1.0, 1.0)
    with BNStatLoss(model, first_multiplier=7.0) as bn_loss:  # of the first, not the 257th
        model(x)
        value = bn_loss()
    assert_close(bn_loss.per_layer, features, 1e-10)
    assert_close(value, features.sum() + 6 * features[0], 1e-10)


def test_targets_and_averages_of_more_layers_than_one_launch_takes():
    gen = torch.Generator().manual_seed(3)
    sizes = [1 + i % 3 for i in range(300)]
    total = sum(sizes)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=gen, dtype=torch.float64)

    mean, var = (drawn(total).requires_grad_() for _ in range(2))
    targets, at = (drawn(2, total), drawn(2, total)), (drawn(total), drawn(total))
    weights, shares = drawn(300).tolist(), [0.3, 0.7]
    stats = list(zip(mean.split(sizes), var.split(sizes), strict=True))
    loss, per_layer = layer_distances(
        stats, *targets, weights, var_weight=2.0, target_weight=shares, at=at
    )
    straight = [a + x - x.detach() for a, x in zip(at, (mean, var), strict=True)]
    norms = [
        torch.stack([part.norm(dim=1) for part in (target - x).split(sizes, 1)])
        for target, x in zip(targets, straight, strict=True)
    ]
    want = (norms[0] + 2.0 * norms[1]) @ torch.tensor(shares, dtype=torch.float64)
    assert_close(per_layer, want, 1e-12)
    want_loss = want @ torch.tensor(weights, dtype=torch.float64)
    assert_close(loss, want_loss, 1e-12)
    grads = (torch.autograd.grad(x, (mean, var)) for x in (loss, want_loss))
    for got, exact in zip(*grads, strict=True):
        assert_close(got, exact, 1e-10)


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_a_layers_own_eps(mode):
    model, x = (
        nn.Sequential(nn.BatchNorm2d(3, eps=0.5), nn.BatchNorm2d(3)).double().eval(),
        images(),
    )
    with BNStatLoss(model, mode=mode):
        assert_close(model(x), (x / 1.5**0.5) / (1 + 1e-5) ** 0.5, 1e-12)


def test_trained_teacher_parameters_keep_their_gradients():
    """DWA's weights require gradients."""
    model, x = network().requires_grad_(), images()
    grads = []
    for mode in ("tap", "fused"):
        with BNStatLoss(model, mode=mode) as bn_loss:
            loss = model(x).square().sum() + bn_loss()
            grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-10, absolute=1e-12)


def test_bad_models():
    with pytest.raises(ValueError, match=r"has no nn\.BatchNorm2d"):
        BNStatLoss(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"model is an nn\.Module, not str"):
        BNStatLoss("resnet18")
    model = network()
    with pytest.raises(ValueError, match="mode is 'fast'; allowed are tap, fused"):
        BNStatLoss(model, mode="fast")
    with pytest.raises(TypeError, match=r"layers\[0\] is a BatchNorm module, not Conv2d"):
        BNStatLoss(model, layers=[model.conv1])
    with pytest.raises(ValueError, match=r"layers\[0\] is not a module of model"):
        BNStatLoss(model, layers=[nn.BatchNorm2d(3).eval()])
    with pytest.raises(ValueError, match="each once"):
        BNStatLoss(model, layers=[model.bn1, model.bn1])
    model.layer1.train()
    with pytest.raises(ValueError, match=r"layer 'layer1.0.bn1' is in training mode"):
        BNStatLoss(model)
    bare = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="layer '0' has no running statistics"):
        BNStatLoss(bare)
    assert all(not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("mode", ["tap", "fused"])
def test_bad_use(mode):
    model, x = network(), images()
    with BNStatLoss(model, mode=mode) as bn_loss:
        with pytest.raises(RuntimeError, match="no forward since the last call has reached 'bn1'"):
            bn_loss()
        model(x)
        bn_loss()
        with pytest.raises(RuntimeError, match="20 of 20 layers are without statistics"):
            bn_loss()
        model.train()
        with pytest.raises(ValueError, match="layer 'bn1' is in training mode"):
            model(x)
        model.eval()
        replica = model.bn1._replicate_for_data_parallel()
        with pytest.raises(RuntimeError, match=r"nn\.DataParallel"):
            replica(torch.zeros(2, 64, 4, 4).double())


# --- StatsAccumulator --------------------------------------------------------------------------


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        300 + i + torch.randn(n, 3, 5, 5, generator=generator, dtype=torch.float64)
        for i, n in enumerate([4, 7, 1, 2])
    ]


def test_accumulator_conventions():
    stats = StatsAccumulator()
    for x in batches():
        stats.update(x)
    stats.update(torch.empty(0, 3, 5, 5))
    whole = torch.cat(batches())
    mean, var = stats.mean_var()
    assert stats.count == 14 * 25
    assert_close(mean, whole.mean([0, 2, 3]), 1e-13)
    assert_close(var, whole.var([0, 2, 3], unbiased=False), 1e-12)
    within = sum(len(x) * x.var([0, 2, 3], unbiased=False) for x in batches()) / 14
    assert_close(stats.mean_var("batch_mean")[1], within, 1e-12)


def test_accumulator_merges_and_resumes():
    whole, first, second = (StatsAccumulator() for _ in range(3))
    for i, x in enumerate(batches()):
        whole.update(x)
        (first if i < 2 else second).update(x, torch.full((3,), 300.0))
    resumed = StatsAccumulator()
    resumed.load_state_dict(first.state_dict())
    resumed.merge(second)
    resumed.merge(StatsAccumulator())
    for convention in ("whole", "batch_mean"):
        for a, b in zip(resumed.mean_var(convention), whole.mean_var(convention), strict=True):
            assert_close(a, b, 1e-12)
    assert second.count == 3 * 25


def test_accumulator_errors():
    stats = StatsAccumulator()
    with pytest.raises(ValueError, match="no batch has been added"):
        stats.mean_var()
    stats.update(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"statistics of 4 channels .* cannot be added to .* of 3"):
        stats.update(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="convention is 'sum'"):
        stats.mean_var("sum")
    with pytest.raises(TypeError, match=r"x is a torch\.Tensor, not NoneType"):
        stats.update(None)
    with pytest.raises(TypeError, match="other is a StatsAccumulator"):
        stats.merge(torch.zeros(3))
    with pytest.raises(ValueError, match="state has keys"):
        stats.load_state_dict({"state": torch.zeros(3, 3)})
    with pytest.raises(RuntimeError, match="init_process_group"):
        stats.all_reduce()


def test_accumulator_across_processes(tmp_path):
    """Two processes, one of which has seen nothing but one batch, agree to the bit."""
    script = """
import sys, torch
import torch.distributed as dist
from pyddfast.nn import StatsAccumulator
from tests.nn.test_bn_stats import batches
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
stats = StatsAccumulator()
for x in (batches()[:3] if rank == 0 else batches()[3:]):
    stats.update(x)
stats.all_reduce()
torch.save(stats.state_dict()["state"], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*states)
    whole = torch.cat(batches())
    assert_close(states[0][1], whole.mean([0, 2, 3]), 1e-13)
    assert_close(states[0][2] / states[0][0], whole.var([0, 2, 3], unbiased=False), 1e-12)
