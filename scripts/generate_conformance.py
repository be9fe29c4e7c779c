"""Write docs/conformance.md: what `template check --all` finds, and what differs from vendors' own chat templates.

With --check only tell whether the page is up to date. Takes about twenty seconds, so generate_docs.py leaves it out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from llamafactory.recipes.template import Words, findings
from llamafactory.rendering.conformance import REASONS, Finding

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "conformance.md"
VENDORS = ROOT / "tests" / "rendering" / "data" / "vendor_templates.yaml"

HEAD = """\
# Templates, compared

This page is written by `python scripts/generate_conformance.py`; a test compares it with the code.

## Training, prompt and exported chat template

What a model is trained on must be what it is served with. `llamafactory-cli template check --all` writes the same
conversations three ways and compares token ids: as the training encoder writes them, as the prompt of `chat` and `api`,
and as transformers renders the exported chat template. `--tokenizer PATH` compares with a tokenizer of yours; here it
is a byte-level one that holds the template's control tokens. The last three columns are runs with
`enable_thinking: false`, without `enable_thinking`, and with `preserve_thinking: true`, each with thoughts in all
answers, in none and before calls.
"""

VENDOR_HEAD = """\
## Our templates and the vendors' own

Several vendors' chat templates come with TRL's package, under the names in the second column. Single and several turns,
system prompts, tools, calls, results and thoughts are rendered with both, and the ids compared. Everything that is not
in the last column is equal. To train on a vendor's template to the letter, leave `template` out: then the tokenizer's
own is used.
"""


def conformance(rows: dict[str, list[Finding]]) -> str:
    """The table of all templates, with the reasons of what is not equal."""
    verdicts = [finding.verdict for found in rows.values() for finding in found]
    counts = {verdict: verdicts.count(verdict) for verdict in ("equal", *REASONS)}
    words = [f"{number} {verdict}" for verdict, number in counts.items() if number]
    differing = len(verdicts) - sum(counts.values())
    lines = [f"{len(rows)} templates, {len(verdicts)} comparisons: {', '.join(words)}, {differing} differ."]
    lines += [f"\n* **{verdict}**: {reason}." for verdict, reason in REASONS.items() if counts[verdict]]
    cases = [finding.case for finding in next(iter(rows.values()))]
    lines += ["", "| template | " + " | ".join(cases) + " |", "| --- |" + " --- |" * len(cases)]
    for name, found in rows.items():
        lines.append(f"| `{name}` | " + " | ".join(_cell(finding.verdict) for finding in found) + " |")
    return "\n".join(lines)


def _cell(verdict: str) -> str:
    return verdict if verdict == "equal" else f"**{verdict}**"


def vendors() -> str:
    """What differs from the vendors' chat templates, and why."""
    lines = ["| `template` | vendor's file | what differs |", "| --- | --- | --- |"]
    for entry in yaml.safe_load(VENDORS.read_text(encoding="utf-8")):
        reasons = dict.fromkeys(edit["why"] for edit in entry.get("edits", ()))
        for why in dict.fromkeys(entry.get("apart", {}).values()):
            cases = ", ".join(repr(case) for case, reason in entry["apart"].items() if reason == why)
            reasons[f"{cases}: {why}"] = None
        if entry.get("refuses"):
            reasons[f"the vendor's refuses {', '.join(map(repr, entry['refuses']))}"] = None
        for name in entry.get("templates", ()):
            lines.append(f"| `{name}` | `{entry['file']}` | {'; '.join(reasons) or 'nothing'} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    rows = findings(Words(names=(), all=True))
    return f"{HEAD}\n{conformance(rows)}\n\n{VENDOR_HEAD}\n{vendors()}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is out of date")
    check = parser.parse_args().check
    text = page()
    stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if stale and not check:
        PAGE.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {'out of date' if stale and check else 'written' if stale else 'up to date'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
