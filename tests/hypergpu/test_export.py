"""`hypergpu export`, and the documented lines that load a model in plain PyTorch."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hypergpu.common.config import SystemConfig
from hypergpu.common.metric import ACCURACY
from hypergpu.coordinator.app import Coordinator, Options
from hypergpu.coordinator.checkpoints import read_tensors, write_tensors
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import Pull, Register
from hypergpu.tasks import load_task
from tests.uploads import upload_of

Cli = Callable[..., Any]
ROOT = Path(__file__).parents[2]

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.hidden = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.hidden.weight
        self.head = nn.Linear(8, 3)
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x):
        return self.head(self.tied(self.hidden(self.norm(self.base(x[:, self.order]))).relu()))

def make_model():
    return Net()
"""
TASK = """
import torch
from hypergpu.tasks import Task
from mynet import make_model

draw = torch.Generator().manual_seed(0)
x = torch.randn(200, 8, generator=draw)
y = torch.randint(0, 3, (200,), generator=draw)

def part(net):
    net.hidden = torch.compile(net.hidden, backend="eager")
    return net

def of(model):
    return Task(model=model, train=(x[:80], y[:80]), test=(x[80:], y[80:]))

plain = of(make_model)
whole = of(lambda: torch.compile(make_model(), backend="eager"))
partly = of(lambda: part(make_model()))
"""


async def train(out: Path, task: str, rounds: int = 4, keep_going: bool = False) -> Coordinator:
    """Train without a network, by steps into the blue: every round evaluates differently."""
    training = {"task": task, "rounds": rounds + keep_going, "local_steps": 2, "batch_size": 4}
    config = SystemConfig.model_validate(
        {"training": training, "orchestrator": {"policy": "none"}, "checkpoint": {"every": 1}}
    )
    coordinator = Coordinator(config, load_task(task), Options(out))
    engine = coordinator.engine
    coordinator.run_dir.begin(config)
    engine.ask(Register("a", "1", 0, {}, engine.identity))
    draws = np.random.default_rng(1)
    for _ in range(rounds):
        order = await engine.next_order(Pull("a", engine.run_id), 5.0)
        assert isinstance(order, ev.WorkAssigned)
        update = draws.normal(scale=0.5, size=engine.model.values.shape).astype(np.float32)
        update[engine.model._parameter_count :] = 0.125
        event = ev.UpdateArrived("a", order.round, order.attempt, 4, loss=0.5, compute_seconds=0.1)
        engine.accept_update(event, upload_of(update))
    if not keep_going:
        await engine.finished.wait()
    else:
        await engine.next_order(Pull("a", engine.run_id), 5.0)
    await engine.close()
    return coordinator


def prepare(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "mynet.py").write_text(MODULE)
    (path / "mytask.py").write_text(TASK)
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(path)
    for name in ("mynet", "mytask"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path, monkeypatch)
    return tmp_path


def documented_lines() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    lines = str(blocks[0])
    assert len([line for line in lines.splitlines() if line]) == 3
    assert "runs/first/best.safetensors" in lines
    return lines


