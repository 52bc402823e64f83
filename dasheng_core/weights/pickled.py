"""torch's ``.bin``, ``.pt`` and ``.pth`` files of named tensors: the list of them, read without executing it.

torch's own reader of such lists ends the process on some (a key of 300,000 tuples in each other) and takes any memory
on others. A list of plain tensors needs 30 instructions, three functions and the names of dtypes; nothing else passes.
"""

import math
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..opening import open_file
from ..quoting import plain
from .reading import Poll, Shapes, WatchedFile, naming

# The list of a model of 2,000 tensors has 400 kB and 100,000 instructions.
LIST_BYTES = 2**22
INSTRUCTIONS = 300_000
STORAGE_DTYPES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
# The functions that a list calls: an ordered dict, and a tensor, which can be a parameter.
DICT, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
# What stands in front of a list in the older format.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Global(str):
    """What a list names by module and name."""


@dataclass(frozen=True)
class PickledStorage:
    """Numbers of one dtype, somewhere in the file."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class View:
    """A tensor: its first number in a storage, and how its numbers lie there."""

    storage: PickledStorage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """How many numbers of the storage it covers."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        steps = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return all(size == 1 or s == step for size, s, step in zip(self.shape, self.strides, steps, strict=True))


class PickleFile:
    """Tensors by name, each read when it is needed. Raises CheckpointError for what is no file of plain tensors."""

    metadata: Mapping[str, str] = {}
    config: Mapping[str, Any] | None = None

    def __init__(self, path: Path, poll: Poll):
        self.path = path
        with naming(path, "a file of plain tensors", "use a .safetensors file"), open_file(path) as file:
            self._file = WatchedFile(path, poll)
            zipped = zipfile.is_zipfile(file)
            self._views, self._starts = _open_archive(file) if zipped else _open_older(file)
            size = file.seek(0, 2)
            for name, view in self._views.items():
                if self._starts[view.storage.key] + view.storage.nbytes > size:
                    raise ValueError(f"it ends before {plain(name)}")
        self.shapes: Shapes = {name: view.shape for name, view in self._views.items()}

    def dtype(self, name: str) -> torch.dtype:
        return self._views[name].storage.dtype

    def is_quantized(self, name: str) -> bool:
        return False

    def tensor(self, name: str, to: torch.dtype | None = None) -> Tensor:
        view = self._views[name]
        dtype = view.storage.dtype
        start = self._starts[view.storage.key] + view.first * dtype.itemsize
        if view.is_contiguous:
            return self._file.read(start, dtype, view.shape, to)
        return self._file.read(start, dtype, (view.span,), to).as_strided(view.shape, view.strides).contiguous()


Contents = tuple[dict[str, View], dict[str, int]]


