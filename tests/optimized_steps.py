"""Dasheng Optimize's mode graph in a real ComfyUI, with a stand-in for CUDA's graphs that runs the captured call again.

Run by test_step_graph.py in a process of its own: ``optimized_steps.py MODEL QUANTISED`` prints a line of JSON for each way to
sample: whether it is the plain model's latent to the last bit, and how often a step was recorded and replayed.
"""

import json
import sys
from collections import Counter
from types import SimpleNamespace

MODEL, QUANTISED = sys.argv[1:]
STEPS, FRAMES = 6, 20

import torch  # noqa: E402

from tools.comfyui_here import load_pack, module_of  # noqa: E402


def main() -> None:
    import comfy.context_windows as windows
    import comfy.hooks
    import comfy.model_management as management
    import comfy.sample
    import comfy.samplers
    import comfy.sd

    pack = load_pack()
    loader, node = module_of(pack["DashengModelLoader"]), pack["DashengOptimize"]
    held = sys.modules[module_of(node).ask_for_graphs.__module__]
    sway = module_of(pack["DashengSwaySigmas"]).make_sigmas
    counts, stopped = Counter(), []

    class StandIn(held.step_graph.CudaGraph):
        refusal = staticmethod(lambda device: "")

        def warm(self, run):
            return run()

        def record(self, run):
            run()
            counts["recorded"] += 1
            self.graph = SimpleNamespace(replay=run)

        def replay(self, given):
            counts["replayed"] += 1
            return super().replay(given)

    graphs = held.step_graph.GRAPHS
    graphs.make = StandIn
    generator = torch.Generator().manual_seed(3)
    model = loader.load_model_patcher(MODEL, torch.float32)
    network = model.model.diffusion_model
    text = lambda: [[torch.randn(1, 7, network.config.context_dim, generator=generator), {}]]  # noqa: E731
    cat, storm = text(), text()
    rows, columns = network.mid_block.attn.to_q.weight.shape
    lora = {
        "diffusion_model.mid_block.attn.to_q.lora_up.weight": torch.randn(rows, 4, generator=generator),
        "diffusion_model.mid_block.attn.to_q.lora_down.weight": torch.randn(4, columns, generator=generator) * 0.1,
    }

    @torch.inference_mode()
    def sample(source, positive, seed, callback=None):
        silence = [[torch.zeros_like(cat[0][0]), {}]]
        noise = torch.randn(1, network.config.latent_dim, FRAMES, generator=torch.Generator().manual_seed(seed))
        return comfy.sample.sample_custom(
            source, noise, 3.0, comfy.samplers.sampler_object("euler"), sway(STEPS, -1.0), positive, silence,
            torch.zeros_like(noise), callback=callback, disable_pbar=True, seed=seed,
        )  # fmt: skip

    ways = {}

    def way(name, source, positive=cat, seed=1):
        ways[name] = source, positive, seed, sample(source, positive, seed)

    def run(name):
        source, positive, seed, expected = ways[name]
        counts.clear()
        found = sample(node.execute(source, "graph").result[0], positive, seed)
        said = {"way": name, "equal": torch.equal(found, expected), "off": graphs.off, **counts}
        sys.stdout.write(json.dumps(said) + "\n")

    hooks = comfy.hooks.create_hook_lora(lora, 0.5, 0)
    cut, several = model.clone(), model.clone()
    cut.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=12, context_overlap=4, dim=2,
    )  # fmt: skip
    windows.create_prepare_sampling_wrapper(cut)
    several.add_wrapper_with_key("outer_sample", "several", as_on_several_gpus)
    quantised = loader.load_model_patcher(QUANTISED, torch.float32)
    way("first", model)
    way("another prompt", model, storm, 2)
    way("lora", comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0)[0])
    way("lora taken off", model, storm, 4)
    way("after an interrupt", model, storm, 3)
    way("hooks on one branch", model, comfy.hooks.set_hooks_for_conditioning(cat, hooks))
    way("windows", cut)
    way("several GPUs", several)
    way("quantised", quantised)
    way("quantised, lora", comfy.sd.load_lora_for_models(quantised, None, lora, 0.5, 0)[0])
    assert not graphs.kept and not counts
    for name in [*ways][:4]:
        run(name)

    def stop(step, *_):
        stopped.append(step)
        management.interrupt_current_processing()

    counts.clear()
    try:
        sample(node.execute(model, "graph").result[0], cat, 1, stop)
    except management.InterruptProcessingException:
        found = {"way": "interrupted", "steps": len(stopped), "replayed": counts["replayed"]}
        sys.stdout.write(json.dumps(found) + "\n")
    for name in [*ways][4:]:
        run(name)
    management.unload_all_models()
    sys.stdout.write(json.dumps({"way": "unloaded", "kept": len(graphs.kept)}) + "\n")


def as_on_several_gpus(executor, *args, **kwargs):
    patcher = executor.class_obj.model_patcher
    executor.class_obj.model_options["multigpu_clones"] = {patcher.load_device: patcher}
    return executor(*args, **kwargs)


if __name__ == "__main__":
    main()
