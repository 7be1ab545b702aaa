"""Published erasing methods, one file each. Adding a method means adding a file: this package imports all of them."""

import importlib
import pkgutil

from .registry import METHODS, Method, SolverSettings, TrainingSettings, find_method

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)

RECOMMENDED = "auto"
"""The first choice of every front end: within the intervals, none measures better in the proving ground."""

__all__ = ["METHODS", "RECOMMENDED", "Method", "SolverSettings", "TrainingSettings", "find_method"]
