"""Tables. Three databases: `node.db` is small and hot (the gate and the log write it at each question); `lists.db`
holds the entries, so that an import of a million rows in one transaction never makes a question wait; `mirrors.db`
holds copies of others' logs.

Times are seconds since 1970-01-01 UTC, days are days since then. What is about a person is encrypted or a
keyed index (`Vault`).
"""

from sqlalchemy import (
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

node = MetaData()
lists = MetaData()
mirrors = MetaData()

# -- the gate ----------------------------------------------------------------------------------------------

decision = Table(
    "decision",
    node,
    Column("id", Integer, primary_key=True),
    Column("query_id", LargeBinary, nullable=False),
    Column("peer", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("purpose", Integer, nullable=False),
    Column("basis", Integer, nullable=False),
    Column("count", Integer, nullable=False),
    Column("request_hash", LargeBinary, nullable=False),
    Column("case_commitment", LargeBinary, nullable=False),
    Column("asker", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
    Column("repeats", Integer, nullable=False),
    UniqueConstraint("peer", "query_id"),
    Index("decision_burst", "peer", "resource", "at"),
)
usage = Table(
    "usage",
    node,
    Column("peer", Text),
    Column("resource", Text),
    Column("epoch", Integer),
    Column("day", Integer),
    Column("evaluations", Integer, nullable=False),
    PrimaryKeyConstraint("peer", "resource", "epoch", "day"),
    Index("usage_list", "resource", "epoch"),
    Index("usage_day", "resource", "day"),
)
refusal = Table(
    "refusal",
    node,
    Column("peer", Text),
    Column("action", Text),
    Column("resource", Text),
    Column("reason", Text),
    Column("purpose", Integer),
    Column("day", Integer),
    Column("times", Integer, nullable=False),
    Column("last_at", Float, nullable=False),
    PrimaryKeyConstraint("peer", "action", "resource", "reason", "purpose", "day"),
)

# -- own sealed lists --------------------------------------------------------------------------------------

epoch = Table(
    "epoch",
    node,
    Column("list", Text),
    Column("number", Integer),
    Column("public_key", LargeBinary, nullable=False),
    Column("opened_at", Integer, nullable=False),
    Column("closes_at", Integer, nullable=False),
    Column("state", Text, nullable=False),  # sealing, open, closing, closed
    Column("opened", LargeBinary, nullable=False),  # SignedStatement
    Column("closed", LargeBinary),
    PrimaryKeyConstraint("list", "number"),
)
batch = Table(
    "batch",
    node,
    Column("list", Text),
    Column("epoch", Integer),
    Column("number", Integer),
    Column("to_seq", Integer, nullable=False),
    Column("additions", Integer, nullable=False),
    Column("removals", Integer, nullable=False),
    Column("sealed", Integer, nullable=False),
    Column("tombstones", Integer, nullable=False),
    Column("dummies_added", Integer, nullable=False),  # in this epoch so far
    Column("dummies_removed", Integer, nullable=False),
    Column("table_hash", LargeBinary, nullable=False),
    Column("descriptor", LargeBinary, nullable=False),  # SignedStatement
    Column("at", Integer, nullable=False),
    PrimaryKeyConstraint("list", "epoch", "number"),
)

# -- what others have said, and what we asked them ---------------------------------------------------------

pin = Table(
    "pin",
    node,
    Column("holder", Text),
    Column("list", Text),
    Column("epoch", Integer),
    Column("slot", Text),
    Column("signed", LargeBinary, nullable=False),  # SignedStatement
    Column("at", Float, nullable=False),
    Column("position", Integer),  # in the holder's log
    PrimaryKeyConstraint("holder", "list", "epoch", "slot"),
)
alarm = Table(
    "alarm",
    node,
    Column("id", Integer, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("list", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("first", LargeBinary, nullable=False),
    Column("second", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)
synced = Table(
    "synced",
    node,
    Column("holder", Text),
    Column("list", Text),
    Column("epoch", Integer),
    Column("public_key", LargeBinary, nullable=False),
    Column("batch", Integer, nullable=False),  # newest batch applied
    Column("closed", Integer, nullable=False),
    Column("checked_at", Float, nullable=False),  # when the holder last said this is the newest
    Column("form", LargeBinary),  # under which its entries were normalised
    PrimaryKeyConstraint("holder", "list", "epoch"),
)
offer = Table(
    "offer",
    node,
    Column("holder", Text),
    Column("list", Text),
    Column("budget", LargeBinary, nullable=False),  # Budget, as last told
    Column("purposes", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("holder", "list"),
)
asked = Table(
    "asked",
    node,
    Column("query_id", LargeBinary, primary_key=True),
    Column("job", LargeBinary, nullable=False),
    Column("holder", Text, nullable=False),
    Column("list", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("count", Integer, nullable=False),
    Column("purpose", Integer, nullable=False),
    Column("basis", Integer, nullable=False),
    Column("case_commitment", LargeBinary, nullable=False),
    Column("asker", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
    Column("outcome", Text, nullable=False),  # pending, answered, refused, void
    Column("secret", LargeBinary),  # seed and identifiers, encrypted; erased with the answer
    Column(
        "sole", LargeBinary
    ),  # keyed index of the only identifier; empty where there are several, and once it is answered
    Index("asked_open", "job", "sole", sqlite_where=text("outcome = 'pending'")),
)
job = Table(
    "job",
    node,
    Column("id", LargeBinary, primary_key=True),
    Column("case_secret", LargeBinary, nullable=False),  # case number and commitment salt, encrypted
    Column("case_commitment", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)
answer = Table(
    "answer",
    node,
    Column("job", LargeBinary),
    Column("identifier", LargeBinary),  # keyed index
    Column("holder", Text),
    Column("list", Text),
    Column("outcome", LargeBinary, nullable=False),  # hit or miss with the label, encrypted
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("job", "identifier", "holder", "list"),
    Index("answer_age", "at"),
)
contact = Table(
    "contact",
    node,
    Column("holder", Text, primary_key=True),
    Column("at", Float, nullable=False),  # when it last told us all its lists
)
hit = Table(
    "hit",
    node,
    Column("holder", Text),
    Column("list", Text),
    Column("epoch", Integer),
    Column("tag", LargeBinary),
    Column("job", LargeBinary),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("holder", "list", "epoch", "tag", "job"),
)

# -- learning ------------------------------------------------------------------------------------------------

learning_job = Table(
    "learning_job",
    node,
    Column("hash", LargeBinary, primary_key=True),
    Column("descriptor", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),  # approved, running, done, failed, revoked
    Column("detail", Text, nullable=False),
    Column("sums", Integer, nullable=False),
    Column("at", Float, nullable=False),  # of the last change
)
cohort = Table(  # that summed over rows of this institution
    "cohort",
    node,
    Column("job", LargeBinary),
    Column("members", Text),  # ascending, one a line
    Column(
        "releases", Text
    ),  # of its rows, by content: part:hexadecimal, one a line; empty where it is not known
    Column("dataset", Text, nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("job", "members", "releases"),
)
release = Table(  # of the rows that a job was approved with
    "release",
    node,
    Column("job", LargeBinary),
    Column("part", Text),  # train, test, stats
    Column("release", LargeBinary, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("at", Float, nullable=False),
    PrimaryKeyConstraint("job", "part"),
)
supernode = Table(
    "supernode",
    node,
    Column("member", Text, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)

# -- the ledger ----------------------------------------------------------------------------------------------

ledger_entry = Table(
    "ledger_entry",
    node,
    Column("id", Integer, primary_key=True),
    Column("key", LargeBinary, nullable=False, unique=True),  # what makes an event the same
    Column("type", Integer, nullable=False),  # 0 for leaves in clear
    Column("peer", Text, nullable=False),
    Column("event_id", LargeBinary, nullable=False),
    Column("case_commitment", LargeBinary, nullable=False),
    Column("at", Integer, nullable=False),  # milliseconds
    Column("include_by", Integer, nullable=False),  # seconds
    Column("leaf", LargeBinary, nullable=False),
    Column("opening", LargeBinary),  # encrypted; its destruction is the erasure
    Column("position", Integer, unique=True),  # in the log; empty until the tick
    Index("ledger_peer", "peer", "at"),
    Index("ledger_event", "event_id"),
    Index("ledger_case", "case_commitment", sqlite_where=text("case_commitment != x''")),
    Index("ledger_age", "at", sqlite_where=text("opening IS NOT NULL")),
)
contract = Table(
    "contract",
    node,
    Column("hash", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),  # canonical Contract
    Column("at", Float, nullable=False),  # when it was first heard of
)
contract_act = Table(
    "contract_act",
    node,
    Column("contract", LargeBinary),
    Column("party", Text),
    Column("action", Integer),
    Column("at", Integer, nullable=False),  # seconds, as signed
    Column("signature", LargeBinary, nullable=False),
    PrimaryKeyConstraint("contract", "party", "action"),
)
ledger_tree = Table(
    "ledger_tree",
    node,
    Column("id", Integer, primary_key=True),  # 1
    Column("size", Integer, nullable=False),
)
ledger_tile = Table(
    "ledger_tile",
    node,
    Column("level", Integer),  # -1 for entries
    Column("number", Integer),
    Column("content", LargeBinary, nullable=False),
    PrimaryKeyConstraint("level", "number"),
)
ledger_head = Table(
    "ledger_head",
    node,
    Column("size", Integer, primary_key=True),
    Column("note", LargeBinary, nullable=False),  # with the cosignatures that have come in
    Column("signed_at", Float, nullable=False),
    Column("published_at", Float),  # when a quorum had cosigned
)
logged_state = Table(
    "logged_state",
    node,
    Column("name", Text, primary_key=True),  # a member, a file
    Column("digest", LargeBinary, nullable=False),  # as last recorded
)
spoken = Table(  # statements that a restored database has forgotten and the log has not
    "spoken",
    node,
    Column("list", Text),
    Column("epoch", Integer),
    Column("slot", Text),
    PrimaryKeyConstraint("list", "epoch", "slot"),
)
witnessed = Table(
    "witnessed",
    node,
    Column("origin", Text, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", LargeBinary, nullable=False),  # with this node's cosignature
)
promise = Table(
    "promise",
    node,
    Column("commitment", LargeBinary, primary_key=True),
    Column("peer", Text, nullable=False),
    Column("event_id", LargeBinary, nullable=False),
    Column("include_by", Integer, nullable=False),  # seconds
    Column("receipt", LargeBinary, nullable=False),  # encrypted
    Column("position", Integer),  # where the peer's log holds it
    Index("promise_open", "peer", "include_by", sqlite_where=text("position IS NULL")),
    Index("promise_event", "event_id"),
)

# -- people ------------------------------------------------------------------------------------------------------

person = Table(
    "person",
    node,
    Column("id", LargeBinary, primary_key=True),  # 16 random bytes
    Column("name", Text, nullable=False, unique=True),  # never given to another
    Column("roles", Text, nullable=False),  # ascending, one a line
    Column("password", Text, nullable=False),  # Argon2id; empty before enrolment
    Column("authenticator", LargeBinary, nullable=False),  # secret of RFC 6238, encrypted
    Column("code_step", Integer, nullable=False),  # of the newest code that was accepted
    Column("enrolled_at", Float),
    Column("reset_at", Float, nullable=False),  # when invited anew; 0 for never
    Column("removed_at", Float),
)
credential = Table(
    "credential",
    node,
    Column("digest", LargeBinary, primary_key=True),  # keyed hash of the secret
    Column("id", Text, nullable=False),
    Column("person", LargeBinary, nullable=False),
    Column("kind", Text, nullable=False),  # invitation, session, token
    Column("scopes", Text, nullable=False),  # of a token, one a line
    Column("label", Text, nullable=False),
    Column("made_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)
attempt = Table(  # to sign in, that failed
    "attempt",
    node,
    Column("who", LargeBinary, primary_key=True),  # keyed hash of the name, which may be nobody's
    Column("failures", Integer, nullable=False),
    Column("locked_until", Float, nullable=False),
    Column("at", Float, nullable=False),
)
pending_action = Table(
    "pending_action",
    node,
    Column("id", LargeBinary, primary_key=True),  # 16 random bytes
    Column("method", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # keyed hash over the method and the request's bytes
    Column("person", LargeBinary, nullable=False),  # who proposed it
    Column("second", LargeBinary, nullable=False),  # who decided it
    Column("state", Text, nullable=False),  # waiting, approved, rejected, done, expired
    Column("content", LargeBinary),  # what is asked for, encrypted; erased when it ends
    Column("step", Integer, nullable=False),  # events recorded of it
    Column("at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("decided_at", Float),
    Index("action_digest", "digest", "person", "state"),
)

tally = Table(  # what a person has done alone
    "tally",
    node,
    Column("person", LargeBinary),  # pseudonym
    Column("what", Text),
    Column("hour", Integer),  # since 1970
    Column("count", Integer, nullable=False),
    PrimaryKeyConstraint("person", "what", "hour"),
)

# -- mirrors.db ----------------------------------------------------------------------------------------------

mirror = Table(
    "mirror",
    mirrors,
    Column("origin", Text, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("note", LargeBinary, nullable=False),  # the newest published head
    Column("head_time", Integer, nullable=False),  # of its cosignatures, seconds
    Column("seen_at", Float, nullable=False),
)
mirror_tile = Table(
    "mirror_tile",
    mirrors,
    Column("origin", Text),
    Column("level", Integer),
    Column("number", Integer),
    Column("content", LargeBinary, nullable=False),
    PrimaryKeyConstraint("origin", "level", "number"),
)

# -- lists.db ----------------------------------------------------------------------------------------------

named_list = Table(
    "named_list",
    lists,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("seq", Integer, nullable=False),  # of the newest change
    Column("activated_at", Float),  # when it was first offered to others; empty: to nobody yet
    Column("form", LargeBinary),  # under which its entries are normalised
)
entry_key = Table(
    "entry_key",
    lists,
    Column("id", Integer, primary_key=True),  # 1
    Column("moved_to", Integer, nullable=False),  # entries up to this id are under the lists' own key
    Column("done", Integer, nullable=False),
)
entry = Table(
    "entry",
    lists,
    Column("id", Integer, primary_key=True),
    Column("list_id", Integer, nullable=False),
    Column("identifier", LargeBinary, nullable=False),  # keyed index
    Column("secret", LargeBinary, nullable=False),  # canonical identifier, encrypted
    Column("kind", Text, nullable=False),
    Column("own_reference", LargeBinary),  # encrypted; never leaves the node
    Column("own_mark", LargeBinary),  # keyed index of it, to see a change
    Column("ref", LargeBinary, nullable=False),  # 16 random bytes, stable
    Column("category", Integer, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("confidence", Integer, nullable=False),
    Column("basis", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("observed_on", Integer, nullable=False),
    Column("valid_until", Integer, nullable=False),
    Column("listed", Integer, nullable=False),  # seq at which it was first live; 0 for never
    Column("seq", Integer, nullable=False),  # of this entry's newest change
    UniqueConstraint("list_id", "identifier"),
    Index("entry_changes", "list_id", "seq", "id"),
    Index("entry_expiry", "list_id", "valid_until", sqlite_where=text("valid_until > 0")),
    # What is sealed is counted at each batch: in the index alone, not over the whole list.
    Index("entry_live", "list_id", sqlite_where=text("status IN (1, 2)")),
)
