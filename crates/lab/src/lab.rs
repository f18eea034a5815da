//! A lab as a whole: up, attach, down, and the cuts in its network.
//!
//! Everything is in the tmpfs `/run/NAME-lab`: `lab.json` (written last: a lab without it was interrupted and is made
//! again), `cgroup`, `netns/`, `m/mN/`, `inotify` (what the host's limit was). The one thing beside it is the lock.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::config::{self, MAX_MACHINES, MachineName, Settings};
use crate::fabric::{self, Fabric};
use crate::lock::LabLock;
use crate::{Error, LabConfig, LabStatus, Machine, Outside, Result, cgroup, disk, missing, run, status};

const INOTIFY: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Processes that were killed let go of their files within milliseconds, but the kernel does it in the background.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// A lab that is up. Dropping it changes nothing: the lab stays until [`Lab::down`].
#[derive(Debug, Clone)]
pub struct Lab {
    settings: Arc<Settings>,
    created: Vec<MachineName>,
}

impl Lab {
    /// Brings up machines m1 to m`n` and boots what is off, side by side. On a lab that is up it adds what is missing
    /// (machines beyond `n` are left alone); one that was interrupted is cleaned away and made again.
    ///
    /// # Errors
    /// [`Error::Missing`] when the box lacks something; [`Error::Differs`] when the lab is up with another network;
    /// what went wrong with machines that did not boot (the others are up).
    pub fn up(n: usize, config: LabConfig) -> Result<Lab> {
        config::check_name(&config.name)?;
        if !(1..=MAX_MACHINES).contains(&n) {
            return Err(Error::Count { n, max: MAX_MACHINES });
        }
        let missing = missing(&config);
        if !missing.is_empty() {
            return Err(Error::Missing(missing));
        }
        let config = LabConfig { bin: absolute(config.bin)?, share: absolute(config.share)?, ..config };
        let lock = LabLock::take(&config::lock_file(&config.name))?;
        let up = Lab::up_locked(n, &config);
        if up.is_err() && !is_mounted(&config::dir(&config.name))? {
            lock.remove()?;
        }
        up
    }

    fn up_locked(n: usize, config: &LabConfig) -> Result<Lab> {
        let dir = config::dir(&config.name);
        if is_mounted(&dir)? && !dir.join("lab.json").exists() {
            teardown(&config.name)?;
        }
        let settings = if is_mounted(&dir)? {
            read(&config.name)?.update(config)?
        } else {
            // Half a lab is no use to anybody, and the first error says more than what its removal may add.
            create(config).inspect_err(|_| drop(teardown(&config.name)))?
        };
        settings.save()?;
        allow_inotify(&dir, n)?;
        let mut lab = Lab { settings: settings.into(), created: Vec::new() };
        lab.add_machines(n, config)?;
        let wanted = lab
            .machines()
            .into_iter()
            .filter(|machine| usize::from(machine.number()) <= n)
            .collect::<Vec<_>>();
        side_by_side(&wanted, if config.wait_for_boot { Machine::start } else { Machine::start_no_wait })?;
        Ok(lab)
    }

    /// A lab that another call, perhaps of another process, brought up.
    ///
    /// # Errors
    /// If it is not up.
    pub fn attach(name: &str) -> Result<Lab> {
        config::check_name(name)?;
        Ok(Lab { settings: read(name)?.into(), created: Vec::new() })
    }

    /// Removes the lab, everything of it. See [`down`].
    ///
    /// # Errors
    /// As [`down`].
    pub fn down(&self) -> Result<()> {
        down(&self.settings.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The machines' network, `10.99.0.0/24`.
    pub fn subnet(&self) -> String {
        self.settings.subnet()
    }

    /// All machines, by number, running or not.
    pub fn machines(&self) -> Vec<Machine> {
        let entries = fs::read_dir(self.settings.dir().join("m")).into_iter().flatten().flatten();
        let complete = entries.filter(|entry| entry.path().join("root").is_dir());
        let mut names: Vec<MachineName> =
            complete.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort_unstable();
        names.into_iter().map(|name| self.at(name)).collect()
    }

    /// The machines that this very `up` has made: their disks are fresh, and they have no images yet.
    pub fn created(&self) -> Vec<Machine> {
        self.created.iter().map(|&name| self.at(name)).collect()
    }

    /// One machine, by its name.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        let machines = self.machines();
        machines.iter().find(|machine| machine.name() == name).cloned().ok_or_else(|| Error::NoMachine {
            lab: self.settings.name.clone(),
            machine: name.to_owned(),
            known: machines.iter().map(Machine::name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The client outside the fleet.
    pub fn outside(&self) -> Outside {
        Outside {
            fabric: Fabric::of(&self.settings),
            cgroup: self.settings.cgroup.join("outside"),
            address: self.settings.outside(),
        }
    }

    /// Drops every frame between two machines, silently, both ways.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn partition(&self, a: &str, b: &str) -> Result<()> {
        self.partition_one_way(a, b)?;
        self.partition_one_way(b, a)
    }

    /// Drops every frame that goes from one machine to the other, and none that comes back.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn partition_one_way(&self, from: &str, to: &str) -> Result<()> {
        Fabric::of(&self.settings).cut_pair(self.known(from)?, self.known(to)?)
    }

    /// Cuts a machine's cable: it reaches nobody, the client outside included, and its kernel does not notice.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn cut(&self, machine: &str) -> Result<()> {
        Fabric::of(&self.settings).cut_port(self.known(machine)?)
    }

    /// Undoes [`Lab::cut`]. Partitions stay. A cable that is not cut is no error.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn join(&self, machine: &str) -> Result<()> {
        Fabric::of(&self.settings).heal_port(self.known(machine)?)
    }

    /// Undoes [`Lab::partition`], both ways. Two that are not parted are no error.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn heal(&self, a: &str, b: &str) -> Result<()> {
        let (a, b) = (self.known(a)?, self.known(b)?);
        let fabric = Fabric::of(&self.settings);
        fabric.heal_pair(a, b)?;
        fabric.heal_pair(b, a)
    }

