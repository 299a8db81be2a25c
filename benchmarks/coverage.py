r"""Which networks can be pruned, how much of them, and do the laws hold?

Question: for every network of torchvision's classification zoo (transformers aside), its segmentation models, the
backbone of a detector, and a choice of timm's: does tracing find what can be pruned, is what is pruned exact, and what
is refused, for which reason?
Method: a fresh network (random weights) is traced with one image. Law 1: on a randomised float64 copy, the masked
and the slimmed network agree for random masks that keep between 30 and 70 % of every group. Law 2: the closed-form
flops and parameters equal fvcore's count and the parameters of the slimmed network, as whole numbers. The share of
FLOPs is that of operators whose input or output channels can shrink.
Output: a JSON file in benchmarks/results (one entry a network, kept when the run is started again), and the table in
RESULTS.md, between its two marks.

    python benchmarks/coverage.py                    # everything: about an hour on two cores
    python benchmarks/coverage.py resnet50 timm:dla34
    python benchmarks/coverage.py --table            # the table alone, from the JSON
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.structure.inputs import as_call
from deap_prune.structure.tracing.fvcore_count import count_flops
from deap_prune.structure.tracing.proof import Proof, difference

RESULTS = Path(__file__).parent / "RESULTS.md"
MARKS = ("<!-- coverage -->", "<!-- end of coverage -->")
TRANSFORMERS = ("vit_", "swin_", "maxvit_")
SIZES = {"inception_v3": 299, "alexnet": 80, "timm:inception_v4": 107}  # pixels; 64 for all others
TIMM = """
    resnet26t seresnet50 res2net50_26w_4s dla34 hrnet_w18_small ghostnet_100 repvgg_a0 cspresnet50 nf_resnet50
    convnextv2_atto mobilenetv4_conv_small tf_efficientnet_lite0 regnety_004 densenet121 xception41 inception_v4
    ese_vovnet19b_dw fbnetc_100 mixnet_s resnest14d selecsls42b skresnet18 mobileone_s0 rexnet_100 tinynet_e
    efficientnet_es lcnet_050 hardcorenas_a
""".split()  # noqa: SIM905 (thirty quoted names are harder to read)
PARTS = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large", "fasterrcnn_resnet50_fpn")


def networks() -> list[str]:
    """Every network of the table, small ones first within each family."""
    zoo = torchvision.models.list_models(module=torchvision.models)
    plain = [name for name in zoo if not name.startswith(TRANSFORMERS)]
    return [*plain, *PARTS, *(f"timm:{name}" for name in TIMM)]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A fresh network of that name, and one image for it."""
    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("timm:"):
            import timm

            model: nn.Module = timm.create_model(name[5:])
        elif name.startswith("fasterrcnn"):  # what a detector runs on an image: backbone and feature pyramid
            model = torchvision.models.get_model(name, weights=None, weights_backbone=None).backbone
        elif name in PARTS:
            model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        else:
            model = torchvision.models.get_model(name, weights=None)
    return model, torch.randn(1, 3, size, size)


def examine(name: str, seeds: int = 2) -> dict[str, Any]:
    """One row of the table."""
    model, image = build(name)
    start = time.perf_counter()
    space = dp.trace(model, image)
    seconds = time.perf_counter() - start
    call = as_call(image)
    proof = Proof.of(model, call)
    gaps, exact = [], True
    for seed in range(seeds):
        masks = dp.Masks.random(space, keep=(0.3, 0.7), seed=seed)
        gaps.append(difference(proof.model, space, masks, proof.call))
        small = dp.slim(model, space, masks)
        exact &= count_flops(small, call)[0] == dp.flops(space, masks)
        exact &= sum(p.numel() for p in small.parameters()) == dp.params(space, masks)
    reasons: dict[str, list[str]] = {}
    for refusal in space.refused:
        reasons.setdefault(refusal.reason, []).append(refusal.layer)
    return {
        "groups": len(space.groups),
        "filters": int(space.sizes.sum()),
        "share": space.prunable_flops / space.flops,
        "seconds": seconds,
        "law 1": max(gaps) <= proof.tolerance,
        "gap": max(gaps),
        "law 2": exact,
        "refused": reasons,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| network | groups | filters | prunable share of FLOPs | trace, s | laws 1, 2 | refused: layers, reason |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | - | - | - | - | - | {row['error']} |")
            continue
        refused = "; ".join(f"{len(layers)}: {why}" for why, layers in row["refused"].items())
        held = "yes" if row["law 1"] and row["law 2"] else "**no**"
        cells = (name, row["groups"], row["filters"], f"{row['share']:.3f}", f"{row['seconds']:.1f}", held, refused)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Examine the networks that are named, or all that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else {}
    todo = args.names or ([] if args.table else [n for n in networks() if n not in rows])
    for name in todo:
        try:
            rows[name] = examine(name)
        except dp.PruneError as error:
            rows[name] = {"error": str(error)}
        print(name, json.dumps(rows[name]), flush=True)
        rows = {n: rows[n] for n in networks() if n in rows}
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        gc.collect()
    text = RESULTS.read_text()
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    RESULTS.write_text(f"{before}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
