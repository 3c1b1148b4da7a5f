"""sleep, wake, and what ps, show and info tell of memory: on a made-up GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from modelyard.cli.words import difference, doing
from modelyard.core.views import ModelView
from modelyard.testing.fake_books import FOLDER_VARIABLE

if TYPE_CHECKING:
    from tests.cli.conftest import GpuServer, Run

GPU = "GPU-fake-0000"
PATIENCE_S = 60.0
MODELYARD = [sys.executable, "-m", "modelyard.cli"]


def shown(text: str) -> dict[str, str]:
    """What `show` printed, by the first word of each line."""
    return dict(line.split(maxsplit=1) for line in text.splitlines() if not line.startswith(" "))


def seen(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds anything."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came to be seen"
    return found


def measured(gpus: GpuServer, model: str) -> None:
    """Wait until the server has measured what the model holds on the GPU."""
    seen(lambda: GPU in gpus.run("show", model, "--json").json["used_mib"])


# ----------------------------------------------------------------------------- sleeping and waking


def test_sleep_waits_until_the_memory_is_seen_to_be_back(gpus: GpuServer) -> None:
    gpus.run("start", "napper")
    full = gpus.books.account(GPU).used_mib

    ran = gpus.run("sleep", "napper")

    assert ran.code == 0
    assert ran.out.startswith("napper is asleep (level 2) after ")
    assert f"{GPU} 350 MiB" in ran.out
    assert full > 2900
    assert gpus.books.account(GPU).used_mib == 350


@pytest.mark.parametrize("level", ["1", "2"])
def test_a_model_sleeps_at_the_level_that_is_asked_for_and_wakes_in_the_same_run(
    gpus: GpuServer, level: str
) -> None:
    run = gpus.run("start", "napper", "--json").json["run"]

    asleep = gpus.run("sleep", "napper", "--level", level, "--json").json
    woken = gpus.run("wake", "napper")

    assert (asleep["state"], asleep["sleep_level"]) == ("asleep", int(level))
    assert woken.out.startswith("napper woke in ")
    assert gpus.run("show", "napper", "--json").json["run"] == run
    assert gpus.run("run", "napper", "who are you").out.startswith("napper: echo of who are you")


def test_level_3_is_a_stop(gpus: GpuServer) -> None:
    gpus.run("start", "napper")

    assert gpus.run("sleep", "napper", "--level", "3").out.startswith("napper stopped in ")
    assert gpus.books.account(GPU).used_mib == 0


def test_ps_and_show_tell_how_deep_a_model_sleeps(gpus: GpuServer) -> None:
    gpus.run("start", "napper")
    gpus.run("sleep", "napper")

    row = gpus.run("ps").out.splitlines()[1]
    said = shown(gpus.run("show", "napper").out)
    assert "asleep (level 2)" in row
    assert said["State"] == "asleep (level 2)"
    assert said["Can"] == "sleep    at level 1, 2"


def test_sleep_and_wake_can_return_at_once(gpus: GpuServer) -> None:
    gpus.run("start", "slow")

    assert gpus.run("sleep", "slow", "--no-wait").out == "slow is suspending\n"
    gpus.run("sleep", "slow")
    said = gpus.run("wake", "slow", "--no-wait").out
    assert said == "slow is waking; `modelyard ps` tells how far it is\n"
    assert gpus.run("wake", "slow", "--json").json["state"] == "ready"


def test_wake_shows_how_it_goes(gpus: GpuServer) -> None:
    gpus.run("start", "slow")
    gpus.run("sleep", "slow")

    assert "slow: its engine is waking up" in gpus.run("wake", "slow").err


def test_a_wait_that_is_too_short_ends_and_the_server_goes_on(gpus: GpuServer) -> None:
    gpus.run("start", "slow")

    ran = gpus.run("sleep", "slow", "--timeout", "0.2")
    assert ran.code == 1
    assert "model 'slow' needs longer than 0.2 s; it is suspending" in ran.err
    gpus.run("wake", "slow")
    assert gpus.run("show", "slow", "--json").json["failures"] == 0


def test_what_does_not_run_is_left_as_it_is(gpus: GpuServer) -> None:
    assert gpus.run("sleep", "napper").out == "napper is stopped, as before\n"


def test_a_second_sleep_changes_nothing(gpus: GpuServer) -> None:
    gpus.run("start", "napper")
    gpus.run("sleep", "napper", "--level", "2")

    assert gpus.run("sleep", "napper").out == "napper is asleep (level 2), as before\n"


def test_wake_starts_what_does_not_run_and_says_if_nothing_was_to_be_done(gpus: GpuServer) -> None:
    assert gpus.run("wake", "napper").out.startswith("napper started anew and is ready in ")
    assert gpus.run("wake", "napper").out == "napper was awake already\n"


def test_an_engine_that_keeps_its_memory_is_stopped_and_the_reason_told(gpus: GpuServer) -> None:
    gpus.run("start", "liar")

    ran = gpus.run("sleep", "liar")
    assert ran.code == 0
    assert ran.out.startswith("liar stopped in ")
    assert "it did not go to sleep: it says that it sleeps and still holds" in ran.out


def test_a_wake_that_fails_ends_in_a_fresh_start(gpus: GpuServer) -> None:
    before = gpus.run("start", "grump", "--json").json
    gpus.run("sleep", "grump")

    assert gpus.run("wake", "grump").out.startswith("grump started anew and is ready in ")
    assert gpus.run("show", "grump", "--json").json["run"] == before["run"] + 1


def test_an_engine_that_cannot_sleep_is_named_with_its_levels(gpus: GpuServer) -> None:
    gpus.run("start", "awake")

    ran = gpus.run("sleep", "awake")
    assert (ran.code, ran.out) == (2, "")
    assert "the engine of 'awake' cannot sleep at level 2; its levels: none" in ran.err
    assert gpus.run("show", "awake", "--json").json["state"] == "ready"


@pytest.mark.parametrize("level", ["0", "4", "deep"])
def test_a_level_that_there_is_not_is_wrong_usage(gpus: GpuServer, level: str) -> None:
    ran = gpus.run("sleep", "napper", "--level", level)

    assert (ran.code, ran.out) == (2, "")


@pytest.mark.parametrize("command", ["sleep", "wake"])
def test_an_unknown_model_cannot_be_put_to_sleep_or_woken(gpus: GpuServer, command: str) -> None:
    ran = gpus.run(command, "naper")

    assert (ran.code, ran.out) == (4, "")
    assert "there is no model named 'naper'" in ran.err


@pytest.mark.parametrize("command", ["sleep x", "wake x", "ps --memory"])
def test_without_a_server_the_exit_code_is_3(alone: Run, command: str) -> None:
    assert alone(*command.split(), "--url", "http://127.0.0.1:1").code == 3


# ------------------------------------------------------------------------------------------- memory


def test_memory_is_shown_by_device_with_claims_real_use_and_their_difference(
    gpus: GpuServer,
) -> None:
    gpus.run("start", "napper")
    gpus.run("start", "awake")
    gpus.run("sleep", "napper")
    measured(gpus, "awake")

    out = gpus.run("ps", "--memory").out
    device = out[out.index(GPU) :].split("\n\n")[0].splitlines()
    pairs = {line.split()[0]: line.split(maxsplit=1)[1] for line in device[1:6]}
    assert pairs["Total"] == "8.0 GiB"
    assert pairs["Ceiling"] == "7.8 GiB, 192 MiB are kept from models"
    assert pairs["Strangers"] == "0 MiB"
    assert device[6].split() == ["NAME", "STATE", "CLAIM", "REALLY", "DIFFERENCE"]
    rows = {line.split()[0]: line.split()[1:] for line in device[7:]}
    assert rows["napper"][:3] == ["asleep", "350", "MiB"]
    assert rows["awake"][0] == "ready"
    assert "-" not in rows["awake"]


def test_memory_as_json_is_what_the_admin_api_says_of_devices(gpus: GpuServer) -> None:
    gpus.run("start", "awake")
    measured(gpus, "awake")

    devices = {device["id"]: device for device in gpus.run("ps", "--memory", "--json").json}
    (share,) = devices[GPU]["shares"]
    assert (share["model"], share["state"]) == ("awake", "ready")
    assert share["used_mib"] == gpus.books.account(GPU).used_mib
    assert devices[GPU]["ceiling_mib"] == 8000


def test_what_strangers_use_is_told(gpus: GpuServer) -> None:
    gpus.books.stranger(GPU, "2GiB")
    try:
        seen(lambda: "2.0 GiB of it by others" in gpus.run("info").out)
        said = gpus.run("info").out
        memory = gpus.run("ps", "--memory").out
    finally:
        gpus.books.stranger(GPU, 0)

    assert "Strangers  2.0 GiB" in memory
    assert "0 MiB of 5.8 GiB claimed by models" in said


def test_info_lists_every_device_with_how_it_is_doing(gpus: GpuServer) -> None:
    out = gpus.run("info").out

    assert f"Device {GPU}" in out
    assert "Device cpu" in out
    assert "NVIDIA GeForce RTX 4060: " in out
    assert "0% busy, 41 °C, 14 W" in out


def test_info_counts_sleeps_and_wakes(gpus: GpuServer) -> None:
    gpus.run("start", "napper")
    before = gpus.run("info", "--json").json["server"]
    gpus.run("sleep", "napper")
    gpus.run("wake", "napper")

    after = gpus.run("info", "--json").json["server"]
    assert (after["sleeps"], after["wakes"]) == (before["sleeps"] + 1, before["wakes"] + 1)
    assert f"{after['wakes']} wake" in gpus.run("info").out


def test_show_tells_which_profiles_were_passed_over_and_what_is_really_held(
    gpus: GpuServer,
) -> None:
    gpus.run("start", "choosy")
    measured(gpus, "choosy")

    said = shown(gpus.run("show", "choosy").out)
    assert said["Profile"] == "card"
    assert "profile 'big' needs rtx 9999" in said["Passed"]
    assert GPU in said["Really"]


# ------------------------------------------------------------------------------- words and devices


def test_a_difference_has_its_sign() -> None:
    assert [difference(mib) for mib in (-300, 0, 2048)] == ["-300 MiB", "0 MiB", "+2.0 GiB"]


def test_a_model_that_sleeps_is_said_to_be_asleep_at_its_level() -> None:
    view = ModelView("m", "asleep", ["chat"], "command", sleep_level=1)

    assert doing(view) == "asleep (level 1)"


def test_books_that_are_not_there_are_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [*MODELYARD, "serve", "--port", "0"],
        env={**os.environ, FOLDER_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert f"{FOLDER_VARIABLE}: {tmp_path} holds no books of fake GPUs" in done.stderr
