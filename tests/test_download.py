"""``dasheng download`` against servers on loopback: one that answers as the hub does, and ones that send what no hub should."""

import hashlib
import logging
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import GOLDEN, small_disk, stop_command
from dasheng_core import DashengAudioGen
from dasheng_core.cli import download, main
from dasheng_core.cli.download import Known, Published
from dasheng_core.cli.hub import DownloadError, _redirected
from fake_hub import FakeHub

WEIGHTS = "mispeech/Dasheng-AudioGen/model.safetensors"
PLACE = "diffusion_models/dasheng_audiogen.safetensors"
AUDIO_TOKENIZER = {
    "vae/dashengtokenizer.safetensors": "mispeech/dashengtokenizer/model.safetensors",
    "vae/dashengtokenizer.config.json": "mispeech/dashengtokenizer/config.json",
}
ENGLISH = {
    PLACE: WEIGHTS,
    "diffusion_models/dasheng_audiogen.config.json": "mispeech/Dasheng-AudioGen/config.json",
    "text_encoders/flan_t5_large.safetensors": "google/flan-t5-large/model.safetensors",
    "text_encoders/flan_t5_large.config.json": "google/flan-t5-large/config.json",
    "text_encoders/flan_t5_large.tokenizer.json": "google/flan-t5-large/tokenizer.json",
    **AUDIO_TOKENIZER,
}
OTHER = "mispeech/Dasheng-AudioGen-Multilingual"
MULTILINGUAL = {
    "diffusion_models/dasheng_audiogen_multilingual.safetensors": f"{OTHER}/model.safetensors",
    "diffusion_models/dasheng_audiogen_multilingual.config.json": f"{OTHER}/config.json",
    "diffusion_models/dasheng_audiogen_multilingual.tokenizer.json": f"{OTHER}/tokenizer.json",
    "text_encoders/mt5_large.bin": "google/mt5-large/pytorch_model.bin",
    "text_encoders/mt5_large.config.json": "google/mt5-large/config.json",
    "text_encoders/mt5_large.spiece.model": "google/mt5-large/spiece.model",
    **AUDIO_TOKENIZER,
}
SECRET = "hunter2"


