r"""Does a steady-state loop keep unequal workers busy, does it survive kills, and what does the driver spend?

``throughput``: two Ray workers, one at half the speed; candidates per second of generations (mu + lambda) against
steady state, in turns on the same workers, with checkpoints (and journal) in both; the median of the paired ratios
counts. Every evaluation is stretched to a multiple of its CPU time (twice that on the slow worker), so that the load of
the machine does not decide.
``kills``: a search on two Ray workers, which are killed (SIGKILL) at random moments, as is the driver. Nothing that was
journalled may be lost, and the finished run's journal must give the same files without an evaluation.
``driver``: seconds per candidate beside the evaluation: ResNet-50's groups, a fitness that costs nothing.
Digits ResNet (random weights: values do not matter here) on its images. Set OMP_NUM_THREADS=1.
Output: one JSON file in benchmarks/results, each stage a part of it.

    OMP_NUM_THREADS=1 python benchmarks/steady_state.py throughput kills driver
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from provenance import origin

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.evolution.checkpoint import Checkpoints
from deap_prune.evolution.returns import Returns
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.zoo import digits_resnet

OPTIONS: dict[str, Any] = {
    "criteria": ("l1", "fpgm", "bn_scale", "taylor_gate"),
    "population": 8,
    "generations": 10,
    "device": "cpu",
    "progress": False,
    "refine": False,
}


class Unequal(Evaluator):
    """An evaluator that takes a multiple of its CPU time; twice as long in the process that takes the token first."""

    stretch, token = 1.0, ""
    _factor = 0.0

    def compute(self, masks: dp.Masks) -> tuple[float, ...]:
        """The values, after the time has passed."""
        begun, cpu = time.perf_counter(), time.process_time()
        values = super().compute(masks)
        duration = self.stretch * (time.process_time() - cpu) * self._slowness()
        time.sleep(max(0.0, duration - (time.perf_counter() - begun)))
        return values

    def _slowness(self) -> float:
        if not self._factor:
            try:
                Path(self.token).unlink()
                self._factor = 2.0
            except FileNotFoundError:
                self._factor = 1.0
        return self._factor


def network() -> tuple[Any, dict[str, Any], torch.Tensor]:
    """The digits network, its images and an example input."""
    torch.manual_seed(0)
    model, data = digits_resnet(), load_data(format="digits")
    return model, {"calibration": data.calibration, "validation": data.validation}, data.calibration[0][:1]


def start_ray() -> Any:
    """A small Ray cluster of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # it would kill workers for what others use
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    return ray


