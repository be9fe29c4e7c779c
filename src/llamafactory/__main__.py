"""`python -m llamafactory` is the program `llamafactory-cli`."""

from __future__ import annotations

import sys

from llamafactory.cli import main

if __name__ == "__main__":
    sys.exit(main())
