"""Storage formats of images: one function a format, which returns the training and test split undecoded."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deap_prune.errors import DataError, did_you_mean

TensorPair = tuple[Tensor, Tensor]
"""Inputs (N, C, H, W), float32 and normalised; targets (N,), int64."""

Channels = float | Sequence[float]
"""One number for all channels of an image, or one number for each."""

Array = npt.NDArray[Any]

_TORCHVISION = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")


@dataclass(frozen=True)
class Images:
    """Labelled images in their storage form (uint8, or files), decoded when they are taken.

    Attributes:
        labels: Shape (N,), int64.
        decode: Function of indices (n,) to inputs (n, C, H, W), float32 and normalised.
    """

    labels: Tensor
    decode: Callable[[Tensor], Tensor]

    def take(self, indices: Tensor) -> TensorPair:
        """Inputs and targets at the indices, shape (n,)."""
        return self.decode(indices), self.labels[indices]


@dataclass(frozen=True)
class Source:
    """The training and test split of a data set in their storage form.

    Attributes:
        train: The training split; calibration and validation images are drawn from it.
        test: The test split, or None.
        num_classes: Number of classes; labels are in 0 .. num_classes - 1.
        validation: Number of validation images if ``load_data`` gets none.
        holds_out: Whether validation images are always excluded from ``train``.
    """

    train: Images
    test: Images | None
    num_classes: int
    validation: int = 1000
    holds_out: bool = False


def npz(
    *, train: str, test: str | None = None, mean: Channels, std: Channels, num_classes: int | None = None
) -> Source:
    """NumPy archives with the keys ``images`` (uint8, NHWC or NHW) and ``labels`` (integers, N).

    Args:
        train: Path of the training archive.
        test: Path of the test archive.
        mean: Mean of the pixels, scaled to 0 .. 1, of each channel or of all; it is subtracted.
        std: Standard deviation of the pixels, likewise; the result is divided by it.
        num_classes: Number of classes; default: the largest training label plus one.
    """
    if num_classes is not None and not isinstance(num_classes, int):
        raise DataError(f"num_classes is {num_classes!r}; give a whole number, or leave it out")
    halves = [(path, *_read_npz(path)) for path in (train, test) if path is not None]
    return _from_arrays(halves, mean, std, num_classes)


def torchvision_dataset(*, name: str, root: str, download: bool = False, mean: Channels, std: Channels) -> Source:
    """A data set of torchvision: CIFAR10, CIFAR100, MNIST, FashionMNIST or KMNIST.

    Args:
        name: Name of its class in torchvision.datasets.
        root: Folder of the data set.
        download: Whether to download it if it is missing.
        mean: Mean of the pixels, scaled to 0 .. 1, of each channel or of all; it is subtracted.
        std: Standard deviation of the pixels, likewise; the result is divided by it.
    """
    if name not in _TORCHVISION:
        raise DataError(f"no torchvision data set '{name}' here; {did_you_mean(name, _TORCHVISION)}")
    from torchvision import datasets

    try:
        halves = [getattr(datasets, name)(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError, TypeError) as error:
        raise DataError(f"cannot read {name} from '{root}': {error}; give its root, or download=True") from error
    arrays = [(f"torchvision's {name}", np.asarray(half.data), np.asarray(half.targets)) for half in halves]
    return _from_arrays(arrays, mean, std, None)


def image_folder(
    *,
    train: str,
    test: str | None = None,
    size: int = 224,
    resize: int | None = None,
    mean: Channels,
    std: Channels,
) -> Source:
    """Folders of image files with one sub-folder a class (torchvision's ImageFolder).

    A split is decoded into one tensor, so ``train`` must fit into memory. For larger sets give ``finetune`` a
    DataLoader.

    Args:
        train: Path of the training folder.
        test: Path of the test folder, with the same classes.
        size: Side of the centre crop, in pixels.
        resize: Shorter side before the crop, in pixels; default: size * 256 / 224.
        mean: Mean of the pixels, scaled to 0 .. 1, of each channel or of all; it is subtracted.
        std: Standard deviation of the pixels, likewise; the result is divided by it.
    """
    from torchvision import datasets, transforms

    def read(folder: str) -> tuple[Images, list[str]]:
        try:
            folders = datasets.ImageFolder(folder)
        except (OSError, TypeError) as error:
            raise DataError(f"no image folder at '{folder}': {error}; give a folder with one folder a class") from error
        decode = partial(_decode_files, [path for path, _ in folders.samples], shape, statistics)
        return Images(torch.tensor(folders.targets), decode), folders.classes

    if not isinstance(size, int) or not isinstance(resize, (int, type(None))):
        raise DataError(f"size is {size!r}, resize is {resize!r}; give whole numbers of pixels")
    statistics = _statistics(mean, std, 3)
    shape = transforms.Compose(
        [
            transforms.Resize(resize or round(size * 256 / 224)),
            transforms.CenterCrop(size),
            transforms.PILToTensor(),
        ]
    )
    images, classes = read(train)
    if test is None:
        return Source(images, None, len(classes))
    test_images, test_classes = read(test)
    if test_classes != classes:
        unshared = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            f"the classes of '{train}' and '{test}' differ ({unshared[:5]}): give both the same sub-folders"
        )
    return Source(images, test_images, len(classes))


def digits() -> Source:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, standardised; no download is needed.

    The test split is a fixed stratified sample of 360. Of the other 1437, the validation images (360 by default) are
    excluded from ``train``.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)

    def pack(inputs: Array, targets: Array) -> Images:
        standard = torch.from_numpy((inputs - x.mean()) / x.std())
        return Images(torch.from_numpy(targets).long(), standard.__getitem__)

    return Source(pack(x, y), pack(x_test, y_test), 10, validation=360, holds_out=True)


def _read_npz(path: str) -> tuple[Array, Array]:
    if not isinstance(path, (str, PathLike)) or not Path(path).is_file():
        raise DataError(f"no file '{path}'; give the path of an .npz with the keys images and labels")
    try:
        with np.load(path) as archive:
            return archive["images"], archive["labels"]
    except (KeyError, ValueError, OSError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' is no .npz with the keys images and labels: {error}") from error


def _from_arrays(
    halves: Sequence[tuple[str, Array, Array]], mean: Channels, std: Channels, num_classes: int | None
) -> Source:
    """A source of the arrays (name, images, labels) of the training split and, if there is one, the test split."""
    packed = []
    for where, images, labels in halves:
        pixels, targets = _as_tensors(where, images, labels)
        decode = partial(_decode_pixels, pixels, _statistics(mean, std, pixels.shape[1]))
        classes = num_classes = int(targets.max()) + 1 if num_classes is None else num_classes
        if targets.min() < 0 or targets.max() >= classes:
            raise DataError(
                f"{where}: labels from {targets.min()} to {targets.max()} with {classes} classes; give "
                f"labels in 0 .. {classes - 1}, or a larger num_classes"
            )
        packed.append(Images(targets, decode))
    return Source(packed[0], packed[1] if len(packed) > 1 else None, classes)


def _as_tensors(where: str, images: Array, labels: Array) -> TensorPair:
    """Images as uint8 (N, C, H, W) and labels as int64 (N,), checked."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise DataError(f"{where}: images are {images.dtype} {images.shape}; give uint8 (N, H, W, C) or (N, H, W)")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where}: labels are {labels.dtype} {labels.shape} for {len(images)} images; give one integer an image"
        )
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None])
    return pixels.permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


