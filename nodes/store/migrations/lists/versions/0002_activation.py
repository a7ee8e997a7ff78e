"""When a list was first offered to others. Those of before are."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("named_list") as batch_op:
        batch_op.add_column(sa.Column("activated_at", sa.Float(), nullable=True))
    op.execute("UPDATE named_list SET activated_at = created_at")


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("named_list") as batch_op:
        batch_op.drop_column("activated_at")
