"""What the layers of a model remember, told from the `config.json` of a Hugging Face folder.

Laws of this file:
- Pure; a value that cannot be is a BadModelFile, never a wrong sum.
- A list that says it for each layer goes before a pattern, and that before the model type's habit.
- What is not known of an architecture is counted as if every layer remembered every token.

Keys are those of transformers' configuration classes; which model types use MLA's compressed cache
is vLLM's list (vllm/config/model.py, is_deepseek_mla), recurrent shapes are those of
vllm/model_executor/layers/mamba/mamba_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelyard.catalog.attention import Attention, Keeps, LayerGroup, grouped
from modelyard.catalog.attention_gguf import MAX_LAYERS
from modelyard.catalog.errors import BadModelFile
from modelyard.catalog.json_object import JsonObject

_ENCODERS: Final = frozenset(
    (
        *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra"),
        *("ernie", "eurobert", "gte", "jina_bert", "longformer", "modernbert", "mpnet", "new"),
        *("nomic_bert", "roberta", "t5encoder", "xlm", "xlm-roberta", "xlnet"),
    )
)
_NO_MLA: Final = frozenset({"minicpm3"})
"""Compress keys and values, and are served with them unpacked."""
_PATTERNS: Final = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4, "exaone4": 4}
"""Every n-th layer sees all tokens, where the file does not say which."""
_LINEAR: Final = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv", "kda"})
_SLIDING: Final = frozenset({"sliding_attention", "local_attention", "sliding_window"})

_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
_HIDDEN: Final = ("hidden_size", "n_embd", "d_model", "model_dim")
_KV_HEADS: Final = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
    "num_attention_groups",
    "num_query_groups",
)


def attention_of_config(config: JsonObject, model_type: str = "") -> Attention:
    """What the language model described by `config` remembers.

    `config` is the part that describes the language model (`Description.text`); `model_type` that
    of the whole where the part has none. Raises BadModelFile where it contradicts itself.
    """
    kind = config.text("model_type") or model_type
    count = config.count(*_LAYERS) or 0
    if count > MAX_LAYERS:
        raise BadModelFile(config.path, f"it has {count} layers; {MAX_LAYERS} are accepted")
    if kind in _ENCODERS and not config.flag("is_decoder"):
        return Attention((), causal=False)
    layers = list(_Layers(config, kind, count).each())
    return Attention(grouped(layers))


class _Layers:
    """Tells each layer of one configuration."""

    def __init__(self, config: JsonObject, kind: str, count: int) -> None:
        self._config = config
        self._kind = kind
        self._count = count
        self._hidden = config.count(*_HIDDEN) or 0
        self._heads = max(config.counts(_present(config, _HEADS)) or (0,))
        self._window = config.count("sliding_window", "window_size") or 0

    def each(self) -> Iterator[LayerGroup]:
        kinds = self._kinds()
        shared = self._config.count("num_kv_shared_layers") or 0
        heads = self._kv_heads()
        for layer, kind in enumerate(kinds):
            if kind in _LINEAR or kind == "hybrid":
                yield self._state(kind)
            if kind in _LINEAR or kind in {"mlp", "moe"} or layer >= self._count - shared:
                continue
            if heads[layer]:
                yield self._attention(kind, heads[layer])
        encoded = self._config.count("max_source_positions")
        if encoded and self._config.flag("is_encoder_decoder"):
            for _ in range(self._count):
                yield self._full(Keeps.ENCODED, max(heads, default=0), encoded)

    # ------------------------------------------------------------------------- which layer is what

    def _kinds(self) -> list[str]:
        config, count = self._config, self._count
        told = config.values.get("layer_types", config.values.get("layers_block_type"))
        if isinstance(told, list) and len(told) >= count and count:
            return [str(kind) for kind in told[:count]]
        for read in (self._of_letters, self._of_recurrent_models, self._of_windows):
            kinds = read()
            if kinds:
                return kinds
        return ["full_attention"] * count

    def _of_letters(self) -> list[str]:
        letters = self._config.values.get("hybrid_override_pattern")
        if isinstance(letters, str):
            words = {"M": "mamba", "*": "full_attention", "-": "mlp", "E": "moe"}
            return [words.get(letter, "full_attention") for letter in letters[: self._count]]
        numbers = self._config.values.get("attn_type_list", None)
        if isinstance(numbers, list) and len(numbers) >= self._count:
            return [
                "full_attention" if entry == 1 else "linear_attention"
                for entry in numbers[: self._count]
            ]
        return []

    def _of_recurrent_models(self) -> list[str]:
        config, count = self._config, self._count
        if self._kind in {"mamba", "mamba2", "falcon_mamba"}:
            return ["mamba"] * count
        if self._kind == "falcon_h1":
            return ["hybrid"] * count
        period = config.count("attn_layer_period")
        if period:
            offset = config.count("attn_layer_offset") or 0
            return ["full_attention" if n % period == offset else "mamba" for n in range(count)]
        interval = config.count("full_attention_interval")
        if interval is None and self._kind.startswith("qwen3_next"):
            interval = 4
        if interval:
            return [
                "full_attention" if (n + 1) % interval == 0 else "linear_attention"
                for n in range(count)
            ]
        attends = config.counts("attn_layer_indices")
        if attends:
            return ["full_attention" if n in attends else "mamba" for n in range(count)]
        linear = config.part("linear_attn_config")
        if linear is not None:
            full = linear.counts("full_attn_layers")  # counted from 1
            return ["full_attention" if n + 1 in full else "kda" for n in range(count)]
        return []

    def _of_windows(self) -> list[str]:
        config, count = self._config, self._count
        chunked = config.count("attention_chunk_size")
        rotated = config.counts("no_rope_layers")
        if chunked and len(rotated) >= count:
            # Llama 4: layers with rotary positions see their chunk, the others everything.
            return ["chunked_attention" if entry else "full_attention" for entry in rotated[:count]]
        if not self._window or config.flag("use_sliding_window") is False:
            return []
        pattern = config.values.get("sliding_window_pattern")
        if isinstance(pattern, str) and pattern:
            wanted = [pattern[n % len(pattern)] == "L" for n in range(count)]
            return ["sliding_attention" if local else "full_attention" for local in wanted]
        period = pattern if isinstance(pattern, int) else _PATTERNS.get(self._kind)
        if period:
            return [
                "full_attention" if (n + 1) % period == 0 else "sliding_attention"
                for n in range(count)
            ]
        if config.flag("use_sliding_window"):
            first = config.count("max_window_layers") or 0
            return ["full_attention" if n < first else "sliding_attention" for n in range(count)]
        return ["sliding_attention"] * count

    # ------------------------------------------------------------------------------- how wide it is

    def _kv_heads(self) -> list[int]:
        """Heads of keys and values of each layer."""
        config, count = self._config, self._count
        blocks = config.values.get("block_configs")
        if isinstance(blocks, list) and len(blocks) >= count:
            return [self._of_block(block) for block in blocks[:count]]
        if config.flag("multi_query") and not config.flag("new_decoder_architecture"):
            return [1] * count
        attn = config.part("attn_config")
        key = _present(config, _KV_HEADS)
        told = config.counts(key) or (attn.counts("kv_n_heads") if attn is not None else ())
        if key == "multi_query_group_num" and not config.flag("multi_query_attention"):
            told = ()
        if len(told) > 1 and len(told) >= count:
            return list(told[:count])
        return [told[0] if told else self._heads] * count

    def _of_block(self, block: object) -> int:
        """Nemotron-NAS chose for each layer."""
        inner = JsonObject(self._config.path, block if isinstance(block, dict) else {}, "block")
        attention = inner.part("attention")
        if attention is None or attention.flag("no_op") or attention.flag("replace_with_linear"):
            return 0
        return self._heads // max(1, attention.count("n_heads_in_group") or 1)

    def _attention(self, kind: str, heads: int) -> LayerGroup:
        rank = self._config.count("kv_lora_rank")
        if rank:
            return self._compressed(rank)
        if kind == "chunked_attention":
            span = self._config.count("attention_chunk_size") or 0
            return self._full(Keeps.CHUNK, heads, span)
        if kind in _SLIDING and self._window:
            return self._full(Keeps.WINDOW, heads, self._window)
        wide = self._config.count("global_head_dim") if kind == "full_attention" else None
        of_full = self._config.count("num_global_key_value_heads")
        if wide:
            return LayerGroup(Keeps.ALL, heads=of_full or heads, key=wide, value=wide)
        return self._full(Keeps.ALL, heads)

    def _full(self, keeps: Keeps, heads: int, span: int = 0) -> LayerGroup:
        config = self._config
        told = config.count("head_dim", "attention_head_dim", "kv_channels")
        key = told or (self._hidden // self._heads if self._heads else 0)
        return LayerGroup(
            keeps, heads=heads, key=key, value=config.count("v_head_dim") or key, span=span
        )

    def _compressed(self, rank: int) -> LayerGroup:
        config = self._config
        rope = config.count("qk_rope_head_dim") or 0
        key = (config.count("qk_nope_head_dim") or 0) + rope
        value = config.count("v_head_dim") or 0
        if self._kind in _NO_MLA:
            return LayerGroup(Keeps.ALL, heads=self._heads, key=key, value=key)
        unpacked = self._heads * (key + value)
        return LayerGroup(Keeps.ALL, heads=1, key=rank + rope, latent=True, unpacked=unpacked)

    def _state(self, kind: str) -> LayerGroup:
        config = self._config
        if config.count("linear_num_value_heads") and kind == "linear_attention":
            return self._delta_net()
        linear = config.part("linear_attn_config")
        if linear is not None:
            heads, width = linear.count("num_heads") or 0, linear.count("head_dim") or 0
            steps = max(0, (linear.count("short_conv_kernel_size") or 4) - 1)
            return _state_group(3 * heads * width * steps, heads * width * width)
        if kind == "conv":
            steps = max(0, (config.count("conv_L_cache") or 3) - 1)
            return _state_group(self._hidden * steps, 0)
        if kind == "linear_attention":
            width = config.count("head_dim") or 0
            return _state_group(0, self._heads * width * width)
        return self._mamba()

    def _delta_net(self) -> LayerGroup:
        config = self._config
        key_heads = config.count("linear_num_key_heads") or 0
        value_heads = config.count("linear_num_value_heads") or 0
        key = config.count("linear_key_head_dim") or 0
        value = config.count("linear_value_head_dim") or 0
        steps = max(0, (config.count("linear_conv_kernel_dim") or 4) - 1)
        conv = 2 * key_heads * key + value_heads * value
        return _state_group(conv * steps, value_heads * value * key)

    def _mamba(self) -> LayerGroup:
        config = self._config
        size = config.count("mamba_d_state", "ssm_state_size", "state_size") or 16
        kernel = config.count("mamba_d_conv", "conv_kernel", "d_conv") or 4
        steps = max(0, kernel - 1)
        heads = config.count("mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
        if heads is None and self._kind == "mamba2":
            heads = config.count("num_heads") or self._heads
        width = config.count("mamba_d_head", "mamba_head_dim", "mamba_headdim")
        if width is None and self._kind == "mamba2":
            width = config.count("head_dim")
        if heads and width:
            groups = config.count("mamba_n_groups", "n_groups", "mamba_ngroups") or 1
            inner = heads * width
            return _state_group((inner + 2 * groups * size) * steps, inner * size, copies=3)
        expand = config.count("mamba_expand", "expand") or 2
        inner = config.count("mamba_intermediate_size") or expand * self._hidden
        if self._kind in {"mamba", "falcon_mamba"}:
            inner = config.count("intermediate_size") or inner
        return _state_group(inner * steps, inner * size)


def _state_group(conv: int, state: int, copies: int = 2) -> LayerGroup:
    return LayerGroup(Keeps.STATE, conv=conv, state=state, copies=copies)


def _present(config: JsonObject, keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in config), keys[0])
