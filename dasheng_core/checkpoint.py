"""Files on disk -> modules, strictly.

A checkpoint is a folder in the published layout (``config.json`` beside ``model.safetensors``, a sharded
index, or ``pytorch_model.bin``) or a lone file. Only headers are read on opening; a tensor is read, memory
mapped, when a module asks for it, so parts nobody asks for cost nothing. Weights are never held twice:
of a safetensors file converted to another dtype, one tensor at a time is mapped beside its copy. Quantised
weights stay quantised where a module can use them so.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import CheckpointError, Shapes
from .gguf_file import GgufFile
from .quantized import SCALE_SUFFIX, QuantizedLinear, QuantizedWeight

# In order of preference; an index lists its shards.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}(?P<suffix>\.\w+)")
# Bytes: opening a file again takes milliseconds, too long for each of a thousand biases.
WORTH_A_MAPPING = 2**20
# Constants that checkpoints carry and that are computed here.
DERIVED = re.compile(
    r"\.rotary\.inv_freq$|\.istft\.window$|\.mel_scale\.fb$|\.spectrogram\.window$|\.num_batches_tracked$"
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by their published names, read on demand.

    ``config`` is the checkpoint's ``config.json`` (or what the file itself carries of it); None without one.
    ``metadata`` is a safetensors header's.
    """

    path: Path
    config: Mapping | None
    shapes: Shapes
    metadata: Mapping[str, str]
    _sources: Mapping[str, tuple["_File", str]]
    _config_file: Path | None

    def beside(self, name: str, in_shared_folder: bool) -> Path | None:
        """The side file ``name`` of this checkpoint, if there is one.

        Lone files share a folder, so one of theirs is named after them: ``mt5_large.spiece.model`` belongs to
        ``mt5_large.bin``. ``in_shared_folder``: whether a plain ``name`` there may be meant for this file too.
        """
        plain, named = _side_files(self.path, name)
        if named is not None and named.exists():
            return named
        mine = self.path.is_dir() or in_shared_folder or self._config_file == _side_files(self.path, "config.json")[0]
        return plain if mine and plain.exists() else None

    def tensor(self, name: str) -> "StoredTensor":
        return StoredTensor(*self._sources[name])

    def renamed(self, rename: Callable[[str], str]) -> "Checkpoint":
        """The same tensors under other names, for files that other programs wrote."""
        shapes = {rename(name): shape for name, shape in self.shapes.items()}
        return replace(self, shapes=shapes, _sources={rename(name): source for name, source in self._sources.items()})

    def under(self, *prefixes: str) -> list[str]:
        """Names that start with one of ``prefixes``, derived constants left out."""
        return [name for name in self.shapes if name.startswith(prefixes) and not DERIVED.search(name)]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or one of ``parts`` equal parts of it along the first dimension; nothing is read yet."""

    file: "_File"
    name: str
    part: int = 0
    parts: int = 1

    @property
    def shape(self) -> torch.Size:
        return self._mapped().shape

    @property
    def dtype(self) -> torch.dtype:
        return self._mapped().dtype

    def chunk(self, parts: int) -> list["StoredTensor"]:
        return [replace(self, part=part, parts=parts) for part in range(parts)]

    @property
    def quantized(self) -> QuantizedWeight | None:
        """The tensor as it is stored, memory-mapped, if it is quantised."""
        mapped = self._mapped()
        return mapped if isinstance(mapped, QuantizedWeight) else None

    def to(self, dtype: torch.dtype) -> Tensor:
        """The tensor: memory-mapped if it is stored in ``dtype``, else a converted (or expanded) copy."""
        mapped = self._mapped()
        if mapped.dtype == dtype:
            return mapped
        # Pages that were read take memory until their mapping goes: what is read once gets a mapping of its own.
        if mapped.nbytes >= WORTH_A_MAPPING:
            mapped = replace(self, file=self.file.reopened())._mapped()
        return mapped.to(dtype)

    def _mapped(self) -> Tensor | QuantizedWeight:
        tensor = self.file.tensor(self.name)
        return tensor if self.parts == 1 else tensor.tensor_split(self.parts)[self.part]


def open_checkpoint(path: str | Path, model_types: Iterable[str]) -> Checkpoint:
    """Open a checkpoint folder or file.

    Args:
        path: a folder in the published layout, or a ``.safetensors``, ``.gguf``, ``.bin``, ``.pt`` or ``.pth`` file.
            One shard of several stands for all of them.
        model_types: the ``model_type`` values a ``config.json`` of this checkpoint can have. In a folder that
            lone files share, a ``config.json`` of another type is another file's.

    Raises:
        FileNotFoundError: nothing at ``path``, or no weights in the folder.
        CheckpointError: a damaged or unsafe file, or a folder of another model.
        ImportError: a GGUF file, and the gguf package is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a checkpoint folder or file.")
    main = _weights_of_folder(path) if path.is_dir() else path
    files = [_open_file(shard) for shard in _shards(main)]
    sources = {name: (file, name) for file in files for name in file.shapes}
    shapes = {name: file.shapes[name] for name, (file, _) in sources.items()}
    config, config_file = _read_config(path, files, tuple(model_types))
    return Checkpoint(path, config, shapes, files[0].metadata, sources, config_file)


