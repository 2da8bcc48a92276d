"""Segments of a recording: the gate, windows, speakers, turns, and the command that joins them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment, Timeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate
from support import RATE, finish

from chns_jax import SpeakerEncoder, segments
from chns_jax.common.errors import UserError
from chns_jax.corpus import audio
from chns_jax.corpus.audio import AudioError, read_blocks, read_whole
from chns_jax.diarisation import gate, speakers, turns, windows
from chns_jax.diarisation.turns import Turn
from chns_jax.diarisation.windows import Windows
from chns_jax.scoring.mfcc_baseline import mfcc_statistics

pytestmark = pytest.mark.usefixtures("loaded_once")


def noise(seconds, deviation=10, seed=0):
    return np.random.default_rng(seed).normal(0, deviation, round(seconds * RATE)).astype(np.int16)


def tone(seconds, hertz, amplitude=3000):
    time = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 8))
    return noise(seconds) + (amplitude * wave).astype(np.int16)


def spoken(*parts):
    waveform = np.concatenate(parts)
    return gate.speech(gate.levels([waveform], RATE), RATE, len(waveform)) / RATE


def test_the_gate_opens_where_it_is_loud():
    click = tone(0.06, 300)
    found = spoken(
        noise(1), tone(0.5, 200), noise(0.2), tone(0.5, 200), noise(1), click, noise(1), tone(1, 90)
    )
    # A pause of 0.2 s is speech, and a click is none.
    np.testing.assert_allclose(found, [[1.0, 2.2], [4.26, 5.26]], atol=0.03)


def test_soft_speech_is_speech():
    """Between loud tones, one that is 24 dB softer is kept, and one of 40 dB is not."""
    found = [
        spoken(noise(1), tone(1, 200), noise(1), tone(1, 200, level), noise(1)).tolist()
        for level in (190, 30)
    ]
    np.testing.assert_allclose(found[0], [[1, 2], [3, 4]], atol=0.03)
    np.testing.assert_allclose(found[1], [[1, 2]], atol=0.03)


@pytest.mark.parametrize("behind", [100, 600])  # 34 and 18 dB below the tones
def test_the_gate_opens_in_noise(behind):
    parts = [noise(1, behind), tone(1, 200) + noise(1, behind, 1)] * 3
    found = spoken(*parts, noise(1, behind))
    np.testing.assert_allclose(found, [[1, 2], [3, 4], [5, 6]], atol=0.05)


def test_silence_is_no_speech():
    constant = np.full(RATE, 900, np.int16)
    for silence in (np.zeros(RATE, np.int16), constant, noise(1, 2), np.zeros(5, np.int16)):
        assert len(spoken(silence)) == 0


def test_levels_do_not_depend_on_blocks():
    waveform = tone(0.33, 200)
    expected = [
        10 * np.log10(np.var(waveform[i : i + 320].astype(float)) / 2**30)
        for i in range(0, len(waveform), 320)
    ]
    for size in (7, 320, 1000, 9999):
        blocks = np.split(waveform, range(size, len(waveform), size))
        np.testing.assert_allclose(gate.levels(blocks, RATE), expected, rtol=1e-9)


def test_windows_cover_speech_and_nothing_else():
    speech = np.array([[3, 9], [20, 30], [40, 57]])
    placed = windows.place(speech, 10, 4)
    assert placed.start.tolist() == [3, 20, 40, 44, 47]
    assert placed.end.tolist() == [9, 30, 50, 54, 57]
    assert placed.region.tolist() == [0, 1, 2, 2, 2]
    assert windows.count(speech, 10, 4) == 5
    waveform = np.arange(60, dtype=np.int16)
    for size in (1, 7, 60):
        cut = windows.cut(np.split(waveform, range(size, 60, size)), placed)
        assert [(i, piece.tolist()) for i, piece in cut] == [
            (i, list(range(a, b))) for i, (a, b) in enumerate(zip(*placed[:2], strict=True))
        ]


def voices(counts, seed=0):
    """Embeddings (n, 64) of speakers one after another, whose cosines are about 0.8, or 0."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(64, len(counts))))[0].T
    rows = np.repeat(centres, counts, axis=0) + rng.normal(0, 0.06, (sum(counts), 64))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("most", [1500, 25])
