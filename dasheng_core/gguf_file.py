"""GGUF files, read by the ``gguf`` package as far as their directory goes; the tensors are mapped here."""

import math
from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .config import CheckpointError, Shapes
from .quantized import BLOCK, BLOCK_BYTES, QuantizedWeight

# In front of the keys of config.json among the file's metadata.
CONFIG_PREFIX = "dasheng_audiogen."
# The published files carry the first without the second: all of the instruction counts.
INSTRUCTION, INSTRUCTION_LENGTHS = "instruction_embedding", "instruction_lengths"
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufFile:
    """Tensors by name: plain ones memory-mapped, Q8_0 and Q4_0 ones as :class:`QuantizedWeight`, mapped too.

    Raises:
        ImportError: the gguf package is not installed.
        CheckpointError: not a readable GGUF file, or one with tensors of other types.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ImportError(f"{path} is a GGUF file; to read it: pip install gguf") from error
        self._path = path
        try:
            reader = GGUFReader(path)
        except (ValueError, LookupError, OSError) as error:
            raise CheckpointError(f"{path} is not a readable GGUF file ({error}): fetch it again.") from error
        self._places = {tensor.name: (tensor.tensor_type.name, int(tensor.data_offset)) for tensor in reader.tensors}
        # GGUF counts dimensions from the last.
        shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
        if INSTRUCTION in shapes:
            shapes.setdefault(INSTRUCTION_LENGTHS, (1,))
        self.shapes: Shapes = shapes
        strangers = {
            f"{name} is {kind}" for name, (kind, _) in self._places.items() if kind not in {*PLAIN, *BLOCK_BYTES}
        }
        if strangers:
            raise CheckpointError(
                f"{path}: tensor {min(strangers)}; {', '.join(PLAIN)}, {' and '.join(BLOCK_BYTES)} are read here: "
                "use a file of one of these types."
            )
        config = {
            name.removeprefix(CONFIG_PREFIX): _value(field)
            for name, field in reader.fields.items()
            if name.startswith(CONFIG_PREFIX)
        }
        self.config = config or None

    @cached_property
    def _bytes(self) -> Tensor:
        return torch.from_file(str(self._path), size=self._path.stat().st_size, dtype=torch.uint8)

    def tensor(self, name: str) -> Tensor | QuantizedWeight:
        if name == INSTRUCTION_LENGTHS and name not in self._places:
            return torch.tensor([self.shapes[INSTRUCTION][1]])
        kind, start = self._places[name]
        shape = self.shapes[name]
        if kind in PLAIN:
            stored = self._bytes[start : start + math.prod(shape) * PLAIN[kind].itemsize]
            return stored.view(PLAIN[kind]).view(shape)
        *rows, columns = shape
        row_bytes = columns // BLOCK * BLOCK_BYTES[kind]
        stored = self._bytes[start : start + math.prod(rows) * row_bytes]
        return QuantizedWeight(kind, stored.view(*rows, row_bytes))

    def reopened(self) -> "GgufFile":
        """The same file in another mapping; its directory, slow to read, is not read again."""
        other = copy(self)
        other.__dict__.pop("_bytes", None)
        return other


def _value(field):
    """A metadata field as Python has it; not :meth:`contents`, which older versions of the package lack."""
    kind, *inner = field.types
    values = [field.parts[i] for i in field.data]
    if (inner or [kind])[-1].name == "STRING":
        values = [bytes(value).decode("utf-8") for value in values]
    else:
        values = [value[0].item() for value in values]
    return values if kind.name == "ARRAY" else values[0]
