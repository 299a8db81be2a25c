"""A fitness without a forward pass: what compensation can't bring back, in closed form from the moments."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from deap_prune.reconstruction.compensate import RIDGE, refit
from deap_prune.reconstruction.gram import Grams, LayerGram
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

REMEMBERED = 2048  # masks of a layer


class ReconstructionError:
    """Relative squared error that compensation leaves in each reader's output, summed over the readers.

    A surrogate of the loss: smaller is better, 0 where nothing is pruned. Thousands of masks can be compared, the more
    so as children differ from their parents in few layers: a layer's error under a mask it has met is remembered.

    Args:
        space: What is pruned.
        grams: Of the dense network.
        ridge: As for :func:`compensate`.
    """

    def __init__(self, space: PruningSpace, grams: Grams, *, ridge: float = RIDGE) -> None:
        self._space, self._grams, self._ridge = space, grams, ridge
        channels = ((name, gram.channels) for name, gram in grams.layers.items())
        self._looked_at = {name: np.concatenate((c.inputs, c.outputs)) for name, c in channels}
        self._known: dict[str, dict[bytes, float]] = {name: {} for name in grams.layers}

    @torch.no_grad()
    def __call__(self, masks: Masks) -> float:
        """The error under a mask.

        Raises:
            MaskError: If the masks don't fit the space.
        """
        keep, total = self._space.kept(masks), 0.0
        for name, gram in self._grams.layers.items():
            known = self._known[name]
            seen = np.packbits(keep[self._looked_at[name]]).tobytes()
            if seen not in known:
                if len(known) >= REMEMBERED:
                    known.clear()
                known[seen] = self._error(gram, keep)
            total += known[seen]
        return total

    def _error(self, gram: LayerGram, keep: NDArray[np.bool_]) -> float:
        """Of one layer, from 0 to 1."""
        fit = refit(gram, keep, self._ridge)
        if fit is None:
            return 0.0
        dense = gram.energy.gather(1, fit.outputs)
        before = dense - (fit.weight * (fit.cross + fit.target)).sum(dim=(1, 3))
        error = (before - fit.won).sum() / dense.sum().clamp_min(torch.finfo(dense.dtype).tiny)
        return float(error.clamp(0, 1))


def reconstruction_error(space: PruningSpace, masks: Masks, grams: Grams, *, ridge: float = RIDGE) -> float:
    """:class:`ReconstructionError` of one mask.

    Raises:
        MaskError: If the masks don't fit the space.
    """
    return ReconstructionError(space, grams, ridge=ridge)(masks)
