//! What the box must have before a lab can be brought up: root, a kernel and a `/usr` that will do, programs.
//!
//! Only looks, changes nothing. The text of a [`Missing`] is meant to be copied: it ends in the one command to run.

use std::fmt;
use std::path::Path;

use crate::LabConfig;
use crate::run::search_path;

/// What is found where (looked up on the path, or absolute), and the Debian package it is in.
const PROGRAMS: &[(&str, &str)] = &[
    ("systemd-nspawn", "systemd-container"),
    ("/usr/lib/systemd/systemd", "systemd"),
    ("/usr/lib/systemd/system/dbus.service", "dbus"),
    ("dbus-daemon", "dbus"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("tar", "tar"),
];

const DOCKER: &[(&str, &str)] = &[
    ("/usr/sbin/dockerd", "docker.io"),
    ("/usr/bin/docker", "docker.io"),
    ("/usr/lib/systemd/system/docker.service", "docker.io"),
    ("/usr/bin/containerd", "containerd"),
    ("iptables", "iptables"),
];

/// What a box lacks. Its text is for people: what is missing and what to type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Programs and files that are not there, with the Debian package that has them.
    pub programs: Vec<(String, String)>,
    /// What no package helps against, as sentences.
    pub host: Vec<String>,
}

impl Missing {
    /// Whether a lab can be brought up.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.host.is_empty()
    }

    /// The line to type, if packages are missing.
    pub fn install_line(&self) -> Option<String> {
        let mut packages: Vec<&str> = self.programs.iter().map(|(_, package)| package.as_str()).collect();
        packages.sort_unstable();
        packages.dedup();
        (!packages.is_empty())
            .then(|| format!("apt-get install --no-install-recommends {}", packages.join(" ")))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this box cannot run a lab:")?;
        for sentence in &self.host {
            write!(f, "\n  {sentence}")?;
        }
        for (program, package) in &self.programs {
            write!(f, "\n  `{program}` is missing (package {package})")?;
        }
        if let Some(line) = self.install_line() {
            write!(f, "\nrun this, then try again:\n  {line}")?;
        }
        Ok(())
    }
}

/// Looks for everything that a lab of this configuration needs.
pub fn missing(config: &LabConfig) -> Missing {
    let path = search_path();
    let own = PROGRAMS.iter().chain(if config.docker { DOCKER } else { &[] });
    let own = own.map(|&(program, package)| (program.to_owned(), package.to_owned()));
    let programs = own.chain(config.needs.iter().cloned()).filter(|(program, _)| !is_there(program, &path));
    Missing { programs: programs.collect(), host: host_faults() }
}

fn is_there(program: &str, path: &str) -> bool {
    // An absolute program is itself: `join` lets it win.
    path.split(':').any(|dir| Path::new(dir).join(program).exists())
}

fn host_faults() -> Vec<String> {
    let mut faults = Vec::new();
    if !rustix::process::geteuid().is_root() {
        faults.push("a lab needs root (namespaces, mounts, cgroups): run it with sudo".to_owned());
    }
    // Machines get the host's /usr and links /bin -> usr/bin; with a separate /bin they would have no shell.
    if !Path::new("/bin").is_symlink() {
        faults.push(
            "/bin is not a link to usr/bin: this needs a merged /usr (Debian 12, Ubuntu 22.04 or later)"
                .to_owned(),
        );
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if kernel_before(&release, (5, 2)) {
        faults.push(format!("the kernel is {release}: this needs 5.2 or later, for cgroup.freeze"));
    }
    faults
}

fn kernel_before(release: &str, least: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_ends_in_the_line_to_type() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let missing = Missing {
            programs: vec![pair("nft", "nftables"), pair("dbus-daemon", "dbus"), pair("x", "dbus")],
            host: vec!["needs root".into()],
        };
        assert_eq!(
            missing.to_string(),
            "this box cannot run a lab:\n  needs root\n  `nft` is missing (package nftables)\n  \
             `dbus-daemon` is missing (package dbus)\n  `x` is missing (package dbus)\nrun this, then try again:\n  \
             apt-get install --no-install-recommends dbus nftables"
        );
        assert!(!missing.is_empty() && Missing::default().is_empty());
    }

    #[test]
    fn a_callers_needs_are_looked_for_too() {
        let needs =
            vec![("no-such-program".to_owned(), "nowhere".to_owned()), ("sh".to_owned(), "dash".to_owned())];
        let found = missing(&LabConfig { needs, ..LabConfig::default() });
        assert!(found.programs.iter().any(|(program, _)| program == "no-such-program"));
        assert!(!found.programs.iter().any(|(program, _)| program == "sh"));
    }

    #[test]
    fn kernels_compare_by_number() {
        assert!(kernel_before("4.19.0-26-amd64", (5, 2)) && kernel_before("5.1.9", (5, 2)));
        assert!(!kernel_before("5.10.0", (5, 2)) && !kernel_before("6.1.0-21-amd64", (5, 2)));
    }
}
