"""``dasheng batch --page`` in real Chromium, from a disk, with 1,000 sounds; and ``--picks``, which reads back what it saves."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch

from dasheng_core.batch import worker
from dasheng_core.batch.page import MOST_SOUNDS, TEMPLATE
from dasheng_core.cli import main
from tools.comfyui import DEV
from tools.frontend import find_chromium, open_chromium

RUN = "window.PWNED=1"
HOSTILE = f"</script><script>{RUN}</script><img src=x onerror={RUN}> Rain & wind \u2028 </title>"
# Three scenes of 1, 3 and 996 takes; the second has a name and a prompt full of markup.
MANY = [
    {"caption": "A door.", "name": "door", "seconds": 0.4},
    {"caption": HOSTILE, "name": "a#b%20c 'd' & é", "seconds": 0.44, "takes": 3},
    {
        "timeline": [[0, "<|caption|> Steps."], [0.2, "<|caption|> A bell."]],
        "name": "bell",
        "seconds": 0.8,
        "takes": 996,
    },
]
FEW = [{"caption": "A cat.", "name": "cat", "seconds": 0.4, "takes": 3}]


class Tones:
    """In the model's place: a tone of each clip's seed."""

    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)

    @staticmethod
    def generate(prompts, seed, duration, **options):
        second = torch.arange(round(duration * 16000)) / 16000
        return torch.stack([0.1 * torch.sin(6.28 * (200 + number) * second) for number in seed])


@pytest.fixture(scope="module", autouse=True)
def tones():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "load_model", lambda args: Tones())
        yield


def batch(*options: str, scenes: str = "sheet.jsonl") -> int:
    return main(
        ["batch", scenes, "--audiogen", "nowhere", "-o", "out/100% #1/{name}_{take}.wav", "--seed", "3", *options]
    )


def write(scenes: list[dict]) -> None:
    Path("sheet.jsonl").write_text("".join(json.dumps(scene) + "\n" for scene in scenes), "utf-8")


SOUNDS = Path("out", "100% #1")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder with a thousand sounds and their page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("many"))
        write(MANY)
        assert batch("--page") == 0
        yield Path.cwd()


@pytest.fixture(scope="module")
def browser():
    if find_chromium() is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("no Chromium on this machine, and REQUIRE_BROWSER asks for one")
        pytest.skip("no Chromium on this machine: install one, or set CHROMIUM to its path")
    (DEV / "screenshots").mkdir(parents=True, exist_ok=True)
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, many):
    """The page of many sounds, opened from the disk without a network; all it asks for, and each player it makes, is counted."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark", offline=True)
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.add_init_script(
        """window.made = 0;
        window.Audio = new Proxy(window.Audio, {construct: (...given) => { window.made++; return Reflect.construct(...given); }});
        const create = document.createElement.bind(document);
        document.createElement = tag => { if (/audio|video/i.test(tag)) window.made++; return create(tag); };
        window.AudioContext = window.fetch = window.XMLHttpRequest = () => { throw Error("not from a disk"); };"""
    )
    page.goto((many / SOUNDS / "sheet.html").as_uri())
    yield page
    assert page.evaluate("window.PWNED") is None and page.errors == []
    context.close()


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def until(page, holds: str) -> None:
    """Wait; the page's policy refuses the scripts by which Playwright waits."""
    for _ in range(1800):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(100)
    pytest.fail(holds)


def heard(page) -> None:
    """Wait until a sound plays."""
    until(page, "players[0].currentTime > 0.05 && !players[0].error")


def test_a_thousand_sounds_take_few_nodes_two_players_and_no_network(page):
    """Nodes and players are counted while the page is scrolled from end to end, and sounds are asked for as they are played."""
    page.locator(".card").first.wait_for()
    most = page.evaluate(
        """async () => {
            let most = 0;
            for (let top = 0; top < main.scrollHeight; top += 700) {
                main.scrollTop = top;
                await new Promise(requestAnimationFrame);
                most = Math.max(most, document.getElementsByTagName('*').length);
            }
            return most;
        }"""
    )
    assert page.evaluate("sounds.length") == 1000 and page.locator("[data-i='999']").count() == 1
    assert 100 < most < 600
    assert len(page.asked) == 1
    page.mouse.click(5, 5)
    press(page, "ArrowRight")
    heard(page)
    for _ in range(20):
        press(page, "ArrowDown", "ArrowRight")
        page.wait_for_timeout(30)
    assert page.evaluate("made") == 2 and page.evaluate("now") > 100
    assert len({*page.asked}) <= 42 and all(url.startswith("file:///") for url in page.asked)
    page.screenshot(path=DEV / "screenshots" / "page of a thousand.png")


