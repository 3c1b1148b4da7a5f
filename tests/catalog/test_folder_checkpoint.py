"""Folders of the Hugging Face kind: whole ones, and what is said of broken ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.catalog.checkpoints import LLAMA, checkpoint, safetensors

from modelyard.catalog.discover import Catalog, scan
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.folders import Problem
from modelyard.catalog.json_object import MAX_DEPTH, parse_json, read_object
from modelyard.catalog.safetensors import MAX_HEADER_BYTES, read_safetensors
from modelyard.catalog.weights import read_weights
from modelyard.core.specs import Task

ALL = ("llamacpp", "vllm", "transformers")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"


def found(place: Path) -> Catalog:
    return scan([place], engines=ALL)


def test_a_folder_with_configuration_tokenizer_and_weights_is_a_model(tmp_path: Path) -> None:
    card = "---\nlicense: apache-2.0\n---\n"
    place = checkpoint(tmp_path / "org/Tiny", template=True, files={"README.md": card})

    (model,) = found(tmp_path).found

    assert (model.id, model.aliases, model.source) == ("Tiny", ("org/Tiny",), place)
    assert (model.architecture, model.quantization, model.license) == (
        "llama",
        "BF16",
        "apache-2.0",
    )
    assert (model.context_length, model.parameters) == (2048, 256 * 64 + 2 * 128 * 64)
    assert model.weight_bytes == 2 * model.parameters
    assert model.engine.engine == "vllm"
    assert model.verdict.tasks == {Task.CHAT, Task.COMPLETION}


def test_its_spec_names_the_folder_and_has_an_estimate(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny", template=True)

    (spec,) = found(tmp_path).models

    assert (spec.id, spec.engine, spec.source) == ("Tiny", "vllm", str(place))
    assert (spec.context_length, len(spec.revision)) == (2048, 16)
    assert spec.estimate_mib is not None
    assert spec.estimate_mib > 1000


def test_without_an_engine_for_it_a_model_is_a_problem_that_says_which(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny", template=True)

    catalog = scan([tmp_path])

    reason = "not served: it needs the engine vllm or transformers, which is not there"
    assert (catalog.found, catalog.problems) == ((), (Problem(place, reason),))


def _drop(name: str) -> Callable[[Path], object]:
    return lambda place: (place / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_text(text, encoding="utf-8")


def _truncate(place: Path) -> None:
    path = place / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


SHARD = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (_drop(SHARD), "", f"1 of its 3 weight files are missing: {SHARD}"),
        (_truncate, SHARD, "the file is truncated: its header describes 8.0 KiB"),
        (_write(SHARD, POINTER), SHARD, "it is a git-lfs pointer, not the file itself"),
        (_write(SHARD, "<html>not found</html>"), SHARD, "it is no safetensors file"),
        (_drop("tokenizer.json"), "", "it has no tokenizer (tokenizer.json,"),
        (_write("config.json", POINTER), "config.json", "it is a git-lfs pointer"),
        (_write("config.json", "{"), "config.json", "it is no JSON: Expecting property name"),
        (
            _write("config.json", '{"architectures": [1]}'),
            "config.json",
            "architectures is [1] where a list of texts belongs",
        ),
        (
            _write("model.safetensors.index.json", "{}"),
            "model.safetensors.index.json",
            "it has no weight_map",
        ),
        (
            _write("model.safetensors.index.json", '{"weight_map": {"a": "../../etc/passwd"}}'),
            "model.safetensors.index.json",
            "its weight_map names ../../etc/passwd",
        ),
    ],
)
def test_a_broken_model_is_named_with_what_is_missing(
    tmp_path: Path, damage: Callable[[Path], object], name: str, reason: str
) -> None:
    place = checkpoint(tmp_path / "Tiny", shards=3)
    damage(place)

    catalog = found(tmp_path)

    assert catalog.found == ()
    (problem,) = catalog.problems
    assert problem.path == place / name
    assert problem.reason.startswith(reason)


def test_files_without_an_index_are_counted_by_their_numbers(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny", shards=3)
    (place / "model.safetensors.index.json").unlink()
    (place / "model-00003-of-00003.safetensors").unlink()

    (problem,) = found(tmp_path).problems

    assert "1 of its 3 weight files are missing: model-00003-of-00003" in problem.reason


def test_a_link_to_nowhere_is_told_as_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny")
    (place / "model.safetensors").unlink()
    (place / "model.safetensors").symlink_to(tmp_path / "gone")

    (problem,) = found(tmp_path).problems

    assert problem == Problem(
        place / "model.safetensors", "it cannot be read: No such file or directory"
    )


def test_duplicates_beside_the_index_are_no_weights(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny", shards=2)
    (place / "consolidated.safetensors").write_bytes(safetensors())
    (place / "pytorch_model.bin").write_bytes(b"x" * 10_000)

    (model,) = found(tmp_path).found

    assert model.weight_bytes == 2 * 64 * 64 * 2


def test_pickles_are_weights_of_which_only_the_size_is_known(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny")
    (place / "model.safetensors").unlink()
    (place / "pytorch_model.bin").write_bytes(b"x" * 10_000)

    (model,) = found(tmp_path).found

    assert (model.form, model.weight_bytes, model.quantization) == ("pickled", 10_000, "pickled")


def test_packed_weights_are_counted_singly(tmp_path: Path) -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    place = checkpoint(tmp_path / "Tiny", config)
    tensors = {
        "model.layers.0.q.qweight": ("I32", (8, 64)),
        "model.layers.0.q.qzeros": ("I32", (1, 8)),
        "model.layers.0.q.scales": ("F16", (1, 64)),
    }
    (place / "model.safetensors").write_bytes(safetensors(tensors))

    (model,) = found(tmp_path).found

    assert (model.quantization, model.parameters) == ("GPTQ 4-bit", 8 * 64 * 8)
    assert model.weight_bytes == 8 * 64 * 4 + 8 * 4 + 64 * 2


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model_index.json": "{}"}, "model_index.json makes it a pipeline of diffusers"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": "x"}, None),
    ],
)
def test_other_folders_are_told_from_broken_models(
    tmp_path: Path, files: dict[str, str], reason: str | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    reasons = [problem.reason for problem in found(tmp_path).problems]

    assert len(reasons) == (0 if reason is None else 1)
    assert all(str(reason) in each for each in reasons)


def test_a_configuration_alone_is_nobody_s_problem(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    checkpoint(tmp_path / "inside", template=True)

    catalog = found(tmp_path)

    assert [model.id for model in catalog.found] == ["inside"]
    assert catalog.problems == ()


def test_a_model_that_no_engine_runs_is_told(tmp_path: Path) -> None:
    config = {"architectures": ["VitsModel"], "model_type": "vits"}
    place = checkpoint(tmp_path / "Voice", config)

    reason = "not served: no engine here does speech"
    assert found(tmp_path).problems == (Problem(place, reason),)


# ------------------------------------------------------------------------------------ hostile files


def header(path: Path, text: bytes, *, length: int | None = None, more: bytes = b"") -> Path:
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + more)
    return path


@pytest.mark.parametrize(
    ("text", "length", "reason"),
    [
        (b"{}", 2**63, "announces a header of 9223372036854775808 bytes"),
        (b"{}", MAX_HEADER_BYTES, "the file is truncated: its header needs"),
        (b"[]", None, "its header does not begin with"),
        (b"{" + b'"a":{' * 5000, None, "its header is damaged"),
        (b"{" + b'"a":1,' * 20_000 + b'"b":2}', None, "many more entries than tensors"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', None, "from byte 8 to byte 0"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', None, "shape that cannot be"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', None, "has 4 bytes where F32"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', None, "the file is truncated"),
        (b'{"a":{"dtype":"F32","shape":"2","data_offsets":[0,8]}}', None, "its header is damaged"),
        (b'{"a":' + b"[" * 100_000 + b"}", None, "its header is damaged"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(
    tmp_path: Path, text: bytes, length: int | None, reason: str
) -> None:
    with pytest.raises(BadModelFile) as refusal:
        read_safetensors(header(tmp_path / "x.safetensors", text, length=length))

    assert reason in refusal.value.reason


def test_a_number_format_that_is_not_known_is_as_large_as_it_says(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F2","shape":[16],"data_offsets":[0,4]}}'
    path = header(tmp_path / "x.safetensors", text, more=bytes(4))

    assert read_safetensors(path).tensor_bytes == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "its values are nested more than"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "its values are nested more than"),
        (b"[" + b"1," * 500_000 + b"1]", "values; 200000 are accepted"),
        (b"9" * 10_000, "a number of too many digits"),
        (b"\xff\xfe{}", "it is no text"),
        (b'{"a": 1', "it is no JSON"),
    ],
)
def test_hostile_json_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(BadModelFile) as refusal:
        parse_json(tmp_path, content)

    assert reason in refusal.value.reason


def test_brackets_inside_text_are_no_depth(tmp_path: Path) -> None:
    text = json.dumps({"a": "[" * (2 * MAX_DEPTH) + '\\"{'})

    assert parse_json(tmp_path, text.encode()) == json.loads(text)


def test_a_file_that_is_too_large_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * 100)

    with pytest.raises(BadModelFile, match="more than 50 bytes"):
        read_object(tmp_path / "large.json", most_bytes=50)
    with pytest.raises(BadModelFile, match="not a regular file"):
        read_object(tmp_path)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda o: o.count("text"), "text is 'x' where a count belongs"),
        (lambda o: o.count("minus"), "minus is -1 where a count belongs"),
        (lambda o: o.text("list"), "list is [1] where text belongs"),
        (lambda o: o.flag("text"), "text is 'x' where true or false belongs"),
        (lambda o: o.part("list"), "list is [1] where an object belongs"),
        (lambda o: o.part("inner").count("deep"), "inner.deep is 'y' where a count belongs"),
    ],
)
def test_values_of_the_wrong_kind_are_named(
    tmp_path: Path, call: Callable[..., object], reason: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"text":"x","minus":-1,"list":[1],"inner":{"deep":"y"}}', encoding="utf-8")

    with pytest.raises(BadModelFile) as refusal:
        call(read_object(path))

    assert refusal.value.reason == reason


def test_weights_are_measured_by_layer(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "Tiny")

    weights = read_weights(place, {path.name: path for path in place.iterdir()})

    assert (weights.embedding, weights.layer_bytes) == (256 * 64 * 2, (128 * 64 * 2,) * 2)
    assert weights.largest_layer == 128 * 64 * 2
