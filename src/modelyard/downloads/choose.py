"""Which files of a repository are needed.

Laws of this file:
- Pure: the list of files goes in, the chosen ones come out with the reasons in words.
- Of several quantisations the one is taken that the catalog's common name would mean
  (`catalog.variants`), so that what was pulled is what a request for that name gets.
- Pickled weights run code when they are loaded: they are taken where a person names them, else
  never.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from modelyard.catalog.classify import shard_of
from modelyard.catalog.quantization import without_quantization
from modelyard.catalog.variants import PREFERRED
from modelyard.downloads.job import PullFailed

PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SETTINGS: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".spm", ".vocab")
_NEVER: Final = (".index.json", "trainer_state.json", "training_args.json", "generation_test.json")
_MODULE: Final = re.compile(r"\d+_[A-Za-z]+")
"""Folders of sentence-transformers' modules: `1_Pooling`, `2_Dense`."""
_BESIDE: Final = frozenset(
    {".gitattributes", ".gitignore", ".mdl", ".msc", ".mv", ".modelyard-pull.json"}
)
"""What hubs and their programs leave beside a model."""
_PROJECTORS: Final = ("F16", "BF16", "Q8_0", "F32")
_MOST_TOLD: Final = 12


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a hub."""

    path: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    """Git's name of its content, where there is no sha256."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to fetch, and why."""

    files: tuple[RemoteFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Gguf:
    """A GGUF model in one file or several."""

    stem: str
    base: str
    quantization: str | None
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size or 0 for file in self.files)

    def __str__(self) -> str:
        return f"{self.quantization or self.stem} ({_gib(self.size)})"


def choose(
    files: Sequence[RemoteFile],
    *,
    quantization: str | None = None,
    globs: Sequence[str] = (),
    pickle: bool = False,
    prefers_gguf: bool = False,
) -> Selection:
    """The files that an engine needs to run the model, or those that `globs` name.

    `prefers_gguf` says that only GGUF can be run here. Raises PullFailed where there is nothing to
    choose, or too much.
    """
    if globs:
        return _named(files, globs, pickle)
    ggufs = _ggufs(files)
    if quantization is not None:
        return _with_projector(_quantization(ggufs, quantization), files)
    safetensors = [file for file in files if _is_safetensors(file.path)]
    if safetensors and not (ggufs and prefers_gguf):
        return _folder(files, safetensors, bool(ggufs))
    if ggufs:
        return _with_projector(_preferred(ggufs), files)
    pickled = [file for file in files if file.path.endswith(PICKLED) and "/" not in file.path]
    if pickled and pickle:
        note = "pickled weights, as asked: loading them runs whatever code is in them"
        return Selection((*pickled, *_settings(files, ".bin.index.json")), (note,))
    if pickled:
        raise PullFailed(
            "pickled_weights",
            f"it has only pickled weights ({_listed(file.path for file in pickled)}), and loading"
            " them runs whatever code is in them",
            hint="look for a repository with safetensors or GGUF, or say --pickle if you trust it",
        )
    raise PullFailed(
        "no_weights",
        f"there are no weights in it that an engine here can load; it has"
        f" {_listed(file.path for file in files)}",
        hint="name files with --file",
    )


# ----------------------------------------------------------------------------------- named files


def _named(files: Sequence[RemoteFile], globs: Sequence[str], pickle: bool) -> Selection:
    chosen: dict[str, RemoteFile] = {}
    for glob in globs:
        asks_pickle = pickle or glob.endswith(PICKLED)
        found = [file for file in files if _matches(file.path, glob)]
        taken = [file for file in found if asks_pickle or not file.path.endswith(PICKLED)]
        if not taken:
            why = "only pickled weights, which have to be named: *.bin" if found else "no file"
            raise PullFailed(
                "not_found",
                f"--file {glob} names {why}",
                hint=f"there are {_listed(file.path for file in files)}",
            )
        chosen |= {file.path: file for file in taken}
    return Selection(tuple(chosen.values()), (f"the files that --file names: {len(chosen)}",))


def _matches(path: str, glob: str) -> bool:
    return fnmatchcase(path, glob) or fnmatchcase(path.rpartition("/")[2], glob)


# -------------------------------------------------------------------------------- whole folders


def _folder(
    files: Sequence[RemoteFile], safetensors: list[RemoteFile], beside_gguf: bool
) -> Selection:
    notes = ["safetensors with their configuration and tokenizer"]
    inner = [file for file in safetensors if "/" not in file.path]
    modules = [file for file in safetensors if _MODULE.fullmatch(file.path.partition("/")[0])]
    usual = [file for file in inner if not file.path.startswith("consolidated")]
    if usual and len(usual) < len(inner):
        notes.append("without consolidated*.safetensors, which hold the same weights once more")
    weights = (usual or inner) + modules
    skipped = sum(file.size or 0 for file in files if file.path.endswith(PICKLED))
    if skipped:
        notes.append(f"without pickled weights ({_gib(skipped)}), which hold the same")
    if beside_gguf:
        notes.append("its GGUF files are left out; name one with ORG/NAME:QUANTISATION")
    return Selection((*weights, *_settings(files, ".safetensors.index.json")), tuple(notes))


