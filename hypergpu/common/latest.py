"""The newest run in a directory `runs`, under the name `latest`."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

RUNS = Path("runs")
LATEST = "latest"
_LONGEST_NAME = 255


def point_latest(run_dir: Path) -> bool:
    """Let `runs/latest` mean this run of `runs`; return whether it does now.

    The name changes at one stroke. It is a symbolic link, or where none can be made a file that holds the run's name. A
    directory of that name is a run of its own and is left alone. A run elsewhere than in `runs` changes nothing.
    """
    place = Path(os.path.abspath(run_dir))  # noqa: PTH100  (`resolve` would follow the link that is to be replaced)
    if place.parent.name != RUNS.name or place.name == LATEST:
        return False
    link = place.parent / LATEST
    fresh = place.parent / f".{LATEST}-{secrets.token_hex(4)}"
    try:
        try:
            fresh.symlink_to(place.name, target_is_directory=True)
        except OSError:  # the file system or the user's rights don't allow it
            fresh.write_text(f"{place.name}\n", encoding="utf-8")
        fresh.replace(link)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        return False
    return True


def find_run(path: Path) -> Path:
    """Return the run that a path means: what the file or link `latest` names, and any other path as it is."""
    if path.name != LATEST:
        return path
    if path.is_symlink():
        return path.parent / path.readlink()
    if path.is_file():
        name = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST_NAME].strip()
        if name and Path(name).name == name:
            return path.parent / name
    return path
