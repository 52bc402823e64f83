"""Foreign text in messages is one short line that cannot act."""

import csv
import io
import json
import logging
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest

from conftest import GOLDEN
from dasheng_core.backbone import check_audiogen
from dasheng_core.batch.jobs import read_scenes
from dasheng_core.batch.naming import with_fields
from dasheng_core.cli.arguments import build_parser
from dasheng_core.control.emphasis import as_emphasis
from dasheng_core.delivery.formats import choose_format
from dasheng_core.delivery.wav_chunks import marker_chunks
from dasheng_core.inputs import as_choice, as_float
from dasheng_core.progress import AboveTheBar, progress_bar
from dasheng_core.prompt import compose_prompt, parse_prompt
from dasheng_core.quoting import file_name, plain, plain_lines
from dasheng_core.tensors import as_device
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES, AdapterConfig
from dasheng_core.weights.parts import locate


@pytest.mark.parametrize(
    "text, quoted",
    [
        ("rain on a roof", "rain on a roof"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
        ("नमस्ते, می‌خواهم, 👩‍🚒", "नमस्ते, می‌خواهم, 👩‍🚒"),
        (b"bytes", "b'bytes'"),
    ],
    ids=ascii,
)
def test_what_could_act_is_escaped_and_what_is_spelt_stays(text, quoted):
    assert plain(text) == quoted


def test_a_long_text_keeps_its_two_ends_and_a_message_its_lines():
    quoted = plain("begin" + "a" * 1_000_000 + "end")
    assert len(quoted) < 160 and quoted.startswith("begin") and quoted.endswith("end") and "999888 more" in quoted
    assert plain_lines("one\n\x1b[2Jtwo\n" + "a" * 5000).split("\n")[:2] == ["one", "\\x1b[2Jtwo"]
    assert len(plain_lines("a" * 10**6)) < 3000


def test_a_file_name_keeps_what_cannot_act():
    assert file_name("out/किताब_%seed%/🌧 <img src=x>", 225) == "out/किताब_%seed%/🌧 _img src=x_"
    assert file_name("a\0b\nc\x1b\u202ed\ud800", 225) == "a_b_c__d_"
    with pytest.raises(ValueError, match="has 1000000 bytes, expected at most 225: shorten it"):
        file_name("out/" + "a" * 10**6, 225)


HOSTILE = {
    "element": "<img src=x onerror=window.PWNED=1>",
    "escape": "\x1b[2J\x1b]0;title\x07",
    "backwards": "\u202egnp.exe",
    "nul": "a\0b",
    "lines": "a\nb\r\nc\u2028d\x85e",
    "half": "a \ud800",
    "long": "a" * 10**6,
    "long and hostile": "\x1b" * 10**6,
}
TINY = GOLDEN / "tiny"


def with_header(folder, change):
    """The golden audio generator with another header and without values, which are not read before the names are."""
    with open(TINY / "audiogen" / "model.safetensors", "rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    change(entries)
    end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    header = json.dumps(entries).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(end))
    return path


def with_tensor(folder, text):
    def add(entries):
        end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
        entries[text] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}

    check_audiogen(open_checkpoint(with_header(folder, add), AUDIOGEN_TYPES))


def with_config(folder, key, value):
    shutil.copytree(TINY / "audiogen", folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {key: value}), "utf-8")
    checkpoint = open_checkpoint(folder / "model", AUDIOGEN_TYPES)
    check_audiogen(checkpoint)
    AdapterConfig.from_checkpoint(checkpoint)


def with_line(folder, line, name="scenes.jsonl"):
    (folder / name).write_bytes(line.encode("utf-8", "surrogatepass"))
    read_scenes(folder / name)


def with_index(folder, text):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": text}}), "utf-8")
    open_checkpoint(folder, [])


