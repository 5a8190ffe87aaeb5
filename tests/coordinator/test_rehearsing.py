"""The process of a rehearsal beside a real run: its result, and what its failures change."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hypergpu.common.clock import ManualClock
from hypergpu.coordinator.core.adaptation import AdaptiveOrchestrator
from hypergpu.coordinator.core.adaptation.copies import packed, unpacked
from hypergpu.coordinator.core.rehearsal import HeldSetting, RehearsalRequest, RehearsalResult, Worth, WorthSource
from hypergpu.coordinator.rehearsing import MODULE, RehearsalProcess
from hypergpu.simulation.fork.state import read_state
from hypergpu.simulation.rehearsal.forecasts import Rehearsal
from hypergpu.simulation.run import simulate
from hypergpu.simulation.scenario import Scenario
from tests.patience import until


@dataclass
class Asked:
    """A rehearsal that a run has asked for, at the end of a round."""

    run_dir: Path
    orchestrator: AdaptiveOrchestrator
    request: RehearsalRequest

    def process(self, **options: Any) -> RehearsalProcess:
        return RehearsalProcess(self.run_dir, self.orchestrator, **options)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    out, found = tmp_path_factory.mktemp("rehearsing") / "run", []

    def rehearse(run_dir: Path, orchestrator: AdaptiveOrchestrator, request: RehearsalRequest) -> RehearsalResult:
        found.append(Asked(run_dir, unpacked(packed(orchestrator), ManualClock(request.at)), request))
        return RehearsalResult(request.number, 1e6, fault="not in this test")

    tree = {
        "name": "recorded",
        "learning": "model",
        "task": "digits",
        "nodes": [{"id": f"n{number}", "profile": "average", "gpu": "T4"} for number in range(4)],
        "policy": "rehearsed",
        "rounds": 45,
        "config": {"server": {"heartbeat_seconds": 0.5}},
    }
    simulate(Scenario.model_validate(tree), out, rehearse=rehearse)
    return found[0]


async def test_a_process_predicts_what_this_one_would(asked: Asked) -> None:
    steps = asked.request.present.local_steps or 0
    candidates = HeldSetting(local_steps=2 * steps), HeldSetting(local_steps=max(2, steps // 20))
    request = replace(asked.request, candidates=candidates, worth=Worth(1.0, 1e6, WorthSource.UPDATE_NORMS))
    result = await asked.process().run(request)
    assert (result.number, result.fault) == (asked.request.number, "")
    assert result.seconds > 0.1
    assert [forecast.setting for forecast in result.forecasts] == [candidates[0]]
    assert result.forecasts[0].gain > 1.1
    state = read_state(asked.run_dir, request.window, request.round)
    here = Rehearsal(state, packed(asked.orchestrator), request, request.worth).forecasts()
    assert result.forecasts == here


@pytest.mark.parametrize(
    ("module", "timeout_seconds", "fault"),
    [
        ("hypergpu.no_such_module", 60.0, "No module named"),
        (MODULE, 0.05, "it took longer than 0.05 s"),
    ],
)
async def test_a_failure_is_returned_and_warned_of_once(
    asked: Asked, module: str, timeout_seconds: float, fault: str
) -> None:
    process = asked.process(module=module, timeout_seconds=timeout_seconds)
    with capture_logs() as logs:
        for _ in range(2):
            result = await process.run(asked.request)
            assert fault in result.fault
            assert not result.forecasts
    assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_a_run_without_files_is_a_fault(asked: Asked, tmp_path: Path) -> None:
    result = await RehearsalProcess(tmp_path, asked.orchestrator).run(asked.request)
    assert result.fault


async def test_the_process_ends_at_once_when_it_is_stopped(asked: Asked) -> None:
    process = asked.process()
    running = asyncio.create_task(process.run(asked.request))
    while process.program.child is None:  # noqa: ASYNC110  (a short wait, once)
        await asyncio.sleep(0.01)
    child = process.program.child
    process.stop()
    assert (await running).fault
    assert child.returncode == -signal.SIGKILL


async def test_no_process_begins_after_the_stop(asked: Asked) -> None:
    process = asked.process()
    process.stop()
    with capture_logs():
        assert (await process.run(asked.request)).fault == "the coordinator ends"


async def test_a_stop_while_the_process_is_started_ends_it_too(asked: Asked) -> None:
    process = asked.process()
    running = asyncio.create_task(process.run(asked.request))
    await asyncio.sleep(0)  # it waits for the process
    process.stop()
    with capture_logs():
        assert "code -9" in (await running).fault


async def test_the_next_rehearsal_ends_the_one_before(asked: Asked) -> None:
    process, again = asked.process(), replace(asked.request, number=asked.request.number + 1)
    first = asyncio.create_task(process.run(asked.request))
    while process.program.child is None:  # noqa: ASYNC110  (a short wait, once)
        await asyncio.sleep(0.01)
    with capture_logs():
        second = await process.run(again)
        assert "code -9" in (await first).fault
    assert (second.number, second.fault) == (again.number, "")


async def test_an_answer_without_end_is_cut_off(asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "babbling.py").write_text("while True:\n    print('x' * 4096)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with capture_logs():
        result = await asked.process(module="babbling", timeout_seconds=20.0).run(asked.request)
    assert result.fault == "the process printed 1048576 bytes or more"


async def test_an_adaptation_that_cannot_be_copied_is_a_fault(asked: Asked) -> None:
    orchestrator = unpacked(packed(asked.orchestrator), ManualClock(0.0))
    orchestrator.register_node = lambda *_, **__: None  # type: ignore[method-assign]
    with capture_logs():
        result = await RehearsalProcess(asked.run_dir, orchestrator).run(asked.request)
    assert "pickle" in result.fault


def test_the_process_ends_with_the_coordinator_and_has_the_lowest_priority(asked: Asked) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE, str(asked.run_dir)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert child.stdin is not None
    try:
        until(lambda: os.getpriority(os.PRIO_PROCESS, child.pid) == 19, "the lowest priority")
    finally:
        child.stdin.close()  # as the kernel does for a coordinator that was killed
    assert child.wait(timeout=30) != 0
