r"""Which networks can be pruned, how much of each, and do the laws hold?

Question: for every network of torchvision's classification zoo (transformers aside), its segmentation models, the
backbone of a detector, and a choice of timm's: which groups does tracing accept, are pruned networks exact, and what is
refused, for which reason?
Method: a fresh network (random weights) is traced with one image. Law 1: on a randomised float64 copy, the masked
and the slimmed network agree for random masks that keep between 30 and 70 % of every group. Law 2: the closed-form
flops and parameters equal fvcore's count and the parameters of the slimmed network, as whole numbers. The share of
FLOPs is that of operators whose input or output channels can shrink.
Output: results/coverage.json, one entry a network; networks that have one are skipped.

    python benchmarks/coverage.py                    # everything: about an hour on two cores
    python benchmarks/coverage.py resnet50 timm:dla34
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
    """Names of all networks, by family."""
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


def main() -> None:
    """Examine the networks that are named, or all that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else {}
    todo = args.names or [name for name in networks() if name not in rows]
    for name in todo:
        try:
            rows[name] = examine(name)
        except dp.PruneError as error:
            rows[name] = {"error": str(error)}
        print(name, json.dumps(rows[name]), flush=True)
        rows = {n: rows[n] for n in networks() if n in rows}
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        gc.collect()


if __name__ == "__main__":
    main()
