"""``dasheng download`` against servers that send what no hub should, on loopback: bounded, named, nothing secret shown."""

import hashlib
import logging
import time
from pathlib import Path

import pytest

from dasheng_core.cli import download, main
from dasheng_core.cli.download import Known, Published
from dasheng_core.cli.hub import DownloadError, _redirected
from fake_hub import FakeHub

SMALL = Published("org/model", "config.json", "vae/config.json")
LARGE = Published("org/model", "model.safetensors", "vae/model.safetensors")
DATA = b"published " * 300
SECRET = "hunter2"
ACTING = "\x1b[2J\x1b]0;owned\x07"
# A server that is never hung up on gives up.
MOST_SENT, MOST_SECONDS = 32 << 20, 60


@pytest.fixture
def hub(monkeypatch, caplog):
    """A hub with one small and one large file, which is all that ``dasheng download`` wants."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(download, "ENGLISH_FILES", (SMALL,))
    monkeypatch.setattr(download, "AUDIO_TOKENIZER_FILES", (LARGE,))
    hub = FakeHub()
    hub.files = {"org/model/config.json": DATA[:1000], "org/model/model.safetensors": DATA}
    yield hub
    hub.close()


@pytest.fixture
def models(tmp_path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def fetch(hub: FakeHub, models: Path, *options: str) -> int:
    return main(["download", "--models", str(models), "--endpoint", hub.url, *options])


def inert(text: str) -> None:
    """Messages are short lines that show no secret and move no cursor."""
    assert SECRET not in text
    for line in text.splitlines():
        assert len(line) < 1000 and line.isprintable(), line[:1000]


def complete(hub: FakeHub, models: Path) -> bool:
    wanted = {models / place: hub.files[f"org/model/{Path(place).name}"] for place in (SMALL.place, LARGE.place)}
    return {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == wanted


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
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        request.wfile.write(f"HTTP/1.1 200 OK\r\n{text}\r\n".encode("latin-1"))

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
ZEROS = f"expected checksum {hashlib.sha256(DATA).hexdigest()}. It was deleted"
RANGE = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
BODIES = {
    "without end": (endless(OK + b"\r\n", bytes(65536)), ZEROS),
    "in chunks without end": (endless(OK + f"{CHUNKED}\r\n".encode(), bytes(65536), chunked=True), ZEROS),
    "longer": (says("Content-Length: 999999999999\r\n", DATA), "sends 999999999999 bytes, and 3000 were expected"),
    "shorter": (says("Content-Length: 5\r\n", DATA[:5]), "sends 5 bytes, and 3000 were expected"),
    "of no length": (says("Content-Length: -1\r\n", DATA), "sends -1 bytes, and 3000"),
    "of a length in words": (says(f"Content-Length: {ACTING}\r\n", DATA), "sends \\x1b[2J\\x1b]0;owned\\x07 bytes"),
    "ends early": (says(LENGTH, DATA[:9]), "the connection ended after 9 B of 3.00 kB: run the same command again"),
    "wrong chunks": (says(CHUNKED, b"zz\r\n" + DATA), "the connection failed ("),
    "packed": (says("Content-Encoding: gzip\r\n", b"\x1f\x8b" + bytes(100)), 'sends it packed as "gzip"'),
    "another range": (says("Content-Range: bytes 5-9/10\r\n", DATA, "206 OK"), f'"bytes 5-9/10", and "{RANGE}" was'),
    "of no range": (says(LENGTH, DATA, "206 OK"), 'sends the range "None"'),
    "nothing": (says("", b"", "204 None"), "answered 204 None, and 200 or 206 was expected"),
    "no answer": (lambda request, data: None, "the connection failed ("),
    "no HTTP": (lambda request, data: request.wfile.write(ACTING.encode() * 9 + b"\r\n"), "the connection failed ("),
    "a reason that acts": (says("", b"", f"500 {ACTING}"), "answered 500 \\x1b[2J\\x1b]0;owned\\x07: try again later"),
    "a long reason": (says("", b"", f"500 {'a' * 60000}"), "more ..."),
    "a long header": (says(f"A: {'a' * 100000}\r\n"), "the connection failed ("),
    "headers without end": (endless(OK, b"A: b\r\n" * 100), "the connection failed ("),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_that_is_not_the_file_is_named_and_no_place_is_taken(hub, models, caplog, kind):
    hub.raw["GET"], sentence = BODIES[kind]
    hub.files["org/model/config.json"] = DATA
    hub.tags = True
    assert fetch(hub, models) == 1
    checksum = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest()
    assert sentence.replace(hashlib.sha256(DATA).hexdigest(), checksum) in caplog.text
    inert(caplog.text)
    assert {path.suffix for path in models.rglob("*") if path.is_file()} <= {".part", ".etag"}
    assert sum(path.stat().st_size for path in models.rglob("*.part")) <= len(DATA)
    hub.raw.clear()
    assert fetch(hub, models) == 0 and complete(hub, models)


def test_what_comes_after_the_last_byte_is_not_read(hub, models):
    def more(request, data):
        endless(OK + b"\r\n" + data, b"more" * 10000)(request, data)

    hub.raw["GET"] = more
    assert fetch(hub, models) == 0 and complete(hub, models)


NO_SIZE, NO_CHECKSUM = "the server names no size of it", "the server names no checksum of it"
DESCRIPTIONS = {
    "no tag": (named(ETag=None), NO_CHECKSUM),
    "an MD5": (named(ETag=f'"{"0" * 32}"'), NO_CHECKSUM),
    "a tag that acts": (named(ETag=ACTING), NO_CHECKSUM),
    "a long tag": (named(ETag="0" * 60000), NO_CHECKSUM),
    "no length": (named(Content_Length=None), NO_SIZE),
    "a negative size": (named(X_Linked_Size="-5"), NO_SIZE),
    "a size in words": (named(X_Linked_Size=ACTING), NO_SIZE),
    "a size of many digits": (named(X_Linked_Size="9" * 60000), NO_SIZE),
    "a size that no disk has": (named(X_Linked_Size="9" * 15), "are to be fetched: make room"),
    "a redirect to nowhere": (says("", b"", "302 Found"), "redirects to an address that it does not name"),
    "a redirect to itself": (says("Location: ?\r\n", b"", "302 Found"), "redirected more than 10 times"),
    "a redirect to a file": (says("Location: file:///etc/passwd\r\n", b"", "302 Found"), "that is not a web address"),
    "a redirect to no host": (says("Location: http://[::1\r\n", b"", "302 Found"), "that is not a web address"),
    "a redirect that acts": (says(f"Location: /{ACTING}\r\n", b"", "302 Found"), "that is not a web address"),
    "a redirect with a password": (
        says(f"Location: http://user:{SECRET}@127.0.0.1/\r\n", b"", "302 Found"),
        "redirects to an address that has a user or a password in it",
    ),
    "a redirect with a key": (
        says(f"Location: http://127.0.0.1:9/a?key={SECRET}\r\n", b"", "302 Found"),
        "http://127.0.0.1:9/a: the connection failed (",
    ),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_file_that_is_not_described_is_not_fetched(hub, models, caplog, kind):
    hub.raw["HEAD"], sentence = DESCRIPTIONS[kind]
    assert fetch(hub, models) == 1
    assert sentence in caplog.text and not hub.asked() and not list(models.iterdir())
    inert(caplog.text)


@pytest.mark.parametrize("method, head, drop", [
    ("HEAD", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ("HEAD", OK, b"A: b"),
    ("GET", OK + LENGTH.encode() + b"\r\n", b"p"),
    ("GET", OK + CHUNKED.encode() + b"\r\n", b"0"),
])  # fmt: skip
def test_a_server_that_drips_is_not_waited_for(hub, models, caplog, monkeypatch, method, head, drop):
    hub.files["org/model/config.json"] = DATA
    hub.raw[method] = dripping(head, drop, monkeypatch)
    if method == "HEAD":
        monkeypatch.setattr("dasheng_core.cli.hub.PATIENCE", 1.0)
    assert fetch(hub, models) == 1
    assert "the connection failed (too little came in 1 seconds): run the same command again" in caplog.text


@pytest.mark.parametrize("answer, code", [
    (says("Content-Range: bytes 0-2999/3000\r\n", DATA, "206 OK"), 1),
    (says("Content-Range: bytes 1000-1999/3000\r\n", DATA, "206 OK"), 1),
    (says("Content-Range: bytes 1000-2999/4000\r\n", DATA[1000:], "206 OK"), 1),
    (says("Content-Range: bytes 1000-2999/*\r\n", DATA[1000:], "206 OK"), 0),
    (lambda request, data: says(LENGTH, DATA, "416 No" if request.headers["Range"] else "200 OK")(request, data), 0),
])  # fmt: skip
def test_a_part_is_gone_on_with_by_the_bytes_that_were_asked_for_only(hub, models, caplog, answer, code):
    hub.stop_after = 1000
    assert fetch(hub, models) == 1
    hub.raw["GET"] = answer
    assert fetch(hub, models) == code
    if code:
        assert 'and "bytes 1000-2999/3000" was asked for' in caplog.text
        assert (models / f"{LARGE.place}.part").read_bytes() == DATA[:1000]
    hub.raw.clear()
    hub.stop_after = None
    assert fetch(hub, models) == 0 and complete(hub, models)


@pytest.mark.parametrize("token", [f"{SECRET}\nX-Other: 1", f"{SECRET} x", f"{SECRET}é", f"{SECRET}\x1b"])
def test_a_token_that_is_none_is_not_shown(hub, models, caplog, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert fetch(hub, models) == 1
    assert "HF_TOKEN holds a space, a line break or another character that no token has" in caplog.text
    assert not hub.requests
    inert(caplog.text)


@pytest.mark.parametrize("endpoint, sentence", [
    (f"https://user:{SECRET}@127.0.0.1:9", "has a user or a password in it"),
    (f"HTTP://{SECRET}@127.0.0.1:9/", "has a user or a password in it"),
    (f"https://127.0.0.1:9?token={SECRET}", "has a ? or #"),
    (f"https://127.0.0.1:{SECRET}/", "is not a web address"),
    (f"user:{SECRET}@127.0.0.1", "is not a web address"),
    (f"https://[{SECRET}/", "is not a web address"),
    (f"https://127.0.0.1:9/{SECRET} \x1b[2J", "is not a web address"),
])  # fmt: skip
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


def test_a_published_file_that_is_known_is_held_against_what_is_known(hub, models, caplog, monkeypatch):
    """Whatever the server says of it, or if it says nothing."""
    known = {
        ("org/model", name): Known("c0ffee", len(data), hashlib.sha256(data).hexdigest())
        for name, data in ((file.removeprefix("org/model/"), data) for file, data in hub.files.items())
    }
    monkeypatch.setattr(download, "KNOWN", known)
    revisions = []
    answer = hub.answer
    hub.answer = lambda request, server: (revisions.append("/resolve/c0ffee/" in request.path), answer(request, server))

    published = dict(hub.files)
    hub.files["org/model/model.safetensors"] = DATA[::-1]
    assert fetch(hub, models) == 1
    assert "the server has 3000 bytes with checksum" in caplog.text and "and the published file has 3000" in caplog.text
    hub.files["org/model/model.safetensors"] = DATA[1:]
    assert fetch(hub, models) == 1 and "the server has 2999 bytes" in caplog.text
    assert not hub.asked()
    hub.tags = False
    hub.files["org/model/model.safetensors"] = DATA[::-1]
    assert fetch(hub, models) == 1 and ZEROS in caplog.text and not (models / LARGE.place).exists()
    hub.files = published
    assert fetch(hub, models) == 0 and complete(hub, models)
    assert any(revisions)
