//! A machine's root directory. It has what programs need from the host's `/etc`, and nothing that is private or local
//! to the host: no services, keys, users or Docker settings. Debian's normal multi-user.target boots from it, less
//! what has no sense in a container or would reach out to the host.
//!
//! Invariant: `mN/root` exists only complete; it is made as `root.new` and renamed. What the caller wants on the disk
//! is kept as `mN/seed`, so that a wipe by another process gives the same disk.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use crate::config::{MachineName, Settings};
use crate::{DiskFile, Error, Result, run};

/// Copied from the host's `/etc` where they are there.
const FROM_HOST: &[&str] = &[
    "alternatives",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld.so.cache",
    "nsswitch.conf",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pam.d",
    "security",
    "dbus-1",
    "profile",
    "bash.bashrc",
    "services",
    "protocols",
    "rpc",
    "mime.types",
    "login.defs",
    "shells",
    "host.conf",
    "gai.conf",
    "ethertypes",
    "iproute2",
    "terminfo",
    "debian_version",
    "nginx/mime.types",
    "nginx/proxy_params",
    "nginx/fastcgi_params",
];

const DIRECTORIES: &[&str] = &[
    "etc/docker",
    "etc/containerd",
    "etc/ssl",
    "etc/nginx/conf.d",
    "etc/systemd/journald.conf.d",
    "etc/systemd/system/multi-user.target.wants",
    "etc/systemd/system/sockets.target.wants",
    "usr",
    "var/log/nginx",
    "var/log/journal",
    "var/lib/nginx",
    "var/lib/docker",
    "proc",
    "sys",
    "dev",
    "run",
    "root",
    "opt",
    "srv",
    "home",
    "mnt/share",
    "tmp",
    "var/tmp",
];

/// Units that have no sense in a container (consoles, udev, modules, clocks) or would change the host (sysctl, binfmt).
const MASKED: &[&str] = &[
    "getty.target",
    "console-getty.service",
    "systemd-logind.service",
    "systemd-user-sessions.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-hwdb-update.service",
    "systemd-udevd.service",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-udev-trigger.service",
    "systemd-firstboot.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-modules-load.service",
    "kmod-static-nodes.service",
    "systemd-random-seed.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-sysusers.service",
    "systemd-repart.service",
    "systemd-remount-fs.service",
    "dev-hugepages.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "systemd-machine-id-commit.service",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-sysctl.service",
    "systemd-tmpfiles-clean.timer",
    "cryptsetup.target",
    "integritysetup.target",
    "veritysetup.target",
    "systemd-journald-audit.socket",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-oomd.service",
];

/// A lab's machines log much and are read by tests: nothing is rate-limited, and the disk is memory.
const JOURNALD: &str =
    "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitIntervalSec=0\nForwardToConsole=no\n";

/// Docker needs none of these plugins, and each costs start-up time or warns about a missing kernel feature.
const CONTAINERD: &str = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
    \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
    \"io.containerd.snapshotter.v1.devmapper\"]\n";

/// `mime.type[s]` is a pattern, so that a host without nginx's file is no error.
const NGINX: &str = "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nevents { worker_connections 1024; }\n\
    http {\n    include /etc/nginx/mime.type[s];\n    default_type application/octet-stream;\n    access_log off;\n    \
    include /etc/nginx/conf.d/*.conf;\n}\n";

/// Keeps what the caller wants on machine `dir`'s disk.
pub(crate) fn seed(dir: &Path, files: &[DiskFile], links: &[(String, String)]) -> Result<()> {
    let seed = dir.join("seed");
    if seed.exists() {
        fs::remove_dir_all(&seed).map_err(Error::io("remove", &seed))?;
    }
    fs::create_dir_all(&seed).map_err(Error::io("create", &seed))?;
    for file in files {
        write(&seed, file)?;
    }
    for (path, target) in links {
        let path = inside(&seed, Path::new(path))?;
        parents(&path)?;
        let _ = fs::remove_file(&path);
        symlink(target, &path).map_err(Error::io("link", &path))?;
    }
    Ok(())
}

