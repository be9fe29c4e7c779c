"""Speed and memory of supervised fine-tuning: llamafactory, transformers.Trainer and TRL's SFTTrainer in one run.

    python benchmarks/sft_throughput.py

All three train the same weights on the same tokens with the same batch size, optimizer and schedule, in float32 without
gradient checkpointing, each in a process of its own, in turn. Tokens are real tokens: padding does not count. The time
is that of the training call of the base class which all three share, so start-up and tokenization are left out; with
one thread it is processor time, which other programs on the machine disturb little. Memory is the highest size of
the process in memory. The loss is computed after training by one function for all.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path

from workload import SHAPES, Clock, run_contender, write_data, write_model

CONTENDERS = ("llamafactory", "trainer", "trl")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CHOICES = ["full", "lora"]


def options(work: Path, method: str, batch_size: int) -> dict[str, object]:
    """The run as llamafactory reads it; the peers get the same numbers."""
    return {
        "model_name_or_path": str(work / "model"), "stage": "sft", "do_train": True, "finetuning_type": method,
        "lora_rank": 16, "dataset": "bench", "dataset_dir": str(work / "data"), "template": "chatml",
        "cutoff_len": 1024, "output_dir": str(work / "out"), "overwrite_output_dir": True,
        "per_device_train_batch_size": batch_size, "num_train_epochs": 1.0, "learning_rate": 1e-3,
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "disable_gradient_checkpointing": True,
        "seed": 1,
    }  # fmt: skip


def tokenize(work: Path) -> None:
    """Tokenize the rows once, for the peers and for the loss at the end."""
    from llamafactory.config import load_config
    from llamafactory.data.pipeline import build_datasets
    from llamafactory.models.tokenizer import load_tokenizer
    from llamafactory.rendering.renderer import build_renderer

    config = load_config(options(work, "full", 1), command="train")
    bundle = load_tokenizer(config)
    train = build_datasets(config, build_renderer(bundle.tokenizer, config.template)).train
    examples = [{"input_ids": list(row["input_ids"]), "labels": list(row["labels"])} for row in train]
    (work / "tokens.json").write_text(json.dumps(examples), encoding="utf-8")


def read_tokens(work: Path) -> list[dict[str, list[int]]]:
    return json.loads((work / "tokens.json").read_text(encoding="utf-8"))


def train_llamafactory(work: Path, method: str, batch_size: int) -> None:
    from llamafactory import run_train

    run_train(options(work, method, batch_size))


def peer_arguments(work: Path, batch_size: int) -> dict[str, object]:
    return {
        "output_dir": str(work / "out"), "per_device_train_batch_size": batch_size, "num_train_epochs": 1.0,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "report_to": "none",
        "seed": 1, "gradient_checkpointing": False,
    }  # fmt: skip


def train_trainer(work: Path, method: str, batch_size: int) -> None:
    import peft
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    model = AutoModelForCausalLM.from_pretrained(work / "model")
    if method == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**peer_arguments(work, batch_size)),
        train_dataset=Dataset.from_list(read_tokens(work)),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.train()
    trainer.save_model()


def train_trl(work: Path, method: str, batch_size: int) -> None:
    import peft
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model"),
        args=SFTConfig(**peer_arguments(work, batch_size), max_length=1024, bf16=False),  # its default is bf16
        train_dataset=Dataset.from_list(read_tokens(work)),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        peft_config=peft.LoraConfig(**LORA) if method == "lora" else None,
    )
    trainer.train()
    trainer.save_model()


def loss_of(work: Path, method: str, num_examples: int = 32) -> float:
    """Mean loss per answer token of the trained model on the longest training examples, by the stock loss."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    source = work / "model" if method == "lora" else work / "out"
    model = AutoModelForCausalLM.from_pretrained(source)
    if method == "lora":
        model = peft.PeftModel.from_pretrained(model, work / "out")
    model.eval()
    examples = sorted(read_tokens(work), key=lambda row: -len(row["input_ids"]))[:num_examples]
    total, count = 0.0, 0
    with torch.no_grad():
        for row in examples:
            labels = torch.tensor([row["labels"]])
            num_tokens = int((labels[:, 1:] != -100).sum())
            loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
            total, count = total + float(loss) * num_tokens, count + num_tokens
    return total / count


def child(arguments: argparse.Namespace) -> None:
    """Train once as one contender and write what was measured."""
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    work = Path(arguments.child_folder)
    train = {"llamafactory": train_llamafactory, "trainer": train_trainer, "trl": train_trl}[arguments.child]
    clock = Clock(transformers.Trainer, "train")
    train(work, arguments.method, arguments.batch_size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"seconds": clock.seconds, "peak_mib": peak, "loss": loss_of(work, arguments.method)}
    (work / "result.json").write_text(json.dumps(result), encoding="utf-8")


def measure(contender: str, work: Path, method: str, arguments: argparse.Namespace) -> dict[str, float]:
    sizes = ("--batch-size", str(arguments.batch_size), "--threads", str(arguments.threads))
    return run_contender(__file__, contender, work, "--method", method, *sizes)


def compare(shape: str, method: str, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        num_parameters = write_model(work / "model", SHAPES[shape])
        write_data(work / "data", arguments.examples)
        tokenize(work)
        tokens = read_tokens(work)
        num_tokens = sum(len(row["input_ids"]) for row in tokens)
        num_learned = sum(label != -100 for row in tokens for label in row["labels"])
        results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.contenders}
        for _ in range(arguments.repeats):
            for name in arguments.contenders:
                results[name].append(measure(name, work, method, arguments))
    print(
        f"\n### {shape} model ({num_parameters / 1e6:.0f}M parameters), {method}\n\n{len(tokens)} examples, "
        f"{num_tokens} tokens, {num_learned / num_tokens:.0%} learned, batch size {arguments.batch_size}, "
        f"{arguments.threads} thread(s), median of {arguments.repeats}\n"
    )
    report(results, num_tokens)


def report(results: dict[str, list[dict[str, float]]], num_tokens: int) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    peers = [value for name, value in medians.items() if name != "llamafactory"]
    print("| contender | tokens/s | processor s (all runs) | peak MiB | loss after |\n| --- | --- | --- | --- | --- |")
    for name, value in medians.items():
        runs = ", ".join(f"{run['seconds']:.1f}" for run in results[name])
        speed = num_tokens / value["seconds"]
        print(f"| {name} | {speed:.0f} | {runs} | {value['peak_mib']:.0f} | {value['loss']:.4f} |")
    if "llamafactory" in medians and peers:
        ours = medians["llamafactory"]
        speed = min(peer["seconds"] for peer in peers) / ours["seconds"]
        memory = ours["peak_mib"] / min(peer["peak_mib"] for peer in peers)
        print(f"\nAgainst the best peer: {speed:.2f}x the speed, {memory:.2f}x the peak memory.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--methods", nargs="+", choices=CHOICES, default=CHOICES)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--method", choices=CHOICES, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--child-folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    for shape in arguments.shapes:
        for method in arguments.methods:
            compare(shape, method, arguments)


if __name__ == "__main__":
    main()
