"""Nothing on the admin socket without a person, and nothing that the person's role does not allow."""

from typing import Any

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

    async def enter(self, method: str, context: Any) -> None:
        """Raise `Refused` unless the table of roles lets the caller in."""
        if method.startswith(_OPEN):
            return
        name = method.removeprefix(_PREFIX)
        need = roles.NEEDS.get(name)
        if need is None:
            raise Refused(f"{name} is for nobody", "ROLE")
        shown = next((value for key, value in context.invocation_metadata() if key == "authorization"), "")
        CALLER.set(self._people.find_caller(str(shown).removeprefix(_BEARER), name, need))

    def leave(self, entered: None) -> None:
        """Nothing is held."""
