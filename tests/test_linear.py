"""Twice the input is at most about twice the work, for everything that reads what others wrote.

A loop within a loop over the input takes four times the work. Lines of Python are counted, which no load changes; what C does is
measured in processor time, at a size at which it takes long enough.
"""

import gc
import io
import json
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import GOLDEN
from dasheng_core import Timeline, compose_prompt, lint_prompt
from dasheng_core.batch.jobs import read_timeline
from dasheng_core.batch.manifest import Manifest
from dasheng_core.batch.survey import plan
from dasheng_core.cli.arguments import build_parser
from dasheng_core.control.keep import kept_of
from dasheng_core.control.listening import prompt_parts
from dasheng_core.control.script import Script
from dasheng_core.control.timeline import sections, spans_of, timeline_weights
from dasheng_core.delivery.file_notes import timeline_markers
from dasheng_core.delivery.labels import read_label
from dasheng_core.delivery.wav_chunks import marker_chunks
from dasheng_core.prompt import parse_prompt, spoken_words
from dasheng_core.quoting import plain
from dasheng_core.tokenizer import JsonFile
from dasheng_core.weights.checkpoint import open_checkpoint

# A loop within a loop would be at 4, and in C, where four times the input is timed, at 16.
LINES, SECONDS, LONG_ENOUGH = 2.5, 8.0, 0.3
TOKENIZER = GOLDEN / "tiny" / "text_encoder" / "tokenizer.json"


def scenes_file(name: str, write: Callable[[int], str | bytes]):
    """A reader of a file of scenes of a size; refusals count as reading."""

    def prepare(folder: Path, size: int):
        path = folder / f"{size}{name}"
        content = write(size)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        args = build_parser().parse_args(["batch", str(path), "-o", "{index}.wav"])

        def read():
            try:
                assert list(plan(args, 1))
            except ValueError as error:
                assert len(str(error)) < 2000
            return path

        return read

    return prepare


def text_reader(read: Callable[[str], object], write: Callable[[int], str]):
    def prepare(folder: Path, size: int):
        text = write(size)
        return lambda: read(text)

    return prepare


def many(count: int, letters: int = 4) -> str:
    """Words, no two alike."""
    return " ".join(format(zlib.crc32(str(i).encode()), "x")[:letters] + str(i) for i in range(count))


def of_timeline(use: Callable[[Timeline], object]):
    def prepare(folder: Path, size: int):
        scene = Timeline([(i * 500 / size, f"<|caption|> rain {i}") for i in range(size)], fade=0.001)
        return lambda: use(scene)

    return prepare


def timeline_file(folder: Path, size: int):
    path = folder / f"{size}.txt"
    path.write_text("".join(f"{i / size}\t<|caption|> rain {i}\n" for i in range(size)))
    return lambda: Timeline(read_timeline(path))


def manifest_file(folder: Path, size: int):
    path = folder / f"{size}.manifest.jsonl"
    head = {"settings": {"output": "x"}, "seed": 1}
    entry = {"prompt": "<|caption|> rain", "seed": 1, "seconds": 1.0, "loudness": None, "peak": 0.0, "took": 1.0}
    lines = [head, *({"scene": i, "file": f"out/{i}.wav", **entry} for i in range(size))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lambda: Manifest(path, True)


def safetensors_file(folder: Path, size: int):
    header = {
        f"layer.{i}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(size)
    }
    text = json.dumps({"__metadata__": {f"key{i}": "x" for i in range(size)}, **header}).encode()
    text += b" " * (-len(text) % 8)
    path = folder / f"{size}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * size))
    return lambda: refused(lambda: open_checkpoint(path, ()))


def gguf_file(what: str):
    def prepare(folder: Path, size: int):
        gguf = pytest.importorskip("gguf")
        path = folder / f"{size}-{what}.gguf"
        writer = gguf.GGUFWriter(path, "dasheng_audiogen")
        if what == "array":
            writer.add_array("numbers", list(range(size)))
        for i in range(size if what == "keys" else 0):
            writer.add_uint32(f"key{i}", i)
        for i in range(size if what == "tensors" else 1):
            writer.add_tensor(f"layer.{i}.weight", torch.zeros(1).numpy())
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        return lambda: refused(lambda: open_checkpoint(path, ()))

    return prepare


def refused(read: Callable[[], object]) -> None:
    """Read, or refused by one sentence: either way the work is what counts."""
    try:
        read()
    except ValueError as error:
        assert len(str(error)) < 2000


def parquet(size: int) -> bytes:
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"caption": [f"rain {i}" for i in range(size)], "seed": [1.0] * size})
    file = io.BytesIO()
    writer.write_table(table, file)
    return file.getvalue()


