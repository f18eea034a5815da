//! Muster on a lab's machines, installed with the files that a user would install: `packaging/`, one configuration
//! file a machine, and nothing else. m1 embeds the hub and runs nginx; the others are told where the hub is.

use anyhow::{Context, Result, bail, ensure};
use lab::{DiskFile, Lab, LabConfig, Machine, MachineInfo};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// The classic sidekick and the app, as a user has them.
pub const SOMEAPP: &str = include_str!("../../examples/someapp/someapp@.service");
/// See [`SOMEAPP`].
pub const SIDEKICK: &str = include_str!("../../examples/someapp/someapp-discovery@.service");
/// The app without a sidekick.
pub const REGISTERED: &str = include_str!("../../examples/someapp/someapp-registered@.service");
const SERVICE: &str = include_str!("../../packaging/muster.service");
const GUIDE: &str = include_str!("../../docs/guide.md");
const DOCKER: &str = include_str!("../../packaging/docker.service.d-muster.conf");

/// All of the cluster network, as the default configuration has it.
pub const NETWORK: &str = "10.1.0.0/16";

/// Nothing on the lab takes longer, however busy the box is.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// A running cluster.
pub struct Cluster {
    /// Its machines.
    pub lab: Lab,
}

/// Who keeps the cluster's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hub {
    /// m1's daemon.
    Embedded,
    /// Debian's etcd on m1.
    Etcd,
    /// m1's daemon with client certificates, made as the guide says, and a user whose logins expire soon. Of two
    /// machines.
    Secured,
}

/// How long logins to [`Hub::Secured`] last that nobody uses.
pub const LOGIN: Duration = Duration::from_secs(2);

/// The commands of the guide that are marked with `<!-- run: NAME -->`, for machines of another network.
pub fn guide(name: &str, network: [u8; 3]) -> Result<String> {
    let (_, rest) = GUIDE
        .split_once(&format!("<!-- run: {name} -->\n```sh\n"))
        .with_context(|| format!("the guide has no commands `{name}`"))?;
    let (commands, _) = rest.split_once("\n```").context("the guide's commands do not end")?;
    let [a, b, c] = network;
    Ok(commands.replace("10.0.0.", &format!("{a}.{b}.{c}.")))
}

/// The files that the guide's commands make.
fn secrets(network: [u8; 3]) -> Result<BTreeMap<String, Vec<u8>>> {
    let directory = tempfile::tempdir()?;
    for name in ["certificates", "passwords"] {
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &guide(name, network)?]).current_dir(directory.path());
        let output = shell.output().context("cannot run sh")?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory.path())? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    Ok(files)
}

/// Where the programs that were built are: beside the one that runs.
pub(crate) fn built() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running program")?;
    let directory = own.parent().context("it is in no directory")?;
    let directory =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    for program in ["muster", "someapp", "load"] {
        ensure!(
            directory.join(program).is_file(),
            "{} was not built: use `make demo` or `make test`, which build it first",
            directory.join(program).display()
        );
    }
    Ok(directory.to_owned())
}

/// The directory that machines see as /usr/local/bin: muster, the older names by which it is called, and the app, for
/// units that are no containers.
pub fn programs() -> Result<PathBuf> {
    let built = built()?;
    let bin = built.join("lab-bin");
    fs::create_dir_all(&bin)?;
    // By renaming, because machines that are up may be running the old one.
    for program in ["muster", "someapp"] {
        let staged = bin.join(format!(".{program}.new"));
        fs::copy(built.join(program), &staged)?;
        fs::rename(&staged, bin.join(program))?;
    }
    for name in ["etcdctl", "fleetctl"] {
        if fs::symlink_metadata(bin.join(name)).is_err() {
            std::os::unix::fs::symlink("muster", bin.join(name))?;
        }
    }
    Ok(bin)
}

impl Cluster {
    /// Boots `machines` machines as the lab `name`, from scratch, and waits until all of them are in the cluster
    /// and have the app's image.
    pub fn up(name: &str, network: [u8; 3], machines: usize) -> Result<Self> {
        Self::up_with(name, network, machines, Hub::Embedded)
    }

