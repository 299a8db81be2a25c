r"""What tells, before refinement, how good a network will be after it?

Question: a search hands over refined networks. How well do the figures that it could compare candidates by (the loss
when compensated, the closed-form error, refinement on few images) rank them as refinement in full leaves them, and what
does each cost?
Method: candidates of one budget and very different widths: every single criterion with uniform and with balanced
widths, LeGR's affine genome and ours, drawn at random. Truth is the loss on validation images (training images that
nothing was fitted to) after refinement on all calibration images. The learned error has seen the drafts of 20
candidates and ranks the others: mean tau over 50 draws of those. Seconds are medians of CPU time of the process.
Output: a JSON file in benchmarks/results, and a table.

    OMP_NUM_THREADS=1 python benchmarks/drafts.py --pairs cifar100-resnet20 cifar10-resnet20 --data DIR --weights DIR
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ground import Ground
from quality import PAIRS, open_config, train_digits
from scipy.stats import kendalltau

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome
from deap_prune.evolution import Seeds

IMAGES = (100, 250)
SEEN = 20


def candidates(ground: Ground, budget: float, drawn: int) -> list[dp.Masks]:
    """Single criteria, and as many random individuals of either genome."""
    uniform, evolved = (ground.genome(budget, allocation=name) for name in ("uniform", "evolved"))
    affine = ground.genome(budget, kind=AffineGenome, criterion="l2", min_keep=0.1)
    evaluator, masks = ground.evaluator("compensated"), [uniform.decode(uniform.single(n)) for n in uniform.criteria]
    masks += [evolved.decode(ind) for ind in Seeds(dp.BlendProblem(evolved, evaluator)).balanced(len(evolved.criteria))]
    rng = np.random.default_rng(ground.seed)
    toolbox = dp.make_toolbox(affine, evaluator, seed=ground.seed, sigma=1.0)
    masks += [affine.decode(toolbox.individual()) for _ in range(drawn)]
    masks += [evolved.decode(rng.uniform(evolved.layout.low, evolved.layout.high).tolist()) for _ in range(drawn)]
    return list(dict.fromkeys(masks))


def measured(ground: Ground, masks: list[dp.Masks]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Every figure of every candidate, smaller being better, and its median seconds."""
    compensated = ground.judge("compensated")
    judges = {f"refined on {n} images": ground.judge("drafts", draft_images=n) for n in IMAGES}
    judges |= {"compensated": compensated, "refined": compensated.in_full(refine=True)}
    figures: dict[str, list[float]] = {name: [] for name in (*judges, "closed-form error")}
    seconds: dict[str, list[float]] = {name: [] for name in figures}
    for number, each in enumerate(masks):
        for name in figures:
            start = time.process_time()
            judge = judges.get(name)
            values = (compensated.surrogate(each),) if judge is None else judge(each)
            figures[name].append(values[0])
            seconds[name].append(time.process_time() - start)
        print(f"{number + 1} of {len(masks)}: {figures['refined'][-1]:.3f}", flush=True)
    return figures, {name: statistics.median(times) for name, times in seconds.items()}


def learned(ground: Ground, masks: list[dp.Masks], drafts: list[float], truth: list[float]) -> float:
    """Mean tau of the error that has learned from some drafts, on the rest."""
    rng, taus = np.random.default_rng(ground.seed), []
    error = ground.judge("drafts").learned
    for _ in range(50):
        order = rng.permutation(len(masks)).tolist()
        seen, rest = order[:SEEN], order[SEEN:]
        ranks = error({masks[k]: (drafts[k],) for k in seen})
        assert ranks is not None
        taus.append(float(kendalltau([ranks(masks[k]) for k in rest], [truth[k] for k in rest]).statistic))
    return statistics.mean(taus)


def report(ground: Ground, budget: float, drawn: int) -> dict[str, Any]:
    """The figures of a pair, and Kendall's tau of each with the loss after refinement."""
    masks = candidates(ground, budget, drawn)
    figures, seconds = measured(ground, masks)
    truth = figures["refined"]
    taus = {name: float(kendalltau(values, truth).statistic) for name, values in figures.items() if name != "refined"}
    taus["closed-form error, learned"] = learned(ground, masks, figures[f"refined on {IMAGES[-1]} images"], truth)
    params = [dp.params(ground.space, m) for m in masks]
    return {"candidates": len(masks), "tau": taus, "seconds": seconds, "figures": figures | {"parameters": params}}


def main() -> None:
    """All pairs, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["digits"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--drawn", type=int, default=12, help="random individuals of either genome")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="where the digits network is kept")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "drafts.json")
    args = parser.parse_args()
    if "digits" in args.pairs and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    found = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for pair in args.pairs:
        found[pair] = report(Ground(open_config(pair, 0, args), 0), args.budget, args.drawn)
        found[pair] |= {"budget": args.budget, "torch": torch.__version__, "threads": torch.get_num_threads()}
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(found, indent=1) + "\n")
        for name, tau in found[pair]["tau"].items():
            print(f"{pair:20} {name:30} tau {tau:6.2f}  {found[pair]['seconds'].get(name, 0):6.2f} s")


if __name__ == "__main__":
    main()
