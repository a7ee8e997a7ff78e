"""How far entries are under a key of their own. Versions that know of no such key do not open the database any more."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; `ListStore` moves the entries."""
    op.create_table(
        "entry_key",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("moved_to", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("entry_key")
