"""From a take to a delivered sound, without ComfyUI: trim, fade, level, channels, mix, and what a WAV file holds."""

import math
import struct
import wave

import pytest
import soundfile
import torch

from dasheng_core.delivery.audio_file import quantize, write_audio
from dasheng_core.delivery.finishing import fade, left_and_right, mix, set_level, to_mono, to_stereo, trim_silence
from dasheng_core.delivery.measures import loudness, true_peak
from dasheng_core.delivery.wav_chunks import comment_chunk, loop_chunk, marker_chunks
from riff import chunks_of, markers_of

RATE = 16000
TONE = 0.1 * torch.sin(torch.arange(RATE) * (2 * math.pi / 16))[None]
SILENCE = torch.zeros(1, RATE)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding", [0.0, 0.25, 5.0])
def test_silence_is_trimmed_up_to_the_padding(padding):
    clip = torch.cat([SILENCE, TONE, SILENCE], dim=1)
    trimmed, before = trim_silence(clip, RATE, -60, padding)
    assert before == max(0, RATE - round(padding * RATE))
    assert trimmed.shape[-1] == min(3 * RATE, RATE + 2 * round(padding * RATE))
    assert torch.equal(trimmed[trimmed != 0], TONE[TONE != 0])
    # The threshold says what is silence; nothing is left of silence alone, so it stays.
    clip = torch.cat([0.005 * torch.ones(1, RATE), TONE], dim=1)
    assert [trim_silence(clip, RATE, level, 0)[0].shape[-1] for level in (-40, -60)] == [RATE, 2 * RATE]
    assert trim_silence(SILENCE, RATE, -60, padding) == (SILENCE, 0)


def test_fades_rise_and_fall():
    faded = fade(torch.ones(2, RATE), RATE, 0.25, 0.5)
    assert faded[0, 0] == 0 and faded[0, 2000] == pytest.approx(0.5, abs=1e-4)
    assert torch.equal(faded[:, 4000 : RATE - 8000], torch.ones(2, 4000)) and faded[1, -1] == 0
    assert bool((faded[0, :4000].diff() > 0).all()) and bool((faded[0, -8000:].diff() < 0).all())
    assert torch.equal(fade(TONE, RATE, 0, 0), TONE)
    assert fade(TONE, RATE, 30, 30).isfinite().all()


@pytest.mark.parametrize("target, rate", [(-30.0, RATE), (-16.0, RATE), (-23.0, 2000)])
def test_a_level_is_reached(target, rate):
    clip, notes = set_level(0.01 * noise(1, 2 * RATE), rate, "loudness", target)
    assert loudness(clip, rate) == pytest.approx(target, abs=0.01)
    assert notes[0].startswith(f"{target:.1f} LUFS (")
    clip, notes = set_level(0.01 * noise(1, 2 * RATE), rate, "true peak", -6.0)
    assert true_peak(clip, rate) == pytest.approx(-6.0, abs=1e-3) and notes[1] == "true peak -6.0 dBTP"


def test_nothing_is_limited_and_what_would_clip_is_said():
    quiet = noise(1, 2 * RATE) * 0.001
    clip, notes = set_level(quiet, RATE, "loudness", -6.0)
    assert clip.abs().max() > 1
    torch.testing.assert_close(clip / clip.abs().max(), quiet / quiet.abs().max())
    (warning,) = [note for note in notes if note.startswith("WOULD CLIP")]
    less = float(warning.split(" by ")[1].split(" dB")[0])
    assert true_peak(clip * 10 ** (-less / 20), RATE) <= 0
    # From full scale on, and not before.
    assert "down by 0.1 dB" in set_level(quiet, RATE, "true peak", 0.05)[1][-1]
    assert "WOULD CLIP" not in str(set_level(quiet, RATE, "true peak", -0.05)[1])


def test_what_has_no_level_stays_as_it_is():
    short, faint = TONE[:, :3000], torch.zeros(1, RATE)
    # Fainter than 24 bits: raised to a level, the zeros beside it became no numbers.
    faint[0, 50] = 1e-42
    for clip, level, said in (
        (faint, "true peak", "silent, level left"),
        (short, "loudness", "too short for a loudness (under 0.4 s)"),
        (SILENCE, "loudness", "silent, level left"),
        (SILENCE, "true peak", "silent, level left"),
        (TONE, "as it is", "true peak -20.0 dBTP"),
    ):
        found, notes = set_level(clip, RATE, level, -20.0)
        assert torch.equal(found, clip) and notes[0].startswith(said) and "DC OFFSET" not in str(notes)
    assert "DC OFFSET 0.5: the sound stands off from 0" in set_level(TONE + 0.5, RATE, "as it is", 0.0)[1][1]


