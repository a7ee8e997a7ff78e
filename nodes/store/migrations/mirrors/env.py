from nodes.store import schema
from nodes.store.migrations.env_common import run

run(schema.mirrors)
