"""Repack an audio generator's checkpoint: one file with what text-to-audio reads, laid out in the order of use.

Three contiguous sections, under the published names: the text side (read with the text encoder), what is needed to
prepare a sampling call (modulation tables, context keys and values), and the weights that every step reads. Left out
are derived constants, the predictor of local durations and the two dummies that text-to-audio never uses. The file is
ordinary safetensors; ``config.json`` travels in its metadata.
"""

import json
import logging
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .adapter import ContentAdapter, adapter_weights
from .backbone import Backbone, backbone_weights, check_audiogen
from .delivery.atomic import atomic_write
from .progress import progress_bar
from .quoting import plain
from .tensors import DTYPES
from .weights import published
from .weights.checkpoint import STORED_DTYPES, Checkpoint, open_checkpoint
from .weights.config import AUDIOGEN_TYPES, AdapterConfig
from .weights.loading import check_weights
from .weights.quantized import SCALE_SUFFIX, quantize_fp8

log = logging.getLogger(__name__)

# In a safetensors header.
REPACKED_KEY = "repacked"
CODES = {dtype: code for code, dtype in STORED_DTYPES.items()}
LEFT_OUT = published.prefixes(published.AUDIOGEN, None)
PREPARATION = re.compile(
    r"dummy_ta_embed|backbone\.(time_embed|time_ada_final|context_embed)\.|"
    r"backbone\..*\.(adaln|ta_context_norm|ta_context_projection|norm_context|cross_attn\.(to_k|to_v|norm_k))\."
)
# A block's matrices are 99 % of the weights. Patches, time, context and the final layers are few and touch everything.
FP8_MATRIX = re.compile(r"backbone\.(in_blocks\.\d+|mid_block|out_blocks\.\d+)\..*\.weight$")


@dataclass(frozen=True)
class RepackedTensor:
    """One tensor of the new file; ``source`` names the tensor that it is made of."""

    name: str
    source: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def repack_checkpoint(source: Path, out: Path, dtype: str = "bf16") -> None:
    """Write the repacked form of the audio generator at ``source`` as the new file ``out``, by an atomic write.

    Args:
        dtype: of the backbone. ``bf16`` or ``fp32``; ``fp8``: float8_e4m3fn with a scale per row for the matrices of
            the blocks, bfloat16 for the rest. The text side keeps what it has: it is small, and the clip's length
            depends on its last digits.

    Raises:
        CheckpointError: not an audio generator with everything text-to-audio needs, or one repacked or quantised already.
        FileExistsError: there is a file of that name.
        ValueError: ``out`` is not named .safetensors.
        OSError: no room, or no right to write.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{plain(out)}: a repacked checkpoint is a .safetensors file; give it a name that ends so.")
    checkpoint = open_checkpoint(source, AUDIOGEN_TYPES)
    check_source(checkpoint)
    tokenizer = checkpoint.beside("tokenizer.json", in_shared_folder=False)
    files = [out] if tokenizer is None else [out, out.with_name(f"{out.stem}.tokenizer.json")]
    for file in files:
        if file.exists():
            raise FileExistsError(f"{plain(file)} is there already: choose another name, or move it away.")

    entries = plan_tensors(checkpoint, dtype)
    # A lone file of the published model has no config, and does not name its text encoder; nor does its repacked form.
    config = {**(checkpoint.config or {}), "model_type": AUDIOGEN_TYPES[0]}
    metadata = {"format": "pt", "config": json.dumps(config), REPACKED_KEY: dtype}
    if tokenizer is not None:
        atomic_write(files[1], lambda temporary: shutil.copyfile(tokenizer, temporary))
    try:
        atomic_write(out, lambda temporary: write_entries(temporary, checkpoint, entries, metadata))
    except BaseException:
        if tokenizer is not None:
            files[1].unlink()
        raise
    size = sum(entry.nbytes for entry in entries)
    log.info("%s: %d tensors, %.2f GB (%s)", out, len(entries), size / 1e9, dtype)
    if tokenizer is not None:
        log.info("%s: its own tokenizer; it belongs beside it", files[1])


def check_source(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless there is a whole, plain audio generator to repack."""
    if form := checkpoint.metadata.get(REPACKED_KEY):
        raise checkpoint.error(f"it is repacked already ({plain(form)}): repack the published one.")
    backbone = Backbone(check_audiogen(checkpoint), device="meta")
    check_weights(backbone, backbone_weights(checkpoint), checkpoint)
    adapter = ContentAdapter(AdapterConfig.from_checkpoint(checkpoint), device="meta")
    check_weights(adapter, adapter_weights(checkpoint), checkpoint)
    quantized = [name for name in checkpoint.shapes if checkpoint.tensor(name).is_quantized]
    if quantized:
        raise checkpoint.error(f"it is quantised ({plain(quantized[0])}, ...): repack the published one.")


def section_of(name: str) -> int:
    """0 for the text side, 1 for what prepares a sampling call, 2 for what every step reads."""
    if PREPARATION.match(name):
        return 1
    return 2 if name.startswith(published.BACKBONE) else 0


def plan_tensors(checkpoint: Checkpoint, dtype: str) -> list[RepackedTensor]:
    """What to write, in the order of the file."""
    entries = []
    for name in checkpoint.under(""):
        if name.startswith(LEFT_OUT):
            continue
        shape, stored = checkpoint.shapes[name], checkpoint.tensor(name).dtype
        if section_of(name) == 0:
            entries.append(RepackedTensor(name, name, stored, shape))
        elif dtype == "fp8" and len(shape) == 2 and FP8_MATRIX.match(name):
            entries.append(RepackedTensor(name + SCALE_SUFFIX, name, torch.float32, shape[:1]))
            entries.append(RepackedTensor(name, name, torch.float8_e4m3fn, shape))
        else:
            entries.append(RepackedTensor(name, name, DTYPES["bf16" if dtype == "fp8" else dtype], shape))
    # Large dtypes first in each section: the format knows no gaps, and a tensor must start at a multiple of its dtype.
    return sorted(entries, key=lambda entry: (section_of(entry.source), -entry.dtype.itemsize))


def write_entries(path: Path, checkpoint: Checkpoint, entries: list[RepackedTensor], metadata: dict[str, str]) -> None:
    """The safetensors format: a header's length in 8 bytes, the header in JSON, the tensors in any order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    starts, end = {}, 0
    for entry in entries:
        starts[entry.name] = end
        end += entry.nbytes
        offsets = [starts[entry.name], end]
        header[entry.name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "xb") as file, progress_bar(path.name, end) as update:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries:
            # A scale is written with its matrix, so that the matrix is read once.
            if entry.name != entry.source:
                continue
            for name, tensor in converted(checkpoint, entry).items():
                file.seek(8 + len(encoded) + starts[name])
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                update(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())


def converted(checkpoint: Checkpoint, entry: RepackedTensor) -> dict[str, Any]:
    """The tensor of ``entry`` (and its scale) by name."""
    stored = checkpoint.tensor(entry.source)
    if entry.dtype != torch.float8_e4m3fn:
        return {entry.name: stored.to(entry.dtype)}
    quantized = quantize_fp8(stored.to(torch.float32))
    return {entry.name: quantized.values, entry.name + SCALE_SUFFIX: quantized.scale}
