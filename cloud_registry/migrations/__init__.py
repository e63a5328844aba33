"""How the database came to be as it is: one numbered revision after another, run by Alembic.

`adapters/schema.py` runs them when a database is opened. A new revision is a file ``versions/r<number>_<what>.py``
whose number is the next one; docs/registry/catalog.md says how to write it.
"""
