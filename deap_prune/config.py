"""Configuration: one YAML file is one run. Unknown keys are errors that name the nearest valid one.

A config's ``factory`` imports code, so treat a config (and the config.yaml of a run folder) as code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.blending.clusters import check_clusters
from deap_prune.blending.genome import CANDIDATES, NORMALISERS
from deap_prune.criteria.registry import CRITERIA
from deap_prune.criteria.table import REDUCTIONS
from deap_prune.data.draws import Sampling
from deap_prune.errors import ConfigError, RegistryError, did_you_mean
from deap_prune.evolution.loop import ALGORITHMS
from deap_prune.evolution.operators import CROSSOVERS, MUTATIONS
from deap_prune.fitness.objectives import OBJECTIVES
from deap_prune.fitness.settings import Settings
from deap_prune.training.recipe import Recipe


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """Where the network comes from."""

    factory: str = Field(description="module:function (or class) that makes the network, or 'torch.hub'")
    args: list[Any] = Field(
        default=[], description="positional arguments of the factory (repository and name for torch.hub)"
    )
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description="state dict: .safetensors, or .pth/.pt (read with weights_only)"
    )
    input_shape: list[int] | None = Field(
        default=None, description="one sample, without the batch; the data's shape if left out"
    )


class DataConfig(BaseModel):
    """Where the images come from; the format's own options are passed on."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: str = Field(description="npz, image_folder, torchvision, digits or factory")


STOPS = ("max_seconds", "max_evaluations", "target", "stall")


