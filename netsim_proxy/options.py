"""Options of the proxy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import read_text
from hypergpu.common.limits import LARGEST_INTEGER
from hypergpu.common.log import LogLevel
from hypergpu.common.options import (
    ADDRESS,
    FLAG,
    SEED,
    Format,
    HttpListen,
    Insecure,
    Level,
    OperatorToken,
    OperatorTokenFile,
    TlsCert,
    TlsKey,
    ViewerToken,
    ViewerTokenFile,
)
from hypergpu.common.roles import Role
from hypergpu.common.rpc import check_node_id
from hypergpu.common.token import OPERATOR, VIEWER, TokenSource, find_token, server_token
from hypergpu.netsim_proxy.io.addresses import Address
from hypergpu.netsim_proxy.io.lateness import DEFAULT_BOUND_SECONDS
from hypergpu.netsim_proxy.io.tls import ServerTls, UpstreamTls
from hypergpu.netsim_proxy.link.access_lane import UpstreamBandwidth
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.outcomes import LossModel

_SOCKET: Final = f"{ADDRESS}|unix:PATH"
_LINKS: Final = "Choice of the link: x-node-id, else --listen ADDRESS=LINK, else the client's address, else `default`"
_NETWORK: Final = "Network"
_UPSTREAM_SECURITY: Final = "Security of the upstream"


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Take what the file sets as the defaults of the other options."""
    if file is not None and not context.resilient_parsing:
        from hypergpu.netsim_proxy.config.proxy_file import parse_config  # noqa: PLC0415 - 4 MB, only for a file

        context.default_map = parse_config(read_text(file), str(file)).options()
    return file


def _add_to_config(context: typer.Context, option: typer.CallbackParam, given: list[str] | None) -> list[str] | None:
    """Append what the command line gives for a repeatable option to what the file sets."""
    name = option.name or ""
    source = context.get_parameter_source(name)
    if given is None or source is None or source.name != "COMMANDLINE":
        return given
    return [*(context.default_map or {}).get(name, ()), *given]


