"""Law 4: every individual decodes inside its budget, tight, in admissible steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.blending import ALLOCATIONS
from deap_prune.errors import BudgetError, ConfigError
from tests.helpers.pruning import prepared
from tests.helpers.random_scores import GENE, SPACES, make, stages


def steps_of(space: dp.PruningSpace, round_to: int) -> list[list[int]]:
    """The admissible counts of every group: multiples of ``round_to`` that all blocks can share, and dense."""
    counts = []
    for g in space.groups:
        width = range(1, g.size // g.blocks + 1)
        counts.append([k * g.blocks for k in width if (k * g.blocks) % round_to == 0 or k * g.blocks == g.size])
    return counts


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=25)
def test_law_4(name: str, data: st.DataObject) -> None:
    space = prepared(name).space
    usable = [r for r in (1, 1, 2, 3, 4, 8) if any(len(legal) > 1 for legal in steps_of(space, r))]
    round_to = data.draw(st.sampled_from(usable))
    allocation = data.draw(st.sampled_from([a.name for a in ALLOCATIONS]))
    min_keep = data.draw(st.sampled_from([0.0, 0.0, 0.25, 0.6]))
    admissible = [
        [c for c in legal if c >= min_keep * g.size - 1e-9] or [g.size]
        for legal, g in zip(steps_of(space, round_to), space.groups, strict=True)
    ]
    least = float(space.flops_of([c[0] for c in admissible])) / space.flops
    share = min(1.0, least + data.draw(st.floats(0, 1)) * (1 - least))
    genome = make(name, allocation=allocation, max_flops=share, round_to=round_to, min_keep=min_keep)
    genes = data.draw(st.lists(GENE, min_size=len(genome.layout), max_size=len(genome.layout)))
    masks = genome.decode(genes)
    counts = space.kept_counts(masks)  # raises unless blocks keep equal numbers, at least one filter each
    assert list(masks) == [g.name for g in space.groups]
    assert all(c in legal for c, legal in zip(counts, admissible, strict=True))
    budget, rounding = share * space.flops, 1e-12
    assert dp.flops(space, masks) <= budget * (1 + rounding)
    for groups in stages(space) if allocation == "stage" else [[g] for g in range(len(space.groups))]:
        wider = widened(counts, admissible, space.sizes, groups)
        names = [space.groups[g].name for g in groups]
        assert (wider == counts).all() or space.flops_of(wider) > budget * (1 - rounding), f"{names} could keep more"


def widened(counts: np.ndarray, admissible: list[list[int]], sizes: np.ndarray, groups: list[int]) -> np.ndarray:
    """The counts with some groups at the next common share at which one of them grows."""
    following = {g: next((c for c in admissible[g] if c > counts[g]), None) for g in groups}
    share = min((c / sizes[g] for g, c in following.items() if c is not None), default=0.0)
    wider = counts.copy()
    for g in groups:
        wider[g] = max([counts[g], *(c for c in admissible[g] if c <= share * sizes[g] + 1e-9)])
    return wider


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("allocation", [a.name for a in ALLOCATIONS])
@given(data=st.data())
@settings(max_examples=8)
def test_without_a_budget_genes_determine_the_cost(name: str, allocation: str, data: st.DataObject) -> None:
    space = prepared(name).space
    genome = make(name, allocation=allocation)
    genes = data.draw(st.lists(GENE, min_size=len(genome.layout), max_size=len(genome.layout)))
    masks = genome.decode(genes)
    assert genome.min_flops <= dp.flops(space, masks) / space.flops <= 1
    if "budget" in genome.layout.kinds:
        bounded = min(max(genes[-1], genome.min_flops), 1.0)
        assert dp.flops(space, masks) <= bounded * space.flops * (1 + 1e-12)


def test_min_keep_by_name() -> None:
    """The longest name that fits a group counts; groups without a name may shrink to one filter."""
    genome = make("residual", min_keep={"body": 0.5, "body.conv3": 0.9})
    counts = genome.space.kept_counts(genome.decode([0.0] * len(genome.layout)))
    by_group = dict(zip((g.name for g in genome.space.groups), counts.tolist(), strict=True))
    assert by_group == {"stem.0": 1, "body.conv1.0": 5, "body.conv2.0": 6, "body.conv3.0": 8}
    with pytest.raises(ConfigError, match=r"min_keep names 'body.conv33', which is no group; did you mean"):
        make("residual", min_keep={"body.conv33": 0.5})
    with pytest.raises(ConfigError, match=r"min_keep is 1.5; it is the share"):
        make("residual", min_keep=1.5)
    with pytest.raises(BudgetError, match=r"the shares that min_keep demands .* reachable minimum"):
        make("residual", min_keep=0.9, max_flops=0.3)
    with pytest.raises(BudgetError, match=r"4 filters a group \(round_to\)"):
        make("residual", min_keep=0.01, max_flops=0.01, round_to=4)


def test_round_to_above_every_group() -> None:
    with pytest.raises(ConfigError, match=r"round_to is 64, which leaves every group dense: the widest has 12 filters"):
        make("residual", round_to=64)
