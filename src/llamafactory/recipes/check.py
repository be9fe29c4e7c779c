"""The check command: what a configuration means, and whether its template is the one its model was trained with.

Prints to stdout; loads neither weights nor tokenizers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llamafactory.config.commands import read_check
from llamafactory.config.explain import describe_config
from llamafactory.models.catalog import resolve_template


def run_check(words: Sequence[str]) -> None:
    """Print the resolved configuration. Raises ConfigError when it, or its template, cannot be used."""
    config, everything = read_check(words)
    resolve_template(config)
    sys.stdout.write(describe_config(config, everything=everything) + "\n")
