"""The `hypergpu` application: its commands, grouped by what a user wants to do.

Nothing that takes long is imported here: `hypergpu --help` and the completion of a shell import no command.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Final, NoReturn

import typer

from hypergpu.cli.lazy_group import Entry, LazyGroup
from hypergpu.common.command_line import SERVICE_PANEL, new_app, run_app

_SERVICES: Final = SERVICE_PANEL
_START: Final = "Start and stop"
_SECURE: Final = "Secure"
_INSPECT: Final = "Inspect"
_SIMULATE: Final = "Simulate"
_NETWORK: Final = "Control the network"
_RUN: Final = "Control the run"
_TARGET: Final = "hypergpu.cli.cluster_command:TargetCommand"
_CLUSTER: Final = "hypergpu.cli.cluster_command:ClusterCommand"
_CHANGING: Final = "hypergpu.cli.cluster_command:ChangingCommand"
_EVENT: Final = "hypergpu.cli.network:EventCommand"
COMMANDS: Final = (
    Entry(
        "coordinator",
        _SERVICES,
        "hypergpu.coordinator.__main__:service",
        "Coordinate one training run: admit nodes, run rounds, write the model and the run's history to --out.",
    ),
    Entry(
        "node",
        _SERVICES,
        "hypergpu.node.__main__:service",
        "Run one worker: join a coordinator, train what it assigns, and push the updates.",
    ),
    Entry(
        "proxy",
        _SERVICES,
        "hypergpu.netsim_proxy.__main__:service",
        "Put a network between gRPC clients and a service: latency, jitter, loss and bandwidth per node.",
    ),
    Entry(
        "demo",
        _START,
        "hypergpu.cli.demo:demo",
        "Train real handwritten digits on five different simulated GPUs on five different links, all on this machine.",
    ),
    Entry(
        "init",
        _START,
        "hypergpu.cli.init:init",
        "Make a project: a task that trains, its settings, and a test. Replace its model and data with your own.",
    ),
    Entry(
        "up",
        _START,
        "hypergpu.cli.containers:up",
        "Build and start coordinator, proxy, nodes, Prometheus and Grafana in containers.",
    ),
    Entry(
        "scale",
        _START,
        "hypergpu.cli.containers:scale",
        "Change the number of node containers during training, and print the status of the run.",
    ),
    Entry(
        "down",
        _START,
        "hypergpu.cli.containers:down",
        "Stop the containers; the recorded runs are kept in their volume.",
    ),
    Entry(
        "doctor",
        _START,
        "hypergpu.cli.doctor:doctor",
        "Check versions, addresses, token, clock and the path to the coordinator; each failure comes with its fix.",
        _TARGET,
    ),
    Entry(
        "completion",
        _START,
        "hypergpu.cli.completion:completion",
        "Print the script with which a shell completes commands, options and values.",
    ),
    Entry(
        "token",
        _SECURE,
        "hypergpu.cli.token:token",
        "Make a random token of 256 bits: a join token, an operator's or a viewer's.",
    ),
    Entry(
        "certs",
        _SECURE,
        "hypergpu.cli.certs:certs",
        "Make certificates, signed by an authority in DIR, which is made with the first.",
    ),
    Entry(
        "status",
        _INSPECT,
        "hypergpu.cli.inspect:status",
        "Show the run's progress, and its latest decisions with their reasons.",
        _CLUSTER,
    ),
    Entry(
        "nodes",
        _INSPECT,
        "hypergpu.cli.inspect:nodes",
        "List the nodes: state, link quality, batch size, contributions.",
        _CLUSTER,
    ),
    Entry(
        "links",
        _INSPECT,
        "hypergpu.cli.network:links",
        "List the links: profile, injected delay, lost calls, active events.",
        _CLUSTER,
    ),
    Entry(
        "logs",
        _INSPECT,
        "hypergpu.cli.logs:logs",
        "Print the run's events: rounds, decisions, membership. With a NAME, print the output of that process.",
        _CLUSTER,
    ),
    Entry(
        "view",
        _INSPECT,
        "hypergpu.cli.view:view",
        "Show a run in the browser until Ctrl-C: one that goes on, one that has ended, or a simulated one.",
    ),
    Entry(
        "report",
        _INSPECT,
        "hypergpu.cli.report:report",
        "Render the report of a run, finished or not, as one self-contained HTML page.",
    ),
    Entry(
        "export",
        _INSPECT,
        "hypergpu.cli.export:export",
        "Write the trained model of a run, finished or not, to one file: its state_dict, for plain PyTorch.",
    ),
    Entry(
        "outlets",
        _INSPECT,
        "hypergpu.cli.outlets:outlets",
        "Deliver a run to other programs that show it: one that has ended, a simulated one, or the rest of one.",
    ),
    Entry(
        "rewards",
        _INSPECT,
        "hypergpu.cli.rewards:rewards",
        "Divide an amount among the nodes of a run by their scores, and print the root of the shares' Merkle tree.",
    ),
    Entry(
        "ledger",
        _INSPECT,
        "hypergpu.cli.ledger:app",
        "Check the record of a run, offline: decisions, receipts and rounds in a signed Merkle log.",
    ),
    Entry(
        "simulate",
        _SIMULATE,
        "hypergpu.cli.simulate:simulate",
        "Run a scenario in virtual time: the same file and seed give the same result, to the byte.",
    ),
    Entry(
        "compare",
        _SIMULATE,
        "hypergpu.cli.compare:compare",
        "Compare policies with fixed settings: reach, time to the target, final metric, bytes, confidence intervals.",
    ),
    Entry(
        "tune",
        _SIMULATE,
        "hypergpu.cli.tune:tune",
        "Find the fixed setting that reaches a scenario's target first, and what it gains over the policy.",
    ),
    Entry(
        "plan",
        _SIMULATE,
        "hypergpu.cli.plan:plan",
        "Plan a run before it is paid for: hours, bytes and money, and the best setting for its links.",
    ),
    Entry(
        "whatif",
        _SIMULATE,
        "hypergpu.cli.whatif:whatif",
        "Predict what another policy or setting would change in a run, and say what is not known.",
    ),
    Entry(
        "validate",
        _SIMULATE,
        "hypergpu.cli.validate:validate",
        "Run a scenario with real processes and in virtual time, and compare; the exit code is 1 if they differ.",
    ),
    Entry(
        "fit",
        _SIMULATE,
        "hypergpu.cli.fit:fit",
        "Fit a convergence model to real runs of a task, and print it as YAML for a scenario with `learning: model`.",
    ),
    Entry(
        "transfer",
        _SIMULATE,
        "hypergpu.cli.transfer:transfer",
        "Predict the time to deliver a message over a link: on new connections, and on open ones.",
    ),
    Entry("trace", _SIMULATE, "hypergpu.cli.trace:app", "Record real paths as files that a link can replay."),
    Entry("profile", _NETWORK, "hypergpu.cli.network:profile", "Change the profile of a link now.", _CHANGING),
    Entry(
        "upstream-bandwidth",
        _NETWORK,
        "hypergpu.cli.network:upstream_bandwidth",
        "Change the bandwidth of the upstream's access link, which all nodes share; without options, show it.",
        _CHANGING,
    ),
    Entry(
        "clear",
        _NETWORK,
        "hypergpu.cli.network:clear",
        "End active network events and cancel scheduled ones.",
        _CHANGING,
    ),
    Entry(
        "scenario",
        _NETWORK,
        "hypergpu.cli.network:scenario",
        "Set the links of a scenario and schedule its events; its training settings are ignored.",
        _CHANGING,
    ),
    Entry(
        "reload",
        _NETWORK,
        "hypergpu.cli.network:reload",
        "Make the proxy reread its files: profiles, scenario, link map, certificates.",
        _CHANGING,
    ),
    Entry("inject", _NETWORK, "hypergpu.cli.network:inject", "Inject a network event now.", _EVENT),
    Entry(
        "schedule", _NETWORK, "hypergpu.cli.network:schedule", "Schedule a network event by time or by round.", _EVENT
    ),
    Entry(
        "scheduled",
        _NETWORK,
        "hypergpu.cli.network:scheduled",
        "List network events: scheduled, active and recently ended ones.",
        _CLUSTER,
    ),
    Entry("pause", _RUN, "hypergpu.cli.control:pause", "Pause the run after the current round.", _CHANGING),
    Entry("resume", _RUN, "hypergpu.cli.control:resume", "Continue a paused run.", _CHANGING),
    Entry(
        "stop",
        _RUN,
        "hypergpu.cli.control:stop",
        "End the run: save the model and disconnect the nodes, or keep them waiting if the coordinator stays.",
        _CHANGING,
    ),
    Entry(
        "restart",
        _RUN,
        "hypergpu.cli.control:restart",
        "Start a new run with the same settings; the previous one moves to earlier/, finished or not.",
        _CHANGING,
    ),
    Entry(
        "include",
        _RUN,
        "hypergpu.cli.control:include",
        "Select a node in every round, however bad its link is.",
        _CHANGING,
    ),
    Entry(
        "exclude",
        _RUN,
        "hypergpu.cli.control:exclude",
        "Keep a node out of every round; `--clear` undoes an `exclude` or `include`.",
        _CHANGING,
    ),
    Entry(
        "policy", _RUN, "hypergpu.cli.control:policy", "Change the adaptation policy from the next round on.", _CHANGING
    ),
)
"""Commands in the order of the help."""


class _Root(LazyGroup):
    """The commands of `hypergpu`."""

    entries: ClassVar[Sequence[Entry]] = COMMANDS

    def invoke(self, context: Any) -> Any:
        """Run a command, whose log goes to standard error."""
        from hypergpu.common import log  # noqa: PLC0415  (help needs none)

        log.configure_cli()
        return super().invoke(context)


app = new_app("Train one model on many machines joined by bad networks. Start with `hypergpu demo`.", completion=True)


@app.callback(invoke_without_command=True, cls=_Root)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version and exit.")] = False,
) -> None:
    """Handle the options of the application itself."""
    if show_version:
        from hypergpu.console import say  # noqa: PLC0415  (help needs none)

        say(f"hypergpu {version('hypergpu')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.BadParameter("missing command; `hypergpu --help` lists them")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; the arguments default to those of the process."""
    run_app(app, (sys.argv[1:] if arguments is None else arguments) or ["--help"])
