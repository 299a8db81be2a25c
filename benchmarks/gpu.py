r"""What a CUDA device brings: candidates per second, the tests that need one, and training after pruning.

One command of at most eight minutes, made for a device that is lent by the minute. Its stages run in processes of their
own, each with a part of the time, and each writes its JSON as it goes: what a stage has finished is kept if it fails or
the time is over.

``resnet56``, ``resnet50``: candidates per second (compensated, closed-form BN statistics, random weights and images) of
the masked network as a captured graph and of the slim network, in fp32 and bf16. The floor is the forward pass over the
same images alone: the dense network as a captured graph, or the candidate's slim network. Its share says how much of a
candidate's time is left to save.
``tests``: the tests that are skipped without a CUDA device.
``training``: arms of after_training.py (ResNet-56, CIFAR-100, at most 48 % of the FLOPs) for the time that is left.
Their filters are chosen beforehand, on any machine: ``after_training.py choose`` with --out STATE. Every epoch is
stored in --state, so the next call goes on there.

    python benchmarks/gpu.py --out OUT --state STATE -- --data DIR --weights DIR --arms "one threshold, L2" --together 4
    python benchmarks/gpu.py --out OUT --dry        # on a CPU: the same code on tiny networks, in under two minutes
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import torchvision
from pairs import PAIRS
from provenance import origin
from torch import nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.cuda_graphs import Graphs
from deap_prune.files import write_text
from deap_prune.precision import computes_bf16
from deap_prune.weights import save_weights

HERE = Path(__file__).parent
MINUTES = 8.0
RESERVE = 10.0  # seconds at the end, to write and to stop what still runs
CUDA_TESTS = (
    "tests/training/test_cuda_graphs.py",
    "tests/fitness/test_execution.py::test_cuda_executors",
    "tests/fitness/test_evaluator.py::test_cuda_gives_the_values_of_the_cpu",
    "tests/reconstruction/test_recovery.py::test_on_cuda",
)
TRAINING = ["--pair", "cifar100-resnet56", "--budget", "0.48", "--epochs", "100"]
DRY_TRAINING = ["--pair", "digits", "--epochs", "1", "--images", "100", "--seeds", "0", "--arms", "one threshold, L2"]
DRY_DATA = ["--set", "data.calibration=40", "--set", "data.validation=40", "--set", "search.criteria=[l2, bn_scale]"]


# ------------------------------------------------------------------ candidates per second
def resnet56(args: argparse.Namespace) -> None:
    """ResNet-56 on 1,000 images of 32 pixels."""
    if args.dry:
        speed(args, "resnet56", zoo.digits_resnet(width=4), (8, 1, 8, 8))
    else:
        speed(args, "resnet56", zoo.cifar10_resnet56(), (1000, 3, 32, 32))


def resnet50(args: argparse.Namespace) -> None:
    """ResNet-50 on 500 images of 224 pixels."""
    if args.dry:
        speed(args, "resnet50", zoo.digits_resnet(width=8), (8, 1, 16, 16))
    else:
        speed(args, "resnet50", torchvision.models.resnet50(weights=None), (500, 3, 224, 224))


def speed(args: argparse.Namespace, name: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Time candidates in every way to run them, and write a row as each ends."""
    device = torch.device("cpu" if args.dry else "cuda")
    torch.manual_seed(0)
    model = model.eval().to(device)
    x = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(x), dtype=torch.int64, device=device)
    space = dp.trace(model, x[:1])
    few = len(x) // 4
    data = {"calibration": (x[:few], labels[:few]), "validation": (x, labels)}
    rows: list[dict[str, Any]] = []
    for executor in ("masked", "slim"):
        for precision in ("fp32", "bf16") if computes_bf16(device) else ("fp32",):
            how = {"executor": executor, "precision": precision, "device": str(device)}
            evaluate = dp.Evaluator(model, space, **data, objectives=("loss",), **how)
            rows.append({"executor": executor, "precision": precision, **timed(evaluate, model, x, args)})
            facts = {"network": type(model).__name__, "images": list(shape), "dry": args.dry}
            store(args, name, {**facts, "rows": rows})


