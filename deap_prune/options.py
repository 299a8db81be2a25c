"""The options of a search, each declared once, by concern.

They are the keywords of ``dp.search`` and the keys of a config's ``search`` section; ``deap-prune options`` and
docs/options.md list them.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field

from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.blending.budget import MaxFlops
from deap_prune.blending.clusters import check_clusters
from deap_prune.costs.latency import LatencyTable
from deap_prune.criteria.registry import CRITERIA
from deap_prune.errors import ConfigError, PruneWarning, RegistryError, did_you_mean
from deap_prune.evolution.loop import ALGORITHMS
from deap_prune.evolution.operators import CROSSOVERS, MUTATIONS
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.fitness.settings import Settings

DRAFT_IMAGES = 250
"""Calibration images that a draft is refined on."""
DRAFT_ROWS = 16
"""Output positions of each of them; with 64, a draft of ResNet-20 takes two and a half times as long."""


def _of(text: str, **limits: Any) -> Any:
    return Field(description=text, **limits)


@dataclass(frozen=True, kw_only=True)
class BlendOptions:
    """Which criteria are blended, and how widths are chosen."""

    criteria: Annotated[tuple[str, ...], _of("the pool of criteria that is clustered")] = (
        "l1",
        "l2",
        "fpgm",
        "bn_scale",
        "taylor_gate",
        "taylor_weight",
        "mean_activation",
        "apoz",
        "elimination",
    )
    n_clusters: Annotated[int | str, _of("clusters per group, or 'auto' (silhouette)")] = 3
    labels: Annotated[bool, _of("false: criteria on the loss compare with the network's own outputs")] = True
    allocation: Annotated[str, _of("how many filters each group keeps: uniform, stage, global, binary, evolved")] = (
        "evolved"
    )


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What a pruned network may cost, and what stays dense."""

    max_flops: Annotated[
        float | str | tuple[float, ...] | None,
        _of(
            "kept share of the FLOPs, or an amount such as '150M'; [lowest, highest] leaves it free in that range, "
            "null everywhere; with algorithm 'successive' a list of shares, searched one after the other"
        ),
    ] = None
    max_params: Annotated[float | str | None, _of("kept share of the parameters, or an amount such as '2M'")] = None
    max_latency: Annotated[
        float | str | None, _of("kept share of the latency, or an amount such as '4 ms'; needs latency_table")
    ] = None
    latency_table: Annotated[
        Path | None, _of("JSON file that deap-prune latency writes; the objective latency is predicted from it")
    ] = None
    round_to: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        _of("kept counts are multiples of this; auto: of the steps in latency_table"),
    ] = 1
    min_keep: Annotated[
        float | dict[str, float], _of("least share that a group keeps: for all, or by names of groups or modules")
    ] = 0.0
    ignore: Annotated[tuple[str, ...], _of("modules that stay dense")] = ()


@dataclass(frozen=True, kw_only=True)
class FitnessOptions:
    """How candidates are evaluated."""

    objectives: Annotated[tuple[str, ...], _of("one, or several for a Pareto front")] = ("accuracy", "flops")
    compare: Annotated[
        Literal["compensated", "drafts"],
        _of("how candidates are compared: compensated in closed form, or refined on 250 images (drafts)"),
    ] = "compensated"
    compensate: Annotated[
        str | None, _of("re-fit layers that read pruned channels: auto (as memory allows), full, channel, null")
    ] = "auto"
    recalibrate: Annotated[
        str | None, _of("BN statistics: closed_form, data, auto (closed_form where that is sound), null")
    ] = "auto"
    augment: Annotated[bool, _of("evaluate on shifted and mirrored validation images")] = False
    guard: Annotated[int, _of("validation images held out, and logged every generation", ge=0)] = 0
    moment_memory: Annotated[int, _of("most MB that the moments of compensation may take", ge=1)] = 2048
    batch_size: Annotated[int, _of("samples per batch", ge=1)] = 250
    device: Annotated[str, _of("auto, cpu, cuda, cuda:1, ...; a run folder stores the one that was used")] = "auto"
    threads: Annotated[int | None, _of("torch's threads on the CPU; null: as they are set", ge=1, le=4096)] = None


