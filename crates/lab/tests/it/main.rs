//! Real machines on this box. Needs root and the packages that `lab::missing` names, and fails with its text without
//! them: a lab that cannot be tried is not known to work.
//!
//! Each test has a lab name and a network of its own, so that they run beside each other and beside a person's lab.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::{Cut, DiskFile, Error, Lab, LabConfig, Machine, Power};

/// Takes the lab down when a test ends, also by a panic.
struct Down(&'static str);

impl Drop for Down {
    fn drop(&mut self) {
        if let Err(error) = lab::down(self.0) {
            eprintln!("lab `{}` could not be taken down: {error}", self.0);
        }
    }
}

fn config(name: &str, network: [u8; 3]) -> LabConfig {
    let config = LabConfig { name: name.into(), network, ..LabConfig::default() };
    let missing = lab::missing(&config);
    assert!(missing.is_empty(), "{missing}");
    config
}

fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        sleep(Duration::from_millis(50));
    }
}

/// Whether a TCP packet to a closed port is answered (refused, exit code 1) and not lost (timeout, 124).
fn probe(address: std::net::Ipv4Addr) -> [String; 5] {
    ["timeout", "1", "bash", "-c", &format!("exec 3<>/dev/tcp/{address}/9")].map(str::to_owned)
}

fn reaches(from: &Machine, to: &Machine) -> bool {
    answered(from.exec(&probe(to.address())).unwrap().code())
}

fn outside_reaches(lab: &Lab, to: &Machine) -> bool {
    answered(lab.outside().exec(&probe(to.address())).unwrap().code())
}

fn answered(code: u8) -> bool {
    assert!(matches!(code, 1 | 124), "unexpected exit code {code} of the probe");
    code == 1
}

#[test]
fn the_life_of_a_lab() {
    let _down = Down("mlabt");
    lab::down("mlabt").unwrap();
    let bin = tempfile::tempdir().unwrap();
    fs::write(bin.path().join("greet"), "#!/bin/sh\necho hello $1\n").unwrap();
    Command::new("chmod").arg("755").arg(bin.path()).arg(bin.path().join("greet")).status().unwrap();
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/touch /var/greeted\nRemainAfterExit=yes\n";
    let config = LabConfig {
        bin: Some(bin.path().to_owned()),
        files: vec![
            DiskFile::new("/etc/systemd/system/greet.service", unit),
            DiskFile::new("etc/key", "k").mode(0o600),
        ],
        links: vec![(
            "etc/systemd/system/multi-user.target.wants/greet.service".into(),
            "/etc/systemd/system/greet.service".into(),
        )],
        machine_files: Some(Arc::new(|m| {
            vec![DiskFile::new("etc/me", format!("{} of {}", m.name, m.machines.len()))]
        })),
        ..config("mlabt", [10, 98, 0])
    };
    let lab = Lab::up(2, config.clone()).unwrap();
    let (m1, m2) = (lab.machine("m1").unwrap(), lab.machine("m2").unwrap());
    assert_eq!(lab.created().len(), 2);

    commands(&m1);
    files(&m1, &m2);
    cuts(&lab, &m1, &m2);
    pauses(&lab, &m1);
    power(&lab, &m1, &m2);
    images(&m2);

    // Another process would do just this.
    let again = Lab::attach("mlabt").unwrap();
    assert_eq!(again.machines().len(), 2);
    let grown = Lab::up(3, config.clone()).unwrap();
    assert_eq!(grown.created().iter().map(Machine::name).collect::<Vec<_>>(), ["m3"]);
    assert!(m1.exec_ok(&["getent", "hosts", "m3"]).unwrap().starts_with("10.98.0.3"));
    let elsewhere = LabConfig { network: [10, 97, 9], ..config };
    assert!(matches!(Lab::up(3, elsewhere), Err(Error::Differs { .. })));

    nothing_is_left_after_down(&lab);
}

