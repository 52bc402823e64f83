"""A sheet becomes files with the right names, and comes back with what became of each line; a file is made again."""

import csv
import io
import json
import logging
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch

from conftest import GOLDEN
from dasheng_core.batch import worker
from dasheng_core.batch.jobs import read_scenes
from dasheng_core.batch.model import load_model
from dasheng_core.batch.tables import KEYS, LARGEST_BOOK, SYNONYMS, as_keys
from dasheng_core.cli import main
from dasheng_core.cli import remake as remaking
from dasheng_core.delivery.file_notes import read_about, with_notes
from dasheng_core.delivery.measures import decibels
from dasheng_core.delivery.wav_chunks import append_chunks, comment_chunk
from riff import chunks_of, tags_of
from tools.comfyui import ROOT

SHEET = [
    ["Name", "Description", "Duration", "Category", "Cat ID", "FX Name", "Notes", "SubCategory", "Qty"],
    ["rain", "Rain on a roof.", "0,4", "ambience", "AMBRain", "Rain Roof", "keep it soft", "RAIN", 2],
    ["7", "A bell, and wind.", "", "hit", "BELLMisc", "Bell Ring", '=1+1 "x"', "MISC", ""],
    ["door", "unreadable", "0.2", "hit", "DOORWood", "Bang", "", "WOOD", ""],
]
RESULTS = ["result_file", "result_seed", "result_seconds", "result_LUFS", "result_peak", "result_verdict"]
OPTIONS = ["--metadata", "CreatorID=ABC", "SourceID=My Lib", "--category", "hit", "seconds=0.2", "format=flac"]
REAL = [
    *("--audiogen", str(GOLDEN / "tiny" / "audiogen"), "--text-encoder", str(GOLDEN / "tiny" / "text_encoder")),
    *("--audio-tokenizer", str(GOLDEN / "tiny" / "audio_tokenizer")),
]


class Noise:
    """In the model's place: noise of each clip's seed."""

    @staticmethod
    def tokenizer(prompts):
        if "unreadable" in prompts[0]:
            raise ValueError("nothing that the model can read")
        return None, torch.ones(len(prompts), 8)

    def generate(self, prompts, seed, duration, **options):
        each = [torch.Generator().manual_seed(number) for number in seed]
        return torch.stack([0.1 * torch.randn(round(duration * 16000), generator=one) for one in each])


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "load_model", lambda args: Noise())


def write(name: str, rows: list[list]) -> str:
    if name.endswith(".xlsx"):
        book = pytest.importorskip("openpyxl").Workbook()
        for row in rows:
            book.active.append(row)
        book.active["G3"].data_type = "s"
        book.save(name)
    elif name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        columns = [[None if cell == "" else str(cell) for cell in column] for column in zip(*rows[1:], strict=True)]
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns, names=rows[0]), name)
    else:
        lines = [json.dumps({k: v for k, v in zip(rows[0], row, strict=True) if v != ""}) for row in rows[1:]]
        table = io.StringIO()
        csv.writer(table, delimiter=";" if name.endswith(".csv") else "\t").writerows(rows)
        Path(name).write_text("\n".join(lines) if name.endswith(".jsonl") else table.getvalue(), "utf-8")
    return name


def read(name: str) -> list[dict]:
    """The rows of a table, an empty cell as None, numbers as texts."""
    if name.endswith(".xlsx"):
        first, *rest = pytest.importorskip("openpyxl").load_workbook(name).active.iter_rows(values_only=True)
        rows = [dict(zip(first, row, strict=True)) for row in rest]
    elif name.endswith(".parquet"):
        rows = pytest.importorskip("pyarrow.parquet").read_table(name).to_pylist()
    elif name.endswith(".jsonl"):
        rows = [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]
    else:
        rows = list(
            csv.DictReader(
                io.StringIO(Path(name).read_text("utf-8"), ""), delimiter="," if name.endswith("csv") else "\t"
            )
        )
    return [{key: None if value in (None, "") else str(value) for key, value in row.items()} for row in rows]


def batch(scenes: str, *options: str, output: str = "out/{ucs}.wav") -> int:
    return main(["batch", scenes, "--audiogen", "nowhere", "-o", output, "--seed", "3", *options])


