"""Checkpoints in CPU memory: the same gradients, a copy that is really kept, and less memory on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.models import examples, padded, tiny_model, with_lora
from tests.training.runs import logged, make_trainer, run_config
from torch import Tensor, nn

from llamafactory.config import load_config
from llamafactory.errors import ConfigError
from llamafactory.models.checkpointing import enable_checkpointing
from llamafactory.models.kernels.offload import checkpoint_on_cpu, offload_checkpoints


def gradients(*, offload: bool, lora: bool = False, device: str = "cpu") -> dict[str, Tensor]:
    """Of one batch; with attention dropout, so that recomputing must draw the same numbers again."""
    model = tiny_model(attention_dropout=0.2).to(device)
    wrapped = with_lora(model, lora_dropout=0.0) if lora else model
    enable_checkpointing(model, reentrant=True)
    if offload:
        assert offload_checkpoints(model) == 2
    wrapped.train()
    torch.manual_seed(5)
    wrapped(
        **{name: value.to(device) for name, value in padded(examples([25, 17])).items()}, use_cache=False
    ).loss.backward()
    return {name: part.grad for name, part in wrapped.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_exact(lora: bool) -> None:
    plain, moved = gradients(offload=False, lora=lora), gradients(offload=True, lora=lora)
    assert plain.keys() == moved.keys() and plain
    assert all(torch.equal(plain[name], moved[name]) for name in plain)


def test_the_input_alone_is_kept_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU's tensors would be copied to the CPU they are cloned here, and the tensor itself is then spoiled."""
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor.clone()

    hooks = torch.autograd.graph.saved_tensors_hooks
    monkeypatch.setattr("llamafactory.models.kernels.offload.save_on_cpu", lambda pin_memory: hooks(keep, lambda x: x))
    layer = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3))
    inputs = torch.ones(2, 3, requires_grad=True)
    layer(inputs * 2).sum().backward()
    wanted = [inputs.grad.clone(), *(part.grad.clone() for part in layer.parameters())]
    inputs.grad = None
    layer.zero_grad()
    hidden = inputs * 2
    output = checkpoint_on_cpu(layer, hidden)
    hidden.data.fill_(torch.nan)
    output.sum().backward()
    assert kept == [(2, 3)]
    assert all(
        torch.equal(*pair) for pair in zip(wanted, [inputs.grad, *(p.grad for p in layer.parameters())], strict=True)
    )


def test_only_layers_that_learn_are_moved() -> None:
    model = tiny_model().requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    enable_checkpointing(model, reentrant=True)
    assert offload_checkpoints(model) == 1


def test_option_in_a_run(load, model_dir: Path, tmp_path: Path) -> None:
    options = {"model_name_or_path": str(model_dir), "finetuning_type": "full"}
    rows = examples([23, 9, 30, 14], vocab=300)
    losses = []
    for name in ("plain", "moved"):
        loaded, _, _ = load(**options, use_unsloth_gc=name == "moved")
        if name == "moved":
            assert "gradient checkpointing: 2 layers, inputs in CPU memory" in loaded.notes
        trainer = make_trainer(run_config(tmp_path / name, max_steps=3), loaded.model, train=rows)
        trainer.train()
        losses.append(logged(trainer))
    assert losses[0] == losses[1] and losses[0][-1][1] < losses[0][0][1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"disable_gradient_checkpointing": True}, "use_unsloth_gc: true with disable_gradient_checkpointing: true"),
        ({"use_reentrant_gc": False}, "use_unsloth_gc: true with use_reentrant_gc: false: only reentrant checkpoints"),
        ({"use_unsloth": True}, "use_unsloth_gc: true with use_unsloth: true: unsloth moves its own"),
    ],
)
def test_what_it_cannot_stand_beside(options: dict[str, object], sentence: str) -> None:
    run = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o", "use_unsloth_gc": True}
    with pytest.raises(ConfigError, match=sentence):
        load_config({**run, **options})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_keeps_less() -> None:
    plain, moved = gradients(offload=False, device="cuda"), gradients(offload=True, device="cuda")
    assert all(torch.equal(plain[name], moved[name]) for name in plain)
    kept = []
    for offload in (False, True):
        model = tiny_model(hidden_size=256, num_hidden_layers=16).to("cuda").train()
        enable_checkpointing(model, reentrant=True)
        if offload:
            offload_checkpoints(model)
        ids = torch.randint(3, 128, (8, 128), device="cuda")
        before = torch.cuda.memory_allocated()
        output = model(input_ids=ids, use_cache=False)
        kept.append(torch.cuda.memory_allocated() - before)
        del output
    assert kept[1] < kept[0] - 15 * 8 * 128 * 256 * 4
