"""AUDIO -> WAV files with their graph inside and beside them."""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..dasheng_core.delivery.atomic import atomic_write
from ..dasheng_core.delivery.audio_file import write_audio
from ..dasheng_core.delivery.labels import is_frequency_range, read_label
from ..dasheng_core.delivery.library_tags import parse_tags
from ..dasheng_core.delivery.wav_chunks import comment_chunk, loop_chunk, marker_chunks
from ..dasheng_core.inputs import as_choice, as_float, as_text, shown
from ..dasheng_core.quoting import file_name, plain
from .comfy.scene import joins
from .common import number_input
from .inputs import check_conditioning
from .library import library_chunks, name_by_ucs
from .lists import calls
from .node_text import said
from .takes import TAKES, Take, list_takes
from .versions import schema

# Files that the node names; of more it says how many.
NAMED = 20
# A second, a name, and how many seconds a region has; 0 for a point.
Marker = tuple[float, str, float]
# Of the 255 that a file's name can have, with a seed and the number that follow.
NAME_BYTES = 225
# Of a prefix before %...% are filled in.
MOST_LETTERS = 2000
DEPTHS = {"16 bit": "wav16", "24 bit": "wav24", "32 bit float": "wav32"}
# In this order.
INPUTS = ("filename_prefix", "bit_depth", "loop", "loop_start", "loop_end", "markers")
# What no file system takes, as ComfyUI's frontend replaces it.
UNFIT = r'[/?<>\\:*|"\x00-\x1f\x7f]'


