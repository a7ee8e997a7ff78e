"""An index of the entries that are sealed: each batch counts them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it."""
    op.create_index("entry_live", "entry", ["list_id"], sqlite_where=sa.text("status IN (1, 2)"))


def downgrade() -> None:
    """Drop it."""
    op.drop_index("entry_live", "entry")