fn commands(m1: &Machine) {
    assert_eq!(m1.exec_ok(&["hostname"]).unwrap(), "m1");
    assert_eq!(m1.exec_ok(&["pwd"]).unwrap(), "/");
    assert_eq!(m1.exec_ok(&["greet", "you there"]).unwrap(), "hello you there");
    assert_eq!(m1.exec_ok(&["sh", "-c", "echo $HOME $USER $LANG"]).unwrap(), "/root root C.UTF-8");
    assert_eq!(m1.exec_ok(&["systemctl", "is-system-running"]).unwrap(), "running");
    assert_eq!(
        m1.exec_ok(&["docker", "info", "--format", "{{.Driver}} {{.LoggingDriver}}"]).unwrap(),
        "overlay2 journald"
    );
    assert_eq!(m1.exec(&["systemctl", "is-enabled", "docker"]).unwrap().stdout, "enabled\n");
    let out = m1.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str(), out.code()), ("out\n", "err\n", 7));
    let error = m1.exec_ok(&["sh", "-c", "echo it broke >&2; false"]).unwrap_err().to_string();
    assert!(error.contains("m1: sh") && error.contains("it broke"), "{error}");
    let mut cat = m1.command(&["cat"]).unwrap().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut cat.stdin.take().unwrap(), b"piped").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"piped");
}

fn files(m1: &Machine, m2: &Machine) {
    assert_eq!(m1.exec_ok(&["cat", "/etc/me"]).unwrap(), "m1 of 2");
    assert_eq!(m2.exec_ok(&["cat", "/etc/me"]).unwrap(), "m2 of 2");
    assert_eq!(
        m1.exec_ok(&["stat", "-c", "%a %U", "/etc/key", "/root", "/tmp"]).unwrap(),
        "600 root\n700 root\n1777 root"
    );
    m1.exec_ok(&["test", "-e", "/var/greeted"]).unwrap();
    m1.write_file("/etc/later", "later", 0o644).unwrap();
    assert_eq!(m1.exec_ok(&["cat", "/etc/later"]).unwrap(), "later");
    assert!(matches!(m1.write_file("/var/run/x", "", 0o644), Err(Error::DiskPath { .. })));
    m1.exec_ok(&["sh", "-c", "echo inside > /var/note"]).unwrap();
    assert_eq!(fs::read_to_string(m1.root().join("var/note")).unwrap(), "inside\n");
    assert_ne!(
        m1.exec_ok(&["cat", "/etc/machine-id"]).unwrap(),
        m2.exec_ok(&["cat", "/etc/machine-id"]).unwrap()
    );
}

fn cuts(lab: &Lab, m1: &Machine, m2: &Machine) {
    assert!(reaches(m1, m2) && outside_reaches(lab, m1));
    lab.partition("m1", "m2").unwrap();
    assert!(!reaches(m1, m2) && outside_reaches(lab, m1) && outside_reaches(lab, m2));
    assert_eq!(lab.status().unwrap().cuts.len(), 2);
    lab.heal("m1", "m2").unwrap();
    lab.heal("m1", "m2").unwrap();
    assert!(reaches(m1, m2));
    lab.cut("m2").unwrap();
    assert_eq!(lab.status().unwrap().cuts, [Cut::Cable("m2".into())]);
    assert!(!reaches(m1, m2) && !outside_reaches(lab, m2));
    // A pause and its end heal nothing.
    m2.pause().unwrap();
    m2.resume().unwrap();
    assert!(!outside_reaches(lab, m2));
    lab.join("m2").unwrap();
    assert!(reaches(m1, m2) && outside_reaches(lab, m2));
    lab.partition_one_way("m1", "m2").unwrap();
    assert!(!reaches(m1, m2));
    lab.heal_all().unwrap();
    assert!(reaches(m1, m2));
    assert!(matches!(lab.partition("m1", "m9"), Err(Error::NoMachine { .. })));
}