def test_speakers_are_found_and_numbered_as_they_begin(most, monkeypatch):
    monkeypatch.setattr(speakers, "MOST_CLUSTERED", most)
    expected = np.repeat(range(3), [30, 11, 20])
    for given in (3, None):
        assert speakers.label(voices([30, 11, 20]), given).tolist() == expected.tolist()
    assert not speakers.label(voices([40]), None).any()  # one speaker is one
    assert not speakers.label(voices([1]), None).any()
    with pytest.raises(UserError, match="--speakers 9 is more than the 4 windows"):
        speakers.label(voices([4]), 9)


def test_turns_end_between_the_middles_of_windows(tmp_path):
    speech = np.array([[0, 40], [60, 70]])
    placed = Windows(*np.array([[0, 10, 20, 60], [20, 30, 40, 70], [0, 0, 0, 1]]))
    made = turns.turns(speech, placed, np.array([0, 0, 1, 1]), 10)
    assert made == [Turn(0, 2.5, 0), Turn(2.5, 4, 1), Turn(6, 7, 1)]
    turns.write_rttm(tmp_path / "a.rttm", "a b", made)
    read = load_rttm(tmp_path / "a.rttm")["a_b"]
    assert [(s.start, s.end, who) for s, _, who in read.itertracks(yield_label=True)] == [
        (0, 2.5, "speaker0"), (2.5, 4, "speaker1"), (6, 7, "speaker1"),
    ]  # fmt: skip


@pytest.mark.parametrize("name, rate, channels", [
    ("a.wav", RATE, 1), ("a.flac", 44_100, 2), ("a.ogg", 8_000, 1), ("a.mp3", 22_050, 2),
])  # fmt: skip
def test_blocks_are_what_is_read_whole(name, rate, channels, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "STREAMED_AT_ONCE", 2000)
    waveform = np.stack([tone(0.7, 200 + 90 * k)[: round(0.7 * rate)] for k in range(channels)], 1)
    soundfile.write(tmp_path / name, waveform, rate)
    blocks = list(read_blocks(str(tmp_path / name), RATE))
    whole = read_whole(str(tmp_path / name), RATE)
    assert len(blocks) > 2 and max(map(len, blocks)) <= 2000 * RATE // rate + RATE // 10
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1)


def test_m4a_in_blocks(tmp_path, monkeypatch):
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not there")
    monkeypatch.setattr(audio, "STREAMED_AT_ONCE", 3000)
    soundfile.write(tmp_path / "a.wav", tone(0.7, 200), RATE)
    audio._run_ffmpeg("a", "ffmpeg", "-i", str(tmp_path / "a.wav"), str(tmp_path / "a.m4a"))
    blocks = list(read_blocks(str(tmp_path / "a.m4a"), RATE))
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate(blocks), read_whole(str(tmp_path / "a.m4a"), RATE))
    (tmp_path / "b.m4a").write_bytes((tmp_path / "a.m4a").read_bytes()[:900])
    with pytest.raises(AudioError, match="b.m4a cannot be decoded: "):
        list(read_blocks(str(tmp_path / "b.m4a"), RATE))