def test_each_sound_is_picked_by_one_key_and_read_back(page, many):
    """keep, star and reject by a key each, which goes on to the next sound; undone; saved; read into manifest, table, folders."""
    page.mouse.click(5, 5)
    press(page, "ArrowRight")
    heard(page)
    press(page, "k", "s", "x", "k", "k", "ArrowLeft", "u")
    assert "1 starred · 2 kept · 1 rejected · 996 undecided" in page.locator("#counts").inner_text()
    # What was picked is there after a reload.
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    assert "1 starred · 2 kept · 1 rejected" in page.locator("#counts").inner_text()
    with page.expect_download() as saved:
        page.get_by_text("Save picks").click()
    assert saved.value.suggested_filename == "sheet.picks.json"
    saved.value.save_as("sheet.picks.json")
    before = {path: path.read_bytes() for path in SOUNDS.glob("*.wav")}
    assert batch("--picks", "sheet.picks.json") == 0
    names = ["door_1.wav", "a#b%20c 'd' & é_1.wav", "a#b%20c 'd' & é_2.wav", "a#b%20c 'd' & é_3.wav"]
    names = [name.replace("#", "_").replace("%", "_").replace("&", "_").replace("'", "_") for name in names]
    verdicts = ["keep", "star", "reject", "keep"]
    manifest = [json.loads(line) for line in Path("sheet.manifest.jsonl").read_text("utf-8").splitlines()]
    assert [(Path(line["file"]).name, line["verdict"]) for line in manifest[-4:]] == list(
        zip(names, verdicts, strict=True)
    )
    with open(SOUNDS / "picked" / "picks.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["verdict"]) for row in rows] == [
        ((SOUNDS / name).as_posix(), verdict) for name, verdict in zip(names, verdicts, strict=True)
    ]
    assert [rows[1][name] for name in ("scene", "seed", "seconds")] == ["2", "3", "0.44"]
    copies = {path.relative_to(SOUNDS / "picked").as_posix() for path in SOUNDS.rglob("picked/*/*")}
    assert copies == {f"keep/{names[0]}", f"star/{names[1]}", f"keep/{names[3]}"}
    assert (SOUNDS / "picked" / "star" / names[1]).read_bytes() == before[SOUNDS / names[1]]
    assert {path: path.read_bytes() for path in SOUNDS.glob("*.wav")} == before
    assert batch("--resume", "--sheet", "results.csv") == 0
    with open("results.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["result_verdict"] for row in csv.DictReader(file)][:5] == [
            *(f"made, {one}" for one in verdicts),
            "made",
        ]
    # Twice is once; the batch is as it was made, and a new page begins with these verdicts.
    assert batch("--picks", "sheet.picks.json") == 0
    assert len(Path("sheet.manifest.jsonl").read_text("utf-8").splitlines()) == len(manifest)
    assert batch("--check") == 0
    assert batch("--resume", "--page") == 0
    page.evaluate("localStorage.clear()")
    page.reload()
    assert "1 starred · 2 kept · 1 rejected · 996 undecided" in page.locator("#counts").inner_text()


def test_names_with_markup_are_texts_and_play(page):
    page.mouse.click(5, 5)
    press(page, "ArrowRight", "ArrowRight")
    heard(page)
    assert HOSTILE.split(">")[0] in page.locator("#prompt").inner_text()
    shown = page.locator(".scene").all_inner_texts()
    assert shown[0] == "A door." and shown[1].startswith("</script><script>") and shown[2] == "Steps."
    assert page.locator("img, iframe").count() == 0
    assert page.evaluate("document.querySelectorAll('script').length") == 2


def test_sounds_are_filtered_by_measure_and_verdict(page):
    least, most = (page.locator(f"[name=seconds][placeholder='{bound}']") for bound in "≥≤")
    least.fill("0.42")
    assert page.evaluate("cards.length") == 999
    most.fill("0.5")
    assert page.evaluate("cards.map(card => card.i)") == [1, 2, 3]
    most.fill("")
    least.fill("")
    page.evaluate("sounds.forEach(sound => { sound.verdict = null; }); decide(7, 'reject')")
    page.locator("select").select_option("reject")
    assert page.evaluate("cards.map(card => card.i)") == [7]


def test_a_sound_is_compared_with_another_at_the_same_second(page):
    page.mouse.click(5, 5)
    press(page, "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "a", "ArrowRight")
    heard(page)
    second = page.evaluate("players[0].currentTime")
    press(page, "b")
    until(page, "!players[1].paused || players[1].ended")
    assert page.evaluate("players[1].currentTime") >= second and page.evaluate("players[0].paused")
    assert page.evaluate("players.map(player => +player.dataset.i)") == [4, 3]
    press(page, "b")
    until(page, "players[1].paused && players[0].currentTime > 0")


def test_the_mouse_plays_what_it_moves_over_and_picks(page):
    page.mouse.click(5, 5)
    box = page.locator("[data-i='2']").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 30)
    heard(page)
    assert page.evaluate("now") == 2
    page.locator("[data-i='2'] button[value=star]").click()
    assert page.evaluate("sounds[2].verdict") == "star"


