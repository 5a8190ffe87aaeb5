"""Damaged and edited run directories: a run resumes from them, or says what is wrong with them."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from hypergpu.common.errors import HyperGPUError
from hypergpu.coordinator.checkpoints import Checkpoint, Checkpoints
from hypergpu.coordinator.core.rounds.events import UpdateArrived, WorkAssigned
from hypergpu.coordinator.core.session import Pull
from hypergpu.coordinator.round_log import RoundLog, read
from tests.coordinator.test_durability import Trained
from tests.examples import examples
from tests.fuzz.mutations import changed_trees, damaged
from tests.patience import until_async
from tests.uploads import upload_of

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

FEW, MANY = 4, 1_000
SOAK = settings(max_examples=MANY, derandomize=False, suppress_health_check=list(HealthCheck))
SETTINGS: Mapping[str, Any] = {"policy": "reactive", "every": 3}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rounds: a checkpoint, and a log."""
    folder = tmp_path_factory.mktemp("template")

    async def train() -> None:
        run = Trained(folder / "run", **SETTINGS)
        await run.begin()
        await run.train(5)
        await run.closed(5)

        async def has_checkpoint() -> bool:
            return bool(Checkpoints(folder / "run" / "checkpoints").rounds())

        await until_async(has_checkpoint, "a checkpoint", every=0.01)
        run.storage.copy(folder / "run", folder / "copy")
        await run.engine.close()
        run.coordinator.run_dir.close()

    asyncio.run(train())
    return folder / "copy"


def resume(directory: Path) -> None:
    """Resume a run, and train a round more."""

    async def go_on() -> None:
        run = Trained(directory, resume=True, **SETTINGS)
        try:
            await run.begin()
            order = await run.engine.next_order(Pull("a", run.engine.run_id), 0.05)
            if isinstance(order, WorkAssigned):
                update = np.full_like(run.engine.model.values, 0.125)
                event = UpdateArrived("a", order.round, order.attempt, 4, loss=0.5, compute_seconds=0.1, norm=1.0)
                run.engine.accept_update(event, upload_of(update))
                await run.closed(order.round)
        finally:
            await run.engine.close()
            run.coordinator.run_dir.close()

    asyncio.run(go_on())


def damage(draw: DrawFn, directory: Path) -> None:
    """Damage some files, as a broken disk does."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    for _ in range(draw(st.integers(1, 3))):
        file = draw(st.sampled_from(files))
        content = file.read_bytes() if file.exists() else b""
        match draw(st.sampled_from(("damage", "damage", "remove", "empty"))):
            case "damage":
                file.write_bytes(draw(damaged([content or b"\0"])))
            case "remove":
                file.unlink(missing_ok=True)
            case "empty":
                file.write_bytes(b"")


def edit_checkpoint(draw: DrawFn, directory: Path) -> None:
    """Change the state in the newest checkpoint, with the right checksums, and remove the log after it."""
    checkpoints = Checkpoints(directory / "checkpoints")
    newest = checkpoints.read(checkpoints.rounds()[0])
    for log in checkpoints.directory.glob("*.log"):
        log.unlink()
    tree = json.loads(draw(changed_trees([newest.state])))
    checkpoints.save(Checkpoint(newest.round, newest.model, newest.server, tree, newest.metadata))


def edit_log(draw: DrawFn, directory: Path) -> None:
    """Change the record of the last round in the log, with the right checksums."""
    rounds = list(read(directory / "checkpoints").rounds)
    record, mean = rounds[-1].record(), rounds[-1].mean()
    file, number = rounds[-1].file, rounds[-1].number
    before = [(each.number, each.mean(), each.record()) for each in rounds if each.file == file][:-1]
    file.unlink()
    log = RoundLog(directory / "checkpoints")
    tree = json.loads(draw(changed_trees([record])))
    for each, step, row in (*before, (number, mean, tree)):
        if step is not None:
            log.step(each, step)
        log.close_round(each, row)
    log.close()


@st.composite
def changes(draw: DrawFn, template: Path) -> Path:
    """A copy of the run with a change."""
    directory = Path(tempfile.mkdtemp(prefix="hypergpu-fuzz-")) / "run"
    shutil.copytree(template, directory)
    draw(st.sampled_from((damage, edit_checkpoint, edit_log)))(draw, directory)
    return directory


def fuzz(how_many: settings, template: Path) -> None:
    @how_many
    @given(directory=changes(template))
    def attempt(directory: Path) -> None:
        try:
            resume(directory)
        except HyperGPUError:
            pass
        finally:
            shutil.rmtree(directory.parent)

    attempt()


def test_a_run_resumes_from_any_directory_or_says_what_is_wrong(template: Path) -> None:
    resume_whole = template.parent / "whole"
    shutil.copytree(template, resume_whole)
    resume(resume_whole)
    fuzz(examples(FEW), template)


@pytest.mark.soak
def test_a_run_resumes_from_many_directories_or_says_what_is_wrong(template: Path) -> None:
    fuzz(SOAK, template)
