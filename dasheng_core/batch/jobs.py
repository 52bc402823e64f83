"""What to make: prompt files and options -> jobs, one per clip, all checked before any work starts."""

import argparse
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex

from ..control.script import Script
from ..control.timeline import Timeline, as_span, prompts_of, sections
from ..delivery.file_notes import says_asked
from ..delivery.formats import FORMATS, choose_format
from ..delivery.labels import Label, is_frequency_range, read_label
from ..delivery.library_tags import NO_TAGS, TAG_NAMES, LibraryTags, parse_tags
from ..duration import MAX_SECONDS, frames_from_seconds
from ..inputs import as_choice, as_int, as_seconds
from ..options import FADE, MOST_VARIATIONS
from ..prompt import ASPECTS, PromptError, compose_prompt, first_words, parse_prompt
from ..quoting import plain
from ..sampling import item_seeds
from .asked import digest_of
from .naming import check_folder, check_length, claim, fill_name, safe_name, with_fields
from .rows import read_lines, read_rows
from .tables import EXACT, KEYS, Row, as_keys, check_near, row_of

log = logging.getLogger(__name__)

# Keys of the published prompt files -> our keys.
PUBLISHED_KEYS = {"audio_id": "name", "content": "prompt"}
# What a category can set.
IN_A_CATEGORY = ("seconds", "takes", "format", "fade", *TAG_NAMES)
MAX_CLIPS = 100_000
# The largest sound file with its notes.
MOST_BYTES = 2**26
LONGEST_NUMBER = 400


