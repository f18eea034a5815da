//! The simulator: scripts with their transcripts, thousands of random runs, and proofs that the rules can fail.

mod mutations;
mod random;
mod scripts;
