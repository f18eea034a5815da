//! What happened, for people: a line each, with its time.
//!
//! Invariant: tracing changes nothing in a run; texts are made only when somebody wants them.

use crate::time::Time;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Nothing.
    #[default]
    Off,
    /// What an operator would want to know: machines, leaders, decisions, states of units.
    Story,
    /// Every call and every event too.
    Full,
}

/// Lines, oldest first.
#[derive(Debug, Default)]
pub struct Trace {
    level: Level,
    lines: Vec<String>,
}

impl Trace {
    /// An empty trace.
    pub fn new(level: Level) -> Self {
        Self { level, lines: Vec::new() }
    }

    /// A line of the story.
    pub fn story(&mut self, now: Time, text: impl FnOnce() -> String) {
        self.add(Level::Story, now, text);
    }

    /// A line that only the full trace has.
    pub fn detail(&mut self, now: Time, text: impl FnOnce() -> String) {
        self.add(Level::Full, now, text);
    }

    fn add(&mut self, level: Level, now: Time, text: impl FnOnce() -> String) {
        if self.level >= level {
            self.lines.push(format!("{:>10}  {}", now.to_string(), text()));
        }
    }

    /// Takes the lines out.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}
