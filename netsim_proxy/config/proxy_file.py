"""The proxy's options as a file: one typed tree. What it leaves out has the default of the command line.

upstream: coordinator:50051
listen: ["0.0.0.0:50052", "0.0.0.0:50061=node_1"]
network: {profile: average, seed: 7, scenario: scenario.yaml}
links: {addresses: {10.1.0.0/16: rack_1}}
tls: {certificate: proxy.crt, key: proxy.key, client_ca: ca.crt}
control: {address: "unix:/run/netsim-control.sock"}
http_listen: 0.0.0.0:9100
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hypergpu.common.config import ConfigSection
from hypergpu.common.config.whole import Integer
from hypergpu.common.log import LogFormat, LogLevel
from hypergpu.netsim_proxy.config.yaml_text import parse_yaml
from hypergpu.netsim_proxy.link.outcomes import LossModel

Amount = Annotated[float, Field(ge=0)]


class NetworkSection(ConfigSection):
    """Properties of the links."""

    profile: str | None = None
    """The profile of links that are not set otherwise."""
    seed: Integer | None = None
    """The same seed gives the same network."""
    loss_model: LossModel | None = None
    """rpc: calls fail; transport: transfers take as long as TCP needs."""
    profiles: Path | None = None
    """A file of your own profiles."""
    node_profiles: dict[str, str] | None = None
    """PROFILE or PROFILE@REGION by node."""
    region: str | None = None
    """Regions of nodes, by id."""
    upstream_region: str | None = None
    """Region of the upstream, for nodes with a region."""
    scenario: Path | None = None
    """A file of events to schedule at the start."""


class LinksSection(ConfigSection):
    """The link of connections that do not name theirs."""

    addresses: dict[str, str] | None = None
    """The link by the client's address or network."""
    server_names: dict[str, str] | None = None
    """The link by the server's name in TLS that is passed through."""
    map: Path | None = None
    """A file with both, which is read again on SIGHUP."""


class TlsSection(ConfigSection):
    """Certificates that clients see and have to show."""

    certificate: Path
    """The certificate for clients."""
    key: Path
    """Its key."""
    client_ca: Path | None = None
    """The authority of client certificates: clients must show one."""


class UpstreamTlsSection(ConfigSection):
    """TLS to the upstream."""

    ca: Path | None = None
    """The authority of its certificate, if the system does not know it."""
    name: str | None = None
    """The name in its certificate, if it is not the upstream's host."""
    certificate: Path | None = None
    """The certificate for an upstream that wants one."""
    key: Path | None = None
    """Its key."""


class ControlSection(ConfigSection):
    """The control API."""

    address: str | None = None
    """HOST:PORT or unix:PATH."""
    token_file: Path | None = None
    """A file that holds what its callers must show."""
    insecure: bool | None = None
    """Whether it may be reached from elsewhere without a token."""


class ProxyConfig(ConfigSection):
    """The whole file."""

    upstream: str | None = None
    """The service: HOST:PORT or unix:PATH."""
    listen: tuple[str, ...] = ()
    """Addresses for gRPC clients: ADDRESS or ADDRESS=LINK."""
    pass_through: tuple[str, ...] = ()
    """Addresses where any TCP passes through unchanged: ADDRESS or ADDRESS=LINK."""
    pass_through_upstream: str | None = None
    """Target of passed-through TCP, if not the upstream."""
    network: NetworkSection = NetworkSection()
    """Properties of the links."""
    links: LinksSection = LinksSection()
    """The link of connections that do not name theirs."""
    tls: TlsSection | None = None
    """TLS for clients."""
    upstream_tls: UpstreamTlsSection | None = None
    """TLS to the upstream; an empty section is TLS with the system's authorities."""
    control: ControlSection = ControlSection()
    """The control API."""
    http_listen: str | None = None
    """HOST:PORT of /metrics, /healthz and /readyz."""
    lateness_bound_ms: Amount | None = None
    """Later deliveries are reported."""
    realtime: bool | None = None
    """Whether to ask for real-time scheduling."""
    log_level: LogLevel | None = None
    """Lowest level that is logged."""
    log_format: LogFormat | None = None
    """Format of the log; by default text on a terminal and JSON elsewhere."""
    drain_seconds: Amount | None = None
    """How long open calls may go on after SIGTERM."""

    def options(self) -> dict[str, Any]:
        """Return the values by their names on the command line; without those that are left out."""
        network, links, control = self.network, self.links, self.control
        tls, upstream_tls = self.tls, self.upstream_tls or UpstreamTlsSection()
        named = {
            "upstream": self.upstream,
            "listen": list(self.listen) or None,
            "pass_through": list(self.pass_through) or None,
            "pass_through_upstream": self.pass_through_upstream,
            "profile": network.profile,
            "seed": network.seed,
            "loss_model": network.loss_model,
            "profiles": network.profiles,
            "node_profile": _pairs(network.node_profiles),
            "region": network.region,
            "upstream_region": network.upstream_region,
            "scenario": network.scenario,
            "client_link": _pairs(links.addresses),
            "server_name_link": _pairs(links.server_names),
            "link_map": links.map,
            "tls_cert": tls.certificate if tls else None,
            "tls_key": tls.key if tls else None,
            "tls_client_ca": tls.client_ca if tls else None,
            "upstream_tls": True if self.upstream_tls is not None else None,
            "upstream_ca": upstream_tls.ca,
            "upstream_name": upstream_tls.name,
            "upstream_cert": upstream_tls.certificate,
            "upstream_key": upstream_tls.key,
            "control": control.address,
            "token_file": control.token_file,
            "insecure": control.insecure,
            "http_listen": self.http_listen,
            "lateness_bound_ms": self.lateness_bound_ms,
            "realtime": self.realtime,
            "log_level": self.log_level,
            "log_format": self.log_format,
            "drain_seconds": self.drain_seconds,
        }
        return {name: value for name, value in named.items() if value is not None}


def parse_config(text: str, name: str) -> ProxyConfig:
    """Return the configuration that a YAML text holds.

    Raises:
        ConfigError: it does not hold; file, line, key and what was expected are named.
    """
    return parse_yaml(ProxyConfig, text, name)


def _pairs(mapping: dict[str, str] | None) -> list[str] | None:
    return [f"{key}={value}" for key, value in mapping.items()] if mapping else None