@pytest.mark.parametrize(
    "source, target",
    [
        *(
            ("s.csv", "r.csv"),
            ("s.tsv", "r.tsv"),
            ("s.xlsx", "r.xlsx"),
            ("s.parquet", "r.parquet"),
            ("s.jsonl", "r.jsonl"),
        ),
        *(("s.xlsx", "r.csv"), ("s.parquet", "r.xlsx"), ("s.jsonl", "r.parquet"), ("s.csv", "r.jsonl")),
    ],
)
def test_a_sheet_comes_back_with_its_results(source, target, caplog):
    if "parquet" in source + target:
        pytest.importorskip("pyarrow.parquet")
    rows = (
        SHEET
        if source[2:] in ("csv", "tsv", "xlsx", "parquet")
        else [SHEET[0], *([r[0], r[1], *([0.4] if r[2] == "0,4" else [0.2]), *r[3:]] for r in SHEET[1:])]
    )
    assert batch(write(source, rows), *OPTIONS, "--sheet", target) == 0
    assert re.search("not read, and kept for --sheet: Notes", caplog.text)
    found = read(target)
    assert [row["result_file"] for row in found] == [
        "out/AMBRain_Rain Roof 01_ABC_My Lib.wav", "out/AMBRain_Rain Roof 02_ABC_My Lib.wav",
        "out/BELLMisc_Bell Ring_ABC_My Lib.flac", None,
    ]  # fmt: skip
    assert [row["result_verdict"] for row in found] == ["made", "made", "made", "not made"]
    # Unknown columns are as they were, and a text that looks like a formula is a text.
    assert [row.get("Notes") for row in found] == ["keep it soft", "keep it soft", '=1+1 "x"', None]
    assert [row["SubCategory"] for row in found] == ["RAIN", "RAIN", "MISC", "WOOD"]
    assert [row["result_seed"] for row in found[:3]] == ["3", "4", "3"]
    assert [row["result_seconds"] for row in found[:3]] == ["0.4", "0.4", "0.2"]
    for row in found[:3]:
        sound = soundfile.read(row["result_file"])[0]
        assert float(row["result_peak"]) == pytest.approx(decibels(abs(sound).max()), abs=0.01)
    assert float(found[0]["result_LUFS"]) < -10 and found[2]["result_LUFS"] is None
    if not target.endswith("jsonl"):
        assert list(found[0])[-6:] == RESULTS


def test_a_copy_is_a_sheet_again_and_files_are_kept_from_being_overwritten(caplog):
    write("s.csv", SHEET)
    assert batch("s.csv", *OPTIONS, "--sheet", "r.csv") == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    # The results are columns that no scene has, and are replaced.
    assert batch("r.csv", *OPTIONS, "--takes", "1", "--sheet", "r2.csv", output="again/{CatID}_{index}_{take}.wav") == 0
    assert list(read("r2.csv")[0]) == list(read("r.csv")[0])
    for options in (["--sheet", "r.csv"], ["--export", "r.tsv"]):
        Path("r.tsv").write_text("mine")
        assert batch("s.csv", *OPTIONS, *options, "--manifest", "m.jsonl", output="new/{ucs}.wav") == 1
        assert "is already there: name another file" in caplog.text
    assert batch("s.csv", *OPTIONS, "--resume", "--sheet", "s.csv") == 1 and read("s.csv")
    assert (
        batch("s.csv", *OPTIONS, "--sheet", "r.doc") == 1
        and "The end of r.doc is '.doc', expected .csv, .tsv, .jsonl" in caplog.text
    )
    assert batch("s.csv", *OPTIONS, "--resume", "--sheet", "r.csv") == 0
    assert before == {path: path.read_bytes() for path in Path("out").iterdir()}


def test_what_a_line_says_of_its_file_is_in_it_and_no_folder_of_this_machine():
    write("s.csv", SHEET)
    output = str(Path.cwd() / "out" / "{ucs}.wav")
    assert batch("s.csv", *OPTIONS, output=output) == 0
    chunks = dict(chunks_of(Path("out/AMBRain_Rain Roof 02_ABC_My Lib.wav")))
    assert chunks["bext"].startswith(b"Rain on a roof.\0") and b"<TAKE>2</TAKE>" in chunks["iXML"]
    tags = tags_of(Path("out/BELLMisc_Bell Ring_ABC_My Lib.flac"))
    assert (tags["CATID"], tags["DESCRIPTION"], tags["SOURCEID"]) == ("BELLMisc", "A bell, and wind.", "My Lib")
    for path in Path("out").iterdir():
        assert (
            str(Path.cwd()).encode() not in path.read_bytes()
            and Path.home().name.encode() + b"/" not in path.read_bytes()
        )


