import builtins
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.server import Behaviour, Server, serve
from vidprep import youtube
from vidprep.datasets import get
from vidprep.engine import CannotWrite
from vidprep.errors import MissingPackage, UsageError
from vidprep.miniature.videos import write_numbered_video
from vidprep.probe import probe
from vidprep.types import Video
from vidprep.youtube import Reason, YouTubeReport, YouTubeVideo, classify, fetch_videos, read_ledger, youtube_videos

pytest.importorskip("yt_dlp")

# As yt-dlp 2023 to 2026 words them; YouTube's own sentences follow "ERROR: [youtube] ID: ".
MESSAGES: list[tuple[Reason, str]] = [
    ("gone", "Video unavailable"),
    ("gone", "Video unavailable. This video has been removed by the uploader"),
    ("gone", "This video has been removed for violating YouTube's Terms of Service"),
    (
        "gone",
        "Video unavailable. This video is no longer available because the YouTube account associated with this video "
        "has been terminated.",
    ),
    ("gone", "Video unavailable. This video is no longer available due to a copyright claim by X"),
    ("gone", "unable to download video data: HTTP Error 404: Not Found"),
    ("gone", "Unable to download webpage: HTTP Error 410: Gone (caused by <HTTPError 410: Gone>)"),
    ("private", "Private video. Sign in if you've been granted access to this video. Use --cookies-from-browser"),
    ("private", "Video unavailable. This video is private"),
    ("blocked", "Video unavailable. The uploader has not made this video available in your country"),
    ("blocked", "Video unavailable. This video contains content from SME, who has blocked it on copyright grounds"),
    ("blocked", "Sign in to confirm your age. This video may be inappropriate for some users. Use --cookies"),
    ("blocked", "This video is available to this channel's members on level: X. Join this channel to get access"),
    ("blocked", "unable to download video data: HTTP Error 403: Forbidden"),
    ("rate_limited", "Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser or --cookies"),
    ("rate_limited", "Unable to download API page: HTTP Error 429: Too Many Requests (caused by <HTTPError 429>)"),
    (
        "rate_limited",
        "Video unavailable. This content isn't available, try again later. The current session has been rate-limited "
        "by YouTube for up to an hour.",
    ),
    ("network", "Unable to download API page: HTTP Error 503: Service Unavailable"),
    ("network", "Unable to download webpage: <urlopen error [Errno -3] Temporary failure in name resolution>"),
    ("network", "Unable to download webpage: The read operation timed out"),
    ("network", "[Errno 104] Connection reset by peer"),
    ("other", "Requested format is not available. Use --list-formats for a list of available formats"),
]


@pytest.mark.parametrize(("reason", "message"), MESSAGES)
def test_messages_are_told_apart(reason: Reason, message: str) -> None:
    assert classify(f"ERROR: [youtube] dQw4w9WgXcQ: {message}") == reason


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_numbered_video(path, num_frames=60)
    return path.read_bytes()


def fetch(
    server: Server, folder: Path, ids: Sequence[str], *, retry: Sequence[Reason] = (), **segment: float
) -> YouTubeReport:
    return fetch_videos(
        [YouTubeVideo(youtube_id=name, name=f"videos/v_{name}", **segment) for name in ids],
        folder,
        ledger=folder / "ledger.jsonl",
        retry=retry,
        url=f"{server.url}/{{youtube_id}}.mp4",
        seconds_between=0.0,
    )


def behave_by_name(path: str, num_gets: int) -> Behaviour:
    """The first letters of a path are the status to answer with."""
    status = path[1:4]
    if status.isdigit():
        return Behaviour(status=int(status))
    return Behaviour(headers={"Content-Type": "video/mp4"})


def test_videos_come_and_failures_are_remembered_with_their_reason(tmp_path: Path, clip: bytes) -> None:
    with serve({"/-id_begins1.mp4": clip, "/b.mp4": clip}, behave_by_name) as server:
        ids = ["-id_begins1", "404", "410", "403", "b"]
        report = fetch(server, tmp_path, ids)

        assert [path.name for path in report.fetched] == ["v_-id_begins1.mp4", "v_b.mp4"]
        assert (tmp_path / "videos" / "v_b.mp4").read_bytes() == clip
        assert {attempt.youtube_id: attempt.reason for attempt in report.failed} == {
            "404": "gone",
            "410": "gone",
            "403": "blocked",
        }
        assert "2 videos fetched, 0 were there\n3 failed now: gone 2, blocked 1" in report.to_text()
        num_requests = len(server.requests)

        again = fetch(server, tmp_path, ids)

        # Nothing is asked for: what is there, and what stays away.
        assert len(server.requests) == num_requests
        assert (again.num_there, len(again.passed_over), again.failed) == (2, 3, ())
        assert not again.is_complete

        retried = fetch(server, tmp_path, ids, retry=["gone"])
        assert [(attempt.youtube_id, attempt.num_attempts) for attempt in retried.failed] == [("404", 2), ("410", 2)]

    ledger = read_ledger(tmp_path / "ledger.jsonl")
    assert {attempt.youtube_id: attempt.num_attempts for attempt in ledger.values()} == {"404": 2, "410": 2, "403": 1}
    assert "HTTP Error 404" in ledger["404"].message
    assert ledger["404"].time.endswith("Z")


