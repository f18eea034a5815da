//! `cargo xtask tidy`: collects everything that is wrong with the repository, with place and remedy.
//!
//! Each module beside this one looks at one side of it and is a function of what was read here, so that its tests
//! need no repository. Invariant: no check ends the others; what cannot be read at all is an error.

/// ARCHITECTURE.md, and links between documents.
mod documents;
/// Who depends on whom.
mod graph;
/// Licences against deny.toml.
mod licences;
/// Cargo.toml, Cargo.lock and clippy.toml.
mod manifests;
/// A lexer that tells code from strings and comments.
mod rust;
/// Text of Rust files, and of all files.
mod sources;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};
use graph::Graph;
use std::fmt;
use std::path::Path;
use std::process::Command;

/// Something to put right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// A file, relative to the repository.
    path: String,
    /// Its line, counted from 1; none if it is about the whole file.
    line: Option<usize>,
    what: String,
    remedy: String,
}

impl Finding {
    fn of(path: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: None, what: what.into(), remedy: remedy.into() }
    }

    fn at(path: &str, line: usize, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line: Some(line), ..Self::of(path, what, remedy) }
    }
}

/// `path:line: what`, so that editors find the place; the remedy below.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path)?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}\n    {}", self.what, self.remedy)
    }
}

/// A file of the repository.
#[derive(Debug)]
pub(crate) struct File {
    /// Relative to the repository, with `/`.
    path: String,
    /// What is no UTF-8 is replaced.
    text: String,
}

/// The files that git tracks or would.
#[derive(Debug, Default)]
pub(crate) struct Files(Vec<File>);

impl Files {
    fn read(root: &Path) -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = git.output().context("failed to run git")?;
        ensure!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).context("a file name is no UTF-8")?;
        let mut files = Vec::new();
        for path in listed.split_terminator('\0') {
            let at = root.join(path);
            // In the index, but deleted or a link to a directory.
            if at.is_file() {
                let bytes = std::fs::read(&at).with_context(|| format!("failed to read {path}"))?;
                files
                    .push(File { path: path.to_owned(), text: String::from_utf8_lossy(&bytes).into_owned() });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files.dedup_by(|a, b| a.path == b.path);
        Ok(Self(files))
    }

    fn iter(&self) -> impl Iterator<Item = &File> {
        self.0.iter()
    }

    fn get(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }

    fn has_directory(&self, path: &str) -> bool {
        let inside = format!("{path}/");
        path.is_empty() || self.0.iter().any(|file| file.path.starts_with(&inside))
    }

    /// Names of the directories directly under `crates/`.
    fn crate_directories(&self) -> Vec<&str> {
        let inside = self.0.iter().filter_map(|file| file.path.strip_prefix("crates/"));
        let mut names: Vec<_> =
            inside.filter_map(|path| path.split_once('/')).map(|(name, _)| name).collect();
        names.dedup();
        names
    }
}

/// Everything in the lock file, for whatever platform: a build alone has not downloaded all of it.
fn metadata(options: &[&str]) -> Result<Metadata> {
    let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
    let metadata = MetadataCommand::new().other_options(options).exec();
    metadata.context("failed to read the dependencies (`cargo fetch --locked` gets them)")
}

/// Prints what was found. True if that is nothing.
pub(crate) fn run() -> Result<bool> {
    let metadata = metadata(&["--locked", "--offline"]).or_else(|_| metadata(&["--locked"]))?;
    let files = Files::read(metadata.workspace_root.as_std_path())?;
    let graph = Graph::from_metadata(&metadata)?;
    let mut findings = [
        graph::check(&graph),
        licences::check(&graph, &files),
        manifests::check(&graph, &files),
        sources::check(&files),
        documents::check(&files),
    ]
    .concat();
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => eprintln!("tidy: {} files, {} packages", files.0.len(), graph.len()),
        1 => eprintln!("1 finding"),
        n => eprintln!("{n} findings"),
    }
    Ok(findings.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Files {
        pub(crate) fn of(files: &[(&str, &str)]) -> Self {
            let file = |(path, text): &(&str, &str)| File { path: (*path).into(), text: (*text).into() };
            Self(files.iter().map(file).collect())
        }
    }

    /// `path:line: what` of each.
    pub(crate) fn told(findings: &[Finding]) -> Vec<String> {
        findings
            .iter()
            .map(|finding| finding.to_string().lines().next().map(str::to_owned).unwrap_or_default())
            .collect()
    }

    #[test]
    fn a_finding_says_where_what_and_the_remedy() {
        let finding = Finding::at("a/b.rs", 7, "it is wrong", "right it");
        assert_eq!(finding.to_string(), "a/b.rs:7: it is wrong\n    right it");
        assert_eq!(Finding::of("a", "b", "c").to_string(), "a: b\n    c");
    }

    #[test]
    fn directories_are_known_by_their_files() {
        let files =
            Files::of(&[("Cargo.toml", ""), ("crates/hub/src/lib.rs", ""), ("crates/net/Cargo.toml", "")]);
        assert_eq!(files.crate_directories(), ["hub", "net"]);
        assert!(files.has_directory("crates/hub") && files.has_directory(""));
        assert!(!files.has_directory("crates/h"));
    }
}
