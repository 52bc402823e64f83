"""The arguments of every command. Nothing here needs torch: help and a typing error answer at once.

Those of sampling are the fields of :class:`dasheng_core.options.SamplingOptions`, with its help texts.
"""

import argparse
import os
import re
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..batch.naming import FIELDS
from ..delivery.formats import FORMAT_OF_SUFFIX, FORMATS
from ..options import BACKBONE_DTYPES, DISTANCES, DRAFT, FADE, OPTIONS, REPACKED, flag_of
from ..quoting import MESSAGE, plain
from .hub import DEFAULT_ENDPOINT

# Arguments that are paths.
PATH_OPTIONS = (
    "file",
    "sheet",
    "scenes",
    "prompts",
    "timeline",
    "script",
    "audiogen",
    "text_encoder",
    "audio_tokenizer",
    "output",
    "manifest",
    "picks",
    "models",
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors quote arguments inertly, and name the form for a text that begins with a dash."""

    def error(self, message: str) -> NoReturn:
        # argparse takes such a text for an option.
        if match := re.match(r"argument (?:-\w/)?(--[\w-]+): expected (?:one|at least one) argument", message):
            message += f"; a text that begins with a dash is written {match[1]}='-...'"
        super().error(plain(message, MESSAGE))

    def parse_args(self, args=None, namespace=None):
        """Raises ValueError for ``--quality`` beside what it stands for."""
        return _settled(super().parse_args(args, namespace))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dasheng", description="Dasheng-AudioGen without ComfyUI.")
    parser.add_argument("--version", action="version", version=f"dasheng {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, add, what in (
        ("generate", add_generate, "make clips from prompts"),
        ("batch", add_batch, "make clips from a file of thousands of scenes, on one machine or on Ray"),
        ("remake", add_remake, "make the sound of a file again, by what it says of itself, and compare"),
        ("download", add_download, "fetch the published files into a ComfyUI models folder"),
        ("repack", add_repack, "write an audio generator's checkpoint as one smaller file"),
    ):
        add(commands.add_parser(name, help=what))
    return parser


def _settled(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the options of ``--quality``, and ``~`` as the user's folder, which no shell writes within quotes."""
    if "quality" in args:
        _settle_quality(args)
    for name in PATH_OPTIONS:
        place = getattr(args, name, None)
        if isinstance(place, (str, Path)):
            setattr(args, name, type(place)(os.path.expanduser(place)))
    if getattr(args, "export", None):
        args.export = [Path(os.path.expanduser(path)) for path in args.export]
    return args


def _settle_quality(args: argparse.Namespace) -> None:
    of_quality = [option for option in OPTIONS if option.name in DRAFT]
    if args.quality is not None:
        given = [flag_of(option) for option in of_quality if getattr(args, option.name) is not None]
        if given:
            raise ValueError(
                f"--quality {args.quality} stands beside {given[0]}, for which it stands: give one of the two."
            )
    for option in of_quality:
        if getattr(args, option.name) is None:
            setattr(args, option.name, option.default if args.quality is None else DRAFT[option.name])


def add_generate(command: argparse.ArgumentParser) -> None:
    scene = command.add_argument_group("the scene")
    for name, what in {
        "caption": "what the whole scene sounds like, in one English sentence",
        "speech": "who speaks, and how",
        "asr": "the words spoken, in their own language",
        "sfx": "sound effects",
        "music": "music",
        "env": "ambience and recording quality",
        "prompt": "a tagged prompt instead: '<|caption|> ... <|sfx|> ...'",
    }.items():
        scene.add_argument(f"--{name}", type=typed_text, metavar="TEXT", help=what)
    scene.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a file of tagged prompts, one per line, # starts a comment; or a .jsonl file, one object per line, with caption, "
        "speech, asr, sfx, music, env or prompt, and seed, seconds, takes or variations, name, negative, for which the options below are "
        "defaults; the model's own published prompt files are read too",
    )
    scene.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="a file of prompts for one clip, one per line after the second from which it holds: '3.5 <|caption|> ...'; a line of "
        'a .jsonl file has it as "timeline": [[0, "<|caption|> ..."], [3.5, "<|caption|> ..."]], and its "fade"; a .wav gets a '
        "marker where each prompt begins",
    )
    scene.add_argument(
        "--script",
        type=Path,
        metavar="FILE",
        help="a file of lines of a time, an aspect and a text, such as '0:02-0:04 sfx: a door slams', or of SRT cues or labels; it also "
        'says how long the clip is; a line of a .jsonl file has it as "script"',
    )
    add_model(command)
    add_output(command)


