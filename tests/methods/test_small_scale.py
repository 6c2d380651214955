"""DC, DSA and DM against their official loops restated in float64; kills, processes, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from small_scale_cases import MODEL, squares
from torch.nn import functional as F

from pyddfast.data import load, normalize
from pyddfast.data.stored import read_tensors
from pyddfast.methods import DCConfig, DMConfig, DSAMatchingConfig, Job, dc, dm, dsa
from pyddfast.methods.dc import LOOPS, resolve_loops
from pyddfast.methods.dm import resolve_dm
from pyddfast.methods.small_scale import RealImages, class_dsa, derived_seed
from pyddfast.models import create
from pyddfast.ops.dsa import draw_dsa
from pyddfast.ops.dsa import dsa as apply_dsa
from pyddfast.random import Purpose, permutation
from pyddfast.train import recipe, train_student
from tests.processes import run_python

RUNNER = Path(__file__).with_name("small_scale_runner.py")
CPU = Job(device="cpu")
SEED = 5


def network(step, **options):
    seed = derived_seed(SEED, Purpose.NETWORK, step)
    name, given = MODEL
    made = create(name, 3, 1, 8, seed=seed, **given, **options)
    return made.double().train()


def drawn(step, label, images):
    params = class_dsa(SEED, step, label, 3, (8, 8), "color_crop_cutout_flip_scale_rotate")
    return apply_dsa(images, params)


def real_batch(real, label, count, step):
    return real.batch(label, count, step).double()


def sgd(images, momentum, gradient, lr):
    momentum.mul_(0.5).add_(gradient)
    images.sub_(lr * momentum)


@pytest.mark.parametrize("norm", ["instance", "batch"])  # batch norm: all classes in one forward
def test_dm_is_the_official_loop(norm):
    data = squares()
    real = RealImages(data, torch.device("cpu"), SEED)
    images = real.initial(2, "real").double()
    momentum = torch.zeros_like(images)
    for step in range(4):
        net = network(step, norm=norm)
        leaf = images.clone().requires_grad_()
        pairs = []
        for label in range(3):
            theirs = drawn(step, label, real_batch(real, label, 4, step))
            pairs.append((theirs, drawn(step, label, leaf[2 * label : 2 * label + 2])))
        if norm == "batch":
            f_real = net.embed(torch.cat([a for a, _ in pairs])).detach().reshape(3, 4, -1)
            f_syn = net.embed(torch.cat([b for _, b in pairs])).reshape(3, 2, -1)
            loss = ((f_real.mean(1) - f_syn.mean(1)) ** 2).sum()
        else:
            loss = torch.tensor(0.0).double()
            for a, b in pairs:
                loss += ((net.embed(a).detach().mean(0) - net.embed(b).mean(0)) ** 2).sum()
        sgd(images, momentum, torch.autograd.grad(loss, leaf)[0], 1.0)
    model = (MODEL[0], {**MODEL[1], "norm": norm})
    made = dm(data, model, DMConfig(ipc=2, iterations=4, real_batch=4, seed=SEED), job=CPU)
    # Float32 against float64: steps of lr 1 on losses of order 1.
    torch.testing.assert_close(made.images.double(), images, rtol=2e-4, atol=2e-4)
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.meta["method"] == "dm"
    assert made.normalization == data.normalization


def test_dm_over_all_classes_is_equation_5():
    data = squares()
    real = RealImages(data, torch.device("cpu"), SEED)
    images = real.initial(2, "real").double()
    net, leaf = network(0), images.clone().requires_grad_()
    theirs = torch.cat([drawn(0, c, real_batch(real, c, 4, 0)) for c in range(3)])
    ours = torch.cat([drawn(0, c, leaf[2 * c : 2 * c + 2]) for c in range(3)])
    loss = (net.embed(theirs).mean(0) - net.embed(ours).mean(0)).square().sum()
    images -= torch.autograd.grad(loss, leaf)[0]
    config = DMConfig(ipc=2, iterations=1, real_batch=4, seed=SEED, per_class=False)
    made = dm(data, MODEL, config, job=CPU)
    torch.testing.assert_close(made.images.double(), images, rtol=1e-4, atol=1e-4)
    assert made.meta["loss"] == pytest.approx(loss.item(), rel=1e-4)


def match_loss(found, wanted):
    """The official distance: rows of matrices and kernels, vectors left out."""
    total = torch.tensor(0.0).double()
    for s, r in zip(found, wanted, strict=True):
        if s.ndim >= 2:
            s, r = s.flatten(1), r.flatten(1)
            cosine = (s * r).sum(1) / (s.norm(dim=1) * r.norm(dim=1) + 1e-6)
            total = total + (1 - cosine).sum()
    return total


@pytest.mark.parametrize("augment", [False, True])
def test_dc_and_dsa_are_the_official_loop(augment):
    """One backward over all classes; the library goes class by class."""
    data = squares()
    real = RealImages(data, torch.device("cpu"), SEED)
    images = real.initial(2, "real" if augment else "noise").double()
    momentum, labels = torch.zeros_like(images), torch.arange(3).repeat_interleave(2)
    inner_seed, losses = derived_seed(SEED, Purpose.INNER), []
    for iteration in range(2):
        net = network(iteration)
        parameters = list(net.parameters())
        for outer in range(2):
            step = 2 * iteration + outer
            leaf, loss = images.clone().requires_grad_(), torch.tensor(0.0).double()
            for label in range(3):
                theirs, ours = real_batch(real, label, 4, step), leaf[2 * label : 2 * label + 2]
                if augment:
                    theirs, ours = drawn(step, label, theirs), drawn(step, label, ours)
                target = torch.full((4,), label)
                wanted = torch.autograd.grad(F.cross_entropy(net(theirs), target), parameters)
                found = torch.autograd.grad(
                    F.cross_entropy(net(ours), target[:2]), parameters, create_graph=True
                )
                loss += match_loss(found, wanted)
            losses.append(loss.item() / 3)
            sgd(images, momentum, torch.autograd.grad(loss, leaf)[0], 0.1)
            if outer == 1:
                break
            for epoch in range(3):
                visit = step * 3 + epoch
                order = permutation(inner_seed, Purpose.EPOCH_ORDER, 6, visit)
                for position, ids in enumerate(order.split(4)):
                    x = images[ids]
                    if augment:
                        seen = torch.full_like(ids, visit)
                        x = apply_dsa(
                            x, draw_dsa(inner_seed, ids, seen, visit * 2 + position, (8, 8))
                        )
                    gradient = torch.autograd.grad(F.cross_entropy(net(x), labels[ids]), parameters)
                    with torch.no_grad():
                        for p, g in zip(parameters, gradient, strict=True):
                            p -= 0.01 * g
    method, config = (dsa, DSAMatchingConfig) if augment else (dc, DCConfig)
    chosen = config(
        ipc=2, iterations=2, outer_loops=2, inner_epochs=3, real_batch=4, train_batch=4, seed=SEED
    )
    made = method(data, MODEL, chosen, job=CPU)
    # Rows of small gradients turn fast; float32 leaves about 1e-4 of a step's length.
    torch.testing.assert_close(made.images.double(), images, rtol=2e-3, atol=2e-3)
    assert made.meta["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    root = tmp_path_factory.mktemp("jobs")
    done = run_python(str(RUNNER), str(root))
    return root, json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("method", ["by_dm", "by_dsa"])
def test_a_killed_job_ends_with_the_same_bytes(jobs, method):
    root, seen, errors = jobs
    assert seen[f"{method}-1"] == [0], errors
    assert seen[f"{method}-killed"]["killed"][:2] == [-9, -9]
    whole, again = (root / f"{method}-{name}" / "set" for name in ("1", "killed"))
    for file in ("set.safetensors", "set.json"):
        assert (whole / file).read_bytes() == (again / file).read_bytes()
    rows = [
        [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, again)
    ]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]


@pytest.mark.parametrize("method", ["by_dm", "by_dsa"])
def test_two_processes_divide_the_classes(jobs, method):
    root, seen, errors = jobs
    assert seen[f"{method}-2"] == [0, 0], errors
    one, two = (
        read_tensors(root / f"{method}-{world}" / "checkpoint.safetensors")[0]["images"]
        for world in (1, 2)
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_finished_job_is_read(tmp_path):
    config = DMConfig(ipc=1, iterations=3, real_batch=2)
    first = dm(squares(), MODEL, config, job=Job(device="cpu", out=tmp_path))
    steps = []
    job = Job(device="cpu", out=tmp_path, on_progress=lambda done, total: steps.append(done))
    assert torch.equal(dm(squares(), MODEL, config, job=job).images, first.images)
    assert steps == []
    with pytest.raises(ValueError, match="another configuration: lr_img was"):
        dm(squares(), MODEL, dataclasses.replace(config, lr_img=2.0), job=job)


def test_published_values():
    data = squares()
    assert (resolve_dm(DMConfig(), data).iterations, resolve_dm(DMConfig(), data).lr_img) == (
        20_000,
        1,
    )
    cifar = dataclasses.replace(data, name="cifar10")
    assert resolve_dm(DMConfig(ipc=100), cifar).lr_img == 10.0
    assert resolve_dm(DMConfig(ipc=50), cifar).lr_img == 1.0
    for ipc, loops in {1: (1, 1), 10: (10, 50), 50: (50, 10)}.items():
        assert LOOPS[ipc] == loops
        used = resolve_loops(DCConfig(ipc=ipc), "noise")
        assert (used.outer_loops, used.inner_epochs) == loops
        assert (used.iterations, used.lr_img, used.init, used.dsa_strategy) == (
            1000,
            0.1,
            "noise",
            "",
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: dm(d, MODEL, DMConfig(ipc=10), job=CPU), "class 0 has 9"),
        (lambda d: dc(d, MODEL, DCConfig(ipc=7), job=CPU), "give both for ipc = 7"),
        (lambda d: dm(d, MODEL, DMConfig(ipc=0), job=CPU), "ipc must be a positive int"),
        (lambda d: dm(d, MODEL, DMConfig(lr_img=-1.0), job=CPU), "lr_img must be positive"),
        (lambda d: dm(d, MODEL, DMConfig(dsa_strategy="colour"), job=CPU), "unknown entries"),
        (lambda d: dm(d, MODEL, DMConfig(init="set"), job=CPU), "init must be"),
        (lambda d: dc(d, MODEL, DCConfig(metric="l2"), job=CPU), "metric must be one of"),
        (lambda d: dc(d, MODEL, DCConfig(network_lr=0.0), job=CPU), "network_lr must be"),
        (
            lambda d: dm(d, lambda seed: torch.nn.Flatten(), DMConfig(ipc=1), job=CPU),
            "network with embed, Flatten",
        ),
        (
            lambda d: dm(
                dataclasses.replace(d, class_names=("a", "b", "c", "d")), MODEL, DMConfig(ipc=1)
            ),
            "no image of class 3",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(squares())


def test_what_diverges_stops_and_says_what_to_change(tmp_path):
    plain = ("convnet-d2", {"width": 6, "norm": "none"})  # a norm would hide the growth
    config = DMConfig(ipc=1, iterations=40, real_batch=2, lr_img=1e30)
    with pytest.raises(FloatingPointError, match=r"the loss of steps .* lower lr_img"):
        dm(squares(), plain, config, job=Job(device="cpu", out=tmp_path, checkpoint_seconds=0.0))
    # What was saved last is finite.
    found = tmp_path / "checkpoint.safetensors"
    assert not found.exists() or read_tensors(found)[0]["images"].isfinite().all()


def test_other_networks_distil_at_64_pixels():
    data = squares(per_class=2, classes=2, size=64)
    config = DSAMatchingConfig(ipc=1, iterations=1, outer_loops=1, inner_epochs=0, real_batch=2)
    made = dsa(data, ("resnet18", {"norm": "instance"}), config, job=CPU)
    first = RealImages(data, torch.device("cpu"), 0).initial(1, "real")
    assert made.images.isfinite().all()
    # lr 0.1 on gradients of cosines: every image has moved, none has jumped.
    moved = (made.images - first).abs().amax(dim=(1, 2, 3))
    assert ((moved > 1e-6) & (moved < 10)).all()


def test_dm_beats_its_initialisation():
    """Fashion-MNIST, one image a class: students of it and of the real images it began with."""
    data = load("fashion-mnist-mini", split="train")
    test = load("fashion-mnist-mini", split="test")
    model = ("convnet-d3", {"width": 16})
    # Few steps want a larger rate than the published 20,000 of lr 1.
    made = dm(data, model, DMConfig(ipc=1, iterations=25, real_batch=16, lr_img=10.0), job=CPU)
    first = RealImages(data, torch.device("cpu"), 0).initial(1, "real")
    assert torch.equal(first, normalize(data.images, data.normalization)[_positions(data, first)])
    used = recipe("hl", "small", epochs=40, milestone=20, augmentation="none")
    means = [
        train_student(
            one, "hl", model, test_set=test, recipe=used, seeds=(0, 1), evaluations=1,
            device="cpu", progress=False,
        ).mean
        for one in (made, dataclasses.replace(made, images=first))
    ]  # fmt: skip
    # Standard error of the test set and two seeds: about 2 points.
    assert means[0] > means[1] + 0.03


def _positions(data, images):
    everything = normalize(data.images, data.normalization)
    return [int((everything == image).flatten(1).all(1).nonzero()[0, 0]) for image in images]
