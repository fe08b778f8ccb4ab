from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from operators.media import video as module
from operators.media.video import decode_video
from storage.media.limits import Limits, MediaError

CLIPS = Path(__file__).parents[4] / "shared" / "data" / "videos"
SCENES = Limits(frames=3, sampling="scenes")


def clip(pictures, rate: int = 10, container_format: str = "mp4", gop: int = 250, *, live: bool = False) -> bytes:
    """A video of pictures (uint8 [H, W, 3]); a live one does not say how long it is."""
    out = io.BytesIO()
    with av.open(out, "w", format=container_format, options={"live": "1"} if live else {}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.gop_size = gop
        stream.options = {"sc_threshold": "1000000000"}  # no key frames but those asked for
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def flat(*colour: int, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def video(
    frames: int = 12, size: int = 64, container_format: str = "mp4", gop: int = 12, *, live: bool = False
) -> bytes:
    """Grey levels rise over the length, so that a sampled frame tells its time."""
    levels = [flat(*[20 + 200 * i // (frames - 1)] * 3, size=size) for i in range(frames)]
    return clip(levels, 6, container_format, gop, live=live)


LIVE = video(container_format="matroska", live=True)


@pytest.mark.parametrize("sampling", ["uniform", "scenes"])
@pytest.mark.parametrize(
    "content", [video(), LIVE, LIVE[: len(LIVE) * 9 // 10]], ids=["whole", "live", "live, cut off"]
)
def test_video_frames_are_spread_evenly_over_its_length(content, sampling):
    levels = [frame.mean() for frame in decode_video(content, Limits(frames=4, sampling=sampling))]
    assert len(levels) == 4
    steps = np.diff(levels)
    assert (steps > 25).all()
    assert steps.max() < 2.5 * steps.min()


@pytest.mark.parametrize(
    ("content", "limits", "code"),
    [
        (b"not a video at all", Limits(), "broken_video"),
        (video()[:300], Limits(), "broken_video"),
        (video(), Limits(max_seconds=1), "too_long"),
        (LIVE, Limits(max_seconds=1), "too_long"),
        (video(), Limits(max_pixels=64 * 64 - 1), "too_many_pixels"),
        (video(6, 64, "mpegts") + video(6, 512, "mpegts"), Limits(max_pixels=64 * 64), "too_many_pixels"),
    ],
    ids=["text", "truncated", "long", "long and live", "large", "grows later"],
)
def test_bad_videos_have_stable_codes(content, limits, code):
    with pytest.raises(MediaError) as caught:
        decode_video(content, limits)
    assert caught.value.code == code


def test_a_video_with_one_key_frame_is_left_when_its_time_is_up(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    assert len(decode_video(video(12), Limits(decode_seconds=100))) == 4
    with pytest.raises(MediaError) as caught:
        decode_video(video(600, gop=600), Limits(decode_seconds=100))
    assert caught.value.code == "too_slow"


@pytest.mark.parametrize("fault", [MemoryError, TypeError])
def test_a_lack_of_memory_is_no_fault_of_the_video_and_any_other_surprise_is(monkeypatch, fault):
    def fail(*args):
        raise fault

    monkeypatch.setattr(module, "_pixels", fail)
    with pytest.raises(MemoryError if fault is MemoryError else MediaError):
        decode_video(video(), Limits())


COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def colour_of(frame: np.ndarray) -> int:
    """Which of COLOURS a frame shows."""
    return int(np.abs(np.array(COLOURS) - frame.mean((0, 1))).sum(1).argmin())


@pytest.mark.parametrize("lengths", [(30, 10, 8), (6, 40, 6), (7, 7, 34)])
@pytest.mark.parametrize("container_format", ["mp4", "matroska", "mpegts"])
def test_of_three_scenes_each_gives_one_frame_in_order(lengths, container_format):
    content = clip(
        [flat(*colour) for colour, n in zip(COLOURS, lengths, strict=True) for _ in range(n)], 10, container_format
    )
    assert [colour_of(frame) for frame in decode_video(content, SCENES)] == [0, 1, 2]
    assert len(decode_video(content, Limits(frames=8, sampling="scenes"))) == 3
    assert len(decode_video(content, Limits(frames=2, sampling="scenes"))) == 2


def test_scenes_that_come_again_are_not_taken_twice():
    shots = [flat(*COLOURS[k]) for k in (0, 1, 0, 1, 0, 2, 0, 1) for _ in range(8)]
    assert sorted(colour_of(frame) for frame in decode_video(clip(shots), SCENES)) == [0, 1, 2]


def test_a_flash_is_no_scene():
    calm, flash = flat(60, 60, 60), flat(250, 250, 250)
    frames = decode_video(clip([calm] * 20 + [flash] + [calm] * 20 + [flat(*COLOURS[0])] * 20), SCENES)
    assert max(frame.mean() for frame in frames) < 100


def test_a_video_without_a_cut_is_sampled_evenly():
    for frames in (1, 3):
        a, b = (decode_video(video(24), Limits(frames=frames, sampling=how)) for how in ("uniform", "scenes"))
        assert np.array_equal(a, b)


def test_scenes_of_a_long_video_are_found_by_its_key_frames_alone(monkeypatch):
    monkeypatch.setattr(module, "DENSE_FRAMES", 40)
    shots = [flat(*colour) for colour in COLOURS for _ in range(20)]
    seen = []
    decode = module._frames
    monkeypatch.setattr(module, "_frames", lambda *a: (seen.append(f.key_frame) or f for f in decode(*a)))
    monkeypatch.setattr(module, "_sample", lambda *a: None)
    with pytest.raises(MediaError):
        decode_video(clip(shots, gop=5), SCENES)
    assert 12 <= len(seen) <= 14
    assert all(seen)
    monkeypatch.undo()
    monkeypatch.setattr(module, "DENSE_FRAMES", 40)
    assert [colour_of(frame) for frame in decode_video(clip(shots, gop=5), SCENES)] == [0, 1, 2]


def test_frames_shrink_and_keep_their_aspect():
    wide = [np.full((40, 120, 3), 99, np.uint8)] * 3
    assert {frame.shape for frame in decode_video(clip(wide), Limits(max_side=60))} == {(20, 60, 3)}
    assert {frame.shape for frame in decode_video(clip(wide), Limits())} == {(40, 120, 3)}


@pytest.mark.parametrize("sampling", ["uniform", "scenes"])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bigbuckbunny.mp4", (216, 384, 3)),
        ("bikes.mp4", (163, 384, 3)),
        ("carphone_pristine.mp4", (144, 176, 3)),
        ("carphone_distorted.mp4", (144, 176, 3)),  # coded with a tenth of the bits, yet whole
    ],
)
def test_real_clips_give_the_frames_asked_for(name, shape, sampling):
    if not CLIPS.is_dir():
        pytest.skip("the clips are not beside the project (../shared/data/videos)")
    content = (CLIPS / name).read_bytes()
    limits = Limits(sampling=sampling)
    frames = decode_video(content, limits)
    assert [frame.shape for frame in frames] == [shape] * 4
    assert len({frame.tobytes() for frame in frames}) == 4
    assert np.array_equal(frames, decode_video(content, limits))
