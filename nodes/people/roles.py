"""Which role each method of the admin socket needs, and which of them need a second person.

One table: the interceptor lets nothing in that does not stand in it.
"""

from dataclasses import dataclass
from enum import StrEnum

from ..errors import invalid


class Role(StrEnum):
    """What a person of an institution may do; one person may have several."""

    OPERATOR = "operator"  # keeps lists, copies, contracts and jobs
    ANALYST = "analyst"  # asks questions
    APPROVER = "approver"  # is the second person
    AUDITOR = "auditor"  # reads the ledger
    ADMINISTRATOR = "administrator"  # decides who the people are, together with another one


ALL = frozenset(Role)
_O, _A, _AP, _AU, _AD = (frozenset({each}) for each in Role)
SCOPES = ("ask", "contracts", "learning", "ledger", "lists", "sets", "status", "sync")


@dataclass(frozen=True)
class Need:
    """What a method asks of who calls it."""

    roles: frozenset[Role] = frozenset()
    scope: str = ""  # of an API token that may call it; empty: only who has signed in
    second: frozenset[Role] = frozenset()  # roles of the second person, where one is needed
    when: str = ""  # and when that is
    open: bool = False  # to whoever reaches the socket
    process: bool = False  # to the node's own learning process alone


_PROCESS = Need(process=True)
_OPEN = Need(open=True)

# Ending an agreement and withdrawing a few entries is the safe direction: one person suffices.
NEEDS: dict[str, Need] = {
    "Admin/Status": Need(ALL, "status"),
    "Admin/Peers": Need(ALL, "status"),
    "Admin/Diagnose": Need(ALL, "status"),
    "Admin/ListStats": Need(ALL, "status"),
    "Admin/Import": Need(_O, "lists", _AP, "it withdraws many entries"),
    "Admin/ListEntries": Need(_O | _AP, "lists"),
    "Admin/Withdraw": Need(_O, "lists", _AP, "many entries"),
    "Admin/Rotate": Need(_O, "lists"),
    "Admin/Activate": Need(_O, "lists", _AP, "always"),
    "Admin/Sync": Need(_O | _A, "sync"),
    "Admin/Query": Need(_A, "ask", _AP, "bulk: one question, or a person's of a day"),
    "Admin/Ask": Need(_A, "ask", _AP, "bulk: one question, or a person's of a day"),
    "Admin/StartScreening": Need(_A, "ask", _AP, "always"),
    "Admin/Screenings": Need(ALL, "status"),
    "Admin/ScreeningResults": Need(_A, "ask"),
    "Admin/StopScreening": Need(_A | _AP, "ask"),
    "LedgerAdmin/Head": Need(ALL, "ledger"),
    "LedgerAdmin/Prove": Need(_AU | _A, "ledger", _AP, "with what an event says"),
    "LedgerAdmin/Bundle": Need(_AU | _A, "ledger", _AP, "always"),
    "LedgerAdmin/Reconcile": Need(_AU | _O, "ledger"),
    "LedgerAdmin/Monitor": Need(_AU | _O, "ledger"),
    "LedgerAdmin/List": Need(_AU, "ledger"),
    "ContractAdmin/Propose": Need(_O, "contracts", _AP, "always"),
    "ContractAdmin/Decide": Need(_O, "contracts", _AP, "to approve"),
    "ContractAdmin/List": Need(ALL, "status"),
    "LearningAdmin/Launch": Need(_O, "learning"),
    "LearningAdmin/Jobs": Need(ALL, "status"),
    "LearningAdmin/Enter": _PROCESS,
    "LearningAdmin/SuperNodes": _PROCESS,
    "LearningAdmin/TakeSeat": _PROCESS,
    "LearningAdmin/RecordCohort": _PROCESS,
    "LearningAdmin/Report": _PROCESS,
    "LearningAdmin/Started": _PROCESS,
    "LearningAdmin/Counts": _PROCESS,
    "VerticalAdmin/Attend": _PROCESS,
    "VerticalAdmin/Aligned": _PROCESS,
    "VerticalAdmin/Predict": Need(_A, "ask", _AP, "bulk: as many customers as a bulk question has"),
    "PsiAdmin/Run": Need(_O | _A, "sets"),
    "PsiAdmin/Sessions": Need(ALL, "status"),
    "PsiAdmin/Outcome": Need(_O | _A, "sets"),
    "People/Login": _OPEN,
    "People/BeginEnrolment": _OPEN,
    "People/FinishEnrolment": _OPEN,
    "People/Logout": Need(ALL),
    "People/WhoAmI": Need(ALL, "status"),
    "People/ChangePassword": Need(ALL),
    "People/MakeToken": Need(ALL),
    "People/RevokeToken": Need(ALL),
    "People/ListPeople": Need(_AD | _AU),
    "People/Invite": Need(_AD, "", _AD, "always"),
    "People/SetRoles": Need(_AD, "", _AD, "always"),
    "People/Remove": Need(_AD, "", _AD, "always"),
    "People/ListActions": Need(ALL),
    "People/DecideAction": Need(ALL),  # whose role it takes, the action's own need says
}
# While a node has fewer than two administrators, whoever owns its files may call these without signing in.
FIRST = frozenset({"People/Invite", "People/ListPeople"})


def parse(names: list[str]) -> frozenset[Role]:
    """Raise `Refused` for a role that is none, or for none at all."""
    if not names:
        raise invalid(f"a role is needed: {', '.join(Role)}")
    try:
        return frozenset(Role(name) for name in names)
    except ValueError as error:
        raise invalid(f"roles are {', '.join(Role)}") from error
