"""GGUF files: a directory of named values and tensors, read here, and tensors, read when they are needed.

The ``gguf`` package would map the file, and takes 0.3 ms for a key and for each number of an array: minutes for a
hostile file of some MB.
"""

import math
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..opening import open_file
from ..quoting import plain
from .quantized import BLOCK, BLOCK_BYTES, QuantizedWeight
from .reading import CheckpointError, Poll, Shapes, WatchedFile, naming

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Numbers of the format -> names of tensor types; those beyond Q4_0, Q8_0 and the plain ones are named in errors only.
TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K"},
    **{13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"},
}
# Numbers of the format -> how struct reads a value; 8 is a text, 9 an array.
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_TEXT, ARRAY = 8, 9
# Of keys, of tensors, and of texts in all arrays together; vocabularies of 250,000 are published.
COUNT, MOST_TEXTS = 2**16, 2**20
TEXT_BYTES = 2**20


class GgufFile:
    """Tensors by name: plain ones, and Q8_0 and Q4_0 ones as :class:`QuantizedWeight`.

    Raises CheckpointError for what is no readable GGUF file, or one with tensors of other types.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, config_prefix: str, poll: Poll):
        """``config_prefix``: in front of the keys of a config among the file's metadata."""
        self.path = path
        with naming(path, "a readable GGUF file"), open_file(path) as file:
            self._file = WatchedFile(path, poll)
            directory = _Directory(file, config_prefix)
            size = file.seek(0, 2)
        self.config = directory.config or None
        self.shapes: Shapes = {name: shape for name, (shape, _, _) in directory.tensors.items()}
        self._places: dict[str, tuple[str, int]] = {}
        for name, (shape, number, offset) in directory.tensors.items():
            kind = TYPES.get(number, f"type {number}")
            is_blocks = kind in BLOCK_BYTES and len(shape) == 2 and shape[1] % BLOCK == 0
            if kind not in PLAIN and not is_blocks:
                raise CheckpointError(
                    f"{plain(path)}: tensor {plain(name)} is {kind} of shape {list(shape)}; {', '.join(PLAIN)}, and "
                    f"matrices in {' and '.join(BLOCK_BYTES)}, are read here: use a file of one of these types."
                )
            count = math.prod(shape)
            nbytes = count // BLOCK * BLOCK_BYTES[kind] if is_blocks else count * PLAIN[kind].itemsize
            if directory.end + offset + nbytes > size:
                raise CheckpointError(
                    f"{plain(path)} is not a readable GGUF file (it ends before {plain(name)}): fetch it again."
                )
            self._places[name] = (kind, directory.end + offset)

    def dtype(self, name: str) -> torch.dtype:
        return PLAIN.get(self._places[name][0], torch.uint8)

    def is_quantized(self, name: str) -> bool:
        return self.dtype(name) == torch.uint8

    def tensor(self, name: str, to: torch.dtype | None = None) -> Tensor | QuantizedWeight:
        shape = self.shapes[name]
        kind, start = self._places[name]
        if kind in PLAIN:
            return self._file.read(start, PLAIN[kind], shape, to)
        blocks = (shape[0], shape[1] // BLOCK * BLOCK_BYTES[kind])
        return QuantizedWeight(kind, self._file.read(start, torch.uint8, blocks))


class _Directory:
    """The directory before the tensors: the config, and shape, number of the type and offset of each tensor.

    Raises ValueError where it has another form, ends too early, or is larger than that of any model.
    """

    def __init__(self, file: BufferedReader, config_prefix: str):
        self._file, self._texts = file, 0
        magic, version, tensors, keys = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("it does not begin as a GGUF file of version 2 or 3")
        if max(tensors, keys) > COUNT:
            raise ValueError(f"it has {max(tensors, keys):,} keys or tensors, expected at most {COUNT:,}")
        self.config: dict[str, Any] = {}
        alignment = 32
        for _ in range(keys):
            name = self._text()
            (kind,) = self._unpack("I")
            wanted = name.startswith(config_prefix) or name == "general.alignment"
            value: Any = self._array(wanted) if kind == ARRAY else self._value(kind)
            if name == "general.alignment":
                alignment = value
            elif wanted:
                self.config[name.removeprefix(config_prefix)] = value
        self.tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = self._text()
            (rank,) = self._unpack("I")
            if rank > 8 or name in self.tensors:
                raise ValueError(f"tensor {plain(name)} has {rank} dimensions, or is there twice")
            # GGUF counts dimensions from the last.
            shape = tuple(reversed(self._unpack(f"{rank}Q")))
            self.tensors[name] = (shape, *self._unpack("IQ"))
        self.end = math.ceil(file.tell() / alignment) * alignment

    def _unpack(self, form: str) -> tuple[Any, ...]:
        form = "<" + form
        data = self._file.read(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise ValueError("it ends within its directory")
        return struct.unpack(form, data)

    def _text(self) -> str:
        (length,) = self._unpack("Q")
        if length > TEXT_BYTES:
            raise ValueError(f"a text in its directory has {length:,} bytes, expected at most {TEXT_BYTES:,}")
        return self._unpack(f"{length}s")[0].decode("utf-8")

    def _value(self, kind: int) -> Any:
        return self._text() if kind == GGUF_TEXT else self._unpack(VALUES[kind])[0]

    def _array(self, wanted: bool) -> list[Any] | None:
        """The values of an array; an array that is not used is skipped."""
        kind, count = self._unpack("IQ")
        if kind == GGUF_TEXT or wanted:
            self._texts += count
            if self._texts > MOST_TEXTS:
                raise ValueError(f"its arrays have more than {MOST_TEXTS:,} entries")
            values = [self._value(kind) for _ in range(count)]
            return values if wanted else None
        self._file.seek(count * struct.calcsize("<" + VALUES[kind]), 1)
        return None