@dataclass(frozen=True, kw_only=True)
class ProxyOptions:
    """Put a network between gRPC clients and a service: latency, jitter, loss and bandwidth per node.

    Example: hypergpu proxy --listen 127.0.0.1:50052 --upstream 127.0.0.1:50051 --profile poor
    """

    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            is_eager=True,
            callback=_read_config,
            metavar="FILE",
            help="YAML file of these options, see docs/netsim.md. The command line takes precedence; repeatable "
            "options add to the file.",
        ),
    ] = None
    listen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS[=LINK]",
            callback=_add_to_config,
            help="Address for gRPC clients: HOST:PORT (port 0 takes a free one) or unix:PATH. =LINK is the link of "
            "calls without x-node-id. Repeatable.",
        ),
    ] = None
    pass_through: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS[=LINK]",
            callback=_add_to_config,
            help="Address where any TCP, TLS included, is relayed unchanged. Repeatable.",
        ),
    ] = None
    upstream: Annotated[str | None, typer.Option(metavar=_SOCKET, help="Address of the service. Required.")] = None
    pass_through_upstream: Annotated[
        str | None, typer.Option(metavar=_SOCKET, help="Destination of --pass-through; by default --upstream.")
    ] = None
    control: Annotated[str, typer.Option(metavar=_SOCKET, help="Address of the control API.")] = "127.0.0.1:0"
    http_listen: HttpListen = None
    drain_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for open calls to finish after SIGTERM.")
    ] = 10.0

    client_link: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK=LINK",
            callback=_add_to_config,
            help="Link of clients by address, as in 10.1.0.0/16=rack_1. Repeatable.",
            rich_help_panel=_LINKS,
        ),
    ] = None
    server_name_link: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LINK",
            callback=_add_to_config,
            help="Link of --pass-through TLS by server name (SNI), as in *.example.com=node_1. Repeatable.",
            rich_help_panel=_LINKS,
        ),
    ] = None
    link_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file with `addresses` and `server_names` like these.",
            rich_help_panel=_LINKS,
        ),
    ] = None

    profile: Annotated[str, typer.Option(metavar="NAME", help="Default link profile.", rich_help_panel=_NETWORK)] = (
        "average"
    )
    seed: Annotated[int, SEED] = 0
    loss_model: Annotated[
        LossModel,
        typer.Option(
            help="rpc: lost calls fail. transport: lost packets delay transfers, as with TCP.",
            rich_help_panel=_NETWORK,
        ),
    ] = LossModel.RPC
    congestion_control: Annotated[
        CongestionControl,
        typer.Option(
            help="Congestion control of TCP (transport), where the profile names none.",
            rich_help_panel=_NETWORK,
        ),
    ] = CongestionControl.CUBIC
    profiles: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file of your own profiles. SIGHUP rereads all files.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    node_profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=PROFILE[@REGION]",
            callback=_add_to_config,
            help="Profile of one node's link, as in node_1=good or node_2=dsl@eu-west. Repeatable.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    region: Annotated[
        str, typer.Option(metavar="NAME", help="Default region of nodes, as in eu-west.", rich_help_panel=_NETWORK)
    ] = ""
    upstream_region: Annotated[
        str,
        typer.Option(metavar="NAME", help="Region of the upstream, for nodes with a region.", rich_help_panel=_NETWORK),
    ] = "us-east"
    upstream_down_mbit: Annotated[
        float | None,
        typer.Option(
            metavar="MBIT",
            help="Bandwidth of the upstream's access link to all nodes together, in Mbit/s; no limit by default.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    upstream_up_mbit: Annotated[
        float | None,
        typer.Option(
            metavar="MBIT", help="The same from all nodes together; no limit by default.", rich_help_panel=_NETWORK
        ),
    ] = None
    upstream_queue_bytes: Annotated[
        int,
        typer.Option(
            min=0,
            max=LARGEST_INTEGER,
            metavar="BYTES",
            help="Queue of that link in each direction; 0: 100 ms of its bandwidth.",
            rich_help_panel=_NETWORK,
        ),
    ] = 0
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of events to schedule at the start.", rich_help_panel=_NETWORK),
    ] = None
    lateness_bound_ms: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MS",
            help="Report deliveries that are later than this: the network was slower than configured.",
            rich_help_panel=_NETWORK,
        ),
    ] = DEFAULT_BOUND_SECONDS * 1000
    realtime: Annotated[
        bool,
        typer.Option(
            metavar=FLAG,
            help="Use real-time scheduling if the system allows it: punctual on a busy machine.",
            rich_help_panel=_NETWORK,
        ),
    ] = True

    operator_token: OperatorToken = None
    operator_token_file: OperatorTokenFile = None
    viewer_token: ViewerToken = None
    viewer_token_file: ViewerTokenFile = None
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CA certificate of clients (PEM): they must present a certificate.",
            rich_help_panel="Security",
        ),
    ] = None
    insecure: Insecure = False
    upstream_tls: Annotated[
        bool,
        typer.Option("--upstream-tls", metavar=FLAG, help="Use TLS.", rich_help_panel=_UPSTREAM_SECURITY),
    ] = False
    upstream_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CA certificate of the upstream (PEM); by default the system's.",
            rich_help_panel=_UPSTREAM_SECURITY,
        ),
    ] = None
    upstream_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name in the upstream's certificate; by default its host.",
            rich_help_panel=_UPSTREAM_SECURITY,
        ),
    ] = None
    upstream_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Client certificate for the upstream (PEM).", rich_help_panel=_UPSTREAM_SECURITY
        ),
    ] = None
    upstream_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Private key of --upstream-cert (PEM).", rich_help_panel=_UPSTREAM_SECURITY),
    ] = None

    log_level: Level = LogLevel.INFO
    log_format: Format = None


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """Checked options."""

    upstream: str
    pass_through_upstream: str
    listen: Sequence[tuple[str, str]]
    """Addresses and their links; an empty link means that calls name theirs."""
    pass_through: Sequence[tuple[str, str]]
    client_link: Mapping[str, str]
    """Link by network."""
    server_name_link: Mapping[str, str]
    """Link by server name."""
    server_tls: ServerTls | None
    upstream_tls: UpstreamTls | None
    upstream_bandwidth: UpstreamBandwidth
    tokens: Mapping[Role, TokenSource]
    """Tokens that callers of the control API need."""