def timed(evaluate: dp.Evaluator, model: nn.Module, x: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Candidates per second at half of the filters, the share of the floor, and seconds by phase."""
    masks = [dp.Masks.random(evaluate.space, keep=0.5, seed=seed) for seed in range(args.candidates + 2)]
    for warm_up in masks[:2]:
        evaluate(warm_up)
    before = dict(evaluate.counters.seconds)
    seconds = [took(lambda candidate=candidate: evaluate(candidate), evaluate) for candidate in masks[2:]]
    network = model if evaluate.options.executor == "masked" else evaluate.slim(masks[-1])
    forward = floor(network, evaluate)
    floors = [
        took(lambda: [forward(batch) for batch in x.split(evaluate.options.batch_size)], evaluate) for _ in range(7)
    ]
    phases = {name: (spent - before[name]) / len(seconds) for name, spent in evaluate.counters.seconds.items()}
    median, least = statistics.median(seconds), statistics.median(floors[2:])
    return {
        "candidates per second": 1 / median,
        "share of the floor": least / median,
        "seconds": {"candidate": median, "floor": least, **{n: s for n, s in phases.items() if s}},
        "n": len(seconds),
    }


def floor(network: nn.Module, evaluate: dp.Evaluator) -> Callable[[torch.Tensor], Any]:
    """The forward pass of a network alone: as a captured graph if the evaluator's is, in its precision."""
    device, bf16 = evaluate.device, evaluate.options.precision == "bf16"
    network = network.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
            return network(batch)

    graph = device.type == "cuda" and evaluate.options.executor == "masked"
    return Graphs(forward, name="the floor") if graph else forward


def took(call: Callable[[], Any], evaluate: dp.Evaluator) -> float:
    """Seconds of a call, until the device has done it."""
    begun = time.perf_counter()
    call()
    if evaluate.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


# ------------------------------------------------------------------ tests and training
def tests(args: argparse.Namespace) -> None:
    """Run the tests that need a device; without one they are skipped."""
    chosen = CUDA_TESTS[1:2] if args.dry else CUDA_TESTS
    path = args.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={path}", *chosen]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    (suite,) = ElementTree.parse(path).getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.attrib["name"] for case in suite.iter("testcase") if case.find("failure") is not None]
    path.unlink()
    store(args, "tests", {**counts, "failed": failed, "exit status": done.returncode, "dry": args.dry})


def training(args: argparse.Namespace) -> None:
    """Train the arms; a dry run chooses the filters too."""
    if args.dry and not (args.state / PAIRS["digits"]).is_file():
        args.state.mkdir(parents=True, exist_ok=True)
        save_weights(zoo.digits_resnet(), args.state / PAIRS["digits"])
    arguments = [*(DRY_TRAINING if args.dry else TRAINING), *args.training, "--out", str(args.state)]
    if args.dry:
        after_training("choose", [*arguments, *DRY_DATA])
    store(args, "training", gathered(args, "begun"))
    after_training("train", [*arguments, *(DRY_DATA if args.dry else ())])
    store(args, "training", gathered(args, "finished"))


def after_training(command: str, arguments: Sequence[str]) -> None:
    """Run a command of after_training.py in this process, so that a time limit ends it too."""
    import after_training as script

    argv, sys.argv = sys.argv, ["after_training.py", command, *arguments]
    try:
        script.main()
    finally:
        sys.argv = argv


def gathered(args: argparse.Namespace, stage: str) -> dict[str, Any]:
    """The rows of trained networks in --state, and the files of those that are under way."""
    finished = sorted(args.state.glob("*/*.trained-*.json"))
    under_way = sorted(str(path.relative_to(args.state)) for path in args.state.glob("*/*.state-*.safetensors"))
    rows = [json.loads(path.read_text()) for path in finished]
    return {"stage": stage, "rows": rows, "under way": under_way, "dry": args.dry}


# ------------------------------------------------------------------ stages
STAGES: dict[str, tuple[Callable[[argparse.Namespace], None], float]] = {
    "resnet56": (resnet56, 60),
    "resnet50": (resnet50, 100),
    "tests": (tests, 100),
    "training": (training, 480),
}
"""Name to the function and its most seconds; what one leaves is there for the next."""


def store(args: argparse.Namespace, stage: str, content: dict[str, Any]) -> None:
    """Write a stage's JSON."""
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / f"{stage}.json", json.dumps({**content, **origin()}, indent=1) + "\n")


def run_all(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run the stages one after the other, each in a process, within the minutes."""
    begun, ends = time.monotonic(), {}
    for stage in args.stages:
        left = 60 * args.minutes - (time.monotonic() - begun) - RESERVE
        if left < 1:
            ends[stage] = "no time left"
        else:
            command = [sys.executable, str(HERE / "gpu.py"), "--only", stage, *argv]
            start, seconds = time.monotonic(), min(left, STAGES[stage][1])
            try:
                status = subprocess.run(command, timeout=seconds, check=False).returncode
                ends[stage] = "finished" if status == 0 else f"exit status {status}"
            except subprocess.TimeoutExpired:
                ends[stage] = f"stopped after {seconds:.0f} s"
            if stage == "training":
                store(args, stage, gathered(args, ends[stage]))
            ends[stage] += f" ({time.monotonic() - start:.0f} s)"
        print(f"{stage}: {ends[stage]}", flush=True)
        store(args, "gpu", {"stages": ends, "dry": args.dry})


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what follows ``--`` is for after_training.py."""
    own, after = (list(argv), []) if "--" not in argv else split(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--state", type=Path, help="folder of the trainings; OUT/training by default")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="most minutes of the whole")
    parser.add_argument("--candidates", type=int, default=24, help="timed per way to run them")
    parser.add_argument("--dry", action="store_true", help="tiny networks on the CPU")
    parser.add_argument("--only", choices=STAGES, help="run this stage, in this process")
    args = parser.parse_args(own)
    args.training, args.state = after, args.state or args.out / "training"
    if args.dry:
        args.candidates = min(args.candidates, 2)
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry runs the same on tiny networks on the CPU")
    return args


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before ``--``, and what is after it."""
    place = list(argv).index("--")
    return list(argv[:place]), list(argv[place + 1 :])


def main() -> None:
    """Run all stages, or one."""
    args = arguments(sys.argv[1:])
    if args.only:
        STAGES[args.only][0](args)
    else:
        run_all(args, sys.argv[1:])


if __name__ == "__main__":
    main()