def _settings(files: Iterable[RemoteFile], index: str) -> list[RemoteFile]:
    """Configurations, tokenizers, templates, the model card, and the index of the weights."""
    return [
        file
        for file in files
        if (_is_setting(file.path) or file.path.endswith(index))
        and not file.path.startswith("consolidated")
    ]


def _is_setting(path: str) -> bool:
    outer, slash, _ = path.partition("/")
    if slash and not (_MODULE.fullmatch(outer) or outer == "additional_chat_templates"):
        return False
    name = path.rpartition("/")[2]
    return name == "README.md" or (name.endswith(_SETTINGS) and not name.endswith(_NEVER))


def is_of_model(path: str) -> bool:
    """Whether a file, by its path within a model's folder, is the model's and nobody's notes."""
    outer, slash, name = path.rpartition("/")
    weights = name.endswith(
        (".safetensors", ".safetensors.index.json", ".bin.index.json", *PICKLED)
    )
    place = not slash or _MODULE.fullmatch(outer) is not None
    return _is_setting(path) or (
        place and (weights or name in _BESIDE or name.startswith("LICENSE"))
    )


def _is_safetensors(path: str) -> bool:
    outer, slash, _ = path.partition("/")
    is_adapter = path.startswith("adapter_")
    place = not slash or _MODULE.fullmatch(outer) is not None
    return path.endswith(".safetensors") and place and not is_adapter


# ----------------------------------------------------------------------------------- GGUF models


def _ggufs(files: Sequence[RemoteFile]) -> list[_Gguf]:
    """The GGUF models of a repository, each with all its files."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in files:
        name = file.path.rpartition("/")[2]
        if name.lower().endswith(".gguf") and not _is_companion(name):
            shard = shard_of(name)
            stem = name[: -len(".gguf")] if shard is None else shard.stem
            groups.setdefault(f"{file.path[: -len(name)]}{stem}", []).append(file)
    found = []
    for key, members in groups.items():
        stem = key.rpartition("/")[2]
        base, quantization = without_quantization(stem)
        found.append(_Gguf(stem, base, quantization, tuple(members)))
    return found


def _is_companion(name: str) -> bool:
    return re.search(r"mmproj|imatrix|(^|[-_.])mtp[-_.]", name, re.I) is not None


def _quantization(ggufs: Sequence[_Gguf], wanted: str) -> tuple[_Gguf, str]:
    folded = wanted.upper()
    exact = [each for each in ggufs if (each.quantization or "") == folded]
    near = [each for each in ggufs if (each.quantization or "").removeprefix("UD-") == folded]
    named = [each for each in ggufs if each.stem.upper().endswith(folded)]
    found = exact or near or named
    if not found:
        there = f"there are {_listed(map(str, ggufs))}" if ggufs else "it has no GGUF files"
        raise PullFailed("not_found", f"there is no quantisation {wanted} in it", hint=there)
    return _only(found), f"the quantisation that was asked for, {found[0].quantization or wanted}"


def _preferred(ggufs: Sequence[_Gguf]) -> tuple[_Gguf, str]:
    def rank(gguf: _Gguf) -> tuple[int, int]:
        known = gguf.quantization in PREFERRED
        return (PREFERRED.index(gguf.quantization) if known else len(PREFERRED), gguf.size)

    if len({gguf.base for gguf in ggufs}) > 1:
        return _only(ggufs), "the only GGUF model"
    if len(ggufs) == 1:
        return ggufs[0], "the only GGUF model"
    best = min(ggufs, key=rank)
    others = _listed(str(gguf) for gguf in ggufs if gguf is not best)
    usual = "the usual quantisation" if rank(best)[0] < len(PREFERRED) else "the smallest file"
    return best, f"{usual}, {best}; others with ORG/NAME:QUANTISATION: {others}"


def _only(ggufs: Sequence[_Gguf]) -> _Gguf:
    if len(ggufs) == 1:
        return ggufs[0]
    raise PullFailed(
        "ambiguous",
        f"there are {len(ggufs)} models in it: {_listed(gguf.stem for gguf in ggufs)}",
        hint="choose with --file, like --file '*NAME*'",
    )


def _with_projector(chosen: tuple[_Gguf, str], files: Sequence[RemoteFile]) -> Selection:
    """The model with the projector that turns images into input for it, if there is one."""
    gguf, note = chosen
    found = [f for f in files if "mmproj" in f.path.lower() and f.path.lower().endswith(".gguf")]

    def rank(file: RemoteFile) -> tuple[int, str]:
        kind = without_quantization(f"-{PurePosixPath(file.path).stem}")[1] or ""
        return (_PROJECTORS.index(kind) if kind in _PROJECTORS else len(_PROJECTORS), file.path)

    if not found:
        return Selection(gguf.files, (note,))
    projector = min(found, key=rank)
    more = f"with its projector for images or sound, {projector.path}"
    return Selection((*gguf.files, projector), (note, more))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
    return (", ".join(names[:_MOST_TOLD]) or "nothing") + more


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
