"""Exports in fewer bits: what calibrates them, what is written and read again, what is refused before loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import make_tokenizer

from llamafactory import ChatModel
from llamafactory.config import load_config
from llamafactory.data.calibration import calibration_windows, draw_windows
from llamafactory.errors import ConfigError, DataError, LlamaFactoryError, MissingPackageError
from llamafactory.models.build import reload_model
from llamafactory.models.load import load_model
from llamafactory.models.packing.gptq import group_size
from llamafactory.models.quantization import quantization_of
from llamafactory.models.save import save_model
from llamafactory.models.starter import build_model
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.recipes.export import run_export

ROOT = Path(__file__).parents[2]
IDS = torch.arange(40, 72).reshape(2, 16)
HAS_GPTQ = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('gptqmodel')",
    reason="gptqmodel is not installed (pip install 'llamafactory[gptq]')",
)


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are multiples of 32 on both sides."""
    folder = tmp_path_factory.mktemp("wide")
    make_tokenizer().save_pretrained(folder)
    build_model(make_tokenizer(), hidden_size=64, num_layers=2, max_length=512).save_pretrained(folder)
    return folder


@pytest.fixture
def keys(wide_dir: Path, tmp_path: Path) -> dict[str, object]:
    text = tmp_path / "texts.jsonl"
    rows = [{"text": f"Document {number} tells of {number} small things. " * 12} for number in range(8)]
    text.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "model_name_or_path": str(wide_dir), "template": "chatml", "export_dir": str(tmp_path / "packed"),
        "export_quantization_bit": 4, "export_quantization_dataset": str(text), "export_quantization_nsamples": 8,
        "export_quantization_maxlen": 48,
    }  # fmt: skip


# calibration


def test_windows_lie_in_one_long_document_each() -> None:
    documents = [list(range(start, start + 30)) for start in (0, 100, 200)] + [[7] * 10]
    windows = draw_windows(documents, 7, 20, seed=1, separator=9, where="F")
    assert len(windows) == 7 and all(len(ids) == 20 for ids in windows)
    assert all(ids == list(range(ids[0], ids[0] + 20)) for ids in windows)
    assert {ids[0] // 100 for ids in windows[:3]} == {0, 1, 2}  # every document before any comes again
    assert windows == draw_windows(documents, 7, 20, seed=1, separator=9, where="F")
    assert windows != draw_windows(documents, 7, 20, seed=2, separator=9, where="F")


def test_short_documents_are_joined_and_too_little_text_is_told(caplog: pytest.LogCaptureFixture) -> None:
    documents = [[number] * 5 for number in range(10, 14)]
    windows = draw_windows(documents, 50, 16, seed=0, separator=1, where="F")
    assert all(len(ids) == 16 and 1 in ids for ids in windows)
    assert "no document of F has more than 16 tokens, so the documents are joined" in caplog.text
    with pytest.raises(DataError, match=r"F holds 24 tokens in 4 documents, and a sample needs more than 24 .*maxlen"):
        draw_windows(documents, 1, 24, seed=0, separator=1, where="F")


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "folder"])
def test_every_kind_of_file_calibrates(keys: dict[str, object], tmp_path: Path, kind: str) -> None:
    lines = ["One line of plain text about nothing. " * 20, "Another line, longer than a sample. " * 20]
    folder = tmp_path / "texts"
    folder.mkdir()
    file = folder / f"a.{'txt' if kind == 'folder' else kind}"
    rows = [{"text": line} for line in lines]
    contents = {"json": json.dumps(rows), "jsonl": "\n".join(map(json.dumps, rows))}
    file.write_text(contents.get(kind, "\n".join(lines)), encoding="utf-8")
    source = keys | {"export_quantization_dataset": str(folder if kind == "folder" else file)}
    windows = calibration_windows(load_config(source, command="export"), make_tokenizer())
    assert len(windows) == 8 and {len(ids) for ids in windows} == {48}
    assert all(any(make_tokenizer().decode(ids).strip()[:20] in line for line in lines) for ids in windows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"content": "x"}\n', r"t.jsonl:1 has no text under the key 'text' \(its keys: content\)"),
        ('{"text": 3}\n', "has no text under the key 'text'"),
        ("{broken\n", "not valid JSON"),
    ],
)
def test_unfit_calibration_rows_are_named(keys: dict[str, object], tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(content, encoding="utf-8")
    config = load_config(keys | {"export_quantization_dataset": str(file)}, command="export")
    with pytest.raises(DataError, match=words):
        calibration_windows(config, make_tokenizer())


def test_a_missing_calibration_file_is_told(keys: dict[str, object]) -> None:
    config = load_config(keys | {"export_quantization_dataset": "data/none.jsonl"}, command="export")
    with pytest.raises(ConfigError, match=r"the file data/none.jsonl does not exist; .*hub data set"):
        calibration_windows(config, make_tokenizer())


# refusals


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"adapter_name_or_path": "a"}, "an adapter cannot be merged into quantized weights"),
        ({"export_quantization_dataset": None}, "quantizing needs calibration text"),
        ({"quantization_bit": 4}, "weights are quantized once"),
        ({"export_quantization_method": "awq", "export_quantization_bit": 3}, "awq has 4 bits"),
        ({"export_quantization_bit": 5}, "export_quantization_bit"),
        ({"export_quantization_method": "awq"}, "quantizes on a CUDA GPU only.* use gptq"),
    ],
)
def test_impossible_requests_are_refused_before_loading(
    keys: dict[str, object], monkeypatch: pytest.MonkeyPatch, extra: dict, words: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LlamaFactoryError, match=words):
        run_export({key: value for key, value in (keys | extra).items() if value is not None})
    assert not Path(str(keys["export_dir"])).exists()