@dataclass(frozen=True, kw_only=True)
class EvolutionOptions:
    """How the search goes on from one generation to the next, and when it stops."""

    algorithm: Annotated[str, _of("evolutionary algorithm or baseline; dp.algorithms.describe() lists them")] = (
        "mu_plus_lambda"
    )
    population: Annotated[int, _of("individuals that survive, and children per generation", ge=2, le=100_000)] = 32
    generations: Annotated[int, _of("generations after the initial population", ge=0)] = 20
    mate: Annotated[str, _of("crossover: cxBlendWidths, cxBlendLayers, ...")] = "cxBlendWidths"
    mutate: Annotated[str, _of("mutation: mutBlend, mutBlendTrade, ...")] = "mutBlend"
    cxpb: Annotated[float, _of("probability of crossover", ge=0, le=1)] = 0.5
    mutpb: Annotated[float, _of("probability of mutation; cxpb + mutpb is at most 1", ge=0, le=1)] = 0.5
    indpb: Annotated[
        float | None, _of("probability that a gene mutates; null: 0.1, but at most six genes", ge=0, le=1)
    ] = None
    sigma: Annotated[float, _of("mutation step", gt=0, le=1e6)] = 0.5
    prescreen: Annotated[int, _of("children made for each that is evaluated; a surrogate picks one", ge=1, le=9999)] = 1
    warm_start: Annotated[Path | None, _of("run folder whose front the search begins from")] = None
    max_seconds: Annotated[
        float | None, _of("seconds for the search, refinement included", gt=0, allow_inf_nan=False)
    ] = None
    patience: Annotated[
        int | None, _of("stop after so many generations without progress, on the guard images if there are any", ge=1)
    ] = None
    seed: Annotated[int, _of("seed of everything", ge=0, lt=2**42)] = 0


@dataclass(frozen=True, kw_only=True)
class EndOptions:
    """What happens to the best networks at the end."""

    refine: Annotated[bool, _of("refine the front's networks at the end, and evaluate them again")] = True
    refine_images: Annotated[int, _of("most calibration images that refinement uses", ge=2)] = 1000
    refine_memory: Annotated[float, _of("most GB that refinement keeps of images and targets", gt=0)] = 1.0
    select: Annotated[
        Literal["sequential"] | None,
        _of("sequential: refinement selects the filters, the individual the widths; null: the individual selects both"),
    ] = "sequential"
    recover: Annotated[
        int, _of("gradient steps of label-free recovery for the networks of the front; 0: none", ge=0)
    ] = 0
    finalists: Annotated[
        int,
        _of(
            "networks refined in addition to the front: so many of each criterion; with one objective also of the "
            "last population",
            ge=0,
        ),
    ] = 3


