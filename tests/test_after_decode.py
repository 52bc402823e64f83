"""ComfyUI's own nodes behind our sounds: into a video, beside one another, one after another, one over another."""

import av
import numpy as np
import pytest
import torch

from dasheng_core.audio_tokenizer.spectral import resample
from graphs import Graph, run

RAIN = "<|caption|> Rain falls on a tin roof."
# Of what clip, and in the file's own rate.
FPS, FRAMES = 10, 8


class Scene(Graph):
    """Three takes of one scene, 0.8 s each."""

    def __init__(self):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders()
        self.rain = self.encode(self.clip, RAIN)
        self.takes = self.decode(seed=5, batch_size=3)

    def decode(self, seed, batch_size=1):
        latent = self.add("EmptyDashengLatentAudio", seconds=FRAMES / FPS, batch_size=batch_size)
        sampled = self.sample(self.model, self.rain, latent, seed=seed, steps=2)
        return self.add("DashengDecode", vae=self.vae, latent=sampled)

    def level(self, audio, peak=-6.0):
        options = dict(trim=False, trim_below=-60.0, padding=0.0, fade_in=0.0, fade_out=0.0)
        return self.add("DashengFinish", audio=audio, level="true peak", target=peak, **options)

    def convert(self, audio, sample_rate="as it is", channels="as it is"):
        return self.add("DashengConvert", audio=audio, sample_rate=sample_rate, channels=channels)

    def pick(self, audio, number):
        options = dict(measure="peak", min_peak=-120.0, min_crest=0.0, max_silence=1.0, max_clipped=-1)
        return self.add("DashengPickTake", audio=audio, pick="number", number=number, **options)

    def save(self, audio):
        """Saved as they are; read back by :func:`sounds` in the order of these calls."""
        options = dict(bit_depth="32 bit float", loop=False, loop_start=0.0, loop_end=0.0, markers="")
        return self.add("DashengSaveWAV", audio=audio, filename_prefix="after/x", **options)


def sounds(server, scene: Scene, *audios) -> list[tuple[torch.Tensor, int]]:
    """``[C, L]`` and rate of each file of these sounds."""
    for audio in audios:
        scene.save(audio)
    result = run(server, scene)
    assert result.events[-1][0] == "execution_success", result.error()
    return [(samples.T, rate) for samples, rate in result.audio()]


def known(server, *names: str) -> None:
    for name in names:
        if name not in server.get("/object_info"):
            pytest.skip(f"this ComfyUI has no node {name}")


def likeness(found: np.ndarray, expected: np.ndarray) -> float:
    """The highest correlation of two sounds at any shift: lossy coders delay."""
    length = len(found) + len(expected)
    spectrum = np.fft.rfft(found, length) * np.fft.rfft(expected, length).conj()
    return np.fft.irfft(spectrum, length).max() / np.linalg.norm(found) / np.linalg.norm(expected)


@pytest.mark.parametrize("rate", ["as it is", "48000"])
def test_each_take_becomes_the_sound_of_a_video(server, rate):
    """A batch given to Create Video directly would be one take only, or all of them strung together."""
    scene = Scene()
    takes = scene.convert(scene.level(scene.takes), rate)
    images = scene.add("EmptyImage", width=64, height=64, batch_size=FRAMES, color=0)
    video = scene.add("CreateVideo", images=images, fps=float(FPS), audio=takes)
    scene.add("SaveVideo", video=video, filename_prefix="video/rain", format="mp4", codec="h264")
    scene.save(takes)
    result = run(server, scene)
    assert result.events[-1][0] == "execution_success", result.error()
    videos = result.files("images") or result.files("video")
    assert len(videos) == 3
    for path, (samples, expected_rate) in zip(videos, result.audio(), strict=True):
        with av.open(str(path)) as file:
            stream = file.streams.audio[0]
            sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(stream)])
            assert stream.rate == expected_rate and abs(len(sound) / stream.rate - FRAMES / FPS) < 0.2
        assert likeness(sound, samples[:, 0].numpy()) > 0.9


