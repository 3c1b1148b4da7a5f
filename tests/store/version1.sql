-- A database as version 1 wrote it, by sqlite3's dump. Never changed: such files are out there.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE footprints (
	model VARCHAR NOT NULL,
	profile VARCHAR NOT NULL,
	engine VARCHAR NOT NULL,
	engine_version VARCHAR NOT NULL,
	options_digest VARCHAR NOT NULL,
	device_kind VARCHAR NOT NULL,
	state VARCHAR NOT NULL,
	position VARCHAR NOT NULL,
	recent_mib VARCHAR NOT NULL,
	max_mib INTEGER NOT NULL,
	average_mib FLOAT NOT NULL,
	seen INTEGER NOT NULL,
	updated_at FLOAT NOT NULL,
	PRIMARY KEY (model, profile, engine, engine_version, options_digest, device_kind, state, position),
	CONSTRAINT footprints_max_mib CHECK (max_mib >= 0),
	CONSTRAINT footprints_seen CHECK (seen >= 1)
);
INSERT INTO "footprints" VALUES('qwen','default','vllm','0.11.0','9f2c','nvidia rtx 4060','ready','0','5120 5136',5136,5124.0,2,2000.5);
INSERT INTO "footprints" VALUES('qwen','default','vllm','0.11.0','9f2c','nvidia rtx 4060','ready','cpu','700 690',700,697.5,2,2000.5);
COMMIT;
