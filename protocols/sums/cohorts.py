"""Which cohorts may sum over the same rows: a member joins one only.

From sums of several cohorts that share a member, few colluders can compute what it contributed, however much the cohorts differ:
{A, B, C, M1} and {A, B, C, D, M2} give M1 and M2 the vector of D. Cohorts of one and the same membership give every such pair the
same sum, and cohorts without a common honest member have nothing in common.
"""

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
    """Raise `SumAborted` where an earlier cohort over the same rows had other members.

    Contributors only: who adds zeros hides nothing.
    """
    now = frozenset(cohort)
    for other in earlier:
        if changed := now ^ other:
            raise SumAborted(
                "cohort",
                "",
                f"differs from an earlier cohort over the same rows by {', '.join(sorted(changed))}: from the two sums "
                "some members could compute what another contributes",
            )
