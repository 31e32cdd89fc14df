"""Images of a video, evenly spread over its length and kept beside it."""

from pathlib import Path

from dopd_vlm.jsonl import replacing

QUALITY = 90
"""Of the JPEG files."""


def video_frames(video: Path, count: int) -> list[Path]:
    """`count` images in `<video's folder>/frames_<count>/<name>/`, made once.

    They are the frames nearest to the middles of `count` equal parts of the video.

    Raises:
        ValueError: no such video, one without frames, or the package `av` is missing.
    """
    folder = video.parent / f"frames_{count}" / video.stem
    wanted = [folder / f"{index:03d}.jpg" for index in range(count)]
    if all(path.is_file() for path in wanted):
        return wanted
    if not video.is_file():
        raise ValueError(f"no video {video}; unpack the benchmark's videos beside the rows")
    _write(video, wanted)
    return wanted


def _write(video: Path, paths: list[Path]) -> None:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ValueError("videos need the package av: pip install 'dopd-vlm[viz]'") from error
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(video)) as container:
        # Containers lie about their frame count: it is taken by decoding, which reads the file once.
        total = sum(1 for _ in container.decode(video=0))
    if total == 0:
        raise ValueError(f"video {video} has no frames")
    places: dict[int, list[Path]] = {}
    for index, path in enumerate(paths):
        places.setdefault(int((index + 0.5) * total / len(paths)), []).append(path)
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            for path in places.get(number, ()):
                with replacing(path) as partial:  # several processes may write it
                    frame.to_image().save(partial, format="JPEG", quality=QUALITY)
