//! Unit files: parse, render, hash, `[X-Fleet]` requirements, and errors that say where.
//!
//! Pure: text and a name come in, data or a [`Problem`] comes out. The syntax is systemd.syntax(7)'s, the
//! canonical form and its hash are fleet's, and `[X-Fleet]` means what it meant to fleet. Where fleet silently
//! passed over rubbish, [`check()`] refuses it with its place and what to write instead.
#![warn(missing_docs)]

/// Everything that `submit` must refuse.
pub mod check;
/// The line that makes systemd's stops wait for a drain.
pub mod drain;
/// A unit file: its options in order, its canonical form and its hash.
pub mod file;
/// What no text may bring about.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
/// Go's `path.Match` patterns, which `Conflicts=` and `Replaces=` hold.
pub mod glob;
mod kind;
mod nearest;
mod parse;
/// What is wrong with a unit file, where, and what to do about it.
pub mod problem;
/// What `[X-Fleet]` demands of the machine that a unit runs on.
pub mod requirements;
/// What a unit may use at most.
pub mod resources;
/// What a unit wants registered.
pub mod service;
mod words;

pub use check::{Checked, check};
pub use file::{UnitFile, UnitOption};
pub use glob::{Glob, GlobError};
pub use problem::Problem;
pub use requirements::{OnPartition, Requirements};
pub use resources::{Memory, Resources};
pub use service::{Check, Registration};

/// The longest unit file, in bytes: systemd's own limit for one line, and well under etcd's 1.5 MiB for one
/// request, which has to hold the record around it too.
pub const MAX_TEXT: usize = 1024 * 1024;
