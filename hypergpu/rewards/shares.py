"""Division of an amount by scores, in whole units: nothing is lost to rounding."""

from collections.abc import Mapping
from fractions import Fraction

from hypergpu.common.errors import InvalidInput


def divide(total: int, scores: Mapping[str, float]) -> dict[str, int]:
    """Return the share of each node that has a score above zero; the shares add up to `total`.

    Each gets its share rounded down; what is left goes to the largest remainders, one unit each (Hamilton's method).
    Of equal remainders, the first name comes first.

    Raises:
        InvalidInput: No score is above zero.
    """
    exact = {node: Fraction(score) for node, score in scores.items() if score > 0}
    whole = sum(exact.values())
    if not whole:
        raise InvalidInput("no node has a score above zero, so that nobody can be paid")
    quotas = {node: total * score / whole for node, score in exact.items()}
    shares = {node: quota.numerator // quota.denominator for node, quota in quotas.items()}
    left = total - sum(shares.values())
    for node in sorted(quotas, key=lambda each: (shares[each] - quotas[each], each))[:left]:
        shares[node] += 1
    return {node: share for node, share in shares.items() if share}
