//! Which container a unit's main process is the client of, read off its command line.
//!
//! `docker run` is a client: the container is a child of the engine's daemon, in a cgroup of its own, so that what
//! is done to the unit's processes does not reach it. Not here: talking to the engine.

/// A container, by the program that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// `docker` or `podman`.
    pub engine: String,
    /// Its name, or its id.
    pub name: String,
}

/// The container of the process: `docker run … --name NAME …`, or `docker start … NAME`.
pub fn of(pid: u32) -> Option<Container> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    read(line.split(|byte| *byte == 0).filter_map(|argument| str::from_utf8(argument).ok()))
}

fn read<'a>(arguments: impl Iterator<Item = &'a str>) -> Option<Container> {
    let mut arguments = arguments;
    let engine = arguments.next()?.rsplit('/').next()?;
    if !matches!(engine, "docker" | "podman") {
        return None;
    }
    let container = |name: &str| Container { engine: engine.to_owned(), name: name.to_owned() };
    let verb = arguments.find(|argument| matches!(*argument, "run" | "start"))?;
    if verb == "start" {
        return arguments.find(|argument| !argument.starts_with('-')).map(container);
    }
    while let Some(argument) = arguments.next() {
        if argument == "--name" {
            return arguments.next().map(container);
        }
        if let Some(name) = argument.strip_prefix("--name=") {
            return Some(container(name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_read_off_its_clients_arguments() {
        let name = |line: &str| read(line.split(' ')).map(|found| format!("{} {}", found.engine, found.name));
        assert_eq!(
            name("/usr/bin/docker run --rm --name someapp-1 someapp").as_deref(),
            Some("docker someapp-1")
        );
        assert_eq!(name("podman run --name=web nginx").as_deref(), Some("podman web"));
        assert_eq!(name("/usr/bin/docker start -a web").as_deref(), Some("docker web"));
        assert_eq!(name("/usr/bin/docker run someapp"), None);
        assert_eq!(name("/bin/sleep infinity"), None);
    }
}
