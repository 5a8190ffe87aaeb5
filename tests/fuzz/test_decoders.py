"""Decoders against bytes that nobody meant: a valid value or an error of the project, in bounded time and memory."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.examples import examples
from tests.fuzz.bounds import TooLong, bounded
from tests.fuzz.decoders import DECODERS, ROOT, Decoder
from tests.fuzz.mutations import inputs, messages

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
FEW, MANY = 4, 2_000


def strategy(decoder: Decoder) -> SearchStrategy[bytes]:
    valid: Any = decoder.valid
    if isinstance(valid[0], Message):
        return st.one_of(messages(valid), messages(valid), st.binary(max_size=60))
    return inputs(valid)


def attempt(decoder: Decoder, data: bytes) -> bool:
    """Decode; return whether the data was accepted."""
    try:
        with bounded():
            decoder.read(data)
    except decoder.errors:
        return False
    return True


@pytest.mark.parametrize("name", DECODERS)
def test_what_a_decoder_is_fuzzed_with_is_accepted_as_it_is(name: str) -> None:
    decoder = DECODERS[name]
    for valid in decoder.valid:
        assert attempt(decoder, valid.SerializeToString() if isinstance(valid, Message) else valid)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_takes_any_bytes_or_says_what_is_wrong_with_them(name: str) -> None:
    fuzz(name, examples(FEW))


@pytest.mark.soak
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_takes_many_bytes_or_says_what_is_wrong_with_them(name: str) -> None:
    fuzz(name, settings(max_examples=MANY, derandomize=False, suppress_health_check=list(HealthCheck)))


def fuzz(name: str, how_many: settings) -> None:
    decoder = DECODERS[name]

    @how_many
    @given(data=strategy(decoder))
    def run(data: bytes) -> None:
        attempt(decoder, data)

    run()


def test_the_bounds_hold() -> None:
    with pytest.raises(MemoryError), bounded():
        bytearray(4 << 30)
    with pytest.raises(TooLong), bounded(cpu_seconds=0.05):
        while True:
            pass


DECODER = re.compile(r"def ((?:parse|read|load|decode)(?:_\w+)?|[a-z]\w+_from_proto)\(")
"""Public functions that decode, by their names."""
ELSEWHERE = {
    "common.codecs.": "read by their names in CODECS",
    "common.config.document.": "YAML: the readers of configurations, scenarios and profiles",
    "common.config.loading.parse": "checks values that were read",
    "common.config_options.load": "calls load_config",
    "common.private_files.read_private": "reads bytes and decodes none; a key takes 32 bytes of any value",
    "common.strict_json.parse": "parse_object",
    "coordinator.checkpoints.": "test_run_directories.py",
    "coordinator.core.": "decides, and reads nothing",
    "coordinator.round_log.read": "test_run_directories.py",
    "coordinator.saved_state.": "test_run_directories.py",
    "netsim_proxy.api.profile_registry.": "the parsers that it calls, and test_services.py",
    "netsim_proxy.api.reload.": "the parsers that it calls",
    "netsim_proxy.config.yaml_text.parse_yaml": "the parsers that call it",
    "netsim_proxy.io.tls.load_into": "read_pair and read_authority",
    "node.device.read": "asks the driver",
    "node.worker.read": "draws samples",
    "simulation.planning.links_file.load_links": "parse_links",
    "simulation.scenario_file.load_scenario": "parse_scenario",
    "simulation.variants.read": "load_config",
    "tasks.": "data that is shipped, and code of the user",
}
"""Such functions, or beginnings of their names, and what else tries them."""


def decoders_in(root: Path) -> Iterator[str]:
    for package in ("hypergpu", "coordinator", "node", "netsim_proxy"):
        for file in sorted((root / package).rglob("*.py")):
            if not any(folder.is_symlink() for folder in file.parents) and "_pb2" not in file.name:
                module = ".".join(file.relative_to(root).with_suffix("").parts).removeprefix("hypergpu.")
                yield from (f"{module}.{name}" for name in DECODER.findall(file.read_text()))


def test_no_decoder_is_left_out() -> None:
    found = set(decoders_in(ROOT))
    assert len(found) > 50
    assert [name for name in found - set(DECODERS) if not name.startswith(tuple(ELSEWHERE))] == []
    assert [start for start in ELSEWHERE if not any(name.startswith(start) for name in found)] == []
