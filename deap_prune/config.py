"""Configuration: one YAML file is one run. An unknown key is an error that names the nearest valid key.

A config's ``factory`` imports code: treat a config, and the config.yaml of a run folder, as code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.files import headed, header_of, read_text
from deap_prune.options import SearchOptions, check_removed, described_options
from deap_prune.training.recipe import Recipe
from deap_prune.user_modules import reach_modules
from deap_prune.yaml_text import parse_yaml


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """The network."""

    factory: str = Field(description="module:function (or class) that makes the network, or 'torch.hub'")
    args: list[Any] = Field(
        default=[], description="positional arguments of the factory (repository and name for torch.hub)"
    )
    kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description="state dict: .safetensors, or .pth/.pt (read with weights_only)"
    )
    input_shape: list[Annotated[int, Field(ge=1, le=2**16)]] | None = Field(
        default=None, max_length=6, description="shape of one sample, without the batch; the data's by default"
    )


class DataConfig(BaseModel):
    """The images; the format's own options are passed on to its loader."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: str = Field(description="npz, image_folder, torchvision, digits or factory")


class FinetuneConfig(_Section):
    """Fine-tuning of the slimmed network."""

    epochs: int = Field(default=5, ge=1, description="passes over the training images")
    recipe: Recipe = Field(default=Recipe(), description="fields of dp.Recipe: lr, batch_size, optimizer, ...")
    distill: bool = Field(default=True, description="distil from the dense network too")
    augment: bool = Field(default=False, description="random shifts and mirror images")
    from_scratch: bool = Field(default=False, description="reset the weights first")
    seed: int = Field(default=0, ge=0, description="seed of order, augmentation and resetting")


def _as_list(value: Any) -> Any:
    """One name as a list of it; folders of earlier versions hold one folder, or null."""
    return [] if value is None else [value] if isinstance(value, str) else value


class Config(_Section):
    """A run."""

    model: ModelConfig | None = None
    data: DataConfig | None = None
    search: SearchOptions = SearchOptions()
    finetune: FinetuneConfig = FinetuneConfig()
    out: str | None = Field(default=None, description="run folder")
    slim_and_report: bool = Field(
        default=False, description="the commands search and resume end as prune does: export to OUT/slim, and report"
    )
    imports: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list)] = Field(
        default=[],
        description="modules or .py files, beside the config or in the working directory, that register criteria, "
        "objectives, ... of your own",
    )


def describe_options() -> list[tuple[str, str, str]]:
    """Key, default and meaning of every key of a config; the keys of ``search`` are the options of ``dp.search``."""
    sections: dict[str, type[BaseModel]] = {
        "model.": ModelConfig,
        "data.": DataConfig,
        "finetune.": FinetuneConfig,
        "": Config,
    }
    rows = {
        prefix: [
            (f"{prefix}{key}", "(needed)" if info.is_required() else _as_yaml(info.default), info.description)
            for key, info in section.model_fields.items()
            if info.description  # the sections themselves have none
        ]
        for prefix, section in sections.items()
    }
    search = [(f"search.{name}", _as_yaml(default), meaning) for name, default, meaning in described_options()]
    return [*rows["model."], *rows["data."], *search, *rows["finetune."], *rows[""]]


def _as_yaml(default: Any) -> str:
    if isinstance(default, Recipe):
        return "{}"
    plain = list(default) if isinstance(default, tuple) else default
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0]


S = TypeVar("S")


def validated(section: type[S], values: Mapping[str, Any]) -> S:
    """A section of a config, or the options of a search, from plain values.

    Raises:
        ConfigError: If a key is unknown (the nearest is named) or a value illegal.
    """
    try:
        return TypeAdapter(section).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(dict.fromkeys(_explain(section, e) for e in error.errors()))) from None


def search_options(values: Mapping[str, Any]) -> SearchOptions:
    """The options of a search from keywords.

    Raises:
        ConfigError: If a keyword is unknown (the nearest is named), gone since an earlier version, or illegal.
    """
    check_removed(values)
    return validated(SearchOptions, values)


def _explain(section: type[Any], error: Any) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] == "value_error":  # raised by our own code
        return str(error["ctx"]["error"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys = _keys(section, error["loc"][:-1])
        return f"unknown key '{path}'; {did_you_mean(str(error['loc'][-1]), keys, lists='deap-prune options')}"
    if error["type"] == "tuple_type" and isinstance(error["input"], str):
        return f"'{path}' is the text {error['input']!r}; give several names, such as ['{error['input']}']"
    return f"'{path}' is {error['input']!r}: {error['msg']}" if path else str(error["msg"])


def _keys(section: Any, path: Sequence[Any]) -> list[str]:
    """Valid keys of the (nested) section, or of a dataclass in it, at a path."""
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
    try:
        of_run = path.is_dir()
        path = path / "config.yaml" if of_run else path
        there = path.is_file()
    except OSError:  # a name that is too long, or a folder that may not be entered
        there = of_run = False
    if not there:
        raise ConfigError(f"no config at '{path}'; give a YAML file or a run folder")
    try:
        text = read_text(path)
        values = parse_yaml(text) or {}
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' holds a {type(values).__name__}; a config is a mapping of sections")
    if of_run and (header := header_of(text)) is not None and not header.intact:
        warnings.warn(
            f"'{path}' was changed after the run wrote it; what makes the result another one is refused, but the run "
            "may take longer or shorter (generations, max_seconds, patience)",
            stacklevel=2,
        )
    return reach_factories(config_of(values, overrides), (path.parent, Path()))


def config_of(values: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A config from plain values.

    Args:
        values: The sections.
        overrides: ``key.sub=value`` each; values are YAML.

    Raises:
        ConfigError: If a key is unknown or a value illegal.
    """
    for override in overrides:
        _override(values, override)
    if isinstance(search := values.get("search"), Mapping):
        check_removed(search)
    return validated(Config, values)


def reach_factories(config: Config, folders: Sequence[Path]) -> Config:
    """Make the modules of the factories and of ``imports`` importable; nothing is imported.

    Args:
        config: The config.
        folders: Folders that may hold the modules, beside the config's ``imports``.

    Returns:
        The config, whose ``imports`` name the folders that are needed.

    Raises:
        ConfigError: If a file that ``imports`` names does not exist.
    """
    extra = config.data.model_extra if config.data is not None else None
    paths = [config.model.factory if config.model is not None else "", str((extra or {}).get("factory", ""))]
    modules = [module for path in paths if (module := path.partition(":")[0])]
    return config.model_copy(update={"imports": reach_modules(config.imports, modules, folders)})


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
        values[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error


def dump_config(config: Config, run: str) -> str:
    """The resolved config of a run as YAML, with the run's hash and a checksum in its first line."""
    return headed(yaml.safe_dump(config.model_dump(mode="json", exclude_none=False), sort_keys=False), run)


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
    except Exception as error:  # the module may raise anything
        reason = error if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"factory '{path}' can't be imported: {reason}") from error
