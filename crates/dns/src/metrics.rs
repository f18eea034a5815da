//! What the server counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the start.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[$doc])* pub(crate) $name: AtomicU64,)* }

        impl Metrics {
            /// All of them, by name.
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Messages that came.
    queries,
    /// Answers about the cluster's names.
    answered,
    /// Questions about other names that were passed on.
    forwarded,
    /// Answers about other names from the cache.
    cache_hits,
    /// Questions about other names that no upstream answered.
    upstream_failures,
    /// Questions about other names that came when too many were under way.
    overloaded,
    /// Questions about other names from those who may not ask them.
    refused,
    /// Messages that are no questions.
    malformed,
    /// Answers over UDP that were cut short: the client asks again over TCP.
    truncated,
    /// TCP connections.
    connections,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
