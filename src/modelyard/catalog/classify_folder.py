"""What the model of a Hugging Face folder is for.

Laws of this file:
- Pure: a description in, a verdict out; the first rule that matches decides, and says what it saw.
- What a library wrote about the model (sentence-transformers, the model card's tag) goes before the
  class of its configuration, and that before its name: a reranker made of a chat model has the chat
  model's configuration and template.
- A chat template alone proves nothing: base models inherit one. It counts where the model also ends
  its turns the way the template writes them.

The rules follow sentence-transformers' own files, the suffixes by which vLLM's registry tells tasks
(vllm/config/model.py, vllm/model_executor/models/registry.py) and transformers' auto classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from modelyard.catalog.classify import Ability, Input, Kind, Verdict, model_verdict
from modelyard.catalog.description import Description
from modelyard.catalog.json_object import JsonObject

_PIPELINES: Final = {
    "text-ranking": Ability.RERANK,
    "feature-extraction": Ability.EMBEDDING,
    "sentence-similarity": Ability.EMBEDDING,
    "automatic-speech-recognition": Ability.TRANSCRIPTION,
    "text-to-speech": Ability.SPEECH,
    "text-classification": Ability.CLASSIFICATION,
    "token-classification": Ability.CLASSIFICATION,
}
"""Tags of model cards that settle what a model for text is used for."""
_WRITES: Final = ("text-generation", "image-text-to-text", "any-to-any", "text2text-generation")

_WRITERS: Final = re.compile(
    r"For(CausalLM|ConditionalGeneration|ImageTextToText|Vision2Seq)$|LMHeadModel$|ChatModel$"
    r"|^(ChatGLM|Aquila|Ultravox|MiDashengLM|Qwen2_5Omni)Model$|^MiniCPM[VO]$|^Ovis\d?\w*$"
    r"|^NVLM_D$|^GraniteVision$|^Llama_Nemotron_Nano_VL$|^VoxtralRealtimeGeneration$"
)
_READERS: Final = re.compile(
    r"For(TextEncoding|MaskedLM|Retrieval)$|EmbeddingModel$|ColBERT|^ColQwen|^GritLM$|Model$"
)
_DRAFTERS: Final = re.compile(r"Eagle|MTP|Medusa|MLPSpeculator|DFlash")
_CLASSIFIERS: Final = re.compile(
    r"For(TokenClassification|RewardModel|ProcessRewardModel|MultipleChoice|QuestionAnswering)$"
    r"|RewardModel$|ClassificationModel$"
)
_SPEAKERS: Final = re.compile(
    r"ForTextToSpeech$|ForTextToWaveform$|^VitsModel$|^BarkModel$|TTS|^CsmFor|^DiaFor|^Parler"
)
_LISTENERS: Final = re.compile(
    r"ForSpeechSeq2Seq$|ForCTC$|ForRNNT$|ForTDT$|^Whisper|^Moonshine|A[Ss][Rr]\d?(For|Realtime)"
)
_SEERS: Final = re.compile(
    r"For(ImageClassification|ObjectDetection|SemanticSegmentation|ImageSegmentation"
    r"|DepthEstimation|UniversalSegmentation|VideoClassification|AudioClassification"
    r"|MaskedImageModeling|MaskGeneration|KeypointDetection)$"
    r"|^(ViT|DINOv2|Dinov2|DINOv3ViT|BeiT|Swin|ConvNext|Wav2Vec2|Hubert|WavLM|Encodec|Sam)\w*Model$"
)
_REWARD_WORDS: Final = re.compile(r"reward|(?:^|[-_])rm(?:[-_]|$)", re.I)
_RERANK_WORD: Final = re.compile(r"re-?rank", re.I)
_TURN_ENDS: Final = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|eot\|>|<\|end_of_turn\|>|<\|END_OF_TURN_TOKEN\|>"
)


def classify_folder(described: Description) -> Verdict:
    """Tell what the described model is. Raises BadModelFile where its files contradict a rule's
    kind (`architectures` that is no list of names, say)."""
    for rule in _RULES:
        verdict = rule(described)
        if verdict is not None:
            return verdict
    named = ", ".join(described.architectures) or described.model_type or "nothing"
    return Verdict(Kind.UNSERVED, frozenset(), f"its configuration names {named}")


def inputs_of(described: Description) -> frozenset[Input]:
    """What the model takes besides text, from the parts of its configuration."""
    return frozenset(_inputs(described.config))


# --------------------------------------------------------------------------------------- the rules


def _by_library(described: Description) -> Verdict | None:
    """sentence-transformers says what it made; a missing key means SentenceTransformer."""
    if described.library is None:
        return None
    made = described.library.text("model_type")
    if made == "CrossEncoder":
        reason = "config_sentence_transformers.json says CrossEncoder"
        return model_verdict(Ability.RERANK, reason, inputs_of(described))
    if made in {None, "SentenceTransformer"} and any("LogitScore" in t for t in described.modules):
        return None
    reason = f"config_sentence_transformers.json says {made or 'SentenceTransformer'}"
    return model_verdict(Ability.EMBEDDING, reason, inputs_of(described))


def _by_modules(described: Description) -> Verdict | None:
    for kind in described.modules:
        if kind.endswith("LogitScore"):
            return model_verdict(Ability.RERANK, "modules.json ends in LogitScore")
        if kind.endswith("Pooling"):
            return model_verdict(
                Ability.EMBEDDING, "modules.json has a Pooling step", inputs_of(described)
            )
    return None


def _by_sound(described: Description) -> Verdict | None:
    for name in described.architectures[:1]:
        if _LISTENERS.search(name):
            inputs = frozenset({Input.AUDIO})
            return model_verdict(Ability.TRANSCRIPTION, f"its class is {name}", inputs)
        if _SPEAKERS.search(name):
            return model_verdict(Ability.SPEECH, f"its class is {name}")
        if _SEERS.search(name):
            return Verdict(Kind.UNSERVED, frozenset(), f"its class is {name}: it reads no text")
    return None


def _by_class(described: Description) -> Verdict | None:
    for name in described.architectures[:1]:
        if _DRAFTERS.search(name):
            return Verdict(Kind.DRAFT, frozenset(), f"its class is {name}")
        if name.endswith("ForRanking"):
            return model_verdict(Ability.RERANK, f"its class is {name}", inputs_of(described))
        if name.endswith("ForSequenceClassification"):
            return _scores(described, f"its class is {name}")
        if _CLASSIFIERS.search(name):
            return model_verdict(Ability.CLASSIFICATION, f"its class is {name}")
    return None


def _by_card(described: Description) -> Verdict | None:
    tag = described.card.pipeline_tag
    ability = _PIPELINES.get(tag or "")
    if ability is None:
        return None
    return model_verdict(ability, f"its model card says {tag}", inputs_of(described))


def _writer(described: Description) -> Verdict | None:
    name = next(iter(described.architectures), "")
    if not _WRITERS.search(name):
        return None
    if described.config.flag("is_encoder_only") or described.text.flag(
        "use_bidirectional_attention"
    ):
        return model_verdict(Ability.EMBEDDING, "its attention looks both ways")
    vouched = described.card.pipeline_tag in _WRITES
    if _RERANK_WORD.search(described.name) and not vouched:
        # Qwen3-Reranker: its configuration is that of the chat model it was made from.
        return model_verdict(
            Ability.RERANK, f"it is called a reranker, which the class {name} can be"
        )
    inputs = inputs_of(described)
    if described.template is None:
        return model_verdict(
            Ability.BASE, f"its class is {name} and it has no chat template", inputs
        )
    unknown_end = _end_it_never_writes(described)
    if unknown_end:
        reason = f"its chat template ends turns with {unknown_end}, which does not end its answers"
        return model_verdict(Ability.BASE, reason, inputs)
    return model_verdict(Ability.CHAT, f"its class is {name} and it has a chat template", inputs)


def _reader(described: Description) -> Verdict | None:
    name = next(iter(described.architectures), "")
    if not _READERS.search(name):
        return None
    return model_verdict(Ability.EMBEDDING, f"its class is {name}", inputs_of(described))


_RULES: Final[tuple[Callable[[Description], Verdict | None], ...]] = (
    _by_library,
    _by_modules,
    _by_sound,
    _by_class,
    _by_card,
    _writer,
    _reader,
)


# --------------------------------------------------------------------------------------- the facts


def _scores(described: Description, reason: str) -> Verdict:
    """One label is a score, several are classes. transformers counts two where nothing is said."""
    labels = described.config.part("id2label")
    count = len(labels.values) if labels is not None else described.config.count("num_labels") or 2
    if count > 1:
        return model_verdict(Ability.CLASSIFICATION, f"{reason} with {count} labels")
    if _REWARD_WORDS.search(described.name):
        return model_verdict(
            Ability.CLASSIFICATION, f"{reason} with one label, and it is called a reward model"
        )
    return model_verdict(Ability.RERANK, f"{reason} with one label", inputs_of(described))


def _end_it_never_writes(described: Description) -> str | None:
    """The mark that the template ends turns with, where the model's own end is another one."""
    marks: set[str] = set(_TURN_ENDS.findall(described.template or ""))
    ends = _end_tokens(described)
    numbers = _special_tokens(described)
    known: dict[str, int] = {mark: numbers[mark] for mark in sorted(marks) if mark in numbers}
    if not ends or any(number in ends for number in known.values()):
        return None
    return next(iter(known), None)