def test_a_category_sets_what_its_lines_leave_open():
    scenes = [
        {"caption": "a", "category": "x"},
        {"caption": "b", "category": "x", "seconds": 0.2, "format": "wav16", "takes": 1},
        {"caption": "c", "category": "other"},
        {"caption": "d"},
    ]
    Path("s.jsonl").write_text("".join(json.dumps(scene) + "\n" for scene in scenes))
    given = ["--category", "x", "seconds=0.04", "takes=2", "format=flac", "--seconds", "0.4"]
    assert batch("s.jsonl", *given, "--manifest", "m.jsonl", output="o/{name}_{take}.wav") == 0
    found = {path.name: soundfile.info(path).frames for path in Path("o").iterdir()}
    assert found == {"a_1.flac": 640, "a_2.flac": 640, "b_1.wav": 3200, "c_1.wav": 6400, "d_1.wav": 6400}


@pytest.mark.parametrize(
    "given, sentence",
    [
        (
            ["--category", "x", "colour=red"],
            "A value of --category x is 'colour', expected seconds, takes, format",
        ),
        (["--category", "x"], "--category x: expected one list of values for it"),
        (["--category", "x", "takes=2", "--category", "x", "takes=3"], "--category x: expected one list"),
        (["--category", "x", "format=mp3"], "format is 'mp3', expected wav16"),
        (["--category", "x", "seconds=soon"], 'seconds is "soon", expected a number'),
        (["--metadata", "CatId=wood"], "CatID is 'wood', expected capitals"),
        (["--metadata", "colour=red"], "The metadata 'colour=red' is no name and text of its own"),
    ],
)
def test_delivery_that_cannot_be_is_refused_before_anything_is_made(given, sentence, caplog):
    write("s.csv", SHEET)
    assert batch("s.csv", *given, output="out/{name}.wav") == 1
    assert sentence in caplog.text and not Path("out").exists()


def test_a_line_without_what_its_name_is_made_of_is_refused(caplog):
    write("s.csv", SHEET)
    assert batch("s.csv") == 1
    assert "four blocks, and CreatorID, SourceID are missing" in caplog.text
    Path("s.jsonl").write_text('{"caption": "a", "seconds": 0.04}')
    assert batch("s.jsonl", output="{CatID}.wav") == 1 and "names CatID, which this line does not have" in caplog.text


def test_the_names_that_people_use():
    assert as_keys(["Sound Description", "Length (s)", "Transcript", "ID", "Library"]) == [
        "caption",
        "length_(s)",
        "asr",
        "name",
        "sourceid",
    ]
    # Our own name is read, and the other stays; a description is the caption of a scene without one.
    assert as_keys(["caption", "text", "Description"]) == ["caption", "text", "description"]
    assert as_keys(["Description", "Duration"]) == ["caption", "seconds"]
    names = [name for names in SYNONYMS.values() for name in names]
    assert len(names) == len({*names}) and not {*names} & {*KEYS} and {*SYNONYMS} <= {*KEYS}
    page = (ROOT / "docs" / "sheets.md").read_text("utf-8")
    for key, others in SYNONYMS.items():
        assert re.search(
            rf"\| `{key}` \|.* {', '.join(other.replace('_', ' ') for other in others)} \|", page, re.IGNORECASE
        ), key


# ---- workbooks


def test_a_hostile_workbook_is_refused_or_read_in_bounded_time(caplog):
    write("s.xlsx", SHEET)
    with zipfile.ZipFile("s.xlsx") as book:
        parts = {name: book.read(name) for name in book.namelist()}

    def pack(name: str, **changed: bytes) -> Path:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as book:
            for part, data in {**parts, **{key: value for key, value in changed.items() if value}}.items():
                book.writestr(part, data)
        return Path(name)

    sheet = "xl/worksheets/sheet1.xml"
    bomb = pack("bomb.xlsx", **{"xl/extra.bin": bytes(LARGEST_BOOK)})
    far = pack("far.xlsx", **{sheet: re.sub(rb'<row r="4"', b'<row r="999999999999"', parts[sheet])})
    broken = pack("broken.xlsx", **{sheet: parts[sheet][:200]})
    laughs = (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9))
        + b"]>"
    )
    entity = pack("entity.xlsx", **{sheet: (laughs + parts[sheet]).replace(b"keep it soft", b"&j;")})
    cut = Path("cut.xlsx")
    cut.write_bytes(Path("s.xlsx").read_bytes()[:-100])
    for path in (bomb, broken, cut):
        with pytest.raises(
            ValueError, match=f"{path} is no XLSX workbook that can be read .*: save its sheet as CSV UTF-8"
        ):
            read_scenes(path)
    assert [scene.name for scene in read_scenes(far)] == ["rain", "7"]
    with pytest.raises(ValueError, match="entity.xlsx"):
        read_scenes(entity)