def test_the_page_makes_no_element_of_a_text():
    acting = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser|createContextualFragment|srcdoc|fetch\("
    assert not re.findall(acting, TEMPLATE.read_text("utf-8"))


# ---- what is refused, and what is not lost


@pytest.fixture
def few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(FEW)
    assert batch() == 0
    return [json.loads(line) for line in Path("sheet.manifest.jsonl").read_text("utf-8").splitlines()][1:]


def pick(lines: list[dict], *verdicts: str | None) -> list[str]:
    sounds = [
        {"file": line["file"], "sha256": line["sha256"], "verdict": verdict}
        for line, verdict in zip(lines, verdicts, strict=False)
    ]
    Path("picks.json").write_text(json.dumps({"picks": 1, "sounds": sounds}), "utf-8")
    return ["--picks", "picks.json"]


def copies() -> dict[str, bytes]:
    return {path.relative_to(SOUNDS).as_posix(): path.read_bytes() for path in SOUNDS.rglob("picked/*/*")}


def test_a_changed_verdict_takes_its_copy_along_and_nothing_else_is_deleted(few, caplog):
    sounds = {path.name: path.read_bytes() for path in SOUNDS.glob("*.wav")}
    assert batch(*pick(few, "keep", "keep", "star")) == 0
    # Worked on by hand: no longer the copy that was made.
    (SOUNDS / "picked" / "keep" / "cat_2.wav").write_bytes(b"edited")
    assert batch(*pick(few, "star", "reject", None)) == 0
    assert copies() == {"picked/star/cat_1.wav": sounds["cat_1.wav"], "picked/keep/cat_2.wav": b"edited"}
    assert batch(*pick(few, "star", "keep")) == 1 and "is there and is another sound" in caplog.text
    assert copies()["picked/keep/cat_2.wav"] == b"edited"
    assert {path.name: path.read_bytes() for path in SOUNDS.glob("*.wav")} == sounds


def changed(few: list[dict], **keys) -> str:
    sound = {"file": few[0]["file"], "sha256": few[0]["sha256"], "verdict": "keep"}
    return json.dumps({"picks": 1, "sounds": [{**sound, **keys}]})


NO_PICKS = {
    "no JSON": lambda few: "\x00",
    "deep": lambda few: "[" * 100_000,
    "a list": lambda few: "[]",
    "another form": lambda few: json.dumps({"picks": 2, "sounds": []}),
    "no sound": lambda few: json.dumps({"picks": 1, "sounds": [7]}),
    "a verdict": lambda few: changed(few, verdict="../../x"),
    "a list for a verdict": lambda few: changed(few, verdict=["keep"]),
}


@pytest.mark.parametrize("case", NO_PICKS)
def test_what_is_no_file_of_picks_is_refused(case, few, caplog):
    Path("picks.json").write_text(NO_PICKS[case](few), "utf-8")
    assert batch("--picks", "picks.json") == 1
    assert "picks.json is no file of picks, expected one that the page of a batch saved." in caplog.text
    assert not copies()


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"file": "../../etc/passwd"}, "is in no line of the manifest"),
        ({"file": "out/\x1b[2J"}, "out/\\x1b[2J"),
        ({"sha256": "0"}, "was made again since"),
    ],
    ids=["outside", "hostile", "remade"],
)
def test_picks_of_other_sounds_are_refused(keys, said, few, caplog):
    Path("picks.json").write_text(changed(few, **keys), "utf-8")
    assert batch("--picks", "picks.json") == 1
    assert said in caplog.text and not copies()


def test_a_page_replaces_its_like_alone(few, caplog):
    page = SOUNDS / "sheet.html"
    page.write_text("<p>mine")
    assert batch("--resume", "--page") == 1
    assert "is there and is no page of a batch" in caplog.text and page.read_text() == "<p>mine"
    page.unlink()
    assert batch("--resume", "--page") == batch("--resume", "--page") == 0
    assert batch("--check", "--page") == 1 and "give one of them at a time" in caplog.text
    write([{**FEW[0], "takes": MOST_SOUNDS + 1}])
    assert batch("--remake", "--page") == 1
    assert f"holds at most {MOST_SOUNDS} sounds, and these are {MOST_SOUNDS + 1}" in caplog.text