def test_a_missing_package_names_the_command(keys: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafactory.parts.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"needs the package 'gptqmodel'.*'llamafactory\[gptq\]'"):
        run_export(keys)


def test_layers_that_cannot_be_packed_are_named(wide_dir: Path, model_dir: Path) -> None:
    assert group_size(reload_model(wide_dir, "auto")) == 64
    with pytest.raises(ConfigError, match=r"layers.0.self_attn.k_proj has 16 outputs, which is no multiple of 32"):
        group_size(reload_model(model_dir, "auto"))


# for real


def packed_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "qweight" in name}


@HAS_GPTQ
@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_a_gptq_export_chats_and_carries_an_adapter(
    keys: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int
) -> None:
    folder = run_export(keys | {"export_quantization_bit": bits})
    assert "quantized export: logits differ by" in caplog.text
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (settings["quant_method"], settings["bits"], settings["checkpoint_format"]) == ("gptq", bits, "gptq")
    assert "dataset" not in settings
    with ChatModel({"model_name_or_path": str(folder), "do_sample": False, "max_new_tokens": 4}) as chat:
        chat.chat([{"role": "user", "content": "Who are you?"}])
    config = load_config(
        {"model_name_or_path": str(folder), "stage": "sft", "do_train": True, "output_dir": "o", "dataset": "d",
         "template": "chatml"}, command="train",
    )  # fmt: skip
    bundle = load_tokenizer(config)
    loaded = load_model(config, bundle, trainable=True)
    assert quantization_of(loaded.model).describe() == f"gptq {bits}-bit (groups of 64)"
    packed = packed_weights(loaded.model)
    optimizer = torch.optim.Adam([weight for weight in loaded.model.parameters() if weight.requires_grad], 1e-2)
    losses = []
    for _ in range(5):
        loss = loaded.model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    assert packed and all(
        torch.equal(value, dict(loaded.model.named_buffers())[name]) for name, value in packed.items()
    )
    save_model(loaded.model, bundle.tokenizer, tmp_path / "adapter", record=loaded.record)
    other = load_config(
        {"model_name_or_path": str(folder), "adapter_name_or_path": str(tmp_path / "adapter"), "template": "chatml"},
        command="chat",
    )
    again = load_model(other, bundle, trainable=False)
    with torch.no_grad():
        difference = again.model(input_ids=IDS).logits - loaded.model.eval()(input_ids=IDS).logits
    # Answering, gptqmodel takes another kernel for 4 bits than for training.
    assert float(difference.abs().max()) < (5e-3 if bits == 4 else 1e-5)
    with pytest.raises(ConfigError, match=r"is quantized already \(gptq"):
        run_export({"model_name_or_path": str(folder), "export_dir": str(tmp_path / "twice"), "template": "chatml"})


@HAS_GPTQ
@pytest.mark.gpu
def test_an_awq_export_answers_like_the_model(keys: dict[str, object]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    folder = run_export(keys | {"export_quantization_method": "awq", "infer_dtype": "float16", "export_device": "auto"})
    with ChatModel({"model_name_or_path": str(folder), "do_sample": False, "max_new_tokens": 4}) as chat:
        chat.chat([{"role": "user", "content": "Who are you?"}])
