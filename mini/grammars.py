"""The wordings of captions: two grammars, one for training and one kept out of it; standard library only."""

from dataclasses import dataclass

# What tells an attribute. A template names the attribute, the draw picks the word.
GRAMMAR_ATTRIBUTES = {
    "pitch": {
        "low": ("low", "low-pitched", "deep"),
        "middle": ("middle", "mid-pitched", "medium-pitched"),
        "high": ("high", "high-pitched", "shrill"),
    },
    "direction": {"rising": ("rising", "climbing", "ascending"), "falling": ("falling", "dropping", "descending")},
    "count": {1: ("one", "a single"), 2: ("two",), 3: ("three",)},
    "tempo": {"slow": ("slow", "slow-paced"), "fast": ("fast", "quick", "rapid")},
    "register": {"low": ("low", "deep"), "high": ("high", "treble")},
    "timbre": {"soft": ("soft", "mellow"), "bright": ("bright", "brilliant")},
    "voice": {"low": ("low", "deep", "low-pitched"), "high": ("high", "high-pitched")},
}
# Articles before attributes whose words may start with a vowel are written a(n).
LENGTHS = (
    "half a second",
    "one second",
    "one and a half seconds",
    "two seconds",
    "two and a half seconds",
    "three seconds",
    "three and a half seconds",
    "four seconds",
    "four and a half seconds",
    "five seconds",
    "five and a half seconds",
    "six seconds",
)
# Upper ends in seconds.
LENGTH_CLASSES = ((1.3, "very short"), (2.3, "short"), (3.6, "medium-length"), (5.0, "long"), (99.0, "very long"))


@dataclass(frozen=True)
class Grammar:
    """Templates of one of the two grammars.

    Attributes:
        nouns: for every kind, how to name it; ``{attribute}`` stands for a word of ATTRIBUTES.
        aspect: sentences around one named sound, for sfx and music.
        speech, ambience: sentences for the speech aspect and around an ambience, for env.
        quality: sentences, for env.
        caption: sentences around ``{sounds}`` and ``{seconds}`` (such as "two and a half seconds").
        caption_class: sentences around ``{sounds}`` and ``{length}`` (such as "very short").
        nothing: what stands for ``{sounds}`` in a caption that names nothing.
        links: what joins the layers' names in a caption.
        tails: what a caption adds for a quality.
    """

    nouns: dict[str, tuple[str, ...]]
    aspect: tuple[str, ...]
    speech: tuple[str, ...]
    ambience: tuple[str, ...]
    quality: dict[str, tuple[str, ...]]
    caption: tuple[str, ...]
    caption_class: tuple[str, ...]
    nothing: tuple[str, ...]
    links: tuple[str, ...]
    tails: dict[str, tuple[str, ...]]


