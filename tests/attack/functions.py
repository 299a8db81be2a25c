"""The user's functions and classes that change what is not theirs, fail, or return something else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from deap import base
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.criteria import CRITERIA
from deap_prune.fitness import OBJECTIVES
from tests.attack.doors import Attack
from tests.attack.inputs import DATA, NAN, After, X, Y, net, search


def fresh() -> dict[str, Any]:
    """Images that an attack may change."""
    return {name: (X.clone(), Y.clone()) for name in DATA}


# ------------------------------------------------------------------ forward and loss
def _halves(model: nn.Module, batch: Any) -> Any:
    batch[0].mul_(0.5)
    return model(batch[0]), batch[1]


def _halves_data(model: nn.Module, batch: Any) -> Any:
    batch[0].data.mul_(0.5)
    return model(batch[0]), batch[1]


def _halves_in_numpy(model: nn.Module, batch: Any) -> Any:
    array = batch[0].numpy()
    array *= 0.5
    return model(batch[0]), batch[1]


def _zeroes_targets(model: nn.Module, batch: Any) -> Any:
    batch[1].zero_()
    return model(batch[0]), batch[1]


def _decays(model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    return model(batch[0]), batch[1]


def _trains(model: nn.Module, batch: Any) -> Any:
    return model.train()(batch[0]), batch[1]


def _loss_in_place(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mul_(2), targets)


def _loss_of_zeros(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.zero_())


def functions() -> dict[str, Attack]:
    """Functions that change data that is used again, at the doors that call them."""
    model = net()
    space = dp.trace(model, X[:1])
    masks = dp.Masks.random(space)
    small = dp.slim(model, space, masks)

    def finetune(**options: Any) -> None:
        dp.finetune(copy.deepcopy(small), fresh()["validation"], epochs=1, progress=False, **options)

    attacks: dict[str, Attack] = {}
    for forward in (_halves, _halves_data, _halves_in_numpy, _zeroes_targets, _decays, _trains):
        name = forward.__name__
        attacks[f"search forward {name}"] = lambda f=forward: search(forward=f, **fresh())  # type: ignore[misc]
        attacks[f"Evaluator forward {name}"] = lambda f=forward: dp.Evaluator(net(), space, forward=f, **fresh())  # type: ignore[misc]
        attacks[f"score forward {name}"] = lambda f=forward: dp.score(  # type: ignore[misc]
            net(), space, fresh()["validation"], criteria=("taylor_gate",), forward=f
        )
    for forward in (_halves, _halves_in_numpy, _zeroes_targets):
        attacks[f"finetune forward {forward.__name__}"] = partial(finetune, forward=forward)
        attacks[f"refine forward {forward.__name__}"] = lambda f=forward: dp.refine(  # type: ignore[misc]
            net(), space, masks, fresh()["validation"], forward=f
        )
    for loss in (_loss_in_place, _loss_of_zeros):
        attacks[f"finetune loss {loss.__name__}"] = partial(finetune, loss=loss)
        attacks[f"search loss {loss.__name__}"] = lambda f=loss: search(  # type: ignore[misc]
            loss=f, objectives=("loss", "flops"), criteria=("taylor_gate",), **fresh()
        )
    in_place = nn.Sequential(nn.ReLU(inplace=True), *net()).eval()
    attacks["search with an in-place network"] = lambda: search(in_place, X[:1].clone(), **fresh())
    attacks["search with outputs in place"] = lambda: search(After(lambda y: y), forward=_halves, **fresh())
    return attacks


# ------------------------------------------------------------------ entries of registries
@contextmanager
def entries() -> Iterator[dict[str, Attack]]:
    """Criteria and objectives that are wrong, registered while the context is open."""

    def failing(*_: Any) -> Any:
        raise KeyError("boom")

    criteria: dict[str, Callable[[Tensor], Any]] = {
        "in place": lambda w: w.zero_().flatten(1).sum(1),
        "text": lambda w: "scores",
        "complex": lambda w: torch.ones(len(w), dtype=torch.complex64),
        "NaN": lambda w: torch.full((len(w),), NAN),
        "failing": failing,
    }
    objectives: dict[str, Callable[..., Any]] = {
        "in place": lambda outputs, *_: outputs.zero_()[:, 0],
        "on targets": lambda outputs, targets, _: (targets.zero_(), outputs[:, 0])[1],
        "text": lambda *_: "values",
        "complex": lambda outputs, *_: torch.ones(len(outputs), dtype=torch.complex64),
        "failing": failing,
    }
    attacks: dict[str, Attack] = {}
    try:
        for name, score in criteria.items():
            dp.register_criterion(f"attack {name}", needs="weight")(score)
            attacks[f"criterion {name}"] = partial(search, criteria=("l1", f"attack {name}"))
        for name, values in objectives.items():
            dp.register_objective(f"attack {name}", maximise=True, worst=0)(values)
            attacks[f"objective {name}"] = lambda name=name: search(  # type: ignore[misc]
                objectives=(f"attack {name}", "accuracy"), **fresh()
            )
        yield attacks
    finally:
        for registry in (CRITERIA, OBJECTIVES):
            for key in [key for key in registry._entries if key.startswith("attack ")]:
                del registry._entries[key]


# ------------------------------------------------------------------ callbacks, toolboxes, executors
def loops(scratch: Path) -> dict[str, Attack]:
    """Callbacks that break the state, individuals and fitness values that are none, executors that can't serve."""
    model = net()
    space = dp.trace(model, X[:1])
    scores = dp.score(model, space, criteria=("l1", "fpgm"))
    genome = dp.Genome(space, scores, dp.cluster(scores, n_clusters=2))
    evaluate = dp.Evaluator(model, space, **DATA, device="cpu")
    genes = genome.single("l1")
    other = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.Flatten(), nn.Linear(20, 3)).eval()
    executor_map = dp.distributed.executor_map
    changes: dict[str, Callable[[Any], Any]] = {
        "empties the population": lambda state: state.population.clear(),
        "removes the population": lambda state: setattr(state, "population", None),
        "removes values": lambda state: [delattr(ind.fitness, "values") for ind in state.population],
        "counts back": lambda state: setattr(state, "number", -5),
        "names the generation": lambda state: setattr(state, "number", "x"),
        "removes the logbook": lambda state: setattr(state, "logbook", None),
        "remembers an object": lambda state: state.memory.update(a=object()),
    }
    attacks: dict[str, Attack] = {
        f"callback that {name}": partial(search, generations=2, callbacks=[change], out=scratch / name)
        for name, change in changes.items()
    }
    size = len(genes)
    for value in ([[g] for g in genes], [10**400] * size, dict.fromkeys(range(size)), set(genes), [1j] * size, "abc"):
        attacks[f"genes {value!r:.30}"] = partial(genome.decode, value)
    for value in (None, "ab", (), (NAN, NAN), (1.0,), {}, (object(), 1)):
        attacks[f"eaBlend with fitness {value!r:.20}"] = partial(_loop, genome, evaluate, dp.algorithms.eaBlend, value)
        attacks[f"steady_state with {value!r:.20}"] = partial(
            _loop, genome, evaluate, dp.algorithms.steady_state, value
        )
    (scratch / "journal").write_text("a file of the user's")
    loop = partial(_loop, genome, evaluate, dp.algorithms.steady_state, (1.0, 1.0))
    return (
        attacks
        | {
            "journal of something else": partial(loop, journal=scratch / "journal"),
            "journal in a folder": partial(loop, journal=scratch),
            "lists as individuals": lambda: dp.algorithms.steady_state(
                [[1]], dp.make_toolbox(genome, evaluate), 0.5, 0.5, 1
            ),
            "empty toolbox": lambda: dp.algorithms.eaBlend(
                dp.make_toolbox(genome, evaluate).population(n=2), base.Toolbox(), 2, 0.5, 0.5, 1
            ),
            "optuna without a trial": lambda: dp.optuna_objective(genome, evaluate)(None),
            "optuna without a genome": partial(dp.optuna_objective, 3, evaluate),
            "score in another space": partial(dp.score, other, space, criteria=("l1",)),
            "evaluator of another network": lambda: dp.Evaluator(other, space, **DATA, device="cpu"),
            "finetune on meta": lambda: dp.finetune(net().to("meta"), (X, Y), epochs=1, progress=False),
            "no executor": partial(executor_map, None, workers=1),
            "workers as text": lambda: executor_map(ThreadPoolExecutor(1), workers="x"),  # type: ignore[arg-type]
            "half a worker": lambda: executor_map(ThreadPoolExecutor(1), workers=1.5),  # type: ignore[arg-type]
            "executor that is None": lambda: executor_map(lambda: None, workers=1),  # type: ignore[arg-type, return-value]
            "closed executor": lambda: _closed()(abs, [1]),
            "export into a file": lambda: dp.export(net(), X[:2], scratch / "journal", formats=("torch",)),
        }
    )


def _closed() -> Any:
    with dp.distributed.executor_map(lambda: ThreadPoolExecutor(1), workers=1) as workers:
        return workers


def _loop(genome: Any, evaluate: Any, algorithm: Callable[..., Any], value: Any, **options: Any) -> None:
    """Run an algorithm whose candidates all get the same value."""
    toolbox = dp.make_toolbox(genome, evaluate)
    toolbox.register("evaluate", lambda individual: value)
    children = (3,) if algorithm is dp.algorithms.eaBlend else ()
    if algorithm is dp.algorithms.steady_state:
        options["verbose"] = False
    algorithm(toolbox.population(n=3), toolbox, *children, 0.5, 0.5, 1, **options)
