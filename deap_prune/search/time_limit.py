"""How a search keeps ``max_seconds``: when generations end, and what is left for refinement."""

from __future__ import annotations

import math
import time
from functools import cached_property

from deap_prune.deadline import TimeIsUpError, until
from deap_prune.errors import PruneError
from deap_prune.evolution.generation import Generation
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.trial import RefinementCost, dense_seconds, refinement_cost
from deap_prune.options import SearchOptions
from deap_prune.progress import Shown, duration, step
from deap_prune.search.progress import refinements

REFINING = 0.3
"""Share of ``max_seconds`` that is kept for refinement, if that suffices for one network."""
MARGIN = 1.2
"""What a network's refinement may take, relative to its estimate."""
GRACE = 0.1
"""Share of ``max_seconds`` after it in which a refinement that has begun may end."""
MOST_TRIAL_SECONDS = 5.0
"""What the trials of a refinement should take, by their number of images."""
GIVE_UP = 60.0
"""Seconds after which a trial that takes longer is given up, without ``max_seconds``; with it, ``REFINING`` of it."""


def estimated_refinement(evaluator: Evaluator, options: SearchOptions, *, shown: Shown) -> RefinementCost | None:
    """Cost of refining a network, from trials on few images; None without progress and ``max_seconds``.

    Args:
        evaluator: The fitness.
        options: The options of the search.
        shown: Whether progress is shown, with an estimate of the whole run.
    """
    if not shown and options.max_seconds is None:
        return None
    moments = ", then moments of its layers for compensation" if evaluator.compensates else ""
    step(f"evaluating the dense network{moments}", shown=shown)
    dense = dense_seconds(evaluator)
    if not options.refine:
        return None
    limit = options.max_seconds
    seconds = MOST_TRIAL_SECONDS if limit is None else min(limit / 20, MOST_TRIAL_SECONDS)
    step("timing a refinement on few images", shown=shown)
    most = GIVE_UP if limit is None else REFINING * limit
    try:
        with until(time.monotonic() + most):
            return refinement_cost(
                evaluator,
                images=options.refine_images,
                select=options.select is not None,
                dense=dense,
                seconds=seconds,
            )
    except TimeIsUpError:
        step(f"timing a refinement: given up after {duration(most)}", shown=shown)
        return None if limit is None else RefinementCost(0.0, math.inf)
    except PruneError:  # an estimate is no reason to end: what is wrong is reported where networks are refined
        return None


def time_limit(options: SearchOptions, begun: float, cost: RefinementCost | None, *, shown: Shown) -> TimeLimit | None:
    """The time limit of a search's options, if they have one.

    Args:
        options: ``max_seconds``, and what is refined at the end.
        begun: ``time.monotonic()`` at the begin of the run.
        cost: What refinement takes; None if nothing is refined.
        shown: Whether progress is shown.
    """
    if options.max_seconds is None:
        return None
    return TimeLimit(options.max_seconds, begun, cost=cost, networks=refinements(options), shown=shown)


class TimeLimit:
    """Ends the generations in time (a stop of the loop), and says whether one more network can be refined.

    At least the time for one network is kept, and at least 30 % of the limit if there is that much to refine. If one
    network does not fit, all time is for generations.

    Args:
        seconds: ``max_seconds``.
        begun: ``time.monotonic()`` at the begin of the run.
        cost: What refinement takes; None if nothing is refined.
        networks: Networks to refine, about.
        shown: Whether progress is shown.

    Attributes:
        deadline: ``time.monotonic()`` at which the search ends.
        latest: ``time.monotonic()`` at which what is under way is given up.
    """

    def __init__(
        self,
        seconds: float,
        begun: float,
        *,
        cost: RefinementCost | None = None,
        networks: int = 1,
        shown: Shown = False,
    ) -> None:
        self.deadline, self.latest = begun + seconds, begun + (1 + GRACE) * seconds
        self._seconds, self._cost, self._networks, self._shown = seconds, cost, networks, shown
        self._asked = time.monotonic()
        self._longest: dict[str, float] = {}

    @cached_property
    def _reserve(self) -> float:
        """Seconds that are kept for refinement; decided when this is asked for first."""
        if self._cost is None:
            return 0.0
        one = self._cost.first + self._cost.each
        if time.monotonic() + one > self.latest:
            takes = f"about {duration(one)}, " if math.isfinite(one) else ""
            text = f"no refinement: a network would take {takes}more than max_seconds={self._seconds:g} leaves"
            step(text, shown=self._shown)
            return 0.0
        everything = self._cost.first + self._networks * self._cost.each
        return MARGIN * max(one, min(REFINING * self._seconds, everything))

    def __call__(self, state: Generation) -> bool:
        """Whether another generation would end too late; it is taken to last as long as the one before."""
        now = time.monotonic()
        lasted, self._asked = now - self._asked, now
        if now + lasted <= self.deadline - self._reserve:
            return False
        left = duration(max(0.0, self.deadline - now))
        why = f"leaves {left}, which refinement needs" if self._reserve else "leaves no time for another one"
        step(f"stopping after generation {state.number}: max_seconds={self._seconds:g} {why}", shown=self._shown)
        return True

    def cuts(self, done: int, population: int) -> bool:
        """Whether the rest of the first population is left out.

        Args:
            done: Individuals that are evaluated.
            population: Individuals in all.
        """
        if time.monotonic() <= self.deadline - self._reserve:
            return False
        text = f"the first population has {done} of {population} networks: max_seconds={self._seconds:g} leaves no more"
        step(text, shown=self._shown)
        return True

    def room(self, what: str) -> bool:
        """Whether one more network can be refined, or recovered, in time; the first one may use the grace.

        Args:
            what: "refine" or "recover".
        """
        now = time.monotonic()
        if what in self._longest:
            return now + self._longest[what] <= self.deadline
        least = self._cost.first + self._cost.each if self._cost is not None and what == "refine" else 0.0
        return now + least <= (self.latest if least else self.deadline)

    def took(self, what: str, seconds: float) -> None:
        """Note what a network took."""
        self._longest[what] = max(seconds, self._longest.get(what, 0.0))
