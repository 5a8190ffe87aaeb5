"""Link maps from YAML; `hypergpu.netsim_proxy.config.link_map` describes their content."""

from collections.abc import Mapping

from pydantic import Field

from hypergpu.common.config import ConfigSection
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.netsim_proxy.config.link_map import LinkMap
from hypergpu.netsim_proxy.config.yaml_text import parse_yaml


class LinkMapFile(ConfigSection):
    """Content of a link map file: links for connections that do not name theirs."""

    addresses: dict[str, str] = Field(default_factory=dict)
    """Link by the client's address or network, as in 10.1.0.0/16: rack_1; the longest prefix counts."""
    server_names: dict[str, str] = Field(default_factory=dict)
    """Link by the server name of passed-through TLS, as in "*.example.com": node_1."""


def parse_link_map(text: str, name: str, addresses: Mapping[str, str], server_names: Mapping[str, str]) -> LinkMap:
    """Return the link map in a YAML text; entries of the two mappings take precedence.

    Raises:
        ConfigError: it does not hold; file, line, key and what was expected are named.
    """
    file = parse_yaml(LinkMapFile, text, name)
    try:
        return LinkMap.of({**file.addresses, **addresses}, {**file.server_names, **server_names})
    except InvalidInput as error:
        raise ConfigError(f"{name}: {error}") from error
