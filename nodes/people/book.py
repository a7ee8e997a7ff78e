"""An institution's people and what signs them in.

Passwords are kept as Argon2id hashes, secrets of sessions, tokens and invitations as keyed hashes; the secret of an
authenticator (RFC 6238) has to be read again, so it is encrypted under the node's storage key. Kept in memory as well:
every call on the admin socket asks.
"""

import base64
import collections
import contextlib
import contextvars
import hmac
import logging
import re
import secrets
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2
import grpc
import pyotp
import sqlalchemy as sa
from lianfang.v1 import ledger_pb2
from sqlalchemy.dialects.sqlite import insert

from protocols.encoding import expand

from .. import limits
from ..errors import NotFound, Refused, invalid
from ..files import write_secret
from ..identity.keys import Vault
from ..identity.names import MemberName
from ..ledger.book import LogBook, random_id
from ..store import engine as db
from ..store import schema
from ..store.writer import GroupWriter
from . import roles as needs
from .roles import Need, Role

INVITATION, SESSION, TOKEN, PROCESS, OWNER = "invitation", "session", "token", "process", "owner"
ADMINISTRATORS = 2  # so many have enrolled before the node's owner has no say any more
HASHING = argon2.profiles.RFC_9106_LOW_MEMORY  # Argon2id, 64 MiB
_NAME = re.compile(r"[a-z][a-z0-9.-]{1,39}")
_SECRET = re.compile(r"[a-z0-9-]{1,63}\.[a-z]+-[0-9a-f]{12}\.[A-Za-z0-9_-]{43}")
_STEP = 30  # seconds of a code
_AUTHENTICATOR = b"authenticator"
_AUTHENTICATOR_BYTES = 20  # RFC 4226: the length of the hash
_DAY = 86_400
_log = logging.getLogger("lianfang.people")


@dataclass(frozen=True)
class Person:
    """Somebody of this institution."""

    id: bytes
    name: str
    roles: frozenset[Role]
    password: str
    authenticator: bytes
    code_step: int
    enrolled: bool
    removed: bool
    reset_at: float  # when this person was last invited anew; what was approved before does not count
    pseudonym: bytes

    def __repr__(self) -> str:
        return f"Person({self.name})"


@dataclass(frozen=True)
class Credential:
    """What stands for a person."""

    digest: bytes
    id: str
    person: bytes
    kind: str
    scopes: frozenset[str]
    label: str
    expires_at: float


@dataclass(frozen=True)
class Caller:
    """Who makes a call. Without a person: the node's owner, before there are administrators, or its process."""

    person: Person | None = None
    credential: Credential | None = None

    @property
    def pseudonym(self) -> bytes:
        """Of the person; empty for none."""
        return self.person.pseudonym if self.person else b""

    def whoever(self) -> Person:
        """The person; raises `Refused` where there is none."""
        if self.person is None:
            raise _unsigned()
        return self.person


CALLER: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def caller() -> Caller:
    """Who makes the call that is being answered."""
    return CALLER.get()


def _unsigned(message: str = "sign in: lianfang login NAME") -> Refused:
    return Refused(message, "SIGN_IN", grpc.StatusCode.UNAUTHENTICATED)


def _wrong() -> Refused:
    return _unsigned("name, password or code is wrong")


