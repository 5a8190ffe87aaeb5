import re
import signal
import subprocess
import sys
from urllib.request import urlopen

import pytest

from hypergpu.node.__main__ import main


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
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--insecure", *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("hypergpu: ")]
    assert (printed.out, len(lines)) == ("", 1)
    assert told in lines[0]
    assert "Traceback" not in printed.err


def test_plaintext_on_one_machine_must_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "hypergpu: give --tls-ca FILE to use TLS, or --insecure for plaintext\n"


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
