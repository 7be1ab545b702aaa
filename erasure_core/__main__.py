"""``python -m erasure_core`` and the ``concept-erasure`` script: the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; without torch, say in one sentence how to get it."""
    try:
        from .cli.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("erasure_core"):
            raise
        print(
            f'concept-erasure: {error.name} is missing; in the folder of this software: pip install ".[standalone]"',
            file=sys.stderr,
        )
        return 3
    return run()


if __name__ == "__main__":
    sys.exit(main())
