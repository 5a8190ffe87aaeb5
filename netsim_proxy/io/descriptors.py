"""Limit of open files: each client needs two descriptors, and the usual soft limit is 1024."""

import resource
from typing import Final

import structlog

_FEW: Final = 4096

log = structlog.get_logger()


def raise_limit() -> int:
    """Raise the soft limit to the hard one, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            log.warning("cannot raise the limit of open files", soft=soft, hard=hard, reason=str(error))
    if 0 <= soft < _FEW:
        log.warning("few open files are allowed", limit=soft, clients=soft // 2)
    return soft
