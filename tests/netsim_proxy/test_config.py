"""The proxy's options as a file."""

from dataclasses import fields
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.limits import LARGEST_INTEGER
from hypergpu.common.log import LogFormat, LogLevel
from hypergpu.common.roles import Role
from hypergpu.netsim_proxy.api.profile_registry import ProfileRegistry
from hypergpu.netsim_proxy.config.proxy_file import parse_config
from hypergpu.netsim_proxy.io.tls import ServerTls, UpstreamTls
from hypergpu.netsim_proxy.link.access_lane import UpstreamBandwidth
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.outcomes import LossModel
from hypergpu.netsim_proxy.options import ProxyOptions, check

WHOLE = """
upstream: u:1
listen: ["127.0.0.1:2", "127.0.0.1:3=a"]
pass_through: ["unix:/t.sock=b"]
pass_through_upstream: u:4
network:
  profile: poor
  seed: 7
  loss_model: transport
  congestion_control: bbr
  profiles: p.yaml
  node_profiles: {n: good@eu-west}
  region: eu-west
  upstream_region: us-west
  upstream_bandwidth: {down_mbit: 500, up_mbit: 100, queue_bytes: 1000000}
  scenario: s.yaml
links: {addresses: {10.0.0.0/8: c}, server_names: {x.y: d}, map: m.yaml}
tls: {certificate: c, key: k, client_ca: a}
upstream_tls: {ca: ua, name: un, certificate: uc, key: uk}
control: {address: "0.0.0.0:5", operator_token_file: t, viewer_token_file: t, insecure: true}
http_listen: 127.0.0.1:6
lateness_bound_ms: 3
realtime: false
log_level: error
log_format: text
drain_seconds: 0
"""


def parse(*arguments: str) -> ProxyOptions:
    app = typer.Typer()
    app.command()(ProxyOptions)
    options = get_command(app).main(arguments, standalone_mode=False)
    assert isinstance(options, ProxyOptions)
    return options


def test_every_option_may_stand_in_the_file() -> None:
    given = parse_config(WHOLE, "c.yaml").options()
    on_the_command_line = {field.name for field in fields(ProxyOptions)} - {"config", "operator_token", "viewer_token"}
    assert given.keys() == on_the_command_line  # a token is no part of a file that is shared


def test_what_the_file_says_is_what_options_would(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    (tmp_path / "t").write_text("secret\n")
    file.write_text(WHOLE.replace("token_file: t", f"token_file: {tmp_path}/t"))
    options = parse(f"--config={file}")
    settings = check(options, {})
    assert (settings.upstream, settings.pass_through_upstream) == ("u:1", "u:4")
    assert settings.listen == [("127.0.0.1:2", ""), ("127.0.0.1:3", "a")]
    assert settings.pass_through == [("unix:/t.sock", "b")]
    assert (options.profile, options.seed, options.loss_model) == ("poor", 7, LossModel.TRANSPORT)
    assert options.congestion_control is CongestionControl.BBR
    assert (options.node_profile, options.scenario) == (["n=good@eu-west"], Path("s.yaml"))
    assert (settings.client_link, settings.server_name_link) == ({"10.0.0.0/8": "c"}, {"x.y": "d"})
    assert settings.upstream_bandwidth == UpstreamBandwidth(500, 100, 1_000_000)
    assert settings.server_tls == ServerTls(Path("c"), Path("k"), Path("a"))
    assert settings.upstream_tls == UpstreamTls(Path("ua"), "un", Path("uc"), Path("uk"))
    assert (settings.tokens[Role.OPERATOR].first, options.realtime, options.drain_seconds) == ("secret", False, 0.0)
    assert (options.log_level, options.log_format) == (LogLevel.ERROR, LogFormat.TEXT)
    assert (options.http_listen, options.insecure) == ("127.0.0.1:6", True)


def test_options_go_before_the_file_and_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("upstream: u:1\nlisten: ['127.0.0.1:2']\nnetwork: {profile: poor, seed: 7}\n")
    options = parse("--profile=good", "--listen=127.0.0.1:3=x", f"--config={file}")
    assert (options.profile, options.seed, options.upstream) == ("good", 7, "u:1")
    assert (options.loss_model, options.control) == (LossModel.RPC, "127.0.0.1:0")
    assert options.congestion_control is CongestionControl.CUBIC
    settings = check(options, {})
    assert settings.listen == [("127.0.0.1:2", ""), ("127.0.0.1:3", "x")]
    assert settings.upstream_tls is None
    assert settings.pass_through_upstream == "u:1"
    file.write_text("upstream: u:1\nlisten: ['127.0.0.1:2']\nupstream_tls: {}\n")
    assert check(parse(f"--config={file}"), {}).upstream_tls == UpstreamTls()


def test_a_control_api_that_others_reach_needs_a_token_unless_it_is_insecure() -> None:
    listening = ("--upstream=u:1", "--listen=127.0.0.1:2", "--control=0.0.0.0:0")
    with pytest.raises(ConfigError, match="an operator token is needed"):
        check(parse(*listening), {})
    assert check(parse(*listening), {"HYPERGPU_OPERATOR_TOKEN": "t"}).tokens[Role.OPERATOR].first == "t"
    assert check(parse(*listening, "--insecure"), {}).tokens[Role.OPERATOR].first == ""


def test_a_seed_that_is_out_of_range_is_refused() -> None:
    assert parse(f"--seed={LARGEST_INTEGER}").seed == LARGEST_INTEGER
    for seed in (-1, LARGEST_INTEGER + 1):
        with pytest.raises(typer.BadParameter, match=r"(greater|less) than or equal to"):
            parse(f"--seed={seed}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("upstrem: u:1", r"c\.yaml:1: unknown key 'upstrem'; did you mean 'upstream'"),
        ("network: {sed: 7}", r"c\.yaml:1: unknown key 'network\.sed'; did you mean 'seed'"),
        ("network: {seed: x}", r"c\.yaml:1: network\.seed: "),
        ("tls: {certificate: c}", r"c\.yaml:1: tls\.key: field required"),
        ("listen: ['127.0.0.1:2']", "--upstream"),
        ("upstream: u:1", "--listen or --pass-through"),
    ],
)
def test_a_file_that_does_not_hold_is_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        check(parse(f"--config={file}"), {})


@pytest.mark.parametrize(
    "option",
    [
        "--listen=127.0.0.1:3=rack 1",
        "--pass-through=127.0.0.1:3=-a",
        "--client-link=10.0.0.0/8=rack 1",
        "--server-name-link=a.b=ü",
    ],
)
def test_a_link_that_no_node_can_have_is_refused(option: str) -> None:
    with pytest.raises(InvalidInput, match="take 1 to 64 letters"):
        check(parse("--upstream=u:1", "--listen=127.0.0.1:2", option), {})
    with pytest.raises(InvalidInput, match="take 1 to 64 letters"):
        ProfileRegistry().of_nodes(["rack 1=good"])
