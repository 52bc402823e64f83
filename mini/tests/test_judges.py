"""The judges on sounds made here by the simplest formulas: the right label, and none for silence."""

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from dasheng_core.duration import SAMPLE_RATE
from mini import judges, recogniser
from mini.judges import CHANCE, JUDGED_ATTRIBUTES, WINDOWS, judge
from mini.levels import Sound
from mini.scores import answer, count, is_single, wilson
from mini.vocabulary import TEMPO, Effect, Music, Speech, WorldScene


def seconds(length):
    return np.arange(round(length * SAMPLE_RATE)) / SAMPLE_RATE


def noise(length, low=None, high=None, seed=0, rms=0.1):
    """White noise, or a band of it in Hz."""
    samples = np.random.default_rng(seed).standard_normal(round(length * SAMPLE_RATE))
    if low:
        samples = sosfilt(butter(2, low, "highpass", fs=SAMPLE_RATE, output="sos"), samples)
    if high:
        samples = sosfilt(butter(2, high, "lowpass", fs=SAMPLE_RATE, output="sos"), samples)
    return samples / samples.std() * rms


def tone(hz, length=0.8, clip=2.0, start=0.3):
    clock = seconds(length)
    return placed(
        0.4 * np.sin(2 * np.pi * hz * clock) * np.minimum(1, np.minimum(clock, length - clock) / 0.01), start, clip
    )


def placed(sound, start, clip):
    whole = np.zeros(round(clip * SAMPLE_RATE))
    first = round(start * SAMPLE_RATE)
    whole[first : first + len(sound)] = sound[: len(whole) - first]
    return whole


def chirp(low, high, length=1.5):
    """A tone whose frequency moves evenly in octaves."""
    clock = seconds(length)
    phase = np.cumsum(low * (high / low) ** (clock / length)) / SAMPLE_RATE
    return placed(0.4 * np.sin(2 * np.pi * phase), 0.2, 2.0)


def knocks(count, gap=0.45, clip=2.5):
    clock = seconds(0.2)
    one = (np.sin(2 * np.pi * 180 * clock) + noise(0.2, high=1200, rms=0.7)) * np.exp(-clock / 0.025)
    return sum(placed(0.5 * one, 0.3 + gap * i, clip) for i in range(count))


def clicks(gap=0.25, clip=2.0):
    clock = seconds(0.01)
    one = noise(0.01, low=2000, rms=0.5) * np.exp(-clock / 0.0015)
    return sum(placed(one, start, clip) for start in np.arange(0.2, clip - 0.1, gap))


def bell(hz=650, clip=2.5):
    clock = seconds(clip - 0.2)
    partials = ((1, 1.0, 0.6), (2.76, 0.6, 0.45), (5.4, 0.35, 0.3), (8.93, 0.2, 0.2))
    return placed(
        0.25 * sum(a * np.sin(2 * np.pi * hz * r * clock) * np.exp(-clock / d) for r, a, d in partials), 0.2, clip
    )


def whistle(hz=1300, clip=2.0):
    clock = seconds(clip - 0.4)
    phase = np.cumsum(hz * 2 ** (0.12 * np.sin(2 * np.pi * 5 * clock))) / SAMPLE_RATE
    return placed(0.3 * np.sin(2 * np.pi * phase), 0.2, clip)


def harmonic(hz, length, tilt=1.0, partials=40):
    """A fundamental and its multiples; the n-th has amplitude n ** -tilt."""
    clock = seconds(length)
    multiples = [n for n in range(1, partials + 1) if n * hz < 7500]
    return sum(np.sin(2 * np.pi * n * hz * clock) * n**-tilt for n in multiples) * 0.15


def engine(rate=18, clip=2.5):
    clock = seconds(clip)
    phase = (clock * rate) % 1
    return 4 * noise(clip, low=40, high=200) * np.exp(-phase * 4) + 0.3 * np.sin(2 * np.pi * 80 * clock) * np.exp(
        -phase * 4
    )


