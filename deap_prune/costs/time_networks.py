"""Time the ONNX files of this folder; needs onnxruntime and NumPy alone. It goes on where it stopped.

Run it on the device that networks are to be fast on: python time_networks.py
The times.json that it writes goes back to: deap-prune latency CONFIG --import times.json --out table.json
"""

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
ROUNDS, REPEATS, BURST = 3, 7, 3e-4
TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def session_of(name: str, threads: int) -> Any:
    """A function that runs a network once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(HERE / name), options, providers=["CPUExecutionProvider"])
    feeds = {e.name: np.full(e.shape, 0.5).astype(TYPES.get(e.type, np.int64)) for e in session.get_inputs()}
    return lambda: session.run(None, feeds)


def milliseconds(run: Any) -> float:
    """Median time of one run; short ones are repeated for one reading of the clock."""
    run()
    start = time.perf_counter()
    run()
    burst = max(1, min(10, round(BURST / max(time.perf_counter() - start, 1e-9))))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(burst):
            run()
        times.append(1e3 * (time.perf_counter() - start) / burst)
    return float(np.median(times))


def main() -> None:
    """Time what is missing, and write the times as they come."""
    plan, out = json.loads((HERE / "plan.json").read_text()), HERE / "times.json"
    times = json.loads(out.read_text())["times"] if out.is_file() else {}
    for turn in range(ROUNDS):
        names = [name for name in plan["files"] if len(times.get(name, [])) <= turn]
        random.shuffle(names)
        for number, name in enumerate(names, 1):
            times.setdefault(name, []).append(milliseconds(session_of(name, plan["threads"])))
            if number % 50 == 0 or number == len(names):
                out.write_text(json.dumps({"version": onnxruntime.__version__, **plan["of"], "times": times}))
                print(f"round {turn + 1} of {ROUNDS}: {number} of {len(names)}", flush=True)


if __name__ == "__main__":
    main()
