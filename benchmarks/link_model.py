"""Speed of the link model, and the error of its TCP against measured transfers of Linux."""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hypergpu.netsim_proxy.link import PROFILES, Direction, Fail, Link, LossModel
from hypergpu.netsim_proxy.link.transfer import plain_profile, transfer_times

MEASURED = Path(__file__).parents[1] / "tests" / "data" / "tcp_transfers.jsonl"


def offers_per_second(profile: str, loss_model: LossModel, count: int, nbytes: int) -> float:
    """Requests and replies of unary RPCs, offered one after the other."""
    link = Link("node", PROFILES[profile], seed=1, loss_model=loss_model)
    up, down = Direction.UP, Direction.DOWN
    began, offers = time.perf_counter(), 0
    for index in range(count):
        now = float(index)
        rpc = link.begin(now)
        request = link.offer(now, up, nbytes, rpc, end=True)
        offers += 1
        if not isinstance(request, Fail):
            link.offer(now + 0.5, down, nbytes, rpc, end=True)
            offers += 1
    return offers / (time.perf_counter() - began)


def transfer_errors(samples: int, seed: int) -> list[dict[str, Any]]:
    """Return the errors of the model's mean against the measured one, for every measured line."""
    out = []
    for line in MEASURED.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        link = plain_profile(row["rtt_ms"], row["bandwidth_mbit"], row["loss"], queue_bytes=row["queue_bytes"])
        times = transfer_times(link, row["bytes"], samples=samples if row["loss"] else 1, seed=seed)
        for kind, seconds in (("cold", row["cold_s"]), ("warm", row["warm_s"])):
            case = {key: row[key] for key in ("rtt_ms", "bandwidth_mbit", "loss", "bytes")}
            model, measured = times[kind].mean_seconds, fmean(seconds)
            out.append({**case, "kind": kind, "model": model, "measured": measured, "error": model / measured - 1})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="RPCs per speed")
    parser.add_argument("--samples", type=int, default=200, help="transfers per measured line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    speeds = {
        f"{profile}, {model}": max(offers_per_second(profile, model, arguments.count, 1000) for _ in range(3))
        for profile in ("direct", "average", "unstable")
        for model in LossModel
    }
    errors = transfer_errors(arguments.samples, arguments.seed)
    medians = {
        "loss up to 0.1 %": median(abs(e["error"]) for e in errors if e["loss"] <= 0.001),
        "loss of 1 to 3 %": median(abs(e["error"]) for e in errors if e["loss"] >= 0.01),
    }
    if arguments.json:
        print(json.dumps({"offers_per_second": speeds, "median_error": medians, "transfers": errors}, indent=2))
        return
    for name, speed in speeds.items():
        print(f"{name:24} {speed:10,.0f} offers/s")
    print(f"\n{'rtt':>5} {'Mbit/s':>6} {'loss':>6} {'bytes':>9} {'kind':4} {'model':>9} {'Linux':>9}  error")
    for e in errors:
        print(
            f"{e['rtt_ms']:5} {e['bandwidth_mbit']:6} {e['loss']:6.1%} {e['bytes']:9,} {e['kind']:4} "
            f"{e['model']:8.3f}s {e['measured']:8.3f}s {e['error']:+6.1%}"
        )
    for name, error in medians.items():
        print(f"median |error| at {name}: {error:.1%}")


if __name__ == "__main__":
    main()
