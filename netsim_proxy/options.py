"""The proxy's command line.

argparse and not Typer: this process is measured by its memory, and Typer brings pydantic along, 9 MB of it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from common.errors import ConfigError
from common.rpc import split_address
from netsim_proxy.lateness import DEFAULT_BOUND_SECONDS
from netsim_proxy.link.outcomes import LossModel
from netsim_proxy.server import ServerTls, UpstreamTls

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        print(f"netsim_proxy: {message} (--help lists all options)", file=sys.stderr)
        raise SystemExit(2)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """What the command line and the environment ask for.

    Adds `server_tls` and `upstream_tls` (None where there is none), and reads the token from its file.

    Raises:
        ConfigError: options that do not go together, or a file that cannot be read.
        SystemExit: usage errors (2) and --help (0).
    """
    options = _parser().parse_args(arguments)
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key go together")
    options.server_tls = ServerTls(options.tls_cert, options.tls_key) if options.tls_cert else None
    if (options.upstream_ca or options.upstream_name) and not options.upstream_tls:
        raise ConfigError("--upstream-ca and --upstream-name need --upstream-tls")
    options.upstream_tls = UpstreamTls(options.upstream_ca, options.upstream_name) if options.upstream_tls else None
    token_file = options.token_file or environment.get("HYPERGPU_TOKEN_FILE")
    options.token = (
        options.token
        or environment.get("HYPERGPU_TOKEN")
        or environment.get("NETSIM_TOKEN")
        or (read_text(Path(token_file)).strip() if token_file else None)
    )
    host, _ = split_address(options.control)
    if host not in _LOOPBACK and not options.token and not options.insecure_control:
        raise ConfigError(
            f"--control {options.control} can be reached from elsewhere: give a --token, or --insecure-control"
        )
    return options


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m netsim_proxy",
        description="Puts a network between gRPC clients and a service: latency, jitter, loss and bandwidth per node.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
    )
    add = parser.add_argument
    add("--listen", required=True, metavar="HOST:PORT", help="where clients connect; port 0 takes a free one")
    add("--upstream", required=True, metavar="HOST:PORT", help="the gRPC service")

    add = parser.add_argument_group("the network").add_argument
    add("--profile", default="average", metavar="NAME", help="of links that are not set otherwise")
    add("--seed", default=0, type=int, metavar="N", help="the same seed gives the same network")
    add(
        "--loss-model",
        default=LossModel.RPC,
        type=LossModel,
        choices=list(LossModel),
        help="rpc: calls fail; transport: transfers take as long as TCP needs",
    )
    add("--profiles", type=Path, metavar="FILE", help="YAML of your own profiles")
    add(
        "--node-profile",
        action="append",
        default=[],
        metavar="NODE=PROFILE[@REGION]",
        help="of one node, as in node_1=good or node_2=dsl@eu-west; may be repeated",
    )
    add("--region", default="", metavar="REGION", help="where nodes are, as in eu-west")
    add("--upstream-region", default="us-east", metavar="REGION", help="where the upstream is, for nodes with a region")
    add("--scenario", type=Path, metavar="FILE", help="YAML of events to schedule at the start")

    add = parser.add_argument_group("control and metrics").add_argument
    add("--control", default="127.0.0.1:0", metavar="HOST:PORT", help="the control API")
    add("--token", metavar="TOKEN", help="what its callers must show; also from HYPERGPU_TOKEN")
    add("--token-file", type=Path, metavar="FILE", help="a file that holds it; also from HYPERGPU_TOKEN_FILE")
    add("--insecure-control", action="store_true", help="let it be reached from elsewhere without a token")
    add("--metrics", metavar="HOST:PORT", help="Prometheus; 127.0.0.1:0 takes a free port")
    add(
        "--lateness-bound-ms",
        default=DEFAULT_BOUND_SECONDS * 1000,
        type=float,
        metavar="MS",
        help="later deliveries are reported: the run was slower than configured",
    )
    add(
        "--realtime",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="real-time scheduling where the system allows it: punctual also on a busy machine",
    )
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="of standard error")
    add("--drain-seconds", default=10.0, type=float, metavar="S", help="how long open calls may go on after SIGTERM")

    add = parser.add_argument_group("TLS").add_argument
    add("--tls-cert", type=Path, metavar="FILE", help="certificate for clients: then they must use TLS")
    add("--tls-key", type=Path, metavar="FILE", help="its key")
    add("--upstream-tls", action="store_true", help="use TLS to the upstream")
    add("--upstream-ca", type=Path, metavar="FILE", help="authority of its certificate, if the system has it not")
    add("--upstream-name", metavar="NAME", help="the name in it, if not the upstream's host")
    return parser
