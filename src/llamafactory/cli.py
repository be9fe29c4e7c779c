"""The program: words in, command out. Every command is imported only when it is asked for.

Knows which function a command is; knows nothing of what it does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamafactory.errors import ConfigError, LlamaFactoryError, did_you_mean

USER_ERROR, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Command:
    """Where a command lives and how it wants its words.

    target: "module:function". reads: the name load_config knows it by; empty when the function takes the words as they
    are. flags: words of its own, handed over as keyword arguments.
    """

    target: str
    doc: str
    reads: str = ""
    flags: tuple[str, ...] = ()


LOOK = ("limit", "format")
FORMATS = ("text", "html", "json")
USAGE = {
    "check": "FILE [key=value ...] [--all] [--command NAME]",
    "init": "DIR [--data_dir DIR] [--hidden_size N] [--num_layers N] ...",
    "template show": "[NAME ...] [--tokenizer DIR]",
    "template check": "[NAME ...] [--all] [--tokenizer DIR]",
    "expand": "MODEL num_expand=N output_dir=DIR",
    "models": "[SEARCH ...] [--format text|json]",
}
# Words of commands that read no configuration; the others have their options from the option models.
WORDS: dict[str, dict[str, str]] = {
    "check": {
        "--all": "show every section, also those nobody touched",
        "--command NAME": "the command the file is for; guessed from its keys by default",
    },
    "init": {
        "DIR": "new folder for the model and its tokenizer",
        "--data_dir DIR": "folder whose texts the tokenizer learns from; default data",
        "--hidden_size N": "width of the model; default 128",
        "--num_layers N": "layers; default 4",
        "--num_heads N": "attention heads of a layer; default 4",
        "--max_length N": "longest input in tokens; default 2048",
        "--seed N": "seed of the random weights; default 42",
    },
    "expand": {
        "MODEL": "folder or hub id of the model",
        "num_expand=N": "blocks to add; must divide the number of layers",
        "output_dir=DIR": "new folder for the expanded model",
    },
    "models": {"SEARCH": "words that names must hold", "--format text|json": "how to print; default text"},
    "template show": {"NAME": "templates to show; all names by default", "--tokenizer DIR": "tokenizer to render with"},
    "template check": {
        "NAME": "templates to compare; all by default",
        "--all": "compare all templates",
        "--tokenizer DIR": "tokenizer to compare with",
    },
}

COMMANDS = {
    "train": Command("llamafactory.recipes.train:run_train", "fine-tune a model", reads="train"),
    "chat": Command("llamafactory.recipes.chat:run_chat", "talk to a model in the terminal", reads="chat"),
    "export": Command("llamafactory.recipes.export:run_export", "merge, convert and upload a model", reads="export"),
    "predict": Command("llamafactory.recipes.predict:run_predict", "write answers to a data set", reads="predict"),
    "eval": Command("llamafactory.recipes.evaluate:run_eval", "run a benchmark", reads="eval"),
    "api": Command("llamafactory.api.serve:run_api", "serve a model over HTTP", reads="api"),
    "webchat": Command("llamafactory.webui.chat:run_webchat", "talk to a model in a browser", reads="webchat"),
    "webui": Command("llamafactory.webui.app:run_webui", "do everything in a browser"),
    "plan": Command("llamafactory.recipes.plan:run_plan", "estimate memory and time of a run", reads="plan"),
    "data preview": Command(
        "llamafactory.recipes.data:run_preview", "show the tokens the model will see", reads="data", flags=LOOK
    ),
    "data check": Command(
        "llamafactory.recipes.data:run_check", "find rows that cannot be used", reads="data", flags=LOOK
    ),
    "data stats": Command("llamafactory.recipes.data:run_stats", "count lengths and losses", reads="data", flags=LOOK),
    "data build": Command("llamafactory.recipes.data:run_build", "write prepared data to tokenized_path", reads="data"),
    "template show": Command("llamafactory.recipes.template:show", "print a chat template"),
    "template check": Command("llamafactory.recipes.template:check", "compare a template with a tokenizer's own"),
    "models": Command("llamafactory.recipes.models:run_models", "list known models, their ids and templates"),
    "check": Command("llamafactory.recipes.check:run_check", "read a configuration and show what it means"),
    "schema": Command("llamafactory.config.commands:schema", "print the JSON Schema of configurations"),
    "init": Command("llamafactory.recipes.init:run_init", "build the tiny starter model"),
    "expand": Command("llamafactory.recipes.expand:run_expand", "add blocks to a model (LLaMA Pro)"),
    "env": Command("llamafactory.about:show_environment", "print versions and devices"),
    "version": Command("llamafactory.about:show_version", "print the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 a mistake in the input, 130 interrupted."""
    _make_streams_safe()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except LlamaFactoryError as error:
        sys.stderr.write(f"{error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _make_streams_safe() -> None:
    """A terminal with an old code page shows what it cannot print as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(words: list[str]) -> int:
    if not words or words[0] in {"help", "-h", "--help"}:
        sys.stdout.write(_help_of(words[1:]))
        return 0
    if words[0] in {"--version", "-V"}:
        words[0] = "version"
    name, rest = _split_name(words)
    if "-h" in rest or "--help" in rest:
        sys.stdout.write(_command_help(name))
        return 0
    return _start(name, COMMANDS[name], rest)


def _split_name(words: list[str]) -> tuple[str, list[str]]:
    """Return the command, of one word or two, and what follows it."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if not group:
        hint = did_you_mean(words[0], [name.split()[0] for name in COMMANDS])
        raise ConfigError(f"command {words[0]!r}: there is none of this name{hint}; `llamafactory-cli help` lists all")
    second = words[1] if len(words) > 1 else ""
    if second in {"-h", "--help"}:
        return group[0], ["--help"]
    known = [name.split()[1] for name in group]
    got = f"got {second!r}" if second else "got nothing"
    raise ConfigError(f"command {words[0]!r}: {got}, expected one of {', '.join(known)}{did_you_mean(second, known)}")


def _start(name: str, command: Command, words: list[str]) -> int:
    if not _exists(command):
        raise ConfigError(f"command {name!r}: this version does not have it yet; `llamafactory-cli help` lists all")
    if not command.reads:
        return _exit_code(_load(command)(words))
    from llamafactory.config.load import load_config
    from llamafactory.logs import notice

    extra = _take_flags(name, command.flags, words)
    if not words:
        raise ConfigError(f"command {name!r}: no configuration given; write: llamafactory-cli {name} run.yaml")
    config = load_config(words, command=command.reads)
    for line in config.notices:
        notice(line)
    if name == "train":
        from llamafactory.config.availability import refuse_unavailable
        from llamafactory.launch import maybe_launch

        refuse_unavailable(config, name)
        code = maybe_launch(config, words)
        if code is not None:
            return code
    # Only now, so that a mistake in the configuration is told before anything heavy is imported.
    return _exit_code(_load(command)(config, **extra))


def _exists(command: Command) -> bool:
    """True when this version has the command; looks at files, imports no command."""
    try:
        return importlib.util.find_spec(command.target.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def _load(command: Command) -> Callable[..., object]:
    module, _, function = command.target.partition(":")
    return getattr(importlib.import_module(module), function)


def _exit_code(result: object) -> int:
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _take_flags(name: str, flags: tuple[str, ...], words: list[str]) -> dict[str, object]:
    """Take `--limit N` and `--format NAME` out of the words."""
    taken: dict[str, object] = {}
    for flag in flags:
        for index, word in enumerate(words):
            key, sign, value = word.partition("=")
            if key.removeprefix("--") != flag or not (sign or word.startswith("--")):
                continue
            if not sign:
                value = words[index + 1] if index + 1 < len(words) else ""
            del words[index : index + (1 if sign else 2)]
            taken[flag] = _flag_value(name, flag, value)
            break
    return taken


def _flag_value(name: str, flag: str, value: str) -> int | str:
    if flag == "limit":
        if not value.isdecimal() or int(value) == 0:
            raise ConfigError(f"command {name!r}: --limit: got {value!r}, expected a whole number > 0 (examples)")
        return int(value)
    if value not in FORMATS:
        hint = did_you_mean(value, FORMATS)
        raise ConfigError(f"command {name!r}: --format: got {value!r}, expected one of {', '.join(FORMATS)}{hint}")
    return value


def _help_of(words: list[str]) -> str:
    if words:
        return _command_help(_split_name(words)[0])
    lines = [f"  {name:<16}{_doc(name)}" for name in COMMANDS]
    return (
        "Usage: llamafactory-cli COMMAND [FILE] [key=value ...] [--key value ...]\n\n"
        + "\n".join(lines)
        + "\n\n`llamafactory-cli COMMAND --help` lists the options of a command.\n"
    )


def _doc(name: str) -> str:
    return COMMANDS[name].doc + ("" if _exists(COMMANDS[name]) else " (not in this version yet)")


def _command_help(name: str) -> str:
    command = COMMANDS[name]
    usage = f"Usage: llamafactory-cli {name} [FILE] [key=value ...] [--key value ...]"
    if not command.reads:
        words = USAGE.get(name, "")
        lines = "".join(f"\n  {word:<20}{doc}" for word, doc in WORDS.get(name, {}).items())
        usage = f"Usage: llamafactory-cli {name} {words}".rstrip()
        return f"{usage}\n\n{_doc(name)}\n" + (f"{lines}\n" if lines else "")
    from llamafactory.config.explain import describe_options

    flags = "".join(f"\n  --{flag} {'N' if flag == 'limit' else '|'.join(FORMATS)}" for flag in command.flags)
    options = f"\n\nOf this command{flags}" if flags else ""
    return f"{usage}\n\n{_doc(name)}{options}\n\n{describe_options(command.reads)}\n"


if __name__ == "__main__":
    sys.exit(main())
