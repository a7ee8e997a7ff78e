"""gRPC: signing in, who the people are, and what waits for a second one."""

import asyncio
from typing import Any

from lianfang.v1 import people_pb2 as pb
from lianfang.v1 import people_pb2_grpc

from protocols.encoding import frame

from ..errors import invalid
from ..report import iso
from ..services import wire
from .actions import Action, Actions
from .book import TOKEN, PeopleBook, Person, caller

_SHOWN_LENGTH = 16  # characters of a pseudonym


class PeopleService(people_pb2_grpc.PeopleServicer):
    """Thin: reads the request, calls the book, writes the answer."""

    def __init__(self, people: PeopleBook, actions: Actions) -> None:
        self._people, self._actions = people, actions

    @wire.unary
    async def Login(self, request: pb.LoginRequest, context: Any) -> pb.SignedIn:
        """A session."""
        made = await asyncio.to_thread(self._people.login, request.name, request.password, request.code)
        return _signed_in(*made)

    @wire.unary
    async def BeginEnrolment(self, request: pb.BeginEnrolmentRequest, context: Any) -> pb.BeginEnrolmentReply:
        """A secret for the authenticator."""
        uri, secret = await asyncio.to_thread(self._people.begin_enrolment, request.name, request.invitation)
        return pb.BeginEnrolmentReply(uri=uri, secret=secret)

    @wire.unary
    async def FinishEnrolment(self, request: pb.FinishEnrolmentRequest, context: Any) -> pb.SignedIn:
        """Password and authenticator are set; a session."""
        made = await asyncio.to_thread(
            self._people.finish_enrolment, request.name, request.invitation, request.password, request.code
        )
        return _signed_in(*made)

    @wire.unary
    async def Logout(self, request: pb.LogoutRequest, context: Any) -> pb.PeopleReply:
        """The session ends."""
        await asyncio.to_thread(self._people.logout, caller())
        return pb.PeopleReply()

    @wire.unary
    async def WhoAmI(self, request: pb.WhoAmIRequest, context: Any) -> pb.PeopleReply:
        """The caller, and what stands for it."""
        who = caller()
        document = self._document(who.whoever())
        document["signed_in_by"] = who.credential.id if who.credential else ""
        return _reply(document)

    @wire.unary
    async def ChangePassword(self, request: pb.ChangePasswordRequest, context: Any) -> pb.PeopleReply:
        """With the old one and a code."""
        await asyncio.to_thread(
            self._people.change_password, caller(), request.password, request.code, request.new_password
        )
        return pb.PeopleReply()

    @wire.unary
    async def MakeToken(self, request: pb.MakeTokenRequest, context: Any) -> pb.SignedIn:
        """For a program."""
        token, expires = await asyncio.to_thread(
            self._people.make_token, caller(), request.label, list(request.scopes), request.days
        )
        return _signed_in(token, expires, 0)

    @wire.unary
    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.PeopleReply:
        """A session or token ends."""
        whose = await asyncio.to_thread(self._people.revoke, caller(), request.id)
        return _reply({"revoked": request.id, "of": whose})

    # -- people ------------------------------------------------------------------------------------------------

    @wire.unary
    async def ListPeople(self, request: pb.ListPeopleRequest, context: Any) -> pb.PeopleReply:
        """Everybody, with pseudonyms as the ledger has them."""
        locked = await asyncio.to_thread(self._people.locked)
        return _reply(
            {
                "people": [
                    {**self._document(each), "locked": each.name in locked} for each in self._people.all()
                ],
                "open_to_owner": self._people.open_to_owner,
            }
        )

    @wire.unary
    async def Invite(self, request: pb.InviteRequest, context: Any) -> pb.InviteReply:
        """A new person, or a known one anew."""
        roles = ", ".join(request.roles)
        what = f"invite {request.name} as {roles}" if roles else f"invite {request.name} again"

        def work() -> tuple[str, float]:
            return self._people.invite(caller(), request.name, list(request.roles))

        made = await asyncio.to_thread(self._together, "People/Invite", request, what, work)
        return pb.InviteReply(invitation=made[0], expires_at=int(made[1]))

    @wire.unary
    async def SetRoles(self, request: pb.SetRolesRequest, context: Any) -> pb.PeopleReply:
        """From the next call on."""
        person = self._people.known(request.name)
        what = f"{person.name}: {', '.join(sorted(person.roles))} becomes {', '.join(sorted(request.roles))}"

        def work() -> dict[str, Any]:
            return self._document(self._people.set_roles(caller(), request.name, list(request.roles)))

        before = ",".join(sorted(person.roles))  # from other roles it is another change
        return _reply(await asyncio.to_thread(self._together, "People/SetRoles", request, what, work, before))

    @wire.unary
    async def Remove(self, request: pb.RemovePersonRequest, context: Any) -> pb.PeopleReply:
        """At once, with all sessions and tokens."""
        self._people.known(request.name)

        def work() -> None:
            self._people.remove(caller(), request.name)

        await asyncio.to_thread(self._together, "People/Remove", request, f"remove {request.name}", work)
        return _reply({"removed": request.name})

    def _together(self, method: str, request: Any, title: str, work: Any, before: str = "") -> Any:
        """Two administrators; while there are none, the node's owner."""
        action = Action(method, frame(request.SerializeToString(deterministic=True), before), title, {})
        with self._actions.doing(action, second=True):
            return work()

    def _document(self, person: Person) -> dict[str, Any]:
        return {
            "name": person.name,
            "roles": sorted(person.roles),
            "enrolled": person.enrolled and bool(person.password),
            "removed": person.removed,
            "pseudonym": person.pseudonym.hex()[:_SHOWN_LENGTH],
            "tokens": [
                {
                    "id": each.id,
                    "kind": each.kind,
                    "label": each.label,
                    "scopes": sorted(each.scopes),
                    "expires_at": iso(each.expires_at),
                }
                for each in sorted(self._people.credentials(person), key=lambda each: each.kind != TOKEN)
            ],
        }

    # -- the second person -------------------------------------------------------------------------------------

    @wire.unary
    async def ListActions(self, request: pb.ListActionsRequest, context: Any) -> pb.PeopleReply:
        """What waits, for those who have a part in it."""
        if request.id:
            return _reply(await asyncio.to_thread(self._actions.show, caller(), request.id))
        return _reply({"actions": await asyncio.to_thread(self._actions.list, caller())})

    @wire.unary
    async def DecideAction(self, request: pb.ActionDecision, context: Any) -> pb.PeopleReply:
        """Approve or reject."""
        if request.verdict not in (pb.ActionDecision.VERDICT_APPROVE, pb.ActionDecision.VERDICT_REJECT):
            raise invalid("approve or reject")
        approve = request.verdict == pb.ActionDecision.VERDICT_APPROVE
        return _reply(await asyncio.to_thread(self._actions.decide, caller(), request.id, approve))


def _signed_in(token: str, expires: float, failures: int) -> pb.SignedIn:
    return pb.SignedIn(token=token, expires_at=int(expires), failures=failures)


def _reply(document: dict[str, Any]) -> pb.PeopleReply:
    return pb.PeopleReply(document=wire.struct(document))
