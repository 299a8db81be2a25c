"""Calibration, validation, training and test images of a data set, and their augmentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deap_prune.data.formats import Source, TensorPair, digits, image_folder, npz, torchvision_dataset
from deap_prune.errors import DataError, did_you_mean


@dataclass(frozen=True, repr=False)
class Splits:
    """The four splits of a data set. ``train`` and ``test`` are decoded at their first use and then stay in memory.

    Attributes:
        calibration: Training images that criteria are computed on.
        validation: Training images that the fitness is measured on; none of them is in ``calibration``.
        load_train: Function that makes ``train``.
        load_test: Function that makes ``test``; None without a test split.
        num_classes: Number of classes; targets are in 0 .. num_classes - 1.
        held_out: Whether ``train`` excludes the validation images. If so, they can measure a network trained on it.
    """

    calibration: TensorPair
    validation: TensorPair
    load_train: Callable[[], TensorPair]
    load_test: Callable[[], TensorPair] | None
    num_classes: int
    held_out: bool = True

    def __repr__(self) -> str:
        """Sizes and shapes; training and test images that are not decoded yet stay so."""
        lines = [f"  {name}: {_outline(vars(self).get(name))}" for name in ("calibration", "validation", "train")]
        lines.append(f"  test: {'none' if self.load_test is None else _outline(vars(self).get('test'))}")
        held = "" if self.held_out else "; the validation images are among those of train"
        return "\n".join([f"Splits of {self.num_classes} classes{held}", *lines])

    @cached_property
    def train(self) -> TensorPair:
        """The images to fine-tune on."""
        return self.load_train()

    @cached_property
    def test(self) -> TensorPair | None:
        """The test images, for the final accuracy only; None without a test split."""
        return self.load_test() if self.load_test else None

    @classmethod
    def from_tensors(
        cls,
        *,
        calibration: TensorPair,
        validation: TensorPair,
        train: TensorPair,
        test: TensorPair | None = None,
        num_classes: int,
    ) -> Splits:
        """Splits of tensors that are in memory already; the arguments are the attributes of the class."""
        return cls(
            calibration,
            validation,
            partial(_identity, train),
            partial(_identity, test) if test else None,
            num_classes,
        )


def _outline(pair: TensorPair | None) -> str:
    """Number, shape and type of images."""
    if pair is None:
        return "decoded at first use"
    images, shape = pair[0], " x ".join(map(str, pair[0].shape[1:]))
    return f"{len(images):,} images of {shape}, {str(images.dtype).removeprefix('torch.')}"


def load_data(
    *,
    format: str,
    calibration: int = 500,
    validation: int | None = None,
    seed: int = 0,
    exclude_from_train: bool = False,
    **options: Any,
) -> Splits:
    """Load a data set and draw its calibration and validation images from the training split.

    One seeded permutation draws both without replacement, so they never overlap. Classes are not balanced.

    Args:
        format: A key of FORMATS: "npz", "image_folder", "torchvision", "digits" or "factory".
        calibration: Number of calibration images.
        validation: Number of validation images; None is 1000, or 360 for the digits.
        seed: Of the permutation.
        exclude_from_train: Exclude calibration and validation images from ``train``. The digits exclude their
            validation images in any case.
        **options: Options of the format; see its function in FORMATS. A factory makes the splits itself and does not
            get the options above.

    Returns:
        The splits; ``train`` and ``test`` are decoded at their first use.

    Raises:
        DataError: If the format or an option is unknown, a file is missing or has the wrong content, labels do not
            fit, or there are too few images.
    """
    if format not in FORMATS:
        raise DataError(f"unknown data format '{format}'; {did_you_mean(format, FORMATS)}")
    loader = FORMATS[format]
    _check_options(format, loader, options)
    numbers = {"calibration": calibration, "validation": 1 if validation is None else validation, "seed": seed}
    for name, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= value < 2**42:
            raise DataError(f"{name} is {value!r}; give a whole number from 0 to 2^42 - 1")
    source = loader(**options)
    if isinstance(source, Splits):
        return source
    return _split(
        source, calibration, source.validation if validation is None else validation, seed, exclude_from_train
    )


def augment(inputs: Tensor, generator: torch.Generator, *, padding: int = 4, flip: bool = True) -> Tensor:
    """Shift each image at random and mirror about half of them (for CIFAR: He et al., CVPR 2016, section 4.2).

    Args:
        inputs: Shape (N, C, H, W), on any device.
        generator: Source of the random numbers; may be on another device.
        padding: Largest shift in rows and in columns, in pixels. Pixels from outside the image are zero.
        flip: Whether to mirror left and right, with probability 1/2.

    Returns:
        A new tensor of the same shape and device.
    """
    count, channels, height, width = inputs.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count, 1), generator=generator, device=generator.device).to(inputs.device)

    rows = draw(2 * padding + 1) + torch.arange(height, device=inputs.device)
    columns = torch.arange(width, device=inputs.device).expand(count, width)
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    columns = columns + draw(2 * padding + 1)
    image = torch.arange(count, device=inputs.device)[:, None, None, None]
    channel = torch.arange(channels, device=inputs.device)[:, None, None]
    return F.pad(inputs, [padding] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def factory(*, factory: str, kwargs: Mapping[str, Any] | None = None) -> Splits:
    """Splits that your own function makes.

    Args:
        factory: "module:function"; the function returns Splits (see :meth:`Splits.from_tensors`).
        kwargs: Arguments of the function.
    """
    module, _, name = factory.partition(":")
    try:
        make = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"cannot import the data factory '{factory}': {error}; give 'module:function'") from error
    try:
        inspect.signature(make).bind(**(kwargs or {}))
    except ValueError:
        pass  # a built-in function without a signature
    except TypeError as error:
        raise DataError(f"the data factory '{factory}' can't be called with kwargs={kwargs!r}: {error}") from error
    splits = make(**(kwargs or {}))
    if not isinstance(splits, Splits):
        raise DataError(f"the data factory '{factory}' returned {type(splits).__name__}; it must return Splits")
    return splits


FORMATS: dict[str, Callable[..., Source | Splits]] = {
    "npz": npz,
    "image_folder": image_folder,
    "torchvision": torchvision_dataset,
    "digits": digits,
    "factory": factory,
}
"""Formats by name: functions of keyword options that return a Source or Splits. Add your own."""


def _identity(pair: TensorPair) -> TensorPair:
    return pair


def _check_options(format: str, loader: Callable[..., object], options: Mapping[str, object]) -> None:
    parameters = inspect.signature(loader).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    for name in options:
        if name not in (names := [p.name for p in parameters]):
            raise DataError(f"the data format '{format}' has no option '{name}'; {did_you_mean(name, names)}")
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
    if missing:
        raise DataError(f"the data format '{format}' needs {', '.join(missing)}; give it with the other options")


def _split(source: Source, calibration: int, validation: int, seed: int, exclude_from_train: bool) -> Splits:
    """Draw calibration and validation images from the training split; the rest is not decoded yet."""
    count, chosen = len(source.train.labels), calibration + validation
    if calibration < 1 or validation < 1 or chosen > count:
        raise DataError(
            f"calibration={calibration} and validation={validation} images from a training split of {count}: "
            "give at least 1 of each, and together no more than there are"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    keep = torch.ones(count, dtype=torch.bool)
    if exclude_from_train:
        keep[order[:chosen]] = False
    elif source.holds_out:
        keep[order[calibration:chosen]] = False
    remaining = keep.nonzero().flatten()
    if not len(remaining):
        raise DataError(f"all {count} training images are excluded from train; lower calibration or validation")
    test = source.test
    return Splits(
        calibration=source.train.take(order[:calibration]),
        validation=source.train.take(order[calibration:chosen]),
        load_train=partial(source.train.take, remaining),
        load_test=partial(test.take, torch.arange(len(test.labels))) if test else None,
        num_classes=source.num_classes,
        held_out=exclude_from_train or source.holds_out,
    )
