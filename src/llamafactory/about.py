"""What is installed on this machine, for bug reports: the commands `version` and `env`.

Versions are read from package metadata, so only the look at the accelerator imports torch. `version` imports nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamafactory import __version__
from llamafactory.errors import ConfigError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub")
OPTIONAL = ("deepspeed", "bitsandbytes", "vllm", "trl", "flash_attn", "liger_kernel", "modelscope", "openmind_hub")


def show_version(words: Sequence[str]) -> None:
    """Print the version of this package."""
    _take_no_words("version", words)
    sys.stdout.write(f"llamafactory {__version__}\n")


def show_environment(words: Sequence[str]) -> None:
    """Print versions, devices and what this machine can do."""
    _take_no_words("env", words)
    lines = [*_software(), *_hardware()]
    width = max(len(name) for name, _ in lines) + 2
    sys.stdout.write("".join(f"{name + ':':<{width}}{value}\n" for name, value in lines))


def _take_no_words(command: str, words: Sequence[str]) -> None:
    if words:
        raise ConfigError(f"{command}: takes no arguments, got {' '.join(words)!r}")


def _software() -> Iterator[tuple[str, str]]:
    import platform

    yield "llamafactory", __version__
    yield "platform", platform.platform()
    yield "python", platform.python_version()
    for name in (*PACKAGES, *OPTIONAL):
        version = _version(name)
        if version is not None or name in PACKAGES:
            yield name, version or "not installed"
    yield "git commit", _commit() or "not a checkout"
    yield "data folder here", "yes" if Path("data").is_dir() else "no"


def _version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    import subprocess

    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _hardware() -> Iterator[tuple[str, str]]:
    if _version("torch") is None:
        return
    import torch

    if not torch.accelerator.is_available():
        yield "accelerator", "none; runs use the CPU"
        return
    kind = torch.accelerator.current_accelerator()
    yield "accelerator", f"{kind}, {torch.accelerator.device_count()} devices"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield f"device {index}", f"{found.name}, {found.total_memory / 2**30:.1f} GiB"
        yield "bfloat16", "yes" if torch.cuda.is_bf16_supported() else "no"
