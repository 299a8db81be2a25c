"""Locate the groups that a proof refuses; those that rewriting an attribute repairs are not refused."""

from __future__ import annotations

from collections.abc import Sequence

from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.proof import Failure, Proof
from deap_prune.structure.tracing.width_attributes import WidthSearch


class Bisection:
    """Halves a set of groups that fail together, until single groups are left.

    An attribute that repairs one group often repairs its siblings in other blocks, so every part is proven again after
    a repair. The cost is compared only where the outputs of all groups agree.

    Attributes:
        space: The pruning space, with the attributes that were found.
        failures: Groups that can't be repaired, with reasons.
    """

    _failure: Failure | None

    def __init__(self, space: PruningSpace, proof: Proof, search: WidthSearch) -> None:
        self.space, self.failures = search.extended(space), dict[str, str]()
        self._proof, self._search = proof, search
        self._names, self._failure = [group.name for group in space.groups], None

    def holds(self) -> bool:
        """Whether the proof of all groups holds, as they are or with all observed attributes."""
        refused = ((group.name, self._proof.refused.get(group.key)) for group in self.space.groups)
        self.failures.update((name, reason) for name, reason in refused if reason is not None)
        if self.failures or not self._names:
            return not self.failures
        self._failure = self._proof.failure(self.space, self._names)
        repairable = self._failure is not None and not self._failure.of_cost
        if repairable and self._search.repair_all(self.space, self._names):
            self.space, self._failure = self._search.extended(self.space), None
        return self._failure is None

    def locate(self, *, first_only: bool = False) -> None:
        """Repair or record the groups that fail, until one can't be repaired or the proof holds.

        Args:
            first_only: Stop at the first group that can't be repaired, else when the proven set has been searched.
        """
        while not self.failures and self._failure is not None:
            self._locate(self._names, self._failure, first_only)
            self._failure = None if self.failures else self._proof.failure(self.space, self._names)

    def _locate(self, names: Sequence[str], failure: Failure, first_only: bool) -> None:
        """Repair or record the guilty ones of groups that fail together."""
        if len(names) == 1:
            if self._search.repair(self.space, names[0], counted=failure.of_cost):
                self.space = self._search.extended(self.space)
            else:
                self.failures[names[0]] = failure.reason
                self._proof.refused[self.space.group(names[0]).key] = failure.reason
            return
        middle, located = len(names) // 2, False
        for half in (names[:middle], names[middle:]):
            if part := self._proof.failure(self.space, half, counted=failure.of_cost, draws=(failure.draw,)):
                self._locate(half, part, first_only)
                located = True
                if first_only and self.failures:
                    return
        if not located:
            self.failures.update(dict.fromkeys(names, f"{failure.reason}, together with other groups"))