/// Makes `dir/root` from nothing and puts the seed on top.
pub(crate) fn create(dir: &Path, machine: MachineName, settings: &Settings) -> Result<()> {
    let new = dir.join("root.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(Error::io("remove", &new))?;
    }
    for path in DIRECTORIES {
        let path = new.join(path);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    for (path, mode) in [("root", 0o700), ("tmp", 0o1777), ("var/tmp", 0o1777)] {
        let path = new.join(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(Error::io("set the mode of", &path))?;
    }
    copy_from_host(&new)?;
    for file in own_files(machine, settings)? {
        write(&new, &file)?;
    }
    for (path, target) in own_links(settings) {
        let path = new.join(path);
        symlink(&target, &path).map_err(Error::io("link", &path))?;
    }
    overlay(&dir.join("seed"), &new)?;
    let root = dir.join("root");
    fs::rename(&new, &root).map_err(Error::io("create", root))
}

/// Writes one file below `root`, by way of a temporary one: a reader inside sees the old or the new, whole.
pub(crate) fn write(root: &Path, file: &DiskFile) -> Result<()> {
    let path = inside(root, &file.path)?;
    // A link on the disk such as /var/run -> /run would lead to the host's own /run.
    let base = root.canonicalize().map_err(Error::io("find", root))?;
    let real = path.ancestors().skip(1).find_map(|parent| parent.canonicalize().ok());
    if !real.is_some_and(|real| real.starts_with(&base)) {
        return Err(Error::DiskPath {
            path: file.path.clone(),
            why: "a symbolic link leads out of the disk",
        });
    }
    parents(&path)?;
    let mut new = path.clone().into_os_string();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut out = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(file.mode)
        .open(&new)
        .map_err(Error::io("create", &new))?;
    std::io::Write::write_all(&mut out, &file.contents).map_err(Error::io("write", &new))?;
    // The umask has had its say at creation.
    out.set_permissions(fs::Permissions::from_mode(file.mode)).map_err(Error::io("set the mode of", &new))?;
    fs::rename(&new, &path).map_err(Error::io("write", path))
}

/// `/etc/hosts` of every machine: each knows every name.
pub(crate) fn hosts(machines: &[(String, std::net::Ipv4Addr)]) -> String {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for (name, address) in machines {
        let _ = writeln!(text, "{address} {name}");
    }
    text
}

/// A path inside the machine as one on the host. Refuses what is not on the disk.
fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let refuse = |why| Err(Error::DiskPath { path: path.to_owned(), why });
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut parts = relative.components();
    match parts.next() {
        Some(Component::Normal(top)) if parts.all(|part| matches!(part, Component::Normal(_))) => {
            match top.to_str() {
                Some("usr" | "bin" | "sbin" | "lib" | "lib32" | "lib64") => {
                    refuse("/usr is the host's and read-only; use `bin`")
                }
                Some("run" | "proc" | "sys" | "dev") => refuse("it is not on the disk; write it with `exec`"),
                _ => Ok(root.join(relative)),
            }
        }
        _ => refuse("it is not a plain path of a file"),
    }
}

fn parents(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))
}

/// Copies the files and links below `from` over those below `to`. Directories that exist keep their mode (/root, /tmp).
fn overlay(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io("list", from))? {
        let entry = entry.map_err(Error::io("list", from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(Error::io("look at", &path))?;
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(Error::io("create", &target))?;
            overlay(&path, &target)?;
            continue;
        }
        // Through a link that is there, the copy would land where it leads: /etc/localtime is one.
        let _ = fs::remove_file(&target);
        let done = match fs::read_link(&path) {
            Ok(link) => symlink(link, &target),
            Err(_) => fs::copy(&path, &target).map(drop),
        };
        done.map_err(Error::io("create", &target))?;
    }
    Ok(())
}