@dataclass(frozen=True, kw_only=True)
class SearchOptions(EndOptions, EvolutionOptions, FitnessOptions, BudgetOptions, BlendOptions):
    """All options of a search."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def budgets(self) -> tuple[float, ...]:
        """Kept shares that ``successive`` searches one after the other; empty for other algorithms."""
        if self.algorithm != "successive" or self.max_flops is None:
            return ()
        return self.max_flops if isinstance(self.max_flops, tuple) else ()

    @property
    def genome_budget(self) -> MaxFlops:
        """The genome's ``max_flops``: the range of the budgets for ``successive``."""
        return (min(self.budgets), max(self.budgets)) if self.budgets else self.max_flops

    @property
    def limits(self) -> dict[str, MaxFlops]:
        """The genome's budgets by name of the cost."""
        return {"flops": self.genome_budget, "params": self.max_params, "latency": self.max_latency}

    def evaluator_settings(self) -> dict[str, Any]:
        """The options of the Evaluator that compares candidates."""
        drafts = self.compare == "drafts"
        images = min(DRAFT_IMAGES, self.refine_images) if drafts else self.refine_images
        shared = ("objectives", "recalibrate", "compensate", "moment_memory", "refine_memory", "augment", "seed")
        names = (*shared, "batch_size", "device")
        how = {"refine": drafts, "refine_images": images, "select": drafts and self.select is not None}
        how |= {"refine_rows": DRAFT_ROWS if drafts else Settings.refine_rows}
        return {name: getattr(self, name) for name in names} | how

    def check(self) -> None:
        """Check names, and combinations of options.

        Raises:
            RegistryError: If a criterion, an objective, an operator, the allocation or the algorithm is unknown.
            ConfigError: If options don't fit together.
        """
        if not self.criteria or not self.objectives:
            raise ConfigError("criteria and objectives each need at least one name")
        for registry, names in ((CRITERIA, self.criteria), (OBJECTIVES, self.objectives)):
            for name in names:
                registry[name]
        ALLOCATIONS[self.allocation]
        ALGORITHMS[self.algorithm]
        for what, name, known in (("crossover", self.mate, CROSSOVERS), ("mutation", self.mutate, MUTATIONS)):
            if name not in known:
                raise RegistryError(f"unknown {what} '{name}'; {did_you_mean(name, known)}")
        check_clusters(self.n_clusters)
        Settings.of(self.evaluator_settings())
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.algorithm == "successive" and len(self.budgets) < 2:
            raise ConfigError("algorithm 'successive' needs several budgets, such as max_flops=[0.7, 0.5, 0.3]")
        if self.budgets and "flops" not in self.objectives[1:]:
            raise ConfigError("with several budgets the objectives end with 'flops', such as ['accuracy', 'flops']")
        if self.compare == "drafts" and not self.refine:
            raise ConfigError(
                "compare='drafts' compares refined networks, so the front is refined too: leave refine=True"
            )
        if self.prescreen > 1 and self.algorithm not in ("mu_plus_lambda", "successive", "steady_state"):
            raise ConfigError(
                f"prescreen works with mu_plus_lambda, successive and steady_state, not with '{self.algorithm}'"
            )
        if self.prescreen > 1 and self.algorithm == "steady_state" and len(self.objectives) == 1:
            raise ConfigError(
                "steady_state with one objective is ageing evolution, which takes no prescreen: set prescreen=1, or "
                "algorithm='mu_plus_lambda'"
            )
        if self.cxpb + self.mutpb > 1:
            raise ConfigError(f"cxpb {self.cxpb} + mutpb {self.mutpb} is above 1; they are shares of the children")
        for name, needs_table in (("max_latency", self.max_latency is not None), ("round_to", self.round_to == "auto")):
            if needs_table and self.latency_table is None:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which needs a latency table: make one with 'deap-prune "
                    "latency CONFIG --out table.json' (or dp.latency_table), and give latency_table='table.json'"
                )
        unlimited = all(limit is None for limit in self.limits.values())
        if len(self.objectives) == 1 and unlimited and not OBJECTIVES[self.objectives[0]].of_masks:
            raise ConfigError(
                f"'{self.objectives[0]}' alone and max_flops=None: the dense network would win; set max_flops "
                "(0.5 keeps half of the FLOPs), or add an objective such as 'flops'"
            )

    def warn_if_degenerate(self) -> None:
        """Warn if the front has hardly more than one point, because its cost is fixed."""
        if isinstance(self.max_flops, (int, float)) and "flops" in self.objectives and len(self.objectives) > 1:
            warnings.warn(
                f"max_flops={self.max_flops:g} is the cost of every candidate, so with the objective 'flops' the front "
                "has hardly more than one point: give a range, such as max_flops=(0.3, 0.6), or leave 'flops' out of "
                "the objectives",
                PruneWarning,
                stacklevel=3,
            )

    @property
    def may_change(self) -> tuple[str, ...]:
        """The options that a resumed run may change: how long it takes, and what follows the last generation."""
        always = ("generations", "max_seconds", "patience", "recover", "finalists")
        return always if self.compare == "drafts" else (*always, "refine", "refine_images")  # drafts are refined, too

    def fingerprint(self) -> dict[str, Any]:
        """The options that a resumed run must share, as JSON takes them."""
        warm_start = None if self.warm_start is None else str(self.warm_start)
        table = None if self.latency_table is None else LatencyTable.load(self.latency_table).digest
        settings = asdict(self) | {"warm_start": warm_start, "latency_table": table}
        return {name: value for name, value in settings.items() if name not in self.may_change}


CONCERNS: tuple[type[Any], ...] = (BlendOptions, BudgetOptions, FitnessOptions, EvolutionOptions, EndOptions)

REMOVED = {
    "budgets": "give them as max_flops, such as [0.7, 0.5, 0.3]",
    "candidates": "dp.Genome has it",
    "children": "as many children are made as survive; dp.algorithms.Variation has it",
    "clustering": "dp.cluster has it, as method=",
    "draft_images": "a draft is refined on 250 images",
    "executor": "dp.Evaluator has it",
    "fresh_duplicates": "dp.algorithms.Loop has it",
    "generations_per_budget": "each budget gets an equal part of the generations",
    "gram_memory": "it is called moment_memory now",
    "images": "give fewer validation images",
    "max_evaluations": "set generations; dp.algorithms.MaxEvaluations is a stop for loops of your own",
    "normaliser": "dp.Genome has it",
    "precision": "dp.Evaluator has it",
    "racing": "prescreen saves more evaluations",
    "redraw": "all candidates of a run are compared on the same images",
    "reduction": "dp.score has it",
    "reference": "front.hypervolume(reference) has it",
    "refine_from": "use compare='drafts'",
    "stall": "it is called patience now",
    "target": "set stop in a callback; dp.algorithms.Target is a stop for loops of your own",
}


def check_removed(names: Any) -> None:
    """Refuse options of earlier versions with what to do instead.

    Raises:
        ConfigError: If one of the names is such an option.
    """
    for name in names:
        if name in REMOVED:
            raise ConfigError(f"the option '{name}' is gone: {REMOVED[name]}")


def described_options() -> list[tuple[str, Any, str]]:
    """Name, default and meaning of all options of a search, in the order of their declaration."""
    hints = get_type_hints(SearchOptions, include_extras=True)
    return [
        (option.name, option.default, hints[option.name].__metadata__[0].description or "")
        for concern in CONCERNS
        for option in fields(concern)
    ]
