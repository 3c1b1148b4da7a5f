"""What is needed of a repository follows from its list of files."""

from __future__ import annotations

import pytest

from modelyard.core.errors import InvalidRequest
from modelyard.downloads.choose import RemoteFile, Selection, choose
from modelyard.downloads.job import PullFailed
from modelyard.downloads.names import Asked, read_name

SETTINGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 2**20) for path in paths]


def chosen(selection: Selection) -> list[str]:
    return sorted(file.path for file in selection.files)


CASES = {
    "a chat model in shards": (
        (
            *SETTINGS,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "merges.txt",
            "README.md",
        ),
        ("LICENSE", ".gitattributes", "figures/bench.png", "pytorch_model.bin.index.json"),
    ),
    "weights in many formats": (
        (*SETTINGS, "model.safetensors", "vocab.txt"),
        (
            "pytorch_model.bin",
            "tf_model.h5",
            "flax_model.msgpack",
            "rust_model.ot",
            "onnx/model.onnx",
            "onnx/config.json",
            "openvino/openvino_model.bin",
            "coreml/model.mlmodel",
        ),
    ),
    "Mistral's weights twice": (
        (*SETTINGS, "model-00001-of-00001.safetensors", "model.safetensors.index.json"),
        ("consolidated.safetensors", "consolidated.safetensors.index.json"),
    ),
    "Llama's originals": (
        (*SETTINGS, "model.safetensors"),
        ("original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"),
    ),
    "a sentence transformer": (
        (
            *SETTINGS,
            "model.safetensors",
            "modules.json",
            "config_sentence_transformers.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
        ),
        ("2_Dense/pytorch_model.bin", "pytorch_model.bin", "train_script/x.py"),
    ),
    "code of its own": (
        (
            *SETTINGS,
            "model.safetensors",
            "modeling_own.py",
            "tiktoken.model",
            "chat_template.jinja",
        ),
        ("training_args.bin", "trainer_state.json", "optimizer.pt"),
    ),
    "one GGUF among quantisations": (
        ("Q-Q4_K_M.gguf",),
        ("Q-Q2_K.gguf", "Q-Q8_0.gguf", "Q-F16.gguf", "config.json", "README.md", "imatrix.gguf"),
    ),
    "a split GGUF in folders": (
        ("Q4_K_M/Q-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/Q-Q4_K_M-00002-of-00002.gguf"),
        ("BF16/Q-BF16-00001-of-00002.gguf", "BF16/Q-BF16-00002-of-00002.gguf"),
    ),
    "a GGUF that sees": (
        ("V-Q4_K_M.gguf", "mmproj-F16.gguf"),
        ("V-Q8_0.gguf", "mmproj-F32.gguf", "mmproj-BF16.gguf"),
    ),
    "only quantisations that are not usual": (("Q-IQ2_M.gguf",), ("Q-IQ3_XS-x.txt",)),
}


@pytest.mark.parametrize(("needed", "rest"), CASES.values(), ids=CASES)
def test_what_is_needed_is_chosen_and_the_rest_is_not(
    needed: tuple[str, ...], rest: tuple[str, ...]
) -> None:
    assert chosen(choose(files(*rest, *needed))) == sorted(needed)


@pytest.mark.parametrize(
    ("wanted", "file"),
    [("Q8_0", "Q-Q8_0.gguf"), ("q2_k", "Q-Q2_K.gguf"), ("Q4_K_XL", "Q-UD-Q4_K_XL.gguf")],
)
def test_a_quantisation_is_taken_by_name(wanted: str, file: str) -> None:
    there = files("Q-Q2_K.gguf", "Q-Q8_0.gguf", "Q-UD-Q4_K_XL.gguf", "model.safetensors")

    assert chosen(choose(there, quantization=wanted)) == [file]


def test_a_quantisation_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(PullFailed, match=r"no quantisation Q5_1 .*Q2_K \(1.0 MiB\), Q8_0"):
        choose(files("Q-Q2_K.gguf", "Q-Q8_0.gguf"), quantization="Q5_1")


def test_several_models_in_one_repository_are_told_and_not_guessed() -> None:
    with pytest.raises(PullFailed, match="2 models in it: a-Q4_K_M, b-Q4_K_M"):
        choose(files("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"))


def test_gguf_is_preferred_where_nothing_else_runs() -> None:
    there = files(*SETTINGS, "model.safetensors", "m-Q4_K_M.gguf")

    assert chosen(choose(there, prefers_gguf=True)) == ["m-Q4_K_M.gguf"]
    assert "model.safetensors" in chosen(choose(there))


def test_pickled_weights_come_only_when_asked_for() -> None:
    there = files("config.json", "pytorch_model.bin", "tokenizer.json")

    with pytest.raises(PullFailed, match="only pickled weights"):
        choose(there)
    with pytest.raises(PullFailed, match="have to be named"):
        choose(there, globs=["pytorch*"])
    assert chosen(choose(there, globs=["*.bin"])) == ["pytorch_model.bin"]
    assert "pytorch_model.bin" not in chosen(choose(there, globs=["*"]))
    assert chosen(choose(there, pickle=True)) == sorted(file.path for file in there)


def test_a_repository_without_weights_is_told() -> None:
    with pytest.raises(PullFailed, match=r"no weights in it .*data\.csv"):
        choose(files("data.csv", "README.md"))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Qwen/Qwen3-8B", Asked("Qwen/Qwen3-8B")),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", Asked("Qwen/Qwen3-8B-GGUF", quantization="Q4_K_M")),
        ("hf.co/Qwen/Qwen3-8B-GGUF:Q8_0", Asked("Qwen/Qwen3-8B-GGUF", quantization="Q8_0")),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/v1", Asked("Qwen/Qwen3-8B", revision="v1")),
        (
            "https://huggingface.co/a/b/resolve/main/x/y.gguf?download=true",
            Asked("a/b", revision="main", file="x/y.gguf"),
        ),
        ("modelscope:Qwen/Qwen3-8B", Asked("Qwen/Qwen3-8B", "modelscope")),
        ("https://modelscope.cn/models/Qwen/Qwen3-8B", Asked("Qwen/Qwen3-8B", "modelscope")),
    ],
)
def test_names_are_read_as_people_write_them(text: str, asked: Asked) -> None:
    assert read_name(text) == asked


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("llama3", "ollama pull llama3"),
        ("qwen3:8b", "ollama pull qwen3:8b"),
        ("", "is not the name of a repository"),
        ("a/b/c", "is not the name of a repository"),
        ("../etc", "is not the name of a repository"),
        ("a/b:", "is not the name of a repository"),
        ("a/..", "is not the name of a repository"),
        ("https://example.org/a/b", "is not on a hub that is known"),
        ("https://[/a/b", "is not on a hub that is known"),
        ("a/b:../../x", "is not the name of a quantisation"),
    ],
)
def test_what_names_no_repository_is_told_with_what_to_do(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told.replace(".", r"\.")):
        read_name(text)


def test_an_address_and_a_flag_that_disagree_are_told() -> None:
    with pytest.raises(InvalidRequest, match="is on hf, and modelscope was asked for"):
        read_name("https://huggingface.co/a/b", "modelscope")
    with pytest.raises(InvalidRequest, match="no hub 'github'"):
        read_name("a/b", "github")