def test_a_date_where_a_number_should_be_is_named():
    datetime = pytest.importorskip("openpyxl.utils.datetime")
    write("s.xlsx", [["caption", "seconds"], ["a", datetime.from_excel(2.5)]] + [[""] * 7])
    with pytest.raises(ValueError, match="s.xlsx:2: seconds is .*1900-01-02 12:00:00.*, expected a number"):
        read_scenes(Path("s.xlsx"))


def test_without_openpyxl_a_workbook_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    shutil.copy(ROOT / "tests" / "tables" / "book.xlsx", "book.xlsx")
    with pytest.raises(ValueError, match=r"needs openpyxl: pip install 'dasheng-audiogen\[xlsx\]', or save its sheet"):
        read_scenes(Path("book.xlsx"))


# ---- lists


@pytest.fixture
def lists(caplog) -> Path:
    rows = [
        *SHEET,
        ["a", 'Say "hi",\tnow', 0.2, "hit", "DOORWood", "Bang", "", "", ""],
        ["b", "x", 0.2, "hit", "DOORWood", "Bang", "", "", ""],
    ]
    write("s.tsv", rows)
    Path("lists").mkdir()
    given = ["--export", "lists/w.tsv", "lists/u.csv", "lists/r.rpp"]
    names = 'out/{CatID}_{FXName}`"{name} {take}.wav'
    assert batch("s.tsv", *OPTIONS, *given, output=names) == 0
    return Path("lists")


def test_a_list_for_wwise_is_tab_delimited_as_its_manual_says(lists):
    header, *rows = [line.split("\t") for line in (lists / "w.tsv").read_text("utf-8").splitlines()]
    assert header == ["Audio File", "Object Path", "Object Type", "Notes"] and len(rows) == 5
    for file, place, kind, _ in rows:
        # A path relative to the list, and objects by type and name.
        assert (lists / file.replace("\\", "/")).is_file() and kind == "Sound SFX"
        assert re.fullmatch(r"(<Random Container>[\w -]+\\)?<Sound SFX>[\w -]+", place)
    assert [place.split("\\")[0] for _, place, *_ in rows[:2]] == ["<Random Container>rain"] * 2
    assert "\\" not in rows[2][1]


def test_a_list_for_unreal_is_a_data_table(lists):
    rows = list(csv.DictReader(io.StringIO((lists / "u.csv").read_text("utf-8"))))
    assert list(rows[0]) == ["---", "Sound", "Seconds", "Loudness", "Category", "Description"]
    names = [row["---"] for row in rows]
    assert len({*names}) == len(names) == 5 and all(re.fullmatch(r"\w+", name, re.ASCII) for name in names)
    for row in rows:
        assert re.fullmatch(r"/Script/Engine\.SoundWave'/Game/Audio/(\w+)\.\1'", row["Sound"], re.ASCII)
        assert float(row["Seconds"]) > 0 and float(row["Loudness"]) <= 0
    assert rows[3]["Description"] == 'Say "hi", now'


def test_a_list_for_reaper_is_a_project(lists):
    """Blocks in angle brackets, each line a name and values, which may stand between one of three kinds of quotes."""
    stack, items = [], []
    for line in (lists / "r.rpp").read_text("utf-8").splitlines():
        words = [a or b or c or d for a, b, c, d in re.findall(r"\"([^\"]*)\"|'([^']*)'|`([^`]*)`|(\S+)", line.strip())]
        if words == [">"]:
            stack.pop()
        elif words[0].startswith("<"):
            stack.append(words[0])
            items += [{}] * (words[0] == "<ITEM")
        elif stack[-1] in ("<ITEM", "<SOURCE"):
            items[-1][words[0]] = words[1]
        assert stack or line == ">"
    assert not stack and len(items) == 5
    for item in items:
        assert (lists / item["FILE"]).is_file() or "`" in Path(item["FILE"]).name
        sound = soundfile.info(lists / item["FILE"]) if (lists / item["FILE"]).is_file() else None
        assert sound is None or float(item["LENGTH"]) == pytest.approx(sound.duration)
    assert [item["POSITION"] for item in items[:2]] == ["0.000000", "1.400000"]


# ---- made again


