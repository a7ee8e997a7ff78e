"""What a question and the node's housekeeping look at is found by index, however much has been asked before."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a table and a column, and indexes of what is open or old."""
    op.create_table(
        "pace",
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("second", sa.Integer(), nullable=False),
        sa.Column("evaluations", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("peer", "resource", "second"),
        sqlite_with_rowid=False,
    )
    op.get_bind().execute(
        sa.text(
            "INSERT INTO pace SELECT peer, resource, CAST(at AS INTEGER), SUM(count) FROM decision "
            "WHERE at > :since AND count > 0 GROUP BY 1, 2, 3"
        ),
        {"since": time.time() - 3_601},
    )
    op.add_column("asked", sa.Column("sole", sa.LargeBinary(), nullable=True))
    op.drop_index("asked_pending", "asked")
    op.create_index("asked_open", "asked", ["job", "sole"], sqlite_where=sa.text("outcome = 'pending'"))
    op.create_index("ledger_age", "ledger_entry", ["at"], sqlite_where=sa.text("opening IS NOT NULL"))
    op.create_index("promise_age", "promise", ["include_by"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("promise_age", "promise")
    op.drop_index("ledger_age", "ledger_entry")
    op.drop_index("asked_open", "asked")
    op.create_index("asked_pending", "asked", ["job", "outcome"])
    op.drop_column("asked", "sole")
    op.drop_table("pace")
