"""What a question and the node's housekeeping look at is found by index, however much has been asked before."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what finds open questions, and openings that are due."""
    op.add_column("asked", sa.Column("sole", sa.LargeBinary(), nullable=True))
    op.drop_index("asked_pending", "asked")
    op.create_index("asked_open", "asked", ["job", "sole"], sqlite_where=sa.text("outcome = 'pending'"))
    op.create_index("ledger_age", "ledger_entry", ["at"], sqlite_where=sa.text("opening IS NOT NULL"))


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ledger_age", "ledger_entry")
    op.drop_index("asked_open", "asked")
    op.create_index("asked_pending", "asked", ["job", "outcome"])
    op.drop_column("asked", "sole")
