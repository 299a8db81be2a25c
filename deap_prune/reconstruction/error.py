"""A fitness without a forward pass: what compensation can't bring back, in closed form from the moments."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from deap_prune.reconstruction.compensate import refit
from deap_prune.reconstruction.grams import Grams, LayerGram
from deap_prune.reconstruction.matrix import RIDGE
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import Ids, PruningSpace

REMEMBERED = 2048  # masks of a layer
LATEST = 512  # candidates that weights are learned from
PRIOR = 1.0  # strength of the prior towards equal weights, in candidates


class ReconstructionError:
    """Relative squared error that compensation leaves in each reader's output, summed over the readers.

    A surrogate of the loss: smaller is better, 0 where nothing is pruned. Thousands of masks can be compared, the more
    so as children differ from their parents in few layers: a layer's error under a mask it has met is remembered.

    All layers count alike, which suits compensated networks. What refinement leaves comes from few of them, mostly the
    late ones: those before are made up for by all that follow. So there the weights are learned (:meth:`learned`).

    Args:
        space: What is pruned.
        grams: Of the dense network.
        ridge: As for :func:`compensate`.
    """

    def __init__(self, space: PruningSpace, grams: Grams, *, ridge: float = RIDGE) -> None:
        self._space, self._grams, self._ridge = space, grams, ridge
        self._looked_at = {name: _looked_at(gram) for name, gram in grams.layers.items()}
        self._known: dict[str, dict[bytes, float]] = {name: {} for name in grams.layers}
        self.weights: Sequence[float] = [1.0] * len(grams.layers)

    def __call__(self, masks: Masks) -> float:
        """The error under a mask.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        return sum(weight * error for weight, error in zip(self.weights, self.by_layer(masks), strict=True))

    def learned(self, evaluated: Iterable[tuple[Masks, float]]) -> ReconstructionError:
        """The same errors, with weights of the layers that are fitted to evaluated candidates.

        Least squares of the values on the errors and a constant, over weights that are not negative and are drawn to
        equal ones. A value far above the others (a network that broke down) counts as less; one that is not finite,
        not at all.

        Args:
            evaluated: Masks, and values of which smaller is better; the latest 512 count.
        """
        rows, values = [], []
        for masks, value in list(evaluated)[-LATEST:]:
            if np.isfinite(value):
                rows.append(self.by_layer(masks))
                values.append(value)
        other = copy.copy(self)
        if rows:
            other.weights = _weights(np.array(rows), np.array(values)).tolist()
        return other

    @torch.no_grad()
    def by_layer(self, masks: Masks) -> list[float]:
        """The error of each reader, from 0 to 1, in the order of the moments.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        keep, errors = self._space.kept(masks), []
        for name, gram in self._grams.layers.items():
            known = self._known[name]
            seen = np.packbits(keep[self._looked_at[name]]).tobytes()
            if seen not in known:
                if len(known) >= REMEMBERED:
                    known.clear()
                known[seen] = self._error(gram, keep)
            errors.append(known[seen])
        return errors

    def _error(self, gram: LayerGram, keep: NDArray[np.bool_]) -> float:
        """Of one layer, from 0 to 1."""
        fit = refit(gram, keep, self._ridge)
        if fit is None:
            return 0.0
        energy = fit.energy
        left = energy - (fit.weight * (fit.cross + fit.target)).sum(dim=(1, 3)) - fit.won
        if gram.shortcut is not None:  # what meets it counts, not what the layer alone makes
            scale = gram.shortcut.slope.gather(1, fit.outputs).square()
            unmade = 0 if fit.lost is None else gram.shortcut.unmade.gather(1, fit.outputs) * fit.lost
            energy, left = energy * scale + unmade, left * scale + unmade
        error = left.sum() / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
        return float(error.clamp(0, 1))


def _looked_at(gram: LayerGram) -> Ids:
    """The channels that a layer's error depends on, by id."""
    met = () if gram.shortcut is None else (gram.shortcut.sources,)
    return np.concatenate((gram.channels.inputs, gram.channels.outputs, *met))


def _weights(errors: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the layers, from 0 on.

    Args:
        errors: Of each candidate and layer.
        values: Of each candidate.
    """
    from scipy.optimize import nnls  # slow to import: when first used

    low, high = np.quantile(values, (0.25, 0.75))
    values = np.minimum(values, high + 3 * (high - low))
    centred, target = errors - errors.mean(axis=0), values - values.mean()
    scale = centred.std(axis=0).mean()
    if not scale > 0:
        return np.ones(errors.shape[1])
    centred /= scale
    together = centred.sum(axis=1)
    equal = max(0.0, float(together @ target) / max(float(together @ together), np.finfo(np.float64).tiny))
    prior = np.sqrt(PRIOR) * np.eye(errors.shape[1])
    weights, _ = nnls(np.concatenate((centred, prior)), np.concatenate((target, prior.sum(axis=1) * equal)))
    return np.asarray(weights) if weights.any() else np.ones(errors.shape[1])


def reconstruction_error(space: PruningSpace, masks: Masks, grams: Grams, *, ridge: float = RIDGE) -> float:
    """:class:`ReconstructionError` of one mask.

    Raises:
        MaskError: If the masks don't fit the space.
    """
    return ReconstructionError(space, grams, ridge=ridge)(masks)
