"""`runs/latest`, the name of the newest run in a directory `runs`."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

RUNS = Path("runs")
LATEST = "latest"
_LONGEST_NAME = 255


def point_latest(run_dir: Path) -> bool:
    """Make `runs/latest` point to a run in `runs`; return whether it does.

    The change is atomic. `latest` is a symbolic link, or a file that holds the run's name if links are not supported.
    A directory of that name is a run and is left alone. A run outside of `runs` changes nothing.
    """
    place = Path(os.path.abspath(run_dir))  # noqa: PTH100  (`resolve` would follow the link that is to be replaced)
    if place.parent.name != RUNS.name or place.name == LATEST:
        return False
    link = place.parent / LATEST
    fresh = place.parent / f".{LATEST}-{secrets.token_hex(4)}"
    try:
        try:
            fresh.symlink_to(place.name, target_is_directory=True)
        except OSError:  # not supported here, or not permitted
            fresh.write_text(f"{place.name}\n", encoding="utf-8")
        fresh.replace(link)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        return False
    return True


def find_run(path: Path) -> Path:
    """Return the run that a path names: the target of a file or link `latest`, or else the path itself."""
    if path.name != LATEST:
        return path
    if path.is_symlink():
        return path.parent / path.readlink()
    if path.is_file():
        name = path.read_text(encoding="utf-8", errors="replace")[:_LONGEST_NAME].strip()
        if name and Path(name).name == name:
            return path.parent / name
    return path