fn pauses(lab: &Lab, m1: &Machine) {
    let state = || lab.status().unwrap().machines[0].power;
    m1.pause().unwrap();
    assert_eq!(state(), Power::Paused);
    assert!(!outside_reaches(lab, m1));
    assert!(m1.is_running() && matches!(m1.exec(&["true"]), Err(Error::Paused { .. })));
    m1.resume().unwrap();
    assert_eq!(state(), Power::Running);
    assert!(outside_reaches(lab, m1));
    m1.freeze().unwrap();
    assert_eq!(state(), Power::Frozen);
    assert!(outside_reaches(lab, m1), "the kernel of a frozen machine answers");
    m1.resume().unwrap();
    m1.exec_ok(&["true"]).unwrap();
}

fn power(lab: &Lab, m1: &Machine, m2: &Machine) {
    m2.exec_ok(&["sh", "-c", "echo kept > /var/kept"]).unwrap();
    // Nothing of a dead machine may survive in its network: neither a device nor an address.
    m2.exec_ok(&["ip", "link", "add", "leftover", "type", "bridge"]).unwrap();
    m2.pause().unwrap();
    m2.kill().unwrap();
    assert!(!m2.is_running() && !reaches(m1, m2));
    assert!(matches!(m2.exec(&["true"]), Err(Error::Off { .. })));
    assert!(m2.log().unwrap().contains("m2 systemd"));
    m2.start().unwrap();
    m2.start().unwrap();
    assert_eq!(m2.exec_ok(&["cat", "/var/kept"]).unwrap(), "kept");
    assert!(!m2.exec(&["ip", "link", "show", "leftover"]).unwrap().success());
    assert!(reaches(m1, m2));

    m2.stop().unwrap();
    assert!(!m2.is_running());
    m2.wipe().unwrap();
    m2.start_no_wait().unwrap();
    assert_eq!(m2.exec_ok(&["cat", "/etc/me"]).unwrap(), "m2 of 2");
    assert!(!m2.root().join("var/kept").exists());
    m2.start().unwrap();
    assert!(matches!(m2.wipe(), Err(Error::Running { .. })));
    assert!(m2.failed_units().unwrap().is_empty());

    let pid = || lab.status().unwrap().machines[0].pid;
    let before = pid();
    m1.exec(&["systemctl", "reboot"]).unwrap();
    eventually("m1 has rebooted", || pid().is_some_and(|now| Some(now) != before));
    m1.start().unwrap();
    assert!(reaches(m2, m1) && outside_reaches(lab, m1));
    assert_eq!(m1.exec_ok(&["cat", "/etc/later"]).unwrap(), "later");
}

/// An image of a shell and the libraries it needs, by both ways.
fn images(m2: &Machine) {
    let dir = tempfile::tempdir().unwrap();
    let (tar, saved) = (dir.path().join("tiny.tar"), dir.path().join("saved.tar"));
    let libraries = Command::new("ldd").arg("/bin/sh").output().unwrap().stdout;
    let libraries = String::from_utf8(libraries).unwrap();
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]);
    let names: Vec<&str> = files.map(|path| path.trim_start_matches('/')).collect();
    let status = Command::new("tar").args(["-C", "/", "-hcf"]).arg(&tar).args(names).status().unwrap();
    assert!(status.success());

    m2.load_image(&tar, "tiny").unwrap();
    let hello = ["docker", "run", "--rm", "tiny", "sh", "-c", "echo from a container"];
    assert_eq!(m2.exec_ok(&hello).unwrap(), "from a container");
    let mut save = m2.command(&["docker", "save", "tiny"]).unwrap();
    assert!(save.stdout(fs::File::create(&saved).unwrap()).status().unwrap().success());
    m2.exec_ok(&["docker", "rmi", "tiny"]).unwrap();
    m2.load_image_from(fs::File::open(&saved).unwrap(), "ignored").unwrap();
    assert_eq!(m2.exec_ok(&hello).unwrap(), "from a container");
}

