"""The transparency log, its witness and what others promised."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "ledger_entry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("type", sa.Integer(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("event_id", sa.LargeBinary(), nullable=False),
        sa.Column("case_commitment", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("include_by", sa.Integer(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("opening", sa.LargeBinary(), nullable=True),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        sa.UniqueConstraint("position"),
    )
    op.create_index(
        "ledger_case",
        "ledger_entry",
        ["case_commitment"],
        unique=False,
        sqlite_where=sa.text("case_commitment != x''"),
    )
    op.create_index("ledger_event", "ledger_entry", ["event_id"], unique=False)
    op.create_index("ledger_peer", "ledger_entry", ["peer", "at"], unique=False)
    op.create_table(
        "ledger_head",
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.Column("signed_at", sa.Float(), nullable=False),
        sa.Column("published_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("size"),
    )
    op.create_table(
        "ledger_tile",
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "number"),
    )
    op.create_table(
        "ledger_tree",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "logged_state",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "promise",
        sa.Column("commitment", sa.LargeBinary(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("event_id", sa.LargeBinary(), nullable=False),
        sa.Column("include_by", sa.Integer(), nullable=False),
        sa.Column("receipt", sa.LargeBinary(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("commitment"),
    )
    op.create_index("promise_event", "promise", ["event_id"], unique=False)
    op.create_index(
        "promise_open",
        "promise",
        ["peer", "include_by"],
        unique=False,
        sqlite_where=sa.text("position IS NULL"),
    )
    op.create_table(
        "spoken",
        sa.Column("list", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("list", "epoch", "slot"),
    )
    op.create_table(
        "witnessed",
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("origin"),
    )
    op.add_column("pin", sa.Column("position", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Drop the tables."""
    op.drop_column("pin", "position")
    op.drop_table("witnessed")
    op.drop_table("spoken")
    op.drop_index("promise_open", table_name="promise", sqlite_where=sa.text("position IS NULL"))
    op.drop_index("promise_event", table_name="promise")
    op.drop_table("promise")
    op.drop_table("logged_state")
    op.drop_table("ledger_tree")
    op.drop_table("ledger_tile")
    op.drop_table("ledger_head")
    op.drop_index("ledger_peer", table_name="ledger_entry")
    op.drop_index("ledger_event", table_name="ledger_entry")
    op.drop_index("ledger_case", table_name="ledger_entry", sqlite_where=sa.text("case_commitment != x''"))
    op.drop_table("ledger_entry")