class DashengSaveWAV(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengSaveWAV",
            display_name="Dasheng Save WAV",
            search_aliases=["save audio", "export wav", "24 bit", "loop points"],
            description="Saves each take as a WAV file, with the graph in it and beside it as a .json to drop on the canvas. "
            "Nothing is overwritten.",
            inputs=[
                io.Audio.Input("audio", tooltip=TAKES),
                io.String.Input(
                    "filename_prefix",
                    default="audio/dasheng",
                    tooltip="Folder and beginning of the name in ComfyUI's output folder; a number follows. %seed% is the take's "
                    "own, %DashengSampler.steps% a widget's value, %year%, %month%, %day% and so on the time.",
                ),
                io.Combo.Input(
                    "bit_depth",
                    options=list(DEPTHS),
                    default="24 bit",
                    tooltip="16 bit (with dither) and 24 bit play everywhere and clip at full scale; 32 bit float keeps every peak.",
                ),
                io.Boolean.Input("loop", default=False, tooltip="Write loop points, for samplers and game engines."),
                number_input("loop_start", 0, 0, 3600, 0.001, "With loop: its first second."),
                number_input("loop_end", 0, 0, 3600, 0.001, "With loop: its last second. 0: the end of the clip."),
                io.String.Input(
                    "markers",
                    default="",
                    multiline=True,
                    tooltip="Markers for editors, one a line: its second, then its name, as in: 3.5 thunder",
                ),
                # ComfyUI's frontend puts its player here, and expects one where a node has saved sounds.
                io.Custom("AUDIO_UI").Input("audioUI", optional=True, tooltip="Plays the first take saved."),
                io.Conditioning.Input(
                    "timeline",
                    # Workflows saved before this input was there run as they did.
                    optional=True,
                    tooltip="From Dasheng Timeline: a marker where each prompt begins, named by its first words. What Dasheng "
                    "Finish trims is taken into account.",
                ),
                io.String.Input(
                    "metadata",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What sound libraries read, a line each: CatID = DOORWood, FXName, CreatorID, SourceID (UCS), description, "
                    "originator, start, source_type. %ucs% or %CatID% in the name are from here.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, audioUI=None, timeline=None, metadata=None, **inputs) -> io.NodeOutput:
        graph = {} if args.disable_metadata else {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        comment = comment_chunk(json.dumps(graph)) if graph else b""
        files = []
        wanted = {name: inputs[name] for name in INPUTS} | {"timeline": timeline, "metadata": metadata}
        for sound, prefix, depth, loops, *bounds, marks, scene, lines in calls(audio=audio, **wanted):
            file_format = DEPTHS[as_choice(depth, "bit_depth", DEPTHS)]
            bounds = [
                as_float(second, name, 0, 3600, "it is a second of the clip")
                for second, name in zip(bounds, ("loop_start", "loop_end"), strict=True)
            ]
            points, heard = parse_markers(as_text(marks, "markers")), []
            if scene is not None:
                check_conditioning(scene, None, "timeline")
                heard = joins(scene)
            tags = parse_tags(as_text(lines or "", "metadata").splitlines())
            prefix = fill_in(as_prefix(prefix), cls.hidden.prompt or {})
            prefix = file_name(name_by_ucs(prefix, tags), NAME_BYTES)
            for take in list_takes([sound]):
                number = len(files) + 1
                chunks = library_chunks(take, number, tags, bool(graph)) + comment
                chunks += _chunks(take, number, bounds if loops else None, points, heard)
                files.append((take, prefix, file_format, chunks))
        # Every take and every folder is checked before the first file is written.
        places = list(_free_places((prefix, take.seed) for take, prefix, *_ in files))
        saved = []
        for (take, _, file_format, chunks), (path, subfolder) in zip(files, places, strict=True):
            write_audio(path, take.waveform, take.sample_rate, file_format, chunks)
            if graph:
                text = json.dumps(graph.get("workflow") or graph["prompt"])
                atomic_write(path.with_suffix(".json"), lambda file, text=text: file.write_text(text, "utf-8"))
            saved.append(ui.SavedResult(path.name, subfolder, io.FolderType.output))
        names = [f"{each.subfolder}/{each.filename}".lstrip("/") for each in saved[:NAMED]]
        text = said(f"{len(saved)} saved", *names, *["\u2026"] * (len(saved) > NAMED))
        return io.NodeOutput(ui={**ui.SavedAudios(saved).as_dict(), **text})


def _free_places(names: Iterable[tuple[str, int | None]]) -> Iterator[tuple[Path, str]]:
    """For each prefix and seed a path that no file has, and its folder within ComfyUI's output; a prefix counts on."""
    output, taken, last = folder_paths.get_output_directory(), set(), {}
    for template, seed in names:
        prefix = template.replace("%seed%", "unknown" if seed is None else str(seed))
        said = f"filename_prefix is '{plain(prefix)}'"
        remedy = "write a folder and the beginning of a name, as in audio/rain"
        if os.path.basename(os.path.normpath(prefix)) in ("", ".", ".."):
            # ComfyUI would write a file that begins with a dot, which no folder shows.
            raise ValueError(f"{said}, which ends without a name: {remedy}.")
        # ComfyUI's own sentence speaks of an image, and of four paths.
        inside = Path(os.path.abspath(os.path.join(output, os.path.dirname(os.path.normpath(prefix)))))
        if not inside.is_relative_to(os.path.abspath(output)):
            raise ValueError(f"{said}, expected a place in ComfyUI's output folder: {remedy}.")
        try:
            folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, output)
            counter = max(counter, last.get((folder, template), 0) + 1)
            path = Path(folder, f"{stem}_{counter:05}.wav")
            while path in taken or path.exists() or path.with_suffix(".json").exists():
                counter += 1
                path = Path(folder, f"{stem}_{counter:05}.wav")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{said}, where no file can be ({plain(reason)}): {remedy}.") from error
        last[folder, template] = counter
        taken.add(path)
        yield path, subfolder


def as_prefix(value: object) -> str:
    """A file name as its user wrote it, with the folders of Windows as all systems know them."""
    prefix = as_text(value, "filename_prefix").replace("\\", "/")
    if len(prefix) > MOST_LETTERS:
        raise ValueError(f"filename_prefix has {len(prefix)} letters, expected at most {MOST_LETTERS}: shorten it.")
    return prefix


def fill_in(prefix: str, prompt: dict) -> str:
    """A file name with what ComfyUI's frontend fills in for core's own savers: ``%node.widget%``, ``%date:yyyy-MM-dd%``."""

    def value(match: re.Match) -> str:
        name, widget = match[1], match[2]
        for node in prompt.values():
            found, meta = node["inputs"].get(widget), node.get("_meta") or {}
            if name in (node["class_type"], meta.get("title")) and isinstance(found, (str, int, float)):
                # One letter more than a name may have is refused as all of them are.
                return re.sub(UNFIT, "_", str(found)[: NAME_BYTES + 1])
        return match[0]

    def date(match: re.Match) -> str:
        codes = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
        return re.sub("|".join(codes), lambda code: time.strftime(codes[code[0]]), match[1])

    return re.sub(r"%([^%.]+)\.([^%.]+)%", value, re.sub(r"%date:([^%]+)%", date, prefix))


def parse_markers(text: str) -> list[Marker]:
    """Lines of a second and a name, or labels of Audacity, in the order of their seconds."""
    markers = []
    for line in filter(str.strip, text.splitlines()):
        if is_frequency_range(line):
            continue
        label = read_label(line)
        if label is None or max(label.start, label.end or 0) > 3600:
            raise ValueError(
                f"The marker {shown(line.strip())} does not begin with a second from 0 to 3600: write it as in 3.5 thunder."
            )
        markers.append((label.start, label.text, (label.end or label.start) - label.start))
    return sorted(markers)


def _chunks(
    take: Take, number: int, loop: list[float] | None, markers: list[Marker], scene: list[tuple[float, str]]
) -> bytes:
    """Loop points and markers of one take, each of them within it, and those of its timeline that are."""
    rate, samples = take.sample_rate, take.waveform.shape[-1]
    chunks = b""
    if loop:
        start, end = round(loop[0] * rate), round(loop[1] * rate) or samples
        if not start < end <= samples:
            raise ValueError(
                f"The loop from {loop[0]:g} to {loop[1]:g} s does not lie in take {number}, which is {samples / rate:.3f} s long: "
                "move loop_start and loop_end; a loop_end of 0 is the end of the clip."
            )
        chunks += loop_chunk(start, end, rate)
    for second, name, length in markers:
        # The end of a label is rounded to microseconds.
        if second * rate > samples or (second + length) * rate > samples + 1:
            raise ValueError(
                f"The marker {shown(name)} at {second:g} s {'ends' if length else 'lies'} behind the end of take {number}, which is {samples / rate:.3f} s "
                "long: move it, or leave it out."
            )
    points = [(round(second * rate), name, round(length * rate)) for second, name, length in markers]
    # Of the prompts that begin before a trimmed clip does, the last is heard at its beginning.
    heard = {max(0, round((second - take.cut) * rate)): name for second, name in scene}
    return chunks + marker_chunks(
        sorted([*points, *((place, name, 0) for place, name in heard.items() if place < samples)])
    )
