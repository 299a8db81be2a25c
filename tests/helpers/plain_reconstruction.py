"""Plain computations of the criteria that re-fit the other filters, in NumPy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import nn

from tests.helpers.plain_criteria import FILTERS, Data, Score, everything


def errors_without(net: nn.Module, data: Data, *, scarce: bool) -> Callable[[list[int]], float]:
    """Of some filters: what ridge regression on the others leaves of their patches, through their weights."""
    x = copy.deepcopy(net).eval()[:3](everything(data)[0]).detach()
    features = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, FILTERS * 9).double().numpy()
    weight = net[3].weight.detach().double().flatten(1).numpy().T  # (features, outputs)
    ridge = 1e-3 * (max(1, 300 * (features.shape[1] / len(features)) ** 2) if scarce else 1)
    centred = features - features.mean(axis=0)
    ridge *= centred.var(axis=0).mean() * len(centred)

    def error(gone: list[int]) -> float:
        own = np.isin(np.arange(9 * FILTERS) // 9, gone)
        mine, others = centred[:, own], centred[:, ~own]
        fit = np.linalg.solve(others.T @ others + ridge * np.eye(others.shape[1]), others.T @ mine)
        left = np.sum((mine @ weight[own] - others @ fit @ weight[own]) ** 2)
        drawn = ridge * np.sum((fit @ weight[own]) ** 2) + ridge * np.sum(weight[own] ** 2)
        return float((left + drawn) / np.sum((centred @ weight) ** 2))

    return error


def compensation(net: nn.Module, data: Data) -> np.ndarray:
    """Every filter on its own."""
    error = errors_without(net, data, scarce=False)
    return np.array([error([i]) for i in range(FILTERS)])


def elimination(net: nn.Module, data: Data) -> np.ndarray:
    """The error with each filter and all that were cheaper removed, always the cheapest next."""
    error, gone, scores = errors_without(net, data, scarce=True), list[int](), np.zeros(FILTERS)
    while len(gone) < FILTERS:
        left = [i for i in range(FILTERS) if i not in gone]
        gone.append(min(left, key=lambda i: error([*gone, i])))
        scores[gone[-1]] = error(gone)
    return scores


PLAIN: dict[str, Score] = {"compensation": compensation, "elimination": elimination}