def add_model(command: argparse.ArgumentParser) -> None:
    """What ``generate`` and ``batch`` have in common, but for the output."""
    groups = {
        "direction": command.add_argument_group("direction"),
        "files": command.add_argument_group(
            "checkpoints: a folder, a file, or the id of a hub repository in the local cache"
        ),
        "sampling": command.add_argument_group("sampling"),
        "faster": command.add_argument_group(
            "faster and not quite the same: benchmarks/approximate.py measures by how much"
        ),
    }
    direction, files, sampling = groups["direction"], groups["files"], groups["sampling"]
    direction.add_argument(
        "--negative",
        type=typed_text,
        metavar="PROMPT",
        help="a tagged prompt of what not to make: guidance goes away from it",
    )
    direction.add_argument(
        "--fade",
        type=float,
        default=FADE,
        metavar="SECONDS",
        help="in which a prompt of a timeline gives way to the next (default: %(default)s)",
    )
    direction.add_argument(
        "--emphasis",
        nargs="+",
        type=fader,
        metavar="ASPECT=WEIGHT",
        help="sfx=2: more of the sound effects than as written, music=-1: less music; each adds one branch to a guided step",
    )
    add_checkpoints(files)
    for option in OPTIONS:
        how = option.metadata
        default = " ".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
        shown = "" if default is None or option.default is False else f" (default: {default})"
        groups[how["group"]].add_argument(
            flag_of(option),
            dest=option.name,
            # Of those it is known later whether they were given.
            default=None if option.name in DRAFT else option.default,
            help=how["help"] + shown,
            **how["arguments"],
        )
    groups["faster"].add_argument(
        "--quality",
        choices=["draft"],
        help=f"draft: --steps {DRAFT['num_steps']} --grid {DRAFT['grid']}, to try prompts out; docs/speed.md says what it costs",
    )
    sampling.add_argument("--seed", type=int, help="take i of a prompt uses seed + i; drawn and printed when left out")
    sampling.add_argument("--seconds", type=float, help="length of each clip (default: the model's estimate)")
    sampling.add_argument("--takes", type=int, default=1, help="clips of each prompt (default: %(default)s)")
    sampling.add_argument(
        "--dtype", choices=BACKBONE_DTYPES, default="fp32", help="of the backbone (default: %(default)s)"
    )
    add_device(sampling)


def add_output(command: argparse.ArgumentParser) -> None:
    output = command.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=f"a {' or '.join(FORMAT_OF_SUFFIX)} file; several clips are numbered, or named by the fields "
        f"{', '.join(f'{{{field}}}' for field in FIELDS)} in it, as in 'out/{{name}}_{{take}}.wav'",
    )
    output.add_argument(
        "--format",
        choices=FORMATS,
        help="wav16 and wav24: whole numbers of 16 and 24 bits, which every player reads; wav32: 32-bit floats, which keep "
        "peaks beyond full scale; flac: 24 bits (default: wav32 for a .wav, flac for a .flac); always 16 kHz mono",
    )
    output.add_argument(
        "--apart",
        nargs=2,
        type=float,
        default=DISTANCES,
        metavar=("LEAST", "MOST"),
        help="distances of any two sounds of a line with variations, by the latents of the audio tokenizer "
        f"(default: {DISTANCES[0]} {DISTANCES[1]})",
    )
    output.add_argument(
        "--metadata",
        nargs="+",
        type=typed_text,
        metavar="NAME=TEXT",
        help="what the files say for a sound library where their lines do not: CatID, FXName, CreatorID and SourceID by UCS, "
        "description, originator, start (its second in a picture), source_type (IPTC's, default: made by a model)",
    )
    output.add_argument(
        "--category",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="what lines of this category have where they do not say it themselves: seconds=30 takes=4 format=flac, or metadata; "
        "once for each category",
    )
    output.add_argument(
        "--stems",
        action="store_true",
        help="write what is heard of each aspect too, beside OUT.wav as OUT.speech.wav, OUT.sfx.wav, OUT.music.wav and OUT.env.wav: "
        "together they are the clip",
    )
    output.add_argument(
        "--resume", action="store_true", help="skip clips that are there as they are asked for, and make the others"
    )


