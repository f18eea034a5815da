//! Manual pages and completion, made from the command line's own description, so that they cannot differ from it.

use super::output;
use anyhow::{Context, Result};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Args)]
pub struct Completion {
    /// The shell.
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(self, mut command: clap::Command) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "muster", &mut script);
        output::print(script)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub struct Man {
    /// Where to write them.
    directory: PathBuf,
}

impl Man {
    pub fn run(self, mut command: clap::Command) -> Result<ExitCode> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))?;
        command.build();
        write(&command, "", &self.directory)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The page of a command, and those of its verbs: `muster.1`, `muster-hub-snapshot-save.1`.
fn write(command: &clap::Command, before: &str, directory: &Path) -> Result<()> {
    let name = format!("{before}{}", command.get_name());
    let path = directory.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().name(name.clone()).disable_help_subcommand(true))
        .render(&mut page)
        .context("cannot render a page")?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    let verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set());
    verbs.into_iter().try_for_each(|verb| write(verb, &format!("{name}-"), directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn every_verb_has_a_page() {
        let directory = std::env::temp_dir().join(format!("muster-man-{}", std::process::id()));
        Man { directory: directory.clone() }.run(Cli::command()).expect("written");
        let read = |name: &str| fs::read_to_string(directory.join(name)).expect(name);
        assert!(read("muster.1").contains("muster\\-start"), "the first page names the others");
        assert!(read("muster-start.1").contains("no\\-block"));
        assert!(read("muster-hub-snapshot-save.1").contains("Example"));
        assert!(!directory.join("muster-verify.1").exists());
        fs::remove_dir_all(directory).expect("removed");
    }
}
