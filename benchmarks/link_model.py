"""Speed of the link model, and the error of its TCP against measured transfers of Linux."""

import argparse
import json
import time
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from hypergpu.netsim_proxy.link import PROFILES, Direction, Fail, Link, LossModel
from hypergpu.netsim_proxy.link.congestion import CongestionControl
from hypergpu.netsim_proxy.link.distributions import Empirical
from hypergpu.netsim_proxy.link.transfer import Summary, plain_profile, transfer_times

NEAR = 0.15
"""Error up to which a mean counts as near."""
STATISTICS = ("mean", "p50", "p90")
BANDS = {
    "no loss": (0.0, 0.0),
    "loss of 0.1 %": (0.0001, 0.001),
    "loss of 1 %": (0.01, 0.01),
    "loss of 3 %": (0.03, 0.03),
}
_DATA = Path(__file__).parents[1] / "tests" / "data"
MEASURED = {
    CongestionControl.CUBIC: _DATA / "tcp_transfers.jsonl",
    CongestionControl.BBR: _DATA / "bbr_transfers.jsonl",
}
"""Transfers of Linux by congestion control, as `benchmarks/kernel_transfers.py` writes them."""


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


def summarize(times: Summary) -> dict[str, float]:
    """Return the statistics of the model by name."""
    return dict(zip(STATISTICS, (times.mean_seconds, times.p50_seconds, times.p90_seconds), strict=True))


def quantile(seconds: list[float], q: float) -> float:
    """Return a quantile, linear between neighbours."""
    return Empirical.of(seconds).at(q)


def pooled_errors(errors: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the errors by band of loss, connection and statistic.

    `bias` is the geometric mean of model / measured, `median` that of the absolute error of a condition, and `noise`
    the median standard error of the measured means: no model can be closer than about that.
    """
    out = {}
    for band, (least, most) in BANDS.items():
        for kind in ("cold", "warm"):
            rows = [e for e in errors if e["kind"] == kind and least <= e["loss"] <= most]
            for name in STATISTICS if rows else ():
                ratios = [1 + e["errors"][name] for e in rows]
                out[f"{band}, {kind}, {name}"] = {
                    "bias": exp(fmean(log(ratio) for ratio in ratios)) - 1,
                    "median": median(abs(ratio - 1) for ratio in ratios),
                    "noise": median(e["standard_error"] for e in rows),
                }
    return out


def transfer_errors(measured: Path, samples: int, seed: int, control: CongestionControl) -> list[dict[str, Any]]:
    """Return the model's mean, median and 90 % quantile beside the measured ones, for every measured condition."""
    out = []
    for line in measured.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        link = plain_profile(row["rtt_ms"], row["bandwidth_mbit"], row["loss"], queue_bytes=row["queue_bytes"])
        count = samples if row["loss"] else 1
        times = transfer_times(link, row["bytes"], samples=count, seed=seed, congestion_control=control)
        for kind, seconds in (("cold", row["cold_s"]), ("warm", row["warm_s"])):
            case: dict[str, Any] = {key: row[key] for key in ("rtt_ms", "bandwidth_mbit", "loss", "bytes")}
            model = summarize(times[kind])
            real = {"mean": fmean(seconds), "p50": quantile(seconds, 0.5), "p90": quantile(seconds, 0.9)}
            errors = {name: model[name] / real[name] - 1 for name in STATISTICS}
            standard_error = stdev(seconds) / sqrt(len(seconds)) / real["mean"]
            case |= {"kind": kind, "count": len(seconds), "model": model, "measured": real, "errors": errors}
            out.append(case | {"standard_error": standard_error})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="RPCs per speed")
    parser.add_argument("--samples", type=int, default=200, help="transfers per measured line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--congestion-control", choices=list(MEASURED), default=CongestionControl.CUBIC)
    parser.add_argument("--measured", type=Path, help="JSON lines of measured transfers; by default those of the tests")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    speeds = {
        f"{profile}, {model}": max(offers_per_second(profile, model, arguments.count, 1000) for _ in range(3))
        for profile in ("direct", "average", "unstable")
        for model in LossModel
    }
    control = CongestionControl(arguments.congestion_control)
    errors = transfer_errors(arguments.measured or MEASURED[control], arguments.samples, arguments.seed, control)
    pooled = pooled_errors(errors)
    if arguments.json:
        print(json.dumps({"offers_per_second": speeds, "errors": pooled, "transfers": errors}, indent=2))
        return
    for name, speed in speeds.items():
        print(f"{name:24} {speed:10,.0f} offers/s")
    print(f"\n{'rtt':>5} {'Mbit/s':>6} {'loss':>6} {'bytes':>10} {'kind':4} {'n':>4}  seconds of the model, and errors")
    for e in errors:
        columns = "  ".join(f"{name} {e['model'][name]:8.3f} {e['errors'][name]:+7.1%}" for name in STATISTICS)
        condition = f"{e['rtt_ms']:5} {e['bandwidth_mbit']:6} {e['loss']:6.1%} {e['bytes']:10,}"
        print(f"{condition} {e['kind']} {e['count']:4}  {columns}")
    near = sum(abs(e["errors"]["mean"]) <= NEAR for e in errors)
    print(f"\n{near} of {len(errors)} means within {NEAR:.0%}")
    print("bias: geometric mean of model / measured over conditions; median: of the absolute error of a condition;")
    print("noise: median standard error of the measured means")
    for name, error in pooled.items():
        noise = f"  noise {error['noise']:5.1%}" if name.endswith("mean") else ""
        print(f"{name:32} bias {error['bias']:+6.1%}  median {error['median']:5.1%}{noise}")


if __name__ == "__main__":
    main()