def _statistics(mean: Channels, std: Channels, channels: int) -> TensorPair:
    """Mean and standard deviation as tensors of shape (C, 1, 1)."""
    try:
        pair = [torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std)]
    except (TypeError, ValueError) as error:
        raise DataError(f"mean={mean!r}, std={std!r}: {error}; give a number for each channel, or one") from error
    if any(len(value) not in (1, channels) for value in pair) or not (pair[1] > 0).all():
        raise DataError(
            f"mean={mean}, std={std} for images of {channels} channels; give one number for each channel or "
            "one for all, std above 0, in units of pixels scaled to 0 .. 1"
        )
    return pair[0], pair[1]


def _decode_pixels(pixels: Tensor, statistics: TensorPair, indices: Tensor) -> Tensor:
    mean, std = statistics
    return ((pixels[indices].float() / 255 - mean) / std).contiguous()


def _decode_files(
    paths: Sequence[str], shape: Callable[[Any], Tensor], statistics: TensorPair, indices: Tensor
) -> Tensor:
    from torchvision.datasets.folder import default_loader

    def read(path: str) -> Tensor:
        try:
            return shape(default_loader(path))
        except OSError as error:
            raise DataError(f"cannot read the image '{path}': {error}; repair or remove it") from error

    return _decode_pixels(
        torch.stack([read(paths[i]) for i in indices.tolist()]), statistics, torch.arange(len(indices))
    )
