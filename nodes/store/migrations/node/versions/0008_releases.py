"""Which rows jobs summed over, by content; and every job's cohort, not only the first of each."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Cohorts of before keep their dataset's name alone."""
    op.rename_table("cohort", "cohort_before")
    op.create_table(
        "cohort",
        sa.Column("job", sa.LargeBinary(), nullable=False),
        sa.Column("members", sa.Text(), nullable=False),
        sa.Column("releases", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job", "members", "releases"),
    )
    op.execute("INSERT INTO cohort SELECT job, members, '', dataset, at FROM cohort_before")
    op.drop_table("cohort_before")
    op.create_table(
        "release",
        sa.Column("job", sa.LargeBinary(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("release", sa.LargeBinary(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job", "part"),
    )


def downgrade() -> None:
    """Back to the first cohort of each dataset and membership."""
    op.drop_table("release")
    op.rename_table("cohort", "cohort_since")
    op.create_table(
        "cohort",
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("members", sa.Text(), nullable=False),
        sa.Column("job", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "members"),
    )
    op.execute("INSERT OR IGNORE INTO cohort SELECT dataset, members, job, at FROM cohort_since ORDER BY at")
    op.drop_table("cohort_since")
