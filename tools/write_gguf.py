#!/usr/bin/env python3
"""Write a checkpoint in the layout of the published GGUF files: ``python -m tools.write_gguf CHECKPOINT OUT.gguf``.

CHECKPOINT is an audio generator or an audio tokenizer (of which the decoder is written), in any form that loads here;
tools/random_checkpoint.py writes random ones. Matrices are quantised by the gguf package's own code, so that tests can
compare ours with it.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from dasheng_core.weights.checkpoint import Checkpoint, open_checkpoint
from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES
from dasheng_core.weights.published import GGUF_CONFIG

log = logging.getLogger("write_gguf")
KINDS = ("F16", "Q8_0", "Q4_0")
# What the published files carry of the two checkpoints.
AUDIOGEN_NAMES = (
    "backbone.",
    "content_adapter.",
    "content_encoder.text_encoder.proj.",
    "dummy_nta_embed",
    "dummy_ta_embed",
    "instruction_embedding",
)
VOCODER_NAMES = ("decoder.", "upsampler.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--type", choices=KINDS, default="F16", help="of the backbone's matrices (default %(default)s)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_gguf(open_checkpoint(args.checkpoint, AUDIOGEN_TYPES + AUDIO_TOKENIZER_TYPES), args.out, args.type)
    except OSError as error:
        log.error("%s", error)
        return 1
    return 0


def write_gguf(checkpoint: Checkpoint, out: Path, kind: str) -> None:
    """Write ``out``, whole or not at all, one tensor at a time.

    Raises:
        FileExistsError: ``out`` exists.
        OSError: no room, or no right to write.
    """
    if out.exists():
        raise FileExistsError(f"{out} already there: choose another name, or move the old file away.")
    names = checkpoint.under(*(VOCODER_NAMES if "upsampler.weight" in checkpoint.shapes else AUDIOGEN_NAMES))
    kinds = {name: kind_of(name, checkpoint.shapes[name], kind) for name in names}
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as temporary:
        whole = Path(temporary) / out.name
        writer = gguf.GGUFWriter(whole, "dasheng_audiogen")
        for key, value in (checkpoint.config or {}).items():
            # The format has no objects, and the package writes no empty arrays and takes a bool for an int.
            if isinstance(value, (bool, int, float, str, list)) and value not in ("", []):
                is_bool = isinstance(value, bool)
                kind_of_value = gguf.GGUFValueType.BOOL if is_bool else gguf.GGUFValueType.get_type(value)
                writer.add_key_value(GGUF_CONFIG + key, value, kind_of_value)
        for name in names:
            shape, stored = checkpoint.shapes[name], kinds[name]
            dtype = {"F32": np.float32, "F16": np.float16}.get(stored.name, np.uint8)
            stored_shape = shape if dtype != np.uint8 else gguf.quant_shape_to_byte_shape(shape, stored)
            size = int(np.prod(stored_shape)) * np.dtype(dtype).itemsize
            writer.add_tensor_info(name, stored_shape, np.dtype(dtype), size, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            values = checkpoint.tensor(name).to(torch.float32).contiguous().numpy()
            writer.write_tensor_data(gguf.quantize(values, kinds[name]))
        writer.close()
        whole.rename(out)
    log.info("%s: %d tensors", out, len(names))


def kind_of(name: str, shape: tuple[int, ...], kind: str) -> gguf.GGMLQuantizationType:
    """Norms and biases are float32; of the rest, what cannot be quantised, or is not the backbone's, float16."""
    if len(shape) == 1:
        kind = "F32"
    elif not (name.startswith("backbone.") and len(shape) == 2 and shape[-1] % 32 == 0):
        kind = "F16"
    return gguf.GGMLQuantizationType[kind]


if __name__ == "__main__":
    sys.exit(main())
