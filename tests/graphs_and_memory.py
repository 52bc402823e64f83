"""What ComfyUI's memory manager does to graphs; run by test_optimize.py in a process of its own, with a model's file.

Prints how many graphs are kept: before, when the model is asked for, when again, and when its memory is taken back.
"""

import json
import sys

FILE = sys.argv[1]

import torch  # noqa: E402

from comfyui_here import load_pack, module_of  # noqa: E402


def main() -> None:
    from comfy import model_management

    pack = load_pack()
    loader, optimize = pack["DashengModelLoader"], pack["DashengOptimize"]
    model = module_of(loader).comfy_adapter.load_model(FILE, torch.float32)
    (model,) = optimize.EXECUTE_NORMALIZED(model=model, mode="graph").result
    graphs = model.model_options["transformer_options"][module_of(optimize).OPTIMIZER]._graphs
    graphs["a key"] = "a graph"
    kept = [len(graphs)]
    for _ in range(2):
        model_management.load_models_gpu([model])
        kept.append(len(graphs))
    model_management.unload_all_models()
    sys.stdout.write(json.dumps([*kept, len(graphs)]) + "\n")


if __name__ == "__main__":
    main()
