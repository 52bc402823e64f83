"""What direction does to the mini model: ``python -m mini.direction --json mini/direction.json --page docs/direction.md``.

Timelines, faders, kept spans, other lengths, loops, windows and listening, each on prompts in wordings kept out of
training, judged by mini/judges.py. Each line says what was measured, and on how many clips. The last column has what was
aimed at; it changes no number. The page gets the table between its two MARKS.
"""

import itertools
import sys
from dataclasses import replace

import numpy as np
import torch

from dasheng_core import Timeline, compose_prompt
from dasheng_core.control.listening import LISTENING_SIGMA, Part, listen, part_masks, prompt_parts
from dasheng_core.duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from dasheng_core.options import FADE
from dasheng_core.sampling import draw_noise
from mini import recogniser
from mini.captions import describe
from mini.judges import JUDGES, judge
from mini.levels import Sound, spectrogram
from mini.measuring import measure_command
from mini.scores import ROOT, generate
from mini.vocabulary import EFFECTS, Effect, Music, Speech, WorldScene
from mini.world import render, sample_scene

STEADY_AMBIENCES = ("rain", "wind", "waves", "murmur")
STEADY = {
    "rain": {"ambience": "rain"},
    "wind": {"ambience": "wind"},
    "drone": {"music": Music("drone", None, "low", "soft")},
    "arpeggio": {"music": Music("arpeggio", "fast", "low", "soft")},
}
PLACED = {
    "whistle": Effect("whistle"),
    "buzz": Effect("buzz"),
    "bell": Effect("bell"),
    "knock": Effect("knock", count=2),
}
# Said in a scene, and said there instead of it.
SPOKEN = {"one two three": "six five four", "nine zero eight": "seven two six", "five seven one": "four three nine"}
# Seconds until which three words are said; what is made anew for others.
SAID = 2.2
WEIGHTS = (-1.0, 0.0, 1.0, 3.0)
# Seconds: kept away from a join, and the windows on either side of a place where spectra are compared.
AWAY, SIDE = 0.2, 0.2
# Seconds of a timeline's fade; of the feather at a kept join.
FADES, FEATHER = (0.2, FADE, 0.8), 0.8
# Times as many takes where a ratio at one place is measured, which varies from take to take; and where an effect is placed.
JOINS, EFFECT_PLACES = 32, 16
BATCH = 6
FIGURE_MARKS = "<!-- figures: python -m mini.direction -->", "<!-- end of figures -->"


def main() -> int:
    return measure_command(
        __doc__,
        DIRECTION_MEASURES,
        FIGURE_MARKS,
        seeds=(3, "takes of each"),
        scenes=(960, "layered scenes for the faders"),
    )


def prompt(seconds: float, seed: int = 0, unnamed=(), **layers) -> str:
    scene = WorldScene(seconds=seconds, **layers)
    return compose_prompt(**describe(scene, np.random.default_rng(seed), held_out=True, unnamed=unnamed))


def clips_of(model, scenes: list, seeds: list[int], seconds: float, **options) -> list[np.ndarray]:
    made = []
    for first in range(0, len(scenes), BATCH):
        part = slice(first, first + BATCH)
        made += list(model.generate(scenes[part], seed=seeds[part], duration=seconds, **options).numpy())
    return made


