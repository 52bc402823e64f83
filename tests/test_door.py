"""The library as somebody meets it who comes from the model card: one folder, its method names, types that an editor sees."""

import subprocess
import sys
from typing import get_type_hints

import pytest
import torch

import dasheng_core
from conftest import GOLDEN
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
    assert torch.equal(audio, tiny.generate(CAT, seed=3, **SHORT)) and audio.shape == (1, 6400)


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
    assert "user.py:3" not in said and said.count("error:") == 2, said