TRAINING = Grammar(
    nouns={
        "beep": (
            "a {pitch} beep",
            "a {pitch} electronic beep",
            "a {pitch} tone",
            "a {pitch} beeping tone",
            "a {pitch} beeping signal",
            "a steady {pitch} beep",
            "a device with a {pitch} beep",
        ),
        "sweep": (
            "a(n) {direction} sweep",
            "a(n) {direction} tone",
            "a(n) {direction} electronic sweep",
            "a tone that is {direction} in pitch",
            "a sweep with {direction} pitch",
            "a(n) {direction} siren-like glide",
            "a gliding tone, {direction} steadily",
        ),
        "knock": (
            "{count} knock{s}",
            "{count} knock{s} on a door",
            "{count} knock{s} on wood",
            "{count} dull knock{s}",
            "{count} thud{s} on a wooden door",
            "{count} knocking sound{s}",
            "someone knocking, {count} knock{s} in all",
        ),
        "bell": (
            "a bell",
            "a bell ringing",
            "a ringing metal bell",
            "the chime of a bell",
            "a struck bell that rings out",
            "a church bell",
            "a bell tolling",
        ),
        "whistle": (
            "a whistle",
            "someone whistling",
            "a person whistling a long note",
            "a human whistle with vibrato",
            "a wavering whistle",
            "a whistled note",
        ),
        "click": (
            "clicks",
            "a train of clicks",
            "regular clicking",
            "a clicking sound",
            "a row of dry clicks",
            "something clicking steadily",
        ),
        "buzz": (
            "a buzz",
            "an electric buzz",
            "a harsh buzzing sound",
            "a constant buzzing",
            "a buzzer",
            "an electrical buzzing noise",
        ),
        "engine": (
            "an engine",
            "a running engine",
            "an idling engine",
            "the rumble of an engine",
            "an engine chugging",
            "a motor running",
        ),
        "arpeggio": (
            "a {tempo} {timbre} arpeggio in a {register} register",
            "a {tempo} arpeggio of {timbre} notes, {register} register",
            "a {timbre} {tempo} {register} arpeggio",
            "a {register} arpeggio, {tempo} and {timbre}",
            "{timbre} {register} notes in a {tempo} arpeggio",
            "a {tempo} broken chord with a {timbre} {register} sound",
        ),
        "drone": (
            "a {timbre} {register} drone",
            "a {register} {timbre} drone",
            "a drone with a {timbre} timbre in a {register} register",
            "a {register} drone, {timbre} in timbre",
            "a held {register} note with a {timbre} sound",
            "a sustained {timbre} drone, {register} register",
        ),
        "beat": (
            "a {tempo} beat",
            "a {tempo} drum beat",
            "drums playing a {tempo} beat",
            "a {tempo} rhythm of kick and hat",
            "a drum machine with a {tempo} beat",
            "{tempo} drums",
        ),
        "speech": (
            "a {voice} voice speaking",
            "a person speaking in a {voice} voice",
            "someone with a {voice} voice",
            "speech in a {voice} voice",
            "a {voice} voice saying something",
            "a speaker whose voice is {voice}",
        ),
        "rain": (
            "rain",
            "drops of rain",
            "steady rain",
            "rainfall",
            "rain on a roof",
            "the hiss of rain",
        ),
        "wind": (
            "wind",
            "gusts of wind",
            "blowing wind",
            "gusty wind",
            "wind outdoors",
            "the howl of wind",
        ),
        "waves": (
            "waves",
            "ocean waves",
            "waves on a beach",
            "the sea",
            "surf rolling in",
            "sea waves washing ashore",
        ),
        "murmur": (
            "a murmur",
            "a murmuring crowd",
            "murmuring people",
            "the babble of a crowd",
            "distant chatter",
            "people murmuring in the background",
        ),
        "quiet": (
            "a quiet room",
            "the silence of a room",
            "a nearly silent room",
            "an empty quiet room",
            "quiet room tone",
            "near silence",
        ),
    },
    aspect=(
        "{sounds}.",
        "{sounds} can be heard.",
        "The sound of {sounds}.",
        "You can hear {sounds}.",
        "We hear {sounds}.",
        "This is {sounds}.",
    ),
    speech=(
        "A {voice} voice.",
        "A {voice} voice speaks.",
        "A person speaks in a {voice} voice.",
        "The voice is {voice}.",
        "The speaker has a {voice} voice.",
        "Someone with a {voice} voice is talking.",
        "A clear {voice} voice says a few words.",
    ),
    ambience=(
        "{sounds}.",
        "{sounds} in the background.",
        "The background is {sounds}.",
        "The surroundings: {sounds}.",
        "The ambience is {sounds}.",
        "{sounds} all around.",
    ),
    quality={
        "studio": (
            "Studio-quality recording with minimal background noise.",
            "Studio-quality recording.",
            "A clean studio recording.",
            "Clean studio-quality sound with minimal noise.",
            "Recorded in a studio, with no noise.",
            "High-quality studio recording with no background noise.",
        ),
        "static": (
            "Poor-quality recording with persistent microphone static.",
            "Poor-quality recording with static.",
            "A noisy recording with constant static.",
            "Persistent static from the microphone.",
            "Microphone static runs through the recording.",
            "Noisy, poor-quality recording with microphone hiss.",
        ),
    },
    caption=(
        "{sounds}, about {seconds} long.",
        "{sounds} for about {seconds}.",
        "{seconds} of {sounds}.",
        "About {seconds} of {sounds}.",
        "A clip of {seconds} with {sounds}.",
        "{sounds}, lasting {seconds}.",
        "A recording of {sounds}, {seconds} long.",
        "{sounds} can be heard for {seconds}.",
        "A {class} clip of {sounds}, about {seconds}.",
        "A {class} recording, {seconds}: {sounds}.",
    ),
    caption_class=(
        "A {class} clip of {sounds}.",
        "A {class} recording of {sounds}.",
        "{sounds}, a {class} clip.",
        "A {class} sound: {sounds}.",
        "In a {class} clip, {sounds}.",
        "A {class} take with {sounds}.",
    ),
    nothing=("a recording", "a sound", "some sound", "audio", "something", "a take"),
    links=(" and ", " with ", " together with ", ", then also ", " over ", " mixed with "),
    tails={
        "studio": (" Studio-quality recording.", " A clean studio recording.", " The recording is clean."),
        "static": (" Poor-quality recording with static.", " The recording is full of static.", " Static throughout."),
    },
)