def arpeggio(rate, lowest, tilt=2.5, clip=3.0):
    """Major triads up and down; every note fades a little."""
    notes = []
    for i in range(int(clip * rate)):
        note = harmonic(lowest * (1, 1.25, 1.5, 2, 1.5, 1.25)[i % 6], 1 / rate, tilt)
        notes.append(note * np.exp(-seconds(1 / rate) * rate * 1.5) * np.minimum(1, seconds(1 / rate) / 0.005))
    return np.concatenate(notes)


def beat(rate, clip=3.0):
    clock = seconds(0.12)
    drum = np.sin(2 * np.pi * 70 * clock) * np.exp(-clock / 0.03) + noise(0.12, low=1000, rms=0.3) * np.exp(
        -clock / 0.015
    )
    return sum(placed(0.5 * drum, start, clip) for start in np.arange(0.05, clip - 0.15, 1 / rate))


def waves(clip=5.0):
    return noise(clip, low=200, high=3000) * (0.15 + np.sin(2 * np.pi * 0.25 * seconds(clip)) ** 2)


def wind(clip=4.0):
    return noise(clip, high=300) * (0.75 + 0.25 * np.sin(2 * np.pi * 0.4 * seconds(clip)))


def murmur(clip=4.0):
    clock = seconds(clip)
    voices = [
        noise(clip, 300, 1200, seed) * (0.1 + np.sin(np.pi * (2.5 + seed) * clock + seed) ** 2) for seed in (1, 2)
    ]
    return sum(voices)


def pulse_voice(hz, clip=2.0):
    """Pulses through two formants, four syllables, gliding by a tenth around ``hz``."""
    clock = seconds(clip)
    phase = np.cumsum(hz * (1 + 0.05 * np.sin(2 * np.pi * 0.7 * clock))) / SAMPLE_RATE
    pulses = np.diff(np.floor(phase), prepend=0)
    formants = sum(
        sosfilt(butter(1, (f * 0.85, f * 1.15), "bandpass", fs=SAMPLE_RATE, output="sos"), pulses) for f in (600, 1400)
    )
    return formants * np.maximum(0, np.sin(2 * np.pi * 1.5 * clock)) ** 0.5


SOUNDS = {
    "effect": {
        "beep": tone(800),
        "sweep": chirp(300, 2000),
        "knock": knocks(2),
        "bell": bell(),
        "whistle": whistle(),
        "click": clicks(),
        "buzz": harmonic(100, 2.0, tilt=0.7),
        "engine": engine(),
    },
    "pitch": {"low": tone(300), "middle": tone(800), "high": tone(2000)},
    "direction": {"rising": chirp(300, 2000), "falling": chirp(2000, 300)},
    "count": {1: knocks(1), 2: knocks(2), 3: knocks(3)},
    "music": {"arpeggio": arpeggio(2, 150), "drone": harmonic(150, 3.0, 1.5), "beat": beat(2)},
    "tempo": {"slow": arpeggio(2, 550), "fast": arpeggio(5.5, 550)},
    "register": {"low": harmonic(150, 3.0, 1.5), "high": harmonic(600, 3.0, 1.5)},
    "timbre": {"soft": harmonic(150, 3.0, 3.0), "bright": harmonic(150, 3.0, 0.5)},
    "ambience": {
        "rain": noise(4.0, low=1500),
        "wind": wind(),
        "waves": waves(),
        "murmur": murmur(),
        "quiet": noise(4.0, high=2000, rms=0.001),
    },
    "quality": {"studio": tone(500), "static": tone(500) + noise(2.0, rms=0.02)},
    "voice": {"low": pulse_voice(110), "high": pulse_voice(230)},
}
CASES = [(attribute, label) for attribute, labels in SOUNDS.items() for label in labels]


def verdict(attribute, waveform):
    return judges.JUDGES[attribute](Sound(waveform.astype(np.float32)))


@pytest.mark.parametrize("attribute, label", CASES)
def test_each_judge_tells_its_labels_apart(attribute, label):
    assert verdict(attribute, SOUNDS[attribute][label]) == label


