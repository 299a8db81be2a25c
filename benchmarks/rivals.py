r"""Torch-Pruning's own pruners on the same networks, budgets and images, and what this library makes of their masks.

Question: at half of the FLOPs, how accurate are the networks of Torch-Pruning's pruners as pruned, with batch-norm
statistics from data, compensated, refined, and with filters selected at their widths? And this library's?
Method: a pruner ranks channels by one of Torch-Pruning's importances, in every layer (local) or over all layers
(global). Its pruning ratio is bisected for the most FLOPs within the budget. Layers that stay dense in configs/ are
ignored layers there. Importances with gradients see the calibration images and their labels. Every network is tested
once at each stage; no test image chooses anything. This library's masks are those of selected_search.json, and without
a search those of elimination at uniform widths, and of one threshold on FPGM.
Output: results/rivals.json: one row for each pair, seed and pruner, with masks. Rows that exist are not made again.

    OMP_NUM_THREADS=1 python benchmarks/rivals.py --data DIR --weights DIR [--pairs cifar100-resnet20 ...]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from pairs import PAIRS, Row, Setup, open_config, train_digits
from provenance import origin, packed
from table_format import RESULTS
from torch import nn

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome
from deap_prune.files import write_text

RIVALS: dict[str, tuple[Callable[[], Any], bool]] = {
    "L1, local": (lambda: tp.importance.GroupMagnitudeImportance(p=1), False),
    "L2, local": (lambda: tp.importance.GroupMagnitudeImportance(p=2), False),
    "L2, global": (lambda: tp.importance.GroupMagnitudeImportance(p=2), True),
    "LAMP, global": (tp.importance.LAMPImportance, True),
    "BN scale, local": (tp.importance.BNScaleImportance, False),
    "BN scale, global": (tp.importance.BNScaleImportance, True),
    "Taylor, local": (tp.importance.GroupTaylorImportance, False),
    "Taylor, global": (tp.importance.GroupTaylorImportance, True),
    "OBD-C, local": (tp.importance.OBDCImportance, False),
    "OBD-C, global": (tp.importance.OBDCImportance, True),
}
"""Name to Torch-Pruning's importance, and whether one threshold ranks all layers."""
OURS = ("this library, elimination, no search", "this library, one threshold, no search", "this library, search")
BISECTIONS = 12
BATCH = 50


# ------------------------------------------------------------------ Torch-Pruning's choice
def with_gradients(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> nn.Module:
    """A copy of the network whose parameters hold the gradients of the mean cross-entropy."""
    network = copy.deepcopy(model).requires_grad_(True)
    for images, labels in zip(*(part.split(BATCH) for part in data), strict=True):
        (F.cross_entropy(network(images), labels, reduction="sum") / len(data[1])).backward()
    return network


def pruner_of(network: nn.Module, setup: Setup, rival: str, ratio: float) -> tp.pruner.BasePruner:
    """Torch-Pruning's pruner at a ratio."""
    make, everywhere = RIVALS[rival]
    ignored = [network.get_submodule(name) for name in setup.config.search.ignore]
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1:]
    return tp.pruner.BasePruner(
        network,
        setup.data.calibration[0][:1],
        make(),
        global_pruning=everywhere,
        pruning_ratio=ratio,
        ignored_layers=[*ignored, *head],
    )


def fisher(network: nn.Module, setup: Setup) -> Any:
    """OBD-C with its statistics, gathered as Torch-Pruning's examples do: a backward pass a batch.

    Version 1.6.1 needs statistics of ignored layers too, so a pruner that ignores none makes its hooks. It also looks
    for attention in every group and stops at groups without; here there is none.
    """
    inputs = setup.data.calibration
    classes = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    importance = tp.importance.OBDCImportance(num_classes=classes)
    pruner = tp.pruner.BasePruner(network, inputs[0][:1], importance)
    pruner._downstream_node_as_root_if_attention = lambda group: group
    importance._prepare_model(network, pruner)
    for images, labels in zip(*(part.split(BATCH) for part in inputs), strict=True):
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        importance.step()
    importance._rm_hooks(network)
    return importance


def kept(network: nn.Module, space: dp.PruningSpace, pruner: tp.pruner.BasePruner) -> dp.Masks:
    """The masks of the channels that the pruner would remove."""
    names = {layer: name for name, layer in network.named_modules()}
    keep = {group.name: torch.ones(group.size, dtype=torch.bool).numpy() for group in space.groups}
    for group in pruner.step(interactive=True):
        for dependency, positions in group:
            name = names.get(dependency.target.module)
            if name in keep and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                keep[name][positions] = False
    return dp.Masks(keep)


