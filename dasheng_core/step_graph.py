"""A step of the network as a CUDA graph: one launch in place of a thousand. Off unless it is asked for.

A graph repeats the kernels of one step on the addresses that they had. So it has inputs and an output of its own, and a step of
another shape, or whose weights are elsewhere, is another graph. With like arguments the first step is plain and watched: where
memory is cudaMallocAsync's, a capture that fails can end the process. The second is captured, and compared with the plain one to
the last bit, then again with each input another: a stale one shows only there. Later ones are replayed.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import backbone as network
from .backbone import Attend, Backbone, Rotary
from .condition import Condition
from .quoting import plain as quoted
from .weights import quantized

log = logging.getLogger(__name__)
# Graphs at a time; before one more, all go.
MOST_GRAPHS = 4
# Where layers are defined of which it is known what they do.
KNOWN = ("torch.nn.modules.", network.__name__, quantized.__name__)
# Operations whose result the host must know.
WAITS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
Step = Callable[[Sequence[Tensor]], Tensor]


class CudaGraph:
    """PyTorch's graph with its buffers, or why there is none. All that uses them is on the device's default stream, in the order of the calls."""

    # One for each device. Its cuBLAS workspace is made by warm calls, so that it belongs to no graph.
    streams: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}

    def __init__(self, device: torch.device, refused: str):
        self.device, self.refused, self.proven = device, refused, False

    @staticmethod
    def refusal(device: torch.device) -> str:
        """Why there can be none here; empty where there can."""
        if device.type != "cuda" or torch.version.cuda is None:
            return "they need an NVIDIA GPU"
        usual = torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
        return "" if usual else "the caller has a stream of its own"

    def warm(self, run: Callable[[], Tensor]) -> Tensor:
        """A plain call on the stream of captures."""
        default = torch.cuda.default_stream(self.device)
        stream = self.streams.setdefault(self.device, torch.cuda.Stream(self.device))
        stream.wait_stream(default)
        with torch.cuda.stream(stream):
            result = run()
        default.wait_stream(stream)
        result.record_stream(default)
        return result

    def capture(self, step: Step, given: Sequence[Tensor], like: Tensor) -> None:
        # Outside of inference mode, so that they can be written in any.
        with torch.inference_mode(False):
            self.inputs, self.output = [torch.empty_like(tensor) for tensor in given], torch.empty_like(like)
        self.record(lambda: self.output.copy_(step(self.inputs)))

    def record(self, run: Callable[[], Tensor]) -> None:
        # An exception of Python's own, an interrupt for one, ends a capture in order; only what CUDA refuses breaks it.
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.streams[self.device], capture_error_mode="thread_local"):
            run()

    def replay(self, given: Sequence[Tensor]) -> Tensor:
        for mine, tensor in zip(self.inputs, given, strict=True):
            mine.copy_(tensor)
        self.graph.replay()
        return self.output.clone()


class Watch(TorchDispatchMode):
    """Notes why a call could not be captured: an operation on another device, or one whose result the host waits for."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.found = device, ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        with self:  # Under inference mode an operation may be made of others.
            result = function.decompose(*args, **(kwargs or {}))
        if result is NotImplemented:
            result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if WAITS & {*function.tags} or {tensor.device for tensor in tensors} - {self.device}:
            self.found = self.found or f"{function} waits for {self.device}, or is not on it alone"
        return result


def is_known(layer: nn.Module, also: Sequence[str] = ()) -> bool:
    """Whether a layer is PyTorch's, the network's own or of another given file, and nothing was hung on it."""
    hung = layer._forward_hooks or layer._forward_pre_hooks or {"forward", "step"} & vars(layer).keys()
    return not hung and type(layer).__module__.startswith((*KNOWN, *also))


class StepGraphs:
    """The graphs of a process: dropped together, and used by one call at a time; another call meanwhile is plain."""

    def __init__(self, make: type[CudaGraph] = CudaGraph):
        self.make, self.lock, self.off = make, threading.Lock(), ""
        self.kept: dict[Hashable, CudaGraph] = {}

    def drop(self) -> None:
        """Give their memory back. Of the calls, only one that holds the lock may."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.kept.clear()

    def turn_off(self, reason: str) -> None:
        self.off = reason
        log.warning("No CUDA graphs from here on, which changes no sound: %s.", quoted(reason))
        self.drop()

    def run(self, key: Hashable, step: Step, given: Sequence[Tensor]) -> Tensor:
        """``step`` of the tensors; ``key`` is all else that it depends on."""
        graph = self.kept.get(key)
        if graph is None:
            if len(self.kept) >= MOST_GRAPHS:
                self.drop()
            with Watch(given[0].device) as watch:
                result = step(given)
            self.kept[key] = self.make(given[0].device, watch.found)
            if watch.found:
                log.info("No CUDA graph of this step: %s.", watch.found)
            return result
        if graph.refused:
            return step(given)
        if graph.proven:
            return graph.replay(given)
        expected = graph.warm(lambda: step(given))
        try:
            graph.capture(step, given, expected)
        except RuntimeError as problem:
            self.turn_off(f"a capture failed: {problem}")
            return expected
        others = [0.5 - tensor for tensor in given]
        graph.proven = all(torch.equal(graph.replay(read), step(read)) for read in (given, others))
        if not graph.proven:
            self.turn_off("what a graph computed was not what the step did")
        return expected


GRAPHS = StepGraphs()


class GraphedStep:
    """``backbone.step`` for one sampling call, in which no layer is exchanged; by a graph where it can be one."""

    def __init__(self, backbone: Backbone, known: Callable[[nn.Module], bool] = is_known):
        self.backbone, self.graphs, layers = backbone, GRAPHS, list(backbone.modules())
        strange = (type(layer).__name__ for layer in layers if not known(layer))
        self.refused = next((f"{name} is changed, or none that is known" for name in strange), "")
        if reason := self.refused or self.graphs.off or self.graphs.make.refusal(backbone.dummy_ta_embed.device):
            log.info("No CUDA graphs: %s.", quoted(reason))
        self.weights = [weights for layer in layers for weights in (layer._parameters, layer._buffers)]

    def __call__(
        self,
        latent: Tensor,
        modulation: Tensor,
        conditions: Sequence[Condition],
        frame_mask: Tensor | None = None,
        rotary: Rotary | None = None,
        attend: Attend = F.scaled_dot_product_attention,
    ) -> Tensor:
        """See :meth:`Backbone.step`."""
        graphs, options = self.graphs, [frame_mask, *(part for c in conditions for part in c[3:])]
        usual = all(option is None for option in options) and attend is F.scaled_dot_product_attention
        plain = self.refused or graphs.off or torch.is_grad_enabled() or graphs.make.refusal(latent.device)
        if plain or not usual or rotary is None or not graphs.lock.acquire(blocking=False):
            return self.backbone.step(latent, modulation, conditions, frame_mask, rotary, attend)
        texts = tuple(c.keys is not None for c in conditions)
        given = [latent, modulation, *rotary, *(part for c in conditions for part in c[:3] if part is not None)]

        def step(tensors: Sequence[Tensor]) -> Tensor:
            x, vectors, cos, sin, *parts = tensors
            rest = iter(parts)
            read = [Condition(*islice(rest, 3 if has_text else 1)) for has_text in texts]
            return self.backbone.step(x, vectors, read, rotary=(cos, sin))

        try:
            addresses = tuple(w.data_ptr() for weights in self.weights for w in weights.values() if w is not None)
            forms = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in given)
            return graphs.run((addresses, forms, texts), step, given)
        finally:
            graphs.lock.release()
