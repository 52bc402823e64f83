"""What a file says for a sound library: each field is read back by a program that knows its chunk, and others still open it."""

import json
import re
import shutil
import struct
import subprocess
import wave
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import soundfile
import torch

from dasheng_core.delivery.audio_file import encode_audio
from dasheng_core.delivery.file_notes import read_about, with_notes
from dasheng_core.delivery.library_tags import NO_TAGS, LibraryTags, parse_tags
from dasheng_core.delivery.measures import loudness_levels
from dasheng_core.delivery.tagged_sound import TaggedSound
from riff import chunks_of, loops_of, markers_of, tags_of

RATE = 16000
TAGS = LibraryTags("Café door, 雨.", "José Smith", "DOORWood", "Open Slow", "ABC", "My Lib", 10.5)
# A quiet second, then three louder ones.
SOUND = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(1)) * 0.1
SOUND[:, :RATE] *= 0.2
TAGGED = TaggedSound(TAGS, SOUND, RATE, seed=7, take=2, reference="f" * 32)
XMP = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
TIMELINE = "<|caption|> a"


def write(path: Path, tagged: TaggedSound = TAGGED, file_format: str = "wav24") -> Path:
    encoded = encode_audio(path, tagged.sound, RATE, file_format)
    path.write_bytes(with_notes(encoded, path.suffix, {"seed": 7}, TIMELINE, tagged.sound.shape[-1], tagged))
    return path


def test_wavinfo_reads_each_field(tmp_path):
    wavinfo = pytest.importorskip("wavinfo")
    read = wavinfo.WavInfoReader(str(write(tmp_path / "a.wav")))
    found = read.bext.to_dict()
    texts = {name: found[name] for name in ("description", "originator", "originator_ref", "originator_date")}
    assert texts == {
        "description": "Cafe door, ?.", "originator": "Jose Smith", "originator_ref": "f" * 32, "originator_date": ""
    }  # fmt: skip
    assert (found["time_reference"], found["version"]) == (10.5 * RATE, 2)
    names = ("loudness_value", "loudness_range", "max_momentary_loudness", "max_shortterm_loudness")
    levels = loudness_levels(SOUND, RATE)
    assert [found[name] for name in names] == [pytest.approx(level, abs=0.006) for level in levels]
    assert -12 < found["max_true_peak"] < 0
    assert read.ixml.to_dict()["take"] == "2" and read.ixml.project == "My Lib" and read.ixml.scene == "Open Slow"
    texts = {place: read.ixml.raw_xml.findtext(place) for place in ("USER/CATID", "USER/FXNAME", "USER/SEED", "NOTE")}
    assert texts == {"USER/CATID": "DOORWood", "USER/FXNAME": "Open Slow", "USER/SEED": "7", "NOTE": "Café door, 雨."}
    assert read.ixml.raw_xml.findtext("USER/SHORTID") == read.ixml.raw_xml.findtext("ASWG/creatorId") == "ABC"
    assert [track.channel_index for track in read.ixml.track_list] == ["1"]
    assert [loop.end for loop in read.smpl.sample_loops] == [SOUND.shape[-1] - 1]
    assert json.loads(read.info.comment)["seed"] == 7


