//! Which container is a unit's: read off the unit's file, so that nobody has to say it twice.
//!
//! A unit's processes are the engine's client; the container is a child of the engine's daemon, in a cgroup of its own,
//! and nothing but the client's command line ties the two together. Invariant: a unit whose file runs no engine's
//! client has no container.

use model::UnitName;
use unit::UnitFile;

/// What a unit's file says of its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Names it may have, the likeliest first.
    pub names: Vec<String>,
    /// A file with its id.
    pub cidfile: Option<String>,
}

/// What the file says; none if the unit runs no container.
pub fn candidates(unit: &UnitName, file: &UnitFile) -> Option<Candidates> {
    let mut found = Candidates::default();
    let mut runs = false;
    for value in
        ["ExecStart", "ExecStartPre", "ExecStartPost"].iter().flat_map(|name| file.values("Service", name))
    {
        let words: Vec<String> = value
            .split(|c: char| c.is_whitespace() || c == '"' || c == '\'' || c == ';')
            .filter(|word| !word.is_empty())
            .map(|word| expand(unit, word))
            .collect();
        for (at, word) in words.iter().enumerate() {
            let engine = word.trim_start_matches(['-', '@', ':', '+', '!']).rsplit('/').next();
            if !matches!(engine, Some("docker" | "podman")) {
                continue;
            }
            let Some(verb) =
                words[at + 1..].iter().position(|word| matches!(word.as_str(), "run" | "start" | "create"))
            else {
                continue;
            };
            runs = true;
            let arguments = &words[at + 2 + verb..];
            if words[at + 1 + verb] == "start" {
                found.names.extend(arguments.iter().find(|word| !word.starts_with('-')).cloned());
                continue;
            }
            let option = |name: &str| {
                let given =
                    arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1));
                let joined = arguments.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                given.cloned().or_else(|| joined.map(str::to_owned))
            };
            found.names.extend(option("--name"));
            found.cidfile = found.cidfile.or_else(|| option("--cidfile"));
        }
    }
    if !runs {
        return None;
    }
    // As people name them after the unit.
    let stem = unit.stem();
    for spelled in [stem.to_owned(), stem.replace('@', "-"), stem.replace('@', "_"), unit.to_string()] {
        if !found.names.contains(&spelled) {
            found.names.push(spelled);
        }
    }
    Some(found)
}

fn expand(unit: &UnitName, word: &str) -> String {
    let instance = unit.instance().unwrap_or_default();
    let pairs = [
        ("%n", unit.as_str()),
        ("%N", unit.stem()),
        ("%p", unit.prefix()),
        ("%i", instance),
        ("%I", instance),
        ("%t", "/run"),
    ];
    pairs.iter().fold(word.to_owned(), |word, (specifier, value)| word.replace(specifier, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(exec: &str) -> Option<Candidates> {
        let file = UnitFile::parse(&format!("[Service]\n{exec}\n")).expect("parses");
        candidates(&"web@1.service".parse().expect("valid"), &file)
    }

    #[test]
    fn the_container_is_read_off_the_file() {
        let first = |exec: &str| names(exec).map(|found| found.names[0].clone());
        assert_eq!(first("ExecStart=/usr/bin/docker run --rm --name app-%i img").as_deref(), Some("app-1"));
        assert_eq!(first("ExecStart=-podman run --name=%p_%i img").as_deref(), Some("web_1"));
        assert_eq!(first("ExecStart=/bin/sh -c \"docker run --name x%i img\"").as_deref(), Some("x1"));
        let created =
            "ExecStartPre=/usr/bin/docker create --name c img\nExecStart=/usr/bin/docker start -a c";
        assert_eq!(first(created).as_deref(), Some("c"));
        assert_eq!(first("ExecStart=/usr/bin/docker run img").as_deref(), Some("web@1"));
        let cidfile = names("ExecStart=/usr/bin/docker run --cidfile %t/%N.cid img").expect("it runs one");
        assert_eq!(cidfile.cidfile.as_deref(), Some("/run/web@1.cid"));
        assert!(cidfile.names.contains(&"web-1".to_owned()) && cidfile.names.contains(&"web_1".to_owned()));
        assert_eq!(names("ExecStart=/bin/sleep 1"), None);
        assert_eq!(names("ExecStartPre=/usr/bin/docker pull img\nExecStart=/bin/sleep 1"), None);
    }
}
