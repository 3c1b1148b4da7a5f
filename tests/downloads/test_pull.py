"""Models are fetched through the hub's own client, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import psutil
import pytest
from tests.downloads.conftest import CHAT, MakeYard, Yard, below
from tests.downloads.fake_hub import COMMIT, Hub, Repository

from modelyard.config.pulling import PullWanted
from modelyard.core.errors import Forbidden, InvalidRequest
from modelyard.downloads.job import Finished, Job
from modelyard.downloads.process import news_of
from modelyard.runtime.pulls import MOST_WAITING, TooManyPulls

NEXT = "fedcba9876543210fedcba9876543210fedcba98"

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_gguf_is_fetched_checked_and_put_in_place(yard: Yard, hub: Hub) -> None:
    view = await yard.pull("yard/chat-GGUF")

    assert (view.state, view.error) == ("done", None)
    assert view.files == ["chat-Q4_K_M.gguf"]
    assert view.commit == COMMIT
    assert (yard.folder / "yard/chat-GGUF/chat-Q4_K_M.gguf").read_bytes() == CHAT
    assert below(yard.folder) == {
        "yard/chat-GGUF/chat-Q4_K_M.gguf",
        "yard/chat-GGUF/.modelyard-pull.json",
    }
    assert view.done_bytes == view.total_bytes == len(CHAT)
    assert "Q8_0" in view.notes[0]


async def test_a_second_quantisation_joins_the_first_and_nothing_is_fetched_twice(
    yard: Yard, hub: Hub
) -> None:
    await yard.pull("yard/chat-GGUF")
    await yard.pull("yard/chat-GGUF:q8_0")
    sent = hub.sent
    again = await yard.pull("yard/chat-GGUF")

    assert {"chat-Q4_K_M.gguf", "chat-Q8_0.gguf"} <= below(yard.folder / "yard/chat-GGUF")
    assert (again.state, hub.sent - sent) == ("done", 0)


async def test_broken_connections_are_gone_on_from(yard: Yard, hub: Hub) -> None:
    hub.break_after, hub.breaks = 1_000_000, 2

    view = await yard.pull("yard/chat-GGUF")

    assert view.state == "done", view.error
    assert len(hub.ranges()) >= 2
    assert hub.sent < len(CHAT) + 2 * 300_000  # what was lost is less than a chunk for each break
    assert (yard.folder / "yard/chat-GGUF/chat-Q4_K_M.gguf").read_bytes() == CHAT


async def test_a_cancelled_download_is_gone_on_from(yard: Yard, hub: Hub) -> None:
    hub.pause_s = 0.05
    first = yard.pulls.start(PullWanted("yard/chat-GGUF"))
    half = await yard.until(first, 700_000)
    assert yard.pulls.cancel(first.id).state == "cancelled"
    await asyncio.sleep(0)
    await yard.pulls.close()
    hub.pause_s, hub.requests[:] = 0, []
    left = list((yard.folder / ".modelyard-pulls").rglob("*.part"))
    partial = left[0].stat().st_size

    second = await yard.pull("yard/chat-GGUF")

    assert half.speed_bytes_s
    assert half.eta_s is not None
    assert partial >= 700_000
    assert hub.ranges() == [f"bytes={partial}-", f"bytes={partial}-"]  # the page, and the storage
    assert second.state == "done"
    assert (yard.folder / "yard/chat-GGUF/chat-Q4_K_M.gguf").read_bytes() == CHAT


async def test_a_killed_download_process_is_told_and_gone_on_from(yard: Yard, hub: Hub) -> None:
    hub.pause_s = 0.05
    view = yard.pulls.start(PullWanted("yard/chat-GGUF"))
    await yard.until(view, 500_000)
    for child in psutil.Process().children():
        if "modelyard.downloads.worker" in child.cmdline():
            child.kill()

    ended = await yard.ended(view)
    hub.pause_s, hub.sent = 0, 0
    again = await yard.pull("yard/chat-GGUF")

    assert ended.error is not None
    assert "ended with code -9" in ended.error.message
    assert again.state == "done"
    assert hub.sent < len(CHAT) - 400_000


async def test_a_server_without_ranges_is_read_from_the_beginning(yard: Yard, hub: Hub) -> None:
    hub.ignore_ranges, hub.break_after, hub.breaks = True, 1_000_000, 1

    view = await yard.pull("yard/chat-GGUF")

    assert view.state == "done", view.error
    assert (yard.folder / "yard/chat-GGUF/chat-Q4_K_M.gguf").read_bytes() == CHAT


async def test_a_busy_storage_is_asked_again(yard: Yard, hub: Hub) -> None:
    hub.fail = [503]

    view = await yard.pull("yard/chat-GGUF")

    assert view.state == "done", view.error


async def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    make_yard: MakeYard, hub: Hub
) -> None:
    hub.repositories["yard/chat-GGUF"].gated = True
    async with make_yard(token=hub.token) as yard:
        view = await yard.pull("yard/chat-GGUF")

    assert view.state == "done", view.error
    assert hub.authorizations == {f"Bearer {hub.token}", None}
    assert "licence had to be accepted" in " ".join(view.notes)


# ------------------------------------------------------------------------------- wrong and hostile


async def test_a_wrong_checksum_is_tried_once_more_and_then_told(yard: Yard, hub: Hub) -> None:
    hub.repositories["yard/chat-GGUF"].digests["chat-Q4_K_M.gguf"] = "0" * 64

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "checksum"
    assert "arrived damaged twice: its SHA-256 is" in view.error.message
    assert hub.sent == 2 * len(CHAT)
    assert not [name for name in below(yard.folder) if name.endswith((".gguf", ".part"))]


@pytest.mark.parametrize("lie", [len(CHAT) - 10, len(CHAT) + 10], ids=["small", "large"])
async def test_a_wrong_size_is_told(yard: Yard, hub: Hub, lie: int) -> None:
    hub.repositories["yard/chat-GGUF"].sizes["chat-Q4_K_M.gguf"] = lie

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "wrong_size"
    assert f"the {lie} bytes that the hub lists" in view.error.message
    assert not (yard.folder / "yard").exists()


async def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    yard: Yard, hub: Hub
) -> None:
    hub.repositories["yard/chat-GGUF"].sizes["chat-Q4_K_M.gguf"] = 10**15

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "no_space"
    assert "931322.6 GiB are still to be fetched" in view.error.message
    assert hub.sent == 0


@pytest.mark.parametrize(
    "path", ["../../etc/passwd.gguf", "/etc/x.gguf", "a\\..\\b.gguf", "C:x.gguf", "a/../b.gguf"]
)
async def test_a_repository_cannot_name_files_outside_of_it(
    yard: Yard, hub: Hub, path: str
) -> None:
    hub.repositories["yard/chat-GGUF"].paths = [path]

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "bad_listing"
    assert below(yard.folder) == set()


@pytest.mark.parametrize(
    "garbage",
    [
        [],
        "text",
        {"id": "a/b"},
        {"id": "a/b", "sha": 5, "siblings": [{"rfilename": "a.gguf", "size": 1}]},
        {"id": "a/b", "sha": "../..", "siblings": [{"rfilename": "a.gguf", "size": 1}]},
        {"id": "a/b", "sha": COMMIT, "siblings": "files"},
        {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": 5}]},
        {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "size": -1}]},
        {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "size": "1"}]},
        {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "lfs": {"size": 1}}]},
        {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": "a.gguf", "lfs": 7}]},
    ],
    ids=str,
)
async def test_a_listing_that_makes_no_sense_is_told(yard: Yard, hub: Hub, garbage: object) -> None:
    hub.garbage = garbage

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code in ("bad_listing", "no_weights"), view.error
    assert below(yard.folder) == set()


async def test_a_file_that_somebody_put_there_stays(yard: Yard, hub: Hub) -> None:
    own = yard.folder / "yard/chat-GGUF/chat-Q4_K_M.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert (view.error.code, own.read_bytes()) == ("exists", b"mine")


# --------------------------------------------------------------------------------- clear refusals


async def test_a_missing_repository_is_told_with_near_names(yard: Yard, hub: Hub) -> None:
    view = await yard.pull("yrd/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "not_found"
    assert "did you mean yard/chat-GGUF?" in view.error.message
    assert "HF_TOKEN" in view.error.message


async def test_a_private_repository_needs_a_token(yard: Yard, hub: Hub) -> None:
    hub.repositories["yard/chat-GGUF"].private = True

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert "if it is private, give a token" in view.error.message


async def test_a_gated_repository_tells_where_to_accept_its_terms(yard: Yard, hub: Hub) -> None:
    hub.repositories["yard/chat-GGUF"].gated = True

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "forbidden"
    assert f"accept its terms at {hub.url}/yard/chat-GGUF" in view.error.message


async def test_a_missing_revision_is_told(yard: Yard, hub: Hub) -> None:
    view = await yard.pull("yard/chat-GGUF", revision="v9")

    assert view.error is not None
    assert view.error.code == "not_found"
    assert "has no revision 'v9'" in view.error.message


async def test_a_hub_that_is_not_there_is_told_with_what_to_check(make_yard: MakeYard) -> None:
    async with make_yard(endpoint="http://127.0.0.1:1") as yard:
        view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "unreachable"
    assert "HTTPS_PROXY" in view.error.message


async def test_a_proxy_that_is_not_there_and_a_wrong_certificate_are_told(
    make_yard: MakeYard, hub: Hub
) -> None:
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": ""}
    async with make_yard(env=proxy, endpoint="http://hub.test") as yard:
        without_proxy = await yard.pull("yard/chat-GGUF")
    async with make_yard(endpoint=hub.url.replace("http:", "https:")) as yard:
        without_tls = await yard.pull("yard/chat-GGUF")

    assert without_proxy.error is not None
    assert "cannot reach http://hub.test" in without_proxy.error.message
    assert without_tls.error is not None
    assert "SSL_CERT_FILE" in without_tls.error.message


async def test_a_page_that_is_no_hub_is_told(make_yard: MakeYard, hub: Hub) -> None:
    async with make_yard(endpoint=f"{hub.url}/elsewhere") as yard:
        view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.state == "failed"
    assert f"{hub.url}/elsewhere" in view.error.message


async def test_offline_serves_what_is_here_and_asks_nobody(make_yard: MakeYard, hub: Hub) -> None:
    async with make_yard() as yard:
        await yard.pull("yard/chat-GGUF")
    asked = len(hub.requests)
    async with make_yard(env={"HF_HUB_OFFLINE": "1"}) as yard:
        here = await yard.pull("yard/chat-GGUF")
        other = await yard.pull("yard/chat-GGUF:Q8_0")
        absent = await yard.pull("yard/other")

    assert here.state == "done"
    assert "offline" in here.notes[0]
    assert other.error is not None
    assert absent.error is not None
    assert absent.error.code == "offline"
    assert len(hub.requests) == asked


# ------------------------------------------------------------------------------------ several ones


async def test_so_many_run_at_once_and_the_rest_waits(make_yard: MakeYard, hub: Hub) -> None:
    for name in ("a", "b", "c"):
        hub.repositories[f"yard/{name}"] = Repository({f"{name}.gguf": CHAT})
    hub.pause_s = 0.3
    async with make_yard(parallel=2) as yard:
        views = [yard.pulls.start(PullWanted(f"yard/{name}")) for name in ("a", "b", "c")]
        await yard.until(views[0], 100_000)
        await yard.until(views[1], 100_000)
        states = [view.state for view in yard.pulls.views()]
        hub.pause_s = 0
        ended = [(await yard.ended(view)).state for view in views]

    assert states == ["downloading", "downloading", "queued"]
    assert ended == ["done"] * 3


async def test_an_order_that_waits_can_be_taken_back_and_there_can_be_too_many(
    make_yard: MakeYard, hub: Hub
) -> None:
    hub.pause_s = 0.1
    async with make_yard(parallel=1) as yard:
        orders = [PullWanted(f"yard/m{number}") for number in range(MOST_WAITING)]
        views = [yard.pulls.start(order) for order in [PullWanted("yard/chat-GGUF"), *orders[1:]]]
        with pytest.raises(TooManyPulls, match="64 downloads are waiting or running"):
            yard.pulls.start(PullWanted("yard/more"))
        taken_back = yard.pulls.cancel(views[1].id)
        room = yard.pulls.start(PullWanted("yard/more"))
        first = yard.pulls.view(views[0].id)
    states = {view.state for view in yard.pulls.views()}

    assert (taken_back.state, room.state) == ("cancelled", "queued")
    assert first.state in ("queued", "looking", "downloading")
    assert states == {"cancelled"}


async def test_the_same_order_twice_is_one_download(yard: Yard, hub: Hub) -> None:
    first = yard.pulls.start(PullWanted("yard/chat-GGUF"))
    second = yard.pulls.start(PullWanted("hf:yard/chat-GGUF"))

    assert first.id == second.id
    assert (await yard.ended(first)).state == "done"


async def test_two_processes_do_not_fetch_the_same(make_yard: MakeYard, hub: Hub) -> None:
    hub.pause_s = 0.3
    async with make_yard() as yard, make_yard() as other:
        view = yard.pulls.start(PullWanted("yard/chat-GGUF"))
        await yard.until(view, 100_000)
        second = other.pulls.start(PullWanted("yard/chat-GGUF"))
        async with asyncio.timeout(60):
            while other.pulls.view(second.id).state != "waiting":
                await asyncio.sleep(0.02)
        hub.pause_s = 0
        states = [(await yard.ended(view)).state, (await other.ended(second)).state]

    assert states == ["done", "done"]
    assert hub.sent == len(CHAT)


async def test_files_too_large_for_plain_http_come_by_the_librarys_own_way(
    hub: Hub, tmp_path: Path
) -> None:
    job = Job("yard/chat-GGUF", "hf", str(tmp_path), hub.url, http_most_bytes=1_000_000)
    env = dict(os.environ) | {"HF_ENDPOINT": hub.url}

    news = [each async for each in news_of(job, env)]

    assert isinstance(news[-1], Finished), news[-1]
    assert (tmp_path / "yard/chat-GGUF/chat-Q4_K_M.gguf").read_bytes() == CHAT
    assert not [name for name in below(tmp_path) if name.startswith(".modelyard-pulls")]


async def test_a_move_that_was_cut_off_is_made_up_for(yard: Yard, hub: Hub) -> None:
    await yard.pull("yard/chat-GGUF")
    folder = yard.folder / "yard/chat-GGUF"
    receipt = json.loads((folder / ".modelyard-pull.json").read_text())
    # What a power cut leaves between the announcement and the last of the moves.
    (folder / ".modelyard-pull.json").write_text(
        json.dumps(receipt | {"whole": False, "digests": {}, "commit": None})
    )
    (folder / "chat-Q4_K_M.gguf").write_bytes(CHAT[::-1])

    again = await yard.pull("yard/chat-GGUF")

    assert again.state == "done", again.error
    assert (folder / "chat-Q4_K_M.gguf").read_bytes() == CHAT


async def test_orders_go_into_our_folders_only(yard: Yard, tmp_path: Path) -> None:
    inner = await yard.pull("yard/chat-GGUF", to=str(yard.folder / "gguf"))
    (yard.folder / "out").symlink_to(tmp_path)
    with pytest.raises(Forbidden, match="add others to models_dirs"):
        yard.pulls.start(PullWanted("yard/chat-GGUF", to=str(tmp_path / "elsewhere")))
    with pytest.raises(Forbidden):
        yard.pulls.start(PullWanted("yard/chat-GGUF", to=str(yard.folder / "out/side")))

    for senseless in ("~nobody-here/models", "a\0b"):
        with pytest.raises(InvalidRequest, match="is not a folder"):
            yard.pulls.start(PullWanted("yard/chat-GGUF", to=senseless))

    assert inner.folder == str(yard.folder / "gguf/yard/chat-GGUF")


# ------------------------------------------------------------------------------- whole checkpoints


def checkpoint(text: bytes) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"model_type": "llama"}).encode(),
        "tokenizer.json": b"{}" + b" " * 200_000,
        "model.safetensors": text * 200_000,
        "pytorch_model.bin": b"x" * 300_000,
        "README.md": b"# m",
    }


async def test_a_checkpoint_comes_with_its_configuration_and_without_pickles(
    yard: Yard, hub: Hub
) -> None:
    hub.repositories["yard/base"] = Repository(checkpoint(b"a"))

    view = await yard.pull("yard/base")

    assert view.state == "done", view.error
    assert sorted(view.files) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert "without pickled weights" in " ".join(view.notes)


async def test_a_newer_revision_replaces_what_was_fetched(yard: Yard, hub: Hub) -> None:
    repository = hub.repositories["yard/base"] = Repository(checkpoint(b"a"))
    await yard.pull("yard/base")
    repository.files = checkpoint(b"b") | {"model.safetensors": b"b" * 150_000}
    del repository.files["tokenizer.json"]
    repository.files["model-00001-of-00001.safetensors"] = repository.files.pop("model.safetensors")
    repository.commits = {"main": NEXT}

    view = await yard.pull("yard/base")

    assert view.commit == NEXT
    assert below(yard.folder / "yard/base") == {
        "README.md",
        "config.json",
        "tokenizer.json",
        "model-00001-of-00001.safetensors",
        ".modelyard-pull.json",
    }


async def test_files_can_be_named_and_a_revision_too(yard: Yard, hub: Hub) -> None:
    view = await yard.pull("yard/chat-GGUF", files=["*Q8_0*", "README.md"], revision="main")

    assert view.files == ["chat-Q8_0.gguf", "README.md"]
    assert (yard.folder / "yard/chat-GGUF/chat-Q8_0.gguf").read_bytes() == CHAT[::-1]


# ----------------------------------------------------------------------------------- ModelScope


async def test_modelscope_is_fetched_from_and_gone_on_from(yard: Yard, hub: Hub) -> None:
    hub.break_after, hub.breaks = 1_000_000, 1

    view = await yard.pull("yard/chat-GGUF", hub="modelscope")

    assert view.state == "done", view.error
    assert (yard.folder / "yard/chat-GGUF/chat-Q4_K_M.gguf").read_bytes() == CHAT
    assert any(path.startswith("/api/v1/models/") for path, _ in hub.requests)
    assert not any("/resolve/" in path for path, _ in hub.requests)


async def test_modelscope_tells_what_is_missing(make_yard: MakeYard, hub: Hub) -> None:
    async with make_yard(modelscope_token="ms-token") as yard:
        missing = await yard.pull("modelscope:yard/nothing")
        revision = await yard.pull("modelscope:yard/chat-GGUF", revision="v9")

    assert missing.error is not None
    assert "no model yard/nothing on ModelScope: record not found" in missing.error.message
    assert revision.error is not None
    assert "at revision 'v9'" in revision.error.message
    assert hub.authorizations == {"Bearer ms-token"}


async def test_a_folder_that_cannot_be_written_is_told(yard: Yard, hub: Hub) -> None:
    shutil.rmtree(yard.folder)
    yard.folder.write_bytes(b"a file")

    view = await yard.pull("yard/chat-GGUF")

    assert view.error is not None
    assert view.error.code == "cannot_write"
    assert os.fspath(yard.folder) in view.error.message


async def test_a_hubs_file_cannot_pass_for_what_we_keep(yard: Yard, hub: Hub) -> None:
    repository = hub.repositories["yard/base"] = Repository(checkpoint(b"a"))
    repository.files["job.json"] = b'{"model": "x"}'
    view = await yard.pull("yard/base")
    repository.files[".modelyard-pull.json"] = b"{}"
    forged = await yard.pull("yard/base", files=["*"])

    assert (yard.folder / "yard/base/job.json").read_bytes() == b'{"model": "x"}'
    assert view.state == "done"
    assert forged.error is not None
    assert forged.error.code == "bad_listing"


async def test_a_mirror_without_commits_does_not_mix_versions(yard: Yard, hub: Hub) -> None:
    repository = hub.repositories["yard/base"] = Repository(checkpoint(b"a"))
    repository.files["model.safetensors"] = b"a" * 2_000_000
    hub.pause_s = 0.1
    first = yard.pulls.start(PullWanted("modelscope:yard/base"))
    await yard.until(first, 800_000)
    yard.pulls.cancel(first.id)
    await yard.pulls.close()
    hub.pause_s = 0
    repository.files["model.safetensors"] = b"b" * 2_000_000

    view = await yard.pull("modelscope:yard/base")

    assert view.state == "done", view.error
    assert (yard.folder / "yard/base/model.safetensors").read_bytes() == b"b" * 2_000_000
