"""The mini model's world keeps the promises of its vocabulary, and its captions say what is heard."""

import itertools
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import find_peaks

from dasheng_core import compose_prompt
from dasheng_core.duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from mini import captions, sounds, voices, world
from mini.judges import STATIONARY, judge
from mini.vocabulary import (
    AMBIENCES,
    BEEP_PITCH,
    DIGITS,
    EFFECTS,
    KNOCK_GAP,
    MUSIC,
    QUALITIES,
    REGISTER,
    STATIC_LEVEL,
    SWEEP_ENDS,
    TEMPO,
    TIMBRE,
    VOICE_PITCH,
    VOICES,
    Effect,
    Music,
    Speech,
    WorldScene,
)
from mini.words import NAMES, stem, words_in

ESPEAK = shutil.which("espeak-ng")
needs_espeak = pytest.mark.skipif(not ESPEAK, reason="espeak-ng is not installed: spoken words come from it")
KINDS = (*EFFECTS, *MUSIC, "speech", *AMBIENCES, *QUALITIES)


def generator(seed=0):
    return np.random.default_rng(seed)


def sample_rendered(rng, wanted=None, layered=None):
    """A scene that this machine can render, and its samples."""
    scene = world.sample_scene(rng, wanted, layered)
    while scene.speech and not ESPEAK:
        scene = world.sample_scene(rng, wanted, layered)
    return scene, world.render(scene, rng)


def strongest(wave):
    """Frequency of the highest peak of the spectrum in Hz, to 1 Hz. ``[samples]``"""
    windowed = wave * np.hanning(len(wave))
    return float(np.argmax(np.abs(np.fft.rfft(windowed, SAMPLE_RATE * 8))) / 8)


def decibels(ratio):
    return 20 * np.log10(ratio)


def test_scenes_are_of_the_vocabulary():
    rng = generator()
    scenes = [world.sample_scene(rng) for _ in range(800)]
    layers = [sum(part is not None for part in (s.effect, s.music, s.speech, s.ambience)) for s in scenes]
    assert min(layers) == 1 and max(layers) == 3
    assert 0.4 < np.mean(np.array(layers) == 1) < 0.6
    for scene in scenes:
        assert 1 <= scene.seconds <= 6 and scene.seconds == round(scene.seconds, 1)
        if scene.speech:
            assert 1 <= len(scene.speech.words) <= 3 and set(scene.speech.words) <= set(DIGITS)
    seen = {kind for s in scenes for kind in (s.ambience, s.quality, *(p and p.kind for p in (s.effect, s.music)))}
    assert seen - {None} == {*EFFECTS, *MUSIC, *AMBIENCES, *QUALITIES}


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("layered", [False, True])
def test_a_kind_can_be_asked_for(wanted, layered):
    rng = generator()
    for _ in range(20):
        scene = world.sample_scene(rng, wanted, layered)
        parts = [part for part in (scene.effect, scene.music, scene.speech, scene.ambience) if part]
        assert (len(parts) > 1) == layered
        heard = {getattr(part, "kind", "speech" if isinstance(part, Speech) else part) for part in parts}
        assert wanted in heard | {scene.quality}


def test_what_the_world_lacks_is_refused():
    with pytest.raises(ValueError, match="'thunder' is not in the world"):
        world.sample_scene(generator(), "thunder")
    with pytest.raises(ValueError, match="empty"):
        world.render(WorldScene(2.0), generator())


def test_clips_are_whole_frames_loud_and_never_clipped():
    rng = generator()
    for _ in range(150):
        scene, wave = sample_rendered(rng)
        assert wave.dtype == np.float32 and wave.ndim == 1 and len(wave) % SAMPLES_PER_FRAME == 0
        assert abs(len(wave) / SAMPLE_RATE - scene.seconds) <= SAMPLES_PER_FRAME / SAMPLE_RATE / 2 + 1e-9
        assert 10 ** (-45 / 20) < np.abs(wave).max() <= world.HIGHEST_PEAK + 1e-6