class PeopleBook:
    """One per node. What writes is called from a thread, `find_caller` from anywhere."""

    def __init__(
        self,
        database: sa.Engine,
        writer: GroupWriter,
        log: LogBook,
        vault: Vault,
        member: MemberName,
        process_file: Path,
        owner_file: Path,
        owner_invites: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._writer, self._log, self._vault = database, writer, log, vault
        self._member, self._owner_invites, self._clock = member.name, owner_invites, clock
        self._hasher = argon2.PasswordHasher.from_parameters(HASHING)
        self._nobody = self._hasher.hash(secrets.token_urlsafe())
        self._hashing = threading.Semaphore(2)  # each takes 64 MiB
        self._attempts: collections.deque[float] = collections.deque()
        self._guard = threading.Lock()
        self._people: dict[bytes, Person] = {}
        self._credentials: dict[bytes, Credential] = {}
        self._load()
        self._process = self._in_file(process_file, PROCESS)
        self._owner = self._in_file(owner_file, OWNER)

    def _in_file(self, file: Path, kind: str) -> bytes:
        """The digest of a secret that only those have who can read the node's files, and so can do anything anyway."""
        if not file.exists():
            write_secret(file, self._new_secret(kind)[1].encode())
        return self._digest(file.read_text("ascii"))

    def _load(self) -> None:
        with db.reading(self._database) as connection:
            people = connection.execute(sa.select(schema.person)).all()
            credentials = connection.execute(sa.select(schema.credential)).all()
        self._people = {
            row.id: Person(
                row.id,
                row.name,
                frozenset(map(Role, row.roles.split())),
                row.password,
                row.authenticator,
                row.code_step,
                row.enrolled_at is not None,
                row.removed_at is not None,
                row.reset_at,
                self._vault.pseudonym(row.id.hex()),
            )
            for row in people
        }
        self._credentials = {
            row.digest: Credential(
                row.digest,
                row.id,
                row.person,
                row.kind,
                frozenset(row.scopes.split()),
                row.label,
                row.expires_at,
            )
            for row in credentials
        }

    def _change(self, work: Callable[[sa.Connection], Any]) -> Any:
        """One at a time, and what is in memory is what `work` finds stored: it may decide by that."""
        with self._guard:
            try:
                return self._writer.submit(work).result()
            finally:
                self._load()

    def _record(self, connection: sa.Connection, actor: bytes, subject: Person, what: str) -> None:
        entry = self._log.prepare(
            ledger_pb2.EVENT_TYPE_PERSON,
            "",
            random_id(),
            resource=subject.pseudonym.hex(),
            asker=actor,
            reason=what,
        )
        self._log.record(connection, entry)

    # -- who calls ---------------------------------------------------------------------------------------------

    def _new_secret(self, kind: str) -> tuple[str, str]:
        identity = f"{kind}-{secrets.token_hex(6)}"
        return identity, f"{self._member}.{identity}.{secrets.token_urlsafe(32)}"

    def _digest(self, secret: str) -> bytes:
        return expand(self._vault.index_key, b"credential\x1f" + secret.encode(), 32)

    def find_caller(self, secret: str, method: str, need: Need) -> Caller:
        """Who shows this secret, if that may call the method. Raises `Refused`, saying what is missing."""
        if need.open:
            return Caller()
        if need.process:
            if not secret or not hmac.compare_digest(self._digest(secret), self._process):
                raise _unsigned("only the node's own learning process calls this")
            return Caller()
        if secret and hmac.compare_digest(self._digest(secret), self._owner):
            if method in needs.FIRST and self.open_to_owner:
                return Caller()
            raise _unsigned()
        found = self._credential(secret, (SESSION, TOKEN))
        person = self._people[found.person]
        self._check(person, found, method, need)
        return Caller(person, found)

    def check_again(self, who: Caller, method: str) -> None:
        """What has changed since the call began: raises `Refused` where it may not be made any more."""
        if who.person is None or who.credential is None:
            return
        if who.credential.digest not in self._credentials:
            raise _unsigned("the session or token has ended meanwhile: sign in")
        self._check(self._people[who.person.id], who.credential, method, needs.NEEDS[method])

    @staticmethod
    def _check(person: Person, found: Credential, method: str, need: Need) -> None:
        if found.kind == TOKEN and (not need.scope or need.scope not in found.scopes):
            wanted = f"the scope {need.scope}" if need.scope else "a person who has signed in"
            raise Refused(f"{method} needs {wanted}; the token {found.id} has not", "SCOPE")
        if not person.roles & need.roles:
            raise Refused(
                f"{method} needs the role {' or '.join(sorted(need.roles))}; {person.name} is "
                f"{', '.join(sorted(person.roles))}",
                "ROLE",
            )

    def _credential(self, secret: str, kinds: tuple[str, ...]) -> Credential:
        if not secret:
            raise _unsigned()
        if not _SECRET.fullmatch(secret):
            raise _unsigned("that is no token")
        member = secret.partition(".")[0]
        if member != self._member:
            raise _unsigned(f"this is a token of {member}, and this node is {self._member}")
        found = self._credentials.get(self._digest(secret))
        if found is None or found.kind not in kinds or self._people[found.person].removed:
            raise _unsigned("the token is unknown or was revoked: sign in")
        if found.expires_at <= self._clock():
            raise _unsigned(f"the {found.kind} has expired: sign in")
        return found

    @property
    def open_to_owner(self) -> bool:
        """Whether the node's owner may invite: too few administrators, or the configuration says so."""
        return self._owner_invites or self._administrators() < ADMINISTRATORS

    def _administrators(self, without: bytes = b"") -> int:
        return sum(
            each.enrolled and not each.removed and Role.ADMINISTRATOR in each.roles and each.id != without
            for each in self._people.values()
        )

    def get(self, person: bytes) -> Person:
        """By id."""
        return self._people[person]

    def all(self) -> list[Person]:
        """By name."""
        return sorted(self._people.values(), key=lambda each: each.name)

    def name_of(self, pseudonym: bytes) -> str:
        """Of somebody here; empty for somebody else."""
        return next((each.name for each in self._people.values() if each.pseudonym == pseudonym), "")

    def credentials(self, person: Person) -> list[Credential]:
        """What stands for somebody now."""
        now = self._clock()
        return [
            each for each in self._credentials.values() if each.person == person.id and each.expires_at > now
        ]

    # -- signing in --------------------------------------------------------------------------------------------

    def login(self, name: str, password: str, code: str) -> tuple[str, float, int]:
        """(token, when it expires, attempts that had failed). Raises `Refused`, not saying what was wrong."""
        failures = self._reserve(name)
        person = self._named(name)
        known = person is not None and person.enrolled and bool(person.password)
        right = self._verify(person.password if person and known else self._nobody, password)
        step = self._code(person, code) if person and known else None
        if person is None or not right or step is None:
            self._failed(name, person)
            raise _wrong()
        return (*self._sign_in(person, step, name), failures - 1)

    def _named(self, name: str) -> Person | None:
        found = next((each for each in self._people.values() if each.name == name), None)
        return None if found is None or found.removed else found

    def _who(self, name: str) -> bytes:
        return expand(self._vault.index_key, b"attempt\x1f" + name.encode(), 16)

    def _reserve(self, name: str) -> int:
        """Count an attempt before it is looked at: those at the same moment count, too. How many there were."""
        now = self._clock()
        with self._guard:
            while self._attempts and self._attempts[0] < now - 60:
                self._attempts.popleft()
            if len(self._attempts) >= limits.FAILED_LOGINS_A_MINUTE:
                raise Refused(
                    "too many failed attempts to sign in; try again in a minute",
                    "RATE",
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                )
            self._attempts.append(now)  # until it has succeeded
        table, who = schema.attempt, self._who(name)

        def work(connection: sa.Connection) -> int:
            row = connection.execute(sa.select(table).where(table.c.who == who)).first()
            if row is not None and row.locked_until > now:
                minutes = int((row.locked_until - now) // 60) + 1
                raise Refused(
                    f"locked after {row.failures} failed attempts; again in {minutes} minutes",
                    "LOCKED",
                    grpc.StatusCode.UNAUTHENTICATED,
                )
            failures = (row.failures if row is not None else 0) + 1
            over = failures - limits.FAILED_LOGINS
            locked = now + min(_DAY, limits.LOCK_SECONDS * 2 ** min(over, 10)) if over >= 0 else 0.0
            values = {"failures": failures, "locked_until": locked, "at": now}
            connection.execute(
                insert(table)
                .values(who=who, **values)
                .on_conflict_do_update(index_elements=["who"], set_=values)
            )
            return failures

        return int(self._writer.submit(work).result())

    def _succeeded(self, connection: sa.Connection, name: str) -> None:
        """An attempt that was right counts for nothing."""
        connection.execute(schema.attempt.delete().where(schema.attempt.c.who == self._who(name)))
        with contextlib.suppress(IndexError):
            self._attempts.pop()

    def _failed(self, name: str, person: Person | None) -> None:
        """The same work whether the name is somebody's or nobody's: the time it takes says nothing."""
        known = person.name if person else "somebody who is not known here"
        _log.warning("failed attempt to sign in as %s", known)
        table = schema.attempt

        def work(connection: sa.Connection) -> bool:
            query = sa.select(table.c.locked_until).where(table.c.who == self._who(name))
            locked = bool(connection.execute(query).scalar())
            if locked and person is not None:
                self._record(connection, b"", person, "locked")
            return locked

        if self._writer.submit(work).result():
            _log.error("%s is locked after too many failed attempts to sign in", known)

    def _verify(self, stored: str, password: str) -> bool:
        with self._hashing:
            try:
                return self._hasher.verify(stored, _prepared(password))
            except argon2.exceptions.VerificationError:
                return False

    def _code(self, person: Person, code: str) -> int | None:
        """The step of a code that is right now, or just before or after, and newer than the last one accepted."""
        secret = self._vault.decrypt(person.authenticator, _AUTHENTICATOR + person.id).decode()
        totp, now = pyotp.TOTP(secret), int(self._clock() // _STEP)
        found = None
        for step in (now - 1, now, now + 1):
            same = hmac.compare_digest(totp.at(step * _STEP).encode(), _plain_code(code).encode())
            if same and step > person.code_step:
                found = step
        return found

    def _spend_code(self, connection: sa.Connection, person: Person, step: int) -> None:
        """A code is good once."""
        table = schema.person
        done = connection.execute(
            table.update()
            .where(
                table.c.id == person.id,
                table.c.code_step < step,
                table.c.removed_at.is_(None),
                # Neither was set anew while the attempt was looked at.
                table.c.password == person.password,
                table.c.authenticator == person.authenticator,
            )
            .values(code_step=step)
        )
        if not done.rowcount:
            raise _wrong()

    def _sign_in(self, person: Person, step: int, name: str) -> tuple[str, float]:
        def work(connection: sa.Connection) -> tuple[str, float]:
            self._spend_code(connection, person, step)
            self._succeeded(connection, name)
            return self._issue(connection, person, SESSION, limits.SESSION_SECONDS)

        token: tuple[str, float] = self._change(work)
        _log.info("%s has signed in", person.name)
        return token

    def _issue(
        self,
        connection: sa.Connection,
        person: Person,
        kind: str,
        seconds: float,
        scopes: Iterable[str] = (),
        label: str = "",
    ) -> tuple[str, float]:
        identity, secret = self._new_secret(kind)
        now = self._clock()
        connection.execute(
            schema.credential.insert().values(
                digest=self._digest(secret),
                id=identity,
                person=person.id,
                kind=kind,
                scopes="\n".join(sorted(scopes)),
                label=label,
                made_at=now,
                expires_at=now + seconds,
            )
        )
        return secret, now + seconds

    def logout(self, who: Caller) -> None:
        """The session, or token, that was shown ends."""
        if who.credential is not None:
            self.revoke(who, who.credential.id)

    # -- enrolment -----------------------------------------------------------------------------------------------

    def _invited(self, name: str, invitation: str) -> tuple[Person, Credential]:
        """Raises `Refused`; guessing counts as a failed attempt to sign in."""
        self._reserve(name)
        person = self._named(name)
        try:
            found = self._credential(invitation, (INVITATION,))
        except Refused:
            self._failed(name, person)
            raise
        if person is None or found.person != person.id:
            self._failed(name, person)
            raise _unsigned("the invitation is somebody else's")
        self._writer.submit(lambda connection: self._succeeded(connection, name)).result()
        return person, found

    def begin_enrolment(self, name: str, invitation: str) -> tuple[str, str]:
        """A secret for the invited person's authenticator: (otpauth:// URI, the secret).

        It follows from the invitation and this node's key, so that whoever tries again has not to scan it again.
        """
        person, found = self._invited(name, invitation)
        seed = expand(self._vault.index_key, b"authenticator\x1f" + found.digest, _AUTHENTICATOR_BYTES)
        secret = base64.b32encode(seed).decode()
        stored = self._vault.encrypt(secret.encode(), _AUTHENTICATOR + person.id)
        table = schema.person
        self._change(
            lambda connection: connection.execute(
                table.update().where(table.c.id == person.id).values(authenticator=stored)
            )
        )
        uri = pyotp.TOTP(secret).provisioning_uri(name=f"{name}@{self._member}", issuer_name="Lianfang")
        return uri, secret

    def finish_enrolment(
        self, name: str, invitation: str, password: str, code: str
    ) -> tuple[str, float, int]:
        """Set the password, prove the authenticator, and sign in."""
        person, found = self._invited(name, invitation)
        _check_password(name, password)
        if not person.authenticator:
            raise invalid("enrolment begins with a secret for the authenticator")
        step = self._code(person, code)
        if step is None:
            self._reserve(name)
            self._failed(name, person)
            raise _unsigned("the code is wrong; is the clock of the telephone right?")
        hashed, table = self._hash(password), schema.person

        def work(connection: sa.Connection) -> tuple[str, float]:
            self._spend_code(connection, person, step)
            spent = connection.execute(
                schema.credential.delete().where(schema.credential.c.digest == found.digest)
            )
            if not spent.rowcount:
                raise _unsigned("the invitation was used or withdrawn meanwhile")
            values: dict[str, Any] = {"password": hashed}
            if not person.enrolled:
                values["enrolled_at"] = self._clock()
            connection.execute(table.update().where(table.c.id == person.id).values(**values))
            self._forget(connection, person)
            self._record(connection, person.pseudonym, person, "enrolled")
            return self._issue(connection, person, SESSION, limits.SESSION_SECONDS)

        return (*self._change(work), 0)

    def _hash(self, password: str) -> str:
        with self._hashing:
            return self._hasher.hash(_prepared(password))

    def change_password(self, who: Caller, password: str, code: str, new: str) -> None:
        """Asks for the old one and a code again; every other session ends."""
        person = who.whoever()
        _check_password(person.name, new)
        self._reserve(person.name)
        step = self._code(person, code)
        if not self._verify(person.password, password) or step is None:
            self._failed(person.name, person)
            raise _wrong()
        hashed, table = self._hash(new), schema.person

        def work(connection: sa.Connection) -> None:
            self._spend_code(connection, person, step)
            self._succeeded(connection, person.name)
            connection.execute(table.update().where(table.c.id == person.id).values(password=hashed))
            kept = who.credential.digest if who.credential else b""
            self._forget(connection, person, kept)
            self._record(connection, person.pseudonym, person, "password changed")

        self._change(work)

    # -- tokens --------------------------------------------------------------------------------------------------

    def make_token(self, who: Caller, label: str, scopes: list[str], days: int) -> tuple[str, float]:
        """For a program that acts for this person, within these scopes. Raises `Refused`."""
        person = who.whoever()
        if not scopes or set(scopes) - set(needs.SCOPES):
            raise invalid(f"scopes are {', '.join(needs.SCOPES)}")
        if not 1 <= days <= limits.TOKEN_DAYS:
            raise invalid(f"a token is good for 1 to {limits.TOKEN_DAYS} days")
        if not 1 <= len(label.strip()) <= 60 or not label.isprintable():
            raise invalid("a token needs a label of at most 60 characters that says what it is for")
        if len(self.credentials(person)) >= limits.TOKENS_A_PERSON:
            raise invalid(
                f"{limits.TOKENS_A_PERSON} sessions and tokens at most: revoke those not used any more"
            )

        def work(connection: sa.Connection) -> tuple[str, float]:
            made = self._issue(connection, person, TOKEN, days * _DAY, scopes, label.strip())
            self._record(connection, person.pseudonym, person, f"token: {', '.join(sorted(set(scopes)))}")
            return made

        token: tuple[str, float] = self._change(work)
        return token

    def revoke(self, who: Caller, identity: str) -> str:
        """End a session or token, by its id or itself: one's own, or as an administrator anybody's. Whose it was."""
        person, digest = who.whoever(), self._digest(identity)
        found = next(
            (each for each in self._credentials.values() if each.id == identity or each.digest == digest),
            None,
        )
        if found is None or (found.person != person.id and Role.ADMINISTRATOR not in person.roles):
            raise NotFound(f"{person.name} has no such session or token; `lianfang whoami` shows their ids")
        subject = self._people[found.person]

        def work(connection: sa.Connection) -> None:
            connection.execute(schema.credential.delete().where(schema.credential.c.digest == found.digest))
            if found.kind == TOKEN or found.person != person.id:
                self._record(connection, person.pseudonym, subject, f"{found.kind} revoked")

        self._change(work)
        return subject.name

    # -- people --------------------------------------------------------------------------------------------------

    def invite(self, who: Caller, name: str, roles: list[str]) -> tuple[str, float]:
        """A new person, or without roles a known one anew: (invitation, when it expires)."""
        wanted = needs.parse(roles) if roles else frozenset[Role]()
        if roles and not _NAME.fullmatch(name):
            raise invalid(f"name {name!r}: 2 to 40 lower-case letters, digits, dots and hyphens")
        table, identity = schema.person, secrets.token_bytes(16)

        def work(connection: sa.Connection) -> tuple[str, float]:
            subject = None if roles else self.known(name)
            if subject is None:
                if taken := next((each for each in self.all() if each.name == name), None):
                    what = "was removed; names are not used again" if taken.removed else "is known already"
                    raise invalid(f"{name} {what}")
                pseudonym = self._vault.pseudonym(identity.hex())
                subject = Person(identity, name, wanted, "", b"", 0, False, False, 0.0, pseudonym)
                connection.execute(
                    table.insert().values(
                        id=identity,
                        name=name,
                        roles="\n".join(sorted(wanted)),
                        password="",
                        authenticator=b"",
                        code_step=0,
                        reset_at=0.0,
                    )
                )
                self._record(connection, who.pseudonym, subject, f"invited: {', '.join(sorted(wanted))}")
            else:
                connection.execute(
                    table.update().where(table.c.id == subject.id).values(password="", reset_at=self._clock())
                )
                self._forget(connection, subject)
                self._record(connection, who.pseudonym, subject, "invited again")
            return self._issue(connection, subject, INVITATION, limits.INVITATION_SECONDS)

        made: tuple[str, float] = self._change(work)
        return made

    def known(self, name: str) -> Person:
        """By name; raises `NotFound`."""
        person = self._named(name)
        if person is None:
            raise NotFound(f"there is nobody named {name!r} here")
        return person

    def set_roles(self, who: Caller, name: str, roles: list[str]) -> Person:
        """From the next call on. Raises `Refused` where too few administrators would be left."""
        wanted, table = needs.parse(roles), schema.person

        def work(connection: sa.Connection) -> None:
            person = self.known(name)
            if Role.ADMINISTRATOR not in wanted:
                self._check_administrators(person)
            connection.execute(
                table.update().where(table.c.id == person.id).values(roles="\n".join(sorted(wanted)))
            )
            self._record(connection, who.pseudonym, person, f"roles: {', '.join(sorted(wanted))}")

        self._change(work)
        return self.known(name)

    def remove(self, who: Caller, name: str) -> None:
        """Sessions and tokens end at once; the name stays taken, so that the ledger stays readable."""
        table = schema.person

        def work(connection: sa.Connection) -> None:
            person = self.known(name)
            self._check_administrators(person)
            connection.execute(
                table.update()
                .where(table.c.id == person.id)
                .values(removed_at=self._clock(), password="", authenticator=b"")
            )
            self._forget(connection, person)
            self._record(connection, who.pseudonym, person, "removed")

        self._change(work)

    def _check_administrators(self, leaving: Person) -> None:
        counts = Role.ADMINISTRATOR in leaving.roles and leaving.enrolled
        if counts and self._administrators(without=leaving.id) < ADMINISTRATORS:
            raise Refused(
                f"fewer than {ADMINISTRATORS} administrators would be left: invite another first",
                "ADMINISTRATORS",
                grpc.StatusCode.FAILED_PRECONDITION,
            )

    def _forget(self, connection: sa.Connection, person: Person, kept: bytes = b"") -> None:
        table = schema.credential
        connection.execute(table.delete().where(table.c.person == person.id, table.c.digest != kept))

    # -- for reports ---------------------------------------------------------------------------------------------

    def locked(self) -> list[str]:
        """Names that may not sign in now."""
        table, now = schema.attempt, self._clock()
        with db.reading(self._database) as connection:
            found = set(
                connection.execute(sa.select(table.c.who).where(table.c.locked_until > now)).scalars()
            )
        return [each.name for each in self.all() if self._who(each.name) in found]

    def purge(self) -> None:
        """Forget what has expired."""
        now = self._clock()
        attempt, credential = schema.attempt, schema.credential
        expired = any(each.expires_at < now for each in self._credentials.values())
        with db.reading(self._database) as connection:
            old = connection.execute(
                sa.select(sa.func.count()).where(attempt.c.at < now - _DAY, attempt.c.locked_until < now)
            ).scalar()
        if not expired and not old:
            return

        def work(connection: sa.Connection) -> None:
            connection.execute(credential.delete().where(credential.c.expires_at < now))
            connection.execute(
                attempt.delete().where(attempt.c.at < now - _DAY, attempt.c.locked_until < now)
            )

        self._change(work)


def _prepared(password: str) -> str:
    """As RFC 8265 prepares a password (OpaqueString): NFC, and every kind of space is one."""
    spaced = "".join(" " if unicodedata.category(char) == "Zs" else char for char in password)
    return unicodedata.normalize("NFC", spaced)


def _plain_code(code: str) -> str:
    """Digits as the authenticator shows them, however they were grouped or which keyboard typed them."""
    return re.sub(r"[\s\-\u2010-\u2015]", "", unicodedata.normalize("NFKC", code))


def _check_password(name: str, password: str) -> None:
    password = _prepared(password)
    if not limits.PASSWORD_CHARACTERS <= len(password) <= 1_000:
        raise invalid(f"a password has at least {limits.PASSWORD_CHARACTERS} characters")
    if name in password.lower() or len(set(password)) < 6:
        raise invalid("the password is too easy to guess")
