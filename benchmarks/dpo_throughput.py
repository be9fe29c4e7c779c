"""Speed and memory of DPO with LoRA: llamafactory and TRL's DPOTrainer in one run.

    python benchmarks/dpo_throughput.py

Both train the same model and the same fresh adapter on the same tokens in the same order, with the same batch size,
optimizer and schedule, in float32 without gradient checkpointing, against the model without its adapter, each in a
process of its own, in turn. Prompts are four times as long as answers. Time is processor time of the training call; the
reference's log-probabilities, which llamafactory may compute before that, are added to it. The loss is computed after
training by one function for both.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
from pathlib import Path

from workload import SHAPES, Clock, run_contender, sentences, write_model

CONTENDERS = ("llamafactory", "trl")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
BETA = 0.1


def write_pairs(folder: Path, num_pairs: int, *, prompt_sentences: int = 12) -> None:
    """Write pairs whose prompt is four times as long as each answer, and the registry that names them."""
    rng, pool = random.Random(0), sentences()
    draw = lambda count: " ".join(rng.choice(pool) for _ in range(max(1, count)))  # noqa: E731
    rows = []
    for _ in range(num_pairs):
        size = round(prompt_sentences * rng.uniform(0.5, 1.5) / 4)
        rows.append({"instruction": draw(4 * size), "chosen": draw(size), "rejected": draw(size)})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(rows), encoding="utf-8")
    entry = {"file_name": "bench.json", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}}
    (folder / "dataset_info.json").write_text(json.dumps({"bench": entry}), encoding="utf-8")


def options(work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """The run as llamafactory reads it; TRL gets the same numbers."""
    return {
        "model_name_or_path": str(work / "model"), "stage": "dpo", "do_train": True, "finetuning_type": "lora",
        "adapter_name_or_path": str(work / "adapter"), "disable_shuffling": True, "template": "chatml",
        "dataset": "bench", "dataset_dir": str(work / "data"),
        "cutoff_len": 2048, "output_dir": str(work / "out"), "overwrite_output_dir": True, "pref_beta": BETA,
        "per_device_train_batch_size": arguments.batch_size, "num_train_epochs": arguments.epochs,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True,
        "disable_gradient_checkpointing": True, "seed": 1,
    }  # fmt: skip


def write_adapter(work: Path) -> None:
    """Write the fresh adapter that both contenders train."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "model")
    peft.get_peft_model(model, peft.LoraConfig(**LORA)).save_pretrained(work / "adapter")


def tokenize(work: Path, arguments: argparse.Namespace) -> None:
    """Tokenize the rows once, for TRL and for the loss at the end."""
    from llamafactory.config import load_config
    from llamafactory.data.pipeline import build_datasets
    from llamafactory.models.tokenizer import load_tokenizer
    from llamafactory.rendering.renderer import build_renderer

    config = load_config(options(work, arguments), command="train")
    bundle = load_tokenizer(config)
    pairs = []
    for row in build_datasets(config, build_renderer(bundle.tokenizer, config.template)).train:
        found = {}
        for side in ("chosen", "rejected"):
            learnt = [place for place, label in enumerate(row[f"{side}_labels"]) if label != -100]
            found["prompt_ids"] = row[f"{side}_input_ids"][: learnt[0]]
            found[f"{side}_ids"] = row[f"{side}_input_ids"][learnt[0] : learnt[-1] + 1]
        pairs.append(found)
    (work / "tokens.json").write_text(json.dumps(pairs), encoding="utf-8")


def read_tokens(work: Path) -> list[dict[str, list[int]]]:
    return json.loads((work / "tokens.json").read_text(encoding="utf-8"))


def train_llamafactory(work: Path, arguments: argparse.Namespace) -> float:
    import transformers

    from llamafactory import run_train
    from llamafactory.training.stored_reference import ReferenceStore

    clocks = [Clock(ReferenceStore, "add_to"), Clock(transformers.Trainer, "train")]
    run_train(options(work, arguments) | {"overwrite_cache": True})
    return sum(clock.seconds for clock in clocks)


