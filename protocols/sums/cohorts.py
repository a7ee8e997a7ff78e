"""Which cohorts may sum over the same rows: two sums that differ by one or two members show those members' rows."""

from collections.abc import Iterable

from .errors import SumAborted

MINIMUM = 3


def check_minimum(contributors: int, minimum: int = MINIMUM) -> None:
    """Raise `SumAborted` for a cohort that hides nobody."""
    if contributors < max(minimum, MINIMUM):
        raise SumAborted(
            "cohort", "", f"{contributors} contribute, at least {max(minimum, MINIMUM)} are needed"
        )


def check_history(cohort: Iterable[str], earlier: Iterable[frozenset[str]]) -> None:
    """Raise `SumAborted` where an earlier cohort over the same rows differs by one or two members.

    The difference of the two sums would be those members' contribution. Contributors only: who adds zeros
    hides nothing.
    """
    now = frozenset(cohort)
    for other in earlier:
        changed = now ^ other
        if 0 < len(changed) < MINIMUM:
            raise SumAborted(
                "cohort",
                "",
                f"differs from an earlier cohort over the same rows only by {', '.join(sorted(changed))}: "
                "the two sums would show what they contribute",
            )