def chosen(setup: Setup, rival: str, budget: float) -> tuple[dp.Masks, float]:
    """The masks of a pruner with the most FLOPs within the budget, and its pruning ratio."""
    network = with_gradients(setup.model, setup.data.calibration)
    statistics = None
    low, high, best = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        pruner = pruner_of(network, setup, rival, ratio)
        if rival.startswith("OBD-C"):
            statistics = statistics or fisher(network, setup)
            pruner.importance = copy.copy(statistics)  # a pruner removes rows of what it was given
            pruner.importance.Fisher = dict(statistics.Fisher)
        masks = kept(network, setup.space, pruner)
        if dp.flops(setup.space, masks) <= budget * setup.space.flops:
            high, best = ratio, (masks, ratio)
        else:
            low = ratio
    if best is None:
        raise SystemExit(f"{rival}: no pruning ratio reaches {budget:.0%} of the FLOPs")
    return best


# ------------------------------------------------------------------ this library's choice
def ours(setup: Setup, name: str, pair: str, budget: float) -> dp.Masks | None:
    """The masks of this library; None if the search is not stored."""
    if name == OURS[0]:
        scores = dp.score(setup.model, setup.space, setup.data.calibration, criteria=("elimination",))
        clusters = dp.cluster(scores, n_clusters=1)
        uniform = dp.Genome(setup.space, scores, clusters, allocation="uniform", max_flops=budget)
        return uniform.decode(uniform.single("elimination"))
    if name == OURS[1]:
        genome = setup.genome(budget, kind=AffineGenome, criterion="fpgm")
        return genome.decode(genome.single("fpgm"))
    path = RESULTS / "selected_search.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    alike = [row for row in rows if (row["pair"], row["seed"], row["select"]) == (pair, setup.seed, "sequential")]
    return dp.Masks.from_json(json.dumps(alike[-1]["masks"])) if alike and budget == 0.5 else None


# ------------------------------------------------------------------ stages
def stages(setup: Setup, masks: dp.Masks) -> Row:
    """Test accuracy of the masks at every stage, and the masks that selection chooses at their widths."""
    compensated = setup.evaluator("compensated", objectives=("loss", "flops"))
    refined = compensated.with_settings(refine=True, refine_images=len(setup.data.calibration[0]))
    selected = refined.selected(masks)
    networks: dict[str, Callable[[], nn.Module]] = {
        "as pruned": lambda: dp.slim(setup.model, setup.space, masks),
        "BN statistics": lambda: setup.evaluator("plain", objectives=("loss", "flops")).slim(masks),
        "compensated": lambda: compensated.slim(masks),
        "refined": lambda: refined.slim(masks),
        "selected": lambda: refined.slim(selected),
    }
    accuracies = {name: setup.test_accuracy(make()) for name, make in networks.items()}
    return {"test accuracy": accuracies, "masks": packed(masks), "selected masks": packed(selected)}


def row_of(setup: Setup, pair: str, name: str, budget: float) -> Row | None:
    """The row of a pruner, or None if its masks are not known."""
    if name in OURS:
        masks, facts = ours(setup, name, pair, budget), {}
    else:
        masks, ratio = chosen(setup, name, budget)
        facts = {"pruning ratio": ratio}
    if masks is None:
        return None
    share = dp.flops(setup.space, masks) / setup.space.flops
    return {"flops": share, **facts, **origin("torch-pruning"), **stages(setup, masks)}


def main() -> None:
    """Make the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=[pair for pair in PAIRS if "imagenet" not in pair])
    parser.add_argument("--pruners", nargs="+", choices=[*RIVALS, *OURS], default=[*RIVALS, *OURS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budget", type=float, default=0.5, help="kept share of the FLOPs")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="folder of the digits network")
    parser.add_argument("--results", type=Path, default=RESULTS / "rivals.json")
    args = parser.parse_args()
    if "digits" in args.pairs and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    for seed in args.seeds:
        for pair in args.pairs:
            setup = Setup(open_config(pair, seed, args), seed)
            for name in args.pruners:
                facts: Row = {"pair": pair, "seed": seed, "budget": args.budget, "pruner": name}
                rows = json.loads(args.results.read_text()) if args.results.is_file() else []
                if any(all(row[key] == value for key, value in facts.items()) for row in rows):
                    continue
                if row := row_of(setup, pair, name, args.budget):
                    write_text(args.results, json.dumps([*rows, facts | row], indent=1) + "\n")
                    print(pair, seed, name, f"{row['flops']:.4f}", row["test accuracy"], flush=True)


if __name__ == "__main__":
    main()