def lint(prompt: str) -> None:
    lint_prompt(prompt, JsonFile(TOKENIZER, (), 32128).read)


def lint_unknown(prompt: str) -> None:
    """As of a tokenizer that knows no letter: each two are a piece of their own."""
    lint_prompt(prompt, lambda text: ("a", [text[i : i + 2] for i in range(0, len(text), 2)]))


def part(text: str) -> None:
    prompt_parts(JsonFile(TOKENIZER, (), 32128).encode, f"<|caption|> a <|asr|> {text}", words=True)


def kept(size: int) -> None:
    kept_of(torch.zeros(1, 2, 2500), [(i * 99 / size, (i + 0.5) * 99 / size) for i in range(size)], 0.1, 1, 2)


def letters(size: int) -> str:
    """Letters, few of them alike."""
    return "".join(chr(0x4E00 + i * 7919 % 20_000) + chr(0x400 + i % 97) for i in range(size // 2))


def markers(text: str) -> bytes:
    return marker_chunks([(int(label.start), label.text) for label in map(read_label, text.splitlines()) if label])


# What is read, and how many parts of it lines are counted at.
READ = {
    "compose a prompt": (text_reader(lambda text: compose_prompt("rain", asr=text), many), 500),
    "parse a prompt": (text_reader(lambda text: parse_prompt(f"<|caption|> {text}"), many), 500),
    "a prompt of tags": (text_reader(lambda text: refused(lambda: parse_prompt(text)), lambda size: "<|caption|> a" + "<|x" * size), 500),
    "spoken words": (text_reader(lambda text: spoken_words(f"<|caption|> a <|asr|> {text}"), many), 500),
    "lint a prompt": (text_reader(lint, lambda size: f"<|caption|> {many(size)}"), 500),
    **{
        f"lint {marks!r}": (text_reader(lint, lambda size, marks=marks: "<|caption|> a <|asr|> b" + marks * size), 500)
        for marks in ("[", "<a", "(", "(a:", "{", "*a", "<| ", "(as ", "\u0301", "1,000,")
    },
    "lint unknown letters in marks": (
        text_reader(lint_unknown, lambda size: f"<|caption|> [{letters(size)}]"),
        500,
    ),
    "the parts of a prompt": (text_reader(part, many), 200),
    "quote": (text_reader(plain, lambda size: "\u202e" * size), 500),
    "JSONL, lines": (scenes_file(".jsonl", lambda size: '{"caption": "rain"}\n' * size), 200),
    "JSONL, keys": (scenes_file(".jsonl", lambda size: json.dumps({f"k{i}": 1 for i in range(size)})), 500),
    "JSONL, timeline": (
        scenes_file(".jsonl", lambda size: json.dumps({"timeline": [[i / size, f"<|caption|> rain {i}"] for i in range(size)]})),
        200,
    ),
    "CSV, rows": (scenes_file(".csv", lambda size: "caption,seed,seconds\n" + "rain,1.0,2.5\n" * size), 200),
    "CSV, columns": (scenes_file(".csv", lambda size: "caption," + ",".join(f"c{i}" for i in range(size)) + "\nRain."), 500),
    "CSV, cells": (scenes_file(".csv", lambda size: "caption\nrain\nrain" + ",1" * size), 500),
    "CSV, a quote that never closes": (scenes_file(".csv", lambda size: 'caption\n"' + "rain\n" * size), 500),
    "prompts": (scenes_file(".txt", lambda size: "<|caption|> rain\n" * size), 200),
    "Parquet": (scenes_file(".parquet", parquet), 200),
    "markers": (text_reader(markers, lambda size: "".join(f"{i / size}\tthunder {i}\n" for i in range(size))), 200),
    "timeline, its file": (timeline_file, 200),
    "timeline, its weights": (of_timeline(lambda scene: timeline_weights(spans_of(scene), 12600)), 100),
    "timeline, its sections": (of_timeline(lambda scene: sections(scene, 12600)), 200),
    "timeline, its markers": (of_timeline(timeline_markers), 200),
    "script, its lines": (text_reader(Script.parse, lambda size: "".join(f"{i / size:.3f}-{(i + 9) / size:.3f} sfx: {i}\n" for i in range(size))), 30),
    "script, lines that are heard together": (text_reader(lambda text: refused(lambda: Script.parse(text)), lambda size: "".join(f"0-{i + 1} asr: a\n" for i in range(size))), 100),
    "script, words": (text_reader(Script.parse, lambda size: "asr: " + "Yes, we go. " * size), 50),
    "script, cues": (text_reader(Script.parse, lambda size: "".join(f"{i}\n{i / size} --> {(i + 1) / size}\nyes\n\n" for i in range(size))), 20),
    **{
        f"script, a line of {marks!r}": (text_reader(lambda text: refused(lambda: Script.parse(text)), lambda size, marks=marks: marks * size), 500)
        for marks in (":", " ", "1:", ", from 1", "<i", ".", "[1", "\n")
    },
    "keep": (lambda folder, size: lambda: kept(size), 100),
    "GGUF, tensors": (gguf_file("tensors"), 100),
    "GGUF, keys": (gguf_file("keys"), 100),
    "GGUF, an array": (gguf_file("array"), 200),
    "safetensors": (safetensors_file, 200),
    "manifest": (manifest_file, 200),
}  # fmt: skip
# Most of their work is C's: how many parts are tried first.
IN_C = {
    "lint a prompt": 20_000,
    "lint unknown letters in marks": 20_000,
    "JSONL, keys": 100_000,
    "CSV, cells": 100_000,
    "Parquet": 10_000,
    "keep": 2000,
    "safetensors": 10_000,
    "manifest": 10_000,
}
# A line of 16 MB is refused unread: four times as many cells must be shorter.
MOST = {"JSONL, keys": 250_000, "CSV, cells": 2_000_000}


def lines_of(work: Callable[[], object]) -> int:
    """How many lines of Python it runs."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def seconds_of(work: Callable[[], object]) -> float:
    # What other tests left in memory is not walked by the collector in between.
    gc.collect()
    gc.freeze()
    try:
        started = time.process_time()
        work()
        return time.process_time() - started
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", READ)
def test_twice_the_input_is_twice_the_lines(name, tmp_path):
    prepare, size = READ[name]
    # The first call imports and fills caches.
    prepare(tmp_path, 3)()
    once, twice = (lines_of(prepare(tmp_path, n)) for n in (size, 2 * size))
    assert twice <= LINES * once, f"{once} and {twice} lines"


@pytest.mark.parametrize("name", IN_C)
def test_four_times_the_input_is_about_four_times_the_time_in_c(name, tmp_path):
    prepare, size = READ[name][0], IN_C[name]
    while (once := seconds_of(prepare(tmp_path, size))) < LONG_ENOUGH and size < MOST.get(name, sys.maxsize):
        size = min(int(size * 1.2 * max(1.0, LONG_ENOUGH / max(once, 0.01))), MOST.get(name, sys.maxsize))
    for _ in range(3):
        four = seconds_of(prepare(tmp_path, 4 * size))
        if four <= SECONDS * once:
            return
        once = min(once, seconds_of(prepare(tmp_path, size)))
    pytest.fail(f"{size} take {once:.2f} s, four times as many {four:.2f} s")
