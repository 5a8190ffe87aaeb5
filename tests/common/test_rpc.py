"""Errors to status and back, addresses, metadata."""

import grpc
import pytest

from common import errors
from common.address import split_address
from common.rpc import error_from, metadata_for, status_of


class FailedCall(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidInput,
        errors.NotFound,
        errors.CorruptData,
        errors.NotAuthenticated,
        errors.StaleWork,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.ResourceExhausted,
        errors.NonFiniteUpdate,
        errors.ProtocolError,
    ],
)
def test_an_error_keeps_its_type_across_the_wire(kind: type[errors.HyperGPUError]) -> None:
    code, text = status_of(kind("what is wrong"))
    back = error_from(FailedCall(code, text), "coordinator at h:1")
    assert type(back) is kind
    assert str(back) == "coordinator at h:1: what is wrong"


def test_a_foreign_error_leaks_nothing() -> None:
    assert status_of(KeyError("secret")) == (grpc.StatusCode.INTERNAL, "internal error (KeyError)")


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:70000", "host:port", "::1:80"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"HOST:PORT|brackets"):
        split_address(address)


def test_addresses() -> None:
    assert split_address("coordinator:50051") == ("coordinator", 50051)
    assert split_address("[::1]:0") == ("[::1]", 0)


def test_metadata_carries_the_caller() -> None:
    assert metadata_for("node_1", "t") == (("x-node-id", "node_1"), ("authorization", "Bearer t"))
    assert metadata_for(None, None) == ()
