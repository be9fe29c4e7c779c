"""Comparing sections: what may not stand together, and what is given without having an effect.

Orders the rules of the `rules_*` modules; `rules_parts` compares what the parts state about themselves.
Rules that need a device or a file of weights live with the recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llamafactory.config import rules_data, rules_memory, rules_methods, rules_parts, rules_use
from llamafactory.config.catalog import options
from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.sections.finetuning import ADAPTER_METHODS
from llamafactory.config.violation import Violation, show, value_of

RULES = (*rules_use.RULES, *rules_data.RULES, *rules_methods.RULES, *rules_memory.RULES, *rules_parts.RULES)

Unused = tuple[str, Callable[[RunConfig], bool], str]


def violations(config: RunConfig) -> Iterator[Violation]:
    """Yield every pair of settings that cannot be honoured together."""
    for rule in RULES:
        yield from rule(config)


def ineffective(config: RunConfig) -> list[str]:
    """Sentences about given keys that change nothing in this run."""
    found = []
    for section, is_used, reason in _UNUSED:
        keys = [key for key in config.origins if _is_unused(config, key, section)]
        if config.command in TRAIN and keys and not is_used(config):
            first = config.place(keys[0])
            found.append(f"{first}: {', '.join(keys)}: no effect {reason}")
    for key, reason in _NEVER_USED.items():
        if key in config.origins and value_of(config, key) != options()[key].default:
            found.append(f"{config.place(key)}: {key}: {show(value_of(config, key))} has no effect: {reason}")
    return found


def _is_unused(config: RunConfig, key: str, section: str) -> bool:
    option = options()[key]
    differs = value_of(config, key) != option.default
    return differs and key not in _SHARED and section in {option.section, key}


def _uses_badam(config: RunConfig, mode: str) -> bool:
    return config.badam.use_badam and config.badam.badam_mode == mode


_SHARED = {"additional_target", "create_new_adapter", "lora_target"}

_NEVER_USED = {
    "use_v1_kernels": "there is no such kernel set here",
    "export_legacy_format": "weights are always written as safetensors",
}

_UNUSED: tuple[Unused, ...] = (
    ("lora", lambda c: c.finetuning.finetuning_type in {*ADAPTER_METHODS} - {"oft"}, "unless finetuning_type is lora"),
    ("pissa_iter", lambda c: c.lora.init == "pissa", "unless pissa_init is true"),
    ("pissa_convert", lambda c: c.lora.changes_base, "unless pissa_init is true"),
    ("oft", lambda c: c.finetuning.finetuning_type == "oft", "unless finetuning_type is oft"),
    ("freeze", lambda c: c.finetuning.finetuning_type == "freeze" or c.finetuning.use_llama_pro,
     "unless finetuning_type is freeze"),
    ("preference", lambda c: c.finetuning.stage in {"dpo", "kto", "ppo"} or c.loss.use_asft_loss,
     "in this stage: they belong to dpo and kto"),
    ("ppo", lambda c: c.finetuning.stage == "ppo", "unless stage is ppo"),
    ("reward_model_adapters", lambda c: c.ppo.reward_model_type == "full", "unless reward_model_type is full"),
    ("reward_model_timeout_seconds", lambda c: c.ppo.reward_model_type == "api", "unless reward_model_type is api"),
    ("ppo_target", lambda c: c.ppo.ppo_adaptive_kl, "unless ppo_adaptive_kl is true"),
    ("galore", lambda c: c.galore.use_galore, "unless use_galore is true"),
    ("apollo", lambda c: c.apollo.use_apollo, "unless use_apollo is true"),
    ("badam", lambda c: c.badam.use_badam, "unless use_badam is true"),
    ("badam_update_ratio", lambda c: not _uses_badam(c, "layer"), "unless badam_mode is ratio"),
    ("badam_mask_mode", lambda c: not _uses_badam(c, "layer"), "unless badam_mode is ratio"),
    ("badam_start_block", lambda c: not _uses_badam(c, "ratio"), "unless badam_mode is layer"),
    ("badam_switch_mode", lambda c: not _uses_badam(c, "ratio"), "unless badam_mode is layer"),
    ("badam_verbose", lambda c: not _uses_badam(c, "ratio"), "unless badam_mode is layer"),
    ("optim_target_modules", lambda c: c.training.optim.startswith(("galore_", "apollo_")),
     "unless optim is a galore_ or apollo_ name"),
    ("optim_args", lambda c: not rules_parts.replaces_optim(c), "because the optimizer is not chosen by optim"),
    ("fp8", lambda c: c.fp8.fp8 or c.fp8.fp8_enable_fsdp_float8_all_gather, "unless fp8 is true"),
    ("swanlab", lambda c: c.swanlab.use_swanlab, "unless use_swanlab is true"),
    ("export", lambda c: False, "in this command: they belong to export"),
    ("asft_alpha", lambda c: c.loss.use_asft_loss, "unless use_asft_loss is true"),
    ("eaft_alpha", lambda c: c.loss.use_eaft_loss, "unless use_eaft_loss is true"),
    ("simpo_gamma", lambda c: c.preference.pref_loss == "simpo", "unless pref_loss is simpo"),
    ("ref_model", lambda c: c.uses_reference, "because this loss has no reference model"),
    ("precompute_ref_logps", lambda c: c.finetuning.stage in {"dpo", "kto"} and c.uses_reference,
     "because this loss compares with no reference"),
    *((key, lambda c: c.finetuning.stage == "dpo", "unless stage is dpo") for key in ("ld_alpha", "pref_bco_weight")),
    *((key, lambda c: c.finetuning.stage == "kto", "unless stage is kto")
      for key in ("kto_chosen_weight", "kto_rejected_weight")),
    ("buffer_size", lambda c: c.data.streaming, "unless streaming is true"),
    ("eval_steps", lambda c: c.training.eval_strategy == "steps", "unless eval_strategy is steps"),
    ("save_steps", lambda c: c.training.save_strategy == "steps", "unless save_strategy is steps"),
    ("max_steps", lambda c: c.training.max_steps > 0, "unless above 0: num_train_epochs decides"),
    ("num_train_epochs", lambda c: c.training.max_steps <= 0, "because max_steps decides"),
    ("warmup_steps", lambda c: c.training.lr_scheduler_type not in {"constant", "reduce_lr_on_plateau", "greedy"},
     "because this lr_scheduler_type has no warm-up"),
    ("eval_num_beams",
     lambda c: c.training.predict_with_generate or c.training.do_predict or c.command == "predict",
     "unless the run generates predictions"),
)  # fmt: skip
