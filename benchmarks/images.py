"""Images for the benchmarks that train networks of their own: CIFAR, at full size or half, or scikit-learn's digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deap_prune.data import load_data

Pair = tuple[Tensor, Tensor]
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


@dataclass(frozen=True)
class Images:
    """A data set; calibration, validation and what is trained on are disjoint parts of the training images.

    Attributes:
        train: Normalised images (N, C, H, W) and labels.
        test: Evaluates each chosen network once, at the end.
        classes: Labels are 0 .. classes - 1.
        held: Number of training images for calibration and validation, half each.
    """

    name: str
    train: Pair
    test: Pair
    classes: int
    held: int

    def part(self, seed: int, start: int, stop: int | None) -> Pair:
        """A part of the training images, in an order drawn by a seed."""
        order = torch.randperm(len(self.train[1]), generator=torch.Generator().manual_seed(seed))[start:stop]
        return self.train[0][order], self.train[1][order]

    def split(self, seed: int) -> tuple[Pair, Pair, Pair]:
        """Calibration, validation and the rest."""
        half = self.held // 2
        return self.part(seed, 0, half), self.part(seed, half, self.held), self.part(seed, self.held, None)


def cifar(
    folder: Path, name: str, *, train: int | None = None, test: int | None = None, held: int = 1000, half: bool = False
) -> Images:
    """CIFAR from ``name_train.npz`` and ``name_test.npz`` (images uint8 NHWC, labels).

    Args:
        folder: Folder of the files.
        name: "cifar10" or "cifar100".
        train: Number of training images, the first ones; None: all.
        test: Number of test images, the first ones; None: all.
        held: See :class:`Images`.
        half: 16 x 16 pixels, means of four.
    """
    pairs = []
    for split, count in (("train", train), ("test", test)):
        with np.load(folder / f"{name}_{split}.npz") as stored:
            images, labels = stored["images"][:count], stored["labels"][:count]
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in NORMALISATION[name])
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        pairs.append((F.avg_pool2d(x, 2) if half else x.contiguous(), torch.from_numpy(labels)))
    return Images(f"{name}{', 16x16 pixels' if half else ''}", *pairs, int(pairs[1][1].max()) + 1, held)


def digits(classes: range = range(10)) -> Images:
    """scikit-learn's digits, all or some of the classes (counted from 0)."""
    data = load_data(format="digits")
    train = [torch.cat(parts) for parts in zip(data.train, data.validation, strict=True)]
    chosen = []
    for images, labels in (train, data.test):
        some = (labels >= classes.start) & (labels < classes.stop)
        chosen.append((images[some], labels[some] - classes.start))
    return Images(f"digits {classes.start} to {classes.stop - 1}", chosen[0], chosen[1], len(classes), 200)