def generate(*options: str, output: str = "a.wav") -> int:
    words = ["--caption", "Rain.", "--seed", "5", "--seconds", "0.4", "--steps", "3"]
    return main(["generate", *REAL, *words, "-o", output, *options])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--loop"],
        ["--guidance", "3", "--apg", "0", "0", "-0.5", "--negative", "<|caption|> wind"],
        ["--sfx", "drops", "--emphasis", "sfx=2", "--stems"],
    ],
    ids=str,
)
def test_a_file_is_made_again_to_the_last_byte(options, caplog):
    assert generate(*options, "--metadata", "CatID=AMBRain", "start=2") == 0
    before = {path.name[1:]: path.read_bytes() for path in Path().glob("a*.wav")}
    with caplog.at_level(logging.INFO):
        assert main(["remake", "a.wav", *REAL, "-o", "b.wav"]) == 0
    assert "a.wav (wav32) was made again: the largest difference is 0.0e+00 of full scale" in caplog.text
    assert before == {path.name[1:]: path.read_bytes() for path in Path().glob("b*.wav")}
    assert len(before) == (2 if "--stems" in options else 1)


def test_a_timeline_and_a_file_of_a_batch_are_made_again(monkeypatch):
    made = []
    monkeypatch.setattr(remaking, "compared", lambda sound, encoded, args: made.append((sound, encoded)) or "")
    scenes = [
        {"timeline": [[0, "<|caption|> Rain."], [0.2, "<|caption|> Wind."]], "seconds": 0.4, "fade": 0.1},
        {"caption": "A bell.", "seconds": 0.4, "format": "flac"},
        {"caption": "A bell.", "seconds": 0.4},
    ]
    Path("s.jsonl").write_text("".join(json.dumps(scene) + "\n" for scene in scenes))
    monkeypatch.setattr(worker, "load_model", load_model)
    assert main(["batch", "s.jsonl", *REAL, "-o", "out/{index}.wav", "--seed", "3", "--steps", "3"]) == 0
    for name in ("001.wav", "002.flac", "003.wav"):
        assert main(["remake", f"out/{name}", *REAL]) == 0
        sound, encoded = made.pop()
        there = torch.from_numpy(soundfile.read(io.BytesIO(encoded), dtype="float32")[0])
        # Samples before encoding within 1e-6; a FLAC has steps of 24 bits.
        assert (sound - there).abs().max() <= 1e-6 + (2**-23 if "flac" in name else 0)


def test_files_that_cannot_be_made_again_say_why(caplog):
    assert generate("--sfx", "drops", "--stems") == 0
    encoded = Path("a.wav").read_bytes()
    about = read_about(encoded)
    bare = io.BytesIO()
    soundfile.write(bare, [0.0] * 640, 16000, format="WAV")

    def put(name: str, **changed) -> str:
        values = {key: value for key, value in {**about, **changed}.items() if value is not None}
        Path(name).write_bytes(with_notes(bare.getvalue(), ".wav", values))
        return name

    Path("graph.wav").write_bytes(
        append_chunks(bare.getvalue(), comment_chunk(json.dumps({"prompt": {"1": {}}, "workflow": {}})))
    )
    Path("bare.wav").write_bytes(bare.getvalue())
    other = ["--audiogen", str(GOLDEN / "tiny_multilingual" / "audiogen"), *REAL[2:]]
    recipe = about["recipe"]
    for name, checkpoints, sentence in (
        ("graph.wav", REAL, "ComfyUI saved it: drop the .json beside it onto ComfyUI"),
        ("bare.wav", REAL, "it does not say how it was made, expected a file of dasheng generate"),
        ("a.sfx.wav", REAL, "it is a stem: name the file of its clip"),
        ("a.wav", other, "it was made by another --audiogen (fingerprint "),
        (put("old.wav", recipe=None), REAL, "it does not say how it was made"),
        (put("odd.wav", recipe=[1]), REAL, "it does not say how it was made"),
        (put("more.wav", recipe={**recipe, "swirl": 3}), REAL, "it does not say how it was made"),
        (put("steps.wav", recipe={**recipe, "num_steps": "x"}), REAL, "The number of steps is 'x'"),
        (put("seed.wav", seed=-1), REAL, "seed is -1"),
        (put("take.wav", take="x"), REAL, "take is 'x'"),
        (put("prompt.wav", prompt=3), REAL, "prompt is 3, expected a text"),
        ("nothing.wav", REAL, "nothing.wav cannot be read (No such file"),
    ):
        caplog.clear()
        assert main(["remake", name, *checkpoints]) == 1, name
        assert sentence in caplog.text, (name, caplog.text)
    caplog.clear()
    assert main(["remake", "a.wav", *REAL, "-o", "a.wav"]) == 1 and "already there" in caplog.text
    assert main(["remake", "a.wav", *REAL, "-o", "b.flac"]) == 1 and "needs a name that ends in .wav" in caplog.text
    assert Path("a.wav").read_bytes() == encoded