def test_the_same_state_gives_the_same_samples():
    for seed in range(20):
        (scene, wave), (again, same) = (sample_rendered(generator(seed)) for _ in range(2))
        assert scene == again and np.array_equal(wave, same)
    scene = WorldScene(2.0, ambience="rain")
    assert not np.array_equal(world.render(scene, generator(1)), world.render(scene, generator(2)))


@pytest.mark.parametrize("pitch", BEEP_PITCH)
def test_beeps_are_tones_on_the_grid_that_start_at_phase_0(pitch):
    low, high = BEEP_PITCH[pitch]
    for seed in range(6):
        wave = world.render(WorldScene(2.0, Effect("beep", pitch=pitch)), generator(seed))
        frequency = strongest(wave)
        assert low <= frequency <= high and abs(frequency - sounds.on_grid(frequency)) < 1
        reference = np.sin(2 * np.pi * sounds.on_grid(frequency) * np.arange(len(wave)) / SAMPLE_RATE)
        # Wherever it sounds, what the reference does not explain is nothing.
        frames, references = (part.reshape(-1, SAMPLES_PER_FRAME) for part in (wave, reference))
        held = np.abs(frames).max(axis=1) > 0.99 * np.abs(frames).max()
        assert held.mean() > 0.4
        # The ramps at both ends are shorter than a frame.
        held[1:-1] &= held[:-2] & held[2:]
        assert np.allclose(frames[held][1:-1], np.abs(wave).max() * references[held][1:-1], atol=0.02)


@pytest.mark.parametrize("direction", ["rising", "falling"])
def test_sweeps_go_their_way(direction):
    for seed in range(6):
        wave = world.render(WorldScene(2.0, Effect("sweep", direction=direction)), generator(seed))
        loud = np.flatnonzero(np.abs(wave) > 0.5 * np.abs(wave).max())
        wave = wave[loud[0] : loud[-1]]
        assert len(wave) > SAMPLE_RATE
        ends = strongest(wave[:800]), strongest(wave[-800:])
        low, high = ends if direction == "rising" else ends[::-1]
        assert (
            SWEEP_ENDS[0][0] * 0.9 < low < SWEEP_ENDS[0][1] * 1.3 and SWEEP_ENDS[1][0] * 0.8 < high < SWEEP_ENDS[1][1]
        )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_knocks_are_counted(count):
    rng = generator()
    for seed in range(8):
        scene = world.sample_scene(rng, "knock", layered=False)
        scene = replace(
            scene, effect=Effect("knock", count=count), seconds=max(scene.seconds, 1.6), quality=None, ambience=None
        )
        wave = np.abs(world.render(scene, generator(seed)))
        peaks = wave[: len(wave) // 160 * 160].reshape(-1, 160).max(axis=1)
        at, _ = find_peaks(np.append(0, peaks), height=0.5 * peaks.max(), distance=20)
        assert len(at) == count
        for gap in np.diff(at) / 100:
            assert KNOCK_GAP[0] - 0.015 <= gap <= KNOCK_GAP[1] + 0.015


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize("timbre", TIMBRE)
@pytest.mark.parametrize("kind", ["drone", "arpeggio"])
def test_register_and_timbre(kind, register, timbre):
    low, high = REGISTER[register]
    for seed in range(5):
        tempo = "slow" if kind == "arpeggio" else None
        wave = world.render(WorldScene(6.0, music=Music(kind, tempo, register, timbre)), generator(seed))
        power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
        frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
        strong = frequency[power > 0.1 * power.max()]
        lowest = sounds.on_grid(strong[0])
        assert low <= lowest <= high
        above = power[frequency > 5.5 * lowest].sum() / power.sum()
        assert above < TIMBRE["soft"] if timbre == "soft" else above > TIMBRE["bright"]
        if kind == "drone":
            assert np.abs(strong - 50 * np.round(strong / 50)).max() <= 1


@pytest.mark.parametrize("tempo", TEMPO)
@pytest.mark.parametrize("kind", ["beat", "arpeggio"])
def test_tempo(kind, tempo):
    for seed in range(5):
        register = {"register": "high", "timbre": "soft"} if kind == "arpeggio" else {}
        wave = world.render(WorldScene(4.0, music=Music(kind, tempo, **register)), generator(seed))
        level = np.sqrt(np.square(wave).reshape(-1, 160).mean(axis=1))
        rhythm = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)), 4096))
        rate = np.fft.rfftfreq(4096, 0.01)
        within = (rate > 1) & (rate < 10)
        assert TEMPO[tempo][0] * 0.9 <= rate[within][rhythm[within].argmax()] <= TEMPO[tempo][1] * 1.1


