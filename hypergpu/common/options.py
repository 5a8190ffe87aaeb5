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
    typer.Option(metavar=ADDRESS, help="Address for /metrics and health checks; port 0 takes a free one."),
]

Token = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Join token (env var: HYPERGPU_TOKEN).", rich_help_panel=_SECURITY),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="File with the join token (env var: HYPERGPU_TOKEN_FILE).", rich_help_panel=_SECURITY
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
