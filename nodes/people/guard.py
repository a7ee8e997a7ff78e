"""Nothing on the admin socket without a person, and nothing that the person's role does not allow."""

from typing import Any

import grpc

from .. import limits
from ..errors import Refused
from ..services.intercept import Interceptor
from . import roles
from .book import CALLER, PeopleBook

_OPEN = ("/grpc.health.v1.Health/Check", "/grpc.reflection.")
_PREFIX = "/lianfang.v1."
_BEARER = "Bearer "


class PeopleOnly(Interceptor):
    """Reads `authorization: Bearer TOKEN` and makes the caller known to the handler."""

    def __init__(self, people: PeopleBook) -> None:
        super().__init__()
        self._people = people
        self._strangers = 0  # calls of whoever has not signed in

    async def enter(self, method: str, context: Any) -> bool:
        """Whether the caller is nobody yet. Raise `Refused` unless the table of roles lets the caller in."""
        if method.startswith(_OPEN):
            return False
        name = method.removeprefix(_PREFIX)
        need = roles.NEEDS.get(name)
        if need is None:
            raise Refused(f"{name} is for nobody", "ROLE")
        shown = next((value for key, value in context.invocation_metadata() if key == "authorization"), "")
        if need.open:  # a message may be as large as a question: few at once of those whom nobody knows
            if self._strangers >= limits.SIGN_INS_AT_ONCE:
                raise Refused(
                    "many are signing in at this moment; try again",
                    "BUSY",
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                )
            self._strangers += 1
        CALLER.set(self._people.find_caller(str(shown).removeprefix(_BEARER), name, need))
        return need.open

    def patience(self, method: str) -> float:
        """Whoever is not known yet has less."""
        need = roles.NEEDS.get(method.removeprefix(_PREFIX))
        return limits.SIGN_IN_SECONDS if need is not None and need.open else super().patience(method)

    def leave(self, entered: bool) -> None:
        """One call fewer of nobody's."""
        self._strangers -= entered