@pytest.mark.parametrize("attribute, label", CASES)
def test_a_little_rain_does_not_confuse(attribute, label):
    if attribute in ("ambience", "quality"):
        pytest.skip("judges of the noise itself")
    waveform = SOUNDS[attribute][label]
    loud = np.sqrt(np.mean(waveform[np.abs(waveform) > 0.01] ** 2))
    rain = noise(len(waveform) / SAMPLE_RATE, low=1500, seed=5, rms=loud * 0.05)
    assert verdict(attribute, waveform + rain) == label


@pytest.mark.parametrize("tempo, rate", [(tempo, rate) for tempo, ends in TEMPO.items() for rate in ends])
@pytest.mark.parametrize("sound", [beat, lambda rate: arpeggio(rate, 150)], ids=["beat", "arpeggio"])
def test_tempo_at_the_ends_of_its_classes(sound, tempo, rate):
    assert verdict("tempo", sound(rate)) == tempo


@pytest.mark.parametrize(
    "waveform", [np.zeros(32000), noise(2.0, rms=1e-5), np.zeros(0)], ids=["zeros", "hiss", "empty"]
)
@pytest.mark.parametrize("attribute", judges.JUDGES)
def test_silence_is_nothing(attribute, waveform):
    assert verdict(attribute, waveform) is None


FULL = WorldScene(
    seconds=2.0,
    effect=Effect("beep", pitch="middle"),
    music=Music("arpeggio", tempo="slow", register="low", timbre="soft"),
    speech=Speech("low", ("one", "two")),
    ambience="rain",
    quality="studio",
)


def test_the_stated_attributes_are_judged_and_no_others():
    beep = WorldScene(seconds=2.0, effect=Effect("beep", pitch="middle"))
    assert judge(beep, tone(800)) == {"length": True, "effect": True, "pitch": True}
    assert judge(beep, tone(300)) == {"length": True, "effect": True, "pitch": False}
    assert judge(beep, tone(800, clip=3.0)) == {"length": False, "effect": True, "pitch": True}
    assert set(judge(FULL, tone(800))) == set(CHANCE) - {"direction", "count", "words"}
    assert {name for names in JUDGED_ATTRIBUTES.values() for name in names} | {"length"} == set(CHANCE)


@pytest.mark.parametrize(
    "heard, right",
    [
        (("one", "two"), [True, True]),
        (("two", "one"), [False, False]),
        (("one", "two", "two"), [True, True]),
        (("one",), [True, False]),
        ((), [False, False]),
    ],
)
def test_each_word_is_asked_for_in_its_place(heard, right):
    assert answer(FULL, tone(800), lambda waveform: heard)["words"] == right
    assert "words" not in answer(FULL, tone(800), None)
    assert answer(FULL, tone(800) * 0, lambda waveform: heard)["words"] == [False, False]


def test_stretches_of_a_stationary_clip_are_judged_alone():
    """A drone that ends halfway is a drone as a whole, and its last two seconds are not."""
    drone = WorldScene(4.0, music=Music("drone", register="low", timbre="soft"))
    whole = harmonic(150, 4.0, 3.0)
    assert answer(drone, whole, None)[WINDOWS] == [True, True, True]
    half = np.where(seconds(4.0) < 2.2, whole, 0)
    assert answer(drone, half, None)[WINDOWS] == [True, False, False]
    assert WINDOWS not in answer(WorldScene(4.0, Effect("buzz")), whole, None)
    assert WINDOWS not in answer(WorldScene(2.0, ambience="rain"), whole, None)


def test_a_layer_is_counted_alone():
    scenes, clips = [FULL, FULL], [tone(800), tone(800)]
    counted = {attribute for _, attribute, _ in count(scenes, clips, None, ["effect", "ambience"])}
    assert counted == {"effect", "pitch", "ambience"}
    assert all(asked == 1 for _, asked in count(scenes, clips, None, ["effect", "ambience"]).values())