def load_weights(
    module: nn.Module,
    twin: nn.Module,
    weights: Mapping[str, StoredTensor | Tensor],
    source: str,
    quantized_linear: type[QuantizedLinear] | None = None,
) -> None:
    """Give every parameter and buffer of ``module`` (built on the meta device) its tensor, in the twin's dtypes.

    Args:
        twin: the same module of ``torch.nn``'s layers on the meta device; those of ComfyUI may have no weights before
            they are loaded. ``module`` itself if it is made of ``torch.nn``'s.
        quantized_linear: what takes the place of an ``nn.Linear`` whose weight is stored quantised; None: such
            weights are expanded.

    Raises:
        CheckpointError: names of missing, unexpected or wrongly shaped tensors.
    """
    wanted = check_weights(twin, weights, source)
    # A tensor that goes by two names stays one tensor.
    convert = cache(lambda tensor, dtype: tensor.to(dtype))
    state = {}
    for name, tensor in weights.items():
        stored = getattr(tensor, "quantized", None) if quantized_linear else None
        owner, _, layer_name = name.removesuffix(".weight").rpartition(".")
        layer = stored and getattr(module.get_submodule(owner), layer_name)
        if not isinstance(layer, nn.Linear):
            state[name] = convert(tensor, wanted[name].dtype)
            continue
        bias = wanted.get(name.removesuffix("weight") + "bias")
        setattr(module.get_submodule(owner), layer_name, quantized_linear(stored, bias))
        state[name] = stored.values
        if stored.scale is not None:
            state[name + SCALE_SUFFIX] = stored.scale
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def check_weights(twin: nn.Module, weights: Mapping[str, StoredTensor | Tensor], source: str) -> Mapping:
    """The tensors that a module of ``torch.nn``'s layers wants, by name.

    Raises:
        CheckpointError: ``weights`` lacks some of them, or has others, or others in shape.
    """
    wanted = twin.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} has shape {list(tensor.shape)}, expected {list(wanted[name].shape)}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"{source} does not hold this model's tensors: {listed}.")
    return wanted


class _SafetensorsFile:
    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable safetensors file ({error}): fetch it again.") from error

    @cached_property
    def metadata(self) -> Mapping:
        return self._file.metadata() or {}

    @property
    def config(self) -> Mapping | None:
        return json.loads(self.metadata["config"]) if "config" in self.metadata else None

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._file.keys())

    @cached_property
    def shapes(self) -> Shapes:
        """Without the scales of quantised matrices, which are part of these."""
        matrices = {name for name in self._names if name + SCALE_SUFFIX in self._names}
        names = [
            name for name in self._file.keys() if name.removesuffix(SCALE_SUFFIX) not in matrices or name in matrices
        ]
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in names}

    def tensor(self, name: str) -> Tensor | QuantizedWeight:
        values = self._file.get_tensor(name)
        if name + SCALE_SUFFIX not in self._names:
            return values
        return QuantizedWeight("F8_E4M3", values, self._file.get_tensor(name + SCALE_SUFFIX))

    def reopened(self) -> "_SafetensorsFile":
        """The same file in another mapping."""
        return _SafetensorsFile(self._path)


class _PickleFile:
    metadata: Mapping = {}
    config: Mapping | None = None

    def __init__(self, path: Path):
        try:
            self._tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{path} is not a file of plain tensors ({reason}): use a .safetensors file."
            ) from error
        if not isinstance(self._tensors, dict) or not all(isinstance(t, Tensor) for t in self._tensors.values()):
            raise CheckpointError(f"{path} holds something else than named tensors: use a .safetensors file.")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def reopened(self) -> "_PickleFile":
        # Unpickling the whole index for each tensor would take minutes; the system takes mapped pages back at need.
        return self


_File = _SafetensorsFile | _PickleFile | GgufFile


def _open_file(path: Path) -> _File:
    kinds = {".safetensors": _SafetensorsFile, ".sft": _SafetensorsFile, ".gguf": GgufFile}
    return kinds.get(path.suffix.lower(), _PickleFile)(path)


def _weights_of_folder(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no weights: expected one of {', '.join(FOLDER_FILES)}.")


def _shards(main: Path) -> list[Path]:
    """The files ``main`` stands for: its shards if it is an index or one of several shards, else itself."""
    if main.name.endswith(".index.json"):
        index = main
    elif shard := SHARD.fullmatch(main.name):
        index = main.with_name(f"{shard['stem']}{shard['suffix']}.index.json")
        if not index.exists():
            raise FileNotFoundError(f"{main} is one of several shards, but {index.name} is not beside it: fetch it.")
    else:
        return [main]
    names = sorted(set(_read_json(index)["weight_map"].values()))
    missing = [name for name in names if not (main.parent / name).exists()]
    if missing:
        raise FileNotFoundError(f"{index} lists {', '.join(missing)}, not found beside it: fetch the missing shards.")
    return [main.parent / name for name in names]


def _side_files(path: Path, name: str) -> tuple[Path, Path | None]:
    """Where a side file can be: under its plain name, or, for a lone file, named after it."""
    return (path / name, None) if path.is_dir() else (path.with_name(name), path.with_name(f"{path.stem}.{name}"))


def _read_config(path: Path, files: list, model_types: tuple[str, ...]) -> tuple[Mapping | None, Path | None]:
    """The config and the file it stands in; a ``config.json`` beside a lone file may be another model's."""
    for file in files:
        if file.config is not None:
            return file.config, None
    plain, named = _side_files(path, "config.json")
    config_file = named if named is not None and named.exists() else plain
    if not config_file.exists():
        return None, None
    config = _read_json(config_file)
    model_type = config.get("model_type")
    if model_type in model_types:
        return config, config_file
    if path.is_file() and config_file == plain:
        return None, None
    raise CheckpointError(f"{config_file}: model_type is {model_type!r}, expected {' or '.join(model_types)}.")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): fetch it again.") from error
