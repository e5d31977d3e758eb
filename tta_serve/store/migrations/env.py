"""What Alembic runs to migrate.

The connection is the caller's, in a transaction that holds the lock of migrations.
"""

from alembic import context

from tta_serve.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
