"""What a tokenizer makes of a prompt: what cannot be read is refused, what is doubtful is said, good English is left alone."""

import os
import unicodedata
from pathlib import Path

import pytest

from conftest import GOLDEN
from dasheng_core import PromptError, compose_prompt, lint_prompt
from dasheng_core.prompt import lint_pace, spoken_words
from dasheng_core.tokenizer import JsonFile, SentencePieceFile
from graphs import Graph, run
from tools.comfyui import SMALL

FILES = ("tiny", "tiny_multilingual", "mini", "spiece", "t5")
SENTENCES = {
    "unknown": "has pieces that the model does not know",
    "tag": "which is read as text: a tag is written exactly as in <|caption|>",
    "markup": "the model knows no markup",
    "no words": "has no words",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tokenizer files of every kind that the model comes with, T5's own (32,000 pieces) where ComfyUI is."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "corpus.txt").write_text("rain on a tin roof, a cat meows softly. thunder in the distance < 3 |\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "spiece"), vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    found = {
        "tiny": JsonFile(GOLDEN / "tiny" / "text_encoder" / "tokenizer.json", (), 32128),
        "tiny_multilingual": JsonFile(GOLDEN / "tiny_multilingual" / "text_encoder" / "tokenizer.json", (), 32128),
        "mini": JsonFile(SMALL / "text_encoder" / "tokenizer.json", (), 32128),
        "spiece": SentencePieceFile(folder / "spiece.model", (), 32128),
    }
    if "COMFYUI_PATH" in os.environ:
        own = Path(os.environ["COMFYUI_PATH"]) / "comfy" / "text_encoders" / "t5_tokenizer" / "tokenizer.json"
        found["t5"] = JsonFile(own, (), 32128)
    return found


@pytest.fixture(params=FILES)
def file(files, request):
    if request.param not in files:
        pytest.skip("COMFYUI_PATH is not set: T5's own tokenizer is there")
    return files[request.param]