def cut(clip: np.ndarray, start: float, end: float) -> np.ndarray:
    return clip[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def sounds_as(clip: np.ndarray, layers: dict) -> bool:
    """Whether a span has the kind of each layer."""
    sound = Sound(clip)
    return all(JUDGES[layer](sound) == getattr(part, "kind", part) for layer, part in layers.items())


def jump(clip: np.ndarray, at: float) -> float:
    """Difference of the natural-log magnitudes before and after a moment."""
    before, after = (
        np.log(np.sqrt(spectrogram(cut(clip, start, start + SIDE), 1024, 160).mean(axis=0)) + 1e-5)
        for start in (at - SIDE, at)
    )
    return float(np.abs(after - before).mean())


def typical_jump(clip: np.ndarray, joins: list[float]) -> float:
    moments = np.arange(2 * SIDE, len(clip) / SAMPLE_RATE - 2 * SIDE, SIDE / 2)
    return float(np.median([jump(clip, at) for at in moments if min(abs(at - join) for join in joins) > 2 * SIDE]))


def click(clip: np.ndarray, join: float) -> float:
    """The strongest onset within 0.1 s of a join, over the strongest of a typical span of 0.2 s elsewhere."""
    novelty, around = Sound(clip).novelty, slice(round(join * 100) - 10, round(join * 100) + 10)
    others = np.concatenate([novelty[: around.start], novelty[around.stop :]])
    peaks = others[: len(others) // 20 * 20].reshape(-1, 20).max(axis=1)
    return float(novelty[around].max() / max(np.median(peaks), 1e-6))


# ---- what is measured: (what, clips, value, what is asked for) each


def timeline(model, args):
    prompts = {kind: prompt(6.0, ambience=kind) for kind in STEADY_AMBIENCES}
    halves = {0: (0.0, 3.0 - AWAY), 1: (3.0 + AWAY, 6.0)}
    seeds = list(range(args.seeds))
    singles = {kind: clips_of(model, [text] * len(seeds), seeds, 6.0) for kind, text in prompts.items()}
    alone = {
        kind: [np.mean([sounds_as(cut(c, *half), {"ambience": kind}) for c in some]) for half in halves.values()]
        for kind, some in singles.items()
    }
    pairs = [(a, b) for a in STEADY_AMBIENCES for b in STEADY_AMBIENCES if a != b for _ in seeds]
    scenes = [Timeline([(0.0, prompts[a]), (3.0, prompts[b])]) for a, b in pairs]
    own_seeds = seeds * (len(pairs) // len(seeds))
    clips = with_default = clips_of(model, scenes, own_seeds, 6.0)
    for i, half in halves.items():
        right = np.mean([sounds_as(cut(c, *half), {"ambience": pair[i]}) for pair, c in zip(pairs, clips, strict=True)])
        single = np.mean([alone[pair[i]][i] for pair in pairs])
        name = ("first", "second")[i]
        yield (
            f"{name} half right; of single prompts; ratio",
            len(pairs),
            (right, single, right / single),
            "ratio >= 0.95",
        )
    for fade in FADES:
        if fade != FADE:
            clips = clips_of(model, [replace(scene, fade=fade) for scene in scenes], own_seeds, 6.0)
        else:
            clips = with_default
        faded = [
            crossfaded(singles[a][i % len(seeds)], singles[b][i % len(seeds)], 3.0, fade)
            for i, (a, b) in enumerate(pairs)
        ]
        values = (*spread([click(c, 3.0) for c in clips]), *spread([click(c, 3.0) for c in faded]))
        what = f"fade {fade} s: onset at the join / typical, median, most; crossfaded"
        yield what, len(pairs), values, "no more than crossfaded"
    yield from placed(model, args)


def crossfaded(a: np.ndarray, b: np.ndarray, join: float, fade: float = FADE) -> np.ndarray:
    """Two sounds, one after the other, as an editor would join them."""
    share = np.clip((np.arange(len(a)) / SAMPLE_RATE - join) / fade + 0.5, 0, 1)
    return a * (1 - share) + b * share


def spread(values: list[float]) -> tuple[float, float]:
    return float(np.median(values)), float(max(values))


def placed_scenes(args) -> tuple[str, dict[str, str], list[Timeline], list[int]]:
    """Rain alone, with each effect, and with each effect from 2 to 4 s; of the latter as many takes, and their seeds."""
    takes = range(EFFECT_PLACES * args.seeds)
    rain = prompt(6.0, ambience="rain")
    layered = {kind: prompt(6.0, effect=effect, ambience="rain") for kind, effect in PLACED.items()}
    scenes = [Timeline([(0.0, rain), (2.0, text), (4.0, rain)]) for text in layered.values() for _ in takes]
    return rain, layered, scenes, list(takes) * len(PLACED)


def placed(model, args):
    rain, layered, scenes, seeds = placed_scenes(args)
    takes = len(seeds) // len(PLACED)
    clips = clips_of(model, scenes, seeds, 6.0)
    whole = clips_of(model, [text for text in layered.values() for _ in range(takes)], seeds, 6.0)
    plain = clips_of(model, [rain] * takes, seeds[:takes], 6.0)
    inside, before, after = (2.0, 4.0), (0.0, 2.0 - AWAY), (4.0 + AWAY, 6.0)
    for i, (kind, effect) in enumerate(PLACED.items()):
        own = slice(i * takes, (i + 1) * takes)

        def rate(some, *spans, layers={"effect": effect}):
            return float(np.mean([sounds_as(cut(c, *span), layers) for c in some for span in spans]))

        values = (
            rate(clips[own], inside),
            rate(clips[own], before, after),
            rate(whole[own], inside),
            rate(plain, inside),
        )
        what = f"{kind} at 2 to 4 s: inside, outside; whole clip, rain alone"
        yield what, takes, values, "inside, not outside"
    faded = [crossfaded(crossfaded(plain[i % takes], clip, 2.0), plain[i % takes], 4.0) for i, clip in enumerate(whole)]
    joins = [
        spread([jump(c, at) / typical_jump(c, [2.0, 4.0]) for c in some for at in (2.0, 4.0)])
        for some in (clips, faded)
    ]
    what = "jump at these joins / typical, median and most; crossfaded"
    yield what, len(clips), joins, "no more than crossfaded"


def emphasis(model, args):
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng, EFFECTS[i % len(EFFECTS)], layered=True) for i in range(args.scenes)]
    prompts = [compose_prompt(**describe(scene, rng, held_out=True, unnamed=["effect"])) for scene in scenes]
    truth = [[render(scene, rng) for scene in scenes]]
    made = (generate(model, prompts, 5.0, 25, 0, emphasis={"sfx": weight}) for weight in WEIGHTS)
    rates, others = [], []
    for clips in itertools.chain(truth, made):
        verdicts = [judge(scene, clip) for scene, clip in zip(scenes, clips, strict=True)]
        rates.append(float(np.mean([verdict["effect"] for verdict in verdicts])))
        kinds = [verdict[layer] for verdict in verdicts for layer in ("ambience", "music", "voice") if layer in verdict]
        others.append(float(np.mean(kinds)))
    yield "truth: effect right, what is beside it right", len(scenes), [rates.pop(0), others.pop(0)], ""
    yield f"effect right at w = {WEIGHTS}", len(scenes), rates, "rising, by 0.1 or more"
    yield "what is beside it right, at the same w", len(scenes), others, ""


def steady_latents(model, kind: str, seeds: list[int], frames: int, wording: int = 0, **options) -> torch.Tensor:
    content, mask, _ = model.encode_text([prompt(4.0, wording, **STEADY[kind])] * len(seeds))
    return model.sample(content, mask, [frames] * len(seeds), seed=seeds, **options)


def keep(model, args):
    seeds = list(range(JOINS * args.seeds))
    reach = model.decoder.reach
    for kind in ("drone", "rain", "arpeggio"):
        first = steady_latents(model, kind, seeds, 100)
        anew, known = [seed + 100 for seed in seeds], dict(latent=first, keep=[(0.0, 2.0)])
        made, softer = (steady_latents(model, kind, anew, 100, feather=s, **known) for s in (0.0, FEATHER))
        before, after, feathered = (list(model.decode(latent).numpy()) for latent in (first, made, softer))
        kept, heard = 50, (50 - reach) * SAMPLES_PER_FRAME
        exact = (made[..., :kept] - first[..., :kept]).abs().max().item()
        same = max(float(np.abs(a[:heard] - b[:heard]).max()) for a, b in zip(before, after, strict=True))
        yield f"{kind}: kept frames and their sound differ by", len(seeds), (exact, same), "<= 1e-6"
        cuts = [np.concatenate([a[:32000], b[32000:]]) for a, b in zip(before, before[1:] + before[:1], strict=True)]
        value = [
            float(np.median([jump(clip, 2.0) / typical_jump(clip, [2.0]) for clip in some]))
            for some in (after, feathered, before, cuts)
        ]
        value.append(float(np.median([typical_jump(clip, [2.0]) for clip in after])))
        what = f"{kind}: jump / typical: join, feather {FEATHER} s, none, hard cut; typical"
        yield what, len(seeds), value, "join <= 1.3"
    yield from other_words(model, args)


def spoken(words: str, seconds: float, **layers) -> str:
    return prompt(seconds, speech=Speech("low", tuple(words.split())), **layers)


def other_words(model, args):
    """In rain that stays: what was said before, and what is said instead."""
    ears, seeds = recogniser.load(ROOT / "mini" / "recogniser.safetensors"), list(range(2 * args.seeds))

    def right(clips, words: str) -> float:
        return float(
            np.mean([a == b for clip in clips for a, b in itertools.zip_longest(ears.recognise(clip), words.split())])
        )

    rates = []
    for before, after in SPOKEN.items():
        (content, mask, _), (other, other_mask, _) = (
            model.encode_text([spoken(words, 4.0, ambience="rain")] * len(seeds)) for words in (before, after)
        )
        first = model.sample(content, mask, [100] * len(seeds), seed=seeds)
        keep, anew = [(SAID, 4.0)], [seed + 100 for seed in seeds]
        made = model.sample(other, other_mask, [100] * len(seeds), seed=anew, latent=first, keep=keep)
        whole = model.sample(other, other_mask, [100] * len(seeds), seed=anew)
        said = ((first, before), (made, after), (whole, after))
        rates.append([right(model.decode(latent).numpy(), words) for latent, words in said])
    value = [float(rate) for rate in np.mean(rates, axis=0)]
    what = "words in rain: first; others in their place; whole clips of these"
    yield what, len(SPOKEN) * len(seeds), value, "as whole clips"


def length(model, args):
    seeds, wordings = list(range(args.seeds)), {"rain": 3, "wind": 3, "drone": 2, "arpeggio": 2}
    for kind, number in wordings.items():
        values = {}
        for noise in ("steady", "plain"):
            found = []
            for wording in range(number):
                short, long = (steady_latents(model, kind, seeds, T, wording, noise_kind=noise) for T in (75, 100))
                pairs = zip(short.flatten(1), long[..., :75].flatten(1), strict=True)
                found += [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs]
            values[noise] = (float(np.mean(found)), min(found))
        value = (*values["steady"], *values["plain"])
        yield f"{kind}: 3 s against 4 s, mean and least; as KSampler", number * len(seeds), value, ">= 0.95"


def loop(model, args):
    seeds = list(range(JOINS * args.seeds))
    latent = steady_latents(model, "rain", [0], 100, loop=True)
    turned = model.decode(latent.roll(37, dims=-1), loop=True)
    error = (turned - model.decode(latent, loop=True).roll(37 * SAMPLES_PER_FRAME, dims=-1)).abs().max().item()
    yield "decode(roll(z)) - roll(decode(z))", 1, error, "<= 1e-5"
    for kind in STEADY:
        values = []
        for looped in (True, False):
            latents = steady_latents(model, kind, seeds, 100, loop=looped)
            clips = [np.roll(clip, 32000) for clip in model.decode(latents, loop=looped).numpy()]
            for at in (2.0, 1.0):
                values.append(float(np.median([jump(clip, at) / typical_jump(clip, [2.0]) for clip in clips])))
            ends = [
                20 * np.log10(rms(cut(c, 1.5, 2.5)) / rms(np.concatenate([cut(c, 0, 1), cut(c, 3, 4)]))) for c in clips
            ]
            values.append(float(np.median(np.abs(ends))))
        yield f"{kind}: jump at seam, a second before; ends dB; not looped", len(seeds), values, "<= 1.1, 3 dB"


def rms(clip: np.ndarray) -> float:
    return float(np.sqrt(np.square(clip).mean())) + 1e-9


def window(model, args):
    spans = [(4.0 * i, 4.0 * i + 4.0) for i in range(15)]

    def rate(clip, layers) -> float:
        return float(np.mean([sounds_as(cut(clip, *span), layers) for span in spans]))

    for kind, layers in STEADY.items():
        text = prompt(4.0, **layers)
        short = np.mean([sounds_as(c, layers) for c in clips_of(model, [text] * 6, list(range(6)), 4.0)])
        (windows,), (whole,) = (clips_of(model, [text], [0], 60.0, window=size) for size in (4.0, None))
        value = (rate(windows, layers), short, rate(whole, layers))
        yield f"{kind}, 60 s: right in windows; 4 s clips; one pass", 15, value, ">= 0.9 of clips"
    rain, wind = (prompt(4.0, ambience=kind) for kind in ("rain", "wind"))
    (clip,) = clips_of(model, [Timeline([(0.0, rain), (20.0, wind), (40.0, rain)])], [0], 60.0, window=4.0)
    wanted = ["rain"] * 5 + ["wind"] * 5 + ["rain"] * 5
    right = [sounds_as(cut(clip, *s), {"ambience": kind}) for s, kind in zip(spans, wanted, strict=True)]
    yield "rain, wind, rain: right", 15, float(np.mean(right)), ">= 0.9"
    rates = []
    for seconds in (20.0, 40.0, 60.0):
        frames, step = [], model.backbone.step
        model.backbone.step = lambda x, *rest, frames=frames, step=step: (
            frames.append(x.shape[0] * x.shape[2]) or step(x, *rest)
        )
        try:
            model.sample(*model.encode_text(rain)[:2], [round(seconds * 25)], seed=0, window=4.0, num_steps=1)
        finally:
            del model.backbone.step
        rates.append(sum(frames) / seconds / 25)
    yield "frames evaluated for each frame of 20, 40, 60 s", 1, rates, "constant"


def listening(model, args):
    prompts = {kind: prompt(6.0, ambience=kind) for kind in STEADY_AMBIENCES}
    pairs = [(a, b) for a in STEADY_AMBIENCES for b in STEADY_AMBIENCES if a != b]
    clips = clips_of(model, [Timeline([(0.0, prompts[a]), (3.0, prompts[b])]) for a, b in pairs], [0] * len(pairs), 6.0)
    shares = []
    for pair, clip in zip(pairs, clips, strict=True):
        contents = [model.encode_text(prompts[kind])[0][0] for kind in pair]
        middle, end = len(contents[0]), sum(map(len, contents))
        curves = listening_curves(model, clip, torch.cat(contents), [Part("", 0, middle), Part("", middle, end)])
        shares += [curves[0, :75].sum() / curves[0].sum(), curves[1, 75:].sum() / curves[1].sum()]
    value = (float(np.mean(shares)), float(min(shares)))
    yield f"prompts of a timeline, sigma {LISTENING_SIGMA}: share on its span", len(shares), value, ">= 0.8"
    _, _, scenes, seeds = placed_scenes(args)
    clips = clips_of(model, scenes, seeds, 6.0)
    for i, (kind, effect) in enumerate(PLACED.items()):
        # What the caption names too is not missed when its aspect is left out.
        text = prompt(6.0, effect=effect, ambience="rain", unnamed=["effect"])
        shares, content = [], model.encode_text(text)[0][0]
        parts = [part for part in prompt_parts(model.tokenizer.file.encode, text) if part.name == "sfx"]
        takes = len(seeds) // len(PLACED)
        for clip in clips[i * takes : (i + 1) * takes]:
            (curve,) = listening_curves(model, clip, content, parts)
            shares.append(float(curve[50:100].sum() / curve.sum().clamp(min=1e-9)))
        yield (
            f"sfx of '{kind} with rain', which is at 2 to 4 s",
            len(shares),
            (float(np.mean(shares)), min(shares)),
            ">= 0.8",
        )
    ordered = []
    for words in SPOKEN:
        text = spoken(words, 2.4)
        parts = [
            part for part in prompt_parts(model.tokenizer.file.encode, text, words=True) if part.name.startswith("asr:")
        ]
        for clip in clips_of(model, [text] * args.seeds, list(range(args.seeds)), 2.4):
            curves = listening_curves(model, clip, model.encode_text(text)[0][0], parts)
            peaks = curves.argmax(dim=-1).tolist()
            ordered += [one < other for one, other in itertools.pairwise(peaks)]
    yield "a word's curve peaks before the next word's", len(ordered), float(np.mean(ordered)), ""


@torch.inference_mode()
def listening_curves(model, clip: np.ndarray, content: torch.Tensor, parts: list[Part]) -> torch.Tensor:
    """Of a finished sound, which is encoded first."""
    condition = model.backbone.condition(content[None], model.backbone.dummy_ta_embed[None, None])
    latent = model.encode(torch.from_numpy(clip)[None])
    noise = draw_noise(1000, *latent.shape[1:])[None]
    return listen(model.backbone, latent, noise, condition, part_masks(parts, len(content)))[0]


DIRECTION_MEASURES = {
    "timeline": timeline,
    "emphasis": emphasis,
    "keep": keep,
    "length": length,
    "loop": loop,
    "window": window,
    "listening": listening,
}

if __name__ == "__main__":
    sys.exit(main())
