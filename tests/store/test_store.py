"""A store on a real disk: opened, written, closed, copied, killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.store import Footprint, FootprintKey, Store, StoreError

Open = Callable[[Path], Store]
Sql = Callable[[Path, str], list[tuple[object, ...]]]

pytestmark = pytest.mark.usefixtures("descriptors_given_back")

WRITER = """
import sys
from modelyard.store import FootprintKey, Store
store = Store.open(sys.argv[1])
for mib in range(1, 10_000):
    store.footprints.record(FootprintKey(f"model-{mib}", *"pevoks"), {"0": mib}, float(mib))
    print(mib, flush=True)
"""


def test_what_was_recorded_is_there_after_closing_and_opening_again(
    path: Path, key: FootprintKey
) -> None:
    asleep = replace(key, state="asleep2")
    store = Store.open(path)
    first = store.footprints.record(key, {"0": 5120, "1": 5000, "cpu": 700}, 1000.25)
    store.footprints.record(asleep, {"0": 0}, 1001.0)
    store.close()
    store = Store.open(path)
    loaded = store.footprints.load_all()
    second = store.footprints.record(key, {"0": 5136}, 2000.0)
    third = store.footprints.load_all()[key]
    store.close()

    assert loaded.keys() == {key, asleep}
    assert loaded[key] == first
    assert second == third
    assert second.devices["0"].recent_mib == (5120, 5136)
    assert second.devices["1"] == first.devices["1"]


def test_keys_that_differ_in_one_word_are_kept_apart(opened: Open, path: Path) -> None:
    words = ["m", "p", "e", "v", "o", "k", "s"]
    store = opened(path)
    for place in range(len(words)):
        other = [word.upper() if n == place else word for n, word in enumerate(words)]
        store.footprints.record(FootprintKey(*other), {"0": place}, 1.0)
    loaded = store.footprints.load_all()

    assert sorted(one.devices["0"].latest_mib for one in loaded.values()) == list(range(7))


def test_a_model_is_forgotten_in_every_state_and_no_other_with_it(
    opened: Open, path: Path, key: FootprintKey
) -> None:
    other = replace(key, model="qwen%")
    store = opened(path)
    for one in (key, replace(key, state="asleep1"), other):
        store.footprints.record(one, {"0": 5}, 1.0)
    store.footprints.forget("qwen")
    store.footprints.forget("never seen")

    assert store.footprints.load_all().keys() == {other}


@pytest.mark.parametrize("name", ["通义千问", "a'b\"; DROP TABLE footprints;--", "", " x\n", "\0"])
def test_any_text_can_be_a_model_s_name(
    opened: Open, path: Path, key: FootprintKey, name: str
) -> None:
    named = replace(key, model=name)
    store = opened(path)
    store.footprints.record(named, {"0": 5}, 1.0)

    assert store.footprints.load_all().keys() == {named}


def test_a_name_that_cannot_be_written_is_an_error_and_the_store_goes_on(
    opened: Open, path: Path, key: FootprintKey
) -> None:
    store = opened(path)
    with pytest.raises(StoreError, match="surrogates"):
        store.footprints.record(replace(key, model="\udcff"), {"0": 5}, 1.0)
    store.footprints.record(key, {"0": 5}, 1.0)

    assert store.footprints.load_all().keys() == {key}


def test_a_measurement_that_is_refused_leaves_what_was_known(
    opened: Open, path: Path, key: FootprintKey
) -> None:
    store = opened(path)
    before = store.footprints.record(key, {"0": 5}, 1.0)
    with pytest.raises(ValueError, match="memory"):
        store.footprints.record(key, {"0": -5}, 2.0)

    assert store.footprints.load_all() == {key: before}


def test_a_store_in_memory_works_alike_and_keeps_nothing(key: FootprintKey) -> None:
    store = Store.in_memory()
    store.footprints.record(key, {"0": 5}, 1.0)
    footprint = store.footprints.record(key, {"0": 7}, 2.0)
    loaded = store.footprints.load_all()
    store.close()
    other = Store.in_memory()
    empty = other.footprints.load_all()
    other.close()

    assert loaded == {key: footprint}
    assert footprint.devices["0"].recent_mib == (5, 7)
    assert empty == {}


def test_calls_from_many_threads_lose_nothing(opened: Open, path: Path, key: FootprintKey) -> None:
    store = opened(path)

    def record() -> None:
        for _ in range(10):
            store.footprints.record(key, {"0": 5}, 1.0)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert store.footprints.load_all()[key].devices["0"].seen == 40


def test_two_servers_with_one_file_lose_nothing(
    opened: Open, path: Path, key: FootprintKey
) -> None:
    one, other = opened(path), opened(path)
    for now in range(5):
        one.footprints.record(key, {"0": 5}, float(now))
        other.footprints.record(key, {"0": 6}, float(now))

    assert one.footprints.load_all()[key].devices["0"].recent_mib == (5, 6) * 4


def test_a_closed_store_says_so_and_can_be_closed_again(path: Path, key: FootprintKey) -> None:
    store = Store.open(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.footprints.record(key, {"0": 5}, 1.0)
    with pytest.raises(StoreError, match="is closed"):
        store.footprints.load_all()

    assert repr(store) == f"<Store {path}, closed>"


def test_the_file_its_companions_and_its_folder_are_for_the_owner_alone(
    opened: Open, path: Path, key: FootprintKey
) -> None:
    opened(path).footprints.record(key, {"0": 5}, 1.0)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}

    assert modes == dict.fromkeys(("modelyard.db", "modelyard.db-wal", "modelyard.db-shm"), 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_others_could_read_is_made_private(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o664)
    Store.open(path).close()

    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_uses_write_ahead_logging_and_is_whole_after_closing(
    path: Path, key: FootprintKey, sql: Sql
) -> None:
    store = Store.open(path)
    store.footprints.record(key, {"0": 5}, 1.0)
    names = {file.name for file in path.parent.iterdir()}
    store.close()
    left = {file.name for file in path.parent.iterdir()}

    assert "modelyard.db-wal" in names
    assert left == {"modelyard.db"}
    assert sql(path, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("url", ["sqlite:///{}", "{}"])
def test_a_store_is_opened_by_path_or_url_whatever_the_path_contains(
    tmp_path: Path, url: str, key: FootprintKey
) -> None:
    path = tmp_path / "a folder with 100% of it?" / "modelyard#1.db"
    where = url.format(str(path).replace("?", "%3F") if ":" in url else path)
    store = Store.open(where)
    store.footprints.record(key, {"0": 5}, 1.0)
    store.close()

    assert [file.suffix for file in tmp_path.rglob("*.db")] == [".db"]


def test_a_copy_of_file_and_log_taken_midway_holds_all_that_was_recorded(
    path: Path, tmp_path: Path, key: FootprintKey, opened: Open
) -> None:
    store = opened(path)
    footprint = store.footprints.record(key, {"0": 5}, 1.0)
    copy = _copied(path, tmp_path / "copy")

    assert (copy.parent / "modelyard.db-wal").stat().st_size > 0
    assert opened(copy).footprints.load_all() == {key: footprint}


def test_a_log_that_was_cut_off_costs_only_what_was_being_written(
    path: Path, tmp_path: Path, key: FootprintKey, opened: Open
) -> None:
    store = opened(path)
    known: list[Footprint] = [store.footprints.record(key, {"0": mib}, 1.0) for mib in range(1, 20)]
    for number, lost in enumerate((1, 24, 4096, 10_000)):
        copy = _copied(path, tmp_path / str(number))
        log = copy.with_name("modelyard.db-wal")
        os.truncate(log, log.stat().st_size - lost)

        assert opened(copy).footprints.load_all()[key] in known[5:-1]


def _copied(path: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("modelyard.db", "modelyard.db-wal"):
        shutil.copy(path.with_name(name), folder / name)
    return folder / path.name


def test_what_a_killed_server_had_recorded_is_there(path: Path, opened: Open) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0].split()
    told = int(said[-1]) if said else 20
    loaded = opened(path).footprints.load_all()

    assert {f"model-{mib}" for mib in range(1, told + 1)} <= {one.model for one in loaded}
    assert len(loaded) <= told + 1


def test_importing_the_store_imports_no_database_library() -> None:
    code = "import sys, modelyard.store; print({'sqlalchemy', 'alembic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


def test_opening_a_store_that_is_up_to_date_does_not_import_alembic(path: Path) -> None:
    Store.open(path).close()
    code = (
        "import sys; from modelyard.store import Store; Store.open(sys.argv[1]).close();"
        " print('sqlalchemy' in sys.modules, 'alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "True False\n"
