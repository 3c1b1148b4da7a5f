"""Models in the caches of other programs, and quantisations that lie together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.catalog.checkpoints import checkpoint

from modelyard.catalog.classify import Input
from modelyard.catalog.discover import Catalog, scan
from modelyard.catalog.found import FoundModel

if TYPE_CHECKING:
    from tests.catalog.conftest import Folder

ALL = ("llamacpp", "vllm", "transformers")
CHAT = {"tokenizer.chat_template": "x"}


def found(place: Path) -> Catalog:
    return scan([place], engines=ALL)


def names(catalog: Catalog) -> dict[str, tuple[str, ...]]:
    return {model.id: model.aliases for model in catalog.found}


def only(catalog: Catalog) -> FoundModel:
    assert catalog.problems == ()
    (model,) = catalog.found
    return model


# ----------------------------------------------------------------------------- Hugging Face's cache


def hub(root: Path, repository: str, *, main: str = "aaa") -> Path:
    """A repository in the hub's cache whose `main` is the snapshot that is returned."""
    place = root / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(main, encoding="ascii")
    (place / "blobs").mkdir()
    return place / "snapshots" / main


def as_blobs(snapshot: Path) -> None:
    """Move files where the hub keeps them, and link to them."""
    blobs = snapshot.parent.parent / "blobs"
    for number, path in enumerate(sorted(snapshot.iterdir())):
        blob = blobs / f"{number:040x}"
        path.rename(blob)
        path.symlink_to(Path("../../blobs") / blob.name)


def test_a_repository_in_the_hub_s_cache_goes_by_its_id(tmp_path: Path) -> None:
    snapshot = checkpoint(hub(tmp_path, "Qwen/Qwen3-8B"), shards=2, template=True)
    as_blobs(snapshot)

    model = only(found(tmp_path))

    assert (model.id, model.aliases, model.origin) == (
        "Qwen/Qwen3-8B",
        ("Qwen3-8B",),
        "huggingface",
    )
    assert (model.source, model.weight_bytes) == (snapshot, 2 * 64 * 64 * 2)


def test_of_several_snapshots_the_one_that_main_names_counts(tmp_path: Path) -> None:
    snapshot = checkpoint(hub(tmp_path, "o/m"))
    checkpoint(snapshot.with_name("bbb"))

    assert only(found(tmp_path)).source == snapshot


def test_without_main_the_newest_snapshot_counts(tmp_path: Path) -> None:
    snapshot = checkpoint(hub(tmp_path, "o/m"))
    newer = checkpoint(snapshot.with_name("bbb"))
    (tmp_path / "models--o--m/refs/main").unlink()

    assert only(found(tmp_path)).source == newer


def test_a_download_that_is_not_finished_is_told(tmp_path: Path) -> None:
    snapshot = checkpoint(hub(tmp_path, "o/m"), shards=2)
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    (snapshot.parent.parent / "blobs/0123.incomplete").write_bytes(b"")

    (problem,) = found(tmp_path).problems

    assert "model-00002-of-00002.safetensors" in problem.reason
    assert problem.reason.endswith("(its download is not finished)")


def test_a_repository_without_weights_is_a_problem_only_while_they_come(tmp_path: Path) -> None:
    snapshot = hub(tmp_path, "o/m")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")

    assert found(tmp_path).problems == ()
    (snapshot.parent.parent / "blobs/0123.incomplete").write_bytes(b"")
    assert "not finished" in found(tmp_path).problems[0].reason


def test_data_sets_in_the_cache_are_passed_over(tmp_path: Path, folder: Folder) -> None:
    folder.write("datasets--o--m/snapshots/aaa/model.gguf")

    assert found(tmp_path) == Catalog((), ())


def test_ggufs_of_a_repository_go_by_its_id_and_quantisation(folder: Folder) -> None:
    snapshot = hub(folder.path, "o/M-GGUF").relative_to(folder.path)
    for quantization in ("Q4_K_M", "Q8_0"):
        folder.write(f"{snapshot}/M-{quantization}.gguf", CHAT)

    assert names(found(folder.path)) == {
        "M-Q4_K_M": ("M", "o/M-GGUF", "o/M-GGUF:Q4_K_M"),
        "M-Q8_0": ("o/M-GGUF:Q8_0",),
    }


# --------------------------------------------------------------------------------------- ModelScope


@pytest.mark.parametrize("layout", ["hub/models/Qwen", "hub/Qwen"])
def test_modelscope_s_folders_go_by_their_ids(tmp_path: Path, layout: str) -> None:
    place = checkpoint(tmp_path / layout / "Qwen2___5-7B-Instruct", template=True)
    (place / ".mv").write_text("Revision:master", encoding="ascii")
    (place / ".msc").write_bytes(b"\x80")
    (place.parent / "._____temp").mkdir()

    model = only(found(tmp_path))

    assert (model.id, model.origin) == ("Qwen/Qwen2.5-7B-Instruct", "modelscope")
    assert model.aliases == ("Qwen2.5-7B-Instruct",)


