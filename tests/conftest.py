"""What every test starts from."""

from collections.abc import Iterator

import pytest
import structlog


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-transcripts",
        action="store_true",
        help="write the transcripts of simulated runs anew, from what happens",
    )


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """A program under test may configure the log, with a stream that ends with the test."""
    yield
    structlog.reset_defaults()
