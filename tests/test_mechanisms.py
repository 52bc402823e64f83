"""Every pair of mechanisms of control, and some triples: the nodes give the library's sound, under every sampler that can.

With ``--full`` all triples are run, and what was found is written to docs/mechanisms.md.
"""

import random
from itertools import combinations

import pytest
import torch

from by_hand import CAT, FRAMES, SECONDS, SEED, STORM, Library, Scene, latents
from conftest import deviation
from dasheng_core import Timeline
from dasheng_core.control.keep import kept_of
from tools.comfyui import ROOT

# The widgets of Dasheng Guider, and the library's options.
GUIDANCE_FORMS = {
    "interval": (dict(sigma_low=0.3, sigma_high=0.95), dict(guidance_interval=(0.3, 0.95))),
    "rescale": (dict(rescale=0.7), dict(guidance_rescale=0.7)),
    "apg": (dict(apg=True, apg_momentum=-0.5, apg_limit=0.5), dict(apg=(0.0, 0.5, -0.5))),
    "zero star": (dict(zero_star=True), dict(zero_star=True)),
}
MECHANISMS = ("timeline", "emphasis", "keep", "loop", "window", *GUIDANCE_FORMS, "batch", "mixed seeds")
LESS_SFX = CAT.partition(" <|sfx|>")[0]
PAIRS = list(combinations(MECHANISMS, 2))
TRIPLES = list(combinations(MECHANISMS, 3))
CHOSEN = random.Random(5).sample(TRIPLES, 30)
HEAD = """# Mechanisms together

Every pair and every triple of mechanisms: the nodes' latent beside the library's, as the largest difference relative to max(1,
|library|), under Dasheng Guider or CFGGuider with SamplerCustomAdvanced, Dasheng Sampler and KSampler, as far as these have the mechanisms.
Written by `python3 dev.py test --full tests/test_mechanisms.py`, which fails above 1e-4.

| mechanisms | samplers | largest difference |
|---|---|---|
"""


class Directed(Scene):
    """The nodes of a set of mechanisms, and the samplers that can have them: all under one, plain ones under all."""

    def __init__(self, mechanisms: tuple[str, ...]):
        super().__init__()
        self.on, plain = {*mechanisms}, self.model
        self.batch = "batch" in self.on or "mixed seeds" in self.on
        positive = self.emphasis(CAT, sfx=1.5) if "emphasis" in self.on else self.cat
        if "timeline" in self.on:
            positive = self.timeline(self.storm, positive, start=0.6)
        self.model = self.windows(12, 6) if "window" in self.on else self.model
        self.model = self.add("DashengLoop", model=self.model) if "loop" in self.on else self.model
        self.known = self.empty(batch_size=4)
        if "keep" in self.on:
            self.known = self.ours(self.storm, self.known, plain, seed=3)
        # Takes 4 and 2, takes 1 and 2, or take 1.
        takes = [3, 1] if "mixed seeds" in self.on else [0, 1] if "batch" in self.on else [0]
        self.seeds = [SEED + take for take in takes]
        parts = [self.add("LatentFromBatch", samples=self.known, batch_index=i, length=1) for i in takes]
        self.known = parts[0]
        if len(parts) > 1:
            self.known = self.add("LatentBatch", samples1=parts[0], samples2=parts[1])
        latent = self.mask(self.known, start=0.4, end=0.8) if "keep" in self.on else self.known
        forms = [GUIDANCE_FORMS[name][0] for name in self.on & {*GUIDANCE_FORMS}]
        widgets = {name: value for form in forms for name, value in form.items()}
        steady = self.add("DashengNoise", seed=SEED)
        self.made = [self.advanced(self.guider(positive, self.model, **widgets), latent, steady)]
        # A loop's shifts come from the seed; a plain sampler knows the first one alone, and the others follow it.
        if "loop" in self.on and "mixed seeds" in self.on:
            self.made = []
        if not forms:
            self.made.append(self.ours(positive, latent, self.model, noise="steady"))
        self.single = []
        if not forms and not self.batch:
            self.single = [self.ksampler(positive, latent, self.model)]

    def expected(self, library: Library, known: torch.Tensor, **options) -> torch.Tensor:
        """The same by the library; ``known`` ``[B, C, T]``."""
        scene = Timeline([(0.0, CAT), (0.6, STORM)], fade=0.0) if "timeline" in self.on else CAT
        less, weight = LESS_SFX, 1.5
        if "timeline" in self.on:
            less, weight = Timeline([(0.0, LESS_SFX), (0.6, STORM)], fade=0.0), 1.5 * (torch.arange(FRAMES) < 15)
        for name in self.on & {*GUIDANCE_FORMS}:
            options |= GUIDANCE_FORMS[name][1]
        return library(
            scene,
            [(weight, less)] if "emphasis" in self.on else [],
            kept=kept_of(known, [(0.0, 0.4), (0.8, SECONDS)], 0.0, *known.shape[:2]) if "keep" in self.on else None,
            seeds=self.seeds,
            loop="loop" in self.on,
            window=0.48 if "window" in self.on else None,
            **options,
        )


def can(mechanisms: tuple[str, ...]) -> bool:
    """ComfyUI's windows find the step of a single take alone, and loops have seeds of their own under Dasheng Sampler."""
    impossible = {"loop", "mixed seeds"} <= {*mechanisms} and bool({*mechanisms} & {*GUIDANCE_FORMS})
    several = "window" in mechanisms and bool({"batch", "mixed seeds"} & {*mechanisms})
    return not impossible and not several


@pytest.fixture(scope="module")
def table(full):
    """A row for each set of mechanisms."""
    rows: list[str] = []
    yield rows
    if full and len(rows) == len(PAIRS) + len(TRIPLES):
        (ROOT / "docs" / "mechanisms.md").write_text(HEAD + "".join(rows), "utf-8")


def pytest_generate_tests(metafunc):
    if "mechanisms" in metafunc.fixturenames:
        triples = TRIPLES if metafunc.config.getoption("--full") else CHOSEN
        metafunc.parametrize("mechanisms", [*PAIRS, *triples], ids=" and ".join)


def test_the_nodes_give_the_librarys_sound(server, library, table, mechanisms):
    if not can(mechanisms):
        table.append(f"| {', '.join(mechanisms)} | none of ComfyUI's has these together | |\n")
        pytest.skip("no sampler of ComfyUI has these together")
    graph = Directed(mechanisms)
    known, *made = latents(server, graph, graph.known, *graph.made, *graph.single)
    expected = graph.expected(library, known, kind="steady")
    worst = [deviation(latent, expected) for latent in made[: len(graph.made)]]
    for latent in made[len(graph.made) :]:
        worst.append(deviation(latent, graph.expected(library, known, kind="plain", sway=0.0)))
    assert worst and max(worst) <= 1e-4
    table.append(f"| {', '.join(mechanisms)} | {len(worst)} | {max(worst):.0e} |\n")