@pytest.mark.parametrize(
    "text, doubts",
    [
        ("rain <Laughter:1> [rain]", {"markup"}),
        ("{rain|rain}", {"markup"}),
        ("a (rain:1.3)", {"markup"}),
        ("a cat (laughs)", {"markup"}),
        ("*sighs* a cat", {"markup"}),
        ("...", {"no words"}),
        ("a cat 【rain】", {"markup"}),
        ("rain <|music| rain", {"tag"}),
        ("rain <music>", {"tag"}),
        ("rain ＜｜music｜＞ rain", {"tag"}),
        ("a cat, 你好", {"unknown"}),
        ("a cat 🙂", {"unknown"}),
        ("rain on a tin roof,\n\n\ta cat meows\r\nsoftly.", set()),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("aspect", ["caption", "asr"])
def test_what_is_doubtful_is_said(file, aspect, text, doubts):
    said = lint_prompt(compose_prompt(**{"caption": "rain", aspect: text}), file.read)
    assert all(sentence.startswith(f"The {aspect} text {text.split()[0]!r}"[:-1]) for sentence in said)
    found = {kind for kind, sentence in SENTENCES.items() if any(sentence in one for one in said)}
    # The small vocabularies do not know every letter and bracket of the examples.
    assert found - {"unknown"} == doubts - {"unknown"} and found >= doubts


@pytest.mark.parametrize("text", ["\u200b", "🙂🙂", "你好，世界", "สวัสดี", "\x00", "\u0301"], ids=ascii)
@pytest.mark.parametrize("aspect", ["caption", "asr"])
def test_what_has_no_piece_that_the_tokenizer_knows_is_refused(file, aspect, text):
    with pytest.raises(
        PromptError, match=f"The {aspect} text .* has nothing that the model can read: write it in words"
    ):
        lint_prompt(compose_prompt(**{"caption": "rain", aspect: text}), file.read)


def test_stage_directions_are_said_of_a_transcript(files):
    for text, doubtful in (("(clears throat) rain", True), ("a (tall) cat", False)):
        said = lint_prompt(compose_prompt(caption="rain", asr=text), files["mini"].read)
        assert any(SENTENCES["markup"] in one for one in said) is doubtful


@pytest.mark.parametrize(
    "text",
    [
        "Quiet jazz in a café.",
        "A delivery van idles in Los Angeles traffic.",
        "Mrs. Müller hums “La Mer” – softly; a bell (far off) rings at 7:30, it's 5 > 3.5 & over…",
        "Rain (recorded at 12:00) on a roof (John 3:16), 2 * 3 * 4 drops (crickets) in a 4* hotel and a 5* hotel.",
    ],
)
def test_good_english_is_left_alone_by_the_published_tokenizer(files, text):
    if "t5" not in files:
        pytest.skip("COMFYUI_PATH is not set: T5's own tokenizer is there")
    assert lint_prompt(compose_prompt(caption=text), files["t5"].read) == []


@pytest.mark.parametrize("space", ["\r\n", "\t", "\n\n  ", "\u00a0", "\u2028", "\u3000"], ids=ascii)
def test_any_white_space_is_one_space_as_for_the_published_tokenizer(files, space):
    written = f"<|caption|> Rain.{space}Wind. <|env|>{space}A hall."
    assert compose_prompt(prompt=written) == "<|caption|> Rain. Wind. <|env|> A hall."
    assert compose_prompt(caption=f"Rain.{space}Wind.", env=f"{space}A hall.") == compose_prompt(prompt=written)
    if "t5" in files:
        assert files["t5"].encode(written) == files["t5"].encode(compose_prompt(prompt=written))


@pytest.mark.parametrize("text", [3, b"rain", ["rain"], "rain \ud83d", "\udce9 rain"], ids=ascii)
def test_what_is_not_a_text_is_refused(text):
    for given in ({"caption": text}, {"caption": "rain", "asr": text}, {"prompt": text}):
        with pytest.raises(PromptError, match="expected a text|has half a character"):
            compose_prompt(**given)


@pytest.mark.parametrize("secret", ["rain " * 200 + "SECRET", "<|" + "x" * 200 + "SECRET|>", "雨" * 200 + "SECRET"])
def test_no_more_than_first_words_are_quoted(tiny, caplog, secret):
    long = "<|caption|> " + "rain [now] " + "rain 雨 " * 400 + "SECRET"
    for prompt in (long, secret, f"<|caption|> {secret}", f"<|caption|> [{secret}]", f"<|caption|> {secret} <|loud|>"):
        try:
            tiny.tokenizer([prompt])
        except PromptError as error:
            assert "SECRET" not in str(error) and len(str(error)) < 400
    assert "the model knows no markup" in caplog.text and "SECRET" not in caplog.text
    assert max(len(record.getMessage()) for record in caplog.records) < 400


@pytest.mark.parametrize(
    "asr, words",
    [
        ("", 0),
        ("We should go, don't we?", 5),
        ("你好世界", 2),
        ("¿Qué pasó-ayer?", 2),
        # By Unicode's rules in the model's eight languages and others: marks, joiners and apostrophes end no word.
        ("¿Dónde está la niña?", 4),
        ("Não, amanhã não há pão.", 5),
        ("Вчера шёл сильный дождь.", 4),
        ("Aujourd'hui, l’été est là.", 4),
        ("Übermorgen fährt der Zug.", 4),
        ("ありがと", 2),
        ("ｶﾗｵｹ", 2),
        ("안녕하세요", 2.5),
        ("मैं कल सुबह अपने दोस्तों के साथ बाज़ार जाऊँगा और फल खरीदूँगा।", 12),
        ("ذَهَبَ الوَلَدُ إِلَى المَدْرَسَةِ", 4),
        ('שָׁלוֹם עֲלֵיכֶם, צה"ל', 3),
        ("நான் நாளை சந்தைக்கு போகிறேன்.", 4),
        ("می‌خواهم بروم", 2),
        # Sixteen letters a second, with their marks, are fast Thai.
        ("สวัสดีครับ ยินดีที่ได้รู้จัก", 4),
        ("\u0301 ... — !", 0),
        # Numbers as they are spoken; long ones digit by digit.
        ("42", 2),
        ("1,000,000", 2),
        ("1995", 4),
        ("007", 3),
        ("3.14", 3),
        ("$5", 2),
        ("12345678901234567890123456789012345", 35),
        ("٣٥", 2),
    ],
    ids=ascii,
)
def test_spoken_words(asr, words):
    for form in ("NFC", "NFD"):
        prompt = compose_prompt(caption="ten words that are not spoken", asr=unicodedata.normalize(form, asr))
        assert spoken_words(prompt) == words


def test_more_words_than_a_clip_has_time_for_are_said(tiny, caplog):
    assert lint_pace(8, 2.0) == [] and len(lint_pace(9, 2.0)) == 1
    prompt = compose_prompt(caption="a man speaks", asr="one two three four five six seven eight nine ten")
    tiny.generate([prompt, prompt], num_steps=1, seed=0, duration=[4.0, 1.0])
    (record,) = [record for record in caplog.records if "people say" in record.getMessage()]
    assert "has 10 words for a clip of 1 seconds" in record.getMessage()


def log_of(server, graph: Graph) -> str:
    before = server.log.stat().st_size
    assert run(server, graph).events[-1][0] == "execution_success"
    return server.log.read_bytes()[before:].decode("utf-8", "replace")


def test_a_server_says_the_same_in_its_log(server):
    prompt = "<|caption|> rain {a|b} <|asr|> 你好 hello <|music|> <sfx> ..."
    graph = Graph()
    _, clip, _ = graph.loaders()
    graph.add("PreviewAny", source=graph.add("CLIPTextEncode", clip=clip, text=prompt))
    log = log_of(server, graph)
    for sentence in (
        "has '{a|b}': the model knows no markup",
        "does not know ('你好')",
        "has '<sfx>', which is read as text",
    ):
        assert sentence in log


def test_a_sampler_says_when_the_clip_is_too_short_for_the_words(server):
    def make(seconds):
        graph = Graph()
        model, clip, _ = graph.loaders()
        positive = graph.encode(clip, "<|caption|> a man <|asr|> one two three four five six seven eight nine ten")
        latent = graph.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=1)
        graph.add("SaveLatent", samples=graph.sample(model, positive, latent, steps=1), filename_prefix="test")
        return log_of(server, graph)

    assert "people say" not in make(4.0)
    assert make(1.0).count("has 10 words for a clip of 1 seconds") == 1
