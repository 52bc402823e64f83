"""Ways to run the network in a real ComfyUI, each twice: with what a sampling call holds, and with nothing held.

Run by test_sampling_call.py in a process of its own: ``held_phases.py MODEL QUANTISED`` prints a line of JSON for each
way: how far the two latents are apart, the arithmetic of both, the norm of the latent, and how many graphs have been compiled
so far. A line has the launches of a guided step, the library's and those under ComfyUI. Lines with ``reads`` say how many
numbers were read from tensors, which on a GPU waits for it: at 4 and at 8 steps.
"""

import json
import sys
from contextlib import contextmanager
from functools import wraps
from inspect import signature

MODEL, QUANTISED = sys.argv[1:]
STEPS, FRAMES, GUIDANCE = 4, 20, 3.0
LORA_LAYERS = (
    "mid_block.adaln.time_ada",
    "in_blocks.0.cross_attn.to_k",
    "out_blocks.0.attn.to_v",
    "mid_block.mlp.net.2",
)

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from launches import launches_per_step  # noqa: E402
from tools.comfyui_here import load_pack, module_of  # noqa: E402


class Bench:
    def __init__(self, loader, make_sigmas):
        import comfy.ops
        import comfy.samplers
        import comfy.sd
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        self.comfy, self.loader, self.compile = comfy, loader, set_torch_compile_wrapper
        self.make_sigmas = make_sigmas
        self.model = loader.load_model_patcher(MODEL, torch.float32)
        self.network = self.model.model.diffusion_model
        self.generator = torch.Generator().manual_seed(3)
        self.cat, self.storm = self.text(7), self.text(11)

    def text(self, tokens: int) -> list:
        return [[torch.randn(1, tokens, self.network.config.context_dim, generator=self.generator), {}]]

    def lora(self) -> dict:
        lora = {}
        for layer in LORA_LAYERS:
            rows, columns = self.network.get_submodule(layer).weight.shape
            lora[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(rows, 4, generator=self.generator)
            lora[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(4, columns, generator=self.generator) * 0.1
        # A norm's weight, which the network may not use as it lies.
        lora["diffusion_model.mid_block.norm1.diff"] = torch.randn(
            self.network.config.embed_dim, generator=self.generator
        )
        return lora

    def with_lora(self, model):
        return self.comfy.sd.load_lora_for_models(model, None, self.lora(), 0.5, 0)[0]

    def by_guider(self, guider, steps: int, sampler="euler"):
        noise = torch.randn(1, self.network.config.latent_dim, FRAMES, generator=torch.Generator().manual_seed(1))
        sampler, sigmas = self.comfy.samplers.sampler_object(sampler), self.make_sigmas(steps, -1.0)
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)

    def sample(self, model, positive, steps=STEPS, sampler="euler", negative=None):
        silence = [[torch.zeros_like(self.cat[0][0]), {}]]
        guider = self.comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative or silence)
        guider.set_cfg(GUIDANCE)
        return self.by_guider(guider, steps, sampler)

    def way(self, name: str, model, positive=None, flops=True, plain=None, **options) -> None:
        """``plain``: the model that holds nothing, if it is another one."""
        found = {"way": name}
        held, found["flops"] = self.measured(flops, model, positive or self.cat, **options)
        with self.nothing_held():
            expected, found["whole"] = self.measured(flops, plain or model, positive or self.cat, **options)
        found["difference"] = ((held - expected).norm() / expected.norm()).item()
        found |= {"norm": held.norm().item(), "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}
        sys.stdout.write(json.dumps(found) + "\n")

    @torch.inference_mode()
    def measured(self, flops: bool, *args, **options):
        if not flops:
            return self.sample(*args, **options), None
        with FlopCounterMode(display=False) as counter:
            return self.sample(*args, **options), counter.get_total_flops()

    def where_conditions_lie(self) -> None:
        """Where ComfyUI is told to compute. Its own models move a text later, with no one to read it before."""
        inputs = {"cross_attn": self.cat[0][0], "noise": torch.zeros(1, self.network.config.latent_dim, FRAMES)}
        conds = self.model.model.extra_conds(device=torch.device("meta"), **inputs)
        devices = [conds[name].cond.device.type for name in ("c_crossattn", "time_aligned_context")]
        sys.stdout.write(json.dumps({"way": "devices", "devices": devices}) + "\n")

    def reads(self, name: str, sample) -> None:
        """``sample``: a sampling call of so many steps."""
        counts = []
        for steps in (4, 8):
            with torch.inference_mode(), Reads() as reads:
                sample(steps)
            counts.append(reads.count)
        sys.stdout.write(json.dumps({"way": f"reads: {name}", "reads": counts}) + "\n")

    def launches(self, sampling) -> None:
        """``sampling``: the library's module of that name."""
        text = sampling.Branches(sampling.Branch(self.cat[0][0]))
        noise = torch.randn(1, self.network.config.latent_dim, FRAMES)
        taken, norms = [], self.comfy.ops.disable_weight_init.LayerNorm
        forward, norms.forward = norms.forward, lambda norm, x: taken.append(norm) or forward(norm, x)
        try:
            found = {"launches": launches_per_step(lambda steps: self.sample(self.model, self.cat, steps))}
        finally:
            norms.forward = forward
        found["slow_norms"] = len(taken)
        found["library"] = launches_per_step(
            lambda steps: sampling.denoise(self.network, noise, text, sampling.SamplingOptions(steps, GUIDANCE))
        )
        sys.stdout.write(json.dumps({"way": "launches", **found}) + "\n")

    def attention(self) -> None:
        """A MODEL whose attention a node of another pack has chosen: how often that ran, and how far the latent is from PyTorch's."""
        model, masks = self.model.clone(), []

        def override(attention, queries, keys, values, heads, mask=None, **kwargs):
            masks.append(mask)
            return attention(queries, keys, values, heads, mask=mask, **kwargs)

        model.model_options["transformer_options"]["optimized_attention_override"] = override
        expected, made = self.sample(self.model, self.cat), self.sample(model, self.cat)
        found = {"calls": len(masks), "masks": sum(mask is not None for mask in masks)}
        found["difference"] = ((made - expected).norm() / expected.norm()).item()
        sys.stdout.write(json.dumps({"way": "attention", **found}) + "\n")

    def elsewhere(self) -> None:
        """A sampler that evaluates the model at other sigmas than it says: as of ComfyUI, and as of another pack."""

        def nearer(executor, x, sigma, *args, **kwargs):
            return executor(x, sigma * 0.9, *args, **kwargs)

        model, found = self.model.clone(), {"way": "elsewhere"}
        model.add_wrapper_with_key("predict_noise", "nearer", nearer)
        expected, made = self.sample(self.model, self.cat), self.sample(model, self.cat)
        found["foreign"] = ((made - expected).norm() / expected.norm()).item()
        nearer.__module__ = "comfy.samplers"
        try:
            self.sample(model, self.cat)
        except ValueError as error:
            found["error"] = str(error)
        sys.stdout.write(json.dumps(found) + "\n")

    def resident(self, node) -> None:
        """Whether this version can clone a MODEL without dynamic memory, and whether Dasheng Optimize asks for that."""
        model, found = self.loader.load_model_patcher(MODEL, torch.float32), {"way": "resident"}
        found["can"] = "disable_dynamic" in signature(model.clone).parameters

        class Asked(type(model)):
            @wraps(type(model).clone)
            def clone(self, **options):
                found[mode] = options.get("disable_dynamic", False)
                return super().clone(**options)

        model.__class__ = Asked
        for mode in ("off", "resident", "graph"):
            node.execute(model, mode)
        sys.stdout.write(json.dumps(found) + "\n")

    @contextmanager
    def nothing_held(self):
        kept, self.loader.held_arguments = self.loader.held_arguments, lambda *args: {}
        try:
            yield
        finally:
            self.loader.held_arguments = kept


class Reads(TorchDispatchMode):
    """How often a program looks at what is in a tensor: what it does next waits for that."""

    LOOKS = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.equal,
        torch.ops.aten.is_nonzero,
        torch.ops.aten.nonzero,
    )

    def __enter__(self):
        self.count, self.tolist = 0, torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return self.tolist(tensor)

        torch.Tensor.tolist = counted
        return super().__enter__()

    def __exit__(self, *error):
        torch.Tensor.tolist = self.tolist
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in self.LOOKS
        return function(*args, **(kwargs or {}))