def check(options: ProxyOptions, environment: Mapping[str, str]) -> ProxySettings:
    """Return the checked options, with the tokens of the environment.

    Raises:
        ConfigError: an option that is missing, invalid or contradicts another, or a file that cannot be read.
        InvalidInput: a link name that no node can have.
    """
    if not options.upstream:
        raise ConfigError("give the service's address: --upstream HOST:PORT or --upstream unix:PATH")
    if not options.listen and not options.pass_through:
        raise ConfigError("give at least one --listen or --pass-through address")
    server_tls, upstream_tls = _server_tls(options), _upstream_tls(options)
    return ProxySettings(
        upstream=options.upstream,
        pass_through_upstream=options.pass_through_upstream or options.upstream,
        listen=[_address_and_link(text) for text in options.listen or ()],
        pass_through=[_address_and_link(text) for text in options.pass_through or ()],
        client_link=_pairs("--client-link", options.client_link or (), "10.0.0.0/8=rack_1"),
        server_name_link=_pairs("--server-name-link", options.server_name_link or (), "train.example.com=node_1"),
        server_tls=server_tls,
        upstream_tls=upstream_tls,
        upstream_bandwidth=_upstream_bandwidth(options),
        tokens=_tokens(options, environment),
    )


def _upstream_bandwidth(options: ProxyOptions) -> UpstreamBandwidth:
    down, up = options.upstream_down_mbit, options.upstream_up_mbit
    try:
        return UpstreamBandwidth(
            math.inf if down is None else down, math.inf if up is None else up, options.upstream_queue_bytes
        )
    except ValueError as error:
        raise ConfigError(f"--upstream-down-mbit, --upstream-up-mbit, --upstream-queue-bytes: {error}") from error


def _server_tls(options: ProxyOptions) -> ServerTls | None:
    _require_together("--tls-cert", options.tls_cert, "--tls-key", options.tls_key)
    if options.tls_cert is None or options.tls_key is None:
        if options.tls_client_ca is not None:
            raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
        return None
    return ServerTls(options.tls_cert, options.tls_key, options.tls_client_ca)


def _upstream_tls(options: ProxyOptions) -> UpstreamTls | None:
    _require_together("--upstream-cert", options.upstream_cert, "--upstream-key", options.upstream_key)
    details = (options.upstream_ca, options.upstream_name, options.upstream_cert, options.upstream_key)
    if options.upstream_tls:
        return UpstreamTls(*details)
    if any(details):
        raise ConfigError("--upstream-ca, --upstream-name, --upstream-cert and --upstream-key need --upstream-tls")
    return None


def _require_together(name: str, value: Path | None, other_name: str, other: Path | None) -> None:
    if (value is None) != (other is None):
        raise ConfigError(f"{name} and {other_name} go together")


def _tokens(options: ProxyOptions, environment: Mapping[str, str]) -> Mapping[Role, TokenSource]:
    viewer = find_token(options.viewer_token, options.viewer_token_file, environment, VIEWER)
    optional = not viewer and (options.insecure or Address.parse(options.control).is_local)
    given = (options.operator_token, options.operator_token_file)
    try:
        operator = server_token(*given, environment, optional=optional, kind=OPERATOR)
    except ConfigError as error:
        raise ConfigError(f"--control {options.control} is reachable from other machines: {error}") from error
    return {Role.OPERATOR: operator, Role.VIEWER: viewer}


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
