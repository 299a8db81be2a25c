"""A YOLO-like detector: trained on drawn boxes, pruned by its mean average precision, reloaded, exported."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

import deap_prune as dp

CLASSES, SIZE, BINS = 3, 64, 8  # classes, pixels of an image's side, bins of a side's distance
STRIDES = (8, 16)
Batch = dict[str, Tensor]


# ------------------------------------------------------------------ the network
class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = Conv(width, width, 3), Conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        return x + self.b(self.a(x))


class C2f(nn.Module):
    """Split in two; one half goes through bottlenecks, and all that is computed is joined."""

    def __init__(self, inputs: int, outputs: int, depth: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.enter, self.leave = Conv(inputs, outputs), Conv((2 + depth) * half, outputs)
        self.blocks = nn.ModuleList(Bottleneck(half) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Features with ``outputs`` channels."""
        parts = list(self.enter(x).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.leave(torch.cat(parts, dim=1))


class SPPF(nn.Module):
    """Three poolings in a row, joined: a fast spatial pyramid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = Conv(width, width // 2), Conv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        return self.leave(torch.cat(parts, dim=1))


class Head(nn.Module):
    """Decoupled: one branch for the classes, one for the distances to the four sides, as distributions (DFL)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Sequential(Conv(width, width, 3), nn.Conv2d(width, CLASSES, 1))
        self.sides = nn.Sequential(Conv(width, width, 3), nn.Conv2d(width, 4 * BINS, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the bins and of the classes, shape (N, 4 * BINS + CLASSES, cells)."""
        return torch.cat([self.sides(x), self.classes(x)], dim=1).flatten(2)


class Detector(nn.Module):
    """Backbone, a pyramid of two scales, a head for each."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(Conv(3, w, 3, 2), Conv(w, w, 3, 2), C2f(w, w))
        self.middle = nn.Sequential(Conv(w, 2 * w, 3, 2), C2f(2 * w, 2 * w))
        self.deep = nn.Sequential(Conv(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w), SPPF(4 * w))
        self.up = C2f(6 * w, 2 * w)
        self.heads = nn.ModuleList([Head(2 * w), Head(4 * w)])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all cells, shape (N, 4 * BINS + CLASSES, cells)."""
        middle = self.middle(self.stem(images))
        deep = self.deep(middle)
        fine = self.up(torch.cat([middle, F.interpolate(deep, scale_factor=2)], dim=1))
        return torch.cat([head(x) for head, x in zip(self.heads, (fine, deep), strict=True)], dim=2)


# ------------------------------------------------------------------ boxes
def cells() -> tuple[Tensor, Tensor]:
    """Centres (cells, 2) and strides (cells, 1) of all cells, in pixels."""
    centres, strides = [], []
    for stride in STRIDES:
        places = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(places, places, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).view(-1, 2))
        strides.append(torch.full((len(centres[-1]), 1), float(stride)))
    return torch.cat(centres), torch.cat(strides)


CENTRES, CELL_STRIDES = cells()


def decode(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (N, cells, 4) in pixels, and class probabilities (N, cells, CLASSES)."""
    sides, classes = outputs.transpose(1, 2).split([4 * BINS, CLASSES], dim=2)
    bins = sides.unflatten(2, (4, BINS)).softmax(dim=3)
    distances = (bins * torch.arange(BINS)).sum(dim=3) * CELL_STRIDES / 2
    boxes = torch.cat([CENTRES - distances[..., :2], CENTRES + distances[..., 2:]], dim=2)
    return boxes, classes.sigmoid()


def assign(boxes: Tensor) -> Tensor:
    """Number of each cell's box, shape (N, cells), or -1: the cells of one scale whose centres are near the box's.

    Args:
        boxes: x1, y1, x2, y2, class; class -1 is padding. Shape (N, boxes, 5).
    """
    middle, side = (boxes[..., :2] + boxes[..., 2:4]) / 2, (boxes[..., 2:4] - boxes[..., :2]).amax(dim=2)
    near = (CENTRES[:, None] - middle[:, None]).abs().amax(dim=3) < 0.8 * CELL_STRIDES
    scale = torch.where(side < 24, STRIDES[0], STRIDES[1])
    near &= (scale[:, None] == CELL_STRIDES) & (boxes[:, None, :, 4] >= 0)
    return torch.where(near.any(dim=2), near.int().argmax(dim=2), -1)


def detection_loss(outputs: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy of the classes, and of the two bins beside each distance (Li et al. 2020); one value a sample."""
    sides, classes = outputs.transpose(1, 2).split([4 * BINS, CLASSES], dim=2)
    number = assign(boxes)
    hit = number >= 0
    mine = boxes.gather(1, number.clamp(min=0).unsqueeze(2).expand(-1, -1, 5))
    labels = F.one_hot(mine[..., 4].clamp(min=0).long(), CLASSES) * hit.unsqueeze(2)
    wrong = F.binary_cross_entropy_with_logits(classes, labels.float(), reduction="none").sum(dim=(1, 2))
    distances = torch.cat([CENTRES - mine[..., :2], mine[..., 2:4] - CENTRES], dim=2) / (CELL_STRIDES / 2)
    distances = distances.clamp(0, BINS - 1.01)
    lower = distances.long()
    share = distances - lower
    logs = sides.unflatten(2, (4, BINS)).log_softmax(dim=3)
    left, right = (logs.gather(3, b.unsqueeze(3)).squeeze(3) for b in (lower, lower + 1))
    off = -((1 - share) * left + share * right).mean(dim=2) * hit
    return (wrong + 2 * off.sum(dim=1)) / hit.sum(dim=1).clamp(min=1)


# [start: objective]
def average_precision(total: Tensor, samples: int = 0) -> float:
    """Area under precision by recall, mean over the classes that occur; ``total`` is the sum of ``map50``."""
    hits, alarms = total[:, :2].flip(2).cumsum(2).unbind(1)
    truth = total[:, 2, 0]
    precision = (hits / (hits + alarms).clamp(min=1)).flip(1).cummax(1).values.flip(1)  # never rises with recall
    recall = hits / truth.clamp(min=1).unsqueeze(1)
    return float((precision * recall.diff(dim=1, prepend=torch.zeros(CLASSES, 1))).sum(dim=1)[truth > 0].mean())


@dp.register_objective("map50", maximise=True, worst=0.0, finish=average_precision)
@torch.no_grad()
def map50(outputs: Tensor, boxes: Tensor, dense_outputs: None) -> Tensor:
    """Mean average precision at an overlap of 0.5, in [0, 1].

    Per sample and class: hits and false alarms by confidence in hundredths, and the number of boxes. Sums of such
    tables give precision and recall of all samples. Shape (N, CLASSES, 3, 100).
    """
    table = torch.zeros(len(outputs), CLASSES, 3, 100)
    for n, (found, probabilities) in enumerate(zip(*decode(outputs), strict=True)):
        best, label = probabilities.max(dim=1)
        likely = best > 0.05
        kept = batched_nms(found[likely], best[likely], label[likely], 0.5)
        found, best, label = found[likely][kept], best[likely][kept], label[likely][kept]
        truth = boxes[n][boxes[n, :, 4] >= 0]
        taken = torch.zeros(len(truth), dtype=torch.bool)
        for box, confidence, kind in zip(found, best, label, strict=True):  # the surest first
            overlap = box_iou(box[None], truth[:, :4])[0] * (truth[:, 4] == kind) * ~taken
            hit = len(truth) > 0 and bool(overlap.max() >= 0.5)
            if hit:
                taken[overlap.argmax()] = True
            table[n, kind, 0 if hit else 1, int(confidence * 99.99)] += 1
        table[n, :, 2, 0] += torch.bincount(truth[:, 4].long(), minlength=CLASSES)
    return table


# [end: objective]


# ------------------------------------------------------------------ data
def drawn(count: int, seed: int, most: int = 3) -> list[Batch]:
    """Batches of noisy images with one to three filled boxes; a box's class is its colour."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.4 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    boxes = torch.full((count, most, 5), -1.0)
    for n in range(count):
        for k in range(int(torch.randint(1, most + 1, (1,), generator=generator))):
            width, height = torch.randint(8, 40, (2,), generator=generator).tolist()
            left, top = (int(torch.randint(0, SIZE - side, (1,), generator=generator)) for side in (width, height))
            colour = int(torch.randint(CLASSES, (1,), generator=generator))
            images[n, :, top : top + height, left : left + width] = 0.2 * torch.randn(
                3, height, width, generator=generator
            )
            images[n, colour, top : top + height, left : left + width] += 1.5
            boxes[n, k] = torch.tensor([left, top, left + width, top + height, colour])
    return [{"images": i, "boxes": b} for i, b in zip(images.split(32), boxes.split(32), strict=True)]


def forward(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs and boxes of a batch."""
    return model(batch["images"]), batch["boxes"]


@torch.no_grad()
def precision_of(model: nn.Module, batches: list[Batch]) -> float:
    """Mean average precision at an overlap of 0.5."""
    return average_precision(sum(map50(*forward(model, batch), None).sum(dim=0) for batch in batches))


def main() -> None:
    """Train, prune to half of the FLOPs by mAP, fine-tune, export, reload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--population", type=int, default=6)
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/detector"))
    args = parser.parse_args()
    torch.manual_seed(0)
    training, validation, test = drawn(args.images, 0), drawn(64, 1), drawn(128, 2)
    model = Detector()
    recipe = dp.Recipe(optimizer="adamw", lr=4e-3, warmup_epochs=0)
    dp.finetune(model, training, epochs=args.epochs, recipe=recipe, forward=forward, loss=detection_loss)

    # [start: prune]
    image = test[0]["images"][:2]
    result = dp.search(
        model,
        image,
        calibration=training[:2],
        validation=validation,
        forward=forward,
        loss=detection_loss,
        objectives=("map50",),
        max_flops=0.5,
        criteria=("l1", "fpgm", "bn_scale", "taylor_gate"),
        population=args.population,
        generations=args.generations,
        finalists=0,
    )
    small = result.slim(result.best)
    # [end: prune]
    print(f"{result.best}, {result.best.flops / result.space.flops:.0%} of the dense network's")
    figures = {"dense": precision_of(model, test), "pruned": precision_of(small, test)}
    dp.finetune(small, training, epochs=2, recipe=recipe, teacher=model, forward=forward, loss=detection_loss)
    figures["fine-tuned"] = precision_of(small, test)
    print("mAP on new images: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    print(dp.export(small, image, args.out, masks=result.best.masks, dense=model))
    again = dp.load(args.out, model=Detector())
    assert torch.allclose(again(image), small(image), atol=1e-5)
    print(f"reloaded: {sum(p.numel() for p in again.parameters()):,} of {result.space.params:,} parameters")


if __name__ == "__main__":
    main()
