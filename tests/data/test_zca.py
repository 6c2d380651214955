"""ZCA whitening against its definition, kornia's implementation and its own file."""

from __future__ import annotations

import kornia.enhance
import pytest
import torch

from pyddfast.data import ImageDataset, Normalization, ZCAWhitening
from tests.tolerances import assert_close


def pictures(n=60, seed=0):
    """Correlated values in [0, 1]: neighbours share a random field."""
    g = torch.Generator().manual_seed(seed)
    field = torch.rand(n, 2, 7, 6, generator=g, dtype=torch.float64)
    return (field[..., :-1, :-1] + field[..., 1:, 1:]) / 2


def test_equals_kornia():
    train, test = pictures(), pictures(5, seed=1)
    peer = kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True).fit(train)
    zca = ZCAWhitening().fit(train)
    assert_close(zca(test), peer(test), 1e-11)
    assert_close(zca.inverse_transform(test), peer.inverse_transform(test), 1e-11)
    assert_close(zca.matrix, peer.transform_matrix, 1e-11)


def test_whitens_and_comes_back():
    train = pictures(400)
    zca = ZCAWhitening(eps=1e-9).fit(train)
    white = zca(train).flatten(1)
    covariance = white.T @ white / (len(white) - 1)
    # Eigenvalues s become s / (s + eps): all but 1.
    assert_close(covariance, torch.eye(60, dtype=torch.float64), 1e-5)
    assert white.mean(0).abs().max() < 1e-12
    assert_close(zca.matrix, zca.matrix.T, 1e-12)
    assert_close(zca.inverse_transform(zca(train)), train, 1e-11)


def test_definition_with_fewer_images_than_values():
    train = pictures(20)  # 60 values: 41 eigenvalues are 0
    flat = train.flatten(1)
    centred = flat - flat.mean(0)
    u, s, _ = torch.linalg.svd(centred.T @ centred / 19)
    expected = centred @ (u @ torch.diag((s + 0.1) ** -0.5) @ u.T)
    zca = ZCAWhitening().fit(train)
    assert_close(zca(train).flatten(1), expected, 1e-11)
    single = zca(train.float())
    assert single.dtype == torch.float32
    assert_close(single, expected.view_as(train), 1e-5)


def test_bytes_chunks_and_data_sets_give_the_same(monkeypatch):
    train = (pictures(50) * 255).round().to(torch.uint8)
    exact = ZCAWhitening().fit(train.double() / 255)
    dataset = ImageDataset(
        train, torch.zeros(50, dtype=torch.int64), ("a",), Normalization((0.5,) * 2, (0.2,) * 2)
    )
    monkeypatch.setattr("pyddfast.data.zca._CHUNK", 16)  # 4 parts, the last of 2
    for given in (train, dataset):
        zca = ZCAWhitening().fit(given)
        assert_close(zca.mean, exact.mean, 1e-13)
        assert_close(zca.matrix, exact.matrix, 1e-11)
    white = zca(train)
    assert white.dtype == torch.float32
    assert_close(white, exact(train.double() / 255), 1e-5)


class Rows:
    """A data set without an ``images`` tensor, as a folder is."""

    class_names, num_classes = ("a",), 1
    normalization = Normalization((0.5,) * 2, (0.2,) * 2)

    def __init__(self, images):
        self.rows, self.labels = images, torch.zeros(len(images), dtype=torch.int64)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_data_sets_without_a_tensor():
    train = (pictures(30) * 255).round().to(torch.uint8)
    assert torch.equal(ZCAWhitening().fit(Rows(train)).matrix, ZCAWhitening().fit(train).matrix)
    ragged = Rows([train[0], train[1, :, :3]])
    with pytest.raises(ValueError, match="one size, got 2"):
        ZCAWhitening().fit(ragged)


def test_cache_is_keyed_by_images_and_eps(tmp_path, monkeypatch):
    train = pictures()
    first = ZCAWhitening(cache=tmp_path / "zca").fit(train)
    assert len(list((tmp_path / "zca").iterdir())) == 1

    def refuse(self, images):
        raise AssertionError("fitted again")

    with monkeypatch.context() as context:
        context.setattr("pyddfast.data.zca.ZCAWhitening._eigen", refuse)
        again = ZCAWhitening(cache=tmp_path / "zca").fit(train.clone())
        only = ZCAWhitening(cache=tmp_path / "zca", compute_inv=False).fit(train)
        with pytest.raises(AssertionError, match="fitted again"):
            ZCAWhitening(cache=tmp_path / "zca").fit(train.flip(0))
    for name in ("mean", "matrix", "inverse"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert only.inverse is None
    other = ZCAWhitening(0.2, cache=tmp_path / "zca").fit(train)
    assert not torch.equal(other.matrix, first.matrix)
    assert len(list((tmp_path / "zca").iterdir())) == 2


def test_damaged_and_foreign_files_are_named(tmp_path):
    ZCAWhitening(cache=tmp_path).fit(pictures())
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} is damaged.*remove it, and it is fitted"):
        ZCAWhitening(cache=tmp_path).fit(pictures())
    other = tmp_path / "other"
    ZCAWhitening(cache=other).fit(pictures(seed=1))
    file.write_bytes(next(other.iterdir()).read_bytes())
    with pytest.raises(ValueError, match=f"{file.name} is not the transform of these images"):
        ZCAWhitening(cache=tmp_path).fit(pictures())


def test_refitting_replaces_everything():
    zca = ZCAWhitening().fit(pictures())
    before = zca(pictures(3))
    zca.fit(pictures(seed=1))
    assert torch.equal(zca(pictures(3)), ZCAWhitening().fit(pictures(seed=1))(pictures(3)))
    assert not torch.equal(zca(pictures(3)), before)


def test_is_differentiable():
    zca = ZCAWhitening().fit(pictures())
    x = pictures(2).requires_grad_()
    zca(x).square().sum().backward()
    flat = x.detach().flatten(1) - zca.mean
    assert_close(x.grad.flatten(1), 2 * flat @ zca.matrix @ zca.matrix.T, 1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ZCAWhitening(0.0), ValueError, "eps must be positive"),
        (lambda: ZCAWhitening()(pictures()), RuntimeError, "not fitted"),
        (lambda: ZCAWhitening().fit(pictures() * 2 - 1), ValueError, "not normalised"),
        (lambda: ZCAWhitening().fit(pictures() * float("nan")), ValueError, r"in \[0, 1\]"),
        (lambda: ZCAWhitening().fit(pictures(1)), ValueError, "N >= 2"),
        (lambda: ZCAWhitening().fit(pictures()[0]), ValueError, "N >= 2"),
        (lambda: ZCAWhitening().fit(pictures().long()), TypeError, "torch.int64"),
        (lambda: ZCAWhitening().fit([1]), TypeError, "not list"),
        (lambda: ZCAWhitening().fit(pictures())(pictures()[..., :3]), ValueError, "as fitted"),
        (
            lambda: ZCAWhitening(compute_inv=False).fit(pictures()).inverse_transform(pictures()),
            RuntimeError,
            "compute_inv=True",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
