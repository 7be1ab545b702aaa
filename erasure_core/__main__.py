"""``python -m erasure_core`` and the ``concept-erasure`` script: the command line."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line; without torch, say in one sentence how to get it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is a Ctrl-C
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
    except KeyboardInterrupt:
        print("concept-erasure: stopped before it began.", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