def test_levels():
    for seed in range(10):
        rng = generator(seed)
        effect = WorldScene(2.0, Effect("buzz"))
        both = replace(effect, music=Music("beat", tempo="slow"))
        for scene, (low, high) in (
            (effect, world.EFFECT_PEAK),
            (WorldScene(2.0, music=both.music), world.MUSIC_PEAK["alone"]),
        ):
            assert low - 0.01 <= decibels(np.abs(world.render(scene, rng)).max()) <= high + 0.01
        rms = decibels(np.sqrt(np.square(world.render(WorldScene(2.0, ambience="wind"), rng)).mean()))
        assert world.AMBIENCE_RMS["alone"][0] - 0.01 <= rms <= world.AMBIENCE_RMS["alone"][1] + 0.01
        # One state renders the effect alike with and without what follows it.
        dry = world.render(effect, generator(seed))
        static = world.render(replace(effect, quality="static"), generator(seed)) - dry
        level = decibels(static.std() / dry.std())
        assert STATIC_LEVEL[0] - 0.3 <= level <= STATIC_LEVEL[1] + 0.3
        spectrum = np.abs(np.fft.rfft(static)) ** 2
        quarters = [part.mean() for part in np.array_split(spectrum, 4)]
        assert max(quarters) < 1.3 * min(quarters)
        under = world.render(both, generator(seed)) - dry
        assert (
            world.MUSIC_PEAK["under"][0] - 0.01 <= decibels(np.abs(under).max()) <= world.MUSIC_PEAK["under"][1] + 0.01
        )


def test_ambiences_differ_in_colour_and_movement():
    centre, movement = {}, {}
    for kind in AMBIENCES:
        wave = world.render(WorldScene(5.0, ambience=kind), generator())
        power = np.abs(np.fft.rfft(wave)) ** 2
        centre[kind] = (power * np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)).sum() / power.sum()
        level = np.sqrt(np.square(wave).reshape(-1, 800).mean(axis=1))[1:-1]
        movement[kind] = level.std() / level.mean()
    assert centre["rain"] > 2000 > centre["murmur"] > centre["wind"] and centre["wind"] < 400
    assert movement["waves"] > 0.5 and movement["murmur"] > 0.3 and movement["rain"] < 0.2 and movement["quiet"] < 0.2


@pytest.mark.parametrize("kind", STATIONARY)
def test_what_is_stationary_neither_fades_nor_changes(kind):
    rng = generator()
    ends, right = [], []
    for _ in range(40):
        scene = replace(world.sample_scene(rng, kind, layered=False), seconds=4.0, quality=None)
        wave = world.render(scene, rng)
        power = np.square(wave)
        ends.append([power[:1600].mean() / power.mean(), power[-1600:].mean() / power.mean()])
        if len(right) < 12:
            start = int(rng.integers(2 * SAMPLE_RATE))
            heard = judge(scene, wave[start : start + 2 * SAMPLE_RATE])
            right.append(all(answer for name, answer in heard.items() if name != "length"))
    # One wave is at its crest where the clip ends, another in its trough: in the mean there is no fade.
    assert 10 * np.log10(np.mean(ends, axis=0)).min() > -3
    assert sum(right) >= 11


