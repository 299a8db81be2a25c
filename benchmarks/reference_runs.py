"""Fixed-seed runs on the digits, to show that a change of the code's structure changes no result.

``python benchmarks/reference_runs.py make OUT`` writes each run's front.json into OUT; ``compare OUT`` repeats the runs
and names those whose front.json differs. Both need the network that ``make demo`` trains. On another machine, or with
another version of torch, the figures differ in their last digits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import deap_prune as dp
from deap_prune.data import load_data
from deap_prune.weights import load_weights
from deap_prune.zoo import digits_resnet

ONE = {"objectives": ("loss",), "max_flops": 0.5}
TWO = {"objectives": ("accuracy", "flops")}
SMALL = {"population": 8, "generations": 3, "finalists": 1}
RUNS: dict[str, dict[str, Any]] = {
    "demo": TWO | {"population": 32, "generations": 10, "recalibrate": "data"},
    "mu_plus_lambda": ONE | SMALL,
    "nsga2": TWO | SMALL | {"algorithm": "nsga2"},
    "nsga3": SMALL | {"algorithm": "nsga3", "objectives": ("accuracy", "flops", "params")},
    "aging": ONE | SMALL | {"algorithm": "aging"},
    "legr": ONE | SMALL | {"algorithm": "legr"},
    "cma": ONE | SMALL | {"algorithm": "cma"},
    "random": TWO | SMALL | {"algorithm": "random"},
    "singles": ONE | SMALL | {"algorithm": "singles"},
    "borda": TWO | SMALL | {"algorithm": "borda"},
    "prescreen": ONE | SMALL | {"prescreen": 4},
    "guard": TWO | SMALL | {"guard": 60},
    "successive": SMALL | {"algorithm": "successive", "budgets": (0.7, 0.4), "objectives": ("loss", "flops")},
    "drafts": ONE | SMALL | {"refine_from": 0, "draft_images": 60, "prescreen": 3},
}
RENAMED: dict[str, dict[str, Any]] = {
    "successive": SMALL | {"algorithm": "successive", "max_flops": (0.7, 0.4), "objectives": ("loss", "flops")},
    "drafts": ONE | SMALL | {"compare": "drafts", "draft_images": 60, "prescreen": 3},
}


def front_of(name: str, cache: Path) -> str:
    """The front.json of a run, without its settings."""
    data, model = load_data(format="digits"), digits_resnet()
    load_weights(model, cache)
    images = {"calibration": data.calibration, "validation": data.validation}
    with tempfile.TemporaryDirectory() as folder:
        for options in (RUNS[name], RENAMED.get(name)):
            try:
                dp.search(model, data.calibration[0], **images, out=f"{folder}/run", progress=False, **options or {})
                break
            except dp.errors.ConfigError:
                if options is RENAMED.get(name):
                    raise
        content = json.loads(Path(folder, "run", "front.json").read_text())
    content.pop("settings")
    return json.dumps(content, indent=1)


def main() -> None:
    """Make or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", nargs="*", default=list(RUNS))
    parser.add_argument("--cache", type=Path, default=Path(".cache/digits_resnet.safetensors"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    differing = []
    for name in args.runs:
        text, path = front_of(name, args.cache), args.out / f"{name}.json"
        if args.what == "make":
            path.write_text(text)
        elif path.read_text() != text:
            differing.append(name)
        print(name, "written" if args.what == "make" else "differs" if name in differing else "same", flush=True)
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
