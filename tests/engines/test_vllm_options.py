"""Options of vLLM: what was recorded, what a help text says, what is checked and written."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.core.specs import OptionValue
from modelyard.engines import vllm_help, vllm_options
from modelyard.engines.vllm_builds import Build
from modelyard.engines.vllm_renamed import INSTEAD, REWRITES
from modelyard.engines.vllm_table import RECORDED, Form, known, recorded, span, version_of

LISTS = sorted(Path(__file__).with_name("vllm_options").glob("*.txt"))
"""Options as the argument parsers of published packages have them; see `vllm_table`."""
NEWEST = Build(version="0.32.0")


def listed(file: Path) -> dict[str, Form]:
    found: dict[str, Form] = {}
    form = Form.VALUE
    for line in file.read_text().splitlines():
        if line.startswith(" "):
            found |= dict.fromkeys(line.split(), form)
        else:
            form = Form[line]
    return found


def written(options: dict[str, OptionValue], version: str) -> list[str]:
    build = Build(version=version)
    assert list(vllm_options.problems(options, build)) == []
    return list(vllm_options.arguments(vllm_options.settings(options, build), build))


def complaint(options: dict[str, OptionValue], version: str = "0.32.0") -> str:
    ((_, why),) = vllm_options.problems(options, Build(version=version))
    return why


# --------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_the_table_gives_the_recorded_options_of_each_version(file: Path) -> None:
    assert recorded(file.stem) == listed(file)


def test_at_least_five_versions_were_recorded_from_the_oldest_to_the_newest() -> None:
    assert len(LISTS) >= 5
    assert {RECORDED[0], RECORDED[-1]} <= {file.stem for file in LISTS}


def test_between_two_recorded_versions_what_either_had_is_known() -> None:
    between = known((0, 17, 5))

    assert {"swap-space", "shutdown-timeout"} <= between.keys()
    assert "swap-space" not in known((0, 18, 1))
    assert known((0, 5)) == recorded("0.6.6")
    assert known((1, 0)) == known(()) == recorded("0.32.0")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.32.0", (0, 32, 0)),
        ("0.10.2.post1+cu128", (0, 10, 2)),
        ("0.11.0rc2.dev3", (0, 11, 0)),
        ("dev", ()),
        ("", ()),
    ],
)
def test_versions_are_compared_by_their_numbers(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


# ---------------------------------------------------------------------------------- the help texts

OLD_HELP = """\
usage: api_server.py [-h] [--host HOST] [--lora-modules LORA_MODULES [LORA_MODULES ...]]

vLLM OpenAI-Compatible RESTful API server.

options:
  -h, --help            show this help message and exit
  --host HOST           Host name. See also --port.
  --lora-modules LORA_MODULES [LORA_MODULES ...]
                        LoRA module configurations in either 'name=path' format
  --trust-remote-code   Trust remote code from huggingface.
  --enable-chunked-prefill [ENABLE_CHUNKED_PREFILL]
                        If set, the prefill requests can be chunked.
  --ignore-patterns IGNORE_PATTERNS
                        The pattern(s) to ignore when loading the model.
  --quantization {awq,gptq,None}, -q {awq,gptq,None}
                        Method used to quantize the weights.
"""
NEW_HELP = """\
ModelConfig:
  API docs: https://docs.vllm.ai/en/v0.32.0/api/vllm/config/#vllm.config.ModelConfig

  --enforce-eager, --no-enforce-eager
                        Whether to always use eager-mode PyTorch. (default: False)
  --tokenizer-mode ['auto', 'hf', 'mistral']
                        Tokenizer mode:
  --served-model-name SERVED_MODEL_NAME [SERVED_MODEL_NAME ...]
  --tensor-parallel-size, -tp TENSOR_PARALLEL_SIZE
   --json-arg '{"key1": "value1"}'
  --headless            Run in headless mode.