def train_trl(work: Path, arguments: argparse.Namespace) -> float:
    import peft
    import transformers
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        """Takes rows that are tokens already."""

        def _prepare_dataset(self, dataset: Dataset, *args: object, **kwargs: object) -> Dataset:
            return dataset

    config = DPOConfig(
        output_dir=str(work / "out"), per_device_train_batch_size=arguments.batch_size, beta=BETA, max_length=None,
        num_train_epochs=arguments.epochs, learning_rate=1e-3, logging_steps=1, save_strategy="no", use_cpu=True,
        report_to="none", seed=1, gradient_checkpointing=False, bf16=False, lr_scheduler_type="linear",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    rows = [{"prompt": "", "chosen": "", "rejected": ""} | row for row in read_tokens(work)]
    base = AutoModelForCausalLM.from_pretrained(work / "model")
    clock = Clock(transformers.Trainer, "train")
    trainer = Tokenized(
        model=peft.PeftModel.from_pretrained(base, work / "adapter", is_trainable=True),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
    )
    trainer.train()
    trainer.save_model()
    return clock.seconds


def loss_of(work: Path) -> float:
    """Mean DPO loss of the trained adapter over the first pairs, one pair at a time, by the plain formula."""
    import peft
    import torch
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "model")
    model = peft.PeftModel.from_pretrained(model, work / "out").eval()

    def logp(row: dict[str, list[int]], side: str) -> torch.Tensor:
        ids, start = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]]), len(row["prompt_ids"])
        logps = model(input_ids=ids).logits[:, start - 1 : -1].log_softmax(-1)
        return logps.gather(-1, ids[:, start:, None]).sum()

    losses = []
    with torch.no_grad():
        for row in read_tokens(work)[:16]:
            policy = logp(row, "chosen") - logp(row, "rejected")
            with model.disable_adapter():
                reference = logp(row, "chosen") - logp(row, "rejected")
            losses.append(-logsigmoid(BETA * (policy - reference)).item())
    return statistics.mean(losses)


def child(arguments: argparse.Namespace) -> None:
    """Train once as one contender and write what was measured."""
    import torch

    torch.set_num_threads(arguments.threads)
    work = Path(arguments.child_folder)
    runtime = {"llamafactory": train_llamafactory, "trl": train_trl}[arguments.child](work, arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"seconds": runtime, "peak_mib": peak, "loss": loss_of(work)}
    (work / "result.json").write_text(json.dumps(result), encoding="utf-8")


def measure(contender: str, work: Path, arguments: argparse.Namespace) -> dict[str, float]:
    sizes = ("--epochs", str(arguments.epochs), "--batch-size", str(arguments.batch_size))
    return run_contender(__file__, contender, work, *sizes, "--threads", str(arguments.threads))


def report(results: dict[str, list[dict[str, float]]], num_pairs: float) -> None:
    print("| contender | pairs/s | processor s (all runs) | peak MiB | loss after |\n| --- | --- | --- | --- | --- |")
    medians = {name: statistics.median(run["seconds"] for run in runs) for name, runs in results.items()}
    for name, runs in results.items():
        seconds = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        peak = statistics.median(run["peak_mib"] for run in runs)
        print(f"| {name} | {num_pairs / medians[name]:.2f} | {seconds} | {peak:.0f} | {runs[-1]['loss']:.4f} |")
    print(f"\nAgainst TRL: {medians['trl'] / medians['llamafactory']:.2f}x the speed.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", choices=list(SHAPES), default="30m")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--child-folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        num_parameters = write_model(work / "model", SHAPES[arguments.shape])
        write_adapter(work)
        write_pairs(work / "data", arguments.pairs)
        tokenize(work, arguments)
        tokens = read_tokens(work)
        prompt = statistics.mean(len(row["prompt_ids"]) for row in tokens)
        answer = statistics.mean(len(row[f"{side}_ids"]) for row in tokens for side in ("chosen", "rejected"))
        results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.repeats):
            for name in CONTENDERS:
                results[name].append(measure(name, work, arguments))
    print(
        f"\n{arguments.shape} model ({num_parameters / 1e6:.0f}M parameters), {arguments.pairs} pairs, "
        f"{arguments.epochs:g} epoch(s), prompt {prompt:.0f} and answer {answer:.0f} tokens on average, batch size "
        f"{arguments.batch_size}, {arguments.threads} thread(s), median of {arguments.repeats}\n"
    )
    report(results, arguments.pairs * arguments.epochs)


if __name__ == "__main__":
    main()
