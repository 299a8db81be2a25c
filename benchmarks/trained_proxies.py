r"""Which figure ranks pruned networks as training afterwards will?

Question: a search compares candidates before training. How well does each cheap figure rank the accuracy that the
candidates have after some epochs of training?
Method: candidates of one budget and of very different widths: single criteria with uniform and balanced widths and with
one threshold, random individuals of LeGR's genome and of ours, and the stored search. Each is refined with selected
filters, then trained with the dense network as teacher (the defaults of ``dp.finetune``) and evaluated on the test
images. Kendall's tau of a figure with that accuracy; its spread is the standard deviation over bootstrap samples of the
candidates. Figures are oriented so that a good one has a positive tau.
Output: results/trained_proxies.json: one row for each candidate, with masks, and the taus. Rows are not made again.

    OMP_NUM_THREADS=1 python benchmarks/trained_proxies.py run --data DIR --weights DIR
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from pairs import PAIRS, Row, Setup, by_name, open_config, train_digits
from provenance import origin, packed, unpacked
from scipy.stats import kendalltau
from table_format import RESULTS
from torch import nn

import deap_prune as dp
from deap_prune.blending.baselines import AffineGenome
from deap_prune.files import write_text

CRITERIA = ("l2", "fpgm", "taylor_gate")
SAMPLES = 1000


def candidates(setup: Setup, pair: str, budget: float, drawn: int) -> dict[str, dp.Masks]:
    """Candidates by name, without duplicates."""
    uniform, evolved = (setup.genome(budget, allocation=name) for name in ("uniform", "evolved"))
    affine = setup.genome(budget, kind=AffineGenome, criterion="l2", min_keep=0.1)
    evaluator = setup.evaluator("compensated")
    same = [1.0] * len(setup.space.groups), [0.0] * len(setup.space.groups)
    chosen = {"uniform": uniform.decode(uniform.single("l2"))}
    for name in (name for name in CRITERIA if name in evolved.criteria):
        chosen[f"one threshold, {name}"] = evolved.decode(evolved.affine(name, *same))
        curves = evolved.width_curves(name, evaluator.surrogate)
        chosen[f"balanced, {name}"] = evolved.decode(evolved.balanced(name, curves))
    rng = np.random.default_rng(setup.seed)
    toolbox = dp.make_toolbox(affine, evaluator, seed=setup.seed, sigma=1.0)
    for number in range(drawn):
        chosen[f"LeGR's genome, random {number}"] = affine.decode(toolbox.individual())
        genes = rng.uniform(evolved.layout.low, evolved.layout.high).tolist()
        chosen[f"evolved widths, random {number}"] = evolved.decode(genes)
    rows = json.loads((RESULTS / "selected_search.json").read_text())
    stored = [row["masks"] for row in rows if row["pair"] == pair and row["select"] == "sequential"]
    if stored and budget == 0.5:
        chosen["search with selection"] = dp.Masks.from_json(json.dumps(stored[0]))
    return {name: masks for masks, name in {masks: name for name, masks in reversed(chosen.items())}.items()}


# ------------------------------------------------------------------ figures before training
def gradient_signal(network: nn.Module, setup: Setup) -> float:
    """Sum of weight times gradient of the cross-entropy on the calibration images, in absolute value (SNIP's score)."""
    network = copy.deepcopy(network).requires_grad_(True)
    images, labels = (part[:250] for part in setup.data.calibration)
    F.cross_entropy(network(images), labels).backward()
    terms = ((p * p.grad).abs().sum() for p in network.parameters() if p.grad is not None)
    return float(sum(float(term) for term in terms))


def shares(masks: dp.Masks) -> list[float]:
    """Kept share of every group."""
    return [float(keep.mean()) for keep in masks.values()]


def figures(setup: Setup, masks: dp.Masks, refined: dp.Evaluator, network: nn.Module) -> dict[str, float]:
    """Every figure of a candidate, oriented so that larger should be better."""
    compensated = setup.evaluator("compensated")
    values = {
        "loss, compensated": compensated,
        "loss, draft": setup.evaluator("drafts"),
        "loss, draft with selected filters": setup.evaluator("drafts", select=True),
    }
    found = {name: -by_name(evaluator, evaluator(masks))["loss"] for name, evaluator in values.items()}
    found["loss, refined with selected filters"] = -by_name(refined, refined.measure(network, masks))["loss"]
    kept = shares(masks)
    return found | {
        "closed-form error": -float(compensated.surrogate(masks)),
        "least kept share": min(kept),
        "mean logarithm of the kept shares": float(np.mean(np.log(kept))),
        "parameters": float(dp.params(setup.space, masks)),
        "width of the narrowest layer": float(min(keep.sum() for keep in masks.values())),
        "gradient signal, after refinement": gradient_signal(network, setup),
    }


def row_of(setup: Setup, masks: dp.Masks, args: argparse.Namespace) -> Row:
    """Figures, training and test of one candidate."""
    images = len(setup.data.calibration[0])
    refined = setup.evaluator("compensated", refine=True, refine_images=images, select=True)
    network = refined.slim(masks)
    measured = figures(setup, masks, refined, network)
    before = setup.test_accuracy(network)
    train = tuple(part[: args.images] for part in setup.data.train)
    teacher = copy.deepcopy(setup.model)
    dp.finetune(network, train, epochs=args.epochs, teacher=teacher, augment=True, progress=False, seed=setup.seed)
    return {
        "figures": measured,
        "before training": before,
        "after training": setup.test_accuracy(network),
        "flops": dp.flops(setup.space, masks) / setup.space.flops,
        "epochs": args.epochs,
        "images": len(train[0]),
        **origin(),
        "masks": packed(masks),
    }


# ------------------------------------------------------------------ rank correlation
def taus(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Kendall's tau of each figure with the accuracy after training: of all, its spread, and of the better half."""
    reference = np.array([row["after training"] for row in rows])
    columns = {name: np.array([row["figures"][name] for row in rows]) for name in rows[0]["figures"]}
    columns["accuracy before training"] = np.array([row["before training"] for row in rows])
    best = np.argsort(-reference)[: math.ceil(len(rows) / 2)]
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(rows), size=len(rows)) for _ in range(SAMPLES)]
    tau: Callable[..., float] = lambda first, second: float(kendalltau(first, second).statistic)  # noqa: E731
    return {
        name: {
            "tau": tau(values, reference),
            "spread": float(np.nanstd([tau(values[draw], reference[draw]) for draw in draws])),
            "better half": tau(values[best], reference[best]),
        }
        for name, values in columns.items()
    }


