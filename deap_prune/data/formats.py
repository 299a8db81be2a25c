"""Storage formats of images: one function a format, which returns the training and test split undecoded."""

from __future__ import annotations

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

from deap_prune.data.image_files import check_shape, read_image
from deap_prune.errors import DataError, did_you_mean

TensorPair = tuple[Tensor, Tensor]
"""Inputs (N, C, H, W), float32 and normalised; targets (N,), int64."""

Channels = float | Sequence[float]
"""One number for all channels of an image, or one number for each."""

Array = npt.NDArray[Any]

MOST_SIDE = 10_000
"""Size limit of a side of a decoded image, in pixels."""

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
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise DataError(f"num_classes is {num_classes!r}; give a whole number above 0, or leave it out")
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
    """Folders of image files with one sub-folder for each class (torchvision's ImageFolder).

    A split is decoded into one tensor, so ``train`` must fit into memory. For larger sets give ``finetune`` a
    DataLoader.

    Args:
        train: Path of the training folder.
        test: Path of the test folder. Its classes follow the names in the training folder; it may lack some.
        size: Side of the centre crop, in pixels.
        resize: Shorter side before the crop, in pixels; default: size * 256 / 224.
        mean: Mean of the pixels, scaled to 0 .. 1, of each channel or of all; it is subtracted.
        std: Standard deviation of the pixels, likewise; the result is divided by it.
    """
    from torchvision import datasets, transforms

    def read(folder: str, classes: list[str] | None) -> tuple[Images, list[str]]:
        try:
            folders = datasets.ImageFolder(folder)
        except (OSError, TypeError, ValueError) as error:
            raise DataError(
                f"no image folder at '{folder}': {error}; give a folder with one sub-folder for each class"
            ) from error
        names = classes or folders.classes
        if unknown := sorted(set(folders.classes) - set(names)):
            raise DataError(f"'{folder}' has classes that '{train}' lacks ({unknown[:5]}); give both the same names")
        labels = [names.index(folders.classes[target]) for target in folders.targets]
        decode = partial(_decode_files, [path for path, _ in folders.samples], shape, shorter, statistics)
        return Images(torch.tensor(labels), decode), names

    for name, pixels in (("size", size), ("resize", size if resize is None else resize)):
        if type(pixels) is not int or not 1 <= pixels <= MOST_SIDE:
            raise DataError(f"{name} is {pixels!r}; give a whole number of pixels from 1 to {MOST_SIDE}")
    statistics = _statistics(mean, std, 3)
    shorter = resize or round(size * 256 / 224)
    shape = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size), transforms.PILToTensor()])
    images, classes = read(train, None)
    return Source(images, None if test is None else read(test, classes)[0], len(classes))


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
    except Exception as error:  # a damaged archive raises many kinds
        raise DataError(
            f"'{path}' is no .npz with the keys images and labels: {error or type(error).__name__}"
        ) from error


def _from_arrays(
    halves: Sequence[tuple[str, Array, Array]], mean: Channels, std: Channels, num_classes: int | None
) -> Source:
    """A source of the arrays (name, images, labels) of the training split and, if there is one, the test split."""
    packed = []
    for where, images, labels in halves:
        pixels, targets = _as_tensors(where, images, labels)
        decode = partial(_decode_pixels, pixels, _statistics(mean, std, pixels.shape[1]))
        if num_classes is None and targets.max() > 1000 + 10 * len(targets):
            raise DataError(f"{where}: labels reach {targets.max()} in {len(targets)} images; if so, give num_classes")
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
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
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
    if any(len(value) not in (1, channels) for value in pair) or not _are_sound(*pair):
        raise DataError(
            f"mean={mean}, std={std} for images of {channels} channels; give one number for each channel or "
            "one for all, std above 0, in units of pixels scaled to 0 .. 1"
        )
    return pair[0], pair[1]


def _are_sound(mean: Tensor, std: Tensor) -> bool:
    return bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())


def _decode_pixels(pixels: Tensor, statistics: TensorPair, indices: Tensor) -> Tensor:
    mean, std = statistics
    return ((pixels[indices].float() / 255 - mean) / std).contiguous()


def _decode_files(
    paths: Sequence[str], shape: Callable[[Any], Tensor], shorter: int, statistics: TensorPair, indices: Tensor
) -> Tensor:
    """Files at the indices (n,), decoded, resized and normalised."""

    def read(path: str) -> Tensor:
        image = read_image(path)
        check_shape(path, image.width, image.height, shorter)
        return shape(image)

    return _decode_pixels(
        torch.stack([read(paths[i]) for i in indices.tolist()]), statistics, torch.arange(len(indices))
    )
