"""What both databases' Alembic environments do: run on the connection the node hands in."""

import sqlalchemy as sa
from alembic import context


def run(metadata: sa.MetaData) -> None:
    """Run migrations on the given connection, or on a scratch database when a migration is being written."""
    connection = context.config.attributes.get("connection")
    if connection is None:
        with sa.create_engine(
            context.config.get_main_option("sqlalchemy.url") or "sqlite://"
        ).begin() as scratch:
            _run(scratch, metadata)
    else:
        _run(connection, metadata)


def _run(connection: sa.Connection, metadata: sa.MetaData) -> None:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
