//! What every store has to do, as named behaviours that run on each of them.
//!
//! A store joins with one line in `stores`: `store_contract!` for etcd's semantics, and
//! `new_store_contract!` for what a migration needs besides.

#![allow(
    unreachable_pub,
    reason = "behaviours are for every store in this binary"
)]

pub(crate) mod dsl;
mod stores;
mod twin;

pub mod claims;
pub mod compact;
pub mod copy_up;
pub mod delete;
pub mod fence;
pub mod lease;
pub mod line;
pub mod page;
pub mod put;
pub mod range;
pub mod records;
pub mod replay;
pub mod txn;
pub mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use segue::store::{NewStore, Store};

/// Makes stores of one kind, and keeps alive whatever stands behind them.
#[async_trait(?Send)]
pub trait Fixture {
    /// A store that is empty. Its revision may be any.
    async fn store(&self) -> Arc<dyn Store>;

    /// Whether the revisions that clients see have no gaps: each change is one more than the
    /// change before it, whatever else the store has to note down.
    fn gapless(&self) -> bool {
        true
    }
}

/// Makes stores that a migration can go to.
#[async_trait(?Send)]
pub trait NewFixture: Fixture {
    /// A store that is empty and has no line.
    async fn new_store(&self) -> Arc<dyn NewStore>;

    /// Whether leases end whatever the records say, as they do where a server sees to it.
    fn ends_leases_by_itself(&self) -> bool {
        false
    }
}

macro_rules! behaviours {
    ($fixture:expr; $($module:ident { $($name:ident)* })*) => {
        $(mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let fixture = $fixture.await;
                    crate::contract::$module::$name(&fixture).await;
                }
            )*
        })*
    };
}
pub(crate) use behaviours;

/// Runs etcd's semantics on the store of a fixture, which is given as the future that makes it.
macro_rules! store_contract {
    ($name:ident, $fixture:expr) => {
        mod $name {
            crate::contract::behaviours! { $fixture;
                range {
                    a_missing_key_is_an_empty_answer_at_the_current_revision
                    spans_hold_their_start_and_not_their_end
                    keys_are_any_bytes_in_byte_order
                    a_limit_cuts_the_answer_and_says_so
                    answers_are_sorted_by_any_target_in_both_directions
                    revision_filters_choose_pairs_and_leave_the_count_alone
                    values_or_pairs_are_left_out_on_request
                    the_past_can_be_read_and_the_future_cannot
                    reserved_keys_are_hidden_from_ranges_that_cross_them
                }
                put {
                    each_change_counts_the_version_and_takes_a_revision
                    the_pair_before_is_answered_on_request
                    value_or_lease_can_be_kept
                    keeping_what_does_not_exist_fails_and_does_nothing
                    a_lease_that_does_not_exist_fails_and_does_nothing
                    values_may_be_empty_or_large
                }
                delete {
                    a_deleted_key_is_gone_and_begins_a_new_life
                    a_range_is_deleted_in_one_revision
                    deleting_nothing_takes_no_revision
                    reserved_keys_are_spared_by_ranges_that_cross_them
                }
                txn {
                    all_changes_share_one_revision
                    conditions_choose_the_branch
                    every_property_compares_as_in_etcd
                    a_condition_on_a_range_holds_for_every_key_in_it
                    operations_see_those_before_them
                    a_failing_operation_undoes_the_whole_transaction
                    nested_transactions_run_within_the_outer_one
                    nested_conditions_are_decided_before_any_operation
                    one_that_changes_nothing_takes_no_revision
                    the_past_can_be_read_within_one
                    ranges_within_one_answer_like_those_that_stand_alone
                    a_hundred_and_twenty_eight_operations_are_one_transaction
                    concurrent_increments_are_serialized
                }
                compact {
                    the_past_below_is_gone_and_the_rest_stays
                    only_the_range_between_compacted_and_current_can_be_compacted
                    deleted_keys_stay_deleted
                }
                watch {
                    from_now_delivers_every_later_change_of_its_keys
                    the_changes_of_one_revision_come_together_and_in_order
                    what_one_transaction_writes_and_removes_is_told_of_later_too
                    what_one_transaction_removes_and_writes_is_told_of_later_too
                    the_past_is_delivered_before_the_present
                    a_start_in_the_future_leaves_out_what_comes_before
                    the_pair_before_comes_on_request
                    filters_leave_out_puts_or_deletes
                    a_start_below_the_compacted_revision_ends_the_watch
                    compacting_does_not_disturb_a_watch_that_is_caught_up
                    progress_comes_behind_everything_before_it
                    a_slow_watcher_misses_nothing
                    many_watchers_see_the_same_line
                    opening_under_load_leaves_no_gap_and_repeats_nothing
                    reserved_keys_are_hidden_from_watches_that_cross_them
                }
                lease {
                    granted_leases_have_their_number_and_time
                    a_number_that_is_taken_is_refused
                    a_time_to_live_that_is_too_long_is_refused
                    an_unknown_lease_is_not_found
                    keys_are_attached_and_detached_by_puts
                    revoking_deletes_all_keys_in_one_revision
                    expiry_deletes_all_keys_in_one_revision
                    keeping_alive_holds_expiry_off
                    a_lease_without_keys_ends_without_a_revision
                }
            }
        }
    };
}
pub(crate) use store_contract;

