"""The kinds of models, each with what it reads and what it gives.

Laws of this file:
- Vectors and scores are those of sentence-transformers' own `encode`, `predict` and `similarity`
  (6.2), but for the last digits: how many inputs share a batch changes the order of additions.
- Vectors are normalised where the model's modules do so, or where the settings ask for it.
- Rerankers answer with the model's own activation; raw scores are kept beside them, because close
  to 1 many activations cannot tell two documents apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from modelyard.servers.lifeline import announce
from modelyard.servers.transformers.errors import Refused
from modelyard.servers.transformers.reading import TextReader
from modelyard.servers.transformers.terms import QUERY, Cut, Lane, Prepared, Row, Score

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""In the order in which sentence-transformers looks for them (`encode_document`)."""
_NEWS_MIB = 64

Vector = npt.NDArray[np.float32]


class Base:
    """What all kinds share: prompts, the forward pass, memory."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.reader = TextReader(model)
        self._reserved_mib = 0

    @property
    def prompts(self) -> Mapping[str, str]:
        prompts: Mapping[str, str] = self.model.prompts
        return prompts

    def prompt(self, name: str | None, task: str | None = None) -> str | None:
        """The text of a prompt: by its name, else by the task, else the default one.

        Raises Refused for a name that the model does not have.
        """
        if name is not None:
            if name not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none"
                raise Refused(
                    f"this model has no prompt {name!r}; it has {known}", param="prompt_name"
                )
            return self.prompts[name]
        if task is not None:
            names = (QUERY,) if task == QUERY else _DOCUMENT_PROMPTS
            chosen = next((each for each in names if each in self.prompts), None)
            if chosen is not None:
                return self.prompts[chosen]
        default: str | None = self.model.default_prompt_name
        return self.prompts[default] if default is not None else None

    def out_of_memory(self, error: Exception) -> bool:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            return True
        return isinstance(error, MemoryError) or "can't allocate memory" in text

    def computed(self) -> None:
        """Tell what torch keeps on the cards, when it has grown."""
        if not torch.cuda.is_available():
            return
        held = [torch.cuda.memory_reserved(at) >> 20 for at in range(torch.cuda.device_count())]
        if sum(held) >= self._reserved_mib + _NEWS_MIB:
            self._reserved_mib = sum(held)
            cards = ", ".join(f"cuda:{at} {mib} MiB" for at, mib in enumerate(held))
            announce(f"memory held: {cards}")

    def _forward(self, rows: Sequence[Row]) -> dict[str, Any]:
        lane = rows[0].lane
        task = lane.task if isinstance(lane, Lane) else None
        device = self.model.device
        features = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in self.reader.batch(rows).items()
        }
        named = {} if task is None else {"task": task}
        with torch.inference_mode():
            out: dict[str, Any] = self.model(features, **named)
        return out


class Embedder(Base):
    """A SentenceTransformer: one vector for each text."""

    def __init__(self, model: Any, *, normalize: bool = False) -> None:
        super().__init__(model)
        self._normalize = normalize
        last = model[-1]
        self.is_normalized = normalize or type(last).__name__ == "Normalize"
        self.dimensions = int(model.get_embedding_dimension() or 0)
        if model.truncate_dim is not None:
            self.dimensions = min(self.dimensions, model.truncate_dim)

    def read(
        self, texts: Sequence[str], prompt_name: str | None, task: str | None, cut: Cut
    ) -> list[Prepared]:
        return self.reader.texts(texts, self.prompt(prompt_name, task), task, cut)

    def read_as(self, texts: Sequence[str], task: str, cut: Cut) -> list[Prepared]:
        """Texts as queries or documents."""
        return self.read(texts, None, task, cut)

    def compute(self, inputs: Sequence[Row]) -> Sequence[Vector]:
        vectors = self._forward(inputs)["sentence_embedding"]
        if self.model.truncate_dim is not None:
            vectors = vectors[..., : self.model.truncate_dim]
        if self._normalize:
            vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        return list(vectors.float().cpu().numpy())

    def cut_to(self, vectors: Sequence[Vector], dimensions: int) -> list[Vector]:
        """The first numbers of each vector, of length 1 again where the whole ones are."""
        cut = [vector[:dimensions] for vector in vectors]
        if not self.is_normalized:
            return cut
        return [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in cut]

    def similarity(self, query: Vector, documents: Sequence[Vector]) -> list[Score]:
        scores = self.model.similarity(query[None], np.stack(documents))[0].tolist()
        return [Score(score, score) for score in scores]


class LateInteraction(Base):
    """A MultiVectorEncoder (ColBERT): a vector for each token, compared one by one."""

    def read_as(self, texts: Sequence[str], task: str, _: Cut) -> list[Prepared]:
        """Texts as queries or documents, as long as the model is made for."""
        return self.reader.as_the_model_cuts(texts, self.prompt(None, task), task)

    def compute(self, inputs: Sequence[Row]) -> Sequence[Vector]:
        features = self._forward(inputs)
        masks = features["attention_mask"].bool()
        pairs = zip(features["token_embeddings"], masks, strict=True)
        return [vectors[mask].float().cpu().numpy() for vectors, mask in pairs]

    def similarity(self, query: Vector, documents: Sequence[Vector]) -> list[Score]:
        scores = self.model.similarity([query], list(documents))[0].tolist()
        return [Score(score, score) for score in scores]


class PairScorer(Base):
    """A CrossEncoder with one score for a query and a document."""

    def read(
        self, pairs: Sequence[tuple[str, str]], instruction: str | None, cut: Cut
    ) -> list[Prepared]:
        prompt = self.prompt(None) if instruction is None else instruction
        return self.reader.texts(pairs, prompt, None, cut)

    def compute(self, inputs: Sequence[Row]) -> Sequence[Score]:
        raw = self._forward(inputs)["scores"].float()
        with torch.inference_mode():
            active = self.model.activation_fn(raw)
        pairs = zip(raw.reshape(-1).tolist(), active.reshape(-1).tolist(), strict=True)
        return [Score(each, relevance) for each, relevance in pairs]


AnyKind = Embedder | LateInteraction | PairScorer