@dataclass(frozen=True)
class Scene:
    """A prompt and its options. ``seed`` None: the run's; ``seconds`` None: the model's estimate; ``file_format`` None: the run's."""

    prompt: str | Timeline
    name: str
    seed: int | None
    seconds: float | None
    takes: int
    negative: str | None = None
    category: str = ""
    file_format: str | None = None
    tags: LibraryTags = NO_TAGS
    # Its takes are variations of one sound.
    is_set: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip to make, of a scene by its number, and the file under the output's root that it goes into.

    Attributes:
        asked: a digest of all that is asked for, the model too.
        take: its number among the ``takes`` of its scene, which is called ``name``.
        remake: replace the file that is there.
        is_set: its takes are variations of one sound, the first of which is drawn with ``seed``.
    """

    scene: int
    prompt: str | Timeline
    seed: int
    seconds: float | None
    file: str
    asked: str = ""
    remake: bool = False
    negative: str | None = None
    take: int = 1
    takes: int = 1
    name: str = ""
    category: str = ""
    file_format: str | None = None
    tags: LibraryTags = NO_TAGS
    is_set: bool = False

    @property
    def path(self) -> Path:
        return Path(self.file)


def make_scene(
    aspects: dict[str, str | None],
    seed: int | None = None,
    seconds: float | None = None,
    takes: int = 1,
    name: str | None = None,
    timeline: Sequence[Any] | Timeline | None = None,
    fade: float = FADE,
    negative: str | None = None,
) -> Scene:
    """A scene of checked values.

    Args:
        aspects: arguments of :func:`dasheng_core.compose_prompt`.
        name: for ``{name}`` in a naming template; None: the first words of the caption.
        timeline, fade: of a :class:`Timeline`, instead of aspects; or one, which has its own fade, and seconds where none are given.

    Raises ValueError for a prompt that the model cannot read, or an impossible seed, length, number of takes or name.
    """
    if timeline is not None and any(aspects.values()):
        raise PromptError("A timeline has its own prompts: give no other prompt beside it.")
    if timeline is not None and not isinstance(timeline, Timeline):
        timeline = Timeline(timeline, fade)
    prompt = timeline or compose_prompt(**aspects)
    if seconds is None and isinstance(prompt, Timeline):
        seconds = prompt.seconds
    check_numbers(seed, seconds, takes)
    if seconds is not None:
        sections(prompt, frames_from_seconds(seconds))
    if name is None:
        # In regex a word contains its combining marks; in re it ends there.
        name = regex.sub(r"\W+", "_", parse_prompt(prompts_of(prompt)[0])["caption"])[:40].strip("_") or "clip"
    return Scene(prompt, safe_name(name), seed, seconds, takes, as_negative(negative))


def as_negative(prompt: str | None) -> str | None:
    """A tagged prompt of what not to make. Raises ValueError for one that the model cannot read."""
    try:
        return None if prompt is None else compose_prompt(prompt=prompt)
    except ValueError as error:
        raise type(error)(f"negative: {error}") from error


def check_numbers(seed: int | None, seconds: float | None, takes: int) -> None:
    """Raise ValueError for a seed, a length or a number of takes that no clip can have."""
    if seed is not None:
        item_seeds(seed, 1)
    if seconds is not None:
        as_seconds(seconds, 1)
    as_int(takes, "takes", 1, MAX_CLIPS, "more are made by several runs, each with a --seed")


def read_scenes(path: Path, **defaults: Any) -> list[Scene]:
    """Read a prompt file, or a ``.csv`` or ``.parquet`` table; blank lines and lines that start with ``#`` are left out.

    A ``.jsonl`` file has an object of our :data:`KEYS` per line, where null is the same as leaving a key out; any other file has
    a tagged prompt per line. Of the model's own published prompt files ``audio_id`` is a name, ``content`` and a caption that
    starts with a tag are tagged prompts, and an aspect that is "None" is left out.

    Args:
        defaults: as :func:`read_scene` takes them.

    Raises ValueError, which names file and line, for what cannot be made, and for a file without lines; or OSError.
    """
    scenes = []
    for number, row in read_rows(str(path)):
        try:
            scenes.append(read_scene(row, **defaults))
        except ValueError as error:
            raise type(error)(f"{plain(path)}:{number}: {error}") from error
    if not scenes:
        raise ValueError(
            f"{plain(path)} has no prompts: write one tagged prompt per line, or one JSON object per line of a .jsonl."
        )
    return scenes


def read_timeline(path: Path) -> list[tuple[float, str]]:
    """The entries of a file that has a second and a tagged prompt per line, or of Audacity's labels.

    Blank lines and lines that start with ``#`` are left out. Raises ValueError, which names file and line, for one that starts
    with no second, or with none after that of the line before it, or has no tagged prompt; or OSError.
    """
    labels: list[Label] = []
    for number, line in read_lines(str(path)):
        if is_frequency_range(line):
            continue
        try:
            labels.append(_entry_of(line, labels[-1] if labels else None))
        except ValueError as error:
            raise type(error)(f"{plain(path)}:{number}: {error}") from error
    if not labels:
        raise ValueError(f"{plain(path)} has no lines, expected a second and a prompt in each: '3.5 <|caption|> ...'.")
    return [(label.start, label.text) for label in labels]


def _entry_of(line: str, before: Label | None) -> Label:
    """An entry of a timeline after the one before it. Raises ValueError for a line that is none."""
    label = read_label(line)
    if label is None:
        raise ValueError(
            f"{plain(repr(line), 60)} does not start with a second from 0 to {MAX_SECONDS:g}, expected it and a prompt: "
            "'3.5 <|caption|> ...'."
        )
    second = as_span(label.start).start
    if before is not None and second <= before.start:
        raise ValueError(
            f"a prompt from {second:g} s on, and the one before it is from {before.start:g} s on: let each begin later."
        )
    if before is not None and before.end is not None and abs(before.end - second) > 0.001:
        raise ValueError(
            f"the prompt before this one ends at {before.end:g} s, expected at {second:g} s, where this one begins: a prompt "
            "holds until the next."
        )
    return label._replace(text=compose_prompt(prompt=label.text))


def read_scene(row: str | Row, **defaults: Any) -> Scene:
    """A row of a prompt file as :func:`dasheng_core.batch.rows.read_rows` gives it, checked.

    Args:
        defaults: seed, seconds, takes, fade, negative and tags of rows without their own; ``categories``: such values, and
            ``format``, by the category of a row, which stand above them.
    """
    if isinstance(row, ValueError):
        raise row
    values = _check_keys(parse_object(row) if isinstance(row, str) else row)
    aspects = {key: values.pop(key) for key in (*ASPECTS, "prompt") if key in values}
    category, categories, tags = (
        values.pop("category", ""),
        defaults.pop("categories", {}),
        defaults.pop("tags", NO_TAGS),
    )
    if "takes" in values and "variations" in values:
        raise ValueError("takes and variations are two ways to make several clips: give one of them.")
    values = {**defaults, **categories.get(category, {}), **values}
    tags = replace(tags, **{name: values.pop(name) for name in TAG_NAMES if name in values})
    is_set = "variations" in values
    if is_set:
        values["takes"] = as_int(values.pop("variations"), "variations", 2, MOST_VARIATIONS, "they are one set")
    file_format = values.pop("format", None)
    if file_format is not None:
        as_choice(file_format, "format", FORMATS)
    if (text := values.pop("script", None)) is not None:
        if "timeline" in values:
            raise ValueError("script and timeline are both given: give one of them.")
        values["timeline"] = Script.parse(text, values.get("fade", FADE), values.get("seconds"))
    return replace(make_scene(aspects, **values), category=category, file_format=file_format, tags=tags, is_set=is_set)


def line_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`read_scene` takes for a line that does not say it. Raises ValueError for ``--metadata`` and ``--category``."""
    given = {name: getattr(args, name) for name in ("seconds", "takes", "fade", "negative")}
    return {**given, "tags": parse_tags(args.metadata or ()), "categories": parse_categories(args.category or ())}


