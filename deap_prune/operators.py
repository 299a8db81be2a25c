"""Operators for blends, with DEAP's signatures: for ``toolbox.register``, on individuals of any list class.

Initialisers ``init*``, crossovers ``cx*``, mutations ``mut*``, selections ``sel*``, and :func:`bounded`, which clips
genes around DEAP's own operators. They need nothing but the genome's :class:`Layout`.
"""

from deap_prune.blending.layout import Layout
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.operators import (
    bounded,
    cxBlendLayers,
    cxBlendMix,
    cxBlendSBX,
    cxBlendStages,
    cxBlendWidths,
    initBlend,
    initBlendAffine,
    initBlendSingle,
    mutBlend,
    mutBlendCandidates,
    mutBlendFactors,
    mutBlendTrade,
)
from deap_prune.evolution.selection import selBlend, selBlendNSGA3, selBlendParents

__all__ = [
    "BlendIndividual",
    "Layout",
    "bounded",
    "cxBlendLayers",
    "cxBlendMix",
    "cxBlendSBX",
    "cxBlendStages",
    "cxBlendWidths",
    "fitness_class",
    "initBlend",
    "initBlendAffine",
    "initBlendSingle",
    "mutBlend",
    "mutBlendCandidates",
    "mutBlendFactors",
    "mutBlendTrade",
    "selBlend",
    "selBlendNSGA3",
    "selBlendParents",
]
