"""What the catalog knows of one model on the disk.

Laws of this file:
- Everything is told by the files; what they do not tell is None, never a guess.
- A `FoundModel` ends in a `ModelSpec` that the scheduler can run, if an engine for it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from modelyard.catalog.checkpoint import Checkpoint
from modelyard.catalog.choice import Choice, Form
from modelyard.catalog.classify import Verdict
from modelyard.catalog.folder_checkpoint import FolderCheckpoint
from modelyard.core.specs import OptionValue

AnyCheckpoint: TypeAlias = Checkpoint | FolderCheckpoint


class Origin(StrEnum):
    """Whose layout a model was found in."""

    FOLDER = "folder"
    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"
    OLLAMA = "ollama"


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A whole model on the disk: what it is, how large, and what should run it."""

    id: str
    aliases: tuple[str, ...]
    source: Path
    """What an engine is given: a GGUF file, or a folder."""
    origin: Origin
    form: Form
    verdict: Verdict
    """Its ability and its inputs, with the fact that told them."""
    engine: Choice
    """What should run it, and why; without an engine it is a problem and no model."""
    architecture: str
    """`qwen3`, as the file spells it (GGUF: general.architecture; else model_type)."""
    quantization: str
    """What the weights are stored in, as people say it: `Q4_K_M`, `BF16`, `AWQ 4-bit`."""
    weight_bytes: int
    """Bytes of the weights by their headers, projector not included."""
    parameters: int
    """How many weights there are; 0 where the files are pickles."""
    context_length: int | None
    """Tokens it was made for."""
    license: str | None
    base: str
    """Common name of the quantisations that lie together; models of one `base` in one folder are
    interchangeable."""
    checkpoint: AnyCheckpoint
    """Its headers, for estimates and planning."""
    revision: str
    projector: Path | None = None
    """GGUF file that turns images or sound into input for it."""
    projector_bytes: int = 0
    options: Mapping[str, OptionValue] | None = None
    """Engine options that follow from the files alone (`mmproj`)."""
    remarks: tuple[str, ...] = ()
    """What a person should know: a file that could not be read and was gone without, and so on."""
