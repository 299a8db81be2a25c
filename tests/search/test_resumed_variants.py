"""Law 5 under other options: drafts, pre-screening, guard images, augmentation, several budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import deap_prune as dp
from deap_prune.evolution.checkpoint import Checkpoints
from tests.helpers.runs import Interruption, at, labelled_data, labelled_search, problem

VARIANTS: dict[str, dict[str, Any]] = {
    "drafts": {
        "compare": "drafts",
        "prescreen": 3,
        "max_flops": 0.6,
        "objectives": ("loss",),
    },
    "augmented": {"augment": True, "guard": 40},
    "prescreened": {"prescreen": 4, "guard": 40},
    "successive": {"algorithm": "successive", "max_flops": (0.7, 0.4)},
}


SMALL = {"population": 4, "generations": 2}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = labelled_search(tmp_path / "whole", **SMALL, **VARIANTS[name])
    with pytest.raises(Interruption):
        labelled_search(tmp_path / "run", callbacks=[at(1)], **SMALL, **VARIANTS[name])
    again = dp.resume(tmp_path / "run", *problem(), **labelled_data())
    for file in ("front.json", "history.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert list(again.logbook) == list(whole.logbook) and again.evaluations == whole.evaluations


def test_an_option_added_by_an_update_counts_as_off(tmp_path: Path) -> None:
    """A run continues after an update that adds an option; a warning names the option if it is on."""
    labelled_search(tmp_path / "run", generations=0)
    stored = Checkpoints(tmp_path / "run", {}).newest()
    assert stored is not None
    fingerprint, settings = stored["fingerprint"], json.loads(stored["fingerprint"]["settings"])

    def checkpoints(value: int | None) -> Checkpoints:
        newer = json.dumps({**settings, "brand_new": value}, sort_keys=True)
        return Checkpoints(tmp_path / "run", {**fingerprint, "settings": newer})

    assert checkpoints(None).newest() == stored
    with pytest.warns(UserWarning, match="did not store its setting brand_new"):
        assert checkpoints(2).newest() == stored


@pytest.mark.parametrize("name", ["generations", "max_seconds", "patience"])
def test_how_long_a_run_lasts_may_change(name: str, tmp_path: Path) -> None:
    labelled_search(tmp_path / "run", population=4, generations=0)
    config = tmp_path / "run" / "config.yaml"
    lines = config.read_text().splitlines()
    config.write_text("\n".join(f"  {name}: 2" if line.startswith(f"  {name}:") else line for line in lines))
    with pytest.warns(UserWarning, match="was changed after the run wrote it"):
        result = dp.resume(tmp_path / "run", *problem(), **labelled_data())
    assert len(result.logbook) == (3 if name == "generations" else 1)
