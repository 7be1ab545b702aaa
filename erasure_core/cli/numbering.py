"""Names of new pictures: numbers that no picture of the folder has yet, so that none is ever replaced."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import OutputError

NUMBERED = re.compile(r"(\d{4,9})[_-].*")
"""``0012_7.png``; the web UI's own names begin like that as well."""


def next_number(folder: Path) -> int:
    """One more than the largest number that a name in a folder begins with.

    Raises:
        OutputError: the folder cannot be read.
    """
    try:
        found = [NUMBERED.fullmatch(path.name) for path in folder.iterdir()]
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({error.strerror}); choose another folder.") from error
    return max((int(match[1]) + 1 for match in found if match), default=0)
