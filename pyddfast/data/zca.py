"""ZCA whitening, the preprocessing of the trajectory-matching codes.

MTT, TESLA, DATM and DD-Ranking whiten whole images by kornia's ``ZCAWhitening(eps=0.1,
compute_inv=True)``, fitted anew at every start of every script.  Here the transform is fitted once,
with an eigendecomposition in float64, and kept on disk under the digest of its images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pyddfast.data.datasets import ImageDataset, ImageSource, Whitened
from pyddfast.data.stored import read_tensors, tensors_digest, write_tensors

__all__ = ["ZCAWhitening", "whiten"]

# Images that are widened to float64 at once: 100 MB at 32 x 32, 400 MB at 64 x 64.
_CHUNK = 4096


class ZCAWhitening:
    r"""Whitening :math:`(x - \mu) W` with the symmetric :math:`W = U (S + \epsilon)^{-1/2} U^T`.

    :math:`U S U^T` is the covariance, with divisor N - 1, of the images as vectors of C·H·W values.
    The transform is unique, so that this is kornia's ``ZCAWhitening`` within rounding.

    Args:
        eps: added to every eigenvalue; 0.1 in all published uses, for images in [0, 1].
        compute_inv: also make the inverse, for :meth:`inverse_transform`.
        cache: folder of fitted transforms.  :meth:`fit` reads the file of its images if there is
            one and writes it otherwise; None keeps nothing.

    Attributes:
        mean: float64 (C·H·W,).
        matrix: float64 (C·H·W, C·H·W).
        inverse: float64 of the same shape, or None.
        image_shape: (C, H, W).

    Raises:
        ValueError: ``eps`` is not positive.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor | None
    image_shape: tuple[int, ...]
    # What ``whitened`` of its data sets says; it names the files of the cache too.
    mark: Whitened = True
    _centred = True

    def __init__(
        self, eps: float = 0.1, *, compute_inv: bool = True, cache: str | Path | None = None
    ) -> None:
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps must be positive and finite, got {eps}")
        self.eps = float(eps)
        self.compute_inv = compute_inv
        self.cache = None if cache is None else Path(cache)
        self._cast: dict[tuple[str, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def fit(self, images: Tensor | ImageSource) -> ZCAWhitening:
        """Fit to the training images; the test images are whitened by the same transform.

        Args:
            images: (N >= 2, C, H, W) uint8, or floating point in [0, 1] (not normalised); or a data
                set of images of one size.  The work runs on the device of a tensor.

        Returns:
            self.

        Raises:
            TypeError: neither a data set nor a tensor of bytes or floating point.
            ValueError: another shape, values outside [0, 1], or a damaged file in the cache.
        """
        if not isinstance(images, Tensor):
            if not isinstance(images, ImageSource):
                raise TypeError(f"images is a tensor or a data set, not {type(images).__name__}")
            images = _read(images)
        _check(images)
        file = None
        if self.cache is not None:
            digest = tensors_digest({"images": images})
            name = "zca" if self.mark is True else self.mark
            file = self.cache / f"{name}-{digest[:32]}-eps{self.eps!r}.safetensors"
        if file is None or not file.exists():
            self.mean, values, vectors = self._eigen(images)
            values = values + self._added(values)
            self.matrix = (vectors * values.rsqrt()) @ vectors.T
            self.inverse = (vectors * values.sqrt()) @ vectors.T
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                kept = {"mean": self.mean, "matrix": self.matrix, "inverse": self.inverse}
                write_tensors(file, kept, {"eps": self.eps, "sha256": digest})
        else:
            try:
                tensors, state = read_tensors(file)
            except ValueError as error:
                raise ValueError(f"{error}; remove it, and it is fitted again") from error
            size = images[0].numel()
            shapes = {"mean": (size,), "matrix": (size, size), "inverse": (size, size)}
            if state != {"eps": self.eps, "sha256": digest} or shapes != {
                name: tuple(tensor.shape) for name, tensor in tensors.items()
            }:
                raise ValueError(f"{file} is not the transform of these images; remove it")
            self.mean, self.matrix, self.inverse = (tensors[n].to(images.device) for n in shapes)
        if not self.compute_inv:
            self.inverse = None
        self.image_shape = tuple(images.shape[1:])
        self._cast.clear()
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Whiten images.

        Args:
            images: (..., C, H, W) in [0, 1], floating point, or uint8, which becomes float32.

        Returns:
            The same shape; differentiable.  Computed in float64 for float64 images, else float32.

        Raises:
            RuntimeError: nothing was fitted.
            ValueError: images of another size.
        """
        flat = self._flat(images)
        mean, matrix = self._parts("matrix", flat)
        return ((flat - mean) @ matrix).reshape(images.shape)

    def inverse_transform(self, images: Tensor) -> Tensor:
        """Undo the whitening, for pictures: (..., C, H, W) floating point, the same shape.

        Raises:
            RuntimeError: nothing was fitted, or ``compute_inv=False``.
            ValueError: images of another size.
        """
        flat = self._flat(images)
        mean, inverse = self._parts("inverse", flat)
        return (flat @ inverse + mean).reshape(images.shape)

    def _flat(self, images: Tensor) -> Tensor:
        if not hasattr(self, "image_shape"):
            raise RuntimeError(f"this {type(self).__name__} is not fitted; call .fit(images) first")
        if tuple(images.shape[-3:]) != self.image_shape or images.ndim < 3:
            raise ValueError(
                f"images must be (..., C, H, W) with C, H, W = {self.image_shape} as fitted, "
                f"got {tuple(images.shape)}"
            )
        return self._prepare(_unit(images).reshape(-1, self.mean.numel()))

    def _eigen(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, eigenvalues and eigenvectors of the covariance, float64."""
        size, count = images[0].numel(), len(images)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean = torch.zeros(size, dtype=torch.float64, device=images.device)
        if self._centred:
            for part in torch.split(images, _CHUNK):
                mean += part.flatten(1).double().sum(0)
            mean /= scale * count
        covariance = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        for part in torch.split(images, _CHUNK):
            rows = self._prepare(part.flatten(1).double() / scale) - mean
            covariance.addmm_(rows.T, rows)
        values, vectors = torch.linalg.eigh(covariance / (count - 1 if self._centred else count))
        # Rounding may leave -1e-17 for directions in which the images do not vary.
        return mean, values.clamp(min=0), vectors

    def _prepare(self, rows: Tensor) -> Tensor:
        """What is done to each image before; rows of values in [0, 1]."""
        return rows

    def _added(self, values: Tensor) -> Tensor | float:
        """What is added to every eigenvalue."""
        return self.eps

    def _parts(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and matrix on the device and in the type of the images."""
        matrix: Tensor | None = getattr(self, name)
        if matrix is None:
            raise RuntimeError("fitted without an inverse; use ZCAWhitening(compute_inv=True)")
        key = name, like.dtype, like.device
        if key not in self._cast:
            self._cast[key] = (
                self.mean.to(like.device, like.dtype),
                matrix.to(like.device, like.dtype),
            )
        return self._cast[key]


def whiten(dataset: ImageDataset, whitening: ZCAWhitening) -> ImageDataset:
    """A data set with whitened images in place of normalised ones.

    Args:
        dataset: uint8 images.
        whitening: Fitted to the training split, for the test split too.

    Returns:
        The data set with float32 images and ``whitened=True`` (``"kip"`` by KIP's).

    Raises:
        ValueError: It is whitened or normalised already, or of another image size.
        RuntimeError: ``whitening`` is not fitted.
    """
    if dataset.images.dtype != torch.uint8:
        raise ValueError(f"whitening takes uint8 images, {dataset.name} has {dataset.images.dtype}")
    parts = [whitening(part) for part in torch.split(dataset.images, _CHUNK)]
    return replace(dataset, images=torch.cat(parts), whitened=whitening.mark)


def _read(source: ImageSource) -> Tensor:
    """All images of a data set as bytes."""
    held = getattr(source, "images", None)
    if isinstance(held, Tensor):
        return held
    images = [source[index] for index in range(len(source))]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ValueError(f"ZCA needs images of one size, got {len(shapes)} sizes")
    return torch.stack(images)


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
    if images.ndim != 4 or len(images) < 2 or images[0].numel() == 0:
        raise ValueError(f"images must be (N >= 2, C, H, W), got {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        low, high = (float(bound) for bound in torch.aminmax(images))
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images must lie in [0, 1], not normalised; got values from {low} to {high}"
            )


def _unit(images: Tensor) -> Tensor:
    """In [0, 1]: float64 stays, everything else becomes float32."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images if images.dtype == torch.float64 else images.float()
