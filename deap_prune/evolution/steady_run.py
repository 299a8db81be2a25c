"""The engine of steady-state loops: a child is made and sent whenever a worker is free.

What a run does depends on its seed and on the order of returns alone: evaluations can't draw from the global
generators. The journal holds that order, so a run that was stopped goes on exactly, and can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from deap import base

from deap_prune.errors import RunError
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.in_flight import InFlight, Values
from deap_prune.evolution.returns import Return, Returns, checksum

MEMORY = "steady_state"


@dataclass(frozen=True, eq=False)
class Steps:
    """What a loop does between evaluations.

    Attributes:
        child: Makes a child from the state.
        survivors: The next population, from the state and one evaluated child.
        record: Adds a record to the state's logbook, given the individuals that were evaluated since the last one.
        notify: Calls the callbacks after a record.
        stops: Called before every child; True ends the run.
    """

    child: Callable[[Generation], Any]
    survivors: Callable[[Generation, Any], list[Any]]
    record: Callable[[Generation, list[Any]], None]
    notify: Callable[[Generation], None]
    stops: Sequence[Callable[[Generation], bool]] = ()


class SteadyRun:
    """A steady-state run.

    Args:
        state: A new state, whose population is not evaluated; or one that this engine left, with what its memory says.
        toolbox: Its ``clone`` copies individuals.
        steps: What happens between evaluations.
        period: Returns per generation: records, callbacks and checkpoints.
        in_flight: Where candidates are evaluated.
        journal: The journal of returns; what it has beyond the state is replayed first.
    """

    def __init__(
        self,
        state: Generation,
        toolbox: base.Toolbox,
        steps: Steps,
        *,
        period: int,
        in_flight: InFlight,
        journal: Returns | None = None,
    ) -> None:
        self.state, self._steps, self._period = state, steps, period
        self._in_flight, self._journal = in_flight, journal
        self._evaluated: list[Any] = []
        self._stopping = False
        memory = state.memory.get(MEMORY)
        if memory is None:
            self._size, self._made, self._returned = len(state.population), 0, 0
            self._pending = dict(enumerate(state.population))
            state.population = []
        else:
            self._size, self._made, self._returned = memory["size"], memory["made"], memory["returned"]
            template = state.population[0]
            self._pending = {
                int(number): _individual(toolbox, template, *stored) for number, stored in memory["pending"].items()
            }
        self._recorded = self._returned

    def run(self, ngen: int) -> Generation:
        """Replay the journal, and go on until generation ``ngen`` is complete or a stop ends the run.

        After a stop the candidates in flight are waited for. A generation that a stop cut short is recorded, and
        completed when the run goes on.

        Raises:
            RunError: If the journal belongs to another run.
        """
        end = self._size + max(0, ngen) * self._period
        try:
            self._replay(end)
            for number in sorted(number for number in self._pending if number < self._made):
                self._in_flight.send(number, self._pending[number])  # they were in flight when the run stopped
            while self._returned < end:
                self._send_children(end)
                if not len(self._in_flight) and (self._stopping or self._made >= end):
                    break
                returned = self._in_flight.wait()
                self._write(returned)
                for number, values in returned.items():
                    self._accept(number, values)
        finally:
            self._in_flight.forget()
        if self._returned != self._recorded:
            self._end_generation()
        return self.state

    def _replay(self, end: int) -> None:
        """Repeat what the journal says, without evaluating anything."""
        for line in [] if self._journal is None else self._journal.after(self._returned):
            if self._returned >= end:
                return
            while self._made < line.made:
                self._make()
            individual = self._pending.get(line.number)
            if individual is None or checksum(individual) != line.genes or line.number >= self._made:
                raise RunError(
                    f"return {line.place} in the journal is of another run: seed, population, operators or versions "
                    "differ; go on with the same, or give another file"
                )
            if not individual.fitness.valid:
                self._in_flight.recall(individual, line.values)
            self._accept(line.number, line.values)

    def _send_children(self, end: int) -> None:
        """Make a child for every worker that is free."""
        while self._made < end and self._may_make() and self._in_flight.free() > 0:
            self._stopping = self._stopping or self.state.stop or self._told_to_stop()
            if self._stopping:
                return
            number = self._make()
            self._in_flight.send(number, self._pending[number])

    def _may_make(self) -> bool:
        """Whether there is a candidate of the first population left, or there are parents."""
        return self._made < self._size or len(self.state.population) >= min(2, self._size)

    def _told_to_stop(self) -> bool:
        return bool(self.state.logbook) and any(stop(self.state) for stop in self._steps.stops)

    def _make(self) -> int:
        """The number of the next candidate: of the first population, or a new child."""
        number = self._made
        if number not in self._pending:
            self._pending[number] = self._steps.child(self.state)
        self._made += 1
        return number

    def _write(self, returned: Mapping[int, Values]) -> None:
        if self._journal is not None and returned:
            entries = [
                Return(place, number, self._made, checksum(self._pending[number]), values)
                for place, (number, values) in enumerate(returned.items(), start=self._returned)
            ]
            self._journal.append(entries)

    def _accept(self, number: int, values: Values) -> None:
        """Take a candidate that came back into the population."""
        state, individual = self.state, self._pending.pop(number)
        if not individual.fitness.valid:
            individual.fitness.values = values
            self._evaluated.append(individual)
        self._returned += 1
        if len(state.population) < self._size:
            state.population = [*state.population, individual]
        else:
            state.population = self._steps.survivors(state, individual)
        if self._returned >= self._size and (self._returned - self._size) % self._period == 0:
            self._end_generation()

    def _end_generation(self) -> None:
        """Write the record; a record of the same generation that a stop cut short is replaced."""
        state, evaluated = self.state, self._evaluated
        state.number = max(0, -(-(self._returned - self._size) // self._period))
        earlier = 0
        if state.logbook and state.logbook[-1]["gen"] == state.number:
            earlier = state.logbook.pop(len(state.logbook) - 1)["nevals"]
        self._evaluated, self._recorded = [], self._returned
        pending = {str(number): _stored(individual) for number, individual in self._pending.items()}
        counts = {"size": self._size, "made": self._made, "returned": self._returned}
        state.memory[MEMORY] = {**counts, "pending": pending}
        self._steps.record(state, evaluated)
        state.logbook[-1]["nevals"] += earlier
        self._steps.notify(state)


def _stored(individual: Any) -> list[Any]:
    """An individual as JSON takes it: genes, and the values of its fitness, which a copied parent has."""
    genes = [gene.item() if isinstance(gene, np.generic) else gene for gene in individual]
    return [genes, list(individual.fitness.values)]


def _individual(toolbox: base.Toolbox, template: Any, genes: list[Any], values: list[float]) -> Any:
    """The inverse of :func:`_stored`."""
    individual = toolbox.clone(template)
    for place, gene in enumerate(genes):  # one by one: an array.array takes no list
        individual[place] = gene
    del individual.fitness.values
    if values:
        individual.fitness.values = tuple(values)
    return individual
