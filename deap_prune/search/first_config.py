"""A first config for a network and images of one's own: sensible values, and a comment for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deap_prune.data.image_files import read_image
from deap_prune.errors import ConfigError, DataError
from deap_prune.files import is_file

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
IMAGENET_CLASSES = 1000
MOST_IMAGES = 500
SIDE = 224  # pixels, of the images that torchvision's networks were trained on
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of ImageFolder

COMMENTS: Mapping[str, str] = {
    "factory": "module:function that makes the network",
    "weights": "a state dict: .safetensors, or .pth",
    "format": "image_folder: one sub-folder for each class",
    "size": "side of the centre crop, in pixels",
    "mean": "of the pixels that the network was trained on, in 0 .. 1",
    "calibration": "training images: criteria, compensation, refinement",
    "validation": "training images: how candidates are compared",
    "labels": "the classes of the images are not the network's",
    "max_flops": "kept share of the multiply-adds",
    "max_seconds": "time limit of the search; null: none",
    "objectives": "[accuracy, flops] with max_flops: null gives a Pareto front",
}


@dataclass(frozen=True)
class DataSection:
    """The data section of a config.

    Attributes:
        values: The section.
        classes: Number of classes.
    """

    values: Mapping[str, Any]
    classes: int


def data_section(data: Path, *, enlarges: bool = True) -> DataSection:
    """The data section for a folder of images.

    Args:
        data: Folder with one sub-folder of images for each class, or with such folders named ``train`` and, optionally,
            ``test`` or ``val``; or the word ``digits``.
        enlarges: Whether smaller images become 224 pixels wide and high; else all get the size of the first one.

    Raises:
        DataError: If there is no such folder, or it holds too few images, or the first one can't be read.
    """
    if str(data) == "digits":
        return DataSection({"format": "digits", "calibration": MOST_IMAGES}, 10)
    if not data.is_dir():
        raise DataError(
            f"there is no folder '{data}'; give one with a sub-folder of images for each class, or 'digits'"
        )
    train = data / "train" if (data / "train").is_dir() else data
    classes = [path for path in sorted(train.iterdir()) if path.is_dir()]
    paths = [path for folder in classes for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    images = len(paths)
    if images < 4:
        raise DataError(
            f"'{train}' holds {images} images in {len(classes)} folders; give a folder with one sub-folder of images a "
            "class (for other data write a config: deap-prune options lists its keys)"
        )
    calibration = min(MOST_IMAGES, images // 2)
    test = next((data / name for name in ("test", "val") if train != data and (data / name).is_dir()), None)
    numbers = {"calibration": calibration, "validation": min(MOST_IMAGES, images - calibration)}
    folders = {"train": str(train), **({} if test is None else {"test": str(test)})}
    size = SIDE if enlarges else min(SIDE, *read_image(str(paths[0])).size)
    return DataSection({"format": "image_folder", **folders, "size": size, **IMAGENET, **numbers}, len(classes))


def first_config(
    model: str, data: Path, *, weights: Path | None = None, max_flops: float = 0.5, max_seconds: float | None = 900
) -> dict[str, dict[str, Any]]:
    """Sections of a config that finds a network with at most ``max_flops`` of the multiply-adds.

    Candidates are compared by their loss. Where the classes of the images are not the network's (a network trained on
    ImageNet and other images), they are compared by their agreement with the dense network.

    Args:
        model: "module:function", or a name in torchvision.models.
        data: As for :func:`data_section`.
        weights: State dict of the network; default: a torchvision network has its pretrained weights, another factory
            loads its own.
        max_flops: Kept share of the multiply-adds.
        max_seconds: Time limit of the search.

    Raises:
        ConfigError: If there is no such network in torchvision, no such file of weights, or a limit is not legal.
        DataError: As for :func:`data_section`.
    """
    if not 0 < max_flops <= 1:
        raise ConfigError(f"max_flops is {max_flops}; give the kept share of the FLOPs, above 0 and at most 1")
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise ConfigError(f"max_seconds is {max_seconds}; give a number of seconds above 0")
    if weights is not None and not is_file(weights):
        raise ConfigError(f"no weights at '{weights}'; give a .safetensors or .pth file")
    factory = model if ":" in model else f"torchvision.models:{model}"
    images = data_section(data, enlarges=factory.startswith("torchvision."))
    network: dict[str, Any] = {"factory": factory}
    same_classes = True
    if factory.startswith("torchvision.models:"):
        _check_torchvision(factory)
        classes = IMAGENET_CLASSES if weights is None else _classes(weights)
        network["kwargs"] = {"weights": "DEFAULT"} if weights is None else {"num_classes": classes}
        same_classes = images.classes == classes
    if weights is not None:
        network["weights"] = str(weights)
    search: dict[str, Any] = {"objectives": ["loss"] if same_classes else ["agreement"]}
    if not same_classes:
        search["labels"] = False
    effort = {"population": 20, "generations": 8, "max_seconds": max_seconds}
    return {"model": network, "data": dict(images.values), "search": search | {"max_flops": max_flops} | effort}


def commented(sections: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """The sections as YAML with comments.

    Args:
        sections: Result of :func:`first_config`.
        title: First comment.
    """
    lines = [f"# {title}"]
    for name, section in sections.items():
        lines.append(f"{name}:")
        for key, value in section.items():
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).splitlines()[0]
            lines.append(f"  {key}: {text}" + (f" # {COMMENTS[key]}" if key in COMMENTS else ""))
    return "\n".join(lines) + "\n"


def _classes(weights: Path) -> int:
    """Number of classes of a state dict: torchvision's networks end with the layer that makes the logits."""
    from deap_prune.weights import read_weights

    tensors = list(read_weights(weights).values())
    if not tensors or tensors[-1].dim() == 0:
        raise ConfigError(f"'{weights}' does not end with a layer that makes class logits; give module:function")
    return len(tensors[-1])


def _check_torchvision(factory: str) -> None:
    from torchvision import models

    from deap_prune.errors import did_you_mean

    name = factory.partition(":")[2]
    if not callable(getattr(models, name, None)):
        hint = did_you_mean(name, models.list_models(models), lists="torchvision.models.list_models()")
        raise ConfigError(f"torchvision.models has no '{name}'; {hint}; a network of your own is module:function")
