"""Part of `hypergpu validate` that compares the link model with the kernel's TCP."""

from hypergpu.cli.verdict import conclude
from hypergpu.common.errors import InvalidInput
from hypergpu.common.text import counted
from hypergpu.console import new_table, print_table, say
from hypergpu.simulation.kernel.delay_line import Line
from hypergpu.simulation.kernel.namespaces import missing_permission
from hypergpu.simulation.kernel.validation import MOST_ERROR, PREDICTORS, SIZES, KernelValidation, validate_transfers


def compare_transfers(samples: int, *, as_json: bool) -> None:
    """Measure and predict transfers, print both, and exit with 1 if the model does not pass.

    Raises:
        InvalidInput: this machine does not permit network namespaces or TUN devices.
    """

    def progress(line: Line) -> None:
        if not as_json:
            say(f"  {_shown(line)}, {len(SIZES)} sizes: {counted(len(SIZES) * samples, 'connection')}")

    if reason := missing_permission():
        raise InvalidInput(f"no transfers over the kernel's TCP here: {reason}")
    found = validate_transfers(samples=samples, progress=progress)
    conclude(found.to_dict(), found.failures(MOST_ERROR), lambda: _print_transfers(found), as_json=as_json)


def _shown(line: Line) -> str:
    return f"{line.rtt_ms:g} ms, {line.bandwidth_mbit:g} Mbit/s, {line.loss:.1%} loss"


def _print_transfers(found: KernelValidation) -> None:
    headings = ("round trip", ">Mbit/s", ">loss", ">bytes", "connection", ">kernel, s", ">chance", ">model")
    table = new_table(*headings, *(f">{name}" for name in PREDICTORS))
    for each in found.conditions:
        table.add_row(
            f"{each.rtt_ms:g} ms",
            f"{each.bandwidth_mbit:g}",
            f"{each.loss:.1%}",
            f"{each.nbytes:,}",
            each.kind,
            f"{each.kernel_seconds:.3f}",
            f"±{each.standard_error:.0%}",
            *(f"{each.error(name):+.0%}" for name in ("model", *PREDICTORS)),
        )
    print_table(table)
    say("\ntypical error of the mean time, as far too short as too long")
    say(f"  {'link model':40} {found.typical_error('model'):6.1%}")
    for name, (text, _) in PREDICTORS.items():
        say(f"  {text:40} {found.typical_error(name):6.1%}")
    say(f"  {'chance: standard error of the kernel':40} {found.noise:6.1%}\n")