def _end_tokens(described: Description) -> set[int]:
    for holder in (described.generation, described.config, described.text):
        if holder is not None and "eos_token_id" in holder:
            return set(holder.counts("eos_token_id"))
    return set()


def _special_tokens(described: Description) -> dict[str, int]:
    tokenizer = described.tokenizer
    added = None if tokenizer is None else tokenizer.values.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return {}
    return {
        str(entry.get("content")): int(number)
        for number, entry in added.items()
        if isinstance(entry, dict) and number.isdecimal() and len(number) < 10
    }


def _inputs(config: JsonObject) -> Iterator[Input]:
    parts = config.values
    thinker = parts.get("thinker_config")
    if isinstance(thinker, dict):
        yield from _inputs(JsonObject(config.path, thinker))
    if any(parts.get(key) for key in _IMAGE_KEYS):
        yield Input.IMAGE
    if any(parts.get(key) for key in _AUDIO_KEYS):
        yield Input.AUDIO
    if any(parts.get(key) is not None for key in ("video_token_id", "video_token_index")):
        yield Input.VIDEO


_IMAGE_KEYS: Final = (
    "vision_config",
    "vision_tower",
    "mm_vision_tower",
    "img_processor",
    "visual",
    "vision_encoder",
    "image_token_id",
)
_AUDIO_KEYS: Final = ("audio_config", "audio_processor", "audio_model_id", "audio_token_id")
