"""`hypergpu coordinator`: reads the command line and the environment, and starts a run."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hypergpu.common.address import split_address
from hypergpu.common.config import SystemConfig, load_config
from hypergpu.common.errors import ConfigError, HyperGPUError
from hypergpu.common.extras import missing_extra
from hypergpu.common.latest import LATEST, RUNS, find_run, point_latest
from hypergpu.common.log import configure
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.task_names import choices
from hypergpu.common.text import one_line
from hypergpu.common.tls import Tls, read_pair
from hypergpu.common.token import find_token

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def coordinate(
    *,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For gRPC; port 0 takes a free one.")] = "",
    http_listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For /metrics, /healthz and /sd.")] = "",
    task: Annotated[str, typer.Option(metavar="NAME", help=f"{choices()}.")] = "",
    rounds: Annotated[int | None, typer.Option(help="Rounds to train.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seeds parameters, shards and the order of samples.")] = None,
    min_nodes: Annotated[int | None, typer.Option(help="Nodes to wait for before the first round.")] = None,
    policy: Annotated[str, typer.Option(help="none, conservative, aggressive, reactive or proactive.")] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "--run-dir", help="Where the run is written; by default runs/TIME, with --resume runs/latest."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, if any.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Resume also with another learning rate or the like; not another task.")
    ] = False,
    token: Annotated[
        str | None, typer.Option(help="The join token that nodes must show; also from HYPERGPU_TOKEN.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds it; also from HYPERGPU_TOKEN_FILE.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plaintext: for a loopback or a trusted net.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON also on a terminal.")] = False,
) -> None:
    """Coordinate one training run: nodes join, rounds are run, the model and its history are written to --out.

    Example: hypergpu coordinator --listen 127.0.0.1:50051 --rounds 50 --min-nodes 3 --insecure
    """
    given = {
        "server.listen": listen or None,
        "server.http_listen": http_listen or None,
        "training.task": task or None,
        "training.rounds": rounds,
        "training.seed": seed,
        "training.min_nodes": min_nodes,
        "orchestrator.policy": policy or None,
    }
    try:
        tune_allocator()
        configure(log_level, log_json or None)
        if force and not resume:
            raise ConfigError("--force goes with --resume: it allows a run to go on with other settings")
        settings = load_config(SystemConfig, config, os.environ, setting or [], given)
        secret = _token(token, token_file, insecure)
        tls = _tls(tls_cert, tls_key, insecure)
        for address in (settings.server.listen, settings.server.http_listen):
            split_address(address)
        new = RUNS / time.strftime("%Y-%m-%d-%H%M%S")
        out = find_run(out or (RUNS / LATEST if resume else new))
        code = asyncio.run(_run(settings, out, secret, tls, resume=resume, force=force))
    except (HyperGPUError, ValueError) as error:
        print(f"coordinator: {one_line(str(error))}", file=sys.stderr)
        raise typer.Exit(2) from None
    except ImportError as error:
        print(f"coordinator: {one_line(str(missing_extra(error) or error))}", file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


async def _run(settings: SystemConfig, out: Path, token: str, tls: Tls | None, *, resume: bool, force: bool) -> int:
    # torch takes seconds to import: a mistake on the command line is told before.
    from hypergpu.coordinator.app import Coordinator, Options  # noqa: PLC0415
    from hypergpu.tasks import load_task  # noqa: PLC0415

    bound: dict[str, str] = {}

    def announce(address: str, http_address: str) -> None:
        bound.update(listen=address, http_listen=http_address)
        point_latest(out)
        print(f"metrics on {http_address}")
        print(f"listening on {address}", flush=True)

    task = load_task(settings.training.task, settings.training.seed)
    options = Options(out, token, tls, resume, force)
    interrupted = asyncio.Event()
    with _on_signals(interrupted.set):  # also between two runs: the second must not be killed as it begins
        while True:
            coordinator = Coordinator(settings, task, options)
            code = await coordinator.run(announce, interrupted)
            if not coordinator.restart_asked or interrupted.is_set():
                return code
            # The next run answers where this one did, whatever port it was given.
            server = settings.server.model_copy(update=bound)
            settings, options = settings.model_copy(update={"server": server}), replace(options, resume=False)


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _token(option: str | None, file: Path | None, insecure: bool) -> str:
    token = find_token(option, file, os.environ)
    if not token and not insecure:
        raise ConfigError("nodes need a join token: --token-file FILE, or HYPERGPU_TOKEN; --insecure goes without")
    return token


def _tls(certificate: Path | None, key: Path | None, insecure: bool) -> Tls | None:
    if insecure:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS needs --tls-cert and --tls-key; --insecure goes without, on a net that you trust")
    read_pair(certificate, key)  # a mistake in them is told now, not when torch is imported
    return Tls(certificate=certificate, key=key)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the service; the arguments default to those of the process."""
    app(arguments, prog_name="hypergpu coordinator")


if __name__ == "__main__":
    main()