    /// Undoes every cut and every partition. Paused machines stay paused.
    ///
    /// # Errors
    /// If nft refuses.
    pub fn heal_all(&self) -> Result<()> {
        Fabric::of(&self.settings).heal_all()
    }

    /// What there is and how it does. Costs some 10 ms per machine.
    ///
    /// # Errors
    /// If the network cannot be read.
    pub fn status(&self) -> Result<LabStatus> {
        Ok(LabStatus {
            name: self.settings.name.clone(),
            outside: self.settings.outside(),
            machines: self.machines().iter().map(status::machine).collect(),
            cuts: Fabric::of(&self.settings).cuts()?,
        })
    }

    fn at(&self, name: MachineName) -> Machine {
        Machine::new(name, self.settings.clone())
    }

    fn known(&self, name: &str) -> Result<MachineName> {
        self.machine(name).map(|machine| machine.machine_name())
    }

    fn add_machines(&mut self, n: usize, config: &LabConfig) -> Result<()> {
        let wanted: Vec<Machine> =
            (1..=n).filter_map(MachineName::numbered).map(|name| self.at(name)).collect();
        for machine in &wanted {
            if machine.root().is_dir() {
                continue;
            }
            let own =
                config.machine_files.as_ref().map(|write| write(&machine.info(&wanted))).unwrap_or_default();
            let files: Vec<_> = config.files.iter().cloned().chain(own).collect();
            fs::create_dir_all(machine.dir()).map_err(Error::io("create", machine.dir()))?;
            disk::seed(&machine.dir(), &files, &config.links)?;
            disk::create(&machine.dir(), machine.machine_name(), &self.settings)?;
            self.created.push(machine.machine_name());
        }
        let all: Vec<_> = self.machines().iter().map(|m| (m.name().to_owned(), m.address())).collect();
        let hosts = disk::hosts(&all);
        self.machines().iter().try_for_each(|machine| machine.write_file("etc/hosts", hosts.as_str(), 0o644))
    }
}

impl Settings {
    fn save(&self) -> Result<()> {
        let path = self.dir().join("lab.json");
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| Error::Description { path: path.clone(), source })?;
        fs::write(&new, text).map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("write", path))
    }
}

/// Removes lab `name`: every process, mount, namespace, cgroup and file of it. A lab that is not up, or was
/// interrupted, is no error.
///
/// # Errors
/// What could not be removed; everything else was.
pub fn down(name: &str) -> Result<()> {
    config::check_name(name)?;
    let lock = LabLock::take(&config::lock_file(name))?;
    let gone = teardown(name);
    // The lock goes in any case: the next call makes its own.
    let unlocked = lock.remove();
    gone.and(unlocked)
}

fn read(name: &str) -> Result<Settings> {
    let path = config::dir(name).join("lab.json");
    let text = fs::read(&path).map_err(|_| Error::NotUp { name: name.to_owned() })?;
    serde_json::from_slice(&text).map_err(|source| Error::Description { path, source })
}

fn create(config: &LabConfig) -> Result<Settings> {
    load_modules();
    let dir = config::dir(&config.name);
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    let options = CString::new(format!("mode=755,size={}", config.size)).unwrap_or_default();
    mount(config::unit(&config.name), &dir, "tmpfs", MountFlags::empty(), Some(options.as_c_str()))
        .map_err(Error::os("mount a tmpfs on", &dir))?;
    // So that an unmounted namespace file goes from the views of the machines' launchers, too.
    mount_change(&dir, MountPropagationFlags::SHARED).map_err(Error::os("share the mount", &dir))?;
    for sub in ["m", "empty"] {
        let path = dir.join(sub);
        fs::create_dir_all(&path).map_err(Error::io("create", path))?;
    }
    let settings = Settings::new(config, cgroup::create(&config.name, &dir)?);
    Fabric::create(&settings)?;
    Ok(settings)
}

