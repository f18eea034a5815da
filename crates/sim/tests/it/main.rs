//! The simulator: scripts with their transcripts, thousands of random runs, and proofs that the rules can fail.
#![expect(clippy::disallowed_methods, reason = "tests read their scripts and how many seeds to run")]

mod mutations;
mod random;
mod scripts;
mod seeds;
mod traffic;