def add_batch(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "scenes",
        metavar="SCENES",
        help="a file of prompts as for dasheng generate --prompts, or a .csv or .parquet table with the same columns; local, "
        "or any URI that pyarrow reads, as s3://bucket/scenes.jsonl",
    )
    add_model(command)
    add_output(command)
    command.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="the .jsonl file that says what became of each clip (default: the name of SCENES with .manifest.jsonl, here)",
    )
    command.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE",
        help="a copy of SCENES with file, seed, seconds, LUFS, peak and verdict of each clip, as the .csv, .tsv, .xlsx, .parquet or "
        ".jsonl that its name says",
    )
    command.add_argument(
        "--export",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="lists of the clips that were made, to import: a .tsv for Wwise, a .csv for Unreal, an .rpp for Reaper",
    )
    for flag, what in {
        "--strict": "end at the first scene that cannot be made, in place of noting it and going on",
        "--remake": "go on as by --resume, and replace the file of each clip that is not the one now asked for",
        "--page": "write a page beside the sounds too, to hear and pick them in a browser; no network is needed",
        "--check": "make nothing: read each file, and say which are missing or not as they were made",
        "--break-lock": "take the output folder from a run on another machine, or one in a bucket, that has ended without releasing it",
    }.items():
        command.add_argument(flag, action="store_true", help=what)
    command.add_argument(
        "--picks",
        type=Path,
        metavar="FILE",
        help="make nothing: read what was picked on the page back into the manifest, copy what was kept into the folder picked "
        "beside the sounds, with a table",
    )
    command.add_argument(
        "--batch-frames",
        type=int,
        default=2500,
        metavar="N",
        help="latent frames, 25 per second, that are evaluated at once where clips are of the same length: more need more "
        "memory (default: %(default)s, ten clips of ten seconds)",
    )
    cluster = command.add_argument_group("on Ray")
    cluster.add_argument("--ray", metavar="ADDRESS", help="the address of a cluster, or local: one on this machine")
    cluster.add_argument(
        "--workers",
        type=pool_size,
        default=(1, None),
        metavar="MIN[,MAX]",
        help="each holds the model; as many as there is work for, from MIN to MAX (default: from 1 to what the cluster holds)",
    )
    cluster.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="(default: 1 with --device cuda, else 0); 0.5: two share one"
    )
    cluster.add_argument(
        "--cpus-per-worker", type=float, default=1.0, metavar="N", help="cores that Ray keeps for each (default: 1)"
    )


def add_remake(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help="a .wav or .flac of dasheng generate or dasheng batch")
    command.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="the file to write, of the same form (default: the sounds are compared alone)",
    )
    add_checkpoints(command.add_argument_group("the checkpoints by which it was made"))
    add_device(command)


def add_checkpoints(files: "argparse._ArgumentGroup") -> None:
    files.add_argument("--audiogen", default="mispeech/Dasheng-AudioGen", metavar="PATH")
    files.add_argument("--text-encoder", metavar="PATH", help="default: the one the generator's config.json names")
    files.add_argument("--audio-tokenizer", metavar="PATH", help="default: the one the generator's config.json names")


def add_device(group: "argparse._ActionsContainer") -> None:
    group.add_argument(
        "--device", default="cpu", help="cpu, cuda, mps, or auto: the first GPU, if there is one (default: %(default)s)"
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="run the network by torch.compile: the same sound, and minutes before the first clip of each length",
    )


def add_download(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--models", type=Path, required=True, metavar="FOLDER", help="ComfyUI's models folder, or another"
    )
    command.add_argument("--english", action="store_true", help="the English model (the default)")
    command.add_argument("--multilingual", action="store_true", help="the multilingual model; both with --english")
    command.add_argument(
        "--endpoint",
        metavar="URL",
        help=f"where the hub is (by default HF_ENDPOINT, or {DEFAULT_ENDPOINT}); HF_TOKEN is sent there, and nowhere else",
    )


def add_repack(command: argparse.ArgumentParser) -> None:
    command.add_argument("audiogen", metavar="AUDIOGEN", help="a folder, a file, or a repository in the local cache")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors to make")
    command.add_argument(
        "--dtype",
        choices=REPACKED,
        default="bf16",
        help="of the backbone (default: %(default)s, 4.4 GB; fp8 2.2 GB, and less exact; fp32 8.7 GB)",
    )


def pool_size(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"([1-9]\d*)(?:,([1-9]\d*))?", text)
    least, most = map(int, match.groups(match[1])) if match else (1, 0)
    if most < least:
        raise argparse.ArgumentTypeError(
            f"{plain(text)!r} is no number of workers, expected one, or the least and the most: 1,8."
        )
    return least, most


def fader(argument: str) -> tuple[str, float]:
    aspect, _, weight = argument.partition("=")
    try:
        return aspect, float(weight)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{plain(argument)!r} is no fader, expected an aspect and a number: sfx=2."
        ) from error


def typed_text(argument: str) -> str:
    """An argument as it was typed. In a locale of ASCII alone, Python cannot decode it, and it is UTF-8."""
    if not any("\ud800" <= letter <= "\udfff" for letter in argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8: type it again in a UTF-8 terminal.") from error