fn nothing_is_left_after_down(lab: &Lab) {
    let inode = |path: &Path| fs::metadata(path).map(|meta| meta.ino()).ok();
    let namespaces = ["fabric", "m1", "m2", "m3"].map(|name| Path::new("/run/mlabt-lab/netns").join(name));
    let namespaces: Vec<u64> = namespaces.iter().map(|path| inode(path).unwrap()).collect();
    // A client that is still at it, and a container mount, are no obstacle.
    let mut client = lab.outside().command(&["sleep", "1000"]).spawn().unwrap();
    eventually("the client is in its place", || outside_processes() > 0);
    lab.down().unwrap();
    assert!(!client.wait().unwrap().success());

    assert!(matches!(Lab::attach("mlabt"), Err(Error::NotUp { .. })));
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("mlabt"));
    for left in ["/run/mlabt-lab", "/run/mlabt-lab.lock", "/run/netns/fabric", "/run/netns/m1"] {
        assert!(!Path::new(left).exists(), "{left}");
    }
    assert_eq!(cgroups_of("mlabt"), Vec::<PathBuf>::new());
    let links = fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().file_name());
    assert!(links.into_iter().all(|link| !["m1", "m2", "m3"].iter().any(|name| link == *name)));
    let numbers = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let nets = numbers.filter_map(|process| inode(&process.join("ns/net")));
    assert!(
        nets.into_iter().all(|net| !namespaces.contains(&net)),
        "a process is still in the lab's network"
    );
    lab::down("mlabt").unwrap();
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line =
        mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2 is mounted");
    line.split(' ').nth(1).unwrap().into()
}

fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let slices = [cgroup_root(), cgroup_root().join("system.slice")];
    let entries = slices.iter().flat_map(|slice| fs::read_dir(slice).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(name)).collect()
}

fn outside_processes() -> usize {
    let files = cgroups_of("mlabt").into_iter().map(|cgroup| cgroup.join("outside/cgroup.procs"));
    files.map(|file| fs::read_to_string(file).unwrap_or_default().lines().count()).sum()
}

#[test]
fn an_interrupted_up_is_cleaned_and_done_again() {
    let _down = Down("mlabi");
    lab::down("mlabi").unwrap();
    let config = LabConfig { docker: false, ..config("mlabi", [10, 97, 0]) };
    let id = |lab: &Lab| lab.machine("m1").unwrap().exec_ok(&["cat", "/etc/machine-id"]).unwrap();
    let first = id(&Lab::up(1, config.clone()).unwrap());
    // As if it had not come so far, and with machines running all the same.
    fs::remove_file("/run/mlabi-lab/lab.json").unwrap();
    assert!(matches!(Lab::attach("mlabi"), Err(Error::NotUp { .. })));
    let lab = Lab::up(1, config.clone()).unwrap();
    let second = id(&lab);
    assert_ne!(first, second);
    // Twice in a row changes nothing; what is off is booted.
    lab.machine("m1").unwrap().kill().unwrap();
    let quick = LabConfig { wait_for_boot: false, ..config };
    assert_eq!(id(&Lab::up(1, quick).unwrap()), second);
}

#[test]
fn a_boot_that_hangs_says_what_it_waits_for() {
    let _down = Down("mlabh");
    lab::down("mlabh").unwrap();
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/sleep 1000\n";
    let hang = "etc/systemd/system/hang.service";
    let config = LabConfig {
        docker: false,
        boot_timeout: Duration::from_secs(4),
        files: vec![DiskFile::new(hang, unit)],
        links: vec![("etc/systemd/system/multi-user.target.wants/hang.service".into(), format!("/{hang}"))],
        ..config("mlabh", [10, 96, 0])
    };
    let error = Lab::up(1, config).unwrap_err();
    assert!(matches!(error, Error::BootTimeout { .. }), "{error}");
    assert!(error.to_string().contains("hang.service"), "{error}");
    // It is there to be looked at.
    assert!(Lab::attach("mlabh").unwrap().machine("m1").unwrap().is_running());
}
