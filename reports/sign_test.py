"""The sign test, exact (Conover 1999, Practical Nonparametric Statistics, section 3.4)."""

from scipy.special import bdtr  # scipy.stats has it too, and takes a second to import, in each process


def sign_test(more: int, count: int) -> float:
    """How probable a split as uneven as `more` of `count`, or more so, is where both sides are equally likely."""
    return min(1.0, 2 * float(bdtr(min(more, count - more), count, 0.5)))
