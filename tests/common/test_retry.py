"""What is tried again, how often, and after which waits."""

import errno

import pytest

from hypergpu.common.errors import CorruptData, DeadlineExceeded, InvalidInput, Unavailable
from hypergpu.common.retry import is_transient, retry


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("x"),
        DeadlineExceeded("x"),
        ConnectionResetError(),
        TimeoutError(),
        InterruptedError(),
        OSError(errno.EIO, "x"),
        OSError(errno.ESTALE, "x"),
        OSError(errno.EHOSTUNREACH, "x"),
    ],
)
def test_an_outage_is_transient(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("x"),
        CorruptData("x"),
        FileNotFoundError(errno.ENOENT, "x"),
        PermissionError(errno.EACCES, "x"),
        IsADirectoryError(errno.EISDIR, "x"),
        OSError(errno.ENOSPC, "x"),
        OSError("no number"),
        ValueError(),
        KeyboardInterrupt(),
    ],
)
def test_a_mistake_is_not(error: BaseException) -> None:
    assert not is_transient(error)


class Source:
    """Fails so often, then gives a value."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "value"


@pytest.mark.parametrize(("failures", "waits"), [(0, []), (1, [0.2]), (2, [0.2, 0.4])])
def test_it_goes_on_after_growing_waits(failures: int, waits: list[float]) -> None:
    waited: list[float] = []
    source = Source(failures, TimeoutError())
    assert retry(source, waited.append) == "value"
    assert waited == waits
    assert source.calls == failures + 1


def test_the_third_failure_is_the_last() -> None:
    waited: list[float] = []
    source = Source(3, TimeoutError("still"))
    with pytest.raises(TimeoutError, match="still"):
        retry(source, waited.append)
    assert (source.calls, waited) == (3, [0.2, 0.4])


def test_a_mistake_is_raised_at_once() -> None:
    source = Source(1, InvalidInput("never"))
    with pytest.raises(InvalidInput, match="never"):
        retry(source, lambda seconds: pytest.fail("it waited"))
    assert source.calls == 1


def test_no_attempt_at_all_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        retry(Source(0, TimeoutError()), print, attempts=0)
