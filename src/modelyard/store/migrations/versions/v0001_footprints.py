"""What models really took."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "footprints",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("profile", sa.String, primary_key=True),
        sa.Column("engine", sa.String, primary_key=True),
        sa.Column("engine_version", sa.String, primary_key=True),
        sa.Column("options_digest", sa.String, primary_key=True),
        sa.Column("device_kind", sa.String, primary_key=True),
        sa.Column("state", sa.String, primary_key=True),
        sa.Column("position", sa.String, primary_key=True),
        sa.Column("recent_mib", sa.String, nullable=False),
        sa.Column("max_mib", sa.Integer, nullable=False),
        sa.Column("average_mib", sa.Float, nullable=False),
        sa.Column("seen", sa.Integer, nullable=False),
        sa.Column("updated_at", sa.Float, nullable=False),
        sa.CheckConstraint("max_mib >= 0", name="footprints_max_mib"),
        sa.CheckConstraint("seen >= 1", name="footprints_seen"),
    )