\x1b[1m  --dtype\x1b[0m {auto,half}
"""


def test_a_help_text_tells_each_option_and_its_form() -> None:
    assert vllm_help.options(OLD_HELP) == {
        "host": Form.VALUE,
        "lora-modules": Form.LIST,
        "trust-remote-code": Form.SWITCH,
        "enable-chunked-prefill": Form.MAYBE,
        "ignore-patterns": Form.REPEATED,
        "quantization": Form.VALUE,
    }
    assert vllm_help.options(NEW_HELP) == {
        "enforce-eager": Form.BOTH,
        "tokenizer-mode": Form.VALUE,
        "served-model-name": Form.LIST,
        "tensor-parallel-size": Form.VALUE,
        "headless": Form.SWITCH,
        "dtype": Form.VALUE,
    }


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):\n  File", "\0" * 100])
def test_text_that_is_no_help_tells_nothing(text: str) -> None:
    assert vllm_help.options(text) == {}


# ----------------------------------------------------------------------------------------- writing


def test_values_are_written_as_the_form_of_their_option_wants() -> None:
    options: dict[str, OptionValue] = {
        "max_model_len": "auto",
        "max-num-seqs": 8,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "limit_mm_per_prompt": {"image": 2},
        "lora_modules": ["a=/x", {"name": "b", "path": "/y"}],
        "middleware": ["one", "two"],
        "seed": None,
        "compilation_config.mode": 3,
        "tp": 2,
    }

    assert written(options, "0.32.0") == [
        "--max-model-len=auto",
        "--max-num-seqs=8",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        '--limit-mm-per-prompt={"image": 2}',
        "--lora-modules",
        "a=/x",
        '{"name": "b", "path": "/y"}',
        "--middleware=one",
        "--middleware=two",
        "--compilation-config.mode=3",
        "--tensor-parallel-size=2",
    ]


def test_what_an_old_version_cannot_switch_off_is_left_out() -> None:
    options: dict[str, OptionValue] = {"enforce_eager": False, "enable_chunked_prefill": False}

    assert written(options, "0.6.6") == ["--enable-chunked-prefill=false"]


def test_a_profiles_option_replaces_the_models_however_it_is_spelt() -> None:
    below: dict[str, OptionValue] = {"max_model_len": 100, "seed": 1}

    assert vllm_options.laid_over(below, {"max-model-len": 200}) == {
        "seed": 1,
        "max-model-len": 200,
    }


# ------------------------------------------------------------------------------- renamed, removed


@pytest.mark.parametrize(
    ("options", "version", "arguments"),
    [
        ({"task": "generate"}, "0.32.0", ["--runner=generate"]),
        ({"task": "embed"}, "0.13.0", ["--runner=pooling", "--convert=embed"]),
        ({"task": "score"}, "0.32.0", ["--runner=pooling"]),
        ({"task": "embed"}, "0.9.2", ["--task=embed"]),
        ({"convert": "classify", "runner": "pooling"}, "0.9.2", ["--task=classify"]),
        ({"num_gpu_blocks": 99}, "0.32.0", ["--num-gpu-blocks-override=99"]),
        ({"disable_log_requests": True}, "0.32.0", []),
        ({"enable_log_requests": True}, "0.9.2", []),
        ({"enable_log_requests": False}, "0.9.2", ["--disable-log-requests"]),
        ({"cuda_graph_sizes": 8}, "0.13.0", ["--cudagraph-capture-sizes", "8"]),
        ({"override_pooler_config": {"x": 1}}, "0.12.0", ['--pooler-config={"x": 1}']),
        ({"enable_reasoning": True, "reasoning_parser": "q"}, "0.32.0", ["--reasoning-parser=q"]),
        ({"worker_use_ray": True}, "0.8.5", ["--distributed-executor-backend=ray"]),
        ({"disable_mm_preprocessor_cache": True}, "0.13.0", ["--mm-processor-cache-gb=0"]),
        (
            {"guided_decoding_backend": "xgrammar", "guided_decoding_disable_fallback": True},
            "0.12.0",
            ['--structured-outputs-config={"backend": "xgrammar", "disable_fallback": true}'],
        ),
        (
            {"speculative_model": "[ngram]", "num_speculative_tokens": 3},
            "0.32.0",
            ['--speculative-config={"method": "ngram", "num_speculative_tokens": 3}'],
        ),
        ({"eplb_window_size": 9}, "0.12.0", ['--eplb-config={"window_size": 9}']),
        ({"swap_space": 4}, "0.17.1", ["--swap-space=4"]),
        ({"swap_space": 0}, "0.18.1", []),
        ({"log_config_file": "/l"}, "0.33.0", ["--log-config-file=/l"]),
        ({"device_memory_utilization": 0.5}, "0.9.2", ["--gpu-memory-utilization=0.5"]),
    ],
)
def test_an_option_of_another_version_is_said_in_this_ones_words(
    options: dict[str, OptionValue], version: str, arguments: list[str]
) -> None:
    assert written(options, version) == arguments


def test_an_option_that_a_newer_build_no_longer_prints_is_mapped_too() -> None:
    later = Build(version="0.33.0", told={"logging-config": Form.VALUE})
    options: dict[str, OptionValue] = {"log_config_file": "/l"}

    meant = vllm_options.settings(options, later)

    assert list(vllm_options.problems(options, later)) == []
    assert meant == {"logging-config": {"pylogging_config_file": "/l"}}


@pytest.mark.parametrize(
    ("options", "version", "words"),
    [
        ({"swap_space": 4}, "0.18.1", ("0.17.1 was the last", "kv_offloading_size")),
        ({"task": "reward"}, "0.32.0", ("0.12.0 was the last", "`runner` and `convert`")),
        ({"max_seq_len_to_capture": 8192}, "0.11.2", ("0.10.2", "max_cudagraph_capture_size")),
        ({"device": "cpu"}, "0.32.0", ("0.9.2 was the last", "profile's `devices`")),
        ({"kv_cache_memory_bytes": 1}, "0.9.2", ("too old for it: it came with 0.10.2",)),
        ({"enable_sleep_mode": True}, "0.6.6", ("too old for it: it came with 0.7.3",)),
        ({"enforce_eagr": True}, "0.32.0", ("no such option; did you mean enforce_eager?",)),
        ({"no_enforce_eager": True}, "0.32.0", ("write `enforce_eager: false`",)),
        ({"port": 1}, "0.32.0", ("chosen by Modelyard",)),
        ({"served-model-name": "x"}, "0.32.0", ("`aliases`",)),
        ({"api_key": "x"}, "0.32.0", ("keys belong to `server`",)),
        ({"model": "x"}, "0.32.0", ("write `source`",)),
        ({"enforce_eager": "yes"}, "0.32.0", ("true or false",)),
        ({"max_model_len": True}, "0.32.0", ("takes a value",)),
        ({"gpu_memory_utilization": 85}, "0.32.0", ("share of the card",)),
        ({"max-tokens": 8}, "0.32.0", ("max_model_len",)),
        ({"max_tokens": 8, "max-tokens": 8}, "0.32.0", ("",)),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_what_to_do(
    options: dict[str, OptionValue], version: str, words: tuple[str, ...]
) -> None:
    told = [why for _, why in vllm_options.problems(options, Build(version=version))]

    assert told
    assert all(word in told[0] for word in words), told


def test_an_option_written_twice_is_refused() -> None:
    assert complaint({"max_model_len": 1, "max-model-len": 2}) == (
        "it is the same option as max_model_len; keep one of them"
    )


def test_every_option_that_vllm_dropped_is_mapped_or_explained() -> None:
    dropped = {
        name
        for version in RECORDED
        for name in recorded(version)
        if (seen := span(name)) is not None and seen[1]
    }

    assert len(dropped) > 50
    assert dropped - REWRITES.keys() - INSTEAD.keys() == set()


def test_what_a_build_prints_of_itself_wins_over_what_is_recorded() -> None:
    fork = Build(version="0.32.0", told={"tea-time": Form.VALUE})

    assert list(vllm_options.problems({"tea_time": 5}, fork)) == []
    assert [name for name, _ in vllm_options.problems({"seed": 5}, fork)] == ["seed"]
