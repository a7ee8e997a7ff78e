"""Under which normal form a list's entries are stored."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; entries of before are normalised anew when their list is tended."""
    op.add_column("named_list", sa.Column("form", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("named_list", "form")