class SearchConfig(_Section):
    """The search; these are also the options of ``dp.search``."""

    criteria: tuple[str, ...] = Field(
        default=("l1", "l2", "fpgm", "bn_scale", "taylor_gate", "taylor_weight", "mean_activation", "apoz"),
        description="the pool of criteria that is clustered",
    )
    n_clusters: int | str = Field(default=3, description="clusters a group, or 'auto' (silhouette)")
    clustering: str = Field(default="kmeans", description="kmeans (on ranks) or agglomerative (on 1 - rho)")
    labels: bool = Field(default=True, description="false: criteria on the loss look at the network's own outputs")
    normaliser: str = Field(default="max", description="max, sum, standard or rank")
    reduction: str = Field(default="mean", description="over a group's layers: mean, sum, max or first")
    allocation: str = Field(
        default="evolved", description="how many filters each group keeps: uniform, stage, global, binary, evolved"
    )
    objectives: tuple[str, ...] = Field(default=("accuracy", "flops"), description="one, or several for a Pareto front")
    candidates: str = Field(default="evolved", description="a cluster's criterion: evolved, or its medoid")
    max_flops: float | tuple[float, float] | None = Field(
        default=None, description="kept share of the FLOPs; [lowest, highest] and null leave it free"
    )
    round_to: int = Field(default=1, ge=1, description="kept counts are multiples of this")
    min_keep: float | dict[str, float] = Field(
        default=0.0, description="least share that a group keeps: of all, or by names of groups or modules"
    )
    ignore: tuple[str, ...] = Field(default=(), description="modules to leave dense")
    recalibrate: str | None = Field(
        default="auto", description="BN statistics: closed_form, data, auto (closed_form where that is sound), null"
    )
    compensate: str | None = Field(
        default="auto", description="re-fit what reads pruned channels: auto (as memory allows), full, channel, null"
    )
    gram_memory: int = Field(default=2048, ge=1, description="most MB that compensation's matrices may take")
    refine: bool = Field(default=True, description="refine the front's networks at the end, and judge them again")
    refine_images: int = Field(default=1000, ge=2, description="calibration images that refinement uses at most")
    finalists: int = Field(
        default=3,
        ge=0,
        description="refined beside the front: so many of each criterion; one objective: of the population too",
    )
    refine_from: int | None = Field(
        default=None, ge=0, description="judge candidates refined from this generation on; null: compensated only"
    )
    draft_images: int | None = Field(
        default=None, ge=2, description="calibration images to refine candidates that are compared; null: refine_images"
    )
    executor: str = Field(default="auto", description="how candidates are run: slim, masked, or auto (by device)")
    precision: str = Field(default="fp32", description="of the forward pass in the search: fp32, bf16, auto")
    images: int | None = Field(default=None, ge=1, description="validation images drawn for judging; null: all")
    augment: bool = Field(default=False, description="judge on shifted and mirrored validation images")
    redraw: bool = Field(default=False, description="draw anew for every generation; parents are judged again")
    racing: float | None = Field(default=None, description="drop who can't survive at this confidence, such as 0.99")
    prescreen: int = Field(default=1, ge=1, description="children made for each that is judged; a surrogate picks one")
    guard: int = Field(default=0, ge=0, description="validation images held out, logged every generation")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many generations without a better guard"
    )
    algorithm: str = Field(default="mu_plus_lambda", description="dp.algorithms() lists them, and the baselines")
    mate: str = Field(default="cxBlendWidths", description="crossover: cxBlendWidths, cxBlendLayers, ...")
    mutate: str = Field(default="mutBlend", description="mutation: mutBlend, mutBlendTrade, ...")
    budgets: tuple[float, ...] = Field(default=(), description="of 'successive': kept shares, one after the other")
    generations_per_budget: int | None = Field(default=None, ge=1, description="null: equal parts of the run")
    fresh_duplicates: bool = Field(default=False, description="replace children whose masks are there already")
    reference: tuple[float, ...] | None = Field(default=None, description="of the hypervolume; null: 0 and 1")
    max_seconds: float | None = Field(default=None, gt=0, description="stop after this time (of one process)")
    max_evaluations: int | None = Field(default=None, ge=1, description="stop after so many individuals")
    target: float | None = Field(default=None, description="stop when the first objective reaches it")
    stall: int | None = Field(default=None, ge=1, description="stop after so many generations without progress")
    warm_start: Path | None = Field(default=None, description="run folder whose front the search begins from")
    population: int = Field(default=32, ge=2, description="individuals that survive")
    children: int | None = Field(
        default=None, ge=1, description="individuals made a generation; the population if left out"
    )
    generations: int = Field(default=20, ge=0, description="after the initial one")
    cxpb: float = Field(default=0.5, ge=0, le=1, description="probability of crossover")
    mutpb: float = Field(default=0.5, ge=0, le=1, description="probability of mutation; cxpb + mutpb is at most 1")
    indpb: float | None = Field(
        default=None, ge=0, le=1, description="probability that a gene mutates; null: 0.1, but six genes at most"
    )
    sigma: float = Field(default=0.5, gt=0, description="mutation step")
    seed: int = Field(default=0, ge=0, description="of everything")
    batch_size: int = Field(default=250, ge=1, description="samples a batch when judging")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...; a run folder holds the one used")
    threads: int | None = Field(default=None, ge=1, description="torch's threads on the CPU; null: as they are set")

    def fitness(self) -> dict[str, Any]:
        """The options of the Evaluator."""
        judged = ("objectives", "recalibrate", "compensate", "gram_memory", "refine_images", "draft_images")
        names = (*judged, "refine_from", "racing", "executor", "precision", "batch_size", "device")
        sampling = Sampling(images=self.images, augment=self.augment, redraw=self.redraw, seed=self.seed)
        return {**{name: getattr(self, name) for name in names}, "sampling": sampling}

    def check(self) -> None:
        """Names and combinations that a type can't tell.

        Raises:
            RegistryError: If a criterion, an objective, the allocation, normaliser or reduction is unknown.
            ConfigError: If probabilities or objectives don't go together.
        """
        for name in self.criteria:
            CRITERIA[name]
        for name in self.objectives:
            OBJECTIVES[name]
        ALLOCATIONS[self.allocation]
        ALGORITHMS[self.algorithm]
        if self.candidates not in CANDIDATES:
            raise ConfigError(f"candidates is {self.candidates!r}; it is 'evolved' or 'medoid'")
        if (self.algorithm == "successive") != bool(self.budgets):
            raise ConfigError("algorithm 'successive' and budgets, such as [0.7, 0.5, 0.3], go together")
        if self.budgets and self.max_flops is not None:
            raise ConfigError("budgets take the place of max_flops; leave max_flops out")
        for what, name, known in (
            ("normaliser", self.normaliser, NORMALISERS),
            ("reduction", self.reduction, REDUCTIONS),
            ("crossover", self.mate, CROSSOVERS),
            ("mutation", self.mutate, MUTATIONS),
        ):
            if name not in known:
                raise RegistryError(f"unknown {what} '{name}'; {did_you_mean(name, known)}")
        check_clusters(self.n_clusters, self.clustering)
        Settings.of(self.fitness())
        if self.refine_from is not None and not self.refine:
            raise ConfigError(
                "refine_from compares refined networks, so the front's are refined too: leave refine true"
            )
        if self.patience is not None and not self.guard:
            raise ConfigError("patience follows the guard images: set guard to how many are held out, such as 500")
        if self.prescreen > 1 and self.algorithm not in ("mu_plus_lambda", "successive"):
            raise ConfigError(f"prescreen works with mu_plus_lambda and successive, not with '{self.algorithm}'")
        if not self.criteria or not self.objectives:
            raise ConfigError("criteria and objectives each need at least one name")
        if self.cxpb + self.mutpb > 1:
            raise ConfigError(f"cxpb {self.cxpb} + mutpb {self.mutpb} is above 1; they are shares of the children")
        if self.reference is not None and len(self.reference) != len(self.objectives):
            raise ConfigError(f"reference is {self.reference!r}; give one value for each of {self.objectives!r}")
        if self.budgets and "flops" not in self.objectives[1:]:
            raise ConfigError("with budgets the objectives end with 'flops', such as ['accuracy', 'flops']")
        if len(self.objectives) == 1 and self.max_flops is None and not OBJECTIVES[self.objectives[0]].of_masks:
            raise ConfigError(
                f"'{self.objectives[0]}' alone and max_flops=None: the dense network would win; set max_flops "
                "(0.5 keeps half of the FLOPs), or add an objective such as 'flops'"
            )


