"""What ComfyUI's memory manager does to graphs; run by test_optimize.py in a process of its own, with a model's file.

Prints how many graphs are kept: before, when the model is asked for again, and when its memory is taken back.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = sys.argv[1]

sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import torch  # noqa: E402
from comfy import model_management  # noqa: E402

import nodes  # noqa: E402


def main() -> None:
    if not asyncio.run(nodes.load_custom_node(str(ROOT))):
        sys.exit("ComfyUI did not load the pack.")
    adapter = sys.modules[nodes.NODE_CLASS_MAPPINGS["DashengModelLoader"].__module__].comfy_adapter
    optimize = nodes.NODE_CLASS_MAPPINGS["DashengOptimize"]
    (model,) = optimize.EXECUTE_NORMALIZED(model=adapter.load_model(FILE, torch.float32), mode="graph").result
    graphs = model.model_options["transformer_options"][optimizer_key(optimize)]._graphs
    graphs["a key"] = "a graph"
    kept = [len(graphs)]
    for ask in (model_management.load_models_gpu, model_management.load_models_gpu):
        ask([model])
        kept.append(len(graphs))
    model_management.unload_all_models()
    sys.stdout.write(json.dumps([*kept, len(graphs)]) + "\n")


def optimizer_key(optimize) -> str:
    return sys.modules[optimize.__module__].OPTIMIZER


if __name__ == "__main__":
    main()
