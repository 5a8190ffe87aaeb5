"""deploy/serve, which runs a service in its container: what its end means to `restart: on-failure`."""

import signal
import subprocess
from pathlib import Path

import pytest

SERVE = Path(__file__).parents[2] / "deploy" / "serve"


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (1, 1), (2, 0), (3, 3), (130, 130)])
def test_only_bad_input_is_not_started_again(code: int, seen: int) -> None:
    done = subprocess.run([SERVE, "sh", "-c", f"exit {code}"], capture_output=True, text=True, check=False)
    assert done.returncode == seen
    assert ("not started again" in done.stderr) is (code == 2)


def test_a_program_that_was_killed_is_started_again() -> None:
    done = subprocess.run([SERVE, "sh", "-c", "kill -KILL $$"], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_which_ends_in_its_own_time(number: int) -> None:
    program = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    with subprocess.Popen([SERVE, "sh", "-c", program], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert served.stdout.readline() == "ready\n"
        served.send_signal(number)
        assert served.stdout.readline() == "asked\n"
        assert served.wait() == 7