/// Runs what a migration needs on the new store of a fixture.
macro_rules! new_store_contract {
    ($name:ident, $fixture:expr) => {
        mod $name {
            crate::contract::behaviours! { $fixture;
                claims {
                    written_keys_are_claimed
                    deleted_keys_leave_whiteouts
                    revoking_and_expiry_leave_whiteouts
                    a_whiteout_is_lifted_by_a_put_and_no_key_to_clients
                    claims_come_with_as_many_values_as_asked_for
                    claims_come_in_pages_of_which_none_is_too_large
                    reserved_keys_are_hidden_from_claims_that_cross_them
                    dropping_claims_removes_whiteouts_and_keeps_keys
                    keys_that_were_there_before_win
                    what_an_earlier_migration_has_copied_is_the_stores_own_in_the_next
                    a_line_without_claims_leaves_no_whiteouts
                }
                copy_up {
                    copies_keep_all_their_numbers
                    it_is_no_change
                    only_unclaimed_keys_are_copied
                    a_claim_is_found_among_many_keys
                    repeating_it_does_nothing
                    the_first_change_knows_what_was_before
                    a_deleted_copy_leaves_a_whiteout
                    the_past_shows_copies_as_they_were
                    its_record_is_written_with_it_or_nothing_is
                    its_record_is_never_ahead_of_the_data
                    copies_are_attached_to_their_leases
                    a_copy_whose_lease_does_not_exist_is_refused
                    a_transaction_runs_over_its_copies
                    transactions_at_the_same_time_each_have_their_copies
                    copies_stay_if_the_transaction_fails
                    what_cannot_be_copied_is_replaced_in_one_piece_or_left_alone
                    racing_copies_of_a_key_agree
                }
                line {
                    revisions_go_on_behind_the_base
                    every_operation_of_another_epoch_fails_and_does_nothing
                    a_line_that_is_gone_fails_every_epoch
                    whoever_believes_in_no_line_is_refused_under_one
                    several_reads_are_one_snapshot
                    a_snapshot_of_the_past_shows_that_moment
                    identities_tell_stores_apart
                }
                fence {
                    nothing_is_done_behind_a_fence
                    leases_that_are_held_do_not_end
                }
                records {
                    records_are_compared_and_put
                    records_are_listed_by_prefix_in_order
                    records_are_no_keys
                    a_key_that_is_forgotten_with_a_record_leaves_no_trace
                    changes_of_a_key_are_told
                    a_store_is_empty_until_it_holds_something
                    a_cleared_store_is_empty_and_refuses_who_is_behind
                }
            }
        }
    };
}
pub(crate) use new_store_contract;

/// Runs what an old store needs: pages that fit, and what lets a migration be rolled back.
macro_rules! old_store_contract {
    ($name:ident, $fixture:expr) => {
        mod $name {
            crate::contract::behaviours! { $fixture;
                page {
                    a_page_ends_with_the_pair_with_which_its_bytes_are_reached
                }
                replay {
                    replayed_keys_have_the_numbers_they_came_with
                    a_replay_of_a_stale_position_does_nothing
                    a_store_goes_on_from_the_goal
                    a_compare_and_swap_holds_across_a_resumption
                    history_of_before_stays_readable_while_changes_are_replayed
                    the_past_shows_leases_that_a_replay_has_taken
                    what_is_replayed_makes_no_event
                    a_second_fence_locks_everybody_out_and_keeps_the_numbers
                    two_resumptions_in_a_row
                    leases_end_only_while_the_store_serves
                    large_values_and_keys_of_any_bytes_are_replayed
                }
            }
        }
    };
}
pub(crate) use old_store_contract;
