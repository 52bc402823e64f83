"""The mini model's word list knows its own wordings, and names what is beyond them."""

import numpy as np
import pytest

from dasheng_core import compose_prompt
from mini.captions import describe
from mini.grammars import HELD_OUT, TRAINING
from mini.words import KNOWN_WORDS, NAMES, beyond, stem, templates, words_in
from mini.world import sample_scene


@pytest.mark.parametrize("held_out", [False, True])
def test_every_prompt_of_its_world_is_inside(held_out):
    rng = np.random.default_rng(0)
    for _ in range(1000):
        prompt = compose_prompt(**describe(sample_scene(rng), rng, held_out))
        assert beyond(prompt) == [], prompt


def test_every_wording_names_its_sound():
    for text in templates((TRAINING.nouns, HELD_OUT.nouns)):
        assert {stem(word) for word in words_in(text)} & NAMES, text
    assert NAMES <= KNOWN_WORDS


@pytest.mark.parametrize(
    "prompt, said",
    [
        ("A dog barks in the rain.", "no idea of: dog, barks."),
        ("Ein Hund, 10 Sekunden, ein Hund.", "no idea of: ein, hund, 10, sekunden."),
        ("<|caption|> A low voice says a few words. <|asr|> one goodbye two", "never said: goodbye."),
        ("Something long and fast.", "names no sound"),
        ("", "names no sound"),
    ],
)
def test_what_is_beyond_is_named(prompt, said):
    *sentences, world = beyond(prompt)
    assert [sentence for sentence in sentences if said in sentence] and world.startswith("Its world: beep, sweep, ")


@pytest.mark.parametrize(
    "prompt", ["Two beeps, and it is raining.", "Bells ringing!", "<|caption|> Waves <|asr|> One, two."]
)
def test_other_forms_of_its_words_are_inside(prompt):
    assert beyond(prompt) == []