def test_damaged_files_in_blocks(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(0.7, 200), RATE)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(AudioError, match="is truncated: "):
        list(read_blocks(str(path), RATE))
    soundfile.write(path, np.full(900, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="holds NaN"):
        list(read_blocks(str(path), RATE))
    soundfile.write(path, np.zeros(0), RATE)
    with pytest.raises(AudioError, match="holds no samples"):
        list(read_blocks(str(path), RATE))


def annotation(said):
    made = Annotation()
    for start, end, speaker in said:
        made[Segment(start, end)] = speaker
    return made


def error_rate(reference, found) -> float:
    """Diarisation error rate, without 0.25 s on each side of what the reference says begins or
    ends."""
    said, heard = annotation(reference), found
    whole = Timeline(
        [Segment(0, max(said.get_timeline().extent().end, heard.get_timeline().extent().end))]
    )
    return DiarizationErrorRate(collar=0.5)(said, heard, uem=whole)


def splice(clips, seed=0):
    """A conversation of clips (speaker, waveform) with pauses, and who speaks when."""
    rng = np.random.default_rng(seed)
    parts, said, at = [], [], 0
    for speaker, clip in clips:
        pause = noise(rng.uniform(0.6, 0.9), seed=len(said))
        parts += [clip, pause]
        said.append((at / RATE, (at + len(clip)) / RATE, speaker))
        at += len(clip) + len(pause)
    return np.concatenate(parts), said


def test_a_conversation_of_tones(untrained, tmp_path, monkeypatch, capsys):
    """Two pitches, which an encoder that has learnt nothing tells apart."""
    hertz = [100, 260, 100, 260, 260, 100]
    # They tremble: of a steady tone nothing is left when its mean over time is taken away.
    tremble = 1 + np.sin(2 * np.pi * 9 * np.arange(4 * RATE) / RATE)
    clips = [tone(2 + i / 4, h, 1000) for i, h in enumerate(hertz)]
    clips = [(clip * tremble[: len(clip)]).astype(np.int16) for clip in clips]
    waveform, said = splice(list(zip(hertz, clips, strict=True)))
    soundfile.write(tmp_path / "two tones.flac", waveform, RATE)
    monkeypatch.chdir(tmp_path)
    given = ["two tones.flac", "--model", str(untrained), "--window", "1", "--speakers", "2"]
    segments.main(given)
    assert "2 speakers in 6 turns: two tones.rttm, two tones.png" in capsys.readouterr().err
    assert error_rate(said, load_rttm("two tones.rttm")["two_tones"]) < 0.02
    assert Path("two tones.png").read_bytes()[:4] == b"\x89PNG"

    with np.load("two tones.npz") as made:
        start, end = made["start"], made["end"]
        assert made["names"][0] == f"two tones-{1000 * start[0]:08.0f}-{1000 * end[0]:08.0f}"
        assert len(start) == len(made["names"]) == len(made["speaker"])
        np.testing.assert_allclose(np.diff(start)[0], 0.75)
        encoder = SpeakerEncoder.load(untrained)
        for i in (0, 7, len(start) - 1):
            piece = waveform[round(start[i] * RATE) : round(end[i] * RATE)]
            expected = encoder.embed(piece, sample_rate=RATE)
            np.testing.assert_allclose(made["embeddings"][i], expected, atol=1e-4)


def test_a_backend_of_matplotlib_that_is_not_there_is_no_matter():
    code = "from chns_jax.reports.figure import new_figure; new_figure()"
    named = {**os.environ, "MPLBACKEND": "nosuch"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=named, check=True)


def test_without_speakers_there_are_embeddings_alone(untrained, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(7.9, 200), RATE)
    given = [str(tmp_path / "a.wav"), "--model", str(untrained), "--window", "1", "--out"]
    segments.main([*given, str(tmp_path / "b.npz")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "b.npz"]
    with np.load(tmp_path / "b.npz") as made:
        assert sorted(made) == ["embeddings", "end", "names", "start"]
        np.testing.assert_allclose(made["start"], [*np.arange(10) * 0.75, 6.9])
        np.testing.assert_allclose(made["end"] - made["start"], 1)
    monkeypatch.setattr(segments, "MOST_WINDOWS", 0)
    with pytest.raises(UserError, match="has 11 windows, more than 0: give a longer --step"):
        segments.main([*given, str(tmp_path / "c.npz")])


@pytest.mark.long
def test_the_command_as_a_program(untrained, program, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1, 200), RATE)
    given = ["a.wav", "--model", untrained, "--speakers", "auto"]
    _, said = finish(program("segments", *given, folder=tmp_path))
    assert "1 embeddings: a.npz, 1 speakers in 1 turns: a.rttm, a.png" in said


@pytest.mark.long
def test_conversations_of_real_clips(real_data):
    """Two read by turns, told apart by no more than statistics of MFCCs."""
    folders = sorted(path for path in (real_data / "librimini").iterdir() if path.is_dir())
    errors = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clips = []
        for turn in range(8):
            files = sorted(folders[2 * seed + turn % 2].rglob("*.flac"))
            clip = read_whole(str(files[rng.integers(len(files))]), RATE)
            clips.append((turn % 2, clip[: round(rng.uniform(4, 8) * RATE)]))
        waveform, said = splice(clips, seed)
        speech = gate.speech(gate.levels([waveform], RATE), RATE, len(waveform))
        placed = windows.place(speech, 3 * RATE // 2, 3 * RATE // 4)
        pieces = [piece for _, piece in windows.cut([waveform], placed)]
        rows = np.stack([mfcc_statistics(piece, RATE) for piece in pieces])
        rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        labels = speakers.label(rows / np.linalg.norm(rows, axis=1, keepdims=True), 2)
        made = turns.turns(speech, placed, labels, RATE)
        found = annotation([(turn.start, turn.end, turn.speaker) for turn in made])
        errors.append(error_rate(said, found))
    assert np.mean(errors) < 0.2, errors
