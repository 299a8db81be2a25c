"""Masks from criteria with and without labels, on a network that learned without labels; a case of neighbours.py.

After Caron, Morcos, Bojanowski, Mairal, Joulin, "Pruning convolutional neural networks with self-supervision", 2020
(arXiv 2001.03554). The network learns to tell by how many quarters an image was turned (Gidaris et al. 2018, arXiv
1803.07728). The same criterion then chooses filters twice: from labels, through a linear layer fitted on the frozen
features, and from the network's own outputs alone. Each mask is evaluated by a linear probe on the data set itself and
on another one (transfer), both on frozen features, and once more after training on labels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from images import Images, Pair
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.zoo import CifarResNet

RIDGE = 1.0  # of the linear probe, on standardised features
CRITERION = "taylor_gate"


def quarters(images: Tensor) -> Pair:
    """All images in their four orientations, and the number of quarter turns of each."""
    turned = torch.cat([images.rot90(k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4).repeat_interleave(len(images))


@torch.no_grad()
def features(network: CifarResNet, images: Tensor) -> Tensor:
    """Inputs of the network's linear layer, (N, channels)."""
    body = copy.deepcopy(network).eval()
    setattr(body, body.head_name, nn.Identity())
    return torch.cat([body(part) for part in images.split(500)])


def probe(network: CifarResNet, train: Pair, classes: int) -> CifarResNet:
    """The network, frozen, with a linear layer fitted to labels by ridge regression on one-hot targets."""
    x = features(network, train[0]).double()
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, y = (x - mean) / std, F.one_hot(train[1], classes).double()
    solution = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    head = nn.Linear(x.shape[1], classes)
    head.weight.data = (solution / std.unsqueeze(1)).T.float()
    head.bias.data = (y.mean(0) - (mean / std) @ solution).float()
    probed = copy.deepcopy(network)
    setattr(probed, probed.head_name, head)
    return probed


def blank(pair: Pair) -> Pair:
    """The images with labels of zeros."""
    return pair[0], torch.zeros_like(pair[1])


def masks_by(genome: dp.Genome) -> dp.Masks:
    """The masks of the genome's only criterion."""
    return genome.decode(genome.single(genome.criteria[0]))


def overlap(space: dp.PruningSpace, first: dp.Masks, second: dp.Masks) -> float:
    """Share of the first mask's kept filters that the second keeps too."""
    both = sum(int((first[g.name] & second[g.name]).sum()) for g in space.groups)
    return both / sum(int(first[g.name].sum()) for g in space.groups)


def searched(network: nn.Module, calibration: Pair, validation: Pair, *, generations: int, seed: int) -> dp.ParetoFront:
    """A front from a search without labels: neither criteria nor the fitness (agreement with the network) use any."""
    return dp.search(
        network,
        calibration[0][:1],
        calibration=blank(calibration),
        validation=blank(validation),
        criteria=(CRITERION, "l2", "mean_activation", "compensation"),
        labels=False,
        objectives=("agreement", "flops"),
        max_flops=(0.3, 0.6),
        population=12,
        generations=generations,
        seed=seed,
        refine=False,
        progress=False,
    ).front


def self_supervised(own: Images, other: Images, *, seed: int, epochs: int, generations: int) -> list[dict[str, object]]:
    """A row for each mask.

    Args:
        own: Images for training without labels, and for evaluation with labels.
        other: Images for the transfer.
        seed: Seed of weights, order, noise and the search.
        epochs: Epochs of learning the rotations, and of training on labels afterwards.
        generations: Generations of the search without labels.
    """
    calibration, validation, rest = own.split(seed)
    torch.manual_seed(seed)
    network = CifarResNet(1, 4, in_channels=rest[0].shape[1])
    recipe = dp.Recipe(lr=0.1, batch_size=256)
    dp.finetune(network, quarters(rest[0]), epochs=epochs, recipe=recipe, seed=seed, progress=False)
    space = dp.trace(network, rest[0][:1])
    labelled = probe(network, rest, own.classes)

    def masks(model: nn.Module, criterion: str, labels: bool) -> dp.Masks:
        images = calibration if labels else calibration[0]
        own_space = dp.trace(model, rest[0][:1])  # the same groups; the last layer has as many outputs as classes
        scores = dp.score(model, own_space, images, criteria=(criterion,), labels=labels, seed=seed)
        return masks_by(dp.Genome(space, scores, dp.cluster(scores), allocation="uniform", max_flops=0.5))

    chosen = {
        "dense": dp.Masks({}),
        f"{CRITERION}, with labels": masks(labelled, CRITERION, True),
        f"{CRITERION}, without labels": masks(network, CRITERION, False),
        "l2 (no data)": masks(network, "l2", False),
        "random": masks(network, "random", False),
    }
    front = searched(network, calibration, validation, generations=generations, seed=seed)
    chosen["searched without labels"] = front.best(max_flops=0.5).masks
    evaluator = dp.Evaluator(network, space, calibration=blank(calibration), objectives=("flops",))
    rows: list[dict[str, object]] = []
    for arm, arm_masks in chosen.items():
        small = evaluator.slim(arm_masks)
        head = probe(small, rest, own.classes)
        row = {
            "arm": arm,
            "flops": dp.flops(space, arm_masks) / space.flops,
            "linear probe": dp.accuracy(head, own.test),
            "transfer": dp.accuracy(probe(small, other.train, other.classes), other.test),
        }
        tuned = dp.Recipe(lr=0.02, batch_size=128)
        dp.finetune(head, rest, epochs=epochs, recipe=tuned, seed=seed, progress=False)
        rows.append({**row, "trained on labels": dp.accuracy(head, own.test)})
    with_labels, without = (chosen[f"{CRITERION}, {way} labels"] for way in ("with", "without"))
    by_arm = {row["arm"]: row for row in rows}
    by_arm[f"{CRITERION}, without labels"]["kept by both"] = overlap(space, without, with_labels)
    by_arm["searched without labels"]["front"] = len(front)
    return rows
