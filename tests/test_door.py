"""The library as somebody meets it who comes from the model card: one folder, its method names, types that an editor sees."""

import os
import subprocess
import sys
from typing import get_type_hints

import pytest
import soundfile
import torch

import dasheng_core
from conftest import GOLDEN, deviation
from dasheng_core import DashengAudioGen, Timeline, compose_prompt
from dasheng_core.options import FurtherOptions, SamplingOptions
from tools.comfyui import ROOT

CAT = compose_prompt(caption="A cat meowing softly.", sfx="Soft cat meow.")
STORM = compose_prompt(caption="Thunder rolling in the distance.", env="Stormy night ambience.")
SHORT = dict(num_steps=2, duration=0.4)


@pytest.fixture(scope="module")
def model() -> DashengAudioGen:
    return DashengAudioGen.from_pretrained(GOLDEN / "tiny", dtype="float32", device="auto").to("cpu").eval()


def test_one_folder_holds_the_three_parts_and_the_cards_names_are_there(model, tiny):
    prompt = model.compose_prompt(caption="A cat meowing softly.", sfx="Soft cat meow.")
    assert prompt == CAT and model.sample_rate == 16000
    audio = model.generate(prompts=prompt, guidance_scale=5.0, sway_sampling_coef=-1.0, seed=3, **SHORT)
    assert deviation(audio, tiny.generate(CAT, seed=3, **SHORT)) <= 5e-6 and audio.shape == (1, 6400)


def test_takes_of_a_prompt_follow_each_other(model):
    both = model.generate([CAT, STORM], seed=5, takes=2, **SHORT)
    alone = [
        model.generate(prompt, seed=seed, **SHORT)[0] for prompt, seed in ((CAT, 5), (CAT, 6), (STORM, 7), (STORM, 8))
    ]
    assert torch.allclose(both, torch.stack(alone), atol=1e-5)
    own = model.generate([CAT, STORM], seed=[5, 20], takes=2, **SHORT)
    assert torch.allclose(own[:2], both[:2], atol=1e-5)
    assert torch.allclose(own[2], model.generate(STORM, seed=20, **SHORT)[0], atol=1e-5)
    with pytest.raises(ValueError, match="takes is 0"):
        model.generate(CAT, takes=0, **SHORT)


