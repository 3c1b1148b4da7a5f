"""LLM-Manager v3's database: models in order, prices and usage kept aside, secrets unread."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.importers.conftest import Import, surroundings
from tests.importers.test_import_samples import loaded, settings, spoken_for

from modelyard.app import engine_problems
from modelyard.config import load
from modelyard.importers import CannotImport, Fate, import_path
from modelyard.importers.llm_manager_db import read_database
from modelyard.importers.report import UNKNOWN


def test_models_aliases_and_schemes_keep_their_order(
    database: Path, imported: Import, tmp_path: Path
) -> None:
    models = loaded(imported(database), tmp_path)

    assert list(models) == ["qwen", "vectors"]
    first = models["qwen"]
    assert first.aliases == ("qwen-small", "first")
    assert [profile.name for profile in first.profiles] == ["fast", "slow"]
    assert dict(first.profiles[0].memory_mib) == {"rtx 4060": 6144}
    assert first.preload is True
    assert first.profiles[0].command == (
        *("env", "GGML_CUDA_GRAPH_OPT=1", "conda", "run", "--no-capture-output", "-n", "llm"),
        *("llama-server", "-m", "/m/q.gguf", "-ngl", "99", "--port", "{port}", "-a", "qwen"),
    )
    assert models["vectors"].command == ("embed-server", "--port={port}")


def test_settings_become_those_of_the_server(
    database: Path, imported: Import, tmp_path: Path
) -> None:
    path = tmp_path / "out.yaml"
    path.write_text(imported(database).text)
    config = load(path, env={})

    assert (config.server.host, config.server.port) == ("127.0.0.1", 8090)
    assert config.limits.idle_stop_s == 1800
    assert config.devices.reserve_mib == 0


def test_every_column_and_setting_has_a_fate(database: Path, imported: Import) -> None:
    result = imported(database)
    tree = read_database(database)

    assert [path for path in settings(tree) if not spoken_for(path, result)] == []
    assert [each.setting for each in result.findings if each.text == UNKNOWN] == []


def test_prices_and_usage_are_kept_aside_with_their_sums(database: Path, imported: Import) -> None:
    result = imported(database)

    aside = {each.setting: each.text for each in result.findings if each.fate is Fate.KEPT_ASIDE}
    usage = aside["models[0].usage"]
    assert "2 requests, 40 input and 60 output tokens, 4 of them cached" in usage
    assert "keep the file" in usage
    assert "usage_of_deleted_models.gone" in aside
    assert "input_price 0.5, output_price 1.5" in " ".join(result.text.split())
    assert "price: 1.5 an hour" in result.text


def test_keys_of_cloud_providers_are_not_even_read(database: Path, imported: Import) -> None:
    result = imported(database)

    assert "sk-very-secret" not in result.text + repr(result.findings) + repr(
        read_database(database)
    )
    [finding] = [each for each in result.findings if each.setting == "cloud_providers"]
    assert finding.fate is Fate.NO_EQUAL


def test_the_database_is_left_as_it_is(database: Path, imported: Import) -> None:
    before = (database.read_bytes(), sorted(path.name for path in database.parent.iterdir()))
    imported(database)

    assert (
        database.read_bytes(),
        sorted(path.name for path in database.parent.iterdir()),
    ) == before


def test_changes_that_are_still_in_the_journal_are_seen(database: Path, imported: Import) -> None:
    with closing(sqlite3.connect(database)) as live:
        live.execute("PRAGMA journal_mode = WAL")
        live.execute("UPDATE model_aliases SET alias = 'renamed' WHERE alias = 'vectors'")
        live.commit()

        assert imported(database).models == ("qwen", "renamed")


def test_a_database_of_v2_says_what_to_import_instead(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE model_name_mapping (original_name TEXT, safe_name TEXT)")

    with pytest.raises(CannotImport, match=r"import its config\.json"):
        import_path(path, surroundings(tmp_path), engine_problems)
