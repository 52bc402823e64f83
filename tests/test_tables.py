"""Tables, lists and labels as other programs write them: read, or named once, and nothing is lost without a word.

The files of ``tests/tables`` were written by pandas 3.1, openpyxl 3.1, Polars 2.1 and LibreOffice 7.4; all say the same four scenes.
"""

import logging
import os
import shutil
import struct
from pathlib import Path

import pytest

from conftest import GOLDEN
from dasheng_core.batch.jobs import read_scenes, read_timeline
from dasheng_core.batch.rows import read_rows
from dasheng_core.batch.survey import plan
from dasheng_core.cli import main
from dasheng_core.cli.arguments import build_parser
from dasheng_core.delivery.labels import Label, read_label

FOLDER = Path(__file__).parent / "tables"
SCENES = [
    ("<|caption|> Rain on a tin roof, and wind. <|asr|> We should go.", 3, 1.5, 2),
    ('<|caption|> A man says "hello".', None, None, 1),
    ("<|caption|> Café noise over two lines. <|asr|> ¿Qué pasó?", 5, 2.25, 1),
    ("<|caption|> Thunder.", None, 0.4, 1),
]
FILES = [
    word
    for part in ("audiogen", "text-encoder", "audio-tokenizer")
    for word in (f"--{part}", str(GOLDEN / "tiny" / part.replace("-", "_")))
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(path) -> list[tuple]:
    return [(s.prompt, s.seed, s.seconds, s.takes) for s in read_scenes(Path(path))]


@pytest.mark.parametrize(
    "name, index",
    [
        ("pandas_index.csv", 1),
        ("pandas_twice.csv", 2),
        ("pandas_european.csv", 0),
        ("pandas.tsv", 0),
        ("pandas_utf16.txt", 0),
        ("pandas.jsonl", 0),
        ("pandas.parquet", 0),
        ("polars.parquet", 0),
        ("libreoffice_semicolons.csv", 0),
    ],
)
def test_tables_of_other_programs_say_the_same_scenes(name, index, caplog):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    assert said(FOLDER / name) == SCENES
    # What a program put there without being asked is left out, and that is said.
    assert caplog.text.count("is taken for an index, since it has no name, and left out") == index


def test_a_parquet_file_takes_no_memory_beyond_its_rows_and_is_named():
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    # One text of a megabyte that stands in each row takes the file a few bytes.
    rows = pyarrow.DictionaryArray.from_arrays([0] * 1000, ["x" * 2**20])
    parquet.write_table(pyarrow.table({"caption": rows}), "rows.parquet", compression="zstd", store_schema=False)
    pool = pyarrow.default_memory_pool()
    before = pool.max_memory()
    assert Path("rows.parquet").stat().st_size < 2**20 and len(list(read_rows("rows.parquet"))) == 1000
    assert pool.max_memory() - before < 2**28
    letters = pyarrow.py_buffer(b"Caf\xe9"), pyarrow.py_buffer(struct.pack("<2i", 0, 4))
    text = pyarrow.StringArray.from_buffers(1, letters[1], letters[0])
    parquet.write_table(pyarrow.table({"caption": text}), "rows.parquet")
    with pytest.raises(ValueError, match="rows.parquet is no Parquet file .*utf-8"):
        list(read_rows("rows.parquet"))


# By the rules of Excel in Germany and in America, Google Sheets, databases and editors.
@pytest.mark.parametrize(
    "text, scenes",
    [
        ("\ufeffcaption;seed;seconds\r\nRegen, Wind;1;1,5\r\n", [("Regen, Wind", 1, 1.5)]),
        ("sep=;\r\ncaption;seconds\r\nRegen;1,5\r\n", [("Regen", None, 1.5)]),
        ("caption,seconds\r\nRain,1.5\r\nWind,\"0,25\"\r\n", [("Rain", None, 1.5), ("Wind", None, 0.25)]),
        ("caption,seed,takes\nRain,3.0,1.0\nWind,7.,\nHail,,NaN\n", [("Rain", 3, None), ("Wind", 7, None), ("Hail", None, None)]),
        ("CAPTION, Seed ,Seconds\nRain, 3 , 1.5 \n", [("Rain", 3, 1.5)]),
        ("caption,seed,,\nRain,3,,\n,,,\n\n,,\nWind,4,,,,\n", [("Rain", 3, None), ("Wind", 4, None)]),
        ("caption,seed\nRain\nWind,2,\n", [("Rain", None, None), ("Wind", 2, None)]),
        ("caption,seed\rRain,1\rWind,2\r", [("Rain", 1, None), ("Wind", 2, None)]),
        ("caption,seed\nRain,1\ncaption,seed\nWind,2\n", [("Rain", 1, None), ("Wind", 2, None)]),
        ("\n\ncaption\tseed\n\"Rain\ton a roof\"\t1\n", [("Rain on a roof", 1, None)]),
        ("Audio ID,Content,category\n12,<|caption|> Rain,mix\n", [("Rain", None, None)]),
    ],
    ids=ascii,
)  # fmt: skip
def test_cells_of_other_programs(text, scenes):
    Path("scenes.csv").write_text(text, "utf-8", newline="")
    assert [(p, s, t) for p, s, t, _ in said("scenes.csv")] == [(f"<|caption|> {p}", s, t) for p, s, t in scenes]


def test_what_is_no_table_has_a_prompt_a_line():
    Path("scenes.txt").write_text("<|caption|> Rain, caption, seed\r<|caption|> Wind\r", newline="")
    assert [prompt for prompt, *_ in said("scenes.txt")] == ["<|caption|> Rain, caption, seed", "<|caption|> Wind"]


def test_a_cell_of_json_is_a_timeline():
    Path("scenes.csv").write_text('name,timeline\nx,"[[0, ""<|caption|> Rain""], [2, ""<|caption|> Wind""]]"\n')
    ((timeline, *_),) = said("scenes.csv")
    assert timeline.entries == ((0.0, "<|caption|> Rain"), (2.0, "<|caption|> Wind"))


# Each is refused as a whole, at its header or at the line that cannot be read: nothing is made of the rest.
@pytest.mark.parametrize(
    "text, sentence",
    [
        ("caption,seed,seed\nRain,1,2\n", "scenes.csv has the column seed twice"),
        ("caption,Caption\nRain,Wind\n", "scenes.csv has the column caption twice"),
        ("captoin,seed\nRain,1\n", "has the column 'captoin', expected caption, speech, .*: write caption if that is meant"),
        ("caption,notes\nRain,1\n", "has the column 'notes', expected caption, .*: rename it, or remove it"),
        ("seed,seconds\n1,2\n", "has no column caption, and no prompt"),
        ("Rain on a roof\nWind\n", "begins with Rain on a roof, expected a first row that names the columns"),
        ('caption,seed\nRain,1\n"Wind, strong\nStorm,3\n', r"scenes.csv:3: the row that starts here cannot be read \(unexpected end"),
        ('caption,seed\nRain,1\n"Wind\n\nStorm",3\n"Hail"s,1\n', r"scenes.csv:6: the row that starts here cannot be read \(',' expected"),
        ('caption\n"' + "Rain\n" * 50_000, r"scenes.csv:2: the row .* \(field larger than field limit"),
        ("caption,\nRain,\nWind,7\n", "scenes.csv:3: '7' stands in a column without a name"),
        (b"caption\nRain\nCaf\xe9\n", "scenes.csv:3: this line is not UTF-8 text after 'Caf'"),
        ("caption\nRain\n".encode("utf-16-le"), "is not text, or text in UTF-16 without its mark"),
        ("<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page or another XML document"),
        (b"PK\x03\x04....", "is a ZIP archive, expected a file of scenes: unpack it"),
        (b"PK\x03\x04....xl/workbook.xml", r"is an Excel workbook \(XLSX\)"),
        (b"RIFF\0\0\0\0WAVE", r"is a RIFF file \(WAVE: sound"),
        (b"\0" * 100, "is not text"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, .*: run git lfs pull"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_named_once(text, sentence, caplog):
    Path("scenes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=sentence):
        read_scenes(Path("scenes.csv"))
    assert main(["batch", "scenes.csv", "-o", "out/{index}.flac"]) == 1
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert not Path("out").exists() and not list(Path().glob("*.manifest.jsonl"))


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("book.xlsx", r"is an Excel workbook \(XLSX\), expected a file of scenes: save its sheet as CSV UTF-8"),
        ("libreoffice.ods", "is an ODS spreadsheet, expected a file of scenes: save its sheet as CSV UTF-8"),
        ("libreoffice.xls", "is an old Excel workbook"),
        ("libreoffice_ansi.csv", "libreoffice_ansi.csv:4: this line is not UTF-8 text after '\"Caf'"),
        ("pandas_records.json", "is one JSON text, expected one object per line"),
        ("pandas_bytes.parquet", "the column caption is binary, expected a text: convert it"),
    ],
)
def test_files_of_other_programs_are_named_as_what_they_are(name, sentence):
    """By their bytes, whatever their name."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    for suffix in ("", ".csv", ".jsonl") if "text" not in sentence else ("",):
        shutil.copy(FOLDER / name, name + suffix)
        with pytest.raises(ValueError, match=sentence):
            read_scenes(Path(name + suffix))


# Refused alone: the rows around it are made.
@pytest.mark.parametrize(
    "row, sentence",
    [
        ("Rain, heavy,1", "the row has 3 cells, the header 2: put a text that has ',' in it between quotes"),
        ('Rain,"1,000"', 'seed is "1,000", expected a whole number'),
        ("Rain,1.23457E+13", 'seed is "1.23457E\\+13", expected a whole number'),
        ("Rain,9007199254740993.0", 'seed is "9007199254740993.0", expected a whole number'),
        ("Rain,#DIV/0!", "seed is #DIV/0!, the mark of a failed formula"),
        (",1", "The caption is empty"),
    ],
)
def test_a_row_that_could_be_two_things_is_refused(row, sentence):
    Path("scenes.csv").write_text(f"caption,seed\nWind,1\n{row}\nHail,2\n")
    with pytest.raises(ValueError, match=f"scenes.csv:3: {sentence}"):
        read_scenes(Path("scenes.csv"))
    args = build_parser().parse_args(["batch", "scenes.csv", "-o", "{index}.flac"])
    made = list(plan(args, 3))
    assert len(made) == 3 and "scenes.csv:3: " in made[1]["error"]


def test_a_comma_is_a_decimal_sign_where_it_cannot_delimit():
    Path("scenes.csv").write_text("caption;seconds\nRain;1,500\n")
    assert said("scenes.csv")[0][2] == 1.5
    for text in ('caption,seconds\nRain,"1,500"\n', "caption;seconds\nRain;1.500\n", "caption;seconds\nRain;1_500\n"):
        Path("scenes.csv").write_text(text)
        with pytest.raises(ValueError, match='scenes.csv:2: seconds is "1[.,_]500", expected a number'):
            said("scenes.csv")


@pytest.mark.parametrize(
    "line", ['{"sfx": "b"}', '{"captoin": "b"}', '{"caption": "\U0001f642", "seconds": 0.2}'], ids=ascii
)
def test_where_no_scene_can_be_made_the_exit_code_is_1(line, caplog):
    """Whether the plan shows it, or the tokenizer."""
    Path("scenes.jsonl").write_text(f"{line}\n{line}\n")
    assert main(["batch", "scenes.jsonl", *FILES, "--steps", "1", "--seed", "1", "-o", "out/{index}.flac"]) == 1
    assert "None of the 2 scenes can be made" in caplog.text or "None of the 2 clips could be made" in caplog.text
    assert not Path("out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_or_a_device_is_no_file_of_scenes(caplog):
    """Nobody writes to the pipe, and the device has no end."""
    os.mkfifo("scenes.jsonl")
    for name in ("scenes.jsonl", "/dev/zero"):
        assert main(["batch", name, "-o", "out/{index}.flac"]) == 1
        assert main(["generate", "--prompts", name, "-o", "out/{index}.flac"]) == 1
        assert main(["generate", "--timeline", name, "-o", "out.flac"]) == 1
        assert caplog.text.count(f"{name} cannot be read (it is a ") == 3


# ---- labels


@pytest.mark.parametrize(
    "line, label",
    [
        ("0.5 thunder and rain", Label(0.5, "thunder and rain")),
        ("0.5\tthunder", Label(0.5, "thunder")),
        ("  ,5   thunder ", Label(0.5, "thunder")),
        ("3", Label(3.0, "")),
        ("0.5 12 monkeys", Label(0.5, "12 monkeys")),
        ("0.500000\t0.500000\tthunder", Label(0.5, "thunder")),
        ("0.500000\t2.000000\tthunder", Label(0.5, "thunder", 2.0)),
        ("0,500000\t2,000000\t", Label(0.5, "", 2.0)),
        ("thunder", None),
        ("0.5s thunder", None),
        ("-1 thunder", None),
        ("nan thunder", None),
    ],
    ids=ascii,
)
def test_labels(line, label):
    assert read_label(line) == label


def test_a_timeline_of_audacity():
    lines = ["0.000000\t2.000000\t<|caption|> Rain", "\\\t100.0\t2000.0", "2.000000\t3.500000\t<|caption|> Wind"]
    Path("labels.txt").write_text("\n".join(lines))
    assert read_timeline(Path("labels.txt")) == [(0.0, "<|caption|> Rain"), (2.0, "<|caption|> Wind")]
    Path("labels.txt").write_text("0\t1\t<|caption|> Rain\n2\t3\t<|caption|> Wind\n")
    with pytest.raises(ValueError, match="labels.txt:2: the prompt before this one ends at 1 s, expected at 2 s"):
        read_timeline(Path("labels.txt"))


# ---- the command line


def test_a_tilde_is_the_users_folder(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("USERPROFILE", str(Path.cwd()))
    given = ["batch", "~/scenes.txt", "-o", "~/x.wav", "--manifest", "~/m.jsonl"]
    args = build_parser().parse_args(given)
    assert {str(args.scenes), str(args.output), str(args.manifest)} == {
        str(Path.cwd() / name) for name in ("scenes.txt", "x.wav", "m.jsonl")
    }
    args = build_parser().parse_args(["batch", "s3://bucket/~/x", "-o", "s3://bucket/~", "--audiogen", "a/~"])
    assert (args.scenes, args.output, args.audiogen) == ("s3://bucket/~/x", "s3://bucket/~", "a/~")


def test_a_text_that_begins_with_a_dash(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["generate", "--asr", "-No.", "-o", "x.wav"])
    assert "a text that begins with a dash is written --asr='-...'" in capsys.readouterr().err
    assert build_parser().parse_args(["generate", "--asr=-No.", "-o", "x.wav"]).asr == "-No."
