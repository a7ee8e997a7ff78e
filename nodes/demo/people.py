"""The people of a development network's member: invited, enrolled and signed in as real ones are, but by a program."""

import secrets
import time
from pathlib import Path

import pyotp
from google.protobuf.json_format import MessageToDict
from lianfang.v1 import people_pb2 as pb
from lianfang.v1 import people_pb2_grpc

from ..config import Home
from ..files import write_atomic
from ..people.roles import Role
from ..services import wire

PEOPLE = {
    "wu-lei": Role.ADMINISTRATOR,
    "he-min": Role.ADMINISTRATOR,
    "li-na": Role.OPERATOR,
    "zhang-wei": Role.ANALYST,
    "wang-fang": Role.APPROVER,
    "chen-jie": Role.AUDITOR,
}


def session(folder: Path, name: str) -> Path:
    """Where somebody's session is kept in a member's folder."""
    return folder / "people" / f"{name}.session"


def enrol(folder: Path) -> None:
    """Everybody, once; each session goes into a file of its own. Passwords are kept nowhere.

    What broke off is taken up again: the administrators come last, and until then the node's owner invites.
    """
    (folder / "people").mkdir(mode=0o700, exist_ok=True)
    missing = sorted(
        (name for name in PEOPLE if not session(folder, name).exists()),
        key=lambda name: PEOPLE[name] is Role.ADMINISTRATOR,
    )
    if not missing:
        return
    home = Home(folder)
    with wire.admin_channel(home.socket, home.owner_token.read_text) as channel:
        node = people_pb2_grpc.PeopleStub(channel)
        known = {
            each["name"] for each in MessageToDict(node.ListPeople(pb.ListPeopleRequest()).document)["people"]
        }
        invitations = {
            name: node.Invite(
                pb.InviteRequest(name=name, roles=[] if name in known else [PEOPLE[name]])
            ).invitation
            for name in missing
        }
        for name, invitation in invitations.items():
            begun = node.BeginEnrolment(pb.BeginEnrolmentRequest(name=name, invitation=invitation))
            signed = node.FinishEnrolment(
                pb.FinishEnrolmentRequest(
                    name=name,
                    invitation=invitation,
                    password=secrets.token_urlsafe(16),
                    code=pyotp.TOTP(begun.secret).at(int(time.time())),
                )
            )
            write_atomic(session(folder, name), signed.token.encode(), 0o600)
