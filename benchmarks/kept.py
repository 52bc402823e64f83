#!/usr/bin/env python3
"""How exactly kept frames come back under each of ComfyUI's samplers: ``python -m benchmarks.kept --page docs/direction.md``.

COMFYUI_PATH says where ComfyUI is. The mini model makes 2 s of rain, *Dasheng Mask Time* marks all after 1 s, KSampler samples that
again in ten steps with the scheduler *simple*. The number is the largest difference of a kept frame; values of a latent lie
within about 4 of 0. A ComfyUI that has ``--fp16-intermediates`` does it again with them. The page gets the table between its
two MARKS.
"""

import argparse
import math
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from safetensors.torch import load_file

from tools.comfyui import SMALL_NAME, Problem, Server, node, text_to_sound
from tools.pages import between, table

MARKS = "<!-- figures: python -m benchmarks.kept -->", "<!-- end of figures: kept -->"
PROMPT = "<|caption|> The sound of rainfall for two seconds. <|env|> Rain on the roof outdoors."
KEPT = 25
HALF = "--fp16-intermediates"
BOUNDS = (0.0, 1e-6, 1e-3, 1e-2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, metavar="PAGE", help="write the table into this page")
    args = parser.parse_args()
    comfyui = Path(os.environ["COMFYUI_PATH"])
    has_half = HALF in (comfyui / "comfy" / "cli_args.py").read_text("utf-8")
    found = defaultdict(list)
    for flags in ((), (HALF,))[: 1 + has_half]:
        with tempfile.TemporaryDirectory() as base, Server(comfyui, Path(sys.executable), Path(base), flags) as server:
            for sampler in server.choices("KSampler", "sampler_name"):
                found[sampler].append(bound(server, sampler))
                print(f"{sampler:28} {' '.join(flags):22} {found[sampler][-1]:g}", flush=True)
            version = server.get("/system_stats")["system"]["comfyui_version"]
    groups = defaultdict(list)
    for sampler, values in found.items():
        groups[tuple(values)].append(sampler)
    head = ["kept frames differ by at most", f"with {HALF}"][: 1 + has_half]
    lines = [[*head, f"samplers of ComfyUI {version}"]]
    lines += [[*(f"{value:g}" for value in values), ", ".join(names)] for values, names in sorted(groups.items())]
    print(table(lines))
    if args.page:
        args.page.write_text(between(args.page.read_text("utf-8"), MARKS, table(lines)), "utf-8")
    return 0


def bound(server: Server, sampler: str) -> float:
    """The smallest of BOUNDS that holds for a sampler, or how far it is off; infinity where it raises."""
    try:
        start, made = latents(server, sampler)
    except Problem as problem:
        print(problem)
        return math.inf
    off = (made - start)[..., :KEPT].abs().max().item()
    return next((bound for bound in BOUNDS if off <= bound), round(off, 2))


def latents(server: Server, sampler: str) -> list:
    core = dict(seed=1, steps=10, cfg=5.0, sampler_name=sampler, scheduler="simple", denoise=1.0)
    marks = dict(start=KEPT / 25, end=0.0, feather=0.0, add=False)
    nodes = text_to_sound(SMALL_NAME, PROMPT, 2.0, steps=10)
    nodes["model"]["inputs"]["dtype"] = "fp32"
    del nodes["vae"], nodes["decode"]
    nodes["none"] = node("ConditioningZeroOut", conditioning=["text", 0])
    nodes["marked"] = node("DashengMaskTime", latent=["sample", 0], **marks)
    given = dict(positive=["text", 0], negative=["none", 0], latent_image=["marked", 0])
    nodes["made"] = node("KSampler", model=["model", 0], **given, **core)
    for name in ("sample", "made"):
        nodes[f"{name}, saved"] = node("SaveLatent", samples=[name, 0], filename_prefix=name)
    outputs = server.run(nodes)
    saved = [outputs[f"{name}, saved"]["latents"][0]["filename"] for name in ("sample", "made")]
    return [load_file(server.output / name)["latent_tensor"] for name in saved]


if __name__ == "__main__":
    sys.exit(main())