fn copy_from_host(root: &Path) -> Result<()> {
    let there =
        FROM_HOST.iter().map(|name| format!("etc/{name}")).filter(|path| Path::new("/").join(path).exists());
    let mut copy = run::host("cp", ["-a", "--parents"]);
    copy.current_dir("/").args(there).arg(root);
    run::ok(copy)?;
    // The usual links of a merged /usr, whichever of them this host has.
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        if Path::new("/").join(name).is_symlink() {
            let path = root.join(name);
            symlink(format!("usr/{name}"), &path).map_err(Error::io("link", path))?;
        }
    }
    Ok(())
}

fn own_files(machine: MachineName, settings: &Settings) -> Result<Vec<DiskFile>> {
    let read = |path: &str| fs::read_to_string(path).map_err(Error::io("read", path));
    let passwd = system_accounts(&read("/etc/passwd")?);
    let group = with_docker_group(system_accounts(&read("/etc/group")?));
    let id = read("/proc/sys/kernel/random/uuid")?.replace('-', "");
    Ok(vec![
        // nspawn wants a real file here, not the usual link.
        DiskFile::new("etc/os-release", read("/etc/os-release")?),
        DiskFile::new("etc/shadow", shadow(&passwd)).mode(0o640),
        DiskFile::new("etc/passwd", passwd),
        DiskFile::new("etc/group", group),
        DiskFile::new("etc/hostname", format!("{machine}\n")),
        DiskFile::new("etc/machine-id", id).mode(0o444),
        // The fabric refuses at once. Without an address, Docker gives containers 8.8.8.8 and lookups hang.
        DiskFile::new("etc/resolv.conf", format!("nameserver {}\n", settings.outside())),
        DiskFile::new("etc/systemd/journald.conf.d/lab.conf", JOURNALD),
        DiskFile::new("etc/containerd/config.toml", CONTAINERD),
        DiskFile::new("etc/docker/daemon.json", daemon_json(settings)),
        DiskFile::new("etc/nginx/nginx.conf", NGINX),
    ])
}

fn own_links(settings: &Settings) -> Vec<(String, String)> {
    let system = |name: &str| format!("etc/systemd/system/{name}");
    let shipped = |name: &str| format!("/lib/systemd/system/{name}");
    let mut links = vec![
        ("etc/localtime".to_owned(), "../usr/share/zoneinfo/UTC".to_owned()),
        ("var/run".to_owned(), "/run".to_owned()),
        (system("default.target"), shipped("multi-user.target")),
    ];
    links.extend(MASKED.iter().map(|unit| (system(unit), "/dev/null".to_owned())));
    if settings.docker {
        links.push((system("multi-user.target.wants/docker.service"), shipped("docker.service")));
        links.push((system("sockets.target.wants/docker.socket"), shipped("docker.socket")));
    }
    links
}

/// No `bip` and no `mtu`: dockerd refuses to start when a setting is both here and on its command line, and the
/// subnet is Muster's to give. A short `shutdown-timeout` because tests stop machines all the time.
fn daemon_json(settings: &Settings) -> String {
    let value = serde_json::json!({
        "storage-driver": "overlay2",
        "log-driver": "journald",
        "live-restore": false,
        "shutdown-timeout": 3,
        "insecure-registries": [settings.subnet()],
    });
    format!("{value:#}\n")
}

