//! Scripts: what is done to a cluster, in an operator's words, and the transcript of what comes of it.
//!
//! Besides the words of [`Step`] there are `cluster N` (first), `advance 8s`, `settle`, `show TABLE` and `#` for
//! remarks; `start web@{1..3}` and several units behind one word are several steps. Invariant: a script always gives
//! the same transcript.

use crate::{
    daemon::Mutation,
    rules::Violation,
    step::{Step, StepError},
    trace::Level,
    world::{Settings, World},
};
use std::{fmt::Write as _, time::Duration};

/// The longest that `settle` waits.
const PATIENCE: Duration = Duration::from_secs(300);

/// A line that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ScriptError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong, and the remedy.
    pub problem: String,
}

/// Plays a script: the transcript, each command with what came of it.
pub fn play(script: &str, mutation: Option<Mutation>) -> Result<String, ScriptError> {
    let mut world: Option<World> = None;
    let mut out = String::new();
    for (line, text) in (1..).zip(script.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            let _ = writeln!(out, "{text}");
            continue;
        }
        let _ = writeln!(out, "> {text}");
        let wrong = |problem: String| ScriptError { line, problem };
        let Some(world) = &mut world else {
            world = Some(begin(text, mutation).map_err(wrong)?);
            continue;
        };
        let outcome = command(world, text, &mut out).map_err(wrong)?;
        for told in world.trace.take() {
            let _ = writeln!(out, "  {told}");
        }
        match outcome {
            Ok(lines) => lines.iter().for_each(|told| {
                let _ = writeln!(out, "  {told}");
            }),
            Err(violation) => {
                let _ = writeln!(out, "  BROKEN: {violation}");
                return Ok(out);
            }
        }
    }
    Ok(out)
}

/// `cluster 3`, `cluster 3 seed 7` or `cluster 3 seed 7 noise`.
fn begin(text: &str, mutation: Option<Mutation>) -> Result<World, String> {
    let remedy = || format!("`{text}`: a script begins with `cluster` and a number of machines");
    let words: Vec<_> = text.split_whitespace().collect();
    let number = |word: &str| word.parse::<u64>().map_err(|_| remedy());
    let (machines, seed, noise) = match words[..] {
        ["cluster", machines] => (number(machines)?, 0, false),
        ["cluster", machines, "seed", seed] => (number(machines)?, number(seed)?, false),
        ["cluster", machines, "seed", seed, "noise"] => (number(machines)?, number(seed)?, true),
        _ => return Err(remedy()),
    };
    let machines = usize::try_from(machines).unwrap_or(usize::MAX).min(1000);
    Ok(World::new(Settings { machines, seed, noise, mutation, level: Level::Story }))
}

type Told = Result<Vec<String>, Violation>;

/// Carries out a command; what is to be told besides the trace.
fn command(world: &mut World, text: &str, _out: &mut String) -> Result<Told, String> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match word {
        "advance" => {
            let span = span(rest).ok_or_else(|| format!("`{rest}` is no time: write `8s` or `250ms`"))?;
            Ok(world.run_until(world.now() + span).map(|()| Vec::new()))
        }
        "settle" => {
            let before = world.now();
            Ok(world.settle(PATIENCE).map(|settled| match settled {
                Ok(()) => vec![format!("settled after {:.1} s", (world.now() - before).as_secs_f64())],
                Err(missing) => {
                    let mut lines = vec!["not settled:".to_owned()];
                    lines.extend(missing.into_iter().map(|missing| format!("  {missing}")));
                    lines
                }
            }))
        }
        "show" => match world.show(rest) {
            Some(lines) => Ok(Ok(lines)),
            None => Err(format!("no table `{rest}`: there are `machines`, `units` and `running`")),
        },
        _ => {
            for line in each(text) {
                let step: Step = line.parse().map_err(|error: StepError| error.to_string())?;
                world.plan(world.now(), step);
            }
            Ok(world.run_until(world.now()).map(|()| Vec::new()))
        }
    }
}

/// One line for each unit or machine behind the word, where that makes sense; `{1..3}` as in a shell.
fn each(text: &str) -> Vec<String> {
    let mut words = text.split_whitespace();
    let command = words.next().unwrap_or_default();
    let several =
        ["start", "stop", "unload", "destroy", "kill", "boot", "shutdown", "cut", "heal", "freeze", "thaw"];
    let names: Vec<_> = words.flat_map(braces).collect();
    let direction = names.iter().any(|name| name.ends_with("-hub"));
    if !several.contains(&command) || names.len() < 2 || direction {
        let names = if several.contains(&command) { names.join(" ") } else { rest(text) };
        return vec![format!("{command} {names}").trim().to_owned()];
    }
    names.into_iter().map(|name| format!("{command} {name}")).collect()
}

fn rest(text: &str) -> String {
    text.split_once(' ').map_or_else(String::new, |(_, rest)| rest.to_owned())
}

fn braces(word: &str) -> Vec<String> {
    let parts = || {
        let (before, rest) = word.split_once('{')?;
        let (range, after) = rest.split_once('}')?;
        let (first, last) = range.split_once("..")?;
        let range = first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?;
        Some(range.map(|number| format!("{before}{number}{after}")).collect())
    };
    parts().unwrap_or_else(|| vec![word.to_owned()])
}

/// `8s` or `250ms`.
fn span(text: &str) -> Option<Duration> {
    if let Some(ms) = text.strip_suffix("ms") {
        return ms.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_with_their_lines() {
        for (script, problem) in [
            ("kill m1", "line 1: `kill m1`: a script begins with `cluster` and a number of machines"),
            ("cluster 1\n\nadvance soon", "line 3: `soon` is no time: write `8s` or `250ms`"),
            (
                "cluster 1\nshow nothing",
                "line 2: no table `nothing`: there are `machines`, `units` and `running`",
            ),
            ("cluster 1\nfly m1", "line 2: `fly` is no command"),
        ] {
            assert_eq!(play(script, None).expect_err(script).to_string(), problem);
        }
    }

    #[test]
    fn braces_and_lists_are_several_steps() {
        assert_eq!(each("start web@{1..2} db"), ["start web@1", "start web@2", "start db"]);
        assert_eq!(each("cut m1 to-hub"), ["cut m1 to-hub"]);
        assert_eq!(each("submit a X=1 Y=2"), ["submit a X=1 Y=2"]);
        assert_eq!(each("hub-down"), ["hub-down"]);
    }
}
