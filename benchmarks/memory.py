r"""How much memory does judging take?

Question: the peak of our engine (network in place, moments collected, two candidates judged) over that of a plain
dense pass over the validation images in batches of 250.
Method: a fresh process each; by how many bytes the resident set grows, at most, above what network, images and
libraries took before (Linux's high-water mark, reset; on CUDA what torch has allocated), and the network's own weights,
which either needs. glibc is told to hand freed blocks back, so that what is measured is what is held. The matrices of
the moments are left out: the option ``gram_memory`` bounds them.
Output: bytes. speed.py runs it for both and puts them in its JSON file.

    MALLOC_MMAP_THRESHOLD_=1000000 MALLOC_TRIM_THRESHOLD_=1000000 OMP_NUM_THREADS=1 \
        python benchmarks/memory.py ours --network vgg19    # or dense; other options as for speed.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from speed import arguments, dense_pass, engine, setup

import deap_prune as dp


def peak(what: str, device: str) -> float:
    """Bytes by which memory grows, at most."""
    bench, _ = setup(arguments(sys.argv[2:]))
    dense_pass(bench, 50)  # whatever libraries keep once they have been used
    held = 0.0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = float(torch.cuda.memory_allocated())
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = status("VmRSS")
    if what == "dense":
        dense_pass(bench)
    else:
        evaluate = engine(bench, device)
        for seed in range(2):
            evaluate(dp.Masks.random(bench.space, keep=0.7, seed=seed))
        held = evaluate._build.grams.nbytes
    most = float(torch.cuda.max_memory_allocated()) if device == "cuda" else status("VmHWM")
    weights = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    return most - before - held + weights


def status(name: str) -> float:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name + ":")))


if __name__ == "__main__":
    print(peak(sys.argv[1], arguments(sys.argv[2:]).device))