@needs_espeak
def test_labels_say_where_words_are():
    """What is labelled is loud, what is not is silent; three parts of a word follow each other."""
    scene = WorldScene(2.4, speech=Speech("low", ("seven", "two", "seven")))
    wave = world.render(scene, generator())
    labels = world.word_labels(scene, len(wave) // SAMPLES_PER_FRAME)
    peaks = np.abs(wave).reshape(-1, SAMPLES_PER_FRAME).max(axis=1)
    assert peaks[labels > 0].mean() > 5 * peaks[labels == 0].mean()
    heard = [label for label, _ in itertools.groupby(labels)]
    seven, two = 1 + 7 * world.WORD_PARTS, 1 + 2 * world.WORD_PARTS
    assert [label for label in heard if label] == [word + part for word in (seven, two, seven) for part in range(3)]
    assert world.WORD_LABELS == 1 + len(DIGITS) * world.WORD_PARTS and labels.max() < world.WORD_LABELS
    assert not world.word_labels(WorldScene(2.0, ambience="rain"), 50).any()


@needs_espeak
@pytest.mark.parametrize("voice", VOICES)
def test_voices_are_low_and_high(voice):
    periods = [SAMPLE_RATE // pitch for pitch in voices.PITCHES[voice]]
    repeats = []
    for take in (take for word in ("one", "seven", "three") for take in voices.takes(word, voice)):
        assert len(take) <= voices.WORD_SECONDS * SAMPLE_RATE
        similar = voices.autocorrelation(take.astype(np.float64))
        repeats.append(40 + int(np.argmax(similar[40:208])))
    on_pitch = [any(abs(best - n * period) <= 1 for period in periods for n in (1, 2, 3)) for best in repeats]
    # A take may be mostly noise.
    assert np.mean(on_pitch) > 0.9
    assert all(VOICE_PITCH[voice][0] <= pitch <= VOICE_PITCH[voice][1] for pitch in voices.PITCHES[voice])
    scene = WorldScene(2.0, speech=Speech(voice, ("one", "seven")))
    wave = world.render(scene, generator())
    low, high = world.SPEECH_PEAK
    assert low - 0.01 <= decibels(np.abs(wave).max()) <= high + 0.01
    assert VOICE_PITCH[voice][0] <= voices.median_pitch(wave) <= VOICE_PITCH[voice][1]
    with pytest.raises(ValueError, match="does not fit"):
        world.render(replace(scene, seconds=0.6), generator())


def test_without_espeak_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(voices, "_takes", {})
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    with pytest.raises(voices.NoEspeak, match="apt-get install espeak-ng"):
        voices.takes("three", "low")


# ---- captions


@pytest.mark.parametrize("held_out", [False, True])
def test_captions_say_what_is_heard(held_out):
    rng = generator()
    for _ in range(600):
        scene = world.sample_scene(rng)
        aspects = captions.describe(scene, rng, held_out)
        compose_prompt(**aspects)
        assert set(aspects) == {"caption"}.union(
            *(captions.CAPTION_ASPECTS[layer] for layer in captions.layers_of(scene))
        )
        for part, aspect in ((scene.effect, "sfx"), (scene.music, "music"), (scene.speech, "speech")):
            for name, choices in captions.GRAMMAR_ATTRIBUTES.items():
                value = getattr(part, name, None)
                if value is not None:
                    for text in (aspects["caption"], aspects[aspect]):
                        assert any(word in text.lower() for word in choices[value]), (scene, text)
        if scene.speech:
            assert re.findall("[a-z]+", aspects["asr"].lower()) == list(scene.speech.words)
        length = {captions.length_words(scene.seconds, numerals) for numerals in (False, True)}
        said = any(words in aspects["caption"].lower() for words in length)
        assert said or (not held_out and captions.length_class(scene.seconds) in aspects["caption"].lower())
        assert not re.search(r"[{}()]|\ba [aeiou]|\ban [^aeiou]", " ".join(aspects.values()), re.I)


def test_every_kind_has_six_wordings():
    grammar = captions.TRAINING
    pools = [*grammar.nouns.values(), *grammar.quality.values(), grammar.aspect, grammar.speech, grammar.ambience]
    pools.append(grammar.nothing)
    assert set(grammar.nouns) == set(captions.HELD_OUT.nouns) == {*EFFECTS, *MUSIC, *AMBIENCES, "speech"}
    assert all(len(set(pool)) >= 6 for pool in (*pools, grammar.caption, grammar.caption_class))


def test_held_out_wordings_are_never_trained_on():
    fields = ("aspect", "speech", "ambience", "caption", "nothing", "links")
    for field in fields:
        assert not set(getattr(captions.TRAINING, field)) & set(getattr(captions.HELD_OUT, field))
    for field in ("nouns", "quality", "tails"):
        for kind, wordings in getattr(captions.HELD_OUT, field).items():
            assert not set(wordings) & set(getattr(captions.TRAINING, field)[kind])

    rng, trained, held_out, words = generator(), set(), set(), set()
    for _ in range(4000):
        scene = world.sample_scene(rng)
        aspects = captions.describe(scene, rng)
        words.update(re.findall(r"[a-z0-9.-]+", " ".join(aspects.values()).lower()))
        for kept, told in ((trained, aspects), (held_out, captions.describe(scene, rng, held_out=True))):
            kept.update(text.lower() for aspect, text in told.items() if aspect != "asr")
    assert not trained & held_out
    for choices in captions.GRAMMAR_ATTRIBUTES.values():
        for wordings in choices.values():
            assert {word for wording in wordings for word in wording.split()} <= words


@pytest.mark.parametrize("held_out", [False, True])
def test_a_caption_names_what_it_should_and_nothing_else(held_out):
    rng = generator()
    for _ in range(300):
        scene = world.sample_scene(rng, layered=True)
        layers = captions.layers_of(scene)
        for unnamed in [layers, *([layer] for layer in layers)]:
            aspects = captions.describe(scene, rng, held_out, unnamed)
            named = {stem(word) for word in words_in(aspects["caption"])}
            for layer in {"effect", "music", "ambience"} & set(unnamed):
                part = getattr(scene, layer)
                assert stem(getattr(part, "kind", part)) not in named, aspects
            assert bool(named & NAMES) == bool(set(layers) - {*unnamed, "quality"}), aspects
            assert all(aspect in aspects for layer in layers for aspect in captions.CAPTION_ASPECTS[layer])


def test_training_prompts_tell_every_layer_somewhere():
    """The caption is never dropped, an aspect only where the caption names its layer."""
    rng = generator()
    scene = WorldScene(2.0, Effect("bell"), ambience="wind")
    prompts = [captions.training_prompt(scene, rng) for _ in range(1000)]
    bell, wind = "bell|chime", "wind|gust|blow|breeze"
    for prompt in prompts:
        assert prompt.startswith("<|caption|> ")
        assert re.search(bell, prompt, re.I) and re.search(wind, prompt, re.I), prompt
    heads = [prompt.split(" <|")[0] for prompt in prompts]
    told = [tuple(bool(re.search(kind, head, re.I)) for kind in (bell, wind)) for head in heads]
    shares = {case: told.count(case) / len(told) for case in set(told)}
    assert abs(shares[False, False] - captions.NAMES_NOTHING) < 0.05
    assert abs(shares[True, False] + shares[False, True] - captions.NAMES_THE_OTHERS) < 0.05
    whole = [prompt for prompt, case in zip(prompts, told, strict=True) if case == (True, True)]
    assert abs(np.mean(["<|sfx|>" not in prompt for prompt in whole]) - captions.DROP) < 0.06
