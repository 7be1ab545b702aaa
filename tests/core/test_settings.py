"""What settings may hold: a request's JSON is read into them, whatever it says."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from erasure_core.boundary import ExploreSettings
from erasure_core.boundary.report import ReportSettings
from erasure_core.errors import InvalidSettings
from erasure_core.methods import METHODS
from erasure_core.methods.esd import EsdSettings


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (EsdSettings, {"layers": None}, "layers is None; it must be a text"),
        (EsdSettings, {"layers": 3}, "layers is 3; it must be a text"),
        (EsdSettings, {"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        (EsdSettings, {"steps": True}, "steps is True; it must be a whole number"),
        (EsdSettings, {"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
        (EsdSettings, {"guidance": None}, "guidance is None; it must be a number"),
        (EsdSettings, {"guidance": [3.0]}, "it must be a number"),
        (EsdSettings, {"replace": 1}, "replace is 1; it must be true or false"),
        (EsdSettings, {"stop_below": "never"}, "stop_below is 'never'; it must be a number"),
        (ExploreSettings, {"levels": None}, "levels is None; it must be a text"),
        (ExploreSettings, {"states": 2.5}, "states is 2.5; it must be a whole number"),
        (ReportSettings, {"pictures": "no"}, "pictures is 'no'; it must be true or false"),
        (ReportSettings, {"seconds": None}, "seconds is None; it must be a number"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings) as error:
        kind(**given)
    assert message in str(error.value)


def test_what_may_stand_for_a_value() -> None:
    made = EsdSettings(guidance=3, learning_rate=numpy.float32(1e-3), steps=numpy.int64(5), stop_below=None)
    assert made.guidance == 3 and made.steps == 5
    assert ExploreSettings(seconds=None, calls=10).seconds is None
    for method in METHODS.values():
        method.settings()
