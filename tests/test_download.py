"""``python -m dasheng_core download`` against a server on loopback that answers as the hub does."""

import hashlib
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import GOLDEN, small_disk, stop_command
from dasheng_core import DashengAudioGen
from dasheng_core.cli import main
from fake_hub import FakeHub

TINY, MULTILINGUAL = GOLDEN / "tiny", GOLDEN / "tiny_multilingual"
WEIGHTS = "mispeech/Dasheng-AudioGen/model.safetensors"
PLACE = "diffusion_models/dasheng_audiogen.safetensors"
ENGLISH_PLACES = {
    PLACE: WEIGHTS,
    "diffusion_models/dasheng_audiogen.config.json": "mispeech/Dasheng-AudioGen/config.json",
    "text_encoders/flan_t5_large.safetensors": "google/flan-t5-large/model.safetensors",
    "text_encoders/flan_t5_large.config.json": "google/flan-t5-large/config.json",
    "text_encoders/flan_t5_large.tokenizer.json": "google/flan-t5-large/tokenizer.json",
    "vae/dashengtokenizer.safetensors": "mispeech/dashengtokenizer/model.safetensors",
    "vae/dashengtokenizer.config.json": "mispeech/dashengtokenizer/config.json",
}
OTHER = "mispeech/Dasheng-AudioGen-Multilingual"
MULTILINGUAL_PLACES = {
    "diffusion_models/dasheng_audiogen_multilingual.safetensors": f"{OTHER}/model.safetensors",
    "diffusion_models/dasheng_audiogen_multilingual.config.json": f"{OTHER}/config.json",
    "diffusion_models/dasheng_audiogen_multilingual.tokenizer.json": f"{OTHER}/tokenizer.json",
    "text_encoders/mt5_large.bin": "google/mt5-large/pytorch_model.bin",
    "text_encoders/mt5_large.config.json": "google/mt5-large/config.json",
    "text_encoders/mt5_large.spiece.model": "google/mt5-large/spiece.model",
    "vae/dashengtokenizer.safetensors": "mispeech/dashengtokenizer/model.safetensors",
    "vae/dashengtokenizer.config.json": "mispeech/dashengtokenizer/config.json",
}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = FakeHub()
    for place, name in {**ENGLISH_PLACES, **MULTILINGUAL_PLACES}.items():
        hub.files[name] = f"{place}: ".encode() * 500
    hub.files[WEIGHTS] = bytes(range(256)) * 20000
    yield hub
    hub.close()


