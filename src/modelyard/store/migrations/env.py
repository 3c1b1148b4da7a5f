"""Alembic runs this file for every command: it tells which connection and transaction to use.

The program passes its own connection (`store/migrate.py`). There is no alembic.ini: new versions
are written by hand, named `vNNNN_what.py`, and never changed once they are released.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    transactional_ddl=True,  # store/sqlite.py begins transactions that include it
    render_as_batch=True,  # SQLite cannot alter most of a table in place
)
context.run_migrations()