def parse_categories(given: Iterable[list[str]]) -> dict[str, dict[str, Any]]:
    """``[["ambience", "seconds=30", "format=flac"]]`` -> what lines of a category have that do not say it.

    Raises ValueError for a category without values or given twice, and for a value that no line has.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, *settings in given:
        texts = dict(setting.partition("=")[::2] for setting in settings)
        if name in found or not texts:
            raise ValueError(
                f"--category {plain(name)}: expected one list of values for it, as in seconds=30 format=flac."
            )
        keys = [as_choice(key, f"A value of --category {plain(name)}", IN_A_CATEGORY) for key in as_keys(texts)]
        row = row_of(dict(zip(keys, texts.values(), strict=True)))
        if isinstance(row, ValueError):
            raise row
        # Tried on a scene: what is wrong with a value is said once, and not of each line.
        read_scene({"caption": "x", **row})
        found[name] = _check_keys(row)
    return found


def plan_jobs(
    scenes: Iterable[Scene], output: str, seed: int, file_format: str | None = None, recipe: str = ""
) -> list[Clip]:
    """The clips of all scenes in order, take i of a scene with its seed + i.

    Args:
        output: a file name, or a template of one with :data:`FIELDS` in braces. Several clips under a name without
            fields are numbered: ``stem_001.wav``.
        seed: of scenes without a seed of their own.
        recipe: what all clips have in common, see :func:`dasheng_core.batch.asked.recipe_of`.

    Raises ValueError for too many clips, an unknown field, a name of another format, or one that two clips would share.
    """
    scenes = list(scenes)
    choose_format(Path(output), file_format)
    count = sum(scene.takes for scene in scenes)
    if count > MAX_CLIPS:
        raise ValueError(f"{count} clips: expected at most {MAX_CLIPS} in one run; split the prompt file.")
    numbered = with_fields(output)
    template = numbered if count > 1 else output
    clips: list[Clip] = []
    owners: dict[str, int] = {}
    for number, scene in enumerate(scenes, start=1):
        for clip in scene_clips(scene, number, template, seed, len(clips) + 1, recipe):
            clips.append(clip)
            claim(owners, clip.path, len(clips))
    return clips


def scene_clips(scene: Scene, number: int, template: str, seed: int, index: int, recipe: str) -> Iterator[Clip]:
    """The takes of a scene, the first of which has the number ``index`` among all clips."""
    seeds = item_seeds(seed if scene.seed is None else scene.seed, scene.takes)
    if scene.is_set:
        if "{seed" in template:
            raise ValueError("variations have no {seed} in their names, since some takes are drawn again: use {take}.")
        seeds = seeds[:1] * scene.takes
    caption = parse_prompt(prompts_of(scene.prompt)[0])["caption"]
    for take, take_seed in enumerate(seeds, start=1):
        numbers = {"index": index + take - 1, "take": take, "seed": take_seed, "takes": scene.takes}
        path = Path(fill_name(template, scene.name, scene.category, scene.tags, numbers))
        delivery = scene.tags.given()
        if scene.file_format is not None:
            path, delivery = path.with_suffix(FORMATS[scene.file_format][0]), {**delivery, "format": scene.file_format}
        check_length(path)
        own = f"{recipe} variation {take} of {scene.takes}" if scene.is_set else recipe
        asked = digest_of(own, scene.prompt, take_seed, scene.seconds, scene.negative, delivery)
        same = {
            name: getattr(scene, name) for name in ("negative", "takes", "name", "category", "file_format", "is_set")
        }
        tags = replace(scene.tags, description=scene.tags.description or caption)
        yield Clip(number, scene.prompt, take_seed, scene.seconds, path.as_posix(), asked, take=take, tags=tags, **same)


def jobs_to_do(clips: Iterable[Clip], resume: bool) -> list[Clip]:
    """The clips whose files are missing, once it is sure that those can be written.

    Args:
        resume: files that are there and are what is asked for are taken as made; otherwise they are refused.

    Raises:
        FileExistsError: something of that name is there.
        OSError: a folder that cannot be written to.
    """
    there: list[Clip] = []
    todo: list[Clip] = []
    for clip in clips:
        (there if os.path.lexists(clip.path) else todo).append(clip)
    if strange := [clip.path for clip in there if not clip.path.is_file()]:
        raise FileExistsError(f"{plain(strange[0])} is there and is not a file: choose another name, or move it away.")
    if there and not resume:
        raise FileExistsError(
            f"{_some([clip.path for clip in there])} already there: choose another name, move the old files away, or make only "
            "what is missing by --resume."
        )
    others = [
        clip.path
        for clip in there
        if clip.path.stat().st_size > MOST_BYTES or not says_asked(clip.path.read_bytes(), clip.asked)
    ]
    if others:
        raise FileExistsError(
            f"{_some(others)} already there, and not what is asked for now, by its prompt, seed, length, settings and model: "
            "choose another name, or move the old files away."
        )
    for folder in dict.fromkeys(clip.path.parent for clip in todo):
        check_folder(folder)
    return todo


def _some(paths: list[Path]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(map(plain, paths[:5])) + more


def parse_object(line: str) -> dict[str, Any]:
    """A JSON object of one line. Raises ValueError for anything else."""
    try:
        values = json.loads(line, object_pairs_hook=_once, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno}): write one object per line.") from error
    except RecursionError as error:
        raise ValueError("not valid JSON (too many brackets within brackets): write one object per line.") from error
    if not isinstance(values, dict):
        raise ValueError(f'{plain(first_words(line))} is not a JSON object: expected {{"caption": "..."}}.')
    return values


def _check_keys(row: dict[str, Any]) -> dict[str, Any]:
    """The values of a row by our keys, without those that are null. Raises ValueError for unknown keys and values of other types."""
    values: dict[str, Any] = {}
    unread = []
    for key, written, value in zip(as_keys(row), row, row.values(), strict=True):
        if key not in KEYS:
            check_near("unknown key", key, written)
            unread.append(plain(written, 40))
        elif key in values:
            raise ValueError(f"{plain(repr(key))} stands twice on the line: write each key once.")
        else:
            values[key] = str(value) if key == "category" and value is not None else value
    if unread:
        log.warning("Lines have what is not read, and kept for --sheet: %s.", plain(", ".join(unread)))
    for key, value in values.items():
        types, called = KEYS[key]
        # pandas writes 3.0 where another row has no number.
        if types is int and isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
            value = values[key] = int(value)
        # To Python, true and false are numbers.
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise ValueError(f"{key} is {plain(first_words(json.dumps(value, default=str)))}, expected {called}.")
    return _from_published(
        {key: value for key, value in values.items() if value is not None and (key not in ASPECTS or value != "None")}
    )


def _from_published(values: dict[str, Any]) -> dict[str, Any]:
    """A line of a published prompt file in our keys; any other line as it is."""
    ours = dict(PUBLISHED_KEYS)
    if values.get("caption", "").lstrip().startswith("<|"):
        ours["caption"] = "prompt"
    for theirs in [key for key in ours if key in values]:
        if ours[theirs] in values:
            raise ValueError(f"{theirs} and {ours[theirs]} mean the same: give one of them.")
        values[ours[theirs]] = str(values.pop(theirs))
    return values


def _whole(digits: str) -> int:
    # For thousands of digits, Python raises an error that is for programmers.
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"{plain(digits, 40)} has {len(digits)} digits, expected fewer: no number here is that long.")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{plain(repr(key))} stands twice on the line: write each key once.")
        values[key] = value
    return values