def _open_archive(file: BufferedReader) -> Contents:
    """The tensors, and where each storage starts, of the zip archive that torch writes since version 1.6."""
    with zipfile.ZipFile(_Sparing(file)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        lists = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(lists) != 1 or len(entries) < len(archive.infolist()):
            raise ValueError(f"it has {len(lists)} lists of tensors, or two files of one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its files are compressed, which torch does not do")
        if entries[lists[0]].file_size > LIST_BYTES:
            raise ValueError(f"its list of tensors has more than {LIST_BYTES:,} bytes")
        views = _as_views(unpickled(BytesIO(archive.read(lists[0]))))
        folder = lists[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers begin with their highest byte")
    starts = {}
    for storage in {view.storage for view in views.values()}:
        entry = entries.get(f"{folder}data/{storage.key}")
        if entry is None or entry.file_size < storage.nbytes:
            has = entry.file_size if entry else "no"
            raise ValueError(f"storage {plain(storage.key)} has {has} bytes, expected {storage.nbytes}")
        file.seek(entry.header_offset + 26)
        # The entry's name and padding, whose lengths the directory does not have.
        name, padding = file.read(2), file.read(2)
        starts[storage.key] = file.tell() + int.from_bytes(name, "little") + int.from_bytes(padding, "little")
    return views, starts


def _open_older(file: BufferedReader) -> Contents:
    """The same of the older format: five pickles, then each storage behind the count of its numbers."""
    file.seek(0)
    head = BytesIO(file.read(LIST_BYTES))
    if unpickled(head) != MAGIC or unpickled(head) != PROTOCOL:
        raise ValueError("it is no file of torch")
    unpickled(head)
    views, keys = _as_views(unpickled(head)), unpickled(head)
    storages = {view.storage.key: view.storage for view in views.values()}
    starts, end = {}, head.tell()
    for key in keys:
        starts[key] = end + 8
        end = starts[key] + storages[key].nbytes
    return views, starts


class _Sparing:
    """A file for a library that would read a directory of any size as a whole."""

    def __init__(self, file: BufferedReader):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(LIST_BYTES + 1 if size < 0 else min(size, LIST_BYTES + 1))
        if len(data) > LIST_BYTES:
            raise ValueError(f"its directory has more than {LIST_BYTES:,} bytes")
        return data


def _as_views(value: Any) -> dict[str, View]:
    if not isinstance(value, dict) or not all(isinstance(view, View) for view in value.values()):
        raise ValueError("it holds something else than named tensors")
    storages: dict[str, PickledStorage] = {}
    for view in value.values():
        if storages.setdefault(view.storage.key, view.storage) != view.storage:
            raise ValueError(f"storage {plain(view.storage.key)} is there in two forms")
    return value


def unpickled(stream: BytesIO) -> Any:
    """The next pickle of a stream: numbers, texts, lists, tuples, dicts with texts as keys, and :class:`View`.

    Raises ValueError where it has an instruction, function or class that no list of tensors needs, or something out of
    place.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    argument: Any
    for number, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if number == INSTRUCTIONS:
            raise ValueError(f"its list of tensors has more than {INSTRUCTIONS:,} instructions")
        match instruction.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "GLOBAL":
                stack.append(_allowed(argument))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[instruction.name])
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                marks.append(len(stack) - int(instruction.name[-1]))
                stack.append(tuple(above_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = above_mark()
                stack[-1].extend(items)
            case "SETITEM":
                marks.append(len(stack) - 2)
                _set_items(above_mark(), stack)
            case "SETITEMS":
                _set_items(above_mark(), stack)
            case "BINPERSID":
                stack.append(_as_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_called(function, arguments))
            case "BUILD":
                # What a state dict carries besides its tensors.
                stack.pop()
            case name:
                raise ValueError(f"it holds something else than named tensors: the instruction {name}")
    raise ValueError("its list of tensors has no end")


def _allowed(name: str) -> Global:
    if name not in STORAGE_DTYPES and name not in (DICT, TENSOR, PARAMETER):
        raise ValueError(f"it holds something else than named tensors: {plain(name.replace(' ', '.'), 80)}")
    return Global(name)


def _set_items(items: Sequence[Any], stack: list[Any]) -> None:
    """Put keys and values in turn into the dict on top of the stack."""
    # The hash of a tuple of tuples can take for ever, or end the process.
    if not all(type(key) is str for key in items[::2]) or not isinstance(stack[-1], dict):
        raise ValueError("it holds something else than named tensors")
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _as_storage(value: Any) -> PickledStorage:
    # The older format has one value more, of a storage that is part of another; none has had one for long.
    kind, dtype, key, _, count = value[:5]
    known = kind == "storage" and type(key) is str and isinstance(dtype, Global) and dtype in STORAGE_DTYPES
    if not known or not _is_size(count) or any(item is not None for item in value[5:]):
        raise ValueError("it holds something else than named tensors")
    return PickledStorage(key, STORAGE_DTYPES[dtype], count)


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or type(arguments) is not tuple:
        raise ValueError("it holds something else than named tensors")
    if function == DICT and not arguments:
        return {}
    if function == PARAMETER and isinstance(arguments[0], View):
        return arguments[0]
    if function != TENSOR:
        raise ValueError("it holds something else than named tensors")
    storage, first, shape, strides = arguments[:4]
    placed = (
        isinstance(storage, PickledStorage)
        and type(shape) is type(strides) is tuple
        and len(shape) == len(strides) <= 64
    )
    if not placed or not all(map(_is_size, (first, *shape, *strides))):
        raise ValueError("it has a tensor whose place is no place")
    view = View(storage, first, shape, strides)
    # A hostile file claims a size and stores one value.
    if first + view.span > storage.count or math.prod(shape) > storage.count:
        raise ValueError(f"it claims a tensor of {plain(list(shape))} and stores {storage.count} numbers")
    return view


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
