"""Boundary exploration: find the prompts that still reach an erased concept, show them, and close the holes."""

from .candidate import Candidate, Point
from .exploration import Exploration
from .explore import ExploreSettings, explore

__all__ = ["Candidate", "Exploration", "ExploreSettings", "Point", "explore"]