# ------------------------------------------------------------------ throughput
def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Candidates per second of both loops, for several sizes of the population."""
    ray, (model, images, example) = start_ray(), network()
    space = dp.trace(model, example)
    scores = dp.score(model, space, images["calibration"], criteria=OPTIONS["criteria"])
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=3))
    with tempfile.TemporaryDirectory() as folder:
        evaluate = Unequal(model, space, **images, objectives=("accuracy", "flops"), device="cpu")
        evaluate.stretch, evaluate.token = args.stretch, f"{folder}/token"
        Path(evaluate.token).touch()
        rows = []
        with dp.distributed.ray_map(evaluate, workers=2, threads=1, num_cpus=0.5) as workers:
            workers.many([dp.Masks.random(space, keep=0.5, seed=seed) for seed in range(8)])
            for size in args.populations:
                pairs = []
                for turn in range(args.repeat):
                    rates = [
                        loop_rate(name, genome, evaluate, workers, size, args.candidates, seed=100 * size + turn)
                        for name in ("mu_plus_lambda", "steady_state")
                    ]
                    pairs.append(rates)
                    print(f"population {size}: {rates[0]:.2f}, {rates[1]:.2f} candidates/s", flush=True)
                ratio = statistics.median(steady / generations for generations, steady in pairs)
                rows.append({"population": size, "candidates per second": pairs, "ratio": ratio})
    ray.shutdown()
    return {"stretch": args.stretch, "candidates": args.candidates, "repeat": args.repeat, "rows": rows}


def loop_rate(
    name: str, genome: Any, evaluate: Unequal, workers: Any, size: int, candidates: int, *, seed: int
) -> float:
    """New candidates per second of a loop, its files included."""
    toolbox = dp.make_toolbox(genome, evaluate, seed=seed)
    toolbox.register("map", workers)
    toolbox.register("population", lambda n: [toolbox.individual() for _ in range(n)])  # new ones in every run
    with tempfile.TemporaryDirectory() as folder:
        journal = Returns(Path(folder) / "returns.jsonl") if name == "steady_state" else None
        variation, callbacks = dp.algorithms.Variation(size), [Checkpoints(Path(folder), {})]
        loop = dp.algorithms.Loop(name, toolbox, variation, callbacks, journal=journal)
        before, begun = evaluate.counters.candidates, time.perf_counter()
        loop.run(loop.start(size), candidates // size - 1)
        return (evaluate.counters.candidates - before) / (time.perf_counter() - begun)


# ------------------------------------------------------------------ kills
def drive(folder: Path) -> None:
    """Search on Ray, or resume (in a process of its own)."""
    ray, (model, images, example) = start_ray(), network()
    if (folder / "config.yaml").is_file():
        dp.resume(folder, model, example, **images, progress=False, ray="local,workers=2,num_cpus=0.5")
    else:
        options = {**OPTIONS, "algorithm": "steady_state", "ray": "local,workers=2,num_cpus=0.5"}
        dp.search(model, example, **images, out=folder, **options)
    ray.shutdown()


def kills(args: argparse.Namespace) -> dict[str, Any]:
    """Kill workers and drivers of one run; what was lost, and whether the replay gives the same files."""
    with tempfile.TemporaryDirectory() as place:
        folder, chance = Path(place) / "run", random.Random(0)
        journal = folder / "returns.jsonl"
        total = OPTIONS["population"] * (OPTIONS["generations"] + 1)
        moments = sorted(chance.sample(range(4, total - 6), args.workers + args.drivers))
        of_driver = set(chance.sample(moments[1:], args.drivers))
        killed, lost, failures, driver = {"workers": 0, "drivers": 0}, 0, 0, start_driver(folder)
        for moment in moments:
            while returns(journal) < moment or not ray_workers_of(driver.pid):
                time.sleep(0.05)
                if driver.poll() is not None:  # Ray did not start in time, for example
                    failures += 1
                    driver = start_driver(folder)
            family = descendants(driver.pid)
            if moment in of_driver:
                before = journal.read_text().splitlines()
                driver.kill()
                driver.wait()
                for pid in family:  # Ray's processes end by themselves after a while
                    end(pid)
                after = journal.read_text().splitlines()
                lost += before != after[: len(before)]
                killed["drivers"] += 1
                driver = start_driver(folder)
            else:
                end(chance.choice(ray_workers_of(driver.pid)))
                killed["workers"] += 1
            print(f"after {moment} returns: {killed}", flush=True)
        while driver.wait():
            failures += 1
            driver = start_driver(folder)
        lines = journal.read_text().splitlines()
        numbers = [json.loads(line.rpartition("\t")[0])[1] for line in lines[1:]]
        again, evaluated = Path(place) / "again", replayed(folder, Path(place) / "again")
        names = ["front.json", "front.csv", "history.csv", "cache.jsonl", "returns.jsonl"]
        equal = all((again / name).read_bytes() == (folder / name).read_bytes() for name in names)
    whole = sorted(numbers) == list(range(total))
    return {
        "killed": killed,
        "candidates": total,
        "all returned once": whole,
        "drivers that failed by themselves": failures,
        "journals that lost a line": lost,
        "files equal after replay": equal,
        "evaluations of the replay": evaluated,
    }


def replayed(folder: Path, again: Path) -> int:
    """Replay a run from its config and journal in another folder; the number of evaluations it took."""
    again.mkdir()
    for name in ("config.yaml", "returns.jsonl", "versions.json"):
        shutil.copy(folder / name, again / name)
    calls, original = list[int](), Evaluator.compute
    Evaluator.compute = lambda self, masks: calls.append(1) or original(self, masks)  # type: ignore[method-assign]
    model, images, example = network()
    dp.resume(again, model, example, **images, progress=False)
    Evaluator.compute = original  # type: ignore[method-assign]
    return len(calls)


def start_driver(folder: Path) -> subprocess.Popen[bytes]:
    """A process that runs the search."""
    return subprocess.Popen([sys.executable, __file__, "drive", "--folder", str(folder)])


def returns(journal: Path) -> int:
    """Returns in a journal."""
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


def descendants(pid: int) -> list[int]:
    """The processes that descend from a process of ours."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family[1:]


def ray_workers_of(pid: int) -> list[int]:
    """The evaluating processes of a driver."""
    return [member for member in descendants(pid) if command(member).startswith("ray::_Worker")]


def command(pid: int) -> str:
    """The name of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def end(pid: int) -> None:
    """SIGKILL."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------ cost on the driver
def driver_cost(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per candidate of the loop itself, with and without journal."""
    import torchvision
    from bookkeeping import CheapFitness, Scores

    space = dp.trace(torchvision.models.resnet50(weights=None), torch.zeros(1, 3, 64, 64))
    scores, rows = Scores(space), []
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=3))
    for size in (32, 128):
        for journalled in (False, True):
            costs = []
            for seed in range(args.repeat):
                toolbox = dp.make_toolbox(genome, CheapFitness(space), seed=seed)
                with tempfile.TemporaryDirectory() as folder:
                    journal = Returns(Path(folder) / "returns.jsonl") if journalled else None
                    loop = dp.algorithms.Loop("steady_state", toolbox, dp.algorithms.Variation(64), journal=journal)
                    state = loop.run(loop.start(size), 0)
                    begun, cpu = time.perf_counter(), time.process_time()
                    loop.run(state, 1)
                    costs.append([(time.perf_counter() - begun) / 64, (time.process_time() - cpu) / 64])
            wall, spent = (statistics.median(column) for column in zip(*costs, strict=True))
            rows.append({"population": size, "journal": journalled, "seconds": wall, "CPU seconds": spent})
            print(
                f"population {size}, journal {journalled}: {1000 * wall:.2f} ms, CPU {1000 * spent:.2f} ms", flush=True
            )
    return {"network": "ResNet-50", "groups": len(space.groups), "rows": rows}


STAGES = {"throughput": throughput, "kills": kills, "driver": driver_cost}


def main() -> None:
    """Run the stages, and write each result as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "drive"])
    parser.add_argument("--populations", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--stretch", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--drivers", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "steady_state.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stages == ["drive"]:
        drive(args.folder)
        return
    report = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for stage in args.stages:
        report[stage] = STAGES[stage](args) | origin("ray")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({stage: report[stage]}, indent=1), flush=True)


if __name__ == "__main__":
    main()