HELD_OUT = Grammar(
    nouns={
        "beep": (
            "a long {pitch} beeping sound",
            "the {pitch} beep of a machine",
            "a {pitch} signal beep",
        ),
        "sweep": (
            "a tone sweeping, {direction} all the time",
            "an electronic tone with a(n) {direction} glide",
            "a(n) {direction} pitch sweep",
        ),
        "knock": (
            "{count} wooden knock{s}",
            "exactly {count} knock{s} at the door",
            "a door with {count} knock{s}",
        ),
        "bell": ("the ringing of a bell", "a metal bell being struck", "ringing, from a metal bell"),
        "whistle": ("the whistling of a person", "a long whistle note", "someone who whistles with vibrato"),
        "click": ("a series of clicks", "steady dry clicking", "the regular sound of clicks"),
        "buzz": ("a buzzing electric sound", "the harsh noise of a buzzer", "constant electric buzzing"),
        "engine": ("the sound of a motor, an engine", "an engine that is running", "a rumbling idling engine"),
        "arpeggio": (
            "an arpeggio that is {tempo}, {timbre} and {register}",
            "a {register} register arpeggio with {timbre} notes at a {tempo} tempo",
            "{tempo} arpeggio notes, {timbre}, in the {register} register",
        ),
        "drone": (
            "a drone that is {register} and {timbre}",
            "a sustained {register} drone with {timbre} timbre",
            "a {timbre} note held as a {register} drone",
        ),
        "beat": ("a drum rhythm at a {tempo} tempo", "a beat of drums that is {tempo}", "{tempo} drumming, a beat"),
        "speech": (
            "words spoken by a {voice} voice",
            "a talking person with a {voice} voice",
            "a {voice} speaking voice",
        ),
        "rain": ("rain on the roof outdoors", "a roof under steady rain", "the sound of rainfall"),
        "wind": ("the wind blowing", "wind in gusts", "the blowing of gusty wind"),
        "waves": ("the waves of the sea", "ocean surf and waves", "a beach with rolling waves"),
        "murmur": ("a crowd of people murmuring", "the murmur of a crowd", "background chatter and murmur"),
        "quiet": ("a room that is quiet", "the near silence of a quiet room", "an empty room, nearly silent"),
    },
    aspect=(
        "What you hear is {sounds}.",
        "There, clearly, {sounds}.",
        "In the recording, {sounds}.",
    ),
    speech=(
        "The person speaking has a {voice} voice.",
        "Words in a {voice} voice.",
        "Someone talking, the voice {voice}.",
    ),
    ambience=(
        "As the ambience, {sounds}.",
        "In the background you hear {sounds}.",
        "All around, {sounds}.",
    ),
    quality={
        "studio": (
            "Clean sound, studio-quality, with no background noise.",
            "A high-quality recording from a studio.",
            "Studio-quality sound with minimal noise in the background.",
        ),
        "static": (
            "Persistent static and a poor-quality microphone.",
            "Noisy recording, the microphone full of static.",
            "Poor-quality sound with constant microphone static.",
        ),
    },
    caption=(
        "In this clip of about {seconds}, {sounds}.",
        "You can hear {sounds} for some {seconds}.",
        "{sounds}: a recording of {seconds}.",
        "A {class} take, {seconds} in all, of {sounds}.",
    ),
    caption_class=(),
    nothing=("some recording", "a sound recording", "some audio"),
    links=(" along with ", ", and with it ", " plus "),
    tails={
        "studio": (" Recorded clean, in studio-quality.", " It is a studio-quality recording."),
        "static": (" There is static throughout the recording.", " A poor-quality microphone with static."),
    },
)
