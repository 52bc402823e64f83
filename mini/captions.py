"""Words for a scene, drawn from two grammars: one to train on, one kept for the scores.

No sentence of the held-out grammar can come from the training grammar; the words that tell attributes (how high, how
many, how fast) are the same in both. A caption names every layer, and can stand alone but for the words spoken; or it
leaves some or all of them to their aspects.
"""

from collections.abc import Collection

import numpy as np

from dasheng_core.prompt import compose_prompt
from mini.grammars import GRAMMAR_ATTRIBUTES, HELD_OUT, LENGTH_CLASSES, LENGTHS, TRAINING, Grammar
from mini.vocabulary import WorldScene

# How often the class is all a training caption says of the length.
CLASS_ALONE = 0.1
# How often a training caption names nothing, and how often it leaves out one layer of the scene.
NAMES_NOTHING, NAMES_THE_OTHERS = 0.3, 0.25
# How often an aspect is left out whose layers the caption names.
DROP = 0.15
# Where a layer is told beside the caption.
CAPTION_ASPECTS = {
    "effect": ("sfx",),
    "music": ("music",),
    "speech": ("speech", "asr"),
    "ambience": ("env",),
    "quality": ("env",),
}


def describe(
    scene: WorldScene, rng: np.random.Generator, held_out: bool = False, unnamed: Collection[str] = ()
) -> dict[str, str]:
    """Aspects of a scene in words, for :func:`dasheng_core.compose_prompt`.

    Args:
        held_out: use the grammar that is never trained on.
        unnamed: the layers (keys of ASPECTS) that the caption does not name.

    Returns:
        ``{aspect: text}``: caption always; sfx, music, speech with asr, and env where the scene has them.
    """
    grammar = HELD_OUT if held_out else TRAINING
    aspects = {"caption": _caption(scene, rng, grammar, unnamed, alone=0.0 if held_out else CLASS_ALONE)}
    if scene.speech:
        aspects["speech"] = _sentence(_fill(rng, _pick(rng, grammar.speech), voice=scene.speech.voice))
        aspects["asr"] = _transcript(rng, scene.speech.words)
    if scene.effect:
        aspects["sfx"] = _around(rng, grammar.aspect, _noun(rng, grammar, scene.effect))
    if scene.music:
        aspects["music"] = _around(rng, grammar.aspect, _noun(rng, grammar, scene.music))
    env = []
    if scene.ambience:
        env.append(_around(rng, grammar.ambience, _noun(rng, grammar, scene.ambience)))
    if scene.quality:
        env.append(_pick(rng, grammar.quality[scene.quality]))
    if env:
        aspects["env"] = " ".join(env)
    return aspects


def layers_of(scene: WorldScene) -> list[str]:
    """The layers that a scene has, as keys of ASPECTS."""
    return [layer for layer in CAPTION_ASPECTS if getattr(scene, layer)]


def training_prompt(scene: WorldScene, rng: np.random.Generator) -> str:
    """A prompt to train on. What it leaves out is told elsewhere, but the transcript, which the caption never tells."""
    layers, draw = layers_of(scene), rng.random()
    unnamed = layers if draw < NAMES_NOTHING else ()
    if NAMES_NOTHING <= draw < NAMES_NOTHING + NAMES_THE_OTHERS:
        unnamed = [_pick(rng, layers)]
    aspects = describe(scene, rng, unnamed=unnamed)
    kept = {"caption"}.union(*(CAPTION_ASPECTS[layer] for layer in unnamed))
    return compose_prompt(**{name: text for name, text in aspects.items() if name in kept or rng.random() >= DROP})


def length_class(seconds: float) -> str:
    return next(name for end, name in LENGTH_CLASSES if seconds <= end)


def length_words(seconds: float, numerals: bool = False) -> str:
    """A length to the nearest half second: "two and a half seconds" or "2.5 seconds"."""
    halves = round(seconds * 2)
    if numerals:
        return "1 second" if halves == 2 else f"{halves / 2:g} seconds"
    return LENGTHS[halves - 1]


def _caption(scene: WorldScene, rng, grammar: Grammar, unnamed: Collection[str], alone: float) -> str:
    layers = [getattr(scene, layer) for layer in layers_of(scene) if layer not in (*unnamed, "quality")]
    nouns = [_noun(rng, grammar, layers[index]) for index in rng.permutation(len(layers))]
    nouns = nouns or [_pick(rng, grammar.nothing)]
    sounds = nouns[0]
    for noun in nouns[1:]:
        sounds += _pick(rng, grammar.links) + noun
    words = {"sounds": sounds, "class": length_class(scene.seconds)}
    if rng.random() < alone:
        template = _pick(rng, grammar.caption_class)
    else:
        template = _pick(rng, grammar.caption)
        words["seconds"] = length_words(scene.seconds, numerals=rng.random() < 0.25)
    caption = _sentence(template.format(**words))
    if scene.quality and "quality" not in unnamed and rng.random() < 0.7:
        caption += _pick(rng, grammar.tails[scene.quality])
    return caption


def _transcript(rng, words: tuple[str, ...]) -> str:
    """Words as spoken text: bare, or as a sentence with commas."""
    if rng.random() < 0.75:
        return " ".join(words)
    return _sentence(", ".join(words) + ".")


def _noun(rng, grammar: Grammar, part) -> str:
    """How a layer is named, with its attributes."""
    if isinstance(part, str):
        return _pick(rng, grammar.nouns[part])
    told = {name: getattr(part, name) for name in GRAMMAR_ATTRIBUTES if getattr(part, name, None) is not None}
    return _fill(rng, _pick(rng, grammar.nouns[getattr(part, "kind", "speech")]), **told)


def _fill(rng, template: str, **attributes) -> str:
    words = {name: _pick(rng, GRAMMAR_ATTRIBUTES[name][value]) for name, value in attributes.items()}
    if "exactly {count}" in template and attributes["count"] == 1:
        words["count"] = "one"
    text = template.format(**words, s="" if attributes.get("count") == 1 else "s")
    return text.replace("a(n) a", "an a").replace("a(n) ", "a ")


def _around(rng, templates: tuple[str, ...], sounds: str) -> str:
    return _sentence(_pick(rng, templates).format(sounds=sounds))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(rng, choices):
    return choices[rng.integers(len(choices))]
