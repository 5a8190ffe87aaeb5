"""Health check for containers: `python -m hypergpu.common.probe HOST:PORT` succeeds if GET /healthz returns 200.

It dials the address directly, not through an HTTP proxy that the environment names.
"""

import http.client
import sys

from hypergpu.common.address import split_address
from hypergpu.common.errors import HyperGPUError

_TIMEOUT_SECONDS = 3.0


def is_healthy(address: str) -> bool:
    """Return whether GET /healthz returns 200.

    Raises:
        ConfigError: a malformed address.
    """
    host, port = split_address(address)
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    try:
        sys.exit(not is_healthy(sys.argv[1] if len(sys.argv) == 2 else ""))
    except HyperGPUError as error:
        print(f"probe: {error}", file=sys.stderr)
        sys.exit(2)
