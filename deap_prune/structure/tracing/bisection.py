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

    def __init__(self, space: PruningSpace, proof: Proof, search: WidthSearch) -> None:
        self.space, self.failures = search.extended(space), dict[str, str]()
        self._proof, self._search = proof, search

    def run(self) -> None:
        """Prove the whole space, with all observed attributes if it fails, and locate what fails then."""
        names, first = [group.name for group in self.space.groups], True
        while names and (failure := self._proof.failure(self.space, names)):
            if first and not failure.of_cost and self._search.repair_all(self.space, names):
                self.space = self._search.extended(self.space)
                return
            first = False
            self._locate(names, failure)
            if self.failures:
                return

    def _locate(self, names: Sequence[str], failure: Failure) -> None:
        """Repair or record the guilty ones of groups that fail together."""
        if len(names) == 1:
            if self._search.repair(self.space, names[0], counted=failure.of_cost):
                self.space = self._search.extended(self.space)
            else:
                self.failures[names[0]] = failure.reason
            return
        middle, located = len(names) // 2, False
        for half in (names[:middle], names[middle:]):
            if reason := self._proof.failure(self.space, half, counted=failure.of_cost):
                self._locate(half, reason)
                located = True
        if not located:
            self.failures.update(dict.fromkeys(names, f"{failure.reason}, together with other groups"))
