#!/usr/bin/env python3
"""What fits on which graphics card, computed from sizes: ``python -m benchmarks.cards`` (measures nothing; writes docs/speed.md).

A part takes the bytes of its weights at the published size, and while it computes 10 s of sound what docs/bench_gpu.json measured
besides. CUDA and its libraries are what docs/bench_comfyui.json's library row has beyond that. A screen gets 1 GB.
"""

import json
import sys
from functools import lru_cache

from torch import nn

from benchmarks.report import PAGE
from dasheng_core.repack import FP8_MATRIX
from dasheng_core.weights.quantized import BLOCK, BLOCK_BYTES
from tools import random_checkpoint
from tools.comfyui import ROOT
from tools.pages import between, table

MARKS = "<!-- cards: python -m benchmarks.cards -->", "<!-- end of cards -->"
CARDS, SCREEN = (24, 12, 8, 6), 1e9
# Form of the network -> bytes per number of text encoder, adapter and decoder.
FORMS = {"fp32": 4, "bf16": 2, "fp8": 2, "Q8_0": 2, "Q4_0": 2}


def main() -> int:
    PAGE.write_text(with_cards(PAGE.read_text("utf-8")), "utf-8")
    return 0


@lru_cache
def parts() -> list[nn.Module]:
    """The network and the others, without data."""
    configs = random_checkpoint.make_configs(random_checkpoint.FULL, False)
    makers = ("make_backbone", "make_text_encoder", "make_adapter", "make_decoder")
    return [getattr(random_checkpoint, name)(configs) for name in makers]


def network_bytes(form: str) -> float:
    """Of the weights: matrices of the blocks (of GGUF all) as the form has them, the rest in bf16."""
    total = 0.0
    for name, weight in parts()[0].named_parameters():
        if form in BLOCK_BYTES and weight.dim() == 2:
            total += weight.numel() * BLOCK_BYTES[form] / BLOCK
        elif form == "fp8" and weight.dim() == 2 and FP8_MATRIX.match(f"backbone.{name}"):
            total += weight.numel() + 4 * len(weight)
        else:
            total += weight.numel() * (4 if form == "fp32" else 2)
    return total


def needs(form: str) -> tuple[float, float]:
    """Bytes on the card: all parts at once, as the library holds them; and the network alone, as ComfyUI may."""
    besides = json.loads((ROOT / "docs/bench_gpu.json").read_text("utf-8"))["memory"]["besides_weights_at_peak"]
    network = network_bytes(form) + besides * (2 if form == "fp32" else 1)
    others = sum(weight.numel() for part in parts()[1:] for weight in part.parameters())
    return network + others * FORMS[form], network


def with_cards(page: str) -> str:
    """The page's text with the table."""
    rows = json.loads((ROOT / "docs/bench_comfyui.json").read_text("utf-8"))["rows"]
    cuda = next(row["peak"] for row in rows if row["name"] == "library, bf16") - needs("bf16")[0]
    lines = [["network", "weights", "all parts at once", "network alone", *(f"{card} GB" for card in CARDS)]]
    for form in FORMS:
        whole, alone = (need + cuda for need in needs(form))
        fits = []
        for card in CARDS:
            room = card * 2**30 - SCREEN
            fits.append("all" if whole <= room else "in turn" if alone <= room else "in part")
        lines.append([form, *(f"{size / 1e9:.1f} GB" for size in (network_bytes(form), whole, alone)), *fits])
    return between(page, MARKS, table(lines))


if __name__ == "__main__":
    sys.exit(main())