def test_what_may_pass_is_tried_again_by_the_next_run_but_not_for_ever(tmp_path: Path, clip: bytes) -> None:
    with serve({"/a.mp4": clip}, lambda path, num_gets: Behaviour(status=429)) as server:
        for attempt in range(youtube.MAX_ATTEMPTS):
            assert [one.num_attempts for one in fetch(server, tmp_path, ["a"]).failed] == [attempt + 1]
        assert [one.reason for one in fetch(server, tmp_path, ["a"]).passed_over] == ["rate_limited"]
        server.behave = behave_by_name
        assert len(fetch(server, tmp_path, ["a"], retry=["rate_limited"]).fetched) == 1


def test_a_run_ends_when_youtube_limits_the_rate(tmp_path: Path) -> None:
    with serve({}, lambda path, num_gets: Behaviour(status=429)) as server:
        report = fetch(server, tmp_path, [f"id{index}" for index in range(9)])

    assert len(report.failed) == youtube.MAX_RATE_LIMITED
    assert report.num_not_tried == 6
    assert "6 not tried: YouTube limits the rate" in report.to_text()


def test_a_dropped_connection_goes_on_where_it_broke(tmp_path: Path, clip: bytes) -> None:
    def behave(path: str, num_gets: int) -> Behaviour:
        # The first request only looks at what it is.
        is_cut = num_gets == 1
        return Behaviour(headers={"Content-Type": "video/mp4"}, drop_after=len(clip) // 2 if is_cut else None)

    with serve({"/a.mp4": clip}, behave) as server:
        report = fetch(server, tmp_path, ["a"])

    assert [path.read_bytes() for path in report.fetched] == [clip]
    assert not list((tmp_path / ".youtube").iterdir())


def test_what_yt_dlp_itself_stumbles_over_is_remembered_and_a_full_disk_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(error: Exception) -> Any:
        def download(self: object, urls: object) -> None:
            raise error

        return download

    with serve({}) as server:
        monkeypatch.setattr("yt_dlp.YoutubeDL.download", stumble(KeyError("formats")))
        assert [(one.reason, one.message) for one in fetch(server, tmp_path, ["a"]).failed] == [("other", "'formats'")]
        monkeypatch.setattr("yt_dlp.YoutubeDL.download", stumble(OSError(28, "No space left on device")))
        with pytest.raises(CannotWrite, match="No space left on device; free some"):
            fetch(server, tmp_path, ["b"])


def test_a_segment_is_cut_to_its_seconds(tmp_path: Path, clip: bytes) -> None:
    with serve({"/a.mp4": clip}, behave_by_name) as server:
        [path] = fetch(server, tmp_path, ["a"], start_seconds=0.5, end_seconds=1.5).fetched

    whole = tmp_path / "whole.mp4"
    whole.write_bytes(clip)
    rate = probe(whole).num_frames / probe(whole).duration_seconds
    assert abs(probe(path).num_frames - rate) <= 1


def test_a_split_gives_ids_and_segments() -> None:
    clips = [Video(video_id="-0a_b-c_d01_000012_000022", labels=(0,))]
    assert youtube_videos(get("kinetics400"), clips, split="val") == [
        YouTubeVideo(
            youtube_id="-0a_b-c_d01", name="val/-0a_b-c_d01_000012_000022", start_seconds=12.0, end_seconds=22.0
        )
    ]
    whole = [Video(video_id="-0a_b-c_d01", labels=(0,))]
    assert youtube_videos(get("activitynet"), whole, split="val") == [
        YouTubeVideo(youtube_id="-0a_b-c_d01", name="youtube/v_-0a_b-c_d01")
    ]
    with pytest.raises(UsageError, match="'78687' is no YouTube id of 11 characters"):
        youtube_videos(get("activitynet"), [Video(video_id="78687")], split="val")


def test_a_torn_last_line_of_the_ledger_is_passed_over_and_mended(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    facts = {"youtube_id": "a", "reason": "gone", "message": "m", "time": "t", "num_attempts": 1}
    ledger.write_text(json.dumps(facts) + '\n{"youtube_id": "b", "rea')
    assert list(read_ledger(ledger)) == ["a"]

    with serve({}, behave_by_name) as server:
        fetch(server, tmp_path, ["404"])

    assert list(read_ledger(ledger)) == ["a", "404"]


def test_a_broken_line_of_the_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("?\n{}\n")
    with pytest.raises(UsageError, match=r"ledger.jsonl, line 1: no attempt"):
        read_ledger(tmp_path / "ledger.jsonl")


def test_an_unknown_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no reason lost; known: gone, private, blocked, rate_limited, network, other"):
        fetch_videos([], tmp_path, ledger=tmp_path / "l", retry=["lost"])  # type: ignore[list-item]


def test_without_yt_dlp_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "yt_dlp":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackage, match=r"needs the `youtube` extra: pip install 'vidprep\[youtube\]'"):
        fetch_videos([], tmp_path, ledger=tmp_path / "l")
