"""The exact unroll step against the ordinary unroll, which keeps every graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyddfast import ops
from pyddfast.models import ConvNet
from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.train.unroll import functional, sgd_step


def network(dtype=torch.float64, width=4, size=8):
    torch.manual_seed(0)
    return ConvNet(3, in_channels=2, image_size=size, depth=2, width=width).to(dtype)


def problem(dtype=torch.float64, batch=6, size=8):
    g = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 2, size, size, generator=g, dtype=torch.float64).to(dtype)
    labels = torch.randn(batch, 3, generator=g, dtype=torch.float64).to(dtype)
    return images.requires_grad_(), labels.requires_grad_()


def soft(logits, labels):
    return -(labels.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def full_step(model_fn, criterion, params, lr, images, labels):
    """The official expression: the step's graph stays."""
    grads = torch.autograd.grad(
        criterion(model_fn(params, images), labels), list(params.values()), create_graph=True
    )
    return {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}


def outer(step, steps, *, criterion=soft, dtype=torch.float64, augment=False, fused=False):
    """Normalised distance after ``steps``, and its gradients to images, labels and lr."""
    model = network(dtype)
    if fused:
        model = fuse_norm_relu_pool(model)
    images, labels = problem(dtype)
    lr = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    # The student starts at a leaf, as in the official loop, so that its gradient is compared too.
    start = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    target = [v.detach() + 0.05 * (i + 1) for i, v in enumerate(start.values())]
    call, params = functional(model), start
    for k in range(steps):
        rows = torch.arange(6).roll(k)[:4]
        batch = images[rows]
        if augment:
            ids = torch.arange(4)
            batch = ops.dsa(batch, ops.draw_dsa(0, ids, ids * 0 + k, k, (8, 8)))
        params = step(call, criterion, params, lr, batch, labels[rows])
    loss = ops.parameter_distance(
        list(params.values()), target, [v.detach() for v in start.values()]
    )
    loss.backward()
    return [loss.detach(), images.grad, labels.grad, lr.grad, *(p.grad for p in start.values())]


def relative(a, b):
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_equals_the_full_unroll(steps):
    got, expected = outer(sgd_step, steps), outer(full_step, steps)
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 1e-12


def test_equals_the_full_unroll_with_augmentation_and_the_op_soft_ce():
    def criterion(logits, labels):
        return ops.soft_ce(logits, labels.softmax(-1))

    got = outer(sgd_step, 3, criterion=criterion, augment=True)
    expected = outer(full_step, 3, augment=True)
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 1e-12


def test_equals_the_full_unroll_with_fused_blocks():
    got, expected = outer(sgd_step, 3, fused=True), outer(full_step, 3)
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 1e-12


def test_float32_is_as_exact_as_the_full_unroll_in_float32():
    got, expected = outer(sgd_step, 2, dtype=torch.float32), outer(full_step, 2)
    for a, b in zip(got, expected, strict=True):
        assert relative(a.double(), b) < 2e-5  # two steps of float32 sums


