"""Networks, data and options that a search can't work with."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import deap_prune as dp
from tests.attack.doors import Attack

_GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 3, 6, 6, generator=_GENERATOR), torch.arange(12) % 3
DATA: dict[str, Any] = {"calibration": (X, Y), "validation": (X, Y)}
NAN, INF = float("nan"), float("inf")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()


def search(model: Any = None, example: Any = None, **options: Any) -> Any:
    given: dict[str, Any] = {**DATA, "population": 2, "generations": 0}
    given |= {"criteria": ("l1", "fpgm"), "device": "cpu", "progress": False, "refine": False, "finalists": 0}
    return dp.search(net() if model is None else model, X[:1] if example is None else example, **{**given, **options})


class After(nn.Module):
    """The network, its outputs changed."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.body, self.change = net(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.body(x))


class Failing:
    """Batches that can't all be read."""

    def __iter__(self) -> Iterator[Any]:
        yield X, Y
        raise KeyError("image 13")


class NoCopy(nn.Sequential):
    def __deepcopy__(self, memo: Any) -> Any:
        raise NotImplementedError("no copies")


def holding(name: str, value: Any) -> nn.Module:
    model = net()
    setattr(model[0], name, value)
    return model


def hooked(hook: Any) -> nn.Module:
    model = net()
    model[0].register_forward_hook(hook)
    return model


def with_weights(change: Any) -> nn.Module:
    model = net()
    with torch.no_grad():
        change(model)
    return model


def numbers() -> Iterator[int]:
    yield 1


def networks() -> dict[str, Attack]:
    nan = X.clone()
    nan[3, 1, 2, 2] = NAN
    models: dict[str, Any] = {
        "a function": lambda x: x,
        "a class": nn.Sequential,
        "text": "resnet",
        "empty": nn.Sequential(),
        "without parameters": nn.Sequential(nn.ReLU(), nn.Flatten()),
        "meta weights": net().to("meta"),
        "one meta weight": with_weights(lambda m: setattr(m[3], "weight", nn.Parameter(m[3].weight.to("meta")))),
        "NaN weight": with_weights(lambda m: m[3].weight[0].fill_(NAN)),
        "infinite bias": with_weights(lambda m: m[3].bias.fill_(INF)),
        "NaN statistics": with_weights(lambda m: m[1].running_mean.fill_(NAN)),
        "negative variance": with_weights(lambda m: m[1].running_var.fill_(-1)),
        "a lock": holding("lock", threading.Lock()),
        "a file": holding("file", sys.stdout),
        "a generator": holding("generator", numbers()),
        "refuses copies": NoCopy(*net()),
        "lazy": nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
        "scripted": torch.jit.script(net()),
        "complex": net().to(torch.complex64),
        "half a network in bf16": with_weights(lambda m: m[0].bfloat16()),
        "outputs None": After(lambda y: None),
        "outputs NumPy": After(lambda y: y.detach().numpy()),
        "outputs text": After(lambda y: "y"),
        "outputs a number": After(lambda y: y.mean()),
        "outputs labels": After(lambda y: y.argmax(1)),
        "outputs NaN": After(lambda y: y * NAN),
        "outputs infinite": After(lambda y: y * INF),
        "fails": After(lambda y: {}["a"]),
        "a hook that fails": hooked(lambda *_: {}["a"]),
        "a layer without channels": nn.Sequential(*list(net())[:-1], nn.Linear(4, 0)),
        "an exported program": torch.export.export(net(), (X[:1],)).module(),
        "fails by assertion": After(lambda y: (_ for _ in ()).throw(AssertionError("x"))),
    }
    attacks = {f"model {name}": partial(search, model) for name, model in models.items()}
    examples: dict[str, Any] = {
        "text": "x",
        "NumPy": X[:1].numpy(),
        "empty": X[:0],
        "of two channels": X[:1, :2],
        "a number": 3,
        "empty tuple": (),
        "meta": X[:1].to("meta"),
        "whole numbers": (X[:1] * 9).long(),
    }
    return attacks | {f"example {name}": partial(search, None, value) for name, value in examples.items()}


