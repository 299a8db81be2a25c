"""SIGKILL at every fsync, rename and unlink of a run and of its end, and at random moments: the files are the same.

A driver process forks a child for each run, so that a kill costs a search and no imports. All slow.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deap_prune as dp
from deap_prune.search import latency_check
from tests.attack.inputs import DATA, X, net

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path[:0] = ["."]
from tests.search.test_kill_points import campaign
campaign(*sys.argv[1:])
"""
WATCHED = ("fsync", "rename", "replace", "unlink", "ftruncate")
SKIPPED = ("checkpoints", "versions.json", "front.png", "run.lock", "live.json", "latency.json")


def work(out: Path) -> None:
    """Search, or resume, with an end that refines and recovers the front and times its networks."""
    if (out / "config.yaml").is_file():
        dp.resume(out, net(), X[:1], **DATA, progress=False)
        return
    options: dict[str, Any] = {"criteria": ("l1", "fpgm"), "objectives": ("loss", "flops"), "population": 4}
    options |= {"generations": 2, "finalists": 1, "refine_images": 12, "recover": 3, "device": "cpu"}
    dp.search(net(), X[:1], out=out, **DATA, progress=False, latency_table=out.parent / "table.json", **options)


def forked(task: Callable[[], Any]) -> tuple[int, float]:
    """Exit status of a child process that does the task, and the seconds it took."""
    begun = time.monotonic()
    if (pid := os.fork()) == 0:
        try:
            task()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begun


def killed_at(out: Path, point: int, counted: Path | None = None) -> Callable[[], None]:
    """The work, with a SIGKILL before the given call of the watched functions; counts the calls without one."""

    def task() -> None:
        calls = 0

        def watched(name: str) -> Callable[..., Any]:
            function = getattr(os, name)

            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in WATCHED:
            setattr(os, name, watched(name))
        work(out)
        if counted is not None:
            counted.write_text(str(calls))

    return task


def killed_after(out: Path, seconds: float) -> Callable[[], None]:
    def task() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        work(out)

    return task


def files(out: Path) -> dict[str, bytes]:
    """The files of a result."""
    paths = [p for p in sorted(out.rglob("*")) if p.is_file()]
    return {n: p.read_bytes() for p in paths if not (n := str(p.relative_to(out))).startswith(SKIPPED)}


def campaign(folder: str, step: str, moments: str) -> None:
    """Kill at every ``step``-th call and at random moments, half of them in the end phase; print how the runs ended."""
    torch.set_num_threads(1)
    latency_check.installed_runtimes = lambda: ()  # type: ignore[attr-defined]  # else most of the time is theirs
    place = Path(folder)
    dp.latency_table(net(), dp.trace(net(), X[:1]), X[:1], repeats=3, out=place / "table.json", progress=False)
    work(place / "imports")  # what a run imports, each child would import again
    counted = place / "counted"
    assert forked(killed_at(place / "whole", 0, counted))[0] == 0
    begun, (_, seconds) = time.time(), forked(lambda: work(place / "again"))
    evolved = max(path.stat().st_mtime for path in (place / "again/checkpoints").iterdir()) - begun
    expected, calls = files(place / "whole"), int(counted.read_text())
    assert files(place / "again") == expected
    draws = random.Random(0)
    kinds = ["call"] * len(range(1, calls + 1, int(step))) + ["moment"] * int(moments)
    same, hit, different = 0, 0, []
    for n, kind in enumerate(kinds):
        number = 1 + n * int(step) if kind == "call" else n
        out = place / f"{kind}{number}"
        if kind == "call":
            task = killed_at(out, number)
        else:
            task = killed_after(out, draws.uniform(evolved if n % 2 else 0.05 * seconds, seconds))
        status, took = forked(task)
        hit += status == -signal.SIGKILL
        if kind == "moment" and status == 0:  # the machine has less load than when the whole run was timed
            evolved, seconds = evolved * min(1.0, took / seconds), min(seconds, took)
        ends = status if status in (0, -signal.SIGKILL) else 1
        while ends == -signal.SIGKILL or not (out / "front.json").is_file():
            ends = forked(lambda out=out: work(out))[0]
            if ends == 1:
                break
        wrong = [name for name in {*expected, *files(out)} if files(out).get(name) != expected.get(name)]
        if ends == 0 and not wrong:
            same += 1
        else:
            different.append(f"{kind} {number}: exit {ends}, {wrong[:5]}")
        print(f"{kind} {number}: {status}, {same} the same, {hit} kills, {different}", file=sys.stderr, flush=True)
        shutil.rmtree(out)
    counts = {"calls": calls, "kills": hit, "runs": len(kinds), "same": same, "different": different}
    print(json.dumps({**counts, "seconds": seconds, "of evolution": evolved}))


def result(folder: Path, step: int, moments: int) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(step), str(moments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    counts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    return counts


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path) -> None:
    counts = result(tmp_path, 1, 60)
    assert counts["different"] == []
    assert counts["kills"] >= 100