def test_modelscope_s_newer_cache_is_read_as_the_hub_s(tmp_path: Path) -> None:
    checkpoint(tmp_path / "models/Qwen--Qwen3-8B/snapshots/master")

    assert only(found(tmp_path)).id == "Qwen/Qwen3-8B"


# ------------------------------------------------------------------------------------------- Ollama


KINDS = ("model", "projector", "license", "template")
DIGESTS = {kind: f"{number:064x}" for number, kind in enumerate(KINDS)}


def pulled(folder: Folder, name: str, *kinds: str, size: int | None = None) -> Path:
    """A manifest in Ollama's store with these layers, whose blobs the test has written."""
    layers = []
    for kind in kinds:
        blob = folder.path / f"blobs/sha256-{DIGESTS[kind]}"
        length = size if size is not None else blob.stat().st_size
        media = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": media, "digest": f"sha256:{DIGESTS[kind]}", "size": length})
    path = folder.path / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}), encoding="utf-8")
    return path


def blob(kind: str) -> str:
    return f"blobs/sha256-{DIGESTS[kind]}"


def test_models_of_ollama_s_store_are_served_from_its_blobs(folder: Folder) -> None:
    weights = folder.write(blob("model"), CHAT)
    folder.raw(blob("license"), b"\nApache License\nVersion 2.0\n")
    pulled(folder, "registry.ollama.ai/library/qwen3/8b", "model", "license")
    pulled(folder, "registry.ollama.ai/library/qwen3/latest", "model")
    pulled(folder, "registry.ollama.ai/someone/own/v1", "model")
    pulled(folder, "hf.co/o/m/Q4", "model")
    before = sorted(folder.path.rglob("*"))

    catalog = found(folder.path)

    assert names(catalog) == {
        "hf.co/o/m:Q4": (),
        "qwen3:8b": (),
        "qwen3:latest": ("qwen3",),
        "someone/own:v1": (),
    }
    assert {model.source for model in catalog.found} == {weights}
    assert [model.license for model in catalog.found] == [None, "Apache License", None, None]
    assert catalog.problems == ()
    assert sorted(folder.path.rglob("*")) == before


def test_a_template_that_only_ollama_has_is_remarked(folder: Folder) -> None:
    folder.write(blob("model"))
    folder.raw(blob("template"), b"{{ .Prompt }}")
    pulled(folder, "registry.ollama.ai/library/old/1", "model", "template")

    model = only(found(folder.path))

    assert model.verdict.ability == "base"
    assert "only Ollama has a chat template for it" in model.remarks[0]


def test_a_projector_of_ollama_comes_along(folder: Folder) -> None:
    folder.write(blob("model"), CHAT)
    projector = folder.write(blob("projector"), {"general.architecture": "clip"})
    pulled(folder, "registry.ollama.ai/library/llava/7b", "model", "projector")

    model = only(found(folder.path))

    assert model.projector == projector
    assert model.verdict.inputs == {Input.IMAGE}
    assert model.options == {"mmproj": str(projector)}


@pytest.mark.parametrize(
    ("extra", "tensors", "reason"),
    [
        (
            {"general.architecture": "gptoss"},
            (("token_embd.weight", (32,), 0, 128),),
            "m:1: Ollama's own layout of gptoss: only Ollama loads it",
        ),
        (CHAT, (("v.blk.0.attn_q.weight", (32,), 0, 128),), "only Ollama loads"),
    ],
)
def test_what_only_ollama_loads_is_told(
    folder: Folder,
    extra: dict[str, object],
    tensors: tuple[tuple[str, tuple[int], int, int], ...],
    reason: str,
) -> None:
    folder.write(blob("model"), extra, tensors=tensors)
    pulled(folder, "registry.ollama.ai/library/m/1", "model")

    catalog = found(folder.path)

    assert catalog.found == ()
    assert reason in catalog.problems[0].reason


def test_broken_entries_of_ollama_s_store_are_named(folder: Folder) -> None:
    folder.write(blob("model"), CHAT)
    pulled(folder, "registry.ollama.ai/library/short/1", "model", size=10**9)
    folder.raw("manifests/registry.ollama.ai/library/torn/1", b"{")
    folder.raw(
        "manifests/registry.ollama.ai/library/evil/1",
        json.dumps(
            {"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../x"}]}
        ).encode(),
    )

    reasons = [problem.reason for problem in found(folder.path).problems]

    assert reasons[0] == "a layer has the digest '../../x'"
    assert "of 1000000000 bytes" in reasons[1]
    assert reasons[2].startswith("it is no JSON")


# ----------------------------------------------------------------------- files that belong together