def test_levels_are_those_of_ffmpeg(tmp_path):
    if not shutil.which("ffmpeg"):
        pytest.skip("no ffmpeg here")
    path = write(tmp_path / "a.wav", file_format="wav32")
    run = ["ffmpeg", "-hide_banner", "-nostats", "-i", str(path), "-af", "ebur128=peak=true", "-f", "null", "-"]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stderr
    frames = [[float(x) for x in pair] for pair in re.findall(r"M:\s*(-?[\d.]+)\s+S:\s*(-?[\d.]+)", said)]
    summary = {name: float(x) for name, x in re.findall(r"(I|LRA):\s+(-?[\d.]+) LU", said.split("Summary:")[1])}
    whole, spread, momentary, short_term = loudness_levels(SOUND, RATE)
    assert (whole, spread) == (pytest.approx(summary["I"], abs=0.1), pytest.approx(summary["LRA"], abs=0.2))
    assert momentary == pytest.approx(max(m for m, _ in frames), abs=0.2)
    assert short_term == pytest.approx(max(s for _, s in frames), abs=0.2)
    # Too short for a block of three seconds.
    assert loudness_levels(SOUND[:, :RATE], RATE)[1::2] == (-float("inf"), -float("inf"))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_ffprobe_reads_what_it_knows(tmp_path, suffix):
    if not shutil.which("ffprobe"):
        pytest.skip("no ffprobe here")
    path = write(tmp_path / f"a{suffix}", file_format="wav24" if suffix == ".wav" else "flac")
    run = ["ffprobe", "-v", "error", "-show_entries", "format_tags", "-of", "json", str(path)]
    tags = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)["format"]["tags"]
    tags = {name.casefold(): text for name, text in tags.items()}
    assert json.loads(tags["comment"])["seed"] == 7
    if suffix == ".wav":
        assert (tags["time_reference"], tags["encoded_by"]) == ("168000", "Jose Smith")
    else:
        assert (tags["catid"], tags["originator"], tags["digitalsourcetype"]) == (
            "DOORWood",
            "José Smith",
            SOURCE[-23:],
        )


def test_a_flac_has_the_fields_as_tags(tmp_path):
    path = write(tmp_path / "a.flac", file_format="flac")
    tags = tags_of(path)
    assert {name: tags[name] for name in ("DESCRIPTION", "CATID", "FXNAME", "CREATORID", "SOURCEID", "TAKE", "SEED")} == {
        "DESCRIPTION": "Café door, 雨.", "CATID": "DOORWood", "FXNAME": "Open Slow", "CREATORID": "ABC", "SOURCEID": "My Lib",
        "TAKE": "2", "SEED": "7",
    }  # fmt: skip
    assert tags["TIMEREFERENCE"] == "168000" and float(tags["LOUDNESS"]) == pytest.approx(
        loudness_levels(SOUND, RATE)[0], abs=0.01
    )
    assert read_about(path.read_bytes())["seed"] == 7


def test_the_mark_of_a_model_is_xmp_that_names_iptcs_type(tmp_path):
    def type_of(path: Path) -> list[str]:
        packets = [body for name, body in chunks_of(path) if name == "_PMX"]
        return [
            place.attrib[XMP]
            for packet in packets
            for place in ElementTree.fromstring(packet).iter()
            if XMP in place.attrib
        ]

    assert type_of(write(tmp_path / "a.wav")) == [SOURCE]
    assert type_of(write(tmp_path / "b.wav", replace(TAGGED, by_a_model=False))) == []
    # What the user says stands above what the program knows.
    other = replace(TAGGED, tags=replace(TAGS, source_type="compositeWithTrainedAlgorithmicMedia"), by_a_model=False)
    assert type_of(write(tmp_path / "c.wav", other)) == [SOURCE.replace("trained", "compositeWithTrained")]