    /// The same with another hub.
    pub fn up_with(name: &str, network: [u8; 3], machines: usize, hub: Hub) -> Result<Self> {
        lab::down(name)?;
        let mut extra = Vec::new();
        let mut needs = Vec::new();
        if hub == Hub::Etcd {
            extra.push((wants("etcd-hub.service"), "/etc/systemd/system/etcd-hub.service".to_owned()));
            needs.push(("etcd".to_owned(), "etcd-server".to_owned()));
        }
        let secrets = if hub == Hub::Secured { secrets(network)? } else { BTreeMap::new() };
        let config = LabConfig {
            name: name.to_owned(),
            network,
            bin: Some(programs()?),
            files: vec![
                DiskFile::new("/etc/systemd/system/muster.service", SERVICE),
                DiskFile::new("/etc/systemd/system/docker.service.d/muster.conf", DOCKER),
                DiskFile::new("/root/someapp@.service", SOMEAPP),
                DiskFile::new("/root/someapp-discovery@.service", SIDEKICK),
                DiskFile::new("/root/someapp-registered@.service", REGISTERED),
            ],
            links: [vec![(wants("muster.service"), "/etc/systemd/system/muster.service".to_owned())], extra]
                .concat(),
            machine_files: Some(Arc::new(move |machine| files(machine, hub, &secrets))),
            needs: [
                vec![
                    ("nginx".to_owned(), "nginx-light".to_owned()),
                    ("curl".to_owned(), "curl".to_owned()),
                    ("iptables".to_owned(), "iptables".to_owned()),
                    ("etcdctl".to_owned(), "etcd-client".to_owned()),
                    ("sshd".to_owned(), "openssh-server".to_owned()),
                ],
                needs,
            ]
            .concat(),
            ..LabConfig::default()
        };
        let lab = Lab::up(machines, config)?;
        let cluster = Self { lab };
        cluster.m1().exec_ok(&["systemctl", "enable", "--now", "--quiet", "nginx.service"])?;
        cluster.load_someapp()?;
        eventually("all machines are in the cluster", || Ok(cluster.list("machines")?.len() == machines))?;
        Ok(cluster)
    }

    /// The first machine: hub, nginx, and where commands are typed.
    pub fn m1(&self) -> Machine {
        self.lab.machine("m1").expect("every cluster has an m1")
    }

    /// Imports the app's image into every machine's Docker: one static program and nothing else.
    fn load_someapp(&self) -> Result<()> {
        let tar = Command::new("tar")
            .args(["--create", "--owner=0", "--group=0", "--file=-", "--directory"])
            .arg(built()?)
            .arg("someapp")
            .output()
            .context("cannot run tar")?;
        ensure!(tar.status.success(), "tar failed: {}", String::from_utf8_lossy(&tar.stderr));
        let import = |machine: Machine| -> Result<()> {
            let change = "ENTRYPOINT [\"/someapp\"]";
            let command = ["docker", "import", "--change", change, "-", "someapp:latest"];
            let mut child = machine.command(&command)?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
            std::io::Write::write_all(&mut child.stdin.take().context("stdin is piped")?, &tar.stdout)?;
            ensure!(child.wait()?.success(), "docker import failed on {}", machine.name());
            Ok(())
        };
        thread::scope(|scope| {
            let imports: Vec<_> =
                self.lab.machines().into_iter().map(|machine| scope.spawn(|| import(machine))).collect();
            imports.into_iter().try_for_each(|import| import.join().expect("an import does not panic"))
        })
    }

    /// A command on m1, in a shell, in the directory with the unit files.
    pub fn sh(&self, script: &str) -> Result<String> {
        Ok(self.m1().exec_ok(&["sh", "-c", &format!("cd /root && {script}")])?)
    }

    /// `muster …` on m1; its stdout.
    pub fn muster(&self, arguments: &[&str]) -> Result<String> {
        let command: Vec<_> = ["muster"].iter().chain(arguments).copied().collect();
        Ok(self.m1().exec_ok(&command)?)
    }

    /// The rows of `machines` or `units`, as JSON.
    pub fn list(&self, what: &str) -> Result<Vec<serde_json::Value>> {
        let verb = format!("list-{what}");
        let answer: serde_json::Value = serde_json::from_str(&self.muster(&[&verb, "--output", "json"])?)?;
        answer[what].as_array().cloned().with_context(|| format!("{verb} gave no {what}"))
    }

    /// Where units run and how: unit, machine's name, active state.
    pub fn units(&self) -> Result<Vec<Running>> {
        let mut running = Vec::new();
        for unit in self.list("units")? {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            for on in unit["machines"].as_array().into_iter().flatten() {
                running.push(Running {
                    unit: text(&unit["name"]),
                    machine: text(&on["name"]),
                    active: text(&on["state"]["active"]),
                    scheduled: on["scheduled"].as_bool().unwrap_or_default(),
                });
            }
        }
        Ok(running)
    }

    /// The machine on which `unit` is active.
    pub fn home(&self, unit: &str) -> Result<Option<Machine>> {
        let found =
            self.units()?.into_iter().find(|row| row.unit == unit && row.active == "active" && row.scheduled);
        Ok(found.map(|row| self.lab.machine(&row.machine)).transpose()?)
    }