def test_two_seeds_as_the_channels_of_an_ambience(server):
    """By our node on every version; by Join Audio Channels where there is one, to the same samples."""
    scene = Scene()
    pair = scene.decode(seed=5, batch_size=2)
    wide, left, right = scene.convert(pair, channels="takes as left and right"), scene.decode(5), scene.decode(6)
    (ours, rate), (first, _), (second, _) = sounds(server, scene, wide, left, right)
    assert rate == 16000
    torch.testing.assert_close(ours, torch.cat([first, second]), rtol=0, atol=1e-4)
    known(server, "JoinAudioChannels")
    joined = scene.add("JoinAudioChannels", audio_left=left, audio_right=right)
    *_, (core, rate) = sounds(server, scene, joined)
    assert rate == 16000 and torch.equal(core, torch.cat([first, second]))


def test_audio_concat_of_a_take_and_a_recording(server):
    """Another rate, and stereo: Audio Concat brings both to the higher rate and to two channels."""
    scene = Scene()
    one = scene.pick(scene.takes, 2)
    recording = scene.add("LoadAudio", audio="recording.wav")
    (first, _), (both, rate), (second, _) = sounds(
        server, scene, one, scene.add("AudioConcat", audio1=one, audio2=recording, direction="after"), recording
    )
    assert rate == 44100
    expected = torch.cat([resample(first, 16000, 44100).expand(2, -1), second], dim=1)
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-4)


def test_audio_merge_turns_a_loud_sum_down_and_dasheng_mix_does_not(server):
    scene = Scene()
    bed, layer = (scene.level(scene.pick(scene.takes, number), peak=-0.5) for number in (1, 2))
    twice = scene.add("DashengMix", bed=bed, layer=bed, at=0.0, layer_db=0.0)
    merged = scene.add("AudioMerge", audio1=bed, audio2=bed, merge_method="add")
    quiet = scene.add(
        "AudioMerge", audio1=scene.level(bed, -12.0), audio2=scene.level(layer, -12.0), merge_method="add"
    )
    mixed = scene.add("DashengMix", bed=scene.level(bed, -12.0), layer=scene.level(layer, -12.0), at=0.0, layer_db=0.0)
    (one, _), (ours, _), (core, _), (core_quiet, _), (ours_quiet, _) = sounds(
        server, scene, bed, twice, merged, quiet, mixed
    )
    torch.testing.assert_close(ours, 2 * one)
    assert ours.abs().max() > 1.5
    torch.testing.assert_close(core, ours / ours.abs().max())
    torch.testing.assert_close(core_quiet, ours_quiet)


def test_split_audio_channels_takes_what_was_made_stereo(server):
    scene = Scene()
    one = scene.pick(scene.takes, 1)
    split = scene.add("SplitAudioChannels", audio=scene.convert(one, channels="stereo"))
    (before, _), (left, _), (right, _) = sounds(server, scene, one, split(0), split(1))
    assert torch.equal(left, before) and torch.equal(right, before)


def test_the_equalizer_has_room_for_its_shelf_at_48_khz(server):
    """Its high shelf at 10 kHz lies beyond the 8 kHz of a take."""
    known(server, "AudioEqualizer3Band")
    options = dict(low_gain_dB=0.0, low_freq=100, mid_gain_dB=0.0, mid_freq=1000, mid_q=0.7)
    options |= dict(high_gain_dB=-12.0, high_freq=10000)
    scene = Scene()
    wide = scene.convert(scene.level(scene.pick(scene.takes, 1), -6.0), "48000")
    (before, _), (after, rate) = sounds(server, scene, wide, scene.add("AudioEqualizer3Band", audio=wide, **options))
    assert rate == 48000 and after.isfinite().all() and 0.5 < after.norm() / before.norm() < 1.1
