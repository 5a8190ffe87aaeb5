"""The proxy's command line.

argparse and not Typer: this process is measured by its memory, and Typer brings pydantic along, 9 MB of it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import read_text
from hypergpu.common.rpc import check_node_id
from hypergpu.common.text import one_line
from hypergpu.common.token import find_token
from hypergpu.netsim_proxy.io.addresses import Address
from hypergpu.netsim_proxy.io.lateness import DEFAULT_BOUND_SECONDS
from hypergpu.netsim_proxy.io.tls import ServerTls, UpstreamTls
from hypergpu.netsim_proxy.link.outcomes import LossModel

_LARGEST_SEED: Final = (1 << 63) - 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and exit code 2."""
        print(f"netsim_proxy: {one_line(message)} (--help lists all options)", file=sys.stderr)
        raise SystemExit(2)


def _seed(text: str) -> int:
    if not -_LARGEST_SEED <= (seed := int(text)) <= _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"a seed is within ±{_LARGEST_SEED}")
    return seed


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """What the command line and the environment ask for.

    Adds `server_tls` and `upstream_tls` (None where there is none), and reads the token from its file.

    Raises:
        ConfigError: options that do not go together, or a file that cannot be read.
        SystemExit: usage errors (2) and --help (0).
    """
    parser = _parser()
    config = parser.parse_known_args(arguments)[0].config
    if config is not None:
        from hypergpu.netsim_proxy.config.proxy_file import parse_config  # noqa: PLC0415 - pydantic, 9 MB, only where there is a file

        parser.set_defaults(**parse_config(read_text(config), str(config)).options())
    options = parser.parse_args(arguments)
    if not options.upstream:
        raise ConfigError("give the service's address: --upstream HOST:PORT or --upstream unix:PATH")
    if not options.listen and not options.pass_through:
        raise ConfigError("give at least one --listen or --pass-through address")
    for name, value, needed in (
        ("--tls-cert and --tls-key", options.tls_cert, options.tls_key),
        ("--upstream-cert and --upstream-key", options.upstream_cert, options.upstream_key),
    ):
        if (value is None) != (needed is None):
            raise ConfigError(f"{name} go together")
    if options.tls_client_ca and not options.tls_cert:
        raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
    options.server_tls = (
        ServerTls(options.tls_cert, options.tls_key, options.tls_client_ca) if options.tls_cert else None
    )
    of_upstream = (options.upstream_ca, options.upstream_name, options.upstream_cert, options.upstream_key)
    if any(of_upstream) and not options.upstream_tls:
        raise ConfigError("--upstream-ca, --upstream-name, --upstream-cert and --upstream-key need --upstream-tls")
    options.upstream_tls = UpstreamTls(*of_upstream) if options.upstream_tls else None
    options.listen = [_address_and_link(text) for text in options.listen]
    options.pass_through = [_address_and_link(text) for text in options.pass_through]
    options.client_link = _pairs("--client-link", options.client_link, "10.0.0.0/8=rack_1")
    options.server_name_link = _pairs("--server-name-link", options.server_name_link, "train.example.com=node_1")
    options.token = find_token(options.token, options.token_file, environment) or None
    if not Address.parse(options.control).is_local and not options.token and not options.insecure_control:
        raise ConfigError(
            f"--control {options.control} can be reached from elsewhere: give a --token, or --insecure-control"
        )
    return options


def _address_and_link(text: str) -> tuple[str, str]:
    address, _, link = text.partition("=")
    Address.parse(address)
    return address, check_node_id(link) if link else ""


def _pairs(option: str, texts: Sequence[str], example: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, _, link = text.partition("=")
        if not key or not link:
            raise ConfigError(f"{option} {text!r}: expected a key and a link, as in {example}")
        pairs[key] = check_node_id(link)
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hypergpu proxy",
        description="Puts a network between gRPC clients and a service: latency, jitter, loss and bandwidth per node.",
        epilog="Example: hypergpu proxy --listen 127.0.0.1:50052 --upstream 127.0.0.1:50051 --profile poor",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
    )
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML of what these options say, in sections: see docs/netsim.md; options go before it, and what may be "
        "repeated is added to it",
    )
    add(
        "--listen",
        action="append",
        default=[],
        metavar="ADDRESS[=LINK]",
        help="where gRPC clients connect: HOST:PORT (port 0 takes a free one) or unix:PATH; with =LINK, the link of "
        "their calls that name none; may be repeated",
    )
    add(
        "--pass-through",
        action="append",
        default=[],
        metavar="ADDRESS[=LINK]",
        help="where any TCP is passed through as it is, TLS too; may be repeated",
    )
    add("--upstream", metavar="ADDRESS", help="the service: HOST:PORT or unix:PATH")
    add("--pass-through-upstream", metavar="ADDRESS", help="where passed-through TCP goes; --upstream if not given")

    add = parser.add_argument_group(
        "which link",
        "A call is on the link of its x-node-id; else of the port (--listen ADDRESS=LINK); else of the client's "
        "address; else on the link `default`. Passed-through TLS has the server's name in place of the x-node-id.",
    ).add_argument
    add(
        "--client-link",
        action="append",
        default=[],
        metavar="NETWORK=LINK",
        help="of clients with such addresses, as in 10.1.0.0/16=rack_1; may be repeated",
    )
    add(
        "--server-name-link",
        action="append",
        default=[],
        metavar="NAME=LINK",
        help="of passed-through TLS to that server (SNI), as in *.example.com=node_1; may be repeated",
    )
    add("--link-map", type=Path, metavar="FILE", help="YAML with `addresses` and `server_names` like these")

    add = parser.add_argument_group("the network").add_argument
    add("--profile", default="average", metavar="NAME", help="of links that are not set otherwise")
    add("--seed", default=0, type=_seed, metavar="N", help="the same seed gives the same network")
    add(
        "--loss-model",
        default=LossModel.RPC,
        type=LossModel,
        choices=list(LossModel),
        help="rpc: calls fail; transport: transfers take as long as TCP needs",
    )
    add("--profiles", type=Path, metavar="FILE", help="YAML of your own profiles; SIGHUP rereads all files")
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
    add("--control", default="127.0.0.1:0", metavar="ADDRESS", help="the control API: HOST:PORT or unix:PATH")
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
    add("--tls-client-ca", type=Path, metavar="FILE", help="authority of client certificates: clients must show one")
    add("--upstream-tls", action="store_true", help="use TLS to the upstream")
    add("--upstream-ca", type=Path, metavar="FILE", help="authority of its certificate, if the system has it not")
    add("--upstream-name", metavar="NAME", help="the name in it, if not the upstream's host")
    add("--upstream-cert", type=Path, metavar="FILE", help="certificate for an upstream that wants one")
    add("--upstream-key", type=Path, metavar="FILE", help="its key")
    return parser
