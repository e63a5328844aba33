"""Run by Alembic: the connection, and the transaction that it is in, are the caller's."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
