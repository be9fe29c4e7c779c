"""Every module of the package can be imported; only packages listed as optional may be missing."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import llamafactory

OPTIONAL = {
    "adam_mini", "apollo_torch", "aqlm", "badam", "bitsandbytes", "deepspeed", "fastapi", "galore_torch", "gcsfs",
    "gradio", "hqq", "jieba", "liger_kernel", "matplotlib", "modelscope", "nltk", "openmind_hub", "optimum", "PIL",
    "prometheus_client", "ray", "rouge_chinese", "s3fs", "sglang", "swanlab", "uvicorn", "vllm", "wandb",
}  # fmt: skip

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(llamafactory.__path__, "llamafactory.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs the optional package {package}")
