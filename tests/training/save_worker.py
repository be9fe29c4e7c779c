"""A run that saves at every step. Arguments: JSON options; `limit_bytes` caps the size of any file it writes."""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

import torch
from tests.training.models import tiny_model, with_lora
from tests.training.runs import make_trainer, run_config


def main(options: dict[str, object]) -> None:
    torch.set_num_threads(1)
    folder = Path(str(options.pop("folder")))
    resume, limit = bool(options.pop("resume", False)), int(str(options.pop("limit_bytes", 0)))
    model = with_lora(tiny_model(vocab_size=4096), lora_dropout=0.1, modules_to_save=["lm_head"])
    trainer = make_trainer(run_config(folder, save_strategy="steps", save_steps=1, **options), model)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