def accuracies_in_a_fresh_process(place: Path, *files: str) -> list[float]:
    """Run the documented lines for each file, and nothing of ours before them."""
    loads = [documented_lines().replace("runs/first/best.safetensors", file) for file in files]
    program = "\n".join(
        [
            "from mynet import make_model",
            "models = []",
            *(f"{lines}\nmodels.append(model.eval())" for lines in loads),
            "import json, sys",
            "assert not {'coordinator', 'tasks', 'hypergpu', 'common'} & set(sys.modules)",
            "import mytask",
            "x, y = mytask.plain.test",
            "print(json.dumps([(model(x).argmax(1) == y).float().mean().item() for model in models]))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[float] = json.loads(done.stdout)
    return found


async def test_the_documented_lines_give_the_accuracy_of_the_summary(place: Path) -> None:
    """One process loads what all three have saved: it takes seconds to start."""
    names = ("plain", "whole", "partly")
    for name in names:
        await train(place / "runs" / name, f"mytask:{name}")
    files = [f"runs/{name}/{which}.safetensors" for name in names for which in ("model", "best")]
    accuracy_of = dict(zip(files, accuracies_in_a_fresh_process(place, *files), strict=True))
    for name in names:
        run = place / "runs" / name
        accuracies = [row["accuracy"] for row in rows(run)]
        assert len(set(accuracies)) > 1
        summary = json.loads((run / "summary.json").read_text())
        assert accuracy_of[f"runs/{name}/model.safetensors"] == pytest.approx(summary["final_accuracy"], abs=1e-6)
        assert accuracy_of[f"runs/{name}/best.safetensors"] == pytest.approx(max(accuracies), abs=1e-6)
        with safe_open(run / "best.safetensors", "pt") as file:
            metadata = file.metadata()
        best = rows(run)[int(metadata["round"]) - 1]
        assert best["accuracy"] == float(metadata["accuracy"]) == max(accuracies)
        assert best["loss"] == float(metadata["loss"])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(path, monkeypatch)
        asyncio.run(train(path / "run", "mytask:plain", rounds=5))
    return path / "run"


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(template, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_the_best_model_is_exported_by_default(cli: Cli, run: Path) -> None:
    result = cli("export", str(run), "--out", str(run / "out.safetensors"), "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    best = max(rows(run), key=lambda row: row["accuracy"])
    assert told == {
        "path": str(run / "out.safetensors"),
        "round": best["round"],
        "loss": best["loss"],
        "accuracy": best["accuracy"],
        "metric": ACCURACY.model_dump(),
        "tensors": 14,
        "parameters": 8 * 8 + 8 + 4 * 8 + 1 + 2 * (8 * 8 + 8) + 3 * 8 + 3 + 8,
        "skipped": [],
    }
    with safe_open(run / "out.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "task": "mytask:plain",
            "round": str(best["round"]),
            "loss": repr(best["loss"]),
            "accuracy": repr(best["accuracy"]),
            "metric": ACCURACY.model_dump_json(),
        }


@pytest.mark.parametrize(("which", "number"), [("last", 5), ("5", 5), ("4", 4), ("3", 3)])
def test_a_round_is_exported_by_number(cli: Cli, run: Path, which: str, number: int) -> None:
    out = run / "out.safetensors"
    result = cli("export", str(run), "--round", which, "--out", str(out))
    assert result.code == 0, result.err
    row = rows(run)[number - 1]
    measured = f"loss {row['loss']:.4g}, accuracy {100 * row['accuracy']:.1f} %"
    assert result.out == f"{out}: the model of round {number} ({measured})\n"
    kept = load_file(run / f"checkpoints/round-{number:06d}.safetensors")
    exported = load_file(out)
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[name], kept[name]) for name in kept)


async def test_a_run_that_goes_on_exports_its_newest_checkpoint(cli: Cli, place: Path) -> None:
    await train(place / "run", "mytask:plain", rounds=3, keep_going=True)
    assert not (place / "run/model.safetensors").exists()
    result = cli("export", str(place / "run"), "--round", "last", "--out", str(place / "m.safetensors"), "--json")
    assert json.loads(result.out)["round"] == 3


def test_the_newest_model_wins_whichever_file_holds_it(cli: Cli, run: Path) -> None:
    """As of a run that ended, was resumed, and goes on."""
    tensors, metadata = read_tensors(run / "model.safetensors")
    for number, newest in ((1, 5), (6, 6), (11, 11)):
        write_tensors(run / "model.safetensors", tensors, {**metadata, "round": str(number)})
        result = cli("export", str(run), "--round", "last", "--out", str(run / "out.safetensors"), "--json")
        assert json.loads(result.out)["round"] == newest


def test_a_damaged_newest_model_is_told_and_the_one_before_it_taken(cli: Cli, run: Path) -> None:
    for name in ("model.safetensors", "checkpoints/round-000005.safetensors"):
        content = bytearray((run / name).read_bytes())
        content[-1] ^= 1
        (run / name).write_bytes(content)
    result = cli("export", str(run), "--round", "last", "--out", str(run / "out.safetensors"))
    assert result.code == 0
    assert "the model of round 4" in result.out
    assert "model.safetensors does not match its checksum" in result.err
    assert "round-000005.safetensors does not match its checksum" in result.err


def test_a_damaged_best_model_is_refused(cli: Cli, run: Path) -> None:
    (run / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes()[:-1])
    result = cli("export", str(run), "--out", str(run / "out.safetensors"))
    assert result.code == 2
    assert "best.safetensors cannot be read" in result.err
    assert "It keeps the models of rounds 5, 4, 3, --round best, --round last" in result.err
    assert not (run / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--round", "1"],
            "keeps no model of round 1. It keeps the models of rounds 5, 4, 3, --round best, --round last",
        ),
        (["--round", "0"], "--round '0': give best, last or the number of a round"),
        (["--round", "-1"], "give best, last or the number of a round"),
        (["--round", "²"], "give best, last or the number of a round"),
        (["--round", "9" * 19], "give best, last or the number of a round"),
        (["--round", "newest"], "--round 'newest': give best, last or the number of a round"),
        (["--out", "model.pt"], "cannot export to model.pt: choose a file name that ends in .safetensors"),
        (["--out", "no/such/place.safetensors"], "cannot write no/such/place.safetensors: "),
    ],
)
def test_what_cannot_be_exported_is_one_line(cli: Cli, run: Path, arguments: list[str], told: str) -> None:
    result = cli("export", str(run), "--out", "out.safetensors", *arguments)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert result.err.count("\n") == 1


def test_a_directory_without_a_run_is_one_line(cli: Cli, tmp_path: Path) -> None:
    result = cli("export", str(tmp_path / "nothing"), "--out", "m.safetensors")
    assert (result.code, "is not a directory" in result.err) == (2, True)
    result = cli("export", str(tmp_path), "--out", "m.safetensors")
    assert (result.code, "It keeps no model" in result.err) == (2, True)


def test_a_model_of_somebody_else_is_refused(cli: Cli, run: Path) -> None:
    save_file({"w": torch.ones(1)}, run / "best.safetensors")
    result = cli("export", str(run), "--out", "m.safetensors")
    assert (result.code, "best.safetensors has no checksum" in result.err) == (2, True)
    for number in ("", "1" * 19, "one"):
        write_tensors(run / "best.safetensors", {"w": torch.ones(1)}, {"round": number})
        result = cli("export", str(run), "--out", "m.safetensors")
        assert (result.code, "does not say which round it is of" in result.err) == (2, True)


def test_a_file_that_is_there_is_replaced_only_by_a_whole_one(cli: Cli, run: Path) -> None:
    out = run / "out.safetensors"
    out.write_text("mine")
    assert cli("export", str(run), "--round", "1", "--out", str(out)).code == 2
    assert out.read_text() == "mine"
    assert cli("export", str(run), "--out", str(out)).code == 0
    assert load_file(out)


def test_the_command_says_how_it_is_used(cli: Cli) -> None:
    result = cli("export", "--help")
    assert result.code == 0
    assert "Example: hypergpu export" in result.out
