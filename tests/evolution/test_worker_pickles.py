"""Evaluators in other processes: pickles are light, and hold only what a worker needs."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Digits

import deap_prune as dp
from deap_prune.errors import ConfigError, RunError
from deap_prune.evolution import worker_pickles
from tests.helpers.fakes import CachedFake, fake_genome
from tests.helpers.pruning import prepared


def test_pickles_are_light(digits: Digits) -> None:
    """A pool pickles a name for every chunk; network and data are written once, without the cache."""
    evaluate = digits.evaluator()
    toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
    (individual,) = toolbox.population(n=1)
    values = toolbox.evaluate(individual)
    data = pickle.dumps(toolbox.evaluate)
    problem = toolbox.evaluate.func.__self__
    assert len(data) < 1000 and pickle.dumps(toolbox.evaluate) == data
    assert pickle.loads(data).func.__self__ is problem
    parcel = Path(problem._sent[1])
    assert parcel.stat().st_mode & 0o77 == 0 or parcel.parent.stat().st_mode & 0o77 == 0
    _, _, _, sent = torch.load(parcel, weights_only=False)
    assert sent.evaluate.cache == {} and len(evaluate.cache) == 1
    assert "_executor" in vars(evaluate) and "_executor" not in vars(sent.evaluate)  # each process makes its own
    assert tuple(sent.evaluate(digits.genome().decode(individual))) == values
    del toolbox, problem, sent
    gc.collect()
    assert not parcel.exists()


def test_model_guard_and_cache_are_not_sent(digits: Digits) -> None:
    """The user's model with its hooks, the guard images and the cache stay; the copy gives the same values."""
    model = copy.deepcopy(digits.model)
    model.register_forward_hook(lambda *args: None)  # a lambda can't be pickled
    data = {"calibration": digits.calibration, "validation": digits.validation, "guard": digits.validation}
    evaluate = dp.Evaluator(model, digits.space, **data, device="cpu")
    masks = dp.Masks.random(digits.space, keep=0.6)
    fresh = len(pickle.dumps(worker_pickles.Parcel(evaluate)))
    values, guarded = evaluate(masks), evaluate.on_guard(masks)
    sent = pickle.dumps(worker_pickles.Parcel(evaluate))
    there = pickle.loads(sent).evaluate
    assert not there._guard and there._user_model is there.network and there.cache == there._guard_cache == {}
    moments = len(pickle.dumps(evaluate._build.moments))  # collected once, here
    assert len(sent) < fresh + moments + 1000
    assert there(masks) == values and evaluate.cache == {masks: values} and evaluate.on_guard(masks) == guarded


def test_an_evaluator_that_can_not_be_pickled_is_named(digits: Digits) -> None:
    evaluate = digits.evaluator(forward=lambda model, batch: (model(batch[0]), batch[1]))
    problem = dp.algorithms.BlendProblem(digits.genome(), evaluate)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"can't be sent to other processes: .*lambda.*; define"):
            pickle.dumps(problem.evaluate)


def test_a_process_reads_the_problem_once(digits: Digits, tmp_path: Path) -> None:
    problem = dp.algorithms.BlendProblem(fake_genome(), CachedFake(prepared("residual").space))
    individual = problem.individual(problem.genome.single("a"))
    (tmp_path / "evaluate").write_bytes(pickle.dumps(problem.evaluate))
    code = """
import pickle, sys
one, two = (pickle.loads(open(sys.argv[1], "rb").read()) for _ in range(2))
print(one.__self__ is two.__self__, one(eval(sys.argv[2])))
"""
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", code, str(tmp_path / "evaluate"), repr(list(individual))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == f"True {problem.evaluate(individual)}", done.stderr
    key, path, _ = problem._sent
    assert worker_pickles._LOADED.pop(key)() is problem
    assert worker_pickles.received(key, path).evaluate(individual) == problem.evaluate(individual)
    for other in (("another", path), ("another", "/nowhere/problem.pt")):
        with pytest.raises(RunError, match="the process that pickled this toolbox has ended"):
            worker_pickles.received(*other)


def test_where_open_files_have_no_path_the_file_lies_in_a_private_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pickles.Path, "exists", lambda path: False)
    problem = dp.algorithms.BlendProblem(fake_genome(), CachedFake(prepared("residual").space))
    pickle.dumps(problem)
    folder = Path(problem._sent[1]).parent
    assert folder.stat().st_mode & 0o77 == 0 and [path.name for path in folder.iterdir()] == ["problem.pt"]
    del problem
    gc.collect()
    assert not folder.is_dir()


FORKED = """
import multiprocessing, sys
import torch
sys.path[:0] = {paths!r}
from tests.helpers.networks import NETWORKS
import deap_prune as dp

torch.set_num_threads(2)
torch.manual_seed(0)
model, example = NETWORKS["residual"]()
data = torch.randn(64, 3, 32, 32), torch.randint(5, (64,))
space = dp.trace(model, example)
evaluate = dp.Evaluator(model, space, calibration=data, validation=data, device="cpu")
genome = dp.Genome(space, scores := dp.score(model, space, data, criteria=("l1", "taylor_gate")), dp.cluster(scores))
toolbox = dp.make_toolbox(genome, evaluate, seed=0)
population = toolbox.population(n=4)
here = toolbox.map(toolbox.evaluate, population)
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map(toolbox.evaluate, population)
assert all(abs(a - b) < 0.05 for one, other in zip(here, there) for a, b in zip(one, other)), (here, there)
print("evaluated")
"""


def test_a_forked_pool_does_not_wait_for_its_parents_threads() -> None:
    """OpenMP's threads are not forked: a child that uses them would wait for ever."""
    code = FORKED.format(paths=[str(Path(__file__).parents[2])])
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "evaluated\n", done.stderr
