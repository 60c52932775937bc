"""What a leader may send a follower, and what late answers must not undo."""

from __future__ import annotations

from raftmft.raft.progress import WINDOW_BYTES, WINDOW_MESSAGES, Progress


def test_an_acknowledgement_never_sends_again_what_is_under_way() -> None:
    progress = Progress(2)
    for last in (10, 20, 30):
        progress.sent(last, 100)
    progress.acknowledged(10)
    assert (progress.match, progress.next) == (10, 31)
    progress.acknowledged(5)
    assert (progress.match, progress.next) == (10, 31), "late ones change nothing"


def test_the_window_closes_and_opens() -> None:
    progress = Progress(2)
    progress.sent(2, WINDOW_BYTES)
    assert not progress.may_send()
    progress.acknowledged(2)
    for last in range(3, 3 + WINDOW_MESSAGES):
        assert progress.may_send()
        progress.sent(last, 1)
    assert not progress.may_send()


def test_a_refusal_probes_and_its_echoes_do_not_reset_again() -> None:
    progress = Progress(50)
    progress.sent(60, 1)
    assert progress.refused(49, 10) and progress.next == 10 and progress.may_send()
    progress.sent(20, 1)
    assert not progress.may_send(), "one probe at a time"
    assert not progress.refused(60, 10), "the answer to what was sent before the probe"
    assert progress.next == 10
    progress.acknowledged(20)
    assert progress.next == 21 and progress.may_send() and not progress.probing


def test_what_is_acknowledged_is_never_refused() -> None:
    progress = Progress(2)
    progress.sent(30, 1)
    progress.acknowledged(30)
    assert not progress.refused(30, 5) and progress.next == 31


def test_a_lost_link_goes_on_from_what_was_acknowledged_at_the_next_heartbeat() -> None:
    progress = Progress(2)
    progress.sent(30, 1)
    progress.acknowledged(10)
    progress.lost()
    assert progress.next == 11 and not progress.may_send()
    progress.heartbeat()
    assert progress.may_send()
