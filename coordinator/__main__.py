"""`hypergpu coordinator`: options, and the process around a training run."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hypergpu.common.address import split_address
from hypergpu.common.command_line import Service, complain
from hypergpu.common.config import SystemConfig
from hypergpu.common.config_options import ConfigOptions
from hypergpu.common.errors import ConfigError, StorageError
from hypergpu.common.extras import require_extra
from hypergpu.common.latest import LATEST, RUNS, find_run, point_latest
from hypergpu.common.log import configure
from hypergpu.common.malloc import tune_allocator
from hypergpu.common.options import (
    ADDRESS,
    FLAG,
    SEED,
    HttpListen,
    OperatorToken,
    OperatorTokenFile,
    TlsCert,
    TlsClientCa,
    TlsKey,
    ViewerToken,
    ViewerTokenFile,
)
from hypergpu.common.roles import Role
from hypergpu.common.strategies import AdaptationPolicy
from hypergpu.common.task_names import choices
from hypergpu.common.tls import server_tls
from hypergpu.common.token import OPERATOR, VIEWER, TokenSource, find_token, server_token
from hypergpu.common.trace_settings import make_tracer
from hypergpu.coordinator import failpoints
from hypergpu.coordinator.operator_token import own_token

if TYPE_CHECKING:
    from hypergpu.coordinator.app import Options


@dataclass(frozen=True, kw_only=True)
class CoordinatorOptions(ConfigOptions):
    """Coordinate one training run: admit nodes, run rounds, write the model and the run's history to --out.

    Example: hypergpu coordinator --listen 127.0.0.1:50051 --rounds 50 --min-nodes 3 --insecure
    """

    listen: Annotated[str | None, typer.Option(metavar=ADDRESS, help="Address for gRPC; port 0 takes a free one.")] = (
        None
    )
    http_listen: HttpListen = None
    task: Annotated[str | None, typer.Option(metavar="NAME", help=f"Task to train: {choices()}.")] = None
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="Rounds to train; 0 trains until the run is stopped.")
    ] = None
    seed: Annotated[int | None, SEED] = None
    min_nodes: Annotated[int | None, typer.Option(metavar="N", help="Nodes that the first round waits for.")] = None
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Adaptation policy: {', '.join(AdaptationPolicy)}. proactive was measured no faster than reactive.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run directory; by default runs/TIME, with --resume runs/latest."),
    ] = None
    initial_model: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE|RUN", help="Model to begin with: a safetensors file, or a run directory."),
    ] = None
    resume: Annotated[
        bool,
        typer.Option("--resume", metavar=FLAG, help="Continue from the last checkpoint in --out, if there is one."),
    ] = False
    force: Annotated[
        bool,
        typer.Option(
            "--force", metavar=FLAG, help="With --resume: accept changed settings, such as another learning rate."
        ),
    ] = False
    operator_token: OperatorToken = None
    operator_token_file: OperatorTokenFile = None
    viewer_token: ViewerToken = None
    viewer_token_file: ViewerTokenFile = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    tls_client_ca: TlsClientCa = None

    def settings(self, environment: Mapping[str, str]) -> SystemConfig:
        """Return the configuration: options first, then --set, the environment, the file and the defaults.

        Raises:
            ConfigError: a value that is unknown or invalid.
        """
        options = {
            "server.listen": self.listen,
            "server.http_listen": self.http_listen,
            "training.task": self.task,
            "training.rounds": self.rounds,
            "training.seed": self.seed,
            "training.initial_model": self.initial_model,
            "training.min_nodes": self.min_nodes,
            "orchestrator.policy": self.policy,
        }
        settings = self.load(options, environment)
        for address in (settings.server.listen, settings.server.http_listen):
            split_address(address)
        return settings

    def tokens(self, environment: Mapping[str, str]) -> dict[Role, TokenSource]:
        """Return the tokens of each role that the user gave.

        Raises:
            ConfigError: the join token is missing, or a token is invalid.
        """
        viewer = find_token(self.viewer_token, self.viewer_token_file, environment, VIEWER)
        join = server_token(self.token, self.token_file, environment, optional=self.insecure)
        operator = find_token(self.operator_token, self.operator_token_file, environment, OPERATOR)
        return {Role.NODE: join, Role.VIEWER: viewer, Role.OPERATOR: operator}

    @property
    def run_directory(self) -> Path:
        """Directory of the run."""
        default = LATEST if self.resume else time.strftime("%Y-%m-%d-%H%M%S")
        return find_run(self.out or RUNS / default)


def run(options: CoordinatorOptions) -> int:
    """Run the coordinator until its run ends; return the exit code.

    Raises:
        HyperGPUError: invalid options, or a run that cannot start or continue.
    """
    tune_allocator()
    configure(options.log_level, options.log_format)
    if options.force and not options.resume:
        raise ConfigError("--force needs --resume: it lets a run continue with changed settings")
    settings = options.settings(os.environ)
    for module in settings.outlets.chosen:
        require_extra(module)
    tokens = options.tokens(os.environ)
    tls = server_tls(options.tls_cert, options.tls_key, options.tls_client_ca, insecure=options.insecure)
    out = options.run_directory
    faults = failpoints.parse(os.environ.get(failpoints.VARIABLE, ""))
    if any(tokens.values()) and not tokens[Role.OPERATOR]:
        tokens[Role.OPERATOR] = own_token(out)
    # torch takes seconds to import: errors on the command line come first.
    from hypergpu.coordinator.app import Options  # noqa: PLC0415
    from hypergpu.coordinator.storage import Storage  # noqa: PLC0415

    tracer = make_tracer("hypergpu-coordinator", os.environ)
    try:
        of_process = Options(out, tokens, tls, options.resume, options.force, Storage(faults), tracer=tracer)
        return asyncio.run(_train(settings, of_process))
    except StorageError as error:  # it may work later: code 2 would keep a container down
        complain(str(error))
        return 1
    finally:
        tracer.close()


async def _train(settings: SystemConfig, options: "Options") -> int:
    """Run coordinators one after the other until one ends without a requested restart."""
    from hypergpu.coordinator.app import Coordinator  # noqa: PLC0415
    from hypergpu.tasks import load_task  # noqa: PLC0415

    bound: dict[str, str] = {}

    def announce(address: str, http_address: str) -> None:
        bound.update(listen=address, http_listen=http_address)
        point_latest(options.out)
        print(f"metrics on {http_address}")
        print(f"listening on {address}", flush=True)

    task = load_task(settings.training.task, settings.training.seed)
    interrupted = asyncio.Event()
    with _on_signals(interrupted.set):  # also between two runs: a signal must not kill the second as it begins
        while True:
            coordinator = Coordinator(settings, task, options)
            code = await coordinator.run(announce, interrupted)
            if not coordinator.restart_asked or interrupted.is_set():
                return code
            # The next run keeps the addresses of this one, whatever ports it was given.
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


service = Service("coordinator", CoordinatorOptions, run)
main = service.main


if __name__ == "__main__":
    main()
