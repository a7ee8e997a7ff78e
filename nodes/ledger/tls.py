"""TLS of the ledger's HTTPS: who may connect is decided at the handshake, by the certificates of the member list.

A context trusts exactly those certificates, each as an anchor of its own, so that the CA's other certificates (revoked,
replaced, of a development tool) open nothing.
"""

import ssl
from collections.abc import Callable, Iterable

from ..config import Home
from ..errors import Refused
from ..identity.members import Member, MemberBook, MemberList


def _trusting(context: ssl.SSLContext, members: Iterable[Member], home: Home) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET  # a session resumed would skip the check of who is a member by now
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(home.certs / "node.crt", home.keys / "tls.key")
    anchors = []
    for member in members:
        try:
            anchors.append(member.trusted_pem().decode())
        except Refused:  # expired: it cannot connect
            continue
    if anchors:
        context.load_verify_locations(cadata="".join(anchors))
    return context


def for_member(member: Member, home: Home) -> ssl.SSLContext:
    """A client's context that trusts one member alone. Raises `Refused` where its certificate has expired."""
    member.trusted_pem()
    return _trusting(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), [member], home)


def for_members(book: MemberBook, home: Home) -> ssl.SSLContext:
    """A server's context that lets the current members in; each handshake sees the member list of its moment."""
    own = str(home.name)
    made: dict[int, ssl.SSLContext] = {}

    def fresh(current: MemberList) -> ssl.SSLContext:
        if id(current) not in made:
            made.clear()
            others = [member for member in current if member.id != own]
            made[id(current)] = _trusting(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), others, home)
            made[id(current)].num_tickets = 0
            kept.append(current)
            del kept[:-1]
        return made[id(current)]

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = fresh(book.current)

    kept: list[MemberList] = []  # as long as its identity is a key
    first = _trusting(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), [], home)
    callback: Callable[..., None] = choose
    first.num_tickets = 0
    first.sni_callback = callback
    return first
