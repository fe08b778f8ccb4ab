"""Decode videos to a few frames, within limits, from the container formats that carry their own data."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from operators.media.images import check_passes
from storage.media.limits import Limits, MediaError

# Playlists (hls, dash, concat, …) name further files and are not here; neither may any protocol be opened.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,gif"
THUMBNAIL = 16  # side of the pictures that are compared, in pixels
CUT = 27.0  # mean change of a thumbnail, in grey levels of 255, from which two frames belong to two shots
SHORTEST_SHOT = 0.5  # seconds; what flashes up for less is no shot
DENSE_FRAMES = 2_000  # of videos with more frames only the key frames are compared


def decode_video(
    content: bytes, limits: Limits, damaged: Callable[[str], None] = lambda detail: None
) -> list[np.ndarray]:
    """Decodes up to `limits.frames` frames in time order, each RGB uint8 [H, W, 3], upright.

    `uniform` takes them evenly over the length. `scenes` takes the middle frames of the shots that differ most, at most
    one of each shot; a video without a cut is sampled evenly. Of a damaged video, which `damaged` is called about, the
    frames that decode are taken.

    Raises:
        MediaError: `not_a_video`, `too_many_pixels`, `too_long`, `too_slow` or `broken_video`.
    """
    deadline = time.monotonic() + limits.decode_seconds
    damage: list[str] = []
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none", "max_pixels": str(limits.max_pixels)}
    try:
        with av.open(io.BytesIO(content), mode="r", options=options, timeout=limits.decode_seconds) as container:
            if not container.streams.video:
                raise MediaError("not_a_video", "no video stream")
            stream = container.streams.video[0]
            _check_size(stream.codec_context, limits)
            start = float(container.start_time or 0) / av.time_base
            seconds = float(container.duration or 0) / av.time_base
            seconds = seconds or _told_by_packets(container, stream, deadline, limits)
            if seconds > limits.max_seconds:
                raise MediaError("too_long", f"{seconds:.0f} s")
            moments = []
            if limits.sampling == "scenes":
                moments = _shots(container, stream, seconds, deadline, limits, damage)
            if not moments:
                moments = [start + seconds * (i + 0.5) / limits.frames for i in range(limits.frames)]
            frames = [_sample(container, stream, moment, deadline, limits, damage) for moment in moments]
            if damage:  # the last frame before it stands for all moments after it
                frames = list({frame.time: frame for frame in frames if frame is not None}.values())
            found = [_pixels(frame, limits) for frame in frames if frame is not None]
    except MediaError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) and not isinstance(error, FFmpegError):
            raise  # FFmpeg's own MemoryError only says that a damaged file asks for too much
        raise MediaError("broken_video", f"{type(error).__name__}: {error}"[:200]) from error
    if not found:
        raise MediaError("broken_video", damage[0] if damage else "no frame decodes")
    if damage:
        damaged(f"{len(found)} frames before, between or after damage are used ({damage[0]})")
    return found


def _told_by_packets(
    container: av.container.InputContainer, stream: av.VideoStream, deadline: float, limits: Limits
) -> float:
    """Returns the seconds of a video that does not say how long it is, as browsers record them: its packets are read
    once, and nothing is decoded."""
    moments = list[float]()
    for packet in _packets(container, stream, []):
        if packet.pts is not None and packet.time_base is not None:
            moments += [float(at * packet.time_base) for at in (packet.pts, packet.pts + (packet.duration or 0))]
        _check_time(deadline, limits)
    container.seek(0)
    return max(moments, default=0.0) - min(moments, default=0.0)


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream, deadline: float, limits: Limits, damage: list[str]
) -> Iterator[av.VideoFrame]:
    """Yields the frames from where the container stands; after damage, which is noted, from the next key frame.

    A file may lie about its size, have millions of frames after one key frame, and frames of many passes: all are
    checked on the way, passes as those of the largest frame.
    """
    whole = True
    for packet in _packets(container, stream, damage):
        if stream.codec_context.name == "mjpeg":
            check_passes(bytes(packet), limits.max_pixels, limits)
        try:
            frames = packet.decode()
        except FFmpegError as error:
            damage.append(f"{type(error).__name__}: {error}"[:200])
            whole, frames = False, []
        for frame in frames:
            _check_size(frame, limits)
            whole = whole or frame.key_frame
            if whole:
                yield frame
        _check_time(deadline, limits)


def _check_time(deadline: float, limits: Limits) -> None:
    if time.monotonic() > deadline:
        raise MediaError("too_slow", f"decoding takes more than {limits.decode_seconds:g} s")


def _packets(container: av.container.InputContainer, stream: av.VideoStream, damage: list[str]) -> Iterator[av.Packet]:
    """Yields the packets of a stream, up to where the file is damaged beyond them."""
    try:
        yield from container.demux(stream)
    except FFmpegError as error:
        damage.append(f"{type(error).__name__}: {error}"[:200])


def _sample(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    second: float,
    deadline: float,
    limits: Limits,
    damage: list[str],
) -> av.VideoFrame | None:
    """The first frame at or after `second`, from the key frame before it; the last one seen where the file ends.

    Containers without an index (MPEG-TS) may seek to between key frames, where nothing can be decoded rightly; then it
    is decoded from the beginning.
    """
    for start in (second, 0.0):
        container.seek(int(start * av.time_base))
        last = None
        for frame in _frames(container, stream, deadline, limits, damage):
            if last is None and start > 0 and not frame.key_frame:
                break
            last = frame
            if frame.time is None or frame.time >= second:
                return last
        if last is not None:
            break
    return last


def _shots(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    seconds: float,
    deadline: float,
    limits: Limits,
    damage: list[str],
) -> list[float]:
    """Times of the middle frames of at most `limits.frames` shots; none where there is no cut.

    A cut lies where successive thumbnails differ (the content detector of PySceneDetect, on RGB). Of many shots the
    longest is taken, then always the one that is least like those taken (farthest-first traversal, Gonzalez 1985).
    """
    expected = stream.frames or seconds * float(stream.average_rate or 0)
    stream.codec_context.skip_frame = "NONKEY" if expected > DENSE_FRAMES else "DEFAULT"
    shrink = VideoReformatter()
    times, thumbnails = [], []
    for frame in itertools.islice(_frames(container, stream, deadline, limits, damage), DENSE_FRAMES):
        small = shrink.reformat(frame, THUMBNAIL, THUMBNAIL, "rgb24", interpolation=Interpolation.AREA)
        times.append(frame.time)
        thumbnails.append(small.to_ndarray().reshape(-1))
    stream.codec_context.skip_frame = "DEFAULT"
    if not times or None in times:
        return []
    looks = np.stack(thumbnails).astype(np.int16)
    starts = [0]
    for cut in np.flatnonzero(np.abs(np.diff(looks, axis=0)).mean(1) >= CUT) + 1:
        if times[cut] - times[starts[-1]] >= SHORTEST_SHOT:
            starts.append(int(cut))
    lengths = np.diff([*starts, len(times)])
    if len(starts) == 1:
        return []
    middles = np.array(starts) + lengths // 2
    taken = [int(np.argmax(lengths))]
    nearest = np.full(len(starts), np.inf)
    while len(taken) < min(limits.frames, len(starts)):
        nearest = np.minimum(nearest, np.abs(looks[middles] - looks[middles[taken[-1]]]).mean(1))
        nearest[taken] = -1.0
        taken.append(int(np.argmax(nearest)))
    return sorted(times[middle] for middle in middles[taken])


def _check_size(frame: av.VideoFrame | av.VideoCodecContext, limits: Limits) -> None:
    if frame.width * frame.height > limits.max_pixels:
        raise MediaError("too_many_pixels", f"{frame.width} x {frame.height}")


def _pixels(frame: av.VideoFrame, limits: Limits) -> np.ndarray:
    width, height = limits.fit(frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    return np.ascontiguousarray(_upright(pixels, frame))


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Returns pixels as the frame's display matrix shows them: turned by quarters and mirrored.

    The matrix maps (x, y) to (a x + c y, b x + d y), y downwards (FFmpeg, libavutil/display.h).
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    straight = abs(int(a)) >= abs(int(b))
    across, down = (a, d) if straight else (c, b)
    turned = pixels if straight else pixels.swapaxes(0, 1)
    return turned[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
