"""One process of a training group: does what `llamafactory-cli train` does in one process, and reports its failure.

Knows no rank arithmetic: the launcher has put the process's place in the group into its environment.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from llamafactory import failure
from llamafactory.launch.supervise import die_with_parent


def main(argv: Sequence[str]) -> int:
    """Train with the arguments that follow `llamafactory-cli train`; returns the exit code."""
    die_with_parent()
    try:
        from llamafactory.config import load_config
        from llamafactory.recipes.train import run_train

        run_train(load_config(list(argv), command="train"))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        # The launcher prints the first report of the group last; a second copy here would only hide it.
        failure.record(None, error)
        return failure.describe(error).exit_code
    return 0


def leave(code: int) -> NoReturn:
    """End this process of a group with `code`, after Python's own exit functions.

    Native threads of gloo (torch 2.13) that outlive the interpreter abort a process that has already succeeded; they
    are not torn down here.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
