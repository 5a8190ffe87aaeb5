"""A node's report of its download is checked against what the coordinator sent."""

import pytest

from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.links.downloads import DownloadLedger

SENT = 1000
TRUE = Transfer(500, 4.0, 300, 2.0)


def ledger() -> DownloadLedger:
    """Return a ledger of a sending of 1,000 bytes that began at 10 s."""
    made = DownloadLedger()
    made.begin("a", 10.0)
    made.sent("a", 400)
    made.sent("a", SENT - 400)
    return made


def test_one_report_is_accepted_for_each_sending() -> None:
    made = ledger()
    assert made.is_plausible("a", TRUE, 16.0)
    assert not made.is_plausible("a", TRUE, 16.0)
    made.begin("a", 20.0)
    made.sent("a", SENT)
    assert made.is_plausible("a", TRUE, 26.0)


def test_nothing_is_accepted_without_a_sending() -> None:
    made = DownloadLedger()
    made.sent("a", SENT)
    assert not made.is_plausible("a", TRUE, 16.0)
    assert not ledger().is_plausible("b", TRUE, 16.0)
    forgotten = ledger()
    forgotten.forget("a")
    assert not forgotten.is_plausible("a", TRUE, 16.0)


@pytest.mark.parametrize(
    ("transfer", "plausible"),
    [
        (Transfer(700, 4.0, 300, 2.0), True),
        (Transfer(701, 4.0, 300, 2.0), False),  # more than was sent
        (Transfer(250, 4.0), True),
        (Transfer(249, 4.0), False),  # a part that says little about the whole
        (Transfer(500, 4.1, 300, 2.0), False),  # longer ago than the sending
        (Transfer(500, 4.0, 300, 2.1), False),
        (Transfer(500, 0.0, 300, 0.0), True),
        (Transfer(500, -0.1, 300, 0.0), False),
        (Transfer(500, 0.1, 300, -0.1), False),
        (Transfer(500, 0.1, -1, 0.0), False),
        (Transfer(0, 0.1, 300, 0.0), False),
        (Transfer(500, float("nan"), 300, 0.0), False),
        (Transfer(500, 4.0, 300, float("inf")), False),
    ],
)
def test_a_report_is_about_what_was_sent_and_when(transfer: Transfer, plausible: bool) -> None:
    assert ledger().is_plausible("a", transfer, 16.0) is plausible
