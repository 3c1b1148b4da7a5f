"""Folders of model files, and declared models completed from theirs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.catalog.checkpoints import checkpoint as whole_folder

from modelyard.catalog import checkpoint
from modelyard.catalog.checkpoint import HeaderCache
from modelyard.catalog.discover import Catalog, scan
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.folders import Problem, Walk
from modelyard.catalog.specs import complete
from modelyard.core.specs import ModelSpec, Profile, Task

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder

CHAT = {"tokenizer.chat_template": "x"}


def ids(found: Catalog) -> list[str]:
    return [model.id for model in found.models]


def test_models_are_found_in_folders_and_named_after_their_files(folder: Folder) -> None:
    path = folder.write("deep/er/Qwen3-0.6B-Q8_0.gguf", CHAT)
    folder.raw("deep/readme.txt", b"hello")

    found = scan([folder.path])

    model = found.models[0]
    assert (model.id, model.engine, model.source) == ("Qwen3-0.6B-Q8_0", "llamacpp", str(path))
    assert model.tasks == {Task.CHAT, Task.COMPLETION}
    assert model.context_length == 2048
    assert model.profiles == (Profile("default"),)
    assert model.estimate_mib == 53
    assert found.problems == ()


def test_projectors_adapters_and_hidden_folders_are_passed_over(folder: Folder) -> None:
    folder.write("vision/model.gguf")
    folder.write("vision/mmproj-F16.gguf", {"general.architecture": "clip"})
    folder.write("lora.gguf", {"general.type": "adapter"})
    folder.write(".cache/secret.gguf")

    found = scan([folder.path])

    assert ids(found) == ["model"]
    assert found.problems == ()


def test_a_bad_file_is_a_problem_and_the_others_are_still_found(folder: Folder) -> None:
    bad = folder.raw("bad.gguf", b"not a model")
    voice = folder.write("voice.gguf", {"general.architecture": "wavtokenizer-dec"})
    folder.write("good.gguf")

    found = scan([folder.path])

    assert ids(found) == ["good"]
    assert found.problems == (
        Problem(bad, "it is no GGUF file: it begins with b'not ', not b'GGUF'"),
        Problem(voice, "the engine cannot serve it: wavtokenizer-dec decodes sound"),
    )


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    found = scan([tmp_path / "none"])

    assert found.problems == (
        Problem(tmp_path / "none", "it cannot be read: No such file or directory"),
    )


def test_of_two_files_with_one_name_the_second_is_named_with_its_folder(folder: Folder) -> None:
    for place in ("b/x.gguf", "a/b/x.gguf", "c/b/x.gguf", "c/b/x.GGUF"):
        folder.write(place)

    assert ids(scan([folder.path])) == ["x", "b/x", "c/b/x", f"{folder.path.name}/c/b/x"]
    assert scan([folder.path]) == scan([folder.path])


MODEL_KEYS = (
    "general.architecture",
    "llama.context_length",
    "llama.embedding_length",
    "llama.block_count",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "tokenizer.ggml.tokens",
)


def split_model(folder: Folder, count: int = 3) -> list[Path]:
    """A model in files: all metadata in the first, a tensor in each."""
    return [
        folder.write(
            f"big-{number:05d}-of-{count:05d}.gguf",
            {"split.count": count, "split.no": number - 1},
            tensors=((f"tensor{number}", (2**18,), 0, 2**20),),
            without=[] if number == 1 else MODEL_KEYS,
        )
        for number in range(1, count + 1)
    ]


def test_a_split_model_is_one_model_of_all_its_files(folder: Folder) -> None:
    files = split_model(folder)
    whole = complete(ModelSpec("m", "llamacpp", frozenset(), source=str(files[0])))

    found = scan([folder.path])

    assert ids(found) == ["big"]
    assert found.models[0].source == str(files[0])
    assert found.models[0].estimate_mib == whole.estimate_mib == 55


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (1, "the first file of its model, big-00001-of-00003.gguf, is missing"),
        (
            2,
            (
                "1 of its 3 files are missing: big-00002-of-00003.gguf"
                " (put all files of a split model in one folder)"
            ),
        ),
    ],
)
def test_a_split_model_with_a_file_missing_is_one_problem(
    folder: Folder, gone: int, reason: str
) -> None:
    split_model(folder)[gone - 1].unlink()

    found = scan([folder.path])

    assert found.models == ()
    assert [problem.reason for problem in found.problems] == [reason]


def test_a_renamed_file_of_a_split_model_is_a_problem(folder: Folder) -> None:
    files = split_model(folder)
    files[0].rename(folder.path / "renamed.gguf")
    for file in files[1:]:
        file.unlink()

    assert "a split model of 3 files and its name does not say so" in (
        scan([folder.path]).problems[0].reason
    )


def test_a_later_file_of_a_split_model_cannot_be_declared(folder: Folder) -> None:
    files = split_model(folder)

    with pytest.raises(BadModelFile, match="name the first one, big-00001-of-00003"):
        complete(ModelSpec("m", "llamacpp", frozenset(), source=str(files[1])))


def test_links_that_lead_in_circles_end(folder: Folder) -> None:
    folder.write("a/model.gguf")
    (folder.path / "a" / "loop").symlink_to(folder.path)
    (folder.path / "z").symlink_to(folder.path / "a")

    assert ids(scan([folder.path, folder.path / "a"])) == ["model"]


def test_a_link_to_a_model_is_a_model_and_a_broken_one_is_a_problem(folder: Folder) -> None:
    target = folder.raw("blobs/0a1b2c", folder.write("model.gguf").read_bytes())
    (folder.path / "link.gguf").symlink_to(target)
    (folder.path / "broken.gguf").symlink_to(folder.path / "gone")

    found = scan([folder.path])

    assert ids(found) == ["link", "model"]
    assert found.models[0].source == str(folder.path / "link.gguf")
    assert [problem.path.name for problem in found.problems] == ["broken.gguf"]


def test_folders_deeper_than_the_bound_are_not_entered(folder: Folder) -> None:
    folder.write("1/2/3/4/5/6/in.gguf")
    folder.write("1/2/3/4/5/6/7/out.gguf")

    assert ids(scan([folder.path])) == ["in"]


def test_a_walk_ends_after_so_many_entries_and_says_so(folder: Folder) -> None:
    for number in range(20):
        folder.raw(f"{number:02d}.txt", b"")
    walk = Walk(max_entries=10)

    assert [len(found.files) for found in walk.folders([folder.path, folder.path])] == [10]
    assert walk.problems == [
        Problem(folder.path, "more than 10 entries; the rest was not looked at")
    ]


def test_an_unchanged_file_is_read_once(folder: Folder) -> None:
    path = folder.write()
    headers = HeaderCache()
    first = scan([folder.path], headers=headers)
    stamp = path.stat()
    path.write_bytes(b"x" * stamp.st_size)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    assert scan([folder.path], headers=headers) == first
    assert scan([folder.path]).models == ()


def test_a_changed_file_is_read_again_and_has_another_revision(folder: Folder) -> None:
    path = folder.write()
    headers = HeaderCache()
    before = scan([folder.path], headers=headers).models[0]
    folder.write(extra={**CHAT, "llama.context_length": 4096})
    os.utime(path, ns=(0, 0))

    after = scan([folder.path], headers=headers).models[0]

    assert (after.id, after.context_length) == (before.id, 4096)
    assert Task.CHAT in after.tasks
    assert after.revision != before.revision


def test_a_cache_holds_no_more_than_its_size(folder: Folder) -> None:
    headers = HeaderCache(size=2)
    for name in ("a.gguf", "b.gguf", "c.gguf"):
        folder.write(name)

    scan([folder.path], headers=headers)

    assert repr(headers) == "<HeaderCache 2 of 2>"


def test_a_refusal_is_remembered_and_names_the_file_again(folder: Folder) -> None:
    bad = folder.raw("bad.gguf", b"GGUF")
    headers = HeaderCache()

    reasons = {scan([folder.path], headers=headers).problems for _ in range(2)}

    assert len(reasons) == 1
    assert repr(headers) == f"<HeaderCache 1 of {checkpoint.CACHED_HEADERS}>"
    assert next(iter(reasons))[0].path == bad


def declared(path: Path, **options: int | str) -> ModelSpec:
    return ModelSpec("mine", "llamacpp", frozenset(), source=str(path), options=options)


def test_a_declared_model_is_completed_from_its_file(folder: Folder) -> None:
    path = folder.write(extra=CHAT)

    model = complete(declared(path))

    assert model.id == "mine"
    assert model.tasks == {Task.CHAT, Task.COMPLETION}
    assert (model.context_length, model.estimate_mib) == (2048, 53)
    assert model.revision == scan([folder.path]).models[0].revision


def test_what_is_declared_is_kept(folder: Folder) -> None:
    spec = ModelSpec(
        "mine",
        "llamacpp",
        frozenset({Task.EMBEDDING}),
        source=str(folder.write(extra=CHAT)),
        estimate_mib=7,
        context_length=99,
    )

    model = complete(spec)

    assert model.tasks == {Task.EMBEDDING}
    assert (model.estimate_mib, model.context_length) == (7, 99)


@pytest.mark.parametrize("name", ["ctx_size", "n_ctx", "ctx-size"])
def test_the_estimate_honours_the_options(folder: Folder, name: str) -> None:
    path = folder.write()

    # 4 layers x 2 heads x (32 + 32) numbers x 2 bytes: 1 KiB a token, and as much for the mask
    assert complete(declared(path, **{name: 2048 + 102_400})).estimate_mib == 53 + 200
    assert complete(declared(path, **{name: "0"})).estimate_mib == 53


def test_the_profile_that_needs_most_is_estimated(folder: Folder) -> None:
    profiles = (Profile("small"), Profile("long", options={"ctx_size": 2048 + 102_400}))
    spec = ModelSpec("mine", "llamacpp", frozenset(), source=str(folder.write()), profiles=profiles)

    assert complete(spec).estimate_mib == 53 + 200


def test_a_profile_overrides_its_model_under_either_name(folder: Folder) -> None:
    spec = ModelSpec(
        "mine",
        "llamacpp",
        frozenset(),
        source=str(folder.write()),
        options={"ctx_size": 2048 + 102_400},
        profiles=(Profile("short", options={"n_ctx": 2048}),),
    )

    assert complete(spec).estimate_mib == 53


@pytest.mark.parametrize("value", ["many", 1.5, True])
def test_an_option_that_is_no_number_is_refused(folder: Folder, value: str | float) -> None:
    spec = ModelSpec(
        "mine", "llamacpp", frozenset(), source=str(folder.write()), options={"parallel": value}
    )

    with pytest.raises(BadModelFile, match=f"the option parallel is {value!r}, which is no whole"):
        complete(spec)


def test_what_is_no_model_cannot_be_declared(folder: Folder) -> None:
    with pytest.raises(BadModelFile, match=r"no model to be served \(projector\)"):
        complete(declared(folder.write("mmproj.gguf")))
    with pytest.raises(BadModelFile, match="No such file"):
        complete(declared(folder.path / "none.gguf"))
    with pytest.raises(BadModelFile, match="it is not a regular file"):
        complete(declared(folder.path))
    with pytest.raises(BadModelFile, match="model 'mine' names no file"):
        complete(ModelSpec("mine", "llamacpp", frozenset()))


def test_a_declared_folder_is_completed_for_its_engine(tmp_path: Path) -> None:
    place = whole_folder(tmp_path / "m", template=True)

    def completed(**options: int | str | bool) -> ModelSpec:
        return complete(ModelSpec("m", "vllm", frozenset(), source=str(place), options=options))

    plain = completed()
    assert plain.tasks == {Task.CHAT, Task.COMPLETION}
    assert (plain.source, plain.context_length) == (str(place), 2048)
    assert plain.estimate_mib is not None
    assert completed(max_model_len=1024).estimate_mib == plain.estimate_mib
    wide = completed(**{"max-num-batched-tokens": 65536}).estimate_mib
    assert wide is not None
    assert wide > plain.estimate_mib + 50


def test_a_repository_s_id_and_an_engine_without_files_are_left_alone() -> None:
    by_id = ModelSpec("m", "vllm", frozenset(), source="Qwen/Qwen3-8B")
    command = ModelSpec("m", "command", frozenset(), source="/nowhere")

    assert complete(by_id) is by_id
    assert complete(command) is command


def test_a_broken_folder_cannot_be_declared(tmp_path: Path) -> None:
    place = whole_folder(tmp_path / "m", shards=2)
    (place / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(BadModelFile, match="1 of its 2 weight files are missing"):
        complete(ModelSpec("m", "vllm", frozenset(), source=str(place)))


@pytest.mark.parametrize("option", ["mmproj", "cache_type_k"])
def test_projectors_and_caches_of_other_precision_count(folder: Folder, option: str) -> None:
    projector = folder.raw("mmproj.gguf", bytes(2**20))
    long = {"ctx_size": 2048 + 102_400}
    path = folder.write()
    plain = complete(declared(path, **long)).estimate_mib
    value = str(projector) if option == "mmproj" else "q8_0"

    other = complete(declared(path, **long, **{option: value})).estimate_mib

    assert plain is not None
    assert other is not None
    # half of the cache is keys, which take 34 instead of 64 bytes
    assert other - plain == (257 if option == "mmproj" else -24)