/// The lines of passwd(5) or group(5) that belong to the system and not to people; 65534 is nobody.
fn system_accounts(text: &str) -> String {
    let id = |line: &str| line.split(':').nth(2).and_then(|id| id.parse::<u32>().ok());
    text.lines()
        .filter(|line| id(line).is_some_and(|id| id < 1000 || id == 65534))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn with_docker_group(mut group: String) -> String {
    if !group.lines().any(|line| line.starts_with("docker:")) {
        group.push_str("docker:x:998:\n");
    }
    group
}

/// Nobody can log in with a password.
fn shadow(passwd: &str) -> String {
    passwd
        .lines()
        .filter_map(|line| line.split(':').next())
        .map(|name| format!("{name}:*:19000:0:99999:7:::\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LabConfig;

    fn settings(docker: bool) -> Settings {
        Settings::new(&LabConfig { docker, ..LabConfig::default() }, "/cg".into())
    }

    #[test]
    fn people_are_not_copied() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nnobody:x:65534:65534::/:/x\n";
        let system = system_accounts(passwd);
        assert_eq!(system, "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/x\n");
        assert_eq!(shadow(&system), "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n");
    }

    #[test]
    fn there_is_one_docker_group() {
        assert_eq!(with_docker_group("root:x:0:\n".into()), "root:x:0:\ndocker:x:998:\n");
        assert_eq!(with_docker_group("docker:x:107:\n".into()), "docker:x:107:\n");
    }

    #[test]
    fn docker_gets_no_subnet_from_the_lab() {
        let json: serde_json::Value = serde_json::from_str(&daemon_json(&settings(true))).unwrap();
        assert_eq!(json["storage-driver"], "overlay2");
        assert_eq!(json["insecure-registries"][0], "10.99.0.0/24");
        assert!(json.get("bip").is_none() && json.get("mtu").is_none());
    }

    #[test]
    fn docker_is_enabled_and_nginx_is_not() {
        let enabled = |docker| {
            let links = own_links(&settings(docker)).into_iter();
            links.filter(|(path, _)| path.contains(".wants/")).map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert_eq!(enabled(true).len(), 2);
        assert!(enabled(false).is_empty());
        assert!(!enabled(true).iter().any(|path| path.contains("nginx")));
        assert!(NGINX.contains("include /etc/nginx/conf.d/*.conf;"));
    }

    #[test]
    fn only_the_disk_can_be_written() {
        let root = Path::new("/r");
        assert_eq!(inside(root, Path::new("/etc/x")).unwrap(), Path::new("/r/etc/x"));
        assert_eq!(inside(root, Path::new("etc/x")).unwrap(), Path::new("/r/etc/x"));
        for bad in ["", "/", "../x", "etc/../../x", "/run/x", "/usr/bin/x", "bin/x", "./x"] {
            assert!(inside(root, Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("var")).unwrap();
        symlink(dir.path(), root.join("var/run")).unwrap();
        assert!(matches!(write(&root, &DiskFile::new("var/run/x", "")), Err(Error::DiskPath { .. })));
        write(&root, &DiskFile::new("/etc/deep/x", "y").mode(0o600)).unwrap();
        let made = root.join("etc/deep/x");
        assert_eq!(fs::read_to_string(&made).unwrap(), "y");
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(root.join("etc/deep")).unwrap().count(), 1);
    }

    #[test]
    fn a_seed_is_written_once_and_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        seed(dir.path(), &[DiskFile::new("etc/old", "")], &[]).unwrap();
        let link = ("etc/systemd/system/a.wants/b".to_owned(), "/etc/b".to_owned());
        seed(dir.path(), &[DiskFile::new("etc/new", "")], std::slice::from_ref(&link)).unwrap();
        fs::create_dir_all(dir.path().join("to/etc")).unwrap();
        symlink("/nowhere", dir.path().join("to/etc/new")).unwrap();
        overlay(&dir.path().join("seed"), &dir.path().join("to")).unwrap();
        assert!(dir.path().join("to/etc/new").is_file());
        let seed = dir.path().join("seed");
        assert!(!seed.join("etc/old").exists() && seed.join("etc/new").exists());
        assert_eq!(fs::read_link(seed.join(link.0)).unwrap(), Path::new("/etc/b"));
    }

    #[test]
    fn every_machine_knows_every_name() {
        let machines = [("m1".to_owned(), [10, 99, 0, 1].into()), ("m2".to_owned(), [10, 99, 0, 2].into())];
        assert_eq!(hosts(&machines), "127.0.0.1 localhost\n10.99.0.1 m1\n10.99.0.2 m2\n");
    }
}
