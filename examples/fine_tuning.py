"""Fine-tuning: a small transformer that knows the digits 0 to 4 learns 5 to 9, with most of its layers frozen.

Frozen parameters are not sent, so a round moves a fraction of the model. Every node loads them from the same file, and
the coordinator refuses a node whose model differs. `python -m examples.fine_tuning` makes the file, in a second.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hypergpu.tasks import Task
from hypergpu.tasks.digits import Images, read_images

PRETRAINED = Path("pretrained.safetensors")
WIDTH = 32


class Transformer(nn.Module):
    """Reads an image as a sequence of its eight rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(8, WIDTH))
        layers = [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of five classes."""
        x = self.rows(images.reshape(-1, 8, 8)) + self.places
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


def half(part: Images, first: int) -> Images:
    """Return the images of five digits, with classes that begin at 0."""
    images, classes = part
    chosen = (classes >= first) & (classes < first + 5)
    return images[chosen], classes[chosen] - first


def pretrain(file: Path = PRETRAINED, epochs: int = 20) -> float:
    """Train on the digits 0 to 4, write the model to a file, and return its accuracy on those that are held out."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    (images, classes), (held_out, held_out_classes) = (half(part, 0) for part in read_images())
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
            optimizer.step()
    save_file(model.state_dict(), file)
    return float((model(held_out).argmax(1) == held_out_classes).float().mean())


def fine_tuned() -> nn.Module:
    """Return the pretrained model with a new head; only that and the last layer are trained."""
    if not PRETRAINED.is_file():
        raise FileNotFoundError(f"there is no {PRETRAINED} here: make it with `python -m examples.fine_tuning`")
    model = Transformer()
    model.load_state_dict(load_file(PRETRAINED))
    model.requires_grad_(False)
    model.layers[-1].requires_grad_(True)
    model.head = nn.Linear(WIDTH, 5)
    return model


def digits() -> Task:
    """90 % or more of the held-out digits 5 to 9 within 25 rounds."""
    train, test = (half(part, 5) for part in read_images())
    return Task(model=fine_tuned, train=train, test=test, target=0.9, name="fine_tuning")


if __name__ == "__main__":
    print(f"{PRETRAINED}: {pretrain():.1%} of held-out digits 0 to 4")
