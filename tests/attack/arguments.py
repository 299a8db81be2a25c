"""Arguments of a wrong type, or out of range, at the calls below ``dp.search``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deap_prune as dp
from deap_prune.errors import DataError
from tests.attack.doors import Attack
from tests.attack.inputs import DATA, INF, NAN, X, Y, net

NOTHING: tuple[Any, ...] = (object(), 1j, b"x")
NUMBERS: tuple[Any, ...] = (NAN, INF, -1, 10**30, "x", True, torch.tensor([1, 2]), [1])


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any], str, str]]:
    """Door to a function, its arguments, and the names of those that are no numbers, and that are."""
    model = net()
    space = dp.trace(model, X[:1])
    scores = dp.score(model, space, (X, Y), criteria=("l1", "fpgm"))
    clusters, masks = dp.cluster(scores, n_clusters=2), dp.Masks.random(space)
    genome = dp.Genome(space, scores, clusters)
    evaluator = dp.Evaluator(model, space, **DATA, device="cpu")
    small = dp.slim(model, space, masks)
    front = dp.make_toolbox(genome, evaluator).front([])
    task = {"model": model, "space": space}
    pruned = {**task, "masks": masks}
    train = {"model": small, "train": (X, Y), "epochs": 1, "progress": False}
    recovered = {"small": small, "model": model, "calibration": (X, Y), "steps": 1, "progress": False}
    blend = {"space": space, "scores": scores, "clusters": clusters}
    exported = {"network": small, "example_inputs": X[:2], "folder": "nowhere", "masks": masks}
    timed = {**task, "example_inputs": X[:1], "progress": False}
    return {
        "trace": (
            dp.trace,
            {"model": model, "example_inputs": X[:1]},
            "model example_inputs ignore widths batched",
            "",
        ),
        "score": (
            dp.score,
            {**task, "calibration": (X, Y)},
            "model space criteria reduction forward loss labels",
            "seed",
        ),
        "cluster": (dp.cluster, {"scores": scores}, "scores n_clusters method", ""),
        "Genome": (
            dp.Genome,
            blend,
            "space scores clusters allocation max_flops budgets normaliser round_to",
            "min_keep",
        ),
        "Evaluator": (dp.Evaluator, {**task, **DATA}, "model space forward loss objectives compensate refine", ""),
        "Settings": (dp.Evaluator, {**task, **DATA}, "precision executor", "batch_size refine_images recover"),
        "make_toolbox": (
            dp.make_toolbox,
            {"genome": genome, "evaluate": evaluator},
            "genome evaluate individual",
            "seed indpb sigma",
        ),
        "slim": (dp.slim, pruned, "model space masks", ""),
        "masked": (dp.masked, pruned, "model space masks state", ""),
        "flops": (dp.flops, {"space": space, "masks": masks}, "space masks", ""),
        "params": (dp.params, {"space": space, "masks": masks}, "space masks", ""),
        "Masks": (dp.Masks, {}, "keep", ""),
        "Masks.random": (dp.Masks.random, {"space": space}, "space", "keep seed"),
        "evaluator": (evaluator, {}, "masks", ""),
        "evaluator.many": (evaluator.many, {}, "masks", ""),
        "evaluator.restore": (evaluator.restore, {"values": {}, "candidates": 0}, "values dense", "candidates"),
        "with_settings": (evaluator.with_settings, {}, "refine objectives nonsense", "refine_images"),
        "refine": (dp.refine, {**pruned, "calibration": (X, Y)}, "model space masks start forward", "images rows seed"),
        "recover": (dp.recover, recovered, "small model layers augment", "steps batch_size held_out seed"),
        "finetune": (dp.finetune, train, "model train teacher recipe augment loss forward", "epochs seed"),
        "Recipe": (dp.Recipe, {}, "optimizer schedule precision", "lr batch_size weight_decay temperature distill ema"),
        "accuracy": (dp.accuracy, {"model": model, "data": (X, Y)}, "model data forward device", "batch_size"),
        "export": (
            dp.export,
            exported,
            "network example_inputs folder formats model ignore dense",
            "repeats tolerance",
        ),
        "latency_table": (dp.latency_table, timed, "model space example_inputs runtime device out", "batch repeats"),
        "load": (dp.load, {"folder": "nowhere"}, "folder model example_inputs", ""),
        "resume": (dp.resume, {"out": "nowhere"}, "out model callbacks", "generations"),
        "report": (dp.report, {"run": "nowhere"}, "run result beside", "singles"),
        "single": (genome.single, {"criterion": "l1"}, "criterion", "share"),
        "blend": (genome.blend, {}, "individual", ""),
        "decode_many": (genome.decode_many, {}, "individuals", ""),
        "best": (front.best, {}, "max_flops by", ""),
        "cheapest": (front.cheapest, {"at_least": 0.5}, "by cost", "at_least"),
        "save": (front.save, {}, "folder", ""),
        "ParetoFront.load": (dp.ParetoFront.load, {}, "folder", ""),
        "scores.save": (scores.save, {}, "path", ""),
        "ScoreTable": (dp.ScoreTable, {}, "scores", ""),
        "ScoreTable.load": (dp.ScoreTable.load, {}, "path", ""),
        "register_objective": (
            dp.register_objective,
            {"name": "a", "maximise": True, "worst": 0},
            "name maximise worst",
            "",
        ),
        "register_criterion": (dp.register_criterion, {"name": "a", "needs": "weight"}, "name needs", ""),
    }


def arguments() -> dict[str, Attack]:
    attacks: dict[str, Attack] = {}
    for door, (function, given, others, numbers) in calls().items():
        for name in [*others.split(), *numbers.split()]:
            values = (*NOTHING, *(NUMBERS if name in numbers.split() else ()))
            for place, value in enumerate(values):
                attacks[f"{door}({name}={value!r:.30}) ({place})"] = partial(function, **{**given, name: value})
    return attacks


def files_of_numbers(scratch: Path) -> dict[str, Attack]:
    """Training states and tables of scores: bytes changed in ten places of each, and files that are something else.

    A zip file has bytes, such as times, that change no score: an attack that reads the same scores counts as refused.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    model = net()
    table, state = scratch / "whole.npz", scratch / "whole.safetensors"
    dp.score(model, dp.trace(model, X[:1]), criteria=("l1",)).save(table)
    dp.finetune(net(), (X, Y), epochs=1, state=state, progress=False)
    readers: dict[Path, Callable[[Path], Any]] = {
        table: partial(_other_scores, dp.ScoreTable.load(table)),
        state: lambda path: dp.finetune(net(), (X, Y), epochs=1, state=path, progress=False),
    }
    attacks: dict[str, Attack] = {}
    for whole, read in readers.items():
        data = whole.read_bytes()
        damaged = {f"byte {k}": _flipped(data, k) for k in range(9, len(data) - 64, len(data) // 10)}
        damaged |= {"empty": b"", "text": b"x" * 100, "cut": data[: len(data) // 2], "twice": data[:-20] + data}
        for label, content in damaged.items():
            path = scratch / f"{label}{whole.suffix}"
            path.write_bytes(content)
            attacks[f"{whole.suffix} {label}"] = partial(read, path)
    return attacks


def _other_scores(whole: dp.ScoreTable, path: Path) -> None:
    """Read scores; a DataError if they are the same."""
    table = dp.ScoreTable.load(path)
    if all(np.array_equal(table[group]["l1"], scores["l1"]) for group, scores in whole.scores.items()):
        raise DataError("the same scores")


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :]
