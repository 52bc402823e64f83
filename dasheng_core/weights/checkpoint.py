"""Files on disk -> modules, strictly.

A checkpoint is a folder in the published layout (``config.json`` beside ``model.safetensors``, a sharded
index, or ``pytorch_model.bin``) or a lone file. Only headers are read on opening; a tensor is read into memory of
its own when a module needs it: unused parts cost nothing, and a file rewritten later does no harm.
Weights are never held twice: those of another dtype are converted piece by piece as they are read. Quantised
weights stay quantised where a module can use them so.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..opening import open_file
from ..quoting import plain
from .gguf import GgufFile
from .pickled import PickleFile
from .published import DERIVED, GGUF_CONFIG
from .quantized import SCALE_SUFFIX, QuantizedWeight
from .reading import (
    JSON_BYTES,
    CheckpointError,
    Poll,
    Shapes,
    WatchedFile,
    naming,
    never_stop,
    parse_json,
    read_json,
    version,
)
from .tokenizer_files import TOKENIZER_FILES

# In order of preference; an index lists its shards.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.\w+)")
# Of a safetensors file; 2,000 tensors take 300 kB.
HEADER_BYTES = 2**24
# The values of a config.json by name.
Config = Mapping[str, Any]
SIDE_FILES = ("config.json", *TOKENIZER_FILES)
# The first tensor that each loader looks for, and what a file is that has it.
AN_AUDIOGEN, A_TEXT_ENCODER, AN_AUDIO_TOKENIZER = "an audio generator", "a text encoder", "an audio tokenizer"
ANOTHER = "another part of the model"
CHECKPOINT_KINDS = {
    "backbone.patch_embed.proj.weight": AN_AUDIOGEN,
    "encoder.block.0.layer.0.SelfAttention.q.weight": A_TEXT_ENCODER,
    "upsampler.weight": AN_AUDIO_TOKENIZER,
}
# As safetensors writes them; tensors of others are not this model's.
STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their published names, read on demand.

    ``config`` is the checkpoint's ``config.json`` (or what the file itself carries of it); None without one.
    ``metadata`` is a safetensors header's.
    """

    path: Path
    config: Config | None
    shapes: Shapes
    metadata: Mapping[str, str]
    _sources: Mapping[str, tuple["_File", str]]
    _config_file: Path | None

    def beside(self, name: str, in_shared_folder: bool) -> Path | None:
        """The side file ``name`` of this checkpoint, if there is one.

        Lone files share a folder, so one of theirs is named after them: ``mt5_large.spiece.model`` belongs to
        ``mt5_large.bin``. ``in_shared_folder``: whether a plain ``name`` there may be meant for this file too.
        """
        shared, named = _side_files(self.path, name)
        if named is not None and named.exists():
            return named
        mine = self.path.is_dir() or in_shared_folder or self._config_file == _side_files(self.path, "config.json")[0]
        return shared if mine and shared.exists() else None

    def tensor(self, name: str) -> "StoredTensor":
        self.require(name)
        return StoredTensor(*self._sources[name])

    def require(self, name: str) -> None:
        if name not in self.shapes:
            kind = self.other_kind() if name in CHECKPOINT_KINDS else None
            found = f"is {kind}, expected {ANOTHER}" if kind else "is not the checkpoint it is loaded as"
            raise CheckpointError(
                f"{plain(self.path.name)} {found} (tensor {plain(name)} is missing in {plain(self.path)})."
            )

    def other_kind(self) -> str | None:
        """What a file of another loader is; None where it is none of them."""
        return next((kind for name, kind in CHECKPOINT_KINDS.items() if name in self.shapes), None)

    def error(self, sentence: str) -> CheckpointError:
        """What is wrong with this checkpoint, named."""
        return CheckpointError(f"{plain(self.path)}: {sentence}")

    def renamed(self, rename: Callable[[str], str]) -> "Checkpoint":
        """The same tensors under other names, for files that other programs wrote."""
        shapes = {rename(name): shape for name, shape in self.shapes.items()}
        return replace(self, shapes=shapes, _sources={rename(name): source for name, source in self._sources.items()})

    def under(self, *prefixes: str) -> list[str]:
        """Names that start with one of ``prefixes``, derived constants left out."""
        return [name for name in self.shapes if name.startswith(prefixes) and not DERIVED.search(name)]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; nothing is read yet."""

    file: "_File"
    name: str

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.file.shapes[self.name])

    @property
    def dtype(self) -> torch.dtype:
        return self.file.dtype(self.name)

    @property
    def is_quantized(self) -> bool:
        return self.file.is_quantized(self.name)

    @property
    def quantized(self) -> QuantizedWeight | None:
        """The tensor as it is stored, read now, if it is quantised."""
        found = self.file.tensor(self.name) if self.is_quantized else None
        return found if isinstance(found, QuantizedWeight) else None

    def to(self, dtype: torch.dtype) -> Tensor:
        """The tensor, read now, converted or expanded to ``dtype`` if it is stored otherwise.

        Raises CheckpointError where the file has changed since it was opened, or has whole numbers where weights should be.
        """
        if not self.is_quantized and self.dtype.is_floating_point != dtype.is_floating_point:
            raise CheckpointError(
                f"{plain(self.file.path)}: tensor {plain(self.name)} is {self.dtype}, expected {dtype}."
            )
        return self.file.tensor(self.name, dtype).to(dtype)


@contextmanager
def name_taker(takers: Mapping[str, str]) -> Iterator[None]:
    """Add to the error about a file given in the wrong place which option or argument takes it.

    Args:
        takers: by kind of file, a value of :data:`CHECKPOINT_KINDS`.
    """
    try:
        yield
    except CheckpointError as error:
        for kind, taker in takers.items():
            found = f" is {kind}, expected {ANOTHER}"
            if found in str(error):
                raise CheckpointError(str(error).replace(found, f"{found}: {taker} takes it", 1)) from error
        raise


def open_checkpoint(path: str | Path, model_types: Iterable[str], poll: Poll = never_stop) -> Checkpoint:
    """Open a checkpoint folder or file.

    Args:
        path: a folder in the published layout, or a ``.safetensors``, ``.gguf``, ``.bin``, ``.pt`` or ``.pth`` file.
            One shard of several stands for all of them.
        model_types: the ``model_type`` values a ``config.json`` of this checkpoint can have. In a folder that
            lone files share, a ``config.json`` of another type is another file's.
        poll: called between pieces of what is read, now and later; what it raises stops the loading.

    Raises:
        FileNotFoundError: nothing at ``path``, or no weights in the folder.
        CheckpointError: a damaged or unsafe file, or a folder of another model.
    """
    path = Path(path)
    # False for what no path can be, too.
    if not os.path.exists(path):
        raise FileNotFoundError(f"{plain(path)} does not exist: expected a checkpoint folder or file.")
    main = _weights_of_folder(path) if path.is_dir() else path
    files = [_open_file(shard, poll) for shard in _shards(main)]
    sources = {name: (file, name) for file in files for name in file.shapes}
    shapes = {name: file.shapes[name] for name, (file, _) in sources.items()}
    config, config_file = _read_config(path, files, tuple(model_types))
    return Checkpoint(path, config, shapes, files[0].metadata, sources, config_file)


class _SafetensorsFile:
    def __init__(self, path: Path, poll: Poll):
        self.path = path
        self._file = WatchedFile(path, poll)
        with naming(path, "a readable safetensors file"):
            with open_file(path) as file:
                length = int.from_bytes(file.read(8), "little")
                if length > HEADER_BYTES:
                    raise ValueError(f"its header has {length:,} bytes, expected at most {HEADER_BYTES:,}")
                self._entries = parse_json(file.read(length).decode("utf-8"))
            # The library checks the header only: it would memory-map the tensors.
            with safe_open(path, framework="pt"):
                pass
            self._start = 8 + length
            self.metadata: Mapping[str, str] = self._entries.pop("__metadata__", None) or {}
            config = self.metadata.get("config")
            if config is not None and len(config) > JSON_BYTES:
                raise ValueError(f"its config has {len(config):,} letters, expected at most {JSON_BYTES:,}")
            self.config = None if config is None else _as_config(parse_json(config))
        codes = {name: entry["dtype"] for name, entry in self._entries.items()}
        self._matrices = {n for n, code in codes.items() if code == "F8_E4M3" and n + SCALE_SUFFIX in codes}
        scales = {name + SCALE_SUFFIX for name in self._matrices}
        # Without the scales of quantised matrices, which are part of these.
        self.shapes: Shapes = {n: tuple(entry["shape"]) for n, entry in self._entries.items() if n not in scales}
        for name in self._matrices:
            scale, rows = self._entries[name + SCALE_SUFFIX], self.shapes[name][:1]
            if len(self.shapes[name]) != 2 or scale["shape"] != [*rows] or scale["dtype"] != "F32":
                raise CheckpointError(
                    f"{plain(path)}: {plain(name)} is a float8 tensor of shape {list(self.shapes[name])} with a scale "
                    f"{scale['dtype']} {scale['shape']}, expected a matrix with one F32 scale per row: use another file."
                )

    def dtype(self, name: str) -> torch.dtype:
        code = self._entries[name]["dtype"]
        if code not in STORED_DTYPES:
            raise CheckpointError(
                f"{plain(self.path)}: tensor {plain(name)} is {plain(code)}; {', '.join(STORED_DTYPES)} are read here."
            )
        return STORED_DTYPES[code]

    def is_quantized(self, name: str) -> bool:
        return name in self._matrices

    def tensor(self, name: str, to: torch.dtype | None = None) -> Tensor | QuantizedWeight:
        if name in self._matrices:
            return QuantizedWeight("F8_E4M3", self._plain(name), self._plain(name + SCALE_SUFFIX))
        return self._plain(name, to)

    def _plain(self, name: str, to: torch.dtype | None = None) -> Tensor:
        entry = self._entries[name]
        return self._file.read(self._start + entry["data_offsets"][0], self.dtype(name), entry["shape"], to)


_File = _SafetensorsFile | PickleFile | GgufFile


def _open_file(path: Path, poll: Poll) -> _File:
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return GgufFile(path, GGUF_CONFIG, poll)
    return (_SafetensorsFile if suffix in (".safetensors", ".sft") else PickleFile)(path, poll)


def _weights_of_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{plain(folder)} holds no weights: expected one of {', '.join(FOLDER_FILES)}.")


def _shards(main: Path) -> list[Path]:
    """The files ``main`` stands for: its shards if it is an index or one of several shards, else itself."""
    if main.name.endswith(".index.json"):
        index = main
    elif shard := SHARD.fullmatch(main.name):
        index = main.with_name(f"{shard['stem']}{shard['suffix']}.index.json")
        if not index.exists():
            raise FileNotFoundError(
                f"{plain(main)} is one of several shards, but {plain(index.name)} is not beside it: fetch it."
            )
    else:
        return [main]
    with naming(index, "an index of shards"):
        names = sorted(set(read_json(index)["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("it names files of other folders")
    missing = [name for name in names if not os.path.exists(main.parent / name)]
    if missing:
        raise FileNotFoundError(
            f"{plain(index)} lists {plain(', '.join(missing))}, not found beside it: fetch the missing shards."
        )
    return [main.parent / name for name in names]


def fingerprint(path: str | Path) -> list[tuple[str, int, int, int]]:
    """What changes when a file of a checkpoint, weights or side files, is written or replaced."""
    return [(str(file), *version(file.stat())) for file in files_of(path)]


def files_of(path: str | Path) -> list[Path]:
    """The files of a checkpoint, weights first, then side files; those that are there."""
    path = Path(path)
    side_files = [file for name in SIDE_FILES for file in _side_files(path, name) if file is not None]
    shards = _shards(_weights_of_folder(path) if path.is_dir() else path)
    return [file for file in (*shards, *side_files) if file.exists()]


def _side_files(path: Path, name: str) -> tuple[Path, Path | None]:
    """Where a side file can be: under its plain name, or, for a lone file, named after it."""
    return (path / name, None) if path.is_dir() else (path.with_name(name), path.with_name(f"{path.stem}.{name}"))


def _read_config(path: Path, files: list[_File], model_types: tuple[str, ...]) -> tuple[Config | None, Path | None]:
    """The config and the file it stands in; a ``config.json`` beside a lone file may be another model's."""
    for file in files:
        if file.config is not None:
            return file.config, None
    shared, named = _side_files(path, "config.json")
    config_file = named if named is not None and named.exists() else shared
    if not config_file.exists():
        return None, None
    with naming(config_file, "a readable config.json"):
        config = _as_config(read_json(config_file))
    model_type = config.get("model_type")
    if model_type in model_types:
        return config, config_file
    if path.is_file() and config_file == shared:
        return None, None
    raise CheckpointError(
        f"{plain(config_file)}: model_type is {plain(repr(model_type))}, expected {' or '.join(model_types)}."
    )


def _as_config(value) -> Config:
    """A config's values by name; one that is null is as good as none."""
    if not isinstance(value, dict):
        raise ValueError("expected an object of named values")
    return {key: item for key, item in value.items() if item is not None}
