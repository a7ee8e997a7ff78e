"""Under which normal form a copy's entries were normalised."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; copies of before are synced anew."""
    op.add_column("synced", sa.Column("form", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("synced", "form")
