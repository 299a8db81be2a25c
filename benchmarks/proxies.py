r"""Which figure predicts, before refinement, how good a network is after it?

Question: a search returns refined networks. How well do the figures that it could compare candidates by (the loss of
compensated candidates, the closed-form error, the loss after refinement on few images) rank them as full refinement
does, and what does each cost?
Method: candidates of one budget and very different widths: every single criterion with uniform and with balanced
widths, and random individuals of LeGR's affine genome and of ours. The reference is the loss on validation images
(training images that nothing was fitted to) after refinement on all calibration images. The learned error is fitted to
the drafts of 20 candidates and ranks the others: mean tau over 50 such splits. Seconds are medians of CPU time.
Output: a part of results/proxies.json.

    OMP_NUM_THREADS=1 python benchmarks/proxies.py --pairs cifar100-resnet20 cifar10-resnet20 --data DIR --weights DIR
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
from pairs import PAIRS, Setup, open_config, train_digits
from scipy.stats import kendalltau

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome

IMAGES = (100, 250)
SEEN = 20


def candidates(setup: Setup, budget: float, drawn: int) -> list[dp.Masks]:
    """Single criteria with uniform and with balanced widths, and ``drawn`` random individuals of either genome."""
    uniform, evolved = (setup.genome(budget, allocation=name) for name in ("uniform", "evolved"))
    affine = setup.genome(budget, kind=AffineGenome, criterion="l2", min_keep=0.1)
    evaluator = setup.evaluator("compensated")
    masks = [uniform.decode(uniform.single(name)) for name in uniform.criteria]
    for name in evolved.criteria:
        curves = evolved.width_curves(name, evaluator.surrogate)
        masks.append(evolved.decode(evolved.balanced(name, curves)))
    rng = np.random.default_rng(setup.seed)
    toolbox = dp.make_toolbox(affine, evaluator, seed=setup.seed, sigma=1.0)
    masks += [affine.decode(toolbox.individual()) for _ in range(drawn)]
    masks += [evolved.decode(rng.uniform(evolved.layout.low, evolved.layout.high).tolist()) for _ in range(drawn)]
    return list(dict.fromkeys(masks))


def measured(setup: Setup, masks: list[dp.Masks]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Every figure of every candidate (smaller is better), and the median of its seconds."""
    compensated = setup.evaluator("compensated")
    evaluators = {f"refined on {n} images": setup.evaluator("drafts", refine_images=n) for n in IMAGES}
    evaluators |= {"compensated": compensated, "refined": setup.evaluator("compensated", refine=True)}
    figures: dict[str, list[float]] = {name: [] for name in (*evaluators, "closed-form error")}
    seconds: dict[str, list[float]] = {name: [] for name in figures}
    for number, candidate in enumerate(masks):
        for name in figures:
            start = time.process_time()
            value = evaluators[name](candidate)[0] if name in evaluators else compensated.surrogate(candidate)
            figures[name].append(value)
            seconds[name].append(time.process_time() - start)
        print(f"{number + 1} of {len(masks)}: {figures['refined'][-1]:.3f}", flush=True)
    return figures, {name: statistics.median(times) for name, times in seconds.items()}


def learned_tau(setup: Setup, masks: list[dp.Masks], drafts: list[float], reference: list[float]) -> float:
    """Mean tau of the error that is fitted to some drafts, on the other candidates."""
    rng, taus = np.random.default_rng(setup.seed), []
    evaluator = setup.evaluator("drafts", objectives=("loss",))
    for _ in range(50):
        order = rng.permutation(len(masks)).tolist()
        seen, rest = order[:SEEN], order[SEEN:]
        error = evaluator.learned({masks[k]: (drafts[k],) for k in seen})
        if error is None:
            raise SystemExit("the evaluator does not refine, so its error does not learn")
        taus.append(float(kendalltau([error(masks[k]) for k in rest], [reference[k] for k in rest]).statistic))
    return statistics.mean(taus)


def report(setup: Setup, budget: float, drawn: int) -> dict[str, Any]:
    """The figures of a pair, and Kendall's tau of each with the loss after refinement."""
    masks = candidates(setup, budget, drawn)
    figures, seconds = measured(setup, masks)
    reference = figures["refined"]
    proxies = {name: values for name, values in figures.items() if name != "refined"}
    taus = {name: float(kendalltau(values, reference).statistic) for name, values in proxies.items()}
    if len(masks) > SEEN + 1:
        drafts = figures[f"refined on {IMAGES[-1]} images"]
        taus["closed-form error, learned"] = learned_tau(setup, masks, drafts, reference)
    params = [dp.params(setup.space, candidate) for candidate in masks]
    return {"candidates": len(masks), "tau": taus, "seconds": seconds, "figures": figures | {"parameters": params}}


def main() -> None:
    """All pairs, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["digits"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--budget", type=float, default=0.5, help="kept share of the FLOPs")
    parser.add_argument("--drawn", type=int, default=12, help="random individuals of either genome")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="folder of the digits network")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "proxies.json")
    args = parser.parse_args()
    if "digits" in args.pairs and not (args.out / PAIRS["digits"]).is_file():
        train_digits(args.out / PAIRS["digits"])
    reports = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for pair in args.pairs:
        reports[pair] = report(Setup(open_config(pair, 0, args), 0), args.budget, args.drawn)
        reports[pair] |= {"budget": args.budget, "torch": torch.__version__, "threads": torch.get_num_threads()}
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(reports, indent=1) + "\n")
        for name, tau in reports[pair]["tau"].items():
            print(f"{pair:20} {name:30} tau {tau:6.2f}  {reports[pair]['seconds'].get(name, 0):6.2f} s")


if __name__ == "__main__":
    main()
