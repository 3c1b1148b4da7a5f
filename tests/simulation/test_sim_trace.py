"""Traces as people find them, whole and broken."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from modelyard.core.errors import ConfigError
from modelyard.simulation.trace import read_trace
from modelyard.simulation.values import Cut, Job, service_s

TRACES = Path(__file__).parents[2] / "bench/traces"
OWN = "t_s,model,input_tokens,output_tokens\n"


def read(tmp_path: Path, content: str | bytes, **kwargs: object) -> list[Job]:
    path = tmp_path / "trace.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_trace(path, ["x", "y", "z"], **kwargs)  # type: ignore[arg-type]


def problems(tmp_path: Path, content: str | bytes, **kwargs: object) -> list[str]:
    with pytest.raises(ConfigError) as told:
        read(tmp_path, content, **kwargs)
    return list(told.value.problems)


def test_our_own_format(tmp_path: Path) -> None:
    jobs = read(tmp_path, OWN + "2.5,b,600,100\n0,a,6,1\n")

    assert [(job.model, job.arrived_s) for job in jobs] == [("a", 0.0), ("b", 2.5)]
    assert jobs[1].service_s == pytest.approx(0.15 + 0.1 + 1.8)


def test_the_columns_of_priority_and_key_may_be_empty(tmp_path: Path) -> None:
    rows = "t_s,model,prompt_tokens,output_tokens,priority,key\n0,a,1,1,-2,ann\n1,a,1,1,,\n"
    jobs = read(tmp_path, rows)

    assert [(job.priority, job.key) for job in jobs] == [(-2, "ann"), (None, "")]


def test_azures_format_counts_from_its_first_moment(tmp_path: Path) -> None:
    rows = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:15:51.6805900+00:00,5,5\n"
    )
    jobs = read(tmp_path, rows)

    assert [job.arrived_s for job in jobs] == pytest.approx([0, 4.314579, 5], abs=1e-4)
    assert jobs[0].service_s == service_s(374, 44)


def test_burstgpts_format(tmp_path: Path) -> None:
    rows = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
    )
    assert [(job.model, job.arrived_s) for job in read(tmp_path, rows)] == [
        ("ChatGPT", 5.0),
        ("GPT-4", 45.0),
    ]


def test_mooncakes_format_as_json_lines_and_as_csv(tmp_path: Path) -> None:
    line = '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    (told,) = read(tmp_path, line)
    (same,) = read(tmp_path, "timestamp,input_length,output_length\n27482,6955,52\n")

    assert (told.arrived_s, told.service_s) == (27.482, service_s(6955, 52))
    assert (same.arrived_s, same.service_s, same.model) == (27.482, told.service_s, told.model)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vtc_arena_requests", 1500),
        ("azure_llm_2023_conv", 19_366),
        ("azure_llm_2023_code", 8_819),
        ("mooncake_conversation", 12_031),
    ],
)
def test_the_shipped_traces_are_read_whole(name: str, count: int) -> None:
    jobs = read_trace(TRACES / f"{name}.csv.gz", ["x", "y"])

    assert len(jobs) == count
    assert all(0 <= job.arrived_s < 3600 for job in jobs)


def test_models_that_a_trace_does_not_name_follow_zipf_and_the_seed(tmp_path: Path) -> None:
    rows = "t_s,input_tokens,output_tokens\n" + "0,1,1\n" * 6000
    drawn = [job.model for job in read(tmp_path, rows, seed=1)]
    counts = sorted(Counter(drawn).values(), reverse=True)

    assert counts == [pytest.approx(6000 * share / 11, rel=0.1) for share in (6, 3, 2)]
    assert drawn == [job.model for job in read(tmp_path, rows, seed=1)]
    assert drawn != [job.model for job in read(tmp_path, rows, seed=2)]


def test_a_part_of_a_trace_keeps_its_models(tmp_path: Path) -> None:
    rows = "t_s,input_tokens,output_tokens\n" + "".join(f"{at},1,1\n" for at in range(100))
    whole = read(tmp_path, rows)
    part = read(tmp_path, rows, cut=Cut(start_s=40, length_s=20, stretch=3))

    assert [job.model for job in part] == [job.model for job in whole[40:60]]
    assert [job.arrived_s for job in part[:3]] == [0, 3, 6]


# -------------------------------------------------------------------------------------------- rates

RATES = "pool,client,t_s,rate_rps,cv,pattern,shape\n"


def test_rates_become_as_many_requests(tmp_path: Path) -> None:
    rows = RATES + "".join(
        f"p,{client},{start},{rate},1,{pattern},{shape}\n"
        for client, pattern, shape in ((1, "Gamma", 0.5), (2, "Weibull", 0.6), (3, "Gamma", 2))
        for start in range(0, 60_000, 600)
        for rate in [0.02 * client]
    )
    jobs = read(tmp_path, rows, seed=3)
    counts = sorted(Counter(job.model for job in jobs).values())

    assert counts == [pytest.approx(expected, rel=0.15) for expected in (1200, 2400, 3600)]
    assert read(tmp_path, rows, seed=3)[17].arrived_s == jobs[17].arrived_s


def test_a_window_without_a_rate_has_no_requests(tmp_path: Path) -> None:
    rows = RATES + "p,1,0,1,1,Gamma,1\np,1,600,0,1,Gamma,1\np,1,1200,1,1,Gamma,1\n"
    times = [job.arrived_s for job in read(tmp_path, rows)]

    assert not [at for at in times if 600 <= at < 1200]
    assert len([at for at in times if at >= 1200]) == pytest.approx(600, rel=0.2)


def test_the_rate_of_all_clients_can_be_asked_for() -> None:
    cut = Cut(start_s=86_400, length_s=7200, rate_rps=0.5)
    jobs = read_trace(TRACES / "servegen_client_rates.csv.gz", list("abcdefgh"), seed=4, cut=cut)

    assert len(jobs) == pytest.approx(3600, rel=0.25)
    assert all(0 <= job.arrived_s < 7200 for job in jobs)


def test_too_many_requests_are_refused_before_they_are_drawn(tmp_path: Path) -> None:
    rows = RATES + "p,1,0,900000,1,Gamma,1\n"

    (told,) = problems(tmp_path, rows)
    assert "about 540000000 requests" in told
    assert "--length" in told


# ------------------------------------------------------------------------------------------- broken


def test_every_bad_row_is_told_with_its_line(tmp_path: Path) -> None:
    rows = OWN + "0,a,1,1\nx,a,1,1\n1,a,1.5,1\n-1,a,1,1\nnan,a,1,1\n1,,1,1\n1,a,1\n1,a,1,-3\n"

    assert [text.split(": ", 2)[:2] for text in problems(tmp_path, rows)] == [
        ["line 3", "t_s"],
        ["line 4", "input_tokens"],
        ["line 5", "t_s"],
        ["line 6", "t_s"],
        ["line 7", "model is empty"],
        ["line 8", "has 3 values, the header names 4"],
        ["line 9", "output_tokens"],
    ]


def test_reading_ends_after_twenty_problems(tmp_path: Path) -> None:
    told = problems(tmp_path, OWN + "x,a,1,1\n" * 100_000)

    assert (len(told), told[-1]) == (21, "and perhaps more: reading ended here")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (OWN, "holds no request"),
        ("when,who\n1,2\n", "of no known format"),
        (b"\xff\xfe\x00t\x00_", "line 1: not UTF-8 text"),
        (OWN.encode() + b"0,\xc3\x28,1,1\n", "line 2: not UTF-8 text"),
        (OWN + "0," + "a" * 70_000 + ",1,1\n", "line 2: the line is longer than 65536 bytes"),
        (OWN + '0,"a,1,1\n', "line 2: not CSV"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "line 2: TIMESTAMP"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}\n{"a": \n', "line 2: not JSON"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}\n[1]\n', "not a JSON object"),
        ('{"timestamp": 1}\n', "line 1: input_length is missing"),
        ("[" * 60_000, "of no known format"),
        ('{"a":' * 12_000, "line 1: not JSON"),
        (RATES + "p,1,0,1,1,Pareto,1\n", "line 2: pattern"),
        (RATES + "p,1,0,1,1,Gamma,0\n", "line 2: shape"),
        (gzip.compress(OWN.encode() * 99)[:40], "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: str | bytes, told: str) -> None:
    assert told in "\n".join(problems(tmp_path, content))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.csv", [])
