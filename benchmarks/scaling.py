r"""How far does judging scale, and where do generations wait for stragglers? A simulation.

Question: with measured costs of candidates and messages, how busy are 1 to 1,024 workers in a generational loop, and
what would a steady-state loop gain, which makes a new child whenever a worker is free?
Method: judging times are drawn (with replacement, seeded) from a measured list: seconds per candidate on the network of
``--config``, or, without a config, of a first population on a digits ResNet (CPU seconds of one thread, so that what
else the machine does counts for nothing); a share of workers may be slow. A message
costs the measured pickling of masks and the given latency; the driver handles one message at a time. Generational: a
worker gets its next candidate when it is free, and the generation ends with its slowest. Steady state: no generation
ends. Both judge the same number of candidates. Nothing is claimed about quality: steady state chooses parents from what
is there. Bookkeeping between generations is measured on the same genome.
Output: a JSON file in benchmarks/results, and a table.

    python benchmarks/scaling.py --population 256 --generations 20
"""

from __future__ import annotations

import argparse
import heapq
import json
import pickle
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from deap_prune.search.workspace import Workspace

import deap_prune as dp
from deap_prune.config import SearchConfig, load_config
from deap_prune.data import load_data
from deap_prune.search import prepare
from deap_prune.zoo import digits_resnet


def measured(config: str | None, overrides: list[str], candidates: int) -> dict[str, list[float] | float]:
    """Seconds per candidate, of packing and unpacking a message, and of a generation's bookkeeping per individual."""
    if config is not None:
        work = Workspace.open(load_config(config, overrides))
        model, example, calibration, validation = work.model, work.example, work.calibration, work.validation
        options = work.config.search
    else:
        data, model, options = load_data(format="digits"), digits_resnet(), SearchConfig(criteria=("l1", "fpgm"))
        example, calibration, validation = data.calibration[0][:1], data.calibration, data.validation
    genome, evaluate, _ = prepare(model, example, calibration, validation, options)
    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    population = toolbox.population(n=candidates)
    torch.set_num_threads(1)
    start = time.process_time()
    masks = genome.decode_many(population)
    bookkeeping = (time.process_time() - start) / candidates
    evaluate(masks[0])
    seconds, packing = [], []
    for m in masks[1:]:
        start = time.process_time()
        pickle.loads(pickle.dumps(m))
        packing.append(time.process_time() - start)
        start = time.process_time()
        evaluate(m)
        seconds.append(time.process_time() - start)
    size = len(pickle.dumps(masks[0]))
    return {
        "seconds": seconds,
        "message": statistics.median(packing),
        "bytes": float(size),
        "bookkeeping": bookkeeping,
    }


def simulate(
    costs: np.ndarray, workers: int, population: int, *, speeds: np.ndarray, message: float, pause: float, steady: bool
) -> dict[str, float]:
    """Seconds that all candidates take, and the share of the workers' time that they judge.

    Args:
        costs: Seconds of each candidate on a worker of speed 1.
        workers: How many.
        population: Candidates of a generation.
        speeds: Of each worker.
        message: Seconds of the driver for each candidate.
        pause: Seconds between generations, in which nobody judges.
        steady: No generation ends.
    """
    free = [(0.0, w) for w in range(workers)]
    driver, end, busy = 0.0, 0.0, 0.0
    for number, cost in enumerate(costs):
        if not steady and number and number % population == 0:
            driver = end + pause
            free = [(driver, w) for w in range(workers)]
        at, worker = heapq.heappop(free)
        driver = max(driver, at) + message
        judged = cost / speeds[worker]
        busy += judged
        heapq.heappush(free, (driver + judged, worker))
        end = max(end, driver + judged)
    return {"seconds": end, "busy": busy / (end * workers)}


def main() -> None:
    """Measure, simulate, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--candidates", type=int, default=40, help="judged to measure their costs")
    parser.add_argument("--population", type=int, default=256)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.002, help="seconds a message is under way")
    parser.add_argument("--slow", type=float, default=0.1, help="share of workers at half the speed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    args = parser.parse_args()
    found = measured(args.config, args.set, args.candidates)
    rng = np.random.default_rng(0)
    costs = rng.choice(np.array(found["seconds"]), size=args.population * args.generations) + args.latency
    pause, rows = found["bookkeeping"] * args.population, []
    for workers in [2**k for k in range(11)]:
        speeds = np.where(rng.random(workers) < args.slow, 0.5, 1.0)
        options = {"speeds": speeds, "message": found["message"], "pause": pause}
        loops = {
            name: simulate(costs, workers, args.population, steady=name == "steady state", **options)
            for name in ("generational", "steady state")
        }
        gain = loops["generational"]["seconds"] / loops["steady state"]["seconds"]
        rows.append({"workers": workers, **loops, "gain": gain})
        busy = [f"{loops[name]['busy']:.0%}" for name in loops]
        print(
            f"{workers:5d} workers: busy {busy[0]} by generations, {busy[1]} in steady state; {gain:.2f} times",
            flush=True,
        )
    report = {
        "measured": found,
        "options": {k: v for k, v in vars(args).items() if k not in ("out", "set")},
        "rows": rows,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, CPU",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
