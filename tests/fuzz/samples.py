"""Inputs that decoders accept."""

import json
from typing import Any, Final

from hypergpu.common.codecs import CODECS
from hypergpu.common.tensors import Manifest, TensorSpec
from hypergpu.common.wire import manifest_to_proto
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net

_ROW: Final[dict[str, Any]] = {
    "seconds": 0.5,
    "reason": "quorum_at_deadline",
    "accuracy": 0.118,
    "loss": 2.29,
    "train_loss": 2.35,
    "samples": 960,
    "local_steps": 10,
    "learning_rate": 0.02,
    "local_optimizer": "muon",
    "contributors": ["a", "b"],
    "missing": ["c"],
    "batch_sizes": {"a": 32, "b": 32, "c": 32},
    "compute_seconds": {"a": 0.16, "b": 0.15},
    "waiting_seconds": {"a": 0.22, "b": 0.23, "c": 0.51},
    "codec": {"a": "none", "b": "int8", "c": "none"},
    "parameters_codec": {"a": "none", "b": "bf16", "c": "none"},
    "connections_down": {"a": 1, "b": 1, "c": 1},
    "connections_up": {"a": 1, "b": 1, "c": 1},
    "noise": {"a": 0.0, "b": 0.001},
    "upload_seconds": {"a": 0.05, "b": 0.06},
    "bytes_down": {"a": 102356, "b": 102356, "c": 102356},
    "bytes_up": {"a": 101756, "b": 27000},
    "points": {"a": 0.4, "b": 0.3},
    "compute_utilisation": 0.25,
}
_NODE: Final = {
    "node_id": "a",
    "state": "done",
    "rounds_contributed": 3,
    "batch_size": 46,
    "codec": "none",
    "gpu": "T4",
}

ROUNDS: Final = "".join(
    json.dumps({**_ROW, "round": number, "ended_seconds": 0.7 * number}) + "\n" for number in (1, 2, 3)
)
"""A rounds.jsonl."""
SUMMARY: Final = {
    "run_id": "x",
    "task": "digits",
    "state": "completed",
    "rounds": 3,
    "metric": {"name": "accuracy", "better": "higher", "format": "percent", "unit": ""},
    "final_accuracy": 0.5,
    "bytes_sent": 1651696,
    "nodes": {"a": _NODE},
    "network_events": ["round 2: latency spike"],
}
"""A summary.json."""
CONFIG: Final = json.dumps(
    {
        "training": {"task": "digits", "rounds": 5, "learning_rate": 0.1, "local_steps": 2, "partition": "iid"},
        "server": {"listen": "127.0.0.1:0", "scrape_hosts": ["10.0.0.0/8"]},
        "aggregation": {"rule": "trimmed_mean", "byzantine": 1, "buckets": 8},
        "orchestrator": {"policy": "none"},
        "checkpoint": {"every": "2 rounds"},
    }
)
PROFILES: Final = (
    json.dumps(
        {
            "profiles": {
                "office": {"rtt_ms": [20, 40], "loss": 0.002, "burst": 4, "down": {"bandwidth_mbit": 100}},
                "phone": {
                    "based_on": "office",
                    "rtt_ms": {"distribution": "lognormal", "median": 40, "sigma": 0.5, "floor": 20},
                    "jitter_correlation": 0.7,
                },
            }
        }
    ),
    json.dumps({"profiles": {"path": {"trace": "seconds,rtt_ms\n0,20\n1,40\n"}}}),
    "profiles:\n  x: {rtt_ms: {distribution: empirical, values: [1, 2, 3]}, queue_bytes: 1000}\n",
    "profiles:\n  x: {rtt_ms: {distribution: pareto, scale: 20, alpha: 3}}\n",
)
PROXY: Final = (
    json.dumps(
        {
            "upstream": "coordinator:50051",
            "listen": ["0.0.0.0:50052", "0.0.0.0:50061=node_1"],
            "network": {"profile": "average", "seed": 7, "upstream_bandwidth": {"down_mbit": 500, "up_mbit": 100}},
            "links": {"addresses": {"10.1.0.0/16": "rack_1"}},
            "tls": {"certificate": "proxy.crt", "key": "proxy.key"},
            "control": {"address": "unix:/run/netsim-control.sock"},
            "drain_seconds": 5,
        }
    ),
)
SCENARIO: Final = (
    json.dumps(
        {
            "description": "x",
            "loss_model": "transport",
            "task": "digits",
            "rounds": 9,
            "policy": "none",
            "profiles": {"own": {"rtt_ms": [20, 40]}},
            "upstream_bandwidth": {"down_mbit": 500},
            "nodes": [
                {"id": "steady", "count": 2, "gpu": "T4", "profile": "own", "region": "eu-west"},
                {"id": "volunteer", "count": 2, "gpu": ["T4", "laptop-cpu"], "profile": "4g", "speed": 0.5},
            ],
            "events": [
                {"at_seconds": 20, "type": "latency_spike", "nodes": ["steady"], "factor": 4, "duration_seconds": 10},
                {"round": 3, "type": "partition", "nodes": ["steady_0"], "group_b": ["volunteer"]},
            ],
            "learning": "model",
            "config": {"training": {"learning_rate": 0.05, "min_nodes": 2}},
        }
    ),
)
TRACE: Final = "# a path\nseconds,rtt_ms,loss,up_mbit,down_mbit\n0,20,0.01,10,50\n1.5,40,,,20\n"
MAHIMAHI: Final = "0\n1\n1\n500\n750\n"
LINKS: Final = (
    "name,rtt_ms,jitter_ms,loss,up_mbit,down_mbit,step_seconds,price_per_hour\n"
    "virginia,2,0.2,0,1000,1000,0.08,1.90\nhome,35,6,0.003,20,,0.21,\n"
)

