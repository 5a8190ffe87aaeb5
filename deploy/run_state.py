"""Wait until NODES nodes are connected, and print how the run of the coordinator in this container stands."""

import json
import subprocess
import sys
import time

_PATIENCE_SECONDS = 30.0
"""To wait for nodes that start or leave; the line that is printed says how many are connected."""


def main(expected: int) -> None:
    """Print one line."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        told = subprocess.run(["hypergpu", "status", "--json"], check=True, stdout=subprocess.PIPE).stdout
        status = json.loads(told)
        is_over = status["state"] in {"completed", "stopped"}
        if is_over or status["nodes_connected"] == expected or time.monotonic() > until:
            break
        time.sleep(1.0)
    planned = f" of {status['rounds']}" if status["rounds"] else ""
    state = f"{status['state']}, round {status['round']}{planned}"
    if is_over:
        print(f"the run is over ({state}), and nodes wait for the next one: `hypergpu restart` begins it")
    else:
        print(f"{state}: {status['nodes_connected']} of {expected} nodes are connected")


main(int(sys.argv[1]))
