import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from tests.hypergpu.conftest import Cli
from tests.patience import patience


def test_it_prints_an_address_with_a_token_and_serves_until_a_signal(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"seconds": 1, "round": 1, "kind": "paused", "text": "paused"}\n')
    command = [sys.executable, "-m", "hypergpu", "view", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        assert (address.scheme, address.hostname, address.path) == ("http", "127.0.0.1", "/")
        token = address.fragment.removeprefix("token=")
        assert len(token) > 20
        request = Request(f"http://{address.netloc}/events", headers={"Authorization": f"Bearer {token}"})
        with urlopen(request, timeout=patience(10)) as reply:
            assert reply.readline() == b"event: begin\n"
            about = json.loads(reply.readline().removeprefix(b"data: "))
        assert (about["name"], about["live"]) == (tmp_path.name, False)
        process.send_signal(signal.SIGTERM)
        assert process.wait(patience(10)) == 0


@pytest.mark.parametrize("exists", [True, False])
def test_what_is_no_run_is_one_line_and_exit_code_2(exists: bool, tmp_path: Path, cli: Cli) -> None:
    done = cli("view", str(tmp_path if exists else tmp_path / "nowhere"))
    assert done.code == 2
    assert ("holds no run" if exists else "is not a directory") in done.err