MANIFEST: Final = Manifest((TensorSpec("weight", (3, 4)), TensorSpec("bias", (4,))))
PROTO_MANIFEST = manifest_to_proto(MANIFEST)
WORK = pb.WorkId(run_id="run", round=3, node_id="a", attempt=1)
IDENTITY = pb.TaskIdentity(
    train_samples=40,
    test_samples=20,
    train_digest="ab" * 32,
    test_digest="cd" * 32,
    model_digest="ef" * 32,
    numbers=[pb.IdentityNumbers(name="inputs", values=[0.5, 1.5])],
)
DATA = pb.DataReport(samples=3, classes=[pb.ClassCount(label=0, samples=1), pb.ClassCount(label=-4, samples=2)])
TERMS = pb.NodeTerms(price_per_hour=1.5, priority="high")
STEPS = pb.StepTimes(seconds_per_step=0.01, seconds_per_sample=1e-4)
REGISTER = pb.RegisterRequest(
    node_id="a",
    incarnation="b" * 32,
    gpu=pb.GpuSpecs(name="T4", memory_bytes=1 << 34, tflops=8.1),
    version="1.0",
    metrics_address="127.0.0.1:9100",
    region="us-east",
    largest_batch=64,
    identity=IDENTITY,
    data=DATA,
    terms=TERMS,
    step_times=STEPS,
)
DOWNLOAD = pb.Transfer(bytes=500, seconds=2.0, bytes_before=300, seconds_before=1.0)
ENCODING = pb.Encoding(codec="none", version=CODECS["none"].version, payload_bytes=64)
HEADER = pb.UpdateHeader(
    work=WORK,
    manifest=PROTO_MANIFEST,
    samples=4,
    loss=0.5,
    compute_seconds=0.1,
    grad_norm=1.0,
    loss_before=0.6,
    loss_after=0.4,
    steps=2,
    encoding=ENCODING,
    noise=0.1,
    optimizer_share=0.2,
    download=DOWNLOAD,
)
EVENT = net.Event(type="latency_spike", nodes=["a"], duration_seconds=9.0, factor=3.0, direction="up")
REPORT: Final = json.dumps(
    {
        "network": {"events": 12, "failures": 1},
        "performance": {"step_time": 0.5, "samples_per_second": 100},
        "memory": {"used": 0.5},
        "state": "idle",
    }
).encode()
"""The report in a heartbeat."""
