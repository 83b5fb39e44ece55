"""A scenario from its beginning to its end, by whichever simulation it is for."""

from __future__ import annotations

from simulation.books import Violation
from simulation.scenario import Scenario
from simulation.service import Service
from simulation.world import World


def run(scenario: Scenario) -> int:
    """Play it and let it settle. Returns how many steps were made. Raises Violation."""
    play = Service(scenario.setup) if scenario.whole else World(scenario.setup)
    try:
        play.run(scenario.ops)
    except Violation as violation:
        violation.step = play.steps
        raise
    return play.steps