@pytest.fixture
def models(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def fetch(hub: FakeHub, models: Path, *options: str) -> int:
    hub.requests.clear()
    return main(["download", "--models", str(models), "--endpoint", hub.url, *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(hub: FakeHub, places: dict[str, str]) -> dict[str, bytes]:
    return {place: hub.files[name] for place, name in places.items()}


@pytest.mark.parametrize(
    "options, places",
    [
        ([], ENGLISH_PLACES),
        (["--english"], ENGLISH_PLACES),
        (["--multilingual"], MULTILINGUAL_PLACES),
        (["--english", "--multilingual"], {**ENGLISH_PLACES, **MULTILINGUAL_PLACES}),
    ],
    ids=["default", "english", "multilingual", "both"],
)
def test_files_come_to_where_the_loaders_list_them(hub, models, caplog, options, places):
    (models / "vae").mkdir()
    (models / "vae" / "other.safetensors").write_text("mine")
    assert fetch(hub, models, *options) == 0
    assert contents(models) == {**expected(hub, places), "vae/other.safetensors": b"mine"}
    if "--multilingual" not in options:
        assert (
            f"   5.12 MB  {PLACE} <- {hub.url}/mispeech/Dasheng-AudioGen/resolve/main/model.safetensors" in caplog.text
        )
        assert "dasheng_audiogen.tokenizer.json: mispeech/Dasheng-AudioGen has none, and needs none" in caplog.text

    assert fetch(hub, models, *options) == 0
    assert not hub.asked(), "all is there: only sizes are asked for"
    assert f"{PLACE}: already there" in caplog.text or "--multilingual" in options
    assert "0 B to fetch." in caplog.messages


def test_progress_in_bytes_shows_on_a_terminal(hub, models, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    hub.stop_after = 2_000_000
    assert fetch(hub, models) == 1
    hub.stop_after = None
    capsys.readouterr()
    assert fetch(hub, models) == 0
    shown = capsys.readouterr().err
    # The first drawing already counts what was there.
    assert "dasheng_audiogen.safetensors:  39%" in shown and "2.00M/5.12M" in shown
    assert "checking dasheng_audiogen.safetensors: 100%" in shown


def test_what_was_fetched_loads(hub, models, tiny):
    for repository, folder in (
        ("mispeech/Dasheng-AudioGen", TINY / "audiogen"), ("google/flan-t5-large", TINY / "text_encoder"),
        ("mispeech/dashengtokenizer", TINY / "audio_tokenizer"), (OTHER, MULTILINGUAL / "audiogen"),
        ("google/mt5-large", MULTILINGUAL / "text_encoder"),
    ):  # fmt: skip
        hub.files |= {f"{repository}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    # mT5 is published as a pickle, and the multilingual generator may bring the tokenizer.
    pickled = models.parent / "pytorch_model.bin"
    torch.save(load_file(MULTILINGUAL / "text_encoder" / "model.safetensors"), pickled)
    hub.files["google/mt5-large/pytorch_model.bin"] = pickled.read_bytes()
    hub.files[f"{OTHER}/tokenizer.json"] = (MULTILINGUAL / "text_encoder" / "tokenizer.json").read_bytes()
    assert fetch(hub, models, "--english", "--multilingual") == 0

    prompt = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
    english = DashengAudioGen.from_pretrained(
        models / PLACE,
        models / "text_encoders" / "flan_t5_large.safetensors",
        models / "vae" / "dashengtokenizer.safetensors",
    )
    options = {"num_steps": 2, "seed": 1, "duration": 0.4}
    assert torch.equal(english.generate(prompt, **options), tiny.generate(prompt, **options))
    # The two small sets have audio tokenizers of their own.
    shutil.copy(MULTILINGUAL / "audio_tokenizer" / "model.safetensors", models / "vae" / "dashengtokenizer.safetensors")
    shutil.copy(MULTILINGUAL / "audio_tokenizer" / "config.json", models / "vae" / "dashengtokenizer.config.json")
    multilingual = DashengAudioGen.from_pretrained(
        models / "diffusion_models" / "dasheng_audiogen_multilingual.safetensors",
        models / "text_encoders" / "mt5_large.bin",
        models / "vae" / "dashengtokenizer.safetensors",
    )
    published = DashengAudioGen.from_pretrained(
        MULTILINGUAL / "audiogen", MULTILINGUAL / "text_encoder", MULTILINGUAL / "audio_tokenizer"
    )
    assert torch.equal(multilingual.generate(prompt, **options), published.generate(prompt, **options))


@pytest.mark.parametrize("change", ["nothing", "no ranges", "another version", "too long"])
def test_a_connection_that_ends_early_is_gone_on_with(hub, models, caplog, change):
    hub.stop_after = 2_000_000
    assert fetch(hub, models) == 1
    assert "the connection ended after 2.00 MB of 5.12 MB: run the same command again" in caplog.text
    part = models / f"{PLACE}.part"
    assert part.read_bytes() == hub.files[WEIGHTS][:2_000_000] and not (models / PLACE).exists()

    hub.stop_after = None
    if change == "no ranges":
        hub.ranges = False
    elif change == "another version":
        hub.files[WEIGHTS] = hub.files[WEIGHTS][::-1]
    elif change == "too long":
        part.write_bytes(hub.files[WEIGHTS] + b"more")
    assert fetch(hub, models) == 0
    assert contents(models) == expected(hub, ENGLISH_PLACES)
    assert hub.asked()[WEIGHTS] == ("bytes=2000000-" if change in ("nothing", "no ranges") else None)


def test_a_part_that_is_whole_is_only_checked(hub, models):
    hub.stop_after = 0
    assert fetch(hub, models) == 1
    (models / f"{PLACE}.part").write_bytes(hub.files[WEIGHTS])
    hub.stop_after = None
    assert fetch(hub, models) == 0
    assert WEIGHTS not in hub.asked() and contents(models) == expected(hub, ENGLISH_PLACES)


@pytest.mark.parametrize(
    "file, place", [(WEIGHTS, PLACE), ("google/flan-t5-large/config.json", "text_encoders/flan_t5_large.config.json")]
)
def test_a_wrong_checksum_deletes_what_came(hub, models, caplog, file, place):
    hub.wrong.add(file)
    assert fetch(hub, models) == 1
    data = hub.files[file]
    checksum = hashlib.sha256(data) if place == PLACE else hashlib.sha1(b"blob %d\0" % len(data) + data)
    assert f"expected checksum {checksum.hexdigest()}. It was deleted" in caplog.text
    assert not [path for path in contents(models) if path.startswith(place)]
    hub.wrong.clear()
    assert fetch(hub, models) == 0
    assert contents(models) == expected(hub, ENGLISH_PLACES)


def test_another_file_of_the_name_is_left_alone(hub, models, caplog):
    (models / "vae").mkdir()
    place = "vae/dashengtokenizer.safetensors"
    # The second is what a disk leaves of a file that was given its room and never written.
    zeros = bytes(len(hub.files[ENGLISH_PLACES[place]]))
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
    "status, sentence",
    [
        (404, "answered 404 Not Found: the file is not there; look at the --endpoint."),
        (401, "answered 401 Unauthorized: set HF_TOKEN"),
        (403, "answered 403 Forbidden: set HF_TOKEN"),
        (503, "answered 503 Service Unavailable: try again later"),
    ],
)
def test_refusals_are_one_sentence_before_anything_is_fetched(hub, models, caplog, status, sentence):
    hub.status["mispeech/dashengtokenizer/model.safetensors"] = status
    assert fetch(hub, models) == 1
    assert f"{hub.url}/mispeech/dashengtokenizer/resolve/main/model.safetensors: the server {sentence}" in caplog.text
    assert not contents(models) and not hub.asked()


def test_an_optional_file_may_be_missing_but_not_broken(hub, models, caplog):
    hub.status["mispeech/Dasheng-AudioGen/tokenizer.json"] = 500
    assert fetch(hub, models) == 1
    assert "tokenizer.json: the server answered 500" in caplog.text


def test_the_token_goes_to_the_endpoint_only(hub, models, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch(hub, models) == 0
    sent = {(server, headers.get("Authorization")) for server, _, _, headers in hub.requests}
    assert sent == {("front", "Bearer hf_secret"), ("back", None)}


def test_the_endpoint_can_come_from_the_environment(hub, models, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    assert main(["download", "--models", str(models)]) == 0
    assert contents(models) == expected(hub, ENGLISH_PLACES)


@pytest.mark.parametrize("endpoint, sentence", [
    ("http://127.0.0.1:9", "Connection refused): run the same command again"),
    ("huggingface.co", "is not a web address: give one such as https://huggingface.co"),
    ("file:///etc", "is not a web address"),
])  # fmt: skip
def test_no_connection_is_one_sentence(hub, models, caplog, endpoint, sentence):
    assert main(["download", "--models", str(models), "--endpoint", endpoint]) == 1
    assert sentence in caplog.text and not contents(models)


def test_the_folder_must_be_one(hub, models, caplog):
    assert fetch(hub, models / "none") == 1
    assert "none is not a folder: give the models folder of ComfyUI" in caplog.text
    assert fetch(hub, models.parent) == 1
    assert f"{models.parent} holds a folder models: give that one, {models}." in caplog.text
    assert not hub.requests and not contents(models)


def test_a_disk_without_room_is_refused_before_anything_is_fetched(hub, tmp_path, caplog):
    with small_disk(tmp_path / "disk", 3 << 20) as disk:
        assert fetch(hub, disk) == 1
        assert (
            "has 3.15 MB free, but 5." in caplog.text and "make room, or give --models on another disk" in caplog.text
        )
        assert not contents(disk) and not hub.asked()


def test_a_disk_that_fills_up_keeps_what_came(hub, tmp_path, monkeypatch, caplog):
    with small_disk(tmp_path / "disk", 3 << 20) as disk:
        # As if the room had been taken since.
        monkeypatch.setattr("dasheng_core.cli.download._check_room", lambda items: None)
        assert fetch(hub, disk) == 1
        assert f"{disk / PLACE}.part could not be written (No space left on device): make room" in caplog.text
        kept = (disk / f"{PLACE}.part").stat().st_size
        assert kept > 2_000_000
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert fetch(hub, disk) == 0
        assert hub.asked()[WEIGHTS] == f"bytes={kept}-"
        assert contents(disk) == expected(hub, ENGLISH_PLACES)


@pytest.mark.parametrize("stop, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_download_goes_on_where_it_stopped(hub, models, stop, code):
    hub.stop_after, hub.hang = 2_500_000, True
    part = models / f"{PLACE}.part"
    command = ["download", "--models", str(models), "--endpoint", hub.url]
    returned, errors = stop_command(command, lambda: part.exists() and part.stat().st_size >= 2_000_000, stop)
    assert returned == code and "Traceback" not in errors
    kept = part.stat().st_size
    assert part.read_bytes() == hub.files[WEIGHTS][:kept]
    assert f"{kept / 1e6:.2f} MB of 5.12 MB are kept in {part}: the same command goes on from there." in errors
    hub.stop_after = None
    assert fetch(hub, models) == 0
    assert hub.asked()[WEIGHTS] == f"bytes={kept}-"
    assert contents(models) == expected(hub, ENGLISH_PLACES)
