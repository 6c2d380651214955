"""``evaluate_synset`` of each codebase, and DC's augmentation, written down once more."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pyddfast.compat import datm, dcbench, mtt, vico

# numpy's global generator is the one that the official code draws from.
seed_numpy, draw = np.random.seed, np.random
PARAM = {"crop": 4, "scale": 0.2, "rotate": 45, "noise": 0.001, "strategy": "crop_scale_rotate"}


def arguments(**changes):
    given = {
        "device": "cpu", "dataset": "CIFAR10", "lr_net": 0.05, "epoch_eval_train": 3,
        "batch_train": 4, "dsa": False, "dc_aug_param": None, "optimizer": "sgd", "eval_gap": 1001,
    }  # fmt: skip
    return SimpleNamespace(**{**given, **changes})


def network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))


@pytest.fixture
def data():
    images = torch.randn(10, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(10) % 3
    return images, labels, DataLoader(TensorDataset(images + 0.1, labels), batch_size=4)


def augmented_as_dc(batch, param):
    """The changes one by one, in numpy, on whole float64 arrays."""
    means = [float(batch[:, c].mean()) for c in range(batch.shape[1])]
    done = []
    for image in batch.numpy():
        height, width = image.shape[1:]
        entry = draw.permutation(param["strategy"].split("_"))[0]
        if entry == "crop":
            reach = param["crop"]
            framed = np.stack(
                [np.pad(p, reach, constant_values=m) for p, m in zip(image, means, strict=True)]
            )
            row, column = draw.permutation(2 * reach)[0], draw.permutation(2 * reach)[0]
            out = framed[:, row : row + height, column : column + width]
        elif entry == "scale":
            low, high = 1 - param["scale"], 1 + param["scale"]
            h, w = int(draw.uniform(low, high) * height), int(draw.uniform(low, high) * height)
            out = np.zeros_like(image)
            side = max(h, w, height, width)
            shift = int((side - height) / 2), int((side - width) / 2)
            top, left = int((side - h) / 2), int((side - w) / 2)
            for i in range(height):
                for j in range(width):
                    a, b = i + shift[0] - top, j + shift[1] - left
                    if 0 <= a < h and 0 <= b < w:
                        out[:, i, j] = image[:, a * height // h, b * width // w]
        elif entry == "rotate":
            angle = draw.randint(-param["rotate"], param["rotate"])
            whole = scipy.ndimage.rotate(image, angle, axes=(-2, -1), cval=np.mean(means))
            top, left = ((whole.shape[k] - image.shape[k]) // 2 for k in (1, 2))
            out = whole[:, top : top + height, left : left + width]
        else:
            out = image + param["noise"] * torch.randn(image.shape).numpy()
        done.append(torch.as_tensor(out))
    return torch.stack(done)


def official(images, labels, test, args, *, criterion=F.cross_entropy, gap=None):
    """The loop that the codes share: losses and accuracies of every epoch, and of the test."""
    net, lr, rows = network(), args.lr_net, []
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(TensorDataset(images, labels), batch_size=args.batch_train, shuffle=True)
    for epoch in range(args.epoch_eval_train + 1):
        loss_sum = right = 0
        for x, y in loader:
            if args.dc_aug_param is not None:
                x = augmented_as_dc(x, args.dc_aug_param)
            logits = net(x)
            loss = criterion(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(y)
            right += int((logits.argmax(1) == (y.argmax(1) if y.ndim == 2 else y)).sum())
        rows.append((loss_sum / len(images), right / len(images)))
        if epoch == args.epoch_eval_train // 2 + 1:
            lr *= 0.1
            optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        if gap and epoch % gap == 0:
            list(test)  # a test between draws the loader's seed
    x, y = (torch.cat(parts) for parts in zip(*test, strict=True))
    logits = net(x)
    tested = F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
    return net, [a for _, a in rows], tested[1], [loss for loss, _ in rows], tested[0]


def same(net, expected):
    for ours, theirs in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["crop_scale_rotate", "crop_noise"])  # digits; batch norm
def test_dc_own_augmentation_draws_and_changes_as_the_official_one(data, strategy):
    images, labels, test = data
    args = arguments(dc_aug_param={**PARAM, "strategy": strategy})
    states = []
    for run in (
        lambda: vico.evaluate_synset(0, network(), images, labels, test, args),
        lambda: official(images, labels, test, args),
    ):
        torch.manual_seed(7)
        seed_numpy(7)
        states.append((run(), torch.get_rng_state(), draw.random()))
    (found, drawn, after), (expected, *wanted) = states
    same(found[0], expected[0])
    assert found[1:] == (expected[1][-1], pytest.approx(expected[2]))
    assert torch.equal(drawn, wanted[0])
    assert after == wanted[1]


def test_mtt_and_datm_return_every_epoch(data):
    images, labels, test = data
    for module in (mtt, datm):
        torch.manual_seed(3)
        found = module.evaluate_synset(
            1, network(), images, labels, test, arguments(), return_loss=True
        )
        torch.manual_seed(3)
        expected = official(images, labels, test, arguments())
        same(found[0], expected[0])
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        assert len(module.evaluate_synset(1, network(), images, labels, test, arguments())) == 3


def test_datm_trains_on_learned_labels(data):
    images, _, test = data
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(8))
    how = {"train_criterion": datm.SoftCrossEntropy, "return_loss": True}
    torch.manual_seed(3)
    found = datm.evaluate_synset(1, network(), images, logits, test, arguments(), **how)
    torch.manual_seed(3)

    def soft(output, target):
        return -(target.softmax(1) * output.log_softmax(1)).sum(1).mean()

    expected = official(images, logits, test, arguments(), criterion=soft)
    same(found[0], expected[0])
    assert found[3] == pytest.approx(expected[3], rel=1e-5)


def test_dcbench_tests_between_and_logs(data):
    images, labels, test = data
    said = []
    log = SimpleNamespace(info=lambda text, *values: said.append(text % values))
    torch.manual_seed(3)
    found = dcbench.evaluate_synset(
        2, network(), images, labels, test, arguments(eval_gap=2), log
    )  # fmt: skip
    state = torch.get_rng_state()
    torch.manual_seed(3)
    expected = official(images, labels, test, arguments(), gap=2)
    same(found[0], expected[0])
    assert torch.equal(state, torch.get_rng_state())
    assert "Evaluate_02: epoch = 0003" in said[-1]
    # Adam keeps its rate and its moments; labels may be probabilities.
    soft = F.one_hot(labels, 3).float() * 0.8 + 0.2 / 3
    torch.manual_seed(3)
    found = dcbench.evaluate_synset(
        2, network(), images, soft, test, arguments(optimizer="adam"), log
    )
    torch.manual_seed(3)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    loader = DataLoader(TensorDataset(images, soft), batch_size=4, shuffle=True)
    for epoch in range(4):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        if epoch % 1001 == 0:
            list(test)
    same(found[0], net)


def test_sets_without_a_label_for_each_image_are_refused(data):
    images, labels, test = data
    for few in (labels[:5], labels[:0]):
        with pytest.raises(ValueError, match=f"got 10 and {len(few)}"):
            vico.evaluate_synset(0, network(), images, few, test, arguments())


def test_what_only_the_official_functions_do_is_refused(data):
    for module, changes, options, message in (
        (mtt, {}, {"texture": True}, "texture"),
        (datm, {"dataset": "ImageNet"}, {}, "ImageNet subsets"),
        (datm, {}, {"Preciser_Scheduler": True}, "Preciser_Scheduler"),
        (dcbench, {"aug": "autoaug"}, {"logging": None}, "autoaug"),
        (vico, {"dc_aug_param": {**PARAM, "strategy": "crop_blur"}}, {}, "blur"),
    ):
        with pytest.raises(ValueError, match=message):
            module.evaluate_synset(0, network(), *data, arguments(**changes), **options)
