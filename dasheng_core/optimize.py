"""How a prepared backbone is run: as it is, with its block compiled, or as a CUDA graph.

Both give what the prepared backbone gives. A compiled block fuses what lies between its matrix products; a graph
replays all launches of an evaluation at once, where launching them one by one takes longer than computing them.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from .prepared import Conditioning, PreparedBackbone, PreparedBlock

log = logging.getLogger(__name__)

MODES = ("auto", "off", "compile", "graph", "compile and graph")
# Each keeps the intermediate results of an evaluation and half a gigabyte of joined weights.
KEPT_GRAPHS = 2
# Capturing costs about two evaluations.
MIN_STEPS_TO_CAPTURE = 4


class Optimizer:
    """Runs the evaluations of prepared backbones; keeps graphs from call to call, until :meth:`free`.

    Args:
        mode: one of :data:`MODES`; "auto" is "graph" on CUDA and "off" elsewhere.
        capture: makes a captured function; see :class:`CudaCapture`.
    """

    def __init__(self, mode: str = "off", capture: "Callable[[], CudaCapture] | None" = None):
        if mode not in MODES:
            raise ValueError(f"Optimization {mode!r}: expected one of {', '.join(MODES)}.")
        self.mode = mode
        self._capture = capture
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._said: set[str] = set()

    @property
    def compiles(self) -> bool:
        return "compile" in self.mode

    def attach(self, prepared: PreparedBackbone) -> PreparedBackbone:
        """Run this backbone's evaluations from now on."""
        if self.compiles:
            prepared.block = compiled_block()
        if self._can_capture(prepared):
            # Walking 600 modules for them would take as long as an evaluation.
            prepared.evaluator = partial(self._replay, list(prepared.parameters()))
        return prepared

    def free(self) -> None:
        """Give the memory of all graphs back."""
        self._graphs.clear()

    def _can_capture(self, prepared: PreparedBackbone) -> bool:
        automatic = self.mode == "auto"
        if not automatic and "graph" not in self.mode:
            return False
        if self._capture is None and prepared.device.type != "cuda":
            if not automatic:
                self._say("Graphs need CUDA: evaluations run one operation at a time.")
            return False
        if prepared.streams:
            self._say(
                "Weights are moved or expanded while they are used, which no graph can do: evaluations run without."
            )
            return False
        return not automatic or prepared.foreseen >= MIN_STEPS_TO_CAPTURE

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            log.info(sentence)

    def _replay(self, parameters, prepared, latent, step, conditioning: Conditioning, *options, outer=0, deep=None):
        with torch.cuda.device_of(latent):
            return self._replay_here(parameters, prepared, latent, step, conditioning, options, outer, deep)

    def _replay_here(self, parameters, prepared, latent, step, conditioning, options, outer, deep):
        weights = tuple(parameter.data_ptr() for parameter in parameters)
        key = (
            tuple(latent.shape),
            latent.dtype,
            latent.device,
            conditioning.signature,
            str(options),
            outer,
            deep is None,
            weights,
        )
        graph = self._graphs.get(key)
        if graph is None:
            # A graph whose weights lie elsewhere by now has nothing to compute with.
            for old in [old for old in self._graphs if old[-1] != weights]:
                del self._graphs[old]
            while len(self._graphs) >= KEPT_GRAPHS:
                self._graphs.popitem(last=False)
            try:
                capture = (self._capture or CudaCapture)()
                graph = _Graph(capture, prepared, latent, step, conditioning, options, outer, deep)
            except RuntimeError as error:
                self._say(f"No graph could be captured ({str(error).splitlines()[0]}): evaluations run without one.")
                prepared.evaluator = None
                return prepared(latent, step, conditioning, *options, outer=outer, deep=deep)
            self._graphs[key] = graph
        self._graphs.move_to_end(key)
        return graph.replay(prepared, latent, step, conditioning, deep)


class CudaCapture:
    """One captured function of tensors that stay where they are."""

    def __init__(self):
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, function: Callable):
        """Record the work of ``function``; its result, which every replay writes anew.

        Run once before, apart from the current stream, as libraries set themselves up at their first call.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph):
            return function()

    def replay(self) -> None:
        self._graph.replay()


class _Graph:
    """A captured evaluation, with the tensors that it reads: copies of those of the call that it serves.

    Before it first serves another call, that call's are copied into them.
    """

    def __init__(self, captured, prepared, latent, step, conditioning, options, outer, deep):
        self.captured = captured
        self.prepared, self.conditioning = prepared.duplicate(), conditioning.duplicate()
        self.latent, self.step = latent.clone(), step.clone()
        self.deep = None if deep is None else deep.clone()
        self.serves = (weakref.ref(prepared), weakref.ref(conditioning))
        # Tables are made before, not within.
        self.prepared.rotary(latent.shape[-2])
        arguments = (self.latent, self.step, self.conditioning, *options, outer, self.deep)
        self.output = captured.capture(lambda: self.prepared(*arguments))

    def replay(self, prepared, latent: Tensor, step: Tensor, conditioning: Conditioning, deep: Tensor | None):
        if self.serves[0]() is not prepared or self.serves[1]() is not conditioning:
            mine = [*self.prepared.copies(), *self.conditioning.tensors()]
            for tensor, theirs in zip(mine, [*prepared.copies(), *conditioning.tensors()], strict=True):
                tensor.copy_(theirs)
            self.serves = (weakref.ref(prepared), weakref.ref(conditioning))
        self.latent.copy_(latent)
        self.step.copy_(step)
        if deep is not None:
            self.deep.copy_(deep)
        self.captured.replay()
        output = self.output
        return output.clone() if isinstance(output, Tensor) else tuple(tensor.clone() for tensor in output)


@lru_cache(maxsize=1)
def compiled_block() -> Callable:
    """The one block that all 33 are, compiled for any number of frames and tokens."""
    return torch.compile(PreparedBlock.forward, dynamic=True)