class FinetuneConfig(_Section):
    """Fine-tuning of the slimmed network."""

    epochs: int = Field(default=5, ge=1, description="passes over the training images")
    recipe: Recipe = Field(default=Recipe(), description="fields of dp.Recipe: lr, batch_size, optimizer, ...")
    distill: bool = Field(default=True, description="learn from the dense network too")
    augment: bool = Field(default=False, description="random shifts and mirror images")
    from_scratch: bool = Field(default=False, description="forget the weights first")
    seed: int = Field(default=0, ge=0, description="of order, augmentation and resetting")


class Config(_Section):
    """A run."""

    model: ModelConfig | None = None
    data: DataConfig | None = None
    search: SearchConfig = SearchConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    out: str | None = Field(default=None, description="run folder")


def describe_options() -> list[tuple[str, str, str]]:
    """Key, default and meaning of what a config may hold; the keys of ``search`` are the options of ``dp.search``."""
    sections: dict[str, type[BaseModel]] = {
        "model": ModelConfig,
        "data": DataConfig,
        "search": SearchConfig,
        "finetune": FinetuneConfig,
    }
    return [
        (f"{name}.{key}", "(needed)" if field.is_required() else _as_yaml(field.default), field.description or "")
        for name, section in sections.items()
        for key, field in section.model_fields.items()
    ]


def _as_yaml(default: Any) -> str:
    if isinstance(default, Recipe):
        return "{}"
    plain = list(default) if isinstance(default, tuple) else default
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0]


S = TypeVar("S", bound=BaseModel)


def validated(section: type[S], values: Mapping[str, Any]) -> S:
    """A section of the configuration.

    Raises:
        ConfigError: If a key is unknown (the nearest is named) or a value illegal.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(section, e) for e in error.errors())) from None


def _explain(section: type[BaseModel], error: Any) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] == "value_error":  # of our own
        return str(error["ctx"]["error"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key '{path}'; {did_you_mean(str(error['loc'][-1]), _keys(section, error['loc'][:-1]))}"
    if error["type"] == "tuple_type" and isinstance(error["input"], str):
        return f"'{path}' is the text {error['input']!r}; give several names, such as ['{error['input']}']"
    return f"'{path}' is {error['input']!r}: {error['msg']}" if path else str(error["msg"])


def _keys(section: Any, path: Sequence[Any]) -> list[str]:
    """Valid keys of the (nested) section, or dataclass in one, at a path."""
    for part in path:
        annotation = section.model_fields[part].annotation
        section = next((a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")), annotation)
    return [field.name for field in fields(section)] if is_dataclass(section) else list(section.model_fields)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, or the config.yaml of a run folder.

    Args:
        path: The file, or a run folder.
        overrides: ``key.sub=value`` each; values are YAML.

    Raises:
        ConfigError: If the file is missing or not YAML, a key unknown or a value illegal.
    """
    path = Path(path)
    path = path / "config.yaml" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"no config at '{path}'; give a YAML file or a run folder")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds a {type(values).__name__}; a config is a mapping of sections")
    for override in overrides:
        _override(values, override)
    return validated(Config, values)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r} is not key.sub=value")
    *path, last = key.split(".")
    for part in path:
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override!r}: '{part}' is not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error


def dump_config(config: Config) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=False), sort_keys=False)


def import_factory(path: str) -> Any:
    """The object that ``module:name`` names.

    Raises:
        ConfigError: If it can't be imported.
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"factory '{path}' is not 'module:function', such as 'torchvision.models:resnet50'")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"factory '{path}' can't be imported: {error}") from error
