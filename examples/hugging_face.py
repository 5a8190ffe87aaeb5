"""A model and a data set of Hugging Face: a small BERT that judges film reviews.

It needs `pip install transformers datasets`, and a network for its first use. HF_MODEL and HF_DATASET take others:
names on the hub, or directories that `save_pretrained` and `save_to_disk` have written. The set has the columns `text`
and `label`, and the splits `train` and `test`.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypergpu.tasks import Task

MODEL = "prajjwal1/bert-tiny"
DATASET = "cornell-movie-review-data/rotten_tomatoes"
TOKENS = 64


class Classifier(nn.Module):
    """A model of the hub, which gives its scores alone."""

    def __init__(self, source: str, classes: int) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification  # noqa: PLC0415  (an extra of this example alone)

        self.model: Any = AutoModelForSequenceClassification.from_pretrained(source, num_labels=classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the scores of each class."""
        scores: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return scores


def reviews() -> Task:
    """Return the task; the defaults need a network."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    source = os.environ.get("HF_MODEL", MODEL)
    sets = load(os.environ.get("HF_DATASET", DATASET))
    tokenizer = AutoTokenizer.from_pretrained(source)

    def part(split: str) -> tuple[dict[str, Tensor], Tensor]:
        texts = list(sets[split]["text"])
        found = tokenizer(texts, truncation=True, padding="max_length", max_length=TOKENS, return_tensors="pt")
        inputs = {name: found[name] for name in ("input_ids", "attention_mask")}
        return inputs, torch.tensor(list(sets[split]["label"]))

    train, test = part("train"), part("test")
    classes = int(train[1].max()) + 1
    return Task(model=lambda: Classifier(source, classes), train=train, test=test, name="reviews")


def load(source: str) -> Any:
    """Return the splits of a data set: from a directory, or from the hub."""
    import datasets  # noqa: PLC0415

    return datasets.load_from_disk(source) if Path(source).is_dir() else datasets.load_dataset(source)
