import re
import signal
import subprocess
import sys
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from hypergpu.node.__main__ import app


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gpu", "T5"], "unknown GPU 'T5'"),
        (["--node-id", "a b"], "node id 'a b': take 1 to 64 letters"),
        (["--node-id", ""], "node id ''"),
        (["--coordinator", "nowhere"], "HOST:PORT"),
        (["--set", "node.grace_second=3"], "did you mean 'grace_seconds'"),
        (["--set", "node.grace_seconds=-3"], "greater than or equal to 0"),
        (["--task", "not_there:task"], "no module 'not_there'"),
        (["--token-file", "/not/there"], "cannot read"),
        (["--http-listen", "256.1.1.1:0"], "cannot listen"),
        (["--log-level", "loud"], "loud"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["--insecure", *arguments])
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("node: ")]
    assert told in line
    assert "Traceback" not in result.output


def test_plain_text_must_be_asked_for() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "--insecure" in result.output


@pytest.mark.e2e
def test_a_node_without_a_coordinator_says_so_serves_metrics_and_ends_on_sigterm() -> None:
    command = [
        sys.executable,
        "-m",
        "hypergpu",
        "node",
        "--coordinator",
        "127.0.0.1:1",
        "--node-id",
        "n7",
        "--insecure",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        listening = re.fullmatch(r"listening on (\S+)\n", process.stdout.readline())
        assert listening is not None
        assert "127.0.0.1:1" in process.stderr.readline()
        assert "cannot be reached" in process.stderr.readline()
        with urlopen(f"http://{listening[1]}/healthz") as reply:
            assert reply.status == 200
        with urlopen(f"http://{listening[1]}/metrics") as reply:
            assert b'hypergpu_node_info{gpu="cpu",node_id="n7",simulated="false"} 1.0' in reply.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
