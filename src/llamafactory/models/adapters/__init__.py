"""Finetuning types: which parameters of a loaded model learn. One file per `finetuning_type`.

Every file defines `apply(model, config, *, trainable, vocab_grown) -> model`. It decides `requires_grad` and may wrap
the model; formats are cast by the loader. vocab_grown: the embeddings got new rows in this run.
"""

from __future__ import annotations

from llamafactory.parts import Family

ADAPTERS = Family("finetuning_type", "llamafactory.models.adapters", ("apply",))