@pytest.mark.parametrize(
    "waveform", [np.zeros(32000), tone(800) * 1e-4, np.full(32000, np.nan)], ids=["zeros", "faint", "nan"]
)
def test_silence_satisfies_nothing(waveform):
    assert not any(judge(FULL, waveform).values())
    assert not any(judge(WorldScene(seconds=2.0, ambience="quiet"), waveform * 0).values())


@pytest.mark.parametrize(
    "waveform", [noise(4.0, high=300), engine(), beat(2)], ids=["steady low noise", "engine", "beat"]
)
def test_not_every_low_noise_is_wind(waveform):
    assert verdict("ambience", waveform) != "wind"


def test_a_click_is_heard_as_a_tone_is():
    """Over a quarter of a second a click would count for nothing, and a knock that nobody notices would be counted."""
    for waveform in (clicks(), knocks(1), tone(800)):
        peak = np.abs(waveform).max()
        assert judges.heard(waveform * 0.3 / peak) and not judges.heard(waveform * 0.01 / peak)


@pytest.mark.parametrize(
    "waveform", [harmonic(100, 2.0, tilt=0.7), placed(noise(1.5), 0.3, 2.0)], ids=["buzz", "noise"]
)
def test_what_starts_and_stays_is_no_knock(waveform):
    assert verdict("count", waveform) is None


@pytest.mark.parametrize("label, hz", [("low", 110), ("high", 230)])
def test_a_tone_beside_a_voice_is_not_taken_for_it(label, hz):
    voice = pulse_voice(hz)
    beside = tone(300, 1.8, 2.0, 0.1)
    assert verdict("voice", voice / np.abs(voice).max() * 0.4 + beside) == label


def test_rows_and_guesses():
    spoken = WorldScene(2.0, speech=Speech("low", ("one", "two")))
    assert judges.kind_of(spoken, "words") == "2 in a clip"
    assert judges.chance_of(spoken, "words") == pytest.approx(1 / 10)
    drone = WorldScene(4.0, music=Music("drone", register="low", timbre="soft"))
    assert judges.kind_of(drone, WINDOWS) == "drone"
    assert judges.chance_of(drone, WINDOWS) == pytest.approx(1 / 3 / 2 / 2)


def test_a_quiet_room_is_quiet_and_not_silent():
    scene = WorldScene(seconds=2.0, ambience="quiet")
    assert judge(scene, noise(2.0, high=2000, rms=0.001))["ambience"]
    assert not judge(scene, noise(2.0, high=2000, rms=0.05))["ambience"]


def test_a_recogniser_learns_words_from_pairs_and_comes_back_from_its_file(tmp_path):
    """Two "words" of two tones each, which differ in their order only, and so in nothing but time."""
    rng = np.random.default_rng(0)
    spoken = {"up": (500, 1500), "down": (1500, 500)}

    def clip():
        words = tuple(rng.choice(list(spoken), rng.integers(1, 3)))
        sounds = [np.concatenate([tone(hz, 0.15, 0.15, 0) for hz in spoken[word]] + [np.zeros(4000)]) for word in words]
        return np.concatenate([np.zeros(1600), *sounds]) + noise(0.1 + 0.55 * len(words), rms=0.005), words

    trained = recogniser.train_recogniser([clip() for _ in range(64)], epochs=20)
    recogniser.save(trained, tmp_path / "words.safetensors")
    model = recogniser.load(tmp_path / "words.safetensors")
    heard = [(model.recognise(waveform), words) for waveform, words in (clip() for _ in range(20))]
    assert sum(answer == words for answer, words in heard) >= 17, heard
    assert model.recognise(np.zeros(100)) == ()


def test_intervals_and_layers_of_the_score_table():
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(10, 10)[1] == 1 and wilson(0, 10)[0] == 0
    assert is_single(WorldScene(seconds=2.0, ambience="rain", quality="studio"))
    assert not is_single(WorldScene(seconds=2.0, ambience="rain", quality="static"))
    assert not is_single(FULL)