def main() -> None:
    """Make the rows that the file lacks, and the taus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "tau"))
    parser.add_argument("--pair", choices=PAIRS, default="cifar100-resnet20")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--budget", type=float, default=0.5, help="kept share of the FLOPs")
    parser.add_argument("--drawn", type=int, default=4, help="random individuals of either genome")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, help="training images, the first ones; all if left out")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(".cache"), help="folder of the digits network")
    parser.add_argument("--results", type=Path, default=RESULTS / "trained_proxies.json")
    args = parser.parse_args()
    report = json.loads(args.results.read_text()) if args.results.is_file() else {"rows": []}
    rows: list[Row] = report["rows"]
    if args.command == "run":
        if args.pair == "digits" and not (args.out / PAIRS["digits"]).is_file():
            train_digits(args.out / PAIRS["digits"])
        setup = Setup(open_config(args.pair, 0, args), 0)
        for name, masks in candidates(setup, args.pair, args.budget, args.drawn).items():
            facts: Row = {"pair": args.pair, "budget": args.budget, "candidate": name}
            if any(unpacked(row["masks"]) == masks and row["epochs"] == args.epochs for row in rows):
                continue
            rows.append(facts | row_of(setup, masks, args))
            write_text(args.results, json.dumps(report, indent=1) + "\n")
            print(name, rows[-1]["before training"], rows[-1]["after training"], flush=True)
    report["tau"] = taus(rows)
    write_text(args.results, json.dumps(report, indent=1) + "\n")
    for name, tau in report["tau"].items():
        print(f"{name:40} {tau['tau']:6.2f} ± {tau['spread']:.2f}  better half {tau['better half']:6.2f}")


if __name__ == "__main__":
    main()
