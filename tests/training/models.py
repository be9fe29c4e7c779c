"""Tiny random models and batches for the training tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCAB = 128
COMMON: dict[str, object] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "cohere": {},
    "phi3": {},
    "olmo2": {},
    "granite": {"logits_scaling": 3.0},
    "glm4": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "output_router_logits": True},
    "qwen3_moe": {
        "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "output_router_logits": True,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "smollm3": {},
    "ernie4_5": {},
    "falcon": {},
    "bloom": {"n_layer": 2, "n_head": 4},
}  # fmt: skip


def tiny_model(family: str = "llama", **options: object) -> PreTrainedModel:
    """A random 2-layer model in evaluation mode; `attn_implementation` may be among the options."""
    attention = options.pop("attn_implementation", None)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**COMMON, **FAMILIES.get(family, {}), **options})
    kwargs = {} if attention is None else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(config, **kwargs)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "bias" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def with_lora(model: PreTrainedModel, **options: object) -> PeftModel:
    """Random (non-zero) LoRA weights on every linear layer, so that adapter on and off differ."""
    torch.manual_seed(1)
    settings = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
    return get_peft_model(model, LoraConfig(**settings)).eval()


def examples(lengths: Sequence[int], seed: int = 1, vocab: int = VOCAB) -> list[dict[str, list[int]]]:
    """Examples whose first third is a prompt and whose labels elsewhere equal the ids."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        ids = torch.randint(3, vocab, (length,), generator=generator).tolist()
        prompt = max(1, length // 3)
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "length": length})
    return found


def pair_examples(shapes: Sequence[tuple[int, int, int]], seed: int = 1, vocab: int = VOCAB) -> list[dict[str, object]]:
    """Pairs of (prompt, chosen answer, rejected answer) tokens."""
    generator = torch.Generator().manual_seed(seed)
    found: list[dict[str, object]] = []
    for shape in shapes:
        prompt, *answers = (torch.randint(3, vocab, (length,), generator=generator).tolist() for length in shape)
        row: dict[str, object] = {"length": shape[0] + max(shape[1:])}
        for side, answer in zip(("chosen", "rejected"), answers, strict=True):
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        found.append(row)
    return found


def pairs(lengths: Sequence[int]) -> list[dict[str, object]]:
    """Pairs of this many tokens with the chosen answer: a third is the prompt, the rejected answer has as many."""
    thirds = [max(1, length // 3) for length in lengths]
    return pair_examples([(third, length - third, third) for third, length in zip(thirds, lengths, strict=True)])


def feedback_examples(shapes: Sequence[tuple[int, int]], seed: int = 1, vocab: int = VOCAB) -> list[dict[str, object]]:
    """Answers of (prompt, answer) tokens, good and bad in turn, each prompt also with the answer before its own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [[torch.randint(3, vocab, (length,), generator=generator).tolist() for length in shape] for shape in shapes]
    found: list[dict[str, object]] = []
    for index, (prompt, answer) in enumerate(drawn):
        row: dict[str, object] = {"length": len(prompt) + len(answer), "desirable": index % 2 == 0}
        for prefix, tokens in (("", answer), ("kl_", drawn[index - 1][1])):
            row |= {f"{prefix}input_ids": prompt + tokens, f"{prefix}labels": [-100] * len(prompt) + tokens}
        found.append(row)
    return found


def padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Right padding with attention mask."""
    width = max(len(row["input_ids"]) for row in rows)

    def fill(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    batch = {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100)}
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return batch | {"attention_mask": torch.tensor(mask)}


def flat(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """One row of joined examples, position ids restart, no attention mask."""
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(row["input_ids"]))]]),
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients, cleared on the model."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Over all tensors of two equally named sets."""
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)
