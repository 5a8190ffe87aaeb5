import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hypergpu.common.errors import HyperGPUError
from hypergpu.processes import Process
from tests.patience import until_async


def write_program(directory: Path, source: str) -> None:
    """Write a package that `python -m hypergpu` runs where PYTHONPATH names its directory."""
    package = directory / "hypergpu"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(source)


async def start(directory: Path, source: str) -> Process:
    write_program(directory, source)
    return await Process.start("program", ["node"], {"PYTHONPATH": str(directory)}, directory)


async def test_the_address_is_known_once_it_listens_and_the_log_holds_what_it_said(tmp_path: Path) -> None:
    source = "print('hello'); print('control on 127.0.0.1:7'); print('listening on 127.0.0.1:8', flush=True); input()"
    process = await start(tmp_path, source)
    assert await process.addresses() == {"control": "127.0.0.1:7", "listening": "127.0.0.1:8"}
    assert await process.wait() != 0  # standard input is closed
    assert process.log.read_text().startswith("hello\n")


async def test_one_that_dies_before_it_listens_is_quoted(tmp_path: Path) -> None:
    process = await start(tmp_path, "raise SystemExit('port 7 is in use')")
    with pytest.raises(HyperGPUError, match="program ended before it listened: port 7 is in use"):
        await process.addresses()
    assert await process.wait() == 1


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    source = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('listening on a:1', flush=True); time.sleep(60)"
    )
    process = await start(tmp_path, source)
    await process.addresses()
    await process.end(grace_seconds=0.2)
    assert process.exit_code == -signal.SIGKILL


async def test_what_it_ended_with_is_quoted_without_the_programs_own_prefix(tmp_path: Path) -> None:
    process = await start(tmp_path, "print('hypergpu: there is no task'); raise SystemExit(2)")
    with pytest.raises(HyperGPUError, match=r"^program ended before it listened: there is no task$"):
        await process.addresses()
    await process.end()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel can do it")
async def test_none_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = tmp_path / "main.py"
    parent.write_text(
        "import asyncio, pathlib\n"
        "from hypergpu.processes import Process\n"
        "async def main():\n"
        "    proxy = ['proxy', '--listen=127.0.0.1:0', '--http-listen=127.0.0.1:0', '--upstream=127.0.0.1:1']\n"
        f"    child = await Process.start('proxy', proxy, {{}}, pathlib.Path({str(tmp_path)!r}))\n"
        "    await child.addresses()\n"
        "    print(child._child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    running = await asyncio.create_subprocess_exec(sys.executable, str(parent), stdout=asyncio.subprocess.PIPE)
    assert running.stdout is not None
    child = int(await running.stdout.readline())
    running.kill()
    await running.wait()

    async def is_gone() -> bool:
        return not _lives(child)

    await until_async(is_gone, "the end of the child")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, FileNotFoundError):
        return False