# Each way by which foreign text gets into a message -> what quotes it.
WAYS = {
    "tensor": with_tensor,
    "model type": lambda folder, text: with_config(folder, "model_type", text),
    "config": lambda folder, text: with_config(folder, "dit_depth", text),
    "config, nested": lambda folder, text: with_config(folder, "dit_depth", [{text: text}]),
    "special tokens": lambda folder, text: with_config(folder, "special_tokens", [text]),
    "index": with_index,
    "checkpoint's path": lambda folder, text: open_checkpoint(folder / text, []),
    "checkpoint's name": lambda folder, text: locate(text),
    "sound's path": lambda folder, text: choose_format(Path(text)),
    "sound's format": lambda folder, text: choose_format(Path("a.wav"), text),
    "prompt": lambda folder, text: parse_prompt(text),
    "tag": lambda folder, text: parse_prompt(f"<|caption|> a <|{text}|>"),
    "aspect": lambda folder, text: compose_prompt(caption=f"a <|{text}|>"),
    "aspect of another type": lambda folder, text: compose_prompt(caption=[text]),
    "number": lambda folder, text: as_float(text, "seconds", 0, 1, "less"),
    "choice": lambda folder, text: as_choice(text, "grid", ["full"]),
    "emphasis": lambda folder, text: as_emphasis({text: 1.0}),
    "line": lambda folder, text: with_line(folder, json.dumps(text)),
    "raw line": lambda folder, text: with_line(folder, text),
    "key": lambda folder, text: with_line(folder, json.dumps({text: 1})),
    "key, twice": lambda folder, text: with_line(folder, "{%s: 1, %s: 2}" % ((json.dumps(text),) * 2)),
    "value": lambda folder, text: with_line(folder, json.dumps({"caption": "a", "seed": text})),
    "name": lambda folder, text: with_line(folder, json.dumps({"caption": "a", "name": text})),
    "column": lambda folder, text: with_line(folder, f"caption,{text}\na,b\n", "scenes.csv"),
    "cell": lambda folder, text: with_line(folder, f'caption,seed\na,"{text}"\n', "scenes.csv"),
    "scenes' path": lambda folder, text: read_scenes(Path(text)),
    "template": lambda folder, text: with_fields("{" + text + "}.wav"),
    "device": lambda folder, text: as_device(text),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_message_acts_or_is_long_whatever_it_quotes(way, text, tmp_path):
    try:
        way(tmp_path, text)
    # Of cells too long for it, csv says no more than that.
    except (ValueError, OSError, csv.Error) as error:
        assert is_inert(str(error)) and len(str(error)) < 3000
    else:
        # A name is made fit, and what is no tag is read as text.
        assert way in [WAYS[name] for name in ("name", "column", "tag", "aspect")]


def is_inert(text):
    return not [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn")]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_shows_is_guarded_once_more(text, capsys):
    """Of a message that quoted without care: a log line, an error, an argument."""
    stream = io.StringIO()
    for said in (text, OSError(2, text, text)):
        AboveTheBar(stream).emit(logging.LogRecord("any", logging.ERROR, "", 0, "%s", (said,), None))
    for arguments in (["repack", "a", "--out", "b", f"--{text}"], [text]):
        with pytest.raises(SystemExit):
            build_parser().parse_args(arguments)
    shown = stream.getvalue() + capsys.readouterr().err
    assert is_inert(shown.replace("\n", "")) and len(shown) < 40_000


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_neither_a_progress_bar_nor_a_marker_acts(text, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(text, 2) as update:
        update(1, text)
    bars = re.split(r"[\r\n]", stream.getvalue())
    assert not re.search(r"[\0\x1b\u202e\u2028\x85\ud800]", "".join(bars).replace("\x1b[A", ""))
    assert max(map(len, bars)) < 3000
    chunks = marker_chunks([(1, text)])
    label = chunks[chunks.index(b"labl") + 12 :].rstrip(b"\0").decode()
    assert not re.search(r"[\0\x1b\u202e\n\r\u2028\x85]", label) and 0 < len(label) < 6000
