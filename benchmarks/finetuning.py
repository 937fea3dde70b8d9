"""Fine-tunes a model by transformers' own Trainer, with the settings of a run of +experiment=glue: a second opinion.

python -m benchmarks.finetuning --model <folder or hub id> --data <folder or hub id> --task mrpc --epochs 5
"""

from __future__ import annotations

import argparse
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from omegaconf import OmegaConf
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from kdnas.base.config import CONF

TASKS = CONF / "task"
BATCH = 32


def metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Returns metrics of held-out rows in per cent; logits of one column are a regression's."""
    if logits.shape[1] == 1:
        values = logits[:, 0]
        found = {"pearson": pearsonr(labels, values)[0], "spearman": spearmanr(labels, values)[0]}
    else:
        chosen = logits.argmax(1)
        found = {"accuracy": accuracy_score(labels, chosen), "f1": f1_score(labels, chosen, average="macro")}
        if logits.shape[1] == 2:
            found["f1"] = f1_score(labels, chosen)
    return {name: 100 * float(value) for name, value in found.items()}


def finetune(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Fine-tunes once; returns the metrics of the epoch with the best deciding metric."""
    task: Any = OmegaConf.load(TASKS / f"{args.task}.yaml")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = load_dataset(args.data, args.task)

    def tokenize(rows: dict[str, Any]) -> Any:
        texts = [list(rows[column]) for column in task.columns]
        return tokenizer(*texts, truncation=True, max_length=args.max_length)

    train = data["train"].shuffle(seed=seed).select(range(min(args.rows, len(data["train"]))))
    held_out = data[task.validation]
    train, held_out = (rows.map(tokenize, batched=True) for rows in (train, held_out))
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=task.num_labels, dtype="float32")
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            learning_rate=args.learning_rate,
            num_train_epochs=args.epochs,
            warmup_steps=0.06,  # a share of all steps, where it is below 1
            weight_decay=0.01,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
        )
        seen: list[dict[str, float]] = []

        def compute(rows: Any) -> dict[str, float]:
            seen.append(metrics(np.asarray(rows.label_ids), np.asarray(rows.predictions)))
            return seen[-1]

        Trainer(
            model,
            settings,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            compute_metrics=compute,
        ).train()
    return max(seen, key=lambda found: found[task.metric])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", required=True, choices=sorted(path.stem for path in TASKS.glob("*.yaml")))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    runs = [finetune(args, seed) for seed in args.seeds]
    for name in runs[0]:
        values = [run[name] for run in runs]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        print(f"{args.task} {name}: {mean(values):.1f}{spread} ({', '.join(f'{value:.1f}' for value in values)})")


if __name__ == "__main__":
    main()