def test_guidance_goes_away_from_a_negative_prompt(model):
    """v_n + g (v_c - v_n): at scale 1 nothing changes, and away from itself the prompt is as without guidance."""
    plain = model.generate(CAT, seed=1, **SHORT)
    away = model.generate([CAT, CAT], seed=[1, 1], negative=[STORM, CAT], **SHORT)
    assert (away[0] - plain[0]).abs().max() > 0.01
    unguided = model.generate(CAT, seed=1, guidance_scale=1.0, **SHORT)
    assert torch.allclose(away[1], unguided[0], atol=1e-4)
    one = model.generate(Timeline([(0.0, CAT), (0.2, STORM)]), seed=1, negative=STORM, **SHORT)
    assert one.isfinite().all()
    for wrong, sentence in (
        ([STORM] * 3, "3 negative prompts for 1 prompts"),
        ("rain", "starts with 'rain'"),
        (3, "expected a text"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.generate(CAT, negative=wrong, **SHORT)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"dtype": "float23"}, "dtype is 'float23', expected bf16"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"dtype": torch.int8}, "dtype is 'int8'"),
    ],
    ids=str,
)
def test_a_dtype_or_device_that_is_not_there_is_named(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DashengAudioGen.from_pretrained(GOLDEN / "tiny", **options)


def test_the_public_names_are_listed():
    assert {*dasheng_core.__all__} <= {*dir(dasheng_core)} and "DashengAudioGen" in dasheng_core.__all__
    assert [*get_type_hints(FurtherOptions)] == [*SamplingOptions.__dataclass_fields__][3:]


def test_a_type_checker_sees_a_wrong_keyword(tmp_path):
    code = tmp_path / "user.py"
    lines = [
        "from dasheng_core import DashengAudioGen",
        'model = DashengAudioGen.from_pretrained("a", dtype="bf16")',
        'model.generate("p", num_steps=5, loop=True)',
        'model.generate("p", gridd="full")',
        'model.generate("p", seed="1")',
    ]
    code.write_text("\n".join(lines), "utf-8")
    # The repository's settings, and with them its cache.
    command = [sys.executable, "-m", "mypy", str(code)]
    said = subprocess.run(command, cwd=ROOT, text=True, capture_output=True).stdout
    assert "user.py:4: error: Unexpected keyword" in said and 'user.py:5: error: Argument "seed"' in said
    assert "user.py:3" not in said and sum("user.py" in line and "error:" in line for line in said.splitlines()) == 2


# The model card's snippets, but for their second and third line: where the model comes from.
CARD = {
    "aspects": """
prompt = model.compose_prompt(
    caption="A conversation scene on a busy city street.",
    speech="A young woman speaking softly in Spanish.",
    env="Rain and distant traffic noise.",
    asr="Creo que deberíamos irnos ya.",
)
audio = model.generate(prompt)
torchaudio.save("output.wav", audio.cpu(), 16000)
""",
    "tagged prompt": """
prompt = model.compose_prompt(
    prompt="<|caption|> A conversation scene on a busy city street. <|speech|> A young woman speaking softly in Spanish. <|asr|> Creo que deberíamos irnos ya. <|env|> Rain and distant traffic noise."
)
audio = model.generate(prompt)
torchaudio.save("output.wav", audio.cpu(), 16000)
""",
    "batch": """
prompts = [
    model.compose_prompt(caption="A cat meowing softly.", sfx="Soft cat meow."),
    model.compose_prompt(caption="Thunder rolling in the distance.", env="Stormy night ambience."),
    model.compose_prompt(caption="A piano playing a gentle melody.", music="Soft piano ballad."),
]
audios = model.generate(prompts)
for i, audio in enumerate(audios):
    torchaudio.save(f"output_{i}.wav", audio.unsqueeze(0).cpu(), 16000)
""",
    "parameters": """
prompt = model.compose_prompt(caption="A dog barking in a park")
audio = model.generate(
    prompts=prompt,
    num_steps=25,             # number of denoising steps (default: 25)
    guidance_scale=5.0,       # classifier-free guidance scale (default: 5.0)
    sway_sampling_coef=-1.0,  # sway sampling coefficient (default: -1.0, 0 for linear)
)
torchaudio.save("output.wav", audio.cpu(), 16000)
""",
    "soundfile": """
audio = model.generate(model.compose_prompt(caption="A dog barking in a park"))
soundfile.write("output.wav", audio[0].cpu().numpy(), model.sample_rate)
""",
}


@pytest.mark.parametrize("snippet", CARD)
def test_the_snippets_of_the_model_card_run(snippet, tmp_path, monkeypatch):
    torchaudio = pytest.importorskip("torchaudio")
    if "torchaudio" in CARD[snippet]:
        try:
            import torchcodec  # noqa: F401, without which torchaudio 2.11 does not save
        except (ImportError, RuntimeError) as error:
            assert not os.environ.get("REQUIRE_BROWSER"), f"torchcodec and FFmpeg belong to this run: {error}"
            pytest.skip(f"torchaudio cannot save here: {error}")
    monkeypatch.chdir(tmp_path)
    cuda = ".cuda()" if torch.cuda.is_available() else ""
    loaded = f"model = DashengAudioGen.from_pretrained(FOLDER){cuda}"
    names = dict(DashengAudioGen=DashengAudioGen, FOLDER=GOLDEN / "tiny", torchaudio=torchaudio, soundfile=soundfile)
    exec(loaded + CARD[snippet], names)  # noqa: S102, the card's own text
    audios = names.get("audios", names["audio"])
    audios = audios if audios.ndim == 2 else audios[None]
    for number, audio in enumerate(audios):
        samples, rate = soundfile.read(f"output_{number}.wav" if snippet == "batch" else "output.wav", dtype="float32")
        assert rate == 16000 and samples.shape == audio.shape
        assert (torch.from_numpy(samples) - audio.cpu()).abs().max() <= 2**-15 or audio.abs().max() > 1


WITHOUT_TORCH = """
import runpy, sys
sys.argv = ["dasheng", *sys.argv[1:]]
try:
    runpy.run_module("dasheng_core", run_name="__main__")
finally:
    print(sorted({"torch", "transformers", "numpy"} & {*sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["--help"], 0, "generate"),
        (["--version"], 0, f"dasheng {dasheng_core.__version__}"),
        (["batch", "--help"], 0, "--break-lock"),
        (["generate", "--captoin", "rain", "-o", "a.wav"], 2, ""),
    ],
    ids=str,
)
def test_help_version_and_typing_errors_need_no_torch(arguments, status, said):
    """Nor transformers: those take seconds to import."""
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == status and said in run.stdout and run.stderr.endswith("[]\n"), run.stderr
