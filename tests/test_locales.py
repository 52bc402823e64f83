"""The nodes' texts in eight languages, as ComfyUI serves them to its frontend."""

import re

import pytest

from tools.comfyui import PACK, ROOT

# What no translation changes: switches, the names in <|tags|>, %values%, paths, file names and endings, names_with_underscores.
FIXED = re.compile(r"--[\w-]+|(?<=<\|)\w+(?=\|>)|%[^%\s]+%|\w[\w-]*/[\w/-]*\w|\w*\.[a-z]\w+|\w+_\w+", re.A)
NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
# Most texts have some letters of their language; Latin ones have none of English's commonest word.
OWN = {
    "es": "", "fr": "", "pt-BR": "", "ru": "[а-я]", "ja": "[ぁ-ん]", "ko": "[가-힣]", "zh": "[一-鿿]", "zh-TW": "[一-鿿]",
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes(server):
    """Our nodes as the server describes them: id -> info, its inputs in one table."""
    ours = {
        name: info
        for name, info in server.get("/object_info").items()
        if info["python_module"] == f"custom_nodes.{PACK}"
    }
    for info in ours.values():
        info["fields"] = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    return ours


@pytest.fixture(scope="module")
def english(nodes) -> dict[str, str]:
    """Path in nodeDefs -> text."""
    texts = {}
    for node, info in nodes.items():
        texts |= {f"{node}/{part}": info[part] for part in ("display_name", "description")}
        for name, (_, options) in info["fields"].items():
            texts[f"{node}/inputs/{name}/name"] = options.get("display_name") or name
            texts[f"{node}/inputs/{name}/tooltip"] = options.get("tooltip")
        for index, tooltip in enumerate(info["output_tooltips"] or ()):
            texts[f"{node}/outputs/{index}/tooltip"] = tooltip
            # MODEL, LATENT and the like are ComfyUI's own words in every language.
            if info["output_name"][index] != info["output"][index]:
                texts[f"{node}/outputs/{index}/name"] = info["output_name"][index]
    return {path: text for path, text in texts.items() if text}


def leaves(tree: dict, path: str = ""):
    for name, below in tree.items():
        yield from leaves(below, f"{path}/{name}") if isinstance(below, dict) else [(f"{path}/{name}"[1:], below)]


@pytest.fixture(scope="module")
def served(server):
    return server.get("/i18n")


@pytest.fixture(params=OWN)
def language(request) -> str:
    return request.param


@pytest.fixture
def texts(served, language) -> dict[str, str]:
    return dict(leaves(served[language]["nodeDefs"]))


def test_every_folder_is_a_language_of_the_tests():
    assert {path.name for path in (ROOT / "locales").iterdir()} == {*OWN}


def test_every_text_is_translated(texts, english):
    assert texts.keys() == english.keys()
    assert not [path for path, text in texts.items() if not text.strip()]


def test_nothing_fixed_is_lost(texts, english):
    for path, text in texts.items():
        # A name is what the screen shows, in its own language.
        for fixed in () if path.endswith("/name") else FIXED.findall(english[path]):
            assert fixed in text, path
        assert numbers(english[path]) <= numbers(text), path


def numbers(text: str) -> set[str]:
    return {number.replace(",", ".") for number in NUMBER.findall(text)}


def test_what_a_tooltip_names_is_named_as_on_the_screen(texts, english, nodes):
    """A menu's options in English; the inputs at the beginning of a tooltip as they are translated."""
    for node, info in nodes.items():
        for name, (kind, options) in info["fields"].items():
            path = f"{node}/inputs/{name}/tooltip"
            tooltip = english.get(path, "")
            choices = kind if isinstance(kind, list) else options.get("options", [])
            named = [str(choice) for choice in choices if re.search(rf"(?<!\w){re.escape(str(choice))}(?!\w)", tooltip)]
            named += [texts[f"{node}/inputs/{other}/name"] for other in re.findall(r"^With (\w+):", tooltip)]
            assert not [word for word in named if word not in texts[path]], path


def test_faders_are_named_as_the_fields_of_the_scene(texts):
    for aspect in ("speech", "asr", "sfx", "music", "env"):
        fader, field = (texts[f"{node}/inputs/{aspect}/name"] for node in ("DashengEmphasis", "DashengScenePrompt"))
        assert fader == field


# ComfyUI's own words for its own terms, as its newest frontend has them at KSampler.
CORE = {
    "es": "modelo positivo negativo semilla pasos", "fr": "modèle positif négatif graine étapes",
    "ja": "モデル ポジティブ ネガティブ シード ステップ", "ko": "모델 긍정_조건 부정_조건 시드 스텝_수",
    "pt-BR": "modelo positivo negativo semente passos", "ru": "модель положительный отрицательный сид шаги",
    "zh": "模型 正面条件 负面条件 种子 步数", "zh-TW": "模型 正向條件 負向條件 種子 步驟數",
}  # fmt: skip


def test_names_are_comfyui_s_own_words_where_it_has_one(texts, language):
    """An input's name that is English is a technical word everywhere."""
    terms = "model", "positive", "negative", "seed", "steps"
    named = [texts[f"DashengSampler/inputs/{term}/name"] for term in terms]
    assert named == [word.replace("_", " ") for word in CORE[language].split()]
    kept = {"clip", "vae", "sway", "fps", "apg", "zero star", "prompt"}
    for path, text in texts.items():
        if path.endswith("/name") and "/inputs/" in path and OWN[language]:
            assert re.search(OWN[language], text) or text in kept or re.search("[一-鿿]|[ァ-ヶ]|Latent", text), path
    if language == "zh":
        assert not [path for path, text in texts.items() if "噪声" in text]


def test_other_nodes_are_named_as_the_language_names_them(texts, english, nodes):
    names = {english[f"{node}/display_name"]: texts[f"{node}/display_name"] for node in nodes}
    assert len({*names.values()}) == len(names)
    for path, text in texts.items():
        said = english[path]
        # Longer ones first: one name may begin as another is.
        for name, translated in sorted(names.items(), reverse=True):
            assert not re.search(rf"\b{name}\b", said) or translated in text, path
            said = said.replace(name, "")


def test_no_text_is_left_in_english(texts, english, language):
    for path, text in texts.items():
        if len(english[path]) > 40:
            assert text != english[path] and not re.search(r"\bthe\b", text, re.I), path
            assert re.search(OWN[language], text), path


def test_the_frontend_reads_no_text_as_a_formula(texts):
    """{name}, a | b and @:key are instructions to its translator."""
    assert not [path for path, text in texts.items() if re.search(r"[{}|@]", text)]


def test_the_chinese_readme_follows_the_english_one():
    """The same headings, commands, table rows and links, in the same order."""
    ours, theirs = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))
    assert "(README.zh.md)" in ours and "(README.md)" in theirs
    for part in (r"(?m)^#+ ", r"(?ms)^```.*?^```", r"(?m)^\|", r"\]\((?!README)([^\s)]+)"):
        assert re.findall(part, ours) == re.findall(part, theirs), part
