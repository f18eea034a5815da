//! How far a long operation is, told on stderr.
//!
//! Invariant: a terminal sees one line that changes, anything else a line now and then.

use hub::migrate::Step;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often progress is told where it cannot be overwritten.
const TELL: Duration = Duration::from_secs(2);

/// One line on stderr that changes; where stderr is no terminal, a line now and then.
pub struct Progress {
    terminal: bool,
    last: Option<Instant>,
    /// A line that is not ended.
    open: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), last: None, open: false }
    }

    pub fn step(&mut self, step: &Step) {
        let (important, line) = describe(step);
        self.tell(important, line);
    }

    pub fn tell(&mut self, important: bool, line: String) {
        let due = self.last.is_none_or(|last| last.elapsed() >= TELL);
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            let _ = io::stderr().flush(); // progress is not worth an error
            self.open = true;
            if important {
                self.end();
            }
        } else if due || important {
            eprintln!("{line}");
        } else {
            return;
        }
        self.last = Some(Instant::now());
    }

    pub fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}

/// What to say of a step, and whether it must not be passed over.
fn describe(step: &Step) -> (bool, String) {
    match step {
        Step::Copying { revision, keys, of } => {
            (*keys == 0 || keys == of, format!("copying revision {revision}: {keys} of {of} keys"))
        }
        Step::Following { applied, current } => {
            (applied == current, format!("following: revision {applied} of {current}"))
        }
        Step::Comparing { keys } => (*keys == 0, format!("comparing: {keys} keys are equal")),
        Step::Again { why } => (true, format!("beginning anew: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvcc::Revision;

    #[test]
    fn what_is_told() {
        let step = Step::Copying { revision: Revision(7), keys: 3, of: 9 };
        assert_eq!(describe(&step), (false, "copying revision 7: 3 of 9 keys".to_owned()));
        let step = Step::Following { applied: Revision(7), current: Revision(7) };
        assert_eq!(describe(&step), (true, "following: revision 7 of 7".to_owned()));
    }
}