    /// The keys under `/services/someapp/upstream/`, with their values.
    pub fn upstreams(&self) -> Result<Vec<(String, String)>> {
        let keys = self.sh("muster kv ls --recursive /services 2>/dev/null | grep /upstream/ || true")?;
        keys.lines().map(|key| Ok((key.to_owned(), self.muster(&["kv", "get", key])?))).collect()
    }

    /// The load balancer's page, asked for from outside the cluster.
    pub fn page(&self) -> Result<String> {
        let url = format!("http://{}/", self.m1().address());
        Ok(self.lab.outside().exec_ok(&["curl", "--silent", "--fail", "--max-time", "5", &url])?)
    }
}

/// A unit on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub unit: String,
    /// The machine's name; empty when the machine is gone.
    pub machine: String,
    /// systemd's ActiveState.
    pub active: String,
    /// Whether it is to run there.
    pub scheduled: bool,
}

/// Where a unit is enabled.
fn wants(unit: &str) -> String {
    format!("/etc/systemd/system/multi-user.target.wants/{unit}")
}

/// How the guide has a machine speak to the hub.
const SECURED: &str = "cert-file = \"/etc/muster/hub.crt\"\nkey-file = \"/etc/muster/hub.key\"\n\
                       ca-file = \"/etc/muster/hub-ca.crt\"\nuser = \"muster\"\n\
                       password-file = \"/etc/muster/hub.password\"\n";

/// The machine's own configuration.
fn files(machine: &MachineInfo, hub: Hub, secrets: &BTreeMap<String, Vec<u8>>) -> Vec<DiskFile> {
    let (_, first) = machine.machines.first().expect("a lab has a machine");
    let mut files = Vec::new();
    let endpoints = format!("endpoints = [\"http://{first}:2379\"]\n");
    let section = match (hub, machine.number) {
        (Hub::Embedded, 1) => "listen = \"0.0.0.0:2379\"\n".to_owned(),
        (Hub::Secured, 1) => format!(
            "listen = \"0.0.0.0:2379\"\nclient-ca-file = \"/etc/muster/hub-ca.crt\"\nauth-token-ttl = \"{}s\"\n{SECURED}",
            LOGIN.as_secs()
        ),
        (Hub::Secured, _) => endpoints.replace("http:", "https:") + SECURED,
        _ => endpoints,
    };
    if hub == Hub::Secured {
        let secret = |name: &str| secrets.get(name).cloned().unwrap_or_default();
        for (path, name) in [
            ("/etc/muster/hub-ca.crt", "ca.crt".to_owned()),
            ("/etc/muster/hub.crt", format!("{}.crt", machine.name)),
            ("/etc/muster/hub.key", format!("{}.key", machine.name)),
            ("/etc/muster/hub.password", "hub.password".to_owned()),
            ("/root/root.password", "root.password".to_owned()),
        ] {
            files.push(DiskFile::new(path, secret(&name)).mode(0o600));
        }
    }
    if hub == Hub::Etcd {
        // The others have the unit too, and a condition that is not met there.
        let unit = format!(
            "[Unit]\nConditionHost=m1\n[Service]\nType=notify\nExecStart=/usr/bin/etcd --name m1 --data-dir /var/lib/etcd-hub \
             --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://{first}:2379 --logger=zap\n"
        );
        files.push(DiskFile::new("/etc/systemd/system/etcd-hub.service", unit));
    }
    // Two gateways, so that whoever drains has more than one to wait for; nginx has port 80 of m1.
    let router = match machine.number {
        1 => {
            "\n[router.nginx]\nenabled = true\n\n[router.gateway]\nenabled = true\nhttp = [\"0.0.0.0:8080\"]\n"
        }
        2 => "\n[router.gateway]\nenabled = true\n",
        _ => "",
    };
    let (address, number) = (machine.address, machine.number);
    let text = format!(
        "[machine]\naddress = \"{address}\"\nmetadata = {{ number = \"{number}\" }}\n\n[api]\nlisten = \"{address}:49153\"\nfleet-socket = \"/run/fleet.sock\"\n\n[hub]\n{section}{router}"
    );
    files.push(DiskFile::new("/etc/muster/muster.toml", text));
    files
}

/// Waits until `check` holds; fails after [`DEADLINE`] with the last thing that `check` said.
pub fn eventually(what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let outcome = check();
        if matches!(outcome, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            match outcome {
                Err(error) => {
                    return Err(error.context(format!("not within {} s: {what}", DEADLINE.as_secs())));
                }
                Ok(_) => bail!("not within {} s: {what}", DEADLINE.as_secs()),
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The path of a file in the machine's root, for reading it from outside.
pub fn on_disk(machine: &Machine, path: &str) -> PathBuf {
    machine.root().join(Path::new(path).strip_prefix("/").unwrap_or_else(|_| Path::new(path)))
}