def test_forms_of_parameters_agree():
    model = network()
    images, labels = problem()
    named = {k: v.detach().clone() for k, v in model.named_parameters()}
    call = functional(model)
    flat = torch.cat([v.flatten() for v in named.values()])

    def unflatten(values):
        parts = values.split([v.numel() for v in named.values()])
        return {k: p.view_as(v) for (k, v), p in zip(named.items(), parts, strict=True)}

    def of_list(values, x):
        return call(dict(zip(named, values, strict=True)), x)

    expected = sgd_step(call, soft, named, 0.1, images, labels)
    assert list(expected) == list(named)
    as_list = sgd_step(of_list, soft, list(named.values()), 0.1, images, labels)
    as_tuple = sgd_step(of_list, soft, tuple(named.values()), 0.1, images, labels)
    as_flat = sgd_step(lambda v, x: call(unflatten(v), x), soft, flat, 0.1, images, labels)
    assert type(as_list) is list
    assert type(as_tuple) is tuple
    for a, b, c, d in zip(
        expected.values(), as_list, as_tuple, unflatten(as_flat).values(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(a, d)
    (by_flat,) = torch.autograd.grad(as_flat.square().sum(), images)
    (by_name,) = torch.autograd.grad(sum(v.square().sum() for v in expected.values()), images)
    assert relative(by_flat, by_name) < 1e-12


@pytest.mark.parametrize("wanted", ["images", "labels", "lr", "params"])
def test_each_gradient_alone(wanted):
    def gradient(step):
        model = network()
        images, labels = (x.detach() for x in problem())
        values = {"images": images, "labels": labels, "lr": torch.tensor([0.3]).double()}
        params = {k: v.detach().clone() for k, v in model.named_parameters()}
        leaf = params["classifier.weight"] if wanted == "params" else values[wanted]
        leaf.requires_grad_()
        if step is full_step and wanted != "params":
            for value in params.values():  # autograd.grad asks for it
                value.requires_grad_()
        elif step is full_step:
            params = {k: v.requires_grad_() for k, v in params.items()}
        new = step(functional(model), soft, params, values["lr"], images, values["labels"])
        (grad,) = torch.autograd.grad(sum(v.pow(3).sum() for v in new.values()), leaf)
        return grad

    assert relative(gradient(sgd_step), gradient(full_step)) < 1e-12


def test_a_parameter_without_part_in_the_loss_passes_through():
    model = network()
    images, labels = problem()
    params = dict(model.named_parameters())
    params["unused"] = torch.ones(2, dtype=torch.float64, requires_grad=True)
    call = functional(model)
    new = sgd_step(
        lambda p, x: call({k: v for k, v in p.items() if k != "unused"}, x),
        soft, params, 0.1, images, labels,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(new["unused"].sum(), params["unused"])
    assert torch.equal(new["unused"], params["unused"])
    assert torch.equal(grad, torch.ones_like(grad))


def test_a_loss_that_is_linear_in_the_parameters():
    x = torch.tensor([[2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    new = sgd_step(lambda p, x: x @ p, lambda z, y: z.sum(), w, 0.5, x, torch.zeros(1))
    new.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, -0.5))
    assert torch.equal(w.grad, torch.ones_like(w))


class Saved:
    """Bytes that graphs hold: of distinct storages, now (``bytes``) and at most (``peak``)."""

    def __init__(self):
        self.held, self.bytes, self.peak = {}, 0, 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: Kept(self, t), Kept.unpack)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def count(self, tensor, change):
        storage = tensor.untyped_storage()
        key, before = storage.data_ptr(), self.held.get(storage.data_ptr(), 0)
        self.held[key] = before + change
        if (before == 0) != (before + change == 0):
            self.bytes += change * storage.nbytes()
        self.peak = max(self.peak, self.bytes)


class Kept:
    """What a graph keeps instead of a tensor; it leaves the count with its graph."""

    def __init__(self, saved, tensor):
        self.saved, self.tensor = saved, tensor
        saved.count(tensor, 1)

    def unpack(self):
        return self.tensor

    def __del__(self):
        self.saved.count(self.tensor, -1)


def test_keeps_one_vector_of_parameters_a_step():
    model = network(torch.float32)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    shapes = {k: v.shape for k, v in model.named_parameters()}
    call = functional(model)

    def model_fn(values, x):
        parts = values.split([s.numel() for s in shapes.values()])
        return call({k: p.view(s) for (k, s), p in zip(shapes.items(), parts, strict=True)}, x)

    images, labels = problem(torch.float32)

    def measure(steps):
        with Saved() as saved:
            params = flat
            for _ in range(steps):
                params = sgd_step(model_fn, soft, params, 0.1, images, labels)
            after_forward = saved.bytes
            params.sum().backward()
        return after_forward, saved.peak

    step = flat.numel() * 4 + 8  # its parameters, and its learning rate
    inputs = (images.numel() + labels.numel()) * 4  # the same tensors at every step
    kept, peaks = zip(*(measure(steps) for steps in (2, 5, 15)), strict=True)
    assert kept == tuple(steps * step + inputs for steps in (2, 5, 15))
    # Beyond that the graphs of one step, however many there are.
    assert peaks[0] - kept[0] == peaks[1] - kept[1] == peaks[2] - kept[2]


def test_autocast_of_the_forward_serves_the_backward():
    def grads(step):
        model = network(torch.float32)
        images, labels = problem(torch.float32)
        params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16):
            new = step(functional(model), soft, params, 0.1, images, labels)
        return torch.autograd.grad(sum(v.square().sum() for v in new.values()), images)[0]

    # Sums of bfloat16 products in another order: their rounding, 2^-8, is the bound.
    assert relative(grads(sgd_step), grads(full_step)) < 2**-6


def test_hard_labels_and_a_number_as_learning_rate():
    model = network()
    images, _ = problem()
    labels = torch.arange(6) % 3
    params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    call = functional(model)
    got = sgd_step(call, F.cross_entropy, params, 0.2, images, labels)
    expected = full_step(call, F.cross_entropy, params, 0.2, images, labels)
    for name, value in got.items():
        # create_graph=True takes another formula of GroupNorm's backward.
        assert relative(value, expected[name]) < 1e-14


def test_another_loss_in_the_backward_is_an_error():
    images, labels = problem()
    w = torch.linspace(0, 40, 384, dtype=torch.float64).sin().view(128, 3).requires_grad_()
    masks = iter([1.0, 2.0])
    new = sgd_step(lambda p, x: x.flatten(1) @ (p * next(masks)), soft, w, 0.1, images, labels)
    with pytest.raises(RuntimeError, match="must give the same both times"):
        new.sum().backward()


def test_the_backward_is_not_differentiated():
    images, labels = problem()
    w = torch.zeros(128, 3, dtype=torch.float64, requires_grad=True)
    new = sgd_step(lambda p, x: x.flatten(1) @ p, soft, w, 0.1, images, labels)
    (grad,) = torch.autograd.grad(new.pow(2).sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()
    # The upstream gradient is a constant here, the gradient a function of the images.
    images.grad = None
    new = sgd_step(lambda p, x: x.flatten(1) @ p, soft, w, 0.1, images, labels)
    (grad,) = torch.autograd.grad(new.sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        (grad.sum() + images.sum()).backward()


def test_functional_refuses_what_changes_between_two_calls():
    with pytest.raises(ValueError, match="module '1' is dropout"):
        functional(nn.Sequential(nn.Flatten(), nn.Dropout(0.1)))
    with pytest.raises(ValueError, match="module '0' updates running statistics"):
        functional(nn.Sequential(nn.BatchNorm2d(2)))
    for drawing in (nn.RReLU(), nn.LSTM(2, 2, 2, dropout=0.1), nn.MultiheadAttention(2, 1, 0.1)):
        with pytest.raises(ValueError, match="module '0' draws in training mode"):
            functional(nn.Sequential(drawing))
        functional(nn.Sequential(drawing).eval())
    functional(nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.1)).eval())
    functional(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Dropout(0.0)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr is -0.1"),
        ({"lr": torch.tensor(-0.1)}, ValueError, "lr is -0.1"),
        ({"lr": torch.tensor(float("nan"))}, ValueError, "lr is nan"),
        ({"lr": torch.ones(2)}, ValueError, "scalar"),
        ({"lr": "0.1"}, TypeError, "lr is a Python number"),
        ({"params": 3}, TypeError, "params is a tensor"),
        ({"params": []}, ValueError, "no tensor"),
        ({"params": {"w": torch.ones(2, dtype=torch.int64)}}, TypeError, r"params\['w'\]"),
        ({"images": [1]}, TypeError, "images is a torch.Tensor"),
        ({"labels": [1]}, TypeError, "labels is a torch.Tensor"),
        ({"criterion": lambda z, y: z}, ValueError, "scalar tensor, got"),
    ],
)
def test_bad_input_is_named(change, error, message):
    images, labels = problem()
    w = torch.zeros(128, 3, dtype=torch.float64)
    given = {"params": w, "lr": 0.1, "images": images, "labels": labels, "criterion": soft}
    given |= change
    with pytest.raises(error, match=message):
        sgd_step(lambda p, x: x.flatten(1) @ p, given.pop("criterion"), **given)
