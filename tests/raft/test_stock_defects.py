"""Every defect of pysyncobj 0.3.17 that was found before the first line: it is there still, and where it is shown gone.

The left column is what tests/raft/stock_defects.py shows on the stock library, the right one the tests of what stands
in its place (module and name; a test below checks that they exist, so that this table cannot rot).

Not in the table are those that were read and not run: that the stock admin verbs are open to anybody, that compaction
rewrites the journal in place, that the dump's member list beats the constructor's, that adding a method at an old
version renumbers all. Nothing of that code is ever reached here: no sockets, no serializer, no code versions of
pysyncobj's; the journal's compaction and the configuration are raftmft's own. The deadline that is checked before the
poll is the business of the pause guard ("a paused member").
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.test_engine import stock

COVERED = {
    # pickle
    "a frame from the network is unpickled": ["raft.test_messages:test_a_pickle_bomb_does_nothing",
                                              "raft.test_engine:test_the_pin_and_the_patches_hold"],
    "a command is unpickled": ["raft.test_messages:test_a_pickle_bomb_does_nothing",
                               "raft.test_engine:test_an_entry_that_is_no_command_is_rejected_alike_everywhere"],
    # the journal
    "the journal is never fsynced": ["raft.test_engine:test_votes_and_acknowledgements_leave_after_the_disk_has_them",
                                     "raft.test_journal:test_what_was_settled_survives_any_power_cut"],
    "a flipped bit loads silently": [
        "raft.test_journal:test_a_flipped_bit_before_the_last_batch_is_refused_and_nothing_changed"],
    "a zeroed tail is an error or a wrong log": ["raft.test_journal:test_a_zeroed_tail_is_cut_off"],
    "an empty journal is a ValueError": ["raft.test_journal:test_an_empty_or_foreign_file_is_refused"],
    "a damaged term and vote are forgotten": [
        "raft.test_journal:test_a_flipped_bit_before_the_last_batch_is_refused_and_nothing_changed",
        "raft.test_engine:test_a_vote_is_kept_over_a_restart"],
    "a journal cannot grow over 4 GiB": ["raft.test_journal:test_segments_behave_as_one_log"],
    # snapshots
    "a dump beside a longer journal empties it": [
        "raft.test_compaction:test_a_member_whose_state_is_lost_begins_with_its_snapshot"],
    "a damaged dump is swallowed, and the node leads": [
        "raft.test_snapshots:test_a_flipped_bit_anywhere_is_found",
        "raft.test_compaction:test_of_two_snapshots_the_older_one_stands_in_for_a_damaged_one"],
    # appending and acknowledging
    "a duplicate truncates": ["raft.test_engine:test_late_and_repeated_appends_change_nothing"],
    "a stale heartbeat truncates": ["raft.test_engine:test_late_and_repeated_appends_change_nothing"],
    "a stale heartbeat loses what it acknowledged": [
        "raft.test_engine:test_late_and_repeated_appends_change_nothing",
        "raft.test_engine:test_a_committed_entry_is_never_truncated"],
    "an acknowledgement beyond the log counts": [
        "raft.test_engine:test_acknowledgements_count_in_their_own_term_and_within_the_log"],
    "acknowledgements carry no term": [
        "raft.test_engine:test_acknowledgements_count_in_their_own_term_and_within_the_log",
        "raft.test_engine:test_a_higher_term_in_any_message_deposes_a_leader"],
    # elections
    "one voter's repeated vote counts twice": ["raft.test_engine:test_a_repeated_vote_counts_once"],
    "a paused member disturbs a live leader": [
        "raft.test_engine:test_a_member_that_was_stopped_does_not_disturb_a_live_leader",
        "raft.test_quiet:test_a_member_that_was_stopped_wakes_unnoticed"],
    "a member that was cut off raises terms": [
        "raft.test_elections:test_who_hears_no_leader_asks_and_raises_no_term",
        "raft.test_quiet:test_a_member_that_was_cut_off_for_minutes_comes_back_unnoticed"],
    "a member that was cut off deposes the leader": [
        "raft.test_elections:test_a_leader_with_a_majority_says_no_and_stays",
        "raft.test_quiet:test_a_member_that_comes_and_goes_disturbs_nobody"],
    "an isolated leader leads on for half a minute": [
        "raft.test_quiet:test_an_isolated_leader_steps_down_within_a_second_and_requests_end_in_time"],
    # commands
    "an exception in apply wedges": ["raft.test_engine:test_an_exception_in_apply_stops_instead_of_wedging",
                                     "core.test_state_machine:test_a_failing_handler_is_rolled_back_and_rejected_alike_"
                                     "everywhere"],
    "a command that is sent again is applied again": [
        "raft.test_engine:test_forwarded_commands_are_placed_once_and_answered_once",
        "core.test_state_machine:test_a_retried_command_is_applied_once_and_gives_the_same_outcome_byte_for_byte"],
    "a command near a multiple of the batch size stalls": ["raft.test_engine:test_commands_of_any_size_get_through"],
    "a callback never fires": [
        "raft.test_quiet:test_an_isolated_leader_steps_down_within_a_second_and_requests_end_in_time",
        "raft.test_engine:test_what_a_forward_ends_as"],
    # members and versions
    "two uncommitted membership changes are taken": ["raft.test_configuration:test_one_change_at_a_time"],
    "an unsupported version is skipped and all behind it is counted wrong": [
        "raft.test_engine:test_an_entry_that_is_no_command_is_rejected_alike_everywhere"],
}

__all__ = ["stock"]


@pytest.mark.parametrize("defect", COVERED)
def test_the_stock_library_has_it_still(defect: str, stock: dict[str, bool]) -> None:
    assert stock[defect], "fixed upstream? Then what replaces it here may go"


def test_nothing_that_is_shown_is_left_uncovered(stock: dict[str, bool]) -> None:
    assert set(stock) == set(COVERED)


@pytest.mark.parametrize("test", sorted({test for tests in COVERED.values() for test in tests}))
def test_what_stands_in_its_place_is_tested(test: str) -> None:
    module, name = test.split(":")
    path = Path(__file__).parents[1] / f"{module.replace('.', '/')}.py"
    assert f"def {name}(" in path.read_text()
