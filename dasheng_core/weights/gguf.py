"""GGUF files, their directory read by the ``gguf`` package, their tensors here."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..quoting import plain
from .quantized import BLOCK, BLOCK_BYTES, QuantizedWeight
from .reading import CheckpointError, Poll, Shapes, WatchedFile, naming

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class GgufFile:
    """Tensors by name: plain ones, and Q8_0 and Q4_0 ones as :class:`QuantizedWeight`.

    Raises:
        ImportError: the gguf package is not installed.
        CheckpointError: not a readable GGUF file, or one with tensors of other types.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, config_prefix: str, poll: Poll):
        """``config_prefix``: in front of the keys of a config among the file's metadata."""
        self.path = path
        self._file = WatchedFile(path, poll)
        with naming(path, "a readable GGUF file"):
            reader = _read_directory(path)
            self._places = {t.name: (t.tensor_type.name, int(t.data_offset)) for t in reader.tensors}
            # GGUF counts dimensions from the last.
            shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
            config = {
                name.removeprefix(config_prefix): _value(field)
                for name, field in reader.fields.items()
                if name.startswith(config_prefix)
            }
        self.config = config or None
        for name, (kind, _) in self._places.items():
            if kind not in PLAIN and (kind not in BLOCK_BYTES or len(shapes[name]) != 2):
                raise CheckpointError(
                    f"{plain(path)}: tensor {plain(name)} is {kind} of shape {list(shapes[name])}; {', '.join(PLAIN)}, and matrices in "
                    f"{' and '.join(BLOCK_BYTES)}, are read here: use a file of one of these types."
                )
        self.shapes: Shapes = shapes

    def dtype(self, name: str) -> torch.dtype:
        return PLAIN.get(self._places[name][0], torch.uint8)

    def is_quantized(self, name: str) -> bool:
        return self.dtype(name) == torch.uint8

    def tensor(self, name: str, part: int = 0, parts: int = 1) -> Tensor | QuantizedWeight:
        shape = self.shapes[name]
        kind, start = self._places[name]
        if kind in PLAIN:
            return self._file.read(start, PLAIN[kind], shape, part, parts)
        blocks = (shape[0], shape[1] // BLOCK * BLOCK_BYTES[kind])
        return QuantizedWeight(kind, self._file.read(start, torch.uint8, blocks))


def _read_directory(path: Path):
    """The package's reader, made to end where the file ends: a hostile count would keep it going for ever."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError(f"{plain(path)} is a GGUF file; to read it: pip install gguf") from error

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, *args, **kwargs):
            values = super()._get(offset, dtype, count, *args, **kwargs)
            if len(values) < count:
                raise ValueError("it ends within its directory")
            return values

    return Reader(path)


def _value(field):
    """A metadata field as Python has it; not :meth:`contents`, which older versions of the package lack."""
    kind, *inner = field.types
    values = [field.parts[i] for i in field.data]
    if (inner or [kind])[-1].name == "STRING":
        values = [bytes(value).decode("utf-8") for value in values]
    else:
        values = [value[0].item() for value in values]
    return values if kind.name == "ARRAY" else values[0]
