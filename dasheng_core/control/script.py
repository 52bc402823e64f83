"""Scripts: lines of a time, an aspect and a text, SRT cues or Audacity's labels -> a timeline of whole scenes."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ..duration import FRAME_RATE, MAX_SECONDS
from ..inputs import as_float, as_seconds, as_text
from ..options import FADE
from ..prompt import ASPECTS, compose_prompt, parse_prompt, spoken_words
from ..quoting import plain
from .timeline import Timeline, as_span

SCENE = "scene"
# Characters of a script, and of all its scenes: a mask over ten minutes of so many takes a gigabyte.
LONGEST_SCRIPT = 100_000
# Lines that are heard at one time.
MOST_TOGETHER = 12
# Seconds that a word takes, and a sentence beside its words; of a last line that has no end.
WORD_SECONDS, SENTENCE_SECONDS, LAST_SECONDS = 0.5, 0.5, 4.0
# Seconds of words in one prompt: the model was trained on clips of that length.
SPEECH_SPAN = 10.0
NOTHING = "near silence in a quiet room"

_TIME = r"(?:\d{1,5}:){0,2}\d{1,5}(?:[.,]\d{0,20})?(?:\s?s\b)?"
_TIMES = re.compile(rf"\[?({_TIME})(?:\s*(?:-->|[-–—]|\bto\b|(?<=s):|\t)\s*({_TIME}))?\]?(?:\s+(.*))?")
_CUE = re.compile(rf"({_TIME})\s*-->\s*({_TIME})")
_ASPECT = re.compile(r"([^\W\d_]{1,20})\s*[:：]\s*(.*)")
_LAST = re.compile(rf",\s*(?:from\s+({_TIME}))?\s*(?:to\s+({_TIME}))?")
_MARKS = re.compile(r"</?(?:i|b|u|font)\b[^<>]*>")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’»)])\s+|(?<=[。！？])\s*")


class ScriptLine(NamedTuple):
    """What a line says: from when to when, in seconds, which aspect (or ``scene``), and its text.

    Attributes:
        number: of the line in the text.
        is_open: it has no end of its own.
    """

    start: float
    end: float
    aspect: str
    text: str
    number: int
    is_open: bool = False


@dataclass(frozen=True)
class Script(Timeline):
    """The timeline of a script; stands wherever a prompt stands.

    Attributes:
        lines: what the text says, in the order of time.
    """

    lines: tuple[ScriptLine, ...] = ()

    @classmethod
    def parse(
        cls, text: str, fade: float = FADE, seconds: float | None = None, speech_span: float = SPEECH_SPAN
    ) -> "Script":
        """Read a script; docs/script.md has its rules.

        Args:
            fade: of the timeline.
            seconds: the clip's length; None: until the last end.
            speech_span: words that take more seconds are split, at the ends of sentences.

        Raises:
            PromptError: a text that no prompt can have; or
            ValueError: another line that cannot be read, by its number.
        """
        longest = as_float(speech_span, "speech_span", 0.5, 600, "it is how many seconds of words one prompt has")
        given = list(read_script(as_text(text, "The script")))
        if not given:
            raise ValueError(
                "The script has no lines, expected a time, an aspect and a text: '0:02-0:04 sfx: a door slams'."
            )
        length = as_seconds(seconds, 1)[0] if seconds is not None else _length(given)
        late = next((line for line in given if line.start >= (length or math.inf)), None)
        if late is not None:
            raise ValueError(
                f"line {late.number} begins at {late.start:g} s, expected a time inside the clip of {length:g} s: make the "
                "clip longer, or the time earlier."
            )
        lines = [line._replace(end=min(line.end, length or math.inf)) for line in _with_ends(given)]
        pieces = [piece for line in lines for piece in speech_pieces(line, longest)]
        return cls(tuple(_scenes(pieces, length or math.inf)), fade, length, tuple(lines))


def read_script(text: str) -> Iterator[ScriptLine]:
    """The lines of a script as they are written, SRT cues and labels too. Raises as :meth:`Script.parse` does."""
    if len(text) > LONGEST_SCRIPT:
        raise ValueError(f"The script has {len(text):,} characters, expected at most {LONGEST_SCRIPT:,}: split it.")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    rows = [row.strip() for row in text.split("\n")]
    # The times of the SRT cue whose text follows, and where the words so far end: words without a time follow there.
    cue, said, before = None, 0.0, None
    for number, row in enumerate(rows, start=1):
        is_cue_number = row.isdigit() and "-->" in "".join(rows[number : number + 1])[:40]
        cue = cue if row else None
        if not row or is_cue_number or cue is None and row.startswith(("#", "\\\t")):
            continue
        try:
            if cue is None and (found := _CUE.fullmatch(row)):
                cue = _times(found[1], found[2])
                continue
            times, aspect, text = _timed(row) if cue is None else (cue, *_aspect_of(_MARKS.sub("", row), "asr"))
            compose_prompt(caption=text, asr=text)
            start, end = times or (said if aspect in ("speech", "asr") else 0.0, math.inf)
            if aspect == "asr":
                end = said = start + seconds_of_words(text) if end == math.inf else end
            elif aspect == "speech" and times:
                said = start
            as_span(start, end)
        except ValueError as error:
            raise type(error)(f"line {number}: {error}") from error
        line = ScriptLine(start, end, aspect, text, number, end == math.inf)
        if before and cue and before[:3] == line[:3] and aspect == "asr":
            # Words of one cue.
            line = before._replace(text=f"{before.text} {text}")
        elif before:
            yield before
        before = line
    if before:
        yield before


def _timed(row: str) -> tuple[tuple[float, float] | None, str, str]:
    """The times of a line, None where it has none, its aspect and its text."""
    if match := _TIMES.fullmatch(row):
        return _times(match[1], match[2]), *_aspect_of(match[3] or "", SCENE)
    aspect, text = _aspect_of(row)
    last = _LAST.fullmatch(text, max(text.rfind(", from"), text.rfind(", to"), 0))
    # Words may end with a time.
    if aspect == "asr" or not last:
        return None, aspect, text
    return _times(last[1] or "0", last[2]), aspect, text[: last.start()]


def _times(start: str, end: str | None) -> tuple[float, float]:
    first = _seconds(start)
    last = _seconds(end) if end else math.inf
    # A label of a moment has it twice.
    return first, math.inf if last == first else last


def _seconds(time: str) -> float:
    parts = time.rstrip("s ").replace(",", ".").split(":")
    return sum(float(part) * 60**power for power, part in enumerate(reversed(parts)))


def _aspect_of(row: str, default: str | None = None) -> tuple[str, str]:
    """The aspect of a text, and the rest; ``default`` where it names none. Raises ValueError for one that is none."""
    match = _ASPECT.fullmatch(row)
    name = match[1].lower().replace("caption", SCENE) if match else ""
    if match and name in (SCENE, *ASPECTS) and match[2]:
        return name, match[2]
    # In words, what stands before a colon is spoken too.
    if not row or default is None or match and default != "asr":
        raise ValueError(
            f"{plain(row, 60)!r} does not say what is heard, expected one of {SCENE}, {', '.join(ASPECTS[1:])}, a colon and a text, "
            "and before it a time: '0:02-0:04 sfx: a door slams'."
        )
    return default, row


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def seconds_of_words(text: str) -> float:
    """How long a text takes to say, each word and each sentence a little."""
    words = spoken_words(compose_prompt(caption=NOTHING, asr=text))
    return WORD_SECONDS * words + SENTENCE_SECONDS * len(_sentences(text))


def speech_pieces(line: ScriptLine, longest: float) -> list[ScriptLine]:
    """Words in pieces of at most so many seconds, cut where sentences end, each with its share of the time; another line is one piece."""
    if line.aspect != "asr":
        return [line]
    sentences = _sentences(line.text)
    needed = [seconds_of_words(sentence) for sentence in sentences]
    pace = (line.end - line.start) / sum(needed)
    pieces: list[ScriptLine] = []
    start, held, length = line.start, [], 0.0
    for i, (sentence, seconds) in enumerate(zip(sentences, needed, strict=True), start=1):
        held.append(sentence)
        length += seconds * pace
        if i == len(sentences) or length + needed[i] * pace > longest + 1e-6:
            pieces.append(line._replace(start=start, end=start + length, text=" ".join(held)))
            start, held, length = start + length, [], 0.0
    return pieces


def with_words(prompt: str, words: str) -> str:
    """A tagged prompt that says other words; without any, of a scene in which nobody speaks."""
    aspects = {**parse_prompt(prompt), "asr": words}
    if not words.strip():
        aspects = {aspect: text for aspect, text in aspects.items() if aspect not in ("speech", "asr")}
    return compose_prompt(**aspects)


def extended_scene(scene: str | Timeline, start: float, words: str) -> Timeline:
    """A scene that goes on from a second, the end of a clip that is kept, and says other words there."""
    timeline = scene if isinstance(scene, Timeline) else Timeline([(0.0, scene)])
    earlier = [entry for entry in timeline.entries if entry[0] < start]
    # A fade would let the words that are over be read where the others begin.
    return Timeline([*earlier, (start, with_words(earlier[-1][1], words))], fade=0.0)


def _order(line: ScriptLine) -> tuple[float, int]:
    return line.start, line.number


def _length(lines: Sequence[ScriptLine]) -> float | None:
    """When the last line ends, which has some seconds where it does not say it; None where no line has a time."""
    end = max((line.end for line in lines if line.end < math.inf), default=0.0)
    last = max((line.start for line in lines if line.end == math.inf), default=0.0)
    return (last + LAST_SECONDS if last and last >= end else end) or None


def _with_ends(lines: Sequence[ScriptLine]) -> Iterator[ScriptLine]:
    """Lines in the order of time; one without an end ends where the next such one of its aspect begins."""
    # By aspect, when the next one begins, and where that one ends.
    following: dict[str, tuple[float, float]] = {}
    ended = []
    for line in sorted(lines, key=_order, reverse=True):
        if line.is_open:
            start, end = following.get(line.aspect, (math.inf, math.inf))
            end = end if start == line.start else start
            following[line.aspect] = line.start, end
            line = line._replace(end=end)
        ended.append(line)
    return reversed(ended)


def _frames(line: ScriptLine) -> tuple[int, float]:
    """The first frame of a line, and the one after its last."""
    first = round(line.start * FRAME_RATE)
    return first, line.end if line.end == math.inf else max(first + 1, round(line.end * FRAME_RATE))


def _scenes(lines: Sequence[ScriptLine], length: float) -> Iterator[tuple[float, str]]:
    """The second and prompt of each span in which other lines are heard than before; times are those of frames."""
    changes: defaultdict[float, list[ScriptLine]] = defaultdict(list, {0: []})
    for line in lines:
        for frame in _frames(line):
            changes[frame].append(line)
    changes.pop(math.inf, None)
    heard: dict[ScriptLine, None] = {}
    has_words, before, letters = any(line.aspect == "asr" for line in lines), "", 0
    for frame, until in pairwise([*sorted(changes), math.inf]):
        if frame >= round(min(length, MAX_SECONDS) * FRAME_RATE):
            return
        for line in changes[frame]:
            if _frames(line)[0] == frame:
                heard[line] = None
            else:
                del heard[line]
        if len(heard) > MOST_TOGETHER:
            raise ValueError(
                f"At {frame / FRAME_RATE:g} s {len(heard)} lines are heard at one time, that of line {[*heard][-1].number} among them, "
                f"expected at most {MOST_TOGETHER}: let some end earlier."
            )
        prompt = _prompt(sorted(heard, key=_order), (frame, until), has_words)
        letters += len(prompt)
        if letters > LONGEST_SCRIPT:
            raise ValueError(
                f"The scenes until {frame / FRAME_RATE:g} s have {letters:,} characters in all, expected at most {LONGEST_SCRIPT:,}: split the "
                "script, or shorten the lines that last longest."
            )
        # The same words in two spans are said twice.
        if prompt != before or "asr" in parse_prompt(prompt):
            yield frame / FRAME_RATE, prompt
        before = prompt


def _prompt(heard: Sequence[ScriptLine], frames: tuple[float, float], has_words: bool) -> str:
    """The scene of the lines heard from one frame to another; its caption has all of them, unless a line says it."""
    texts = defaultdict(list)
    for line in heard:
        texts[line.aspect].append(_words_within(line, frames) if line.aspect == "asr" else line.text)
    words = " ".join(filter(None, texts.pop("asr", [])))
    if has_words and not words and all(line.is_open or line.aspect != "speech" for line in heard):
        texts.pop("speech", None)
    speakers = [f"someone speaks: {text}" for text in texts["speech"]] or ["someone speaks"] * bool(words)
    named = texts.pop(SCENE, [*speakers, *texts["sfx"], *texts["music"], *texts["env"]])
    aspects = {aspect: own[0] if len(own) == 1 else _as_sentences(own) for aspect, own in texts.items()}
    return compose_prompt(caption=_as_sentences(named or [NOTHING]), asr=words, **aspects)


def _as_sentences(texts: Sequence[str]) -> str:
    return " ".join(f"{text[0].upper()}{text[1:]}{'.' * text[-1].isalnum()}" for text in texts)


def _words_within(line: ScriptLine, frames: tuple[float, float]) -> str:
    """The words of a line whose middle lies between two frames, at an even pace."""
    words, (first, last) = line.text.split(), _frames(line)
    start, end = (round(len(words) * (frame - first) / (last - first)) for frame in (frames[0], min(frames[1], last)))
    return " ".join(words[max(start, 0) : end])
