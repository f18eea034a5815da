//! Many seeds on all processors.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// The number in a variable, if it is set.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

/// Runs the seeds below `seeds` and adds up what came of them; ends with the first that fails.
pub fn all<T: Default + Send, E: Send>(
    seeds: u64,
    run: impl Fn(u64) -> Result<T, E> + Sync,
    add: impl Fn(&mut T, T) + Sync,
) -> Result<T, (u64, E)> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut sum = T::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return Ok(sum);
            }
            match run(seed) {
                Ok(one) => add(&mut sum, one),
                Err(error) => {
                    next.store(seeds, Ordering::Relaxed);
                    return Err((seed, error));
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ends = running.into_iter().map(|thread| thread.join().expect("a run does not panic"));
        ends.collect::<Vec<_>>().into_iter().try_fold(T::default(), |mut sum, end| {
            add(&mut sum, end?);
            Ok(sum)
        })
    })
}
