//! The contract of [`Store`](registry::Store): one list of behaviours, run on the twin in memory, on Muster's
//! embedded hub and on a real etcd (Debian's 3.4), each as a test of its own: `memory::guards_hold`,
//! `hub::guards_hold`, `etcd::guards_hold`.
//!
//! A behaviour gets an empty hub for itself and may panic. Without etcd its tests fail: what the other two
//! promise is to be like it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

/// What a behaviour runs on.
mod backend;
/// A real etcd as a child process.
mod etcd_process;
/// Following a prefix.
mod follow;
/// Reading and writing keys.
mod keys;
/// Leases.
mod leases;
/// The machine's session.
mod session;
/// Hubs that do not answer, or no longer.
mod unreachable;
/// Watching keys.
mod watches;

use std::time::{Duration, Instant};

/// More than anything here takes, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until the answer is yes.
async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !check().await {
        assert!(start.elapsed() < DEADLINE, "not in {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What comes within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("nothing came within the deadline")
}

/// Makes a test of each behaviour on each backend that it is listed for.
macro_rules! contract {
    (
        everywhere { $($module:ident: $($behaviour:ident)*;)* }
        over_the_network { $($net_module:ident: $($net_behaviour:ident)*;)* }
    ) => {
        mod memory {
            $($(contract!(test $module $behaviour memory);)*)*
        }
        mod hub {
            $($(contract!(test $module $behaviour hub);)*)*
            $($(contract!(test $net_module $net_behaviour hub);)*)*
        }
        mod etcd {
            $($(contract!(test $module $behaviour etcd);)*)*
            $($(contract!(test $net_module $net_behaviour etcd);)*)*
        }
    };
    (test $module:ident $behaviour:ident $backend:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $behaviour() {
            crate::$module::$behaviour(&mut crate::backend::Backend::$backend().await).await;
        }
    };
}

contract! {
    everywhere {
        keys:
            an_empty_hub_is_at_revision_one
            a_put_is_read_back
            many_are_read_at_one_revision
            a_list_is_ordered_and_of_one_revision
            a_prefix_ends_where_it_says
            the_empty_prefix_is_everything
            guards_hold
            all_guards_must_hold
            a_failed_commit_changes_nothing
            a_commit_is_one_revision
            a_prefix_is_deleted
            a_delete_of_nothing_is_no_revision
            one_of_many_writers_wins
            what_is_refused
            a_list_may_be_large;
        leases:
            keys_live_under_a_lease
            a_revoked_lease_takes_its_keys_along
            a_lease_ends_by_itself_unless_renewed
            an_ended_lease_cannot_be_kept
            a_lease_is_needed_to_write_under_it
            a_key_can_change_its_lease;
        watches:
            a_watch_replays_the_past_in_order
            a_watch_goes_on_where_another_stopped
            a_watch_misses_nothing_while_others_write
            a_transaction_arrives_together
            a_watch_sees_deletes
            a_watch_sees_its_prefix_only
            a_watch_may_begin_in_the_future
            a_watch_may_begin_now
            a_replay_may_be_large;
        follow:
            a_follower_gets_everything_then_changes
            a_follower_sees_leases_end
            followers_agree_with_the_hub;
        session:
            a_session_keeps_its_lease
            a_second_session_goes_on_with_the_lease
            a_revoked_session_begins_anew
            a_session_that_ends_says_good_bye
            a_session_tells_until_when_its_lease_is_good
            a_lease_file_of_another_hub_is_no_obstacle;
    }
    over_the_network {
        watches:
            a_watch_of_a_compacted_revision_says_so;
        follow:
            a_follower_outlives_a_restart
            a_follower_outlives_a_crash;
        session:
            a_session_outlives_a_restart;
        unreachable:
            a_stop_ends_watches_and_renewals
            a_crash_ends_watches_and_renewals
            calls_fail_while_the_hub_is_away_and_work_again;
    }
}
