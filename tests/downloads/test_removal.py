"""What removing a model takes off the disk, and what it never touches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.downloads.conftest import CHAT, below

from modelyard.catalog.discover import scan
from modelyard.catalog.found import FoundModel
from modelyard.core.errors import Forbidden
from modelyard.downloads.removal import Doomed, doomed, remove

EVERY = ("llamacpp", "vllm", "transformers")


def found(folder: Path) -> dict[str, FoundModel]:
    return {model.id: model for model in scan([folder], engines=EVERY).found}


def doom(name: str, folder: Path) -> Doomed:
    models = found(folder)
    return doomed(models[name], models.values(), [folder])


def put(path: Path, content: bytes = CHAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def checkpoint(folder: Path) -> Path:
    """A tiny folder of the Hugging Face kind."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    about = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 2}
    about |= {"num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    about |= {"vocab_size": 8, "max_position_embeddings": 8}
    put(folder / "model.safetensors", weights)
    put(folder / "config.json", json.dumps(about).encode())
    put(folder / "modules.json", b"[]")
    put(folder / "1_Pooling/config.json", json.dumps({"pooling_mode_mean_tokens": True}).encode())
    put(folder / "config_sentence_transformers.json", b"{}")
    put(folder / "tokenizer.json", b"{}")
    return folder


def hub_repository(root: Path, *names: str) -> Path:
    """A repository in the hub's cache, with a blob for each file."""
    place = root / "models--yard--chat"
    for number, name in enumerate(names):
        put(place / f"blobs/b{number}", CHAT)
        link = place / "snapshots/0123" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../blobs/b{number}")
    put(place / "refs/main", b"0123")
    return place


def test_a_file_goes_and_its_neighbours_stay(tmp_path: Path) -> None:
    put(tmp_path / "a-Q4_K_M.gguf")
    put(tmp_path / "a-Q8_0.gguf")
    put(tmp_path / "notes.txt", b"mine")

    done = remove(doom("a-Q4_K_M", tmp_path))

    assert below(tmp_path) == {"a-Q8_0.gguf", "notes.txt"}
    assert done.freed_bytes == len(CHAT)


def test_a_folder_model_goes_without_what_is_not_its_own(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "mine/embed")
    put(folder / "diary.md", b"mine")
    put(folder / "checkpoint-500/model.safetensors", b"mine")

    what = doom("embed", tmp_path)
    remove(what)

    assert below(tmp_path) == {"mine/embed/diary.md", "mine/embed/checkpoint-500/model.safetensors"}
    assert what.notes == (f"2 other files in {folder} stay",)


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    target = put(tmp_path / "elsewhere/a.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/linked.gguf").symlink_to(target)

    done = remove(doom("linked", tmp_path / "models"))

    assert (done.freed_bytes, target.exists()) == (0, True)
    assert below(tmp_path / "models") == set()


def test_nothing_outside_the_folders_goes(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/a.gguf")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/inner").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Forbidden, match="outside the models folders"):
        doom("a", tmp_path / "models")


def test_a_models_folder_that_is_itself_a_model_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path)

    with pytest.raises(Forbidden, match="models folder"):
        doom(tmp_path.name, tmp_path)


def test_a_repository_of_the_cache_goes_as_a_whole(tmp_path: Path) -> None:
    hub_repository(tmp_path, "chat-Q4_K_M.gguf")
    put(tmp_path / ".locks/models--yard--chat/b0.lock", b"")
    put(tmp_path / "models--yard--other/refs/main", b"x")

    done = remove(doom("chat-Q4_K_M", tmp_path))

    assert done.freed_bytes == len(CHAT) + len(b"0123")
    assert below(tmp_path) == {"models--yard--other/refs/main"}


def test_of_a_repository_with_more_models_only_the_one_and_its_blob_go(tmp_path: Path) -> None:
    place = hub_repository(tmp_path, "chat-Q4_K_M.gguf", "chat-Q8_0.gguf")

    done = remove(doom("chat-Q4_K_M", tmp_path))

    assert done.freed_bytes == len(CHAT)
    assert below(place) == {"refs/main", "blobs/b1", "snapshots/0123/chat-Q8_0.gguf"}
    assert set(found(tmp_path)) == {"chat-Q8_0"}
