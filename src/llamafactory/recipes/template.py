"""The template commands: `template show` prints slots and a rendered example, `template check` proves equal tokens.

Wires templates to a tokenizer: the one at `--tokenizer`, or a small one made here that holds the templates' tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamafactory.config.sections.template import TemplateConfig
from llamafactory.errors import ConfigError, ModelError, did_you_mean
from llamafactory.rendering.template import Placeholder, Slot, Special, Template, Token, get_template, templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llamafactory.rendering.conformance import Finding

_EXAMPLE_TEXTS = ("How are you? I am fine! 1+1?\nExplain. It is 2.\n\n- one\n 再见 {} [] \"quotes\" 'here' <think>",)


@dataclass(frozen=True)
class Words:
    """What was asked on the command line."""

    names: tuple[str, ...]
    all: bool = False
    tokenizer: str | None = None


def show(argv: Sequence[str]) -> None:
    """Print the slots of the template named in `argv` and a rendered example; without a name, list all templates."""
    words = _read(argv)
    console = _console()
    if not words.names:
        for name, template in templates().items():
            console.print(Text(f"{name:24} {_summary(template)}"))
        return
    for name in words.names:
        _show(console, get_template(name), words)


def check(argv: Sequence[str]) -> None:
    """Compare training tokens, prompts and exported chat templates, and print a table.

    Raises ModelError when any of them differ for no stated reason.
    """
    words = _read(argv)
    from llamafactory.rendering.conformance import REASONS

    rows = findings(words)
    console = _console()
    console.print(_table(rows))
    for verdict, reason in REASONS.items():
        if any(finding.verdict == verdict for findings in rows.values() for finding in findings):
            console.print(Text(f"{verdict}: {reason}"))
    _refuse_differences(rows)


def findings(words: Words) -> dict[str, list[Finding]]:
    """What the comparison finds for each template asked for; for all of them when none is named."""
    from llamafactory.rendering.conformance import compare
    from llamafactory.rendering.renderer import build_renderer

    rows: dict[str, list[Finding]] = {}
    for name in words.names or templates():
        tokenizer = _tokenizer(words, [get_template(name)])
        usual = compare(build_renderer(tokenizer, TemplateConfig(template=name)), tokenizer)
        rows[name] = [*usual, *_modes(name, tokenizer, usual)]
    return rows


def _modes(name: str, tokenizer: PreTrainedTokenizerBase, usual: Sequence[Finding]) -> list[Finding]:
    """What is found under other reasoning options; without reasoning they change nothing."""
    from llamafactory.rendering.conformance import MODES, compare_mode
    from llamafactory.rendering.renderer import build_renderer

    if not get_template(name).reasoning:
        [thinking] = [finding for finding in usual if finding.case == "thinking"]
        return [replace(thinking, case=mode) for mode in MODES]
    return [
        compare_mode(build_renderer(tokenizer, TemplateConfig(template=name, **options)), tokenizer, mode)
        for mode, options in MODES.items()
    ]


def _refuse_differences(rows: dict[str, list[Finding]]) -> None:
    failed = [
        (name, finding) for name, findings in rows.items() for finding in findings if finding.verdict == "differs"
    ]
    if failed:
        name, first = failed[0]
        raise ModelError(
            f"template check: {len(failed)} of {sum(map(len, rows.values()))} comparisons differ, the first is "
            f"{name}, {first.case}: {first.detail}; such a model is served other tokens than it learnt"
        )


def _read(argv: Sequence[str]) -> Words:
    names: list[str] = []
    everything, tokenizer = False, None
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        option, _, value = word.partition("=")
        if option == "--tokenizer":
            if not value and not rest:
                raise ConfigError("template: --tokenizer needs the folder or hub id of a tokenizer behind it")
            tokenizer = value or rest.pop(0)
        elif word == "--all":
            everything = True
        elif word.startswith("-"):
            known = ("--all", "--tokenizer")
            raise ConfigError(
                f"template: unknown option {word!r}{did_you_mean(word, known)} (known: {', '.join(known)})"
            )
        else:
            names.append(get_template(word).name)
    return Words(() if everything else tuple(names), everything, tokenizer)


def _tokenizer(words: Words, chosen: Sequence[Template]) -> PreTrainedTokenizerBase:
    """The tokenizer asked for, or a byte-level one that holds the control tokens of the templates."""
    if words.tokenizer is not None:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(words.tokenizer)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"--tokenizer: {words.tokenizer!r} holds no tokenizer transformers can read ({error})"
            ) from error
    from llamafactory.models.starter import build_tokenizer
    from llamafactory.rendering.control_tokens import control_tokens

    special = dict.fromkeys(
        ("<s>", "</s>", "<pad>", *(name for template in chosen for name in control_tokens(template)))
    )
    return build_tokenizer(
        _EXAMPLE_TEXTS,
        vocab_size=600,
        special_tokens=list(special),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )


def _show(console: Console, template: Template, words: Words) -> None:
    from llamafactory.rendering.conformance import cases
    from llamafactory.rendering.renderer import build_renderer

    console.rule(Text(template.name))
    for name in ("prefix", "system", "user", "observation", "generation", "assistant", "function", "tools"):
        slot = getattr(template, name)
        if slot:
            console.print(Text(f"{name:12} {_spell(slot)}"))
    facts = {
        "stop words": " ".join(template.stop_words),
        "tool format": template.tool_format,
        "reasoning": "yes" if template.reasoning else "",
        "system text": repr(template.default_system) if template.default_system else "",
    }
    for name, value in facts.items():
        if value:
            console.print(Text(f"{name:12} {value}"))
    renderer = build_renderer(_tokenizer(words, [template]), TemplateConfig(template=template.name))
    console.rule(Text("example"))
    console.print(Text(renderer.text(cases()["multi-turn"])))


def _spell(slot: Slot) -> str:
    return " ".join(map(_spell_part, slot))


def _spell_part(part: str | Placeholder | Special | Token) -> str:
    if isinstance(part, str):
        return repr(part)
    if isinstance(part, Token):
        return f"token({part.text!r})"
    return f"{{{part.name}}}"


def _summary(template: Template) -> str:
    facts = (template.tool_format, "reasoning" if template.reasoning else "", template.media.processor)
    return ", ".join(filter(None, facts))


def _table(rows: dict[str, list[Finding]]) -> Table:
    table = Table("template", "comparisons", title="training tokens = prompt = exported chat template")
    for name, findings in rows.items():
        cells = Text()
        for verdict, style in _STYLES.items():
            cases = [finding.case for finding in findings if finding.verdict == verdict]
            named = f"{len(cases)} {verdict}" if verdict == "equal" else f"{verdict}: {', '.join(cases)}"
            cells += Text(("; " if cells else "") + named, style) if cases else Text()
        table.add_row(Text(name, no_wrap=True), cells)
    return table


_STYLES = {"equal": "green", "border": "yellow", "opened": "yellow", "unsupported": "dim", "differs": "bold red"}


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