fn teardown(name: &str) -> Result<()> {
    let dir = config::dir(name);
    let mut errors = Vec::new();
    let mut note = |done: Result<()>| errors.extend(done.err());
    note(cgroup::noted(&dir).map_or(Ok(()), |cgroup| cgroup::remove(&cgroup)));
    note(cgroup::release(name));
    if is_mounted(&dir)? {
        note(restore_inotify(&dir));
        note(fabric::release(&dir));
        let own = cgroup::own_hierarchy(&dir);
        if is_mounted(&own)? {
            note(unmount(&own, UnmountFlags::empty()).map_err(Error::os("unmount", own)));
        }
        note(unmount_patiently(&dir));
    }
    // Not while it is mounted, and not if someone put a file there: only the empty directory is ours.
    if dir.is_dir() && !is_mounted(&dir)? {
        note(fs::remove_dir(&dir).map_err(Error::io("remove", dir)));
    }
    Error::all(errors)
}

fn unmount_patiently(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + UNMOUNT_TIMEOUT;
    loop {
        match unmount(dir, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(20)),
            Err(errno) => return Err(Error::Busy { path: dir.to_owned(), source: errno.into() }),
        }
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(Error::io("read", "/proc/self/mounts"))?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|point| Path::new(point) == path)))
}

/// An ordinary server has these as modules, and nothing inside a machine can load them. br_netfilter is left out: it
/// would change the host's own bridges.
fn load_modules() {
    for module in ["overlay", "veth", "bridge", "vxlan", "nf_tables", "nf_conntrack"] {
        // A kernel that has it built in, or no modprobe, is as good.
        let _ = run::output(run::host("modprobe", ["-q", module]));
    }
}

/// Each machine takes 5 inotify instances, and a usual host allows root 128. `down` puts the limit back.
fn allow_inotify(dir: &Path, machines: usize) -> Result<()> {
    let now = fs::read_to_string(INOTIFY).map_err(Error::io("read", INOTIFY))?;
    let wanted = machines * 10 + 64;
    if now.trim().parse().unwrap_or(usize::MAX) >= wanted {
        return Ok(());
    }
    // Grown twice, it goes back to what it was before the first time.
    let note = dir.join("inotify");
    let before = fs::read_to_string(&note).unwrap_or(now);
    let before = before.split_whitespace().next().unwrap_or_default();
    fs::write(&note, format!("{before} {wanted}\n")).map_err(Error::io("write", note))?;
    fs::write(INOTIFY, wanted.to_string()).map_err(Error::io("write", INOTIFY))
}

/// Undoes [`allow_inotify`], unless somebody else, perhaps another lab, has changed the limit since.
fn restore_inotify(dir: &Path) -> Result<()> {
    let note = fs::read_to_string(dir.join("inotify")).unwrap_or_default();
    let now = fs::read_to_string(INOTIFY).map_err(Error::io("read", INOTIFY))?;
    match note.split_whitespace().collect::<Vec<_>>()[..] {
        [before, ours] if ours == now.trim() => {
            fs::write(INOTIFY, before).map_err(Error::io("write", INOTIFY))
        }
        _ => Ok(()),
    }
}

fn absolute(path: Option<std::path::PathBuf>) -> Result<Option<std::path::PathBuf>> {
    path.map(|path| path.canonicalize().map_err(Error::io("find the directory", path))).transpose()
}

/// Does the same to several machines at once; goes on with the others when one fails.
fn side_by_side(machines: &[Machine], act: fn(&Machine) -> Result<()>) -> Result<()> {
    let done: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = machines.iter().map(|machine| scope.spawn(move || act(machine))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    Error::all(done.into_iter().filter_map(Result::err).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_labs_are_refused_before_anything_is_done() {
        assert!(matches!(Lab::up(0, LabConfig::default()), Err(Error::Count { n: 0, .. })));
        assert!(matches!(Lab::up(201, LabConfig::default()), Err(Error::Count { .. })));
        let name = "Not good".to_owned();
        assert!(matches!(Lab::up(1, LabConfig { name, ..LabConfig::default() }), Err(Error::Name { .. })));
        assert!(matches!(Lab::attach("nolab"), Err(Error::NotUp { .. })));
        assert!(matches!(down("../etc"), Err(Error::Name { .. })));
    }

    #[test]
    fn mounts_are_told_by_their_point() {
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
    }
}