@pytest.mark.parametrize("file_format", ["wav16", "wav24", "wav32", "flac"])
def test_others_still_open_the_file(tmp_path, file_format):
    path = write(tmp_path / ("a.flac" if file_format == "flac" else "a.wav"), file_format=file_format)
    sound, rate = soundfile.read(path)
    assert rate == RATE and sound == pytest.approx(SOUND[0].numpy(), abs=2**-14)
    if file_format in ("wav16", "wav24"):
        with wave.open(str(path)) as file:
            assert (file.getnframes(), file.getsampwidth()) == (SOUND.shape[-1], int(file_format[3:]) // 8)
    if file_format != "flac":
        # bext stands before the sound; what else there was is still there.
        names = [name for name, _ in chunks_of(path)]
        assert names[0] == "bext" and names.index("fmt ") < names.index("data") < names.index("iXML")
        assert loops_of(path) == [(0, SOUND.shape[-1] - 1)] and markers_of(path) == []


# Control characters, a surrogate, what ends a CDATA section, a marker's and a comment's own names, and a megabyte.
HOSTILE = [
    "a\0b\x1b[2J\r\n\u202ec",
    "\ud800",
    "]]><x>&amp;<!ENTITY",
    "INFOICMT\x08\0\0\0{}",
    "COMMENT={}",
    "雨" * 2**20,
    "\ufffe\U0010ffff",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_texts_are_bounded_and_valid(tmp_path, text):
    tagged = replace(TAGGED, tags=replace(TAGS, description=text, originator=text))
    chunks = dict(chunks_of(write(tmp_path / "a.wav", tagged)))
    assert len(chunks["bext"]) == 602 and len(chunks["iXML"]) < 20_000
    texts = [chunks["bext"][:256], chunks["bext"][256:288]]
    assert all(re.fullmatch(rb"[\x20-\x7e]+\0*", each) for each in texts)
    root = ElementTree.fromstring(chunks["iXML"])
    assert root.findtext("USER/CATID") == "DOORWood" and not re.search("[\0-\x1f\u202e]", "".join(root.itertext()))
    tags = tags_of(write(tmp_path / "a.flac", tagged, "flac"))
    assert len(tags["DESCRIPTION"]) < 5000
    for name in ("a.wav", "a.flac"):
        assert read_about((tmp_path / name).read_bytes())["seed"] == 7


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"catid": "doorwood"}, "CatID is 'doorwood', expected capitals and an abbreviation, as in DOORWood"),
        ({"catid": "DOOR Wood"}, "CatID is 'DOOR Wood'"),
        ({"fxname": "Open_Slow"}, "FXName is 'Open_Slow', expected letters, digits and spaces, .* no _"),
        ({"creatorid": "a/b"}, "CreatorID is 'a/b'"),
        ({"sourceid": "x" * 81}, "SourceID is .*at most 80"),
        ({"start": -1.0}, "start is -1.0, expected a number from 0 to 86400"),
        ({"start": "soon"}, "start is 'soon'"),
        ({"source_type": "a model"}, "source_type is 'a model', expected a code of IPTC's"),
        ({"description": 3}, "description is 3, expected a text"),
    ],
)
def test_what_ucs_does_not_have_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        LibraryTags(**values)


@pytest.mark.parametrize("line", ["DOORWood", "catidd = x", "CatID", "= x", "CatID=AIRBlow\nCat ID=AIRHiss"])
def test_lines_of_metadata_that_are_none(line):
    with pytest.raises(
        ValueError, match="The metadata .* is no name and text of its own, expected description, originator, CatID"
    ):
        parse_tags(line.splitlines())


def test_names_by_ucs():
    written = ["CatID: GUNAuto-INT", " FX Name = Uzi 9mm-Rapid Fire", "creator-id=TN", "", "SOURCEID=DORY", "Start=1,5"]
    tags = parse_tags(written)
    assert tags.ucs_name() == "GUNAuto-INT_Uzi 9mm-Rapid Fire_TN_DORY" and tags.start == 1.5
    assert tags.ucs_name("02") == "GUNAuto-INT_Uzi 9mm-Rapid Fire 02_TN_DORY"
    with pytest.raises(ValueError, match="four blocks, and FXName, SourceID are missing"):
        LibraryTags(catid="AIRBlow", creatorid="TN").ucs_name()
    assert NO_TAGS.given() == {} and LibraryTags(**tags.given()) == tags


def test_time_reference_channels_and_unknown_levels(tmp_path):
    bext = dict(chunks_of(write(tmp_path / "a.wav", replace(TAGGED, cut=0.25))))["bext"]
    assert struct.unpack("<Q", bext[338:346]) == (10.75 * RATE,)
    stereo = dict(chunks_of(write(tmp_path / "c.wav", replace(TAGGED, sound=SOUND.expand(2, -1)))))
    loud = struct.unpack("<h", stereo["bext"][412:414])[0] / 100
    assert loud == pytest.approx(loudness_levels(SOUND, RATE)[0] + 3.01, abs=0.02)
    assert b"<TRACK_COUNT>2</TRACK_COUNT>" in stereo["iXML"]
    # An unknown level is 7FFFh.
    silent = replace(TAGGED, sound=torch.zeros(1, 100))
    bext = dict(chunks_of(write(tmp_path / "b.wav", silent)))["bext"]
    assert struct.unpack("<5h", bext[412:422]) == (0x7FFF,) * 5