def data() -> dict[str, Attack]:
    nan = X.clone()
    nan[-1, 0, 0, 0] = NAN
    cases: dict[str, Any] = {
        "None": None,
        "text": "data.npz",
        "bytes": b"abc",
        "a number": 5,
        "empty": [],
        "no samples": (X[:0], Y[:0]),
        "empty batches": [(X[:0], Y[:0]), (X[:0], Y[:0])],
        "empty pixels": (X[..., :0, :0], Y),
        "of two channels": (X[:, :2], Y),
        "NumPy": (X.numpy(), Y.numpy()),
        "lists": (X.tolist(), Y.tolist()),
        "a dict of tensors": {"x": X, "y": Y},
        "three tensors": (X, Y, Y),
        "no targets": [X[:6], X[6:]],
        "bytes as pixels": ((X * 10).byte(), Y),
        "whole numbers": ((X * 10).long(), Y),
        "complex": (X.to(torch.complex64), Y),
        "double": (X.double(), Y),
        "sparse": (X.to_sparse(), Y),
        "meta": (X.to("meta"), Y),
        "NaN": (nan, Y),
        "infinite": (X / 0, Y),
        "NaN in the last batch": [(X[:6], Y[:6]), (nan[6:], Y[6:])],
        "fewer labels": (X, Y[:5]),
        "labels above": (X, Y + 5),
        "labels below": (X, Y - 1),
        "labels far below": (X, Y - 100),
        "a dataset": torch.utils.data.TensorDataset(X, Y),
        "half precision": (X.half(), Y),
        "bool": (X > 0, Y),
        "quantized": (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), Y),
        "huge": (X * 1e30, Y),
        "other channels in the last batch": [(X, Y), (X[:, :2], Y)],
        "an error while reading": Failing(),
        "a dict of other names": [({"q": X}, Y)],
        "three values a batch": [(X, Y, Y)],
        "a scalar": torch.tensor(1.0),
        "batches of None": [None, None],
        "batches of text": ["a", "b"],
        "a loader that drops all": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(X, Y), batch_size=50, drop_last=True
        ),
    }
    attacks = {
        f"{name} {kind}": partial(search, criteria=("l1", "taylor_gate"), **{name: value})
        for name in ("calibration", "validation")
        for kind, value in cases.items()
    }
    labels: dict[str, Any] = {
        "float": Y.float(),
        "float outside": Y.float() + 100,
        "random": torch.randn(12),
        "bool": Y > 0,
        "complex": Y.to(torch.complex64),
        "of shape (N, 1)": Y[:, None],
        "NaN": Y * NAN,
    }
    for first in ((X[:0], Y[:0]), (X[:0], Y[:0].float()), None, ()):
        attacks[f"first batch {first!r:.20}"] = partial(search, validation=[first, (X, Y + 5)])
    for name, value in labels.items():
        attacks[f"validation labels {name}"] = partial(search, validation=(X, value))
        attacks[f"both labels {name}"] = partial(search, validation=(X, value), calibration=(X, value))
    return attacks


def options() -> dict[str, Attack]:
    cases: dict[str, list[Any]] = {
        "max_flops": [0, -1, NAN, INF, 1.5, "half", [], [0.7], [0.9, 0.2, 0.1], 1e-9],
        "population": [0, 1, -3, NAN, "many", None, 2.5, [4]],
        "generations": [-1, NAN, INF, "x", None, 1.5],
        "seed": [-1, NAN, "x", None, 1.5, 2**70],
        "criteria": ["l1", (), ("l3",), (3,), None, ("l1", None)],
        "objectives": ["accuracy", (), ("acc",), None, (3,), ("accuracy", "accuracy", "x")],
        "n_clusters": [0, -1, "many", NAN, None, 2.5],
        "allocation": ["x", None, 3],
        "algorithm": ["x", None, 3],
        "mate": ["x", None],
        "mutate": ["x", None],
        "cxpb": [-0.1, 1.1, NAN, "x"],
        "mutpb": [-0.1, 1.1, NAN, "x"],
        "indpb": [-0.1, 1.1, NAN],
        "sigma": [0, -1, NAN, INF, "x"],
        "prescreen": [0, -1, "x"],
        "warm_start": ["nowhere", 3, __file__],
        "max_seconds": [0, -1, NAN, "x"],
        "patience": [0, -1, "x"],
        "round_to": [0, -1, 1000, "x", 1.5],
        "min_keep": [-1, 1.5, NAN, {"nothing": 0.5}, "x"],
        "ignore": ["0", ("nothing",), 3, None, ("*",)],
        "compare": ["x", None],
        "compensate": ["x", 3],
        "recalibrate": ["x", 3],
        "moment_memory": [0, -1, "x"],
        "batch_size": [0, -1, "x", None],
        "device": ["x", "cuda:99", 3, None, "meta"],
        "threads": [0, -1, "x"],
        "guard": [-1, 10**9, "x", 12],
        "refine_images": [0, 1, "x"],
        "refine_memory": [0, -1, NAN, "x"],
        "finalists": [-1, "x"],
        "labels": ["perhaps", 5],
        "augment": ["perhaps", 5],
        "no_such_option": [1],
        "out": ["/dev/null", "/dev/null/x", "/proc/x", "a\0b", "x" * 300, 5, "/dev/full/x"],
        "callbacks": [None, 3, [3], ["x"]],
        "forward": [3, "x", lambda model, batch: None, lambda model, batch: model(batch[0]), lambda batch: 1],
        "loss": [3, "x"],
        "ray": [3, "no-such-host:1"],
        "config": [3],
    }
    attacks: dict[str, Attack] = {}
    for name, values in cases.items():
        for number, value in enumerate(values):
            attacks[f"option {name}={str(value)[:40]!r} ({number})"] = partial(search, **{name: value})
    for loss in (lambda o, t: None, lambda o, t: 1.0, lambda o, t: o.detach().mean(), lambda o, t: o, lambda o, t: "x"):
        attacks[f"loss {len(attacks)}"] = partial(
            search, loss=loss, objectives=("loss", "flops"), criteria=("taylor_gate",)
        )
    return attacks