def test_the_common_name_of_quantisations_means_the_usual_one(folder: Folder) -> None:
    for quantization in ("Q2_K", "Q4_K_M", "UD-Q4_K_XL", "BF16"):
        folder.write(f"Qwen3-8B-{quantization}.gguf", CHAT)
    folder.write("other.gguf", CHAT)

    catalog = found(folder.path)

    assert names(catalog)["Qwen3-8B-Q4_K_M"] == ("Qwen3-8B",)
    assert [name for name, aliases in names(catalog).items() if aliases] == ["Qwen3-8B-Q4_K_M"]
    assert {model.base for model in catalog.found} == {"Qwen3-8B", "other"}


def test_a_name_that_is_another_model_s_id_is_no_alias(folder: Folder) -> None:
    folder.write("a/M-Q4_K_M.gguf", CHAT)
    folder.write("b/M.gguf", CHAT)

    assert names(found(folder.path)) == {"M-Q4_K_M": (), "M": ()}


def test_a_projector_goes_to_the_model_it_lies_beside(folder: Folder) -> None:
    folder.write("vision/gemma-3-4b-it-Q4_K_M.gguf", CHAT)
    folder.write("vision/gemma-3-4b-it-Q8_0.gguf", CHAT)
    for name in ("mmproj-BF16.gguf", "mmproj-F16.gguf"):
        extra = {"general.architecture": "clip", "clip.has_audio_encoder": True}
        folder.write(f"vision/{name}", extra)
    folder.write("plain/text.gguf", CHAT)

    models = {model.id: model for model in found(folder.path).found}

    for name in ("gemma-3-4b-it-Q4_K_M", "gemma-3-4b-it-Q8_0"):
        assert models[name].projector == folder.path / "vision/mmproj-F16.gguf"
        assert models[name].verdict.inputs == {Input.AUDIO}
    assert models["text"].projector is None


def test_among_different_models_a_projector_goes_to_the_one_it_is_named_after(
    folder: Folder,
) -> None:
    for name in ("gemma-3-4b-it-Q4_K_M.gguf", "Qwen3-8B-Q4_K_M.gguf"):
        folder.write(name, CHAT)
    folder.write("mmproj-gemma-3-4b-it-f16.gguf", {"general.architecture": "clip"})
    folder.write("mmproj-else-f16.gguf", {"general.architecture": "clip"})

    models = {model.id: model for model in found(folder.path).found}

    assert models["Qwen3-8B-Q4_K_M"].projector is None
    named = models["gemma-3-4b-it-Q4_K_M"].projector
    assert named == folder.path / "mmproj-gemma-3-4b-it-f16.gguf"


def test_a_projector_counts_in_the_estimate(folder: Folder) -> None:
    folder.write("a/m.gguf", CHAT)
    plain = found(folder.path).models[0].estimate_mib
    folder.write("a/mmproj.gguf", {"general.architecture": "clip"})
    seeing = found(folder.path).models[0]

    assert plain is not None
    assert seeing.estimate_mib is not None
    assert seeing.estimate_mib >= plain + 256
    assert seeing.options["mmproj"] == str(folder.path / "a/mmproj.gguf")


# ------------------------------------------------------------------------------ downloads of ours


RECEIPT = ".modelyard-pull.json"


def test_what_was_pulled_goes_by_its_repository_too(tmp_path: Path, folder: Folder) -> None:
    place = tmp_path / "unsloth" / "Qwen3-8B-GGUF"
    (place / "Q8_0").mkdir(parents=True)
    (place / RECEIPT).write_text('{"hub": "hf", "repo": "unsloth/Qwen3-8B-GGUF"}')
    folder.write("unsloth/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf", CHAT)
    folder.write("unsloth/Qwen3-8B-GGUF/Q8_0/Qwen3-8B-Q8_0.gguf", CHAT)

    told = names(found(tmp_path))

    assert told["Qwen3-8B-Q4_K_M"] == (
        "Qwen3-8B",
        "unsloth/Qwen3-8B-GGUF",
        "unsloth/Qwen3-8B-GGUF:Q4_K_M",
    )
    assert told["Qwen3-8B-Q8_0"] == ("unsloth/Qwen3-8B-GGUF:Q8_0",)


@pytest.mark.parametrize(
    "receipt",
    ["", "[]", "{", '{"repo": 5}', '{"repo": "../etc"}', '{"repo": "a b/c"}', '{"repo": "a/b/c"}'],
)
def test_a_receipt_that_makes_no_sense_gives_no_names(
    tmp_path: Path, folder: Folder, receipt: str
) -> None:
    (tmp_path / RECEIPT).write_text(receipt)
    folder.write("m-Q4_K_M.gguf", CHAT)

    assert names(found(tmp_path)) == {"m-Q4_K_M": ("m",)}
