"""The tables as they are now. How they came to be is in `migrations/`; a test compares the two.

Laws of this file:
- Only types that SQLite and PostgreSQL both have. Times are seconds since the epoch.
- The database checks what it can, because other programs can write to it as well.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Float, Integer, MetaData, String, Table

METADATA = MetaData()

FOOTPRINTS = Table(
    "footprints",
    METADATA,
    Column("model", String, primary_key=True),
    Column("profile", String, primary_key=True),
    Column("engine", String, primary_key=True),
    Column("engine_version", String, primary_key=True),
    Column("options_digest", String, primary_key=True),
    Column("device_kind", String, primary_key=True),
    Column("state", String, primary_key=True),
    Column("position", String, primary_key=True),
    Column("recent_mib", String, nullable=False),  # numbers, oldest first, blanks between
    Column("max_mib", Integer, nullable=False),
    Column("average_mib", Float, nullable=False),
    Column("seen", Integer, nullable=False),
    Column("updated_at", Float, nullable=False),
    CheckConstraint("max_mib >= 0", name="footprints_max_mib"),
    CheckConstraint("seen >= 1", name="footprints_seen"),
)
"""One row for each position of each key."""

DURATIONS = Table(
    "durations",
    METADATA,
    Column("model", String, primary_key=True),
    Column("profile", String, primary_key=True),
    Column("engine", String, primary_key=True),
    Column("engine_version", String, primary_key=True),
    Column("options_digest", String, primary_key=True),
    Column("device_kind", String, primary_key=True),
    Column("state", String, primary_key=True),  # the step: start, stop, sleep 1, wake 1, …
    Column("seconds", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    CheckConstraint("seconds >= 0", name="durations_seconds"),
)
"""What bringing a model up, and having it leave, is expected to take."""

DEMANDS = Table(
    "demands",
    METADATA,
    Column("model", String, primary_key=True),
    Column("rate", Float, nullable=False),  # requests per second at updated_at
    Column("service_s", Float, nullable=False),
    Column("ended", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    CheckConstraint("rate >= 0", name="demands_rate"),
    CheckConstraint("service_s >= 0", name="demands_service_s"),
)
"""How often each model was asked, and how long it worked on a request."""