def main() -> None:
    pack = load_pack()
    bench = Bench(
        module_of(module_of(pack["DashengModelLoader"]).load_model_patcher),
        module_of(pack["DashengSwaySigmas"]).make_sigmas,
    )
    model = bench.model
    bench.way("plain", model)
    bench.way("two prompts of unlike lengths", model, bench.cat, negative=bench.storm)
    bench.way("quantised", bench.loader.load_model_patcher(QUANTISED, torch.float32))
    patched = bench.with_lora(model)
    bench.way("lora", patched)
    bench.way("left off the GPU", small_memory(patched.clone()))
    bench.way("windows", in_windows(model))
    bench.where_conditions_lie()

    timeline = module_of(pack["DashengTimeline"])
    script = timeline.joined(timeline.joined(None, bench.cat, timeline.as_span(0)), bench.storm, timeline.as_span(0.4))
    looped = module_of(pack["DashengLoop"]).loop_model(model.clone())
    guider = module_of(pack["DashengGuider"])
    options = guider.SamplingOptions(guidance_scale=GUIDANCE, guidance_interval=(0.2, 0.8), apg=(0.0, 2.0, -0.5))

    def guided(steps):
        made = guider.SceneGuider(model.clone(), options)
        made.set_conds(bench.cat, bench.storm)
        bench.by_guider(made, steps)

    bench.reads("plain", lambda steps: bench.sample(model, bench.cat, steps))
    bench.reads("timeline", lambda steps: bench.sample(model, script, steps))
    bench.reads("loop", lambda steps: bench.sample(looped, script, steps))
    bench.reads("guider", guided)
    bench.reads("between the steps", lambda steps: bench.sample(model, bench.cat, steps, sampler="dpm_2"))

    sampling = sys.modules[module_of(pack["DashengSampler"]).as_seed.__module__]
    bench.launches(sampling)
    bench.attention()
    bench.elsewhere()

    def compiled(source):
        source = source.clone()
        # As newer versions of TorchCompileModel: no guard on what transformer_options hold.
        guards = {"guard_filter_fn": lambda entries: ["transformer_options" not in entry.name for entry in entries]}
        bench.compile(model=source, backend="eager", options=guards)
        return source

    once = compiled(model)
    bench.way("compiled", once, flops=False, plain=model)
    bench.way("compiled, another prompt", once, bench.storm, flops=False, plain=model)
    lora = bench.lora()
    both = [bench.comfy.sd.load_lora_for_models(source, None, lora, 0.5, 0)[0] for source in (once, model)]
    bench.way("compiled, lora", both[0], flops=False, plain=both[1])
    bench.way("compiled, as at first", once, flops=False, plain=model)
    bench.resident(pack["DashengOptimize"])


def in_windows(model):
    """Two windows of 12 frames, by ComfyUI's own context windows."""
    import comfy.context_windows as windows

    model = model.clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=12,
        context_overlap=4,
        dim=2,
    )
    windows.create_prepare_sampling_wrapper(model)
    return model


def small_memory(model):
    class Small(type(model)):
        def partially_load(self, device_to, extra_memory=0, *args, **kwargs):
            return super().partially_load(device_to, 0.3 * self.model_size() - self.loaded_size(), *args, **kwargs)

    model.__class__ = Small
    return model


if __name__ == "__main__":
    main()