@pytest.mark.parametrize(
    "shape, rate, name, said",
    [
        ((1100, 10), RATE, "x.wav", "x.wav cannot hold 1100 channels at 16000 Hz"),
        ((9, 10), RATE, "x.flac", "x.flac cannot hold 9 channels at 16000 Hz .*: a WAV file holds 1024 channels"),
        ((1, 10), 768_000, "x.flac", "x.flac cannot hold 1 channels at 768000 Hz .* at up to 655350 Hz"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, shape, rate, name, said):
    with pytest.raises(ValueError, match=said):
        write_audio(tmp_path / name, torch.zeros(shape), rate)
    assert not list(tmp_path.iterdir())


def test_a_wav_of_more_than_4_gb_is_refused(tmp_path):
    """By its size, before anything is made of it."""
    clip = torch.zeros(1).expand(2**30 + 1)
    with pytest.raises(
        ValueError, match=r"takes 4.3 GB, expected at most 4.3, which a WAV file can hold: save it in parts"
    ):
        write_audio(tmp_path / "x.wav", clip, RATE)


def test_channels():
    stereo = to_stereo(TONE)
    assert stereo.shape == (2, RATE) and torch.equal(to_mono(stereo), TONE)
    assert loudness(stereo, RATE) - loudness(TONE, RATE) == pytest.approx(3.01, abs=0.01)
    both = left_and_right(TONE, SILENCE[:, :8000])
    assert torch.equal(both[0], TONE[0]) and torch.equal(both[1], SILENCE[0])
    with pytest.raises(ValueError, match="3 channels, expected 1 or 2"):
        to_stereo(torch.zeros(3, 10))


def test_a_mix_leaves_levels_alone():
    """Also where the sum passes full scale."""
    bed, layer = noise(3, 1, 100), 2 * noise(1, 2, 50, seed=1)
    mixed = mix(bed, layer, 80)
    assert mixed.shape == (3, 2, 130)
    torch.testing.assert_close(mixed[..., :80], bed[..., :80].expand(3, 2, -1))
    torch.testing.assert_close(mixed[..., 80:100], bed[..., 80:] + layer[..., :20])
    torch.testing.assert_close(mixed[..., 100:], layer[..., 20:].expand(3, 2, -1))


def test_sixteen_bits_are_dithered():
    """The error has the variance of rounding and of two uniform numbers, and no trace of the sound."""
    clip = 0.3 * torch.sin(torch.arange(200_000) * 0.01)
    steps = quantize(clip, 16).double() / 2**16
    error = steps - clip.double() * 2**15
    assert error.square().mean().item() == pytest.approx(1 / 12 + 1 / 6, rel=0.03)
    assert error.abs().max() <= 1.5 and abs(error.mean()) < 0.01
    # A tone of a third of a step is still there, as noise around it.
    faint = clip * 2**-15
    found = quantize(faint, 16).double() / 2**16
    assert (found * faint).sum() / (faint.double().square().sum() * 2**15) == pytest.approx(1, abs=0.1)


def test_dither_is_the_same_for_the_same_sound_and_leaves_whole_steps_alone():
    clip = 0.1 * noise(2, 5000)
    assert torch.equal(quantize(clip, 16), quantize(clip.clone(), 16))
    assert not torch.equal(quantize(clip, 16)[0], quantize(clip[:1], 16)[0])
    whole = torch.randint(-(2**15), 2**15, (5000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(quantize(whole / 2**15, 16), (whole * 2**16).int())
    assert quantize(torch.tensor([2.0, -2.0]), 24).tolist() == [(2**23 - 1) * 2**8, -(2**31)]


@pytest.mark.parametrize("file_format", ["wav16", "wav32"])
def test_a_wav_holds_comment_loop_and_markers(tmp_path, file_format):
    markers = marker_chunks([(7, "rain"), (4000, "雷", 800)])
    region = markers[markers.index(b"ltxt") + 8 :][:20]
    assert struct.unpack("<II4sHHHH", region) == (2, 800, b"rgn ", 0, 0, 0, 0)
    more = comment_chunk('{"a": "\\u00e4"}') + loop_chunk(100, 5001, RATE) + markers
    clip = 0.1 * noise(2, 5001)
    path, plain = tmp_path / "x.wav", tmp_path / "plain.wav"
    write_audio(path, clip, RATE, file_format, more)
    write_audio(plain, clip, RATE, file_format)
    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE and (torch.from_numpy(sound).T - clip).abs().max() <= {"wav16": 1.6 * 2**-15}.get(
        file_format, 2**-23
    )
    before, after = chunks_of(plain), chunks_of(path)
    assert after[: len(before)] == before
    comment, loop, *_ = after[len(before) :]
    assert comment == ("LIST", b'INFOICMT\x10\0\0\0{"a": "\\u00e4"}\0')
    assert loop[0] == "smpl" and struct.unpack("<15I", loop[1])[7] == 1
    assert struct.unpack("<15I", loop[1])[9:] == (0, 0, 100, 5000, 0, 0), "the last sample is played"
    assert struct.unpack("<15I", loop[1])[2] == 62500, "nanoseconds of a sample"
    assert markers_of(path) == [(7, "rain"), (4000, "雷")] and markers_of(plain) == []
    if file_format != "wav32":
        with wave.open(str(path)) as file:
            assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, RATE, 5001)
