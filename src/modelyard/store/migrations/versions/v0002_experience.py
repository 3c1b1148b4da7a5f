"""What changes of replicas take, and how much models are asked."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "durations",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("profile", sa.String, primary_key=True),
        sa.Column("engine", sa.String, primary_key=True),
        sa.Column("engine_version", sa.String, primary_key=True),
        sa.Column("options_digest", sa.String, primary_key=True),
        sa.Column("device_kind", sa.String, primary_key=True),
        sa.Column("state", sa.String, primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.CheckConstraint("seconds >= 0", name="durations_seconds"),
    )
    op.create_table(
        "demands",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("rate", sa.Float, nullable=False),
        sa.Column("service_s", sa.Float, nullable=False),
        sa.Column("ended", sa.Float, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.CheckConstraint("rate >= 0", name="demands_rate"),
        sa.CheckConstraint("service_s >= 0", name="demands_service_s"),
    )
