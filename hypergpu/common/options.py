"""Command-line options that several commands share: one name, placeholder, environment variable and help text each.

An alias is used as the annotation of a parameter or field: `tls_ca: TlsCa = None`.
"""

from pathlib import Path
from typing import Annotated, Final

import typer

from hypergpu.common.limits import LARGEST_INTEGER
from hypergpu.common.log import LogFormat, LogLevel

ADDRESS: Final = "HOST:PORT"
FLAG: Final = ""
"""Placeholder of an option without a value."""
_SECURITY: Final = "Security"
_LOGGING: Final = "Logging"
_SETTINGS: Final = "Settings"

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings.", rich_help_panel=_SETTINGS)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, as in training.rounds=50. Repeatable.",
        rich_help_panel=_SETTINGS,
    ),
]

HttpListen = Annotated[
    str | None,
    typer.Option(metavar=ADDRESS, help="Address for HTTP: metrics, health and the live page; port 0 takes one."),
]

Token = Annotated[
    str | None,
    typer.Option("--token", metavar="TEXT", help="Join token (env var: HYPERGPU_TOKEN).", rich_help_panel=_SECURITY),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File with join tokens, one a line; read when it changes (env var: HYPERGPU_TOKEN_FILE).",
        rich_help_panel=_SECURITY,
    ),
]
OperatorToken = Annotated[
    str | None,
    typer.Option(
        "--operator-token",
        metavar="TEXT",
        help="Operator token (env var: HYPERGPU_OPERATOR_TOKEN).",
        rich_help_panel=_SECURITY,
    ),
]
OperatorTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--operator-token-file",
        metavar="FILE",
        help="File with operator tokens, one a line; read when it changes (env var: HYPERGPU_OPERATOR_TOKEN_FILE).",
        rich_help_panel=_SECURITY,
    ),
]
ViewerToken = Annotated[
    str | None,
    typer.Option(
        "--viewer-token",
        metavar="TEXT",
        help="Viewer token (env var: HYPERGPU_VIEWER_TOKEN).",
        rich_help_panel=_SECURITY,
    ),
]
ViewerTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--viewer-token-file",
        metavar="FILE",
        help="File with viewer tokens, one a line; read when it changes (env var: HYPERGPU_VIEWER_TOKEN_FILE).",
        rich_help_panel=_SECURITY,
    ),
]
ShownToken = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TEXT",
        help="Token of an operator, or of a viewer, who only reads (env vars: HYPERGPU_OPERATOR_TOKEN, "
        "HYPERGPU_VIEWER_TOKEN).",
        rich_help_panel=_SECURITY,
    ),
]
ShownTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File with that token (env vars: the same with _FILE).",
        rich_help_panel=_SECURITY,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        envvar="HYPERGPU_TLS_CERT", metavar="FILE", help="Certificate chain (PEM).", rich_help_panel=_SECURITY
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        envvar="HYPERGPU_TLS_KEY",
        metavar="FILE",
        help="Private key of the certificate (PEM).",
        rich_help_panel=_SECURITY,
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        envvar="HYPERGPU_TLS_CA",
        metavar="FILE",
        help="CA certificate of the server (PEM); by default the system's.",
        rich_help_panel=_SECURITY,
    ),
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        envvar="HYPERGPU_TLS_CLIENT_CA",
        metavar="FILE",
        help="CA certificate of clients (PEM): they must present a certificate, and that of a node its name.",
        rich_help_panel=_SECURITY,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        envvar="HYPERGPU_INSECURE",
        metavar=FLAG,
        help="Allow plaintext and a missing token: for loopback or a trusted network.",
        rich_help_panel=_SECURITY,
    ),
]

Level = Annotated[LogLevel, typer.Option("--log-level", help="Lowest level that is logged.", rich_help_panel=_LOGGING)]
Format = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        help="Format of the log; by default text on a terminal and JSON elsewhere.",
        rich_help_panel=_LOGGING,
    ),
]

SEED: Final = typer.Option(
    "--seed", metavar="N", min=0, max=LARGEST_INTEGER, help="Seed: the same seed gives the same result."
)
Seed = Annotated[int, SEED]
AsJson = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON, for scripts.")]
Open = Annotated[bool, typer.Option("--open", metavar=FLAG, help="Open the live page in the browser.")]
