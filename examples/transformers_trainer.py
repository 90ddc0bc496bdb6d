"""Prune with the Trainer of Hugging Face transformers, a loop that is not yours to edit, and go on from a checkpoint.

pip install 'hyperprune[transformers]'
python examples/transformers_trainer.py
"""

import tempfile

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from hyperprune import Budget, HyperModel, Search, export_pruned, hyperize

images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))  # your data set
examples = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def train(folder: str, steps: int, resume: bool = False) -> tuple[HyperModel, Search]:
    """Train, searching for eight steps; the same call in a new process goes on from the last checkpoint."""
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=10)
    model = ResNetForImageClassification(config)  # your trained network: from_pretrained(...)
    hyper = hyperize(model, {"pixel_values": images[:1]})
    optimizer = torch.optim.AdamW(hyper.parameter_groups(lr=1e-3, weight_decay=0.01))
    search = Search(hyper, optimizer, Budget(macs=0.5), steps=8).attach(optimizer)  # saved with the optimiser
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=8,
        remove_unused_columns=False,  # Trainer reads their names from forward, and a hyperized network takes any
        save_steps=4,
        report_to=[],
    )
    trainer = Trainer(hyper, arguments, train_dataset=examples, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=resume)
    return hyper, search


with tempfile.TemporaryDirectory() as runs:
    _, search = train(runs, steps=4)
    print(search.progress())
    hyper, search = train(runs, steps=12, resume=True)
    print(search.progress())

slim = export_pruned(hyper)  # a ResNetForImageClassification again