@pytest.fixture
def hub(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub = FakeHub()
    for place, name in {**ENGLISH, **MULTILINGUAL}.items():
        hub.files[name] = f"{place}: ".encode() * 500
    hub.files[WEIGHTS] = bytes(range(256)) * 20000
    yield hub
    hub.close()


@pytest.fixture
def models(tmp_path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def fetch(hub: FakeHub, models: Path, *options: str) -> int:
    hub.requests.clear()
    return main(["download", "--models", str(models), "--endpoint", hub.url, *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(hub: FakeHub, places: dict[str, str] = ENGLISH) -> dict[str, bytes]:
    return {place: hub.files[name] for place, name in places.items()}


@pytest.mark.parametrize(
    "options, places",
    [
        ([], ENGLISH),
        (["--multilingual"], MULTILINGUAL),
        (["--english", "--multilingual"], {**ENGLISH, **MULTILINGUAL}),
    ],
    ids=["default", "multilingual", "both"],
)
def test_files_come_to_where_the_loaders_list_them(hub, models, caplog, options, places):
    (models / "vae").mkdir()
    (models / "vae" / "other.safetensors").write_text("mine")
    assert fetch(hub, models, *options) == 0
    assert contents(models) == {**expected(hub, places), "vae/other.safetensors": b"mine"}
    if not options:
        assert f"   5.12 MB  {PLACE} <- {hub.url}/mispeech/Dasheng-AudioGen/resolve/main/model." in caplog.text
        assert "dasheng_audiogen.tokenizer.json: mispeech/Dasheng-AudioGen has none, and needs none" in caplog.text
    assert fetch(hub, models, *options) == 0
    assert not hub.asked(), "all is there: only sizes are asked for"
    assert "0 B to fetch." in caplog.messages


def test_what_was_fetched_loads(hub, models):
    for repository, part in (
        ("mispeech/Dasheng-AudioGen", "audiogen"),
        ("google/flan-t5-large", "text_encoder"),
        ("mispeech/dashengtokenizer", "audio_tokenizer"),
    ):
        files = (GOLDEN / "tiny" / part).iterdir()
        hub.files |= {f"{repository}/{file.name}": file.read_bytes() for file in files}
    assert fetch(hub, models) == 0
    weights = (models / place for place in ENGLISH if place.endswith(".safetensors"))
    made = DashengAudioGen.from_pretrained(*weights).generate("<|caption|> A cat.", num_steps=1, duration=0.2)
    assert made.isfinite().all()


@pytest.mark.parametrize("change", ["nothing", "no ranges", "another version", "too long", "whole"])
def test_a_connection_that_ends_early_is_gone_on_with(hub, models, caplog, change):
    hub.stop_after = 2_000_000
    assert fetch(hub, models) == 1
    assert "the connection ended after 2.00 MB of 5.12 MB: run the same command again" in caplog.text
    part = models / f"{PLACE}.part"
    assert part.read_bytes() == hub.files[WEIGHTS][:2_000_000] and not (models / PLACE).exists()
    hub.stop_after = None
    hub.ranges = change != "no ranges"
    if change == "another version":
        hub.files[WEIGHTS] = hub.files[WEIGHTS][::-1]
    elif change in ("too long", "whole"):
        part.write_bytes(hub.files[WEIGHTS] + b"more" * (change == "too long"))
    assert fetch(hub, models) == 0
    assert contents(models) == expected(hub)
    goes_on = change in ("nothing", "no ranges")
    assert hub.asked().get(WEIGHTS) == ("bytes=2000000-" if goes_on else None)
    assert (WEIGHTS in hub.asked()) == (change != "whole"), "what is whole is only checked"


@pytest.mark.parametrize("place", [PLACE, "text_encoders/flan_t5_large.config.json"])
def test_a_wrong_checksum_deletes_what_came(hub, models, caplog, place):
    file = ENGLISH[place]
    hub.wrong.add(file)
    assert fetch(hub, models) == 1
    data = hub.files[file]
    checksum = hashlib.sha256(data) if place == PLACE else hashlib.sha1(b"blob %d\0" % len(data) + data)
    assert f"expected checksum {checksum.hexdigest()}. It was deleted" in caplog.text
    assert not [path for path in contents(models) if path.startswith(place)]


def test_another_file_of_the_name_is_left_alone(hub, models, caplog):
    place = "vae/dashengtokenizer.safetensors"
    (models / "vae").mkdir()
    # The second is what a disk leaves of a file that was given its room and never written.
    zeros = bytes(len(hub.files[ENGLISH[place]]))
    for other, what in ((b"mine", "4 bytes"), (zeros, f"checksum {hashlib.sha256(zeros).hexdigest()}")):
        (models / place).write_bytes(other)
        assert fetch(hub, models) == 1
        assert f"dashengtokenizer.safetensors is there with {what}, but" in caplog.text
        assert contents(models) == {place: other} and not hub.asked()
    (models / place).unlink()
    for name in (place, f"{place}.part", f"{place}.part.etag"):
        (models / name).mkdir()
        assert fetch(hub, models) == 1 and not hub.asked()
        assert f"{models / name} is there and is not a file: move it away." in caplog.text
        (models / name).rmdir()


@pytest.mark.parametrize(
    "file, status, sentence",
    [
        ("mispeech/dashengtokenizer/model.safetensors", 404, "404 Not Found: the file is not there; look at the --end"),
        ("mispeech/dashengtokenizer/model.safetensors", 401, "401 Unauthorized: set HF_TOKEN"),
        ("mispeech/dashengtokenizer/model.safetensors", 503, "503 Service Unavailable: try again later"),
        # An optional file may be missing, but not broken.
        ("mispeech/Dasheng-AudioGen/tokenizer.json", 500, "500 Internal Server Error: try again later"),
    ],
)
def test_refusals_are_one_sentence_before_anything_is_fetched(hub, models, caplog, file, status, sentence):
    hub.status[file] = status
    assert fetch(hub, models) == 1
    assert f"/resolve/main/{Path(file).name}: the server answered {sentence}" in caplog.text
    assert not contents(models) and not hub.asked()


def test_the_token_goes_to_the_endpoint_only_which_can_come_from_the_environment(hub, models, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    assert main(["download", "--models", str(models)]) == 0
    assert contents(models) == expected(hub)
    sent = {(server, headers.get("Authorization")) for server, _, _, headers in hub.requests}
    assert sent == {("front", f"Bearer {SECRET}"), ("back", None)}


def test_the_folder_must_be_one(hub, models, caplog):
    assert fetch(hub, models / "none") == 1
    assert "none is not a folder: give the models folder of ComfyUI" in caplog.text
    assert fetch(hub, models.parent) == 1
    assert f"{models.parent} holds a folder models: give that one, {models}." in caplog.text
    assert not hub.requests and not contents(models)


def test_a_disk_without_room(hub, tmp_path, monkeypatch, caplog):
    with small_disk(tmp_path / "disk", 3 << 20) as disk:
        assert fetch(hub, disk) == 1
        assert "has 3.15 MB free, but 5." in caplog.text and "make room, or give --models on another" in caplog.text
        assert not contents(disk) and not hub.asked()
        # As if the room had been taken since.
        monkeypatch.setattr("dasheng_core.cli.download._check_room", lambda items: None)
        assert fetch(hub, disk) == 1
        assert f"{disk / PLACE}.part could not be written (No space left on device): make room" in caplog.text
        kept = (disk / f"{PLACE}.part").stat().st_size
        assert kept > 2_000_000
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert fetch(hub, disk) == 0
        assert hub.asked()[WEIGHTS] == f"bytes={kept}-" and contents(disk) == expected(hub)


def test_an_interrupted_download_goes_on_where_it_stopped(hub, models):
    hub.stop_after, hub.hang = 2_500_000, True
    part = models / f"{PLACE}.part"
    command = ["download", "--models", str(models), "--endpoint", hub.url]
    there = lambda: part.exists() and part.stat().st_size >= 2_000_000  # noqa: E731
    returned, errors = stop_command(command, there, signal.SIGTERM)
    assert returned == 143 and "Traceback" not in errors
    kept = part.stat().st_size
    assert part.read_bytes() == hub.files[WEIGHTS][:kept]
    assert f"{kept / 1e6:.2f} MB of 5.12 MB are kept in {part}: the same command goes on from there." in errors
    hub.stop_after = None
    assert fetch(hub, models) == 0
    assert hub.asked()[WEIGHTS] == f"bytes={kept}-" and contents(models) == expected(hub)


# ---- servers that send what no hub should: bounded, named, nothing secret shown

SMALL = Published("org/model", "config.json", "vae/config.json")
LARGE = Published("org/model", "model.safetensors", "vae/model.safetensors")
DATA = b"published " * 300
ACTING = "\x1b[2J\x1b]0;owned\x07"
# A server that is never hung up on gives up.
MOST_SENT, MOST_SECONDS = 32 << 20, 60


@pytest.fixture
def hostile(hub, monkeypatch):
    """A hub with one small and one large file, which is all that ``dasheng download`` wants."""
    monkeypatch.setattr(download, "ENGLISH_FILES", (SMALL,))
    monkeypatch.setattr(download, "AUDIO_TOKENIZER_FILES", (LARGE,))
    hub.files = {"org/model/config.json": DATA[:1000], "org/model/model.safetensors": DATA}
    return hub


def inert(text: str) -> None:
    """Messages are short lines that show no secret and move no cursor."""
    assert SECRET not in text
    for line in text.splitlines():
        assert len(line) < 1000 and line.isprintable(), line[:1000]


def complete(hub: FakeHub, models: Path) -> bool:
    return contents(models) == {part.place: hub.files[f"org/model/{Path(part.place).name}"] for part in (SMALL, LARGE)}


def says(headers: str, body=b"", status="200 OK"):
    """An answer that ends after ``body``."""

    def raw(request, data):
        request.wfile.write(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode("latin-1") + body)

    return raw


def named(**headers):
    """An answer that describes the file rightly but for these headers; None leaves one out."""

    def raw(request, data):
        right = {"Content-Length": len(data), "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        lines = {**right, **{name.replace("_", "-"): value for name, value in headers.items()}}
        says("".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None))(request, data)

    return raw


def endless(head: bytes, piece: bytes, chunked: bool = False):
    def raw(request, data):
        request.wfile.write(head)
        for _ in range(MOST_SENT // len(piece)):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        raise AssertionError("the downloader did not hang up")

    return raw


def dripping(head: bytes, drop: bytes, monkeypatch):
    def raw(request, data):
        # From here on, what comes too late is what this test is about.
        monkeypatch.setattr("dasheng_core.cli.hub.PATIENCE", 1.0)
        request.wfile.write(head)
        for _ in range(MOST_SECONDS * 20):
            request.wfile.write(drop)
            time.sleep(0.05)

    return raw


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
LENGTH = f"Content-Length: {len(DATA)}\r\n"
CHECKSUM = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
BODIES = {
    "without end": (endless(OK + b"\r\n", bytes(65536)), f"expected checksum {CHECKSUM}. It was deleted"),
    "in chunks without end": (endless(OK + f"{CHUNKED}\r\n".encode(), bytes(65536), chunked=True), "It was deleted"),
    "longer": (says("Content-Length: 999999999999\r\n", DATA), "sends 999999999999 bytes, and 3000 were expected"),
    "of no length": (says("Content-Length: -1\r\n", DATA), "sends -1 bytes, and 3000"),
    "of a length in words": (says(f"Content-Length: {ACTING}\r\n", DATA), "sends \\x1b[2J\\x1b]0;owned\\x07 bytes"),
    "ends early": (says(LENGTH, DATA[:9]), "the connection ended after 9 B of 3.00 kB: run the same command again"),
    "wrong chunks": (says(CHUNKED, b"zz\r\n" + DATA), "the connection failed ("),
    "packed": (says("Content-Encoding: gzip\r\n", b"\x1f\x8b" + bytes(100)), 'sends it packed as "gzip"'),
    "another range": (
        says("Content-Range: bytes 5-9/10\r\n", DATA, "206 OK"),
        '"bytes 5-9/10", and "bytes 0-2999/3000"',
    ),
    "nothing": (says("", b"", "204 None"), "answered 204 None, and 200 or 206 was expected"),
    "no HTTP": (lambda request, data: request.wfile.write(ACTING.encode() * 9 + b"\r\n"), "the connection failed ("),
    "a reason that acts": (says("", b"", f"500 {ACTING}"), "answered 500 \\x1b[2J\\x1b]0;owned\\x07: try again later"),
    "a long reason": (says("", b"", f"500 {'a' * 60000}"), "more ..."),
    "headers without end": (endless(OK, b"A: b\r\n" * 100), "the connection failed ("),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_not_the_file_is_named_and_no_place_is_taken(hostile, models, caplog, kind):
    hostile.raw["GET"], sentence = BODIES[kind]
    hostile.files["org/model/config.json"] = DATA
    assert fetch(hostile, models) == 1
    assert sentence in caplog.text
    inert(caplog.text)
    assert {path.suffix for path in models.rglob("*") if path.is_file()} <= {".part", ".etag"}
    assert sum(path.stat().st_size for path in models.rglob("*.part")) <= len(DATA)
    hostile.raw.clear()
    assert fetch(hostile, models) == 0 and complete(hostile, models)


def test_what_comes_after_the_last_byte_is_not_read(hostile, models):
    def more(request, data):
        endless(OK + b"\r\n" + data, b"more" * 10000)(request, data)

    hostile.raw["GET"] = more
    assert fetch(hostile, models) == 0 and complete(hostile, models)


NO_SIZE, NO_CHECKSUM = "the server names no size of it", "the server names no checksum of it"
FOUND = "302 Found"
DESCRIPTIONS = {
    "no tag": (named(ETag=None), NO_CHECKSUM),
    "an MD5": (named(ETag=f'"{"0" * 32}"'), NO_CHECKSUM),
    "a long tag": (named(ETag="0" * 60000), NO_CHECKSUM),
    "no length": (named(Content_Length=None), NO_SIZE),
    "a negative size": (named(X_Linked_Size="-5"), NO_SIZE),
    "a size in words": (named(X_Linked_Size=ACTING), NO_SIZE),
    "a size of many digits": (named(X_Linked_Size="9" * 60000), NO_SIZE),
    "a size that no disk has": (named(X_Linked_Size="9" * 15), "are to be fetched: make room"),
    "a redirect to nowhere": (says("", b"", FOUND), "redirects to an address that it does not name"),
    "a redirect to itself": (says("Location: ?\r\n", b"", FOUND), "redirected more than 10 times"),
    "a redirect to a file": (says("Location: file:///etc/passwd\r\n", b"", FOUND), "that is not a web address"),
    "a redirect to no host": (says("Location: http://[::1\r\n", b"", FOUND), "that is not a web address"),
    "a redirect that acts": (says(f"Location: /{ACTING}\r\n", b"", FOUND), "that is not a web address"),
    "a redirect with a password": (
        says(f"Location: http://u:{SECRET}@127.0.0.1/\r\n", b"", FOUND),
        "a user or a password",
    ),
    "a redirect with a key": (
        says(f"Location: http://127.0.0.1:9/a?key={SECRET}\r\n", b"", FOUND),
        ":9/a: the connection",
    ),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_file_that_is_not_described_is_not_fetched(hostile, models, caplog, kind):
    hostile.raw["HEAD"], sentence = DESCRIPTIONS[kind]
    assert fetch(hostile, models) == 1
    assert sentence in caplog.text and not hostile.asked() and not list(models.iterdir())
    inert(caplog.text)


@pytest.mark.parametrize(
    "method, head, drop", [("HEAD", OK, b"A: b"), ("GET", OK + LENGTH.encode() + b"\r\n", b"p")], ids=["head", "body"]
)
def test_a_server_that_drips_is_not_waited_for(hostile, models, caplog, monkeypatch, method, head, drop):
    hostile.files["org/model/config.json"] = DATA
    hostile.raw[method] = dripping(head, drop, monkeypatch)
    if method == "HEAD":
        monkeypatch.setattr("dasheng_core.cli.hub.PATIENCE", 1.0)
    assert fetch(hostile, models) == 1
    assert "the connection failed (too little came in 1 seconds): run the same command again" in caplog.text


@pytest.mark.parametrize(
    "answer, code",
    [
        (says("Content-Range: bytes 0-2999/3000\r\n", DATA, "206 OK"), 1),
        (says("Content-Range: bytes 1000-1999/3000\r\n", DATA, "206 OK"), 1),
        (says("Content-Range: bytes 1000-2999/4000\r\n", DATA[1000:], "206 OK"), 1),
        (says("Content-Range: bytes 1000-2999/*\r\n", DATA[1000:], "206 OK"), 0),
        (
            lambda request, data: says(LENGTH, DATA, "416 No" if request.headers["Range"] else "200 OK")(request, data),
            0,
        ),
    ],
)
def test_a_part_is_gone_on_with_by_the_bytes_that_were_asked_for_only(hostile, models, caplog, answer, code):
    hostile.stop_after = 1000
    assert fetch(hostile, models) == 1
    hostile.raw["GET"] = answer
    assert fetch(hostile, models) == code
    if code:
        assert 'and "bytes 1000-2999/3000" was asked for' in caplog.text
        assert (models / f"{LARGE.place}.part").read_bytes() == DATA[:1000]
    hostile.raw.clear()
    hostile.stop_after = None
    assert fetch(hostile, models) == 0 and complete(hostile, models)


@pytest.mark.parametrize("token", [f"{SECRET}\nX-Other: 1", f"{SECRET} x", f"{SECRET}é"])
def test_a_token_that_is_none_is_not_shown(hub, models, caplog, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert fetch(hub, models) == 1
    assert "HF_TOKEN holds a space, a line break or another character that no token has" in caplog.text
    assert not hub.requests
    inert(caplog.text)


@pytest.mark.parametrize(
    "endpoint, sentence",
    [
        ("huggingface.co", "is not a web address"),
        ("file:///etc", "is not a web address"),
        (f"https://user:{SECRET}@127.0.0.1:9", "has a user or a password in it"),
        (f"https://127.0.0.1:9?token={SECRET}", "has a ? or #"),
        (f"https://127.0.0.1:{SECRET}/", "is not a web address"),
        (f"user:{SECRET}@127.0.0.1", "is not a web address"),
        (f"https://127.0.0.1:9/{SECRET} \x1b[2J", "is not a web address"),
    ],
)
def test_an_endpoint_with_a_secret_is_refused_and_not_shown(models, caplog, capsys, monkeypatch, endpoint, sentence):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    for given in ([], ["--endpoint", endpoint]):
        assert main(["download", "--models", str(models), *given]) == 1
    assert caplog.text.count(f"The --endpoint (or HF_ENDPOINT) {sentence}: give one such as https://") == 2
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    inert(caplog.text + capsys.readouterr().out)


def test_a_proxy_with_a_secret_is_not_shown(hub, models, caplog, monkeypatch):
    monkeypatch.delenv("no_proxy")
    for proxy in (f"http://user:{SECRET}@127.0.0.1:{SECRET}", f"http:/{SECRET}", f"http://user:{SECRET}@127.0.0.1:9"):
        monkeypatch.setenv("http_proxy", proxy)
        assert fetch(hub, models) == 1
    assert caplog.text.count("the connection failed (") == 3
    inert(caplog.text)


def test_https_does_not_become_http():
    assert _redirected("https://a/b", "/c") == "https://a/c"
    assert _redirected("http://a/b", "https://c/d") == "https://c/d"
    with pytest.raises(DownloadError, match="https://a/b: the server redirects from https to http"):
        _redirected("https://a/b", "http://a/b")


def test_a_published_file_that_is_known_is_held_against_what_is_known(hostile, models, caplog, monkeypatch):
    """Whatever the server says of it, or if it says nothing."""
    known = {
        ("org/model", file.removeprefix("org/model/")): Known("c0ffee", len(data), hashlib.sha256(data).hexdigest())
        for file, data in hostile.files.items()
    }
    monkeypatch.setattr(download, "KNOWN", known)
    revisions, answer = [], hostile.answer
    hostile.answer = lambda request, server: revisions.append(request.path) or answer(request, server)
    published = dict(hostile.files)
    hostile.files["org/model/model.safetensors"] = DATA[::-1]
    assert fetch(hostile, models) == 1
    assert "the server has 3000 bytes with checksum" in caplog.text and "and the published file has 3000" in caplog.text
    hostile.files["org/model/model.safetensors"] = DATA[1:]
    assert fetch(hostile, models) == 1 and "the server has 2999 bytes" in caplog.text
    assert not hostile.asked()
    hostile.tags = False
    hostile.files["org/model/model.safetensors"] = DATA[::-1]
    assert fetch(hostile, models) == 1 and not (models / LARGE.place).exists()
    assert f"expected checksum {hashlib.sha256(DATA).hexdigest()}. It was deleted" in caplog.text
    hostile.files = published
    assert fetch(hostile, models) == 0 and complete(hostile, models)
    assert any("/resolve/c0ffee/" in path for path in revisions)
