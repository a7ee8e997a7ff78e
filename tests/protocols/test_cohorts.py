"""Whether few colluders can compute one member's vector from the sums that they hear: searched, over small networks."""

import itertools

import numpy as np
import pytest

from protocols.sums import cohorts
from protocols.sums.errors import SumAborted


def solved(sums, honest):
    """Honest members whose vector follows from the sums that colluders know, once their own parts are subtracted."""
    names = sorted(honest)
    if not sums:
        return set()
    matrix = np.array([[float(name in cohort) for name in names] for cohort in sums])
    rank = np.linalg.matrix_rank(matrix)
    found = set()
    for i, name in enumerate(names):
        unit = np.zeros((1, len(names)))
        unit[0, i] = 1.0
        if np.linalg.matrix_rank(np.vstack([matrix, unit])) == rank:
            found.add(name)
    return found


def pairwise(cohort, earlier):
    """The rule of version 0.1.0: cohorts that differ by one or two are refused."""
    return all(not 0 < len(frozenset(cohort) ^ other) < 3 for other in earlier)


def larger_pairwise(cohort, earlier):
    """The same with a larger difference, which does not help either."""
    return all(not 0 < len(frozenset(cohort) ^ other) < 4 for other in earlier)


def one_only(cohort, earlier):
    """The rule that is shipped."""
    try:
        cohorts.check_history(cohort, earlier)
    except SumAborted:
        return False
    return True


def exposed(rule, members, colluders, sums):
    """A sequence of sums that honest members take part in and from which colluders solve one of them; None where there is none.

    Each honest member judges by the cohorts that it was in itself. Colluders, and the coordinator with them, choose every cohort.
    """
    honest = set(members) - set(colluders)
    least = len(colluders) + 2
    possible = [
        frozenset(cohort)
        for size in range(least, len(members) + 1)
        for cohort in itertools.combinations(members, size)
        if set(cohort) & set(colluders)  # else they hear nothing
    ]

    def search(history):
        if found := solved([cohort & honest for cohort in history], honest):
            return history, found
        if len(history) == sums:
            return None
        for cohort in possible:
            if cohort in history:
                continue
            if all(rule(cohort, [each for each in history if member in each]) for member in cohort & honest):
                result = search([*history, cohort])
                if result:
                    return result
        return None

    return search([])


@pytest.mark.parametrize(
    ("rule", "members", "colluders", "sums"),
    [
        (pairwise, "abcdef", "ef", 2),  # {a, b, c, e} and {a, b, c, d, f}
        (pairwise, "abcdeg", "c", 3),  # {a, b, c}, {c, d, e} and all: nobody but c is in the three
        (larger_pairwise, "abcdefg", "efg", 2),
    ],
)
def test_rules_of_pairwise_differences_show_one_member_to_few(rule, members, colluders, sums):
    """The search finds what attackers found in version 0.1.0, and after its first correction: it is able to fail."""
    assert exposed(rule, members, colluders, sums) is not None


@pytest.mark.parametrize(
    ("members", "colluders", "sums"),
    [
        ("abcd", "d", 5),
        ("abcde", "e", 5),
        ("abcde", "de", 5),
        ("abcdef", "ef", 4),
        ("abcdef", "def", 4),
        ("abcdefg", "fg", 4),
    ],
)
def test_no_sequence_of_sums_shows_one_member_to_as_many_as_the_job_allows(members, colluders, sums):
    assert exposed(one_only, members, colluders, sums) is None
