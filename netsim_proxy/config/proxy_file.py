"""Options of the proxy in a file, as a typed tree. Omitted values have the defaults of the command line.

upstream: coordinator:50051
listen: ["0.0.0.0:50052", "0.0.0.0:50061=node_1"]
network: {profile: average, seed: 7, upstream_bandwidth: {down_mbit: 500, up_mbit: 100}, scenario: scenario.yaml}
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
from hypergpu.netsim_proxy.config.scenario import UpstreamBandwidthSection
from hypergpu.netsim_proxy.config.yaml_text import parse_yaml
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.outcomes import LossModel

Amount = Annotated[float, Field(ge=0)]


class NetworkSection(ConfigSection):
    """Properties of the links."""

    profile: str | None = None
    """Default link profile."""
    seed: Integer | None = None
    """Seed of the network's random draws."""
    loss_model: LossModel | None = None
    """Effect of packet loss. rpc: calls fail; transport: TCP repairs the loss, which takes time."""
    congestion_control: CongestionControl | None = None
    """Congestion control of TCP, where the profile names none: cubic, reno or bbr."""
    profiles: Path | None = None
    """File of custom profiles."""
    node_profiles: dict[str, str] | None = None
    """Profile of each node, as PROFILE or PROFILE@REGION."""
    region: str | None = None
    """Regions of nodes, by id."""
    upstream_region: str | None = None
    """Region of the upstream, for nodes with a region."""
    upstream_bandwidth: UpstreamBandwidthSection | None = None
    """Bandwidth of the upstream's access link, which all nodes share; no limit by default."""
    scenario: Path | None = None
    """Scenario file with links and events."""


class LinksSection(ConfigSection):
    """Links of connections that do not name theirs."""

    addresses: dict[str, str] | None = None
    """Link by the client's address or network."""
    server_names: dict[str, str] | None = None
    """Link by the server name of passed-through TLS."""
    map: Path | None = None
    """File with both mappings, which is reread on SIGHUP."""


class TlsSection(ConfigSection):
    """TLS for clients."""

    certificate: Path
    """Certificate for clients (PEM)."""
    key: Path
    """Private key of the certificate (PEM)."""
    client_ca: Path | None = None
    """CA of client certificates (PEM); with it, clients must present one."""


class UpstreamTlsSection(ConfigSection):
    """TLS to the upstream."""

    ca: Path | None = None
    """CA certificate of the upstream (PEM); by default the system's authorities."""
    name: str | None = None
    """Name in the upstream's certificate, if it differs from the host."""
    certificate: Path | None = None
    """Client certificate for the upstream (PEM)."""
    key: Path | None = None
    """Private key of the certificate (PEM)."""


class ControlSection(ConfigSection):
    """Control API."""

    address: str | None = None
    """Address: HOST:PORT or unix:PATH."""
    operator_token_file: Path | None = None
    """File with the tokens of operators."""
    viewer_token_file: Path | None = None
    """File with the tokens of viewers."""
    insecure: bool | None = None
    """True if other machines may call it without a token."""


class ProxyConfig(ConfigSection):
    """Content of a proxy file."""

    upstream: str | None = None
    """Address of the service: HOST:PORT or unix:PATH."""
    listen: tuple[str, ...] = ()
    """Addresses for gRPC clients: ADDRESS or ADDRESS=LINK."""
    pass_through: tuple[str, ...] = ()
    """Addresses where any TCP passes through unchanged: ADDRESS or ADDRESS=LINK."""
    pass_through_upstream: str | None = None
    """Target of passed-through TCP, if not the upstream."""
    network: NetworkSection = NetworkSection()
    """Properties of the links."""
    links: LinksSection = LinksSection()
    """Links of connections that do not name theirs."""
    tls: TlsSection | None = None
    """TLS for clients."""
    upstream_tls: UpstreamTlsSection | None = None
    """TLS to the upstream; an empty section is TLS with the system's authorities."""
    control: ControlSection = ControlSection()
    """Control API."""
    http_listen: str | None = None
    """Address of /metrics, /healthz and /readyz: HOST:PORT."""
    lateness_bound_ms: Amount | None = None
    """Lateness in milliseconds above which deliveries are logged."""
    realtime: bool | None = None
    """True to request real-time scheduling."""
    log_level: LogLevel | None = None
    """Lowest level of logged messages."""
    log_format: LogFormat | None = None
    """Format of the log; by default text on a terminal, JSON elsewhere."""
    drain_seconds: Amount | None = None
    """Longest time that open calls may continue after SIGTERM."""

    def options(self) -> dict[str, Any]:
        """Return the given values by their names on the command line."""
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
            "congestion_control": network.congestion_control,
            "profiles": network.profiles,
            "node_profile": _pairs(network.node_profiles),
            "region": network.region,
            "upstream_region": network.upstream_region,
            **_access_options(network.upstream_bandwidth),
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
            **control.model_dump(exclude={"address"}),
            "http_listen": self.http_listen,
            "lateness_bound_ms": self.lateness_bound_ms,
            "realtime": self.realtime,
            "log_level": self.log_level,
            "log_format": self.log_format,
            "drain_seconds": self.drain_seconds,
        }
        return {name: value for name, value in named.items() if value is not None}


def parse_config(text: str, name: str) -> ProxyConfig:
    """Return the configuration in a YAML text.

    Raises:
        ConfigError: it does not hold; file, line, key and what was expected are named.
    """
    return parse_yaml(ProxyConfig, text, name)


def _access_options(section: UpstreamBandwidthSection | None) -> dict[str, Any]:
    values = section.model_dump() if section is not None else {}
    return {f"upstream_{name}": value for name, value in values.items()}


def _pairs(mapping: dict[str, str] | None) -> list[str] | None:
    return [f"{key}={value}" for key, value in mapping.items()] if mapping else None
