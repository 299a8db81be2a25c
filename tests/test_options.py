"""The options of a search: each declared once, checked together, and old names refused with what to do instead."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.config import describe_options, load_config, search_options
from deap_prune.errors import ConfigError, RegistryError
from deap_prune.options import CONCERNS, REMOVED, SearchOptions, described_options
from deap_prune.search import evolve

NAMES = [name for name, _, _ in described_options()]
ROOT = Path(__file__).parents[1]
SUCCESSIVE: dict[str, Any] = {"algorithm": "successive", "max_flops": (0.7, 0.4)}


# ------------------------------------------------------------------ declarations
def test_each_option_is_declared_once() -> None:
    assert len(NAMES) <= 41  # the last one, refine_memory, bounds what a search takes of a machine
    declared = [option.name for concern in CONCERNS for option in fields(concern)]
    assert len(set(declared)) == len(declared)
    assert sorted(declared) == sorted(NAMES) == sorted(option.name for option in fields(SearchOptions))


def test_each_option_has_a_meaning() -> None:
    assert [name for name, _, meaning in described_options() if not meaning] == []


def test_options_do_not_collide_with_the_arguments_of_search() -> None:
    assert not set(NAMES) & set(inspect.signature(dp.search).parameters)


def test_the_keys_of_a_config_are_the_options(tmp_path: Path) -> None:
    keys = [key for key, _, _ in describe_options() if key.startswith("search.")]
    assert keys == [f"search.{name}" for name in NAMES]
    (tmp_path / "run.yaml").write_text("search: {max_flops: [0.7, 0.4], algorithm: successive, warm_start: runs/a}")
    options = load_config(tmp_path / "run.yaml").search
    assert options == search_options({**SUCCESSIVE, "warm_start": "runs/a"})
    assert options.max_flops == (0.7, 0.4) and options.warm_start == Path("runs/a")


def test_the_options_page_lists_all_options() -> None:
    text = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `search\.(\w+)`", text, flags=re.MULTILINE) == NAMES


# ------------------------------------------------------------------ options that are gone
def test_no_option_is_both_declared_and_gone() -> None:
    assert not set(REMOVED) & set(NAMES)


@pytest.mark.parametrize("name", REMOVED)
def test_an_option_that_is_gone_says_what_to_do_instead(name: str, tmp_path: Path) -> None:
    message = re.escape(f"the option '{name}' is gone: {REMOVED[name]}")
    with pytest.raises(ConfigError, match=message):
        search_options({name: 1})
    (tmp_path / "run.yaml").write_text(f"search: {{{name}: 1}}")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml")


# ------------------------------------------------------------------ combinations
COMBINATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no criteria": ({"criteria": ()}, "criteria and objectives each need at least one name"),
    "one budget": ({"algorithm": "successive", "max_flops": 0.5}, "algorithm 'successive' needs several budgets"),
    "no flops": ({**SUCCESSIVE, "objectives": ("accuracy",)}, "with several budgets the objectives end with 'flops'"),
    "drafts, not refined": ({"compare": "drafts", "refine": False}, "so the front is refined too: leave refine=True"),
    "prescreen": ({"prescreen": 2, "algorithm": "nsga2"}, "prescreen works with mu_plus_lambda, successive and"),
    "probabilities": ({"cxpb": 0.7, "mutpb": 0.7}, r"cxpb 0.7 \+ mutpb 0.7 is above 1"),
    "dense network": ({"objectives": ("loss",)}, "'loss' alone and max_flops=None: the dense network would win"),
    "one memory": ({"compensate": "half"}, "compensate is 'half'; it is 'auto', 'full', 'channel' or None"),
}


@pytest.mark.parametrize("case", COMBINATIONS)
def test_options_that_do_not_fit_together(case: str) -> None:
    options, message = COMBINATIONS[case]
    with pytest.raises(ConfigError, match=message):
        search_options(options).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mutate": "mutTrade"}, "unknown mutation 'mutTrade'; did you mean 'mutBlendTrade'"),
        ({"mate": "cxBlendLayer"}, "unknown crossover 'cxBlendLayer'; did you mean 'cxBlendLayers'"),
        ({"algorithm": "nsga4"}, "unknown algorithm 'nsga4'; did you mean 'nsga3'"),
        ({"allocation": "unifrom"}, "unknown allocation 'unifrom'; did you mean 'uniform'"),
    ],
)
def test_unknown_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistryError, match=message):
        search_options(options).check()


def test_the_defaults_fit_together() -> None:
    SearchOptions().check()


# ------------------------------------------------------------------ what options become
def test_drafts_are_evaluator_settings() -> None:
    plain, drafts = (
        SearchOptions(compare=c, refine_images=500).evaluator_settings() for c in ("compensated", "drafts")
    )
    assert (plain["refine"], plain["refine_images"]) == (False, 500)
    assert (drafts["refine"], drafts["refine_images"]) == (True, 250)
    assert drafts["refine_rows"] < plain["refine_rows"]
    assert SearchOptions(compare="drafts", refine_images=50).evaluator_settings()["refine_images"] == 50


def test_several_budgets_are_the_range_of_the_genome() -> None:
    options = SearchOptions(algorithm="successive", max_flops=(0.7, 0.4, 0.5), generations=5)
    assert options.budgets == (0.7, 0.4, 0.5) and options.genome_budget == (0.4, 0.7)
    free = SearchOptions(max_flops=(0.2, 0.9))
    assert free.budgets == () and free.genome_budget == (0.2, 0.9)
    problem: Any = None
    variation = evolve.variation(options, problem)
    assert variation.budgets == options.budgets and variation.generations_per_budget == 2


def test_the_fingerprint_leaves_out_how_long_a_run_lasts() -> None:
    first = SearchOptions().fingerprint()
    assert SearchOptions(generations=3, max_seconds=1.0, patience=2).fingerprint() == first
    for changed in ({"seed": 1}, {"population": 8}, {"warm_start": Path("runs/a")}, {"compare": "drafts"}):
        assert SearchOptions(**changed).fingerprint() != first
