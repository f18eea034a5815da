//! The daemon itself: `muster agent` with nothing but the cluster network, on three machines that are namespaces, and a
//! hub on a fourth. How long after a machine's lease was written all three have its route, which is the last thing that
//! they make of it.

use crate::{crowd, lab::Cluster, lab::Namespace, median};
use access::Access;
use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use model::{keys, network::NodeRecord};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteAddress, route::RouteAttribute};
use registry::{Store, Write};
use rtnetlink::{MulticastGroup, new_multicast_connection, packet_core::NetlinkPayload};
use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How many machines come, one after the other.
const COME: u32 = 30;
/// Between two of them: everybody is at rest again.
const REST: Duration = Duration::from_millis(200);
/// Nothing takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where the hub is.
const HUB: &str = "http://192.168.77.254:2379";
/// How many keys one transaction writes; etcd allows 128.
const AT_ONCE: usize = 100;

/// The section of the report. `muster` is the program.
pub fn report(muster: &Path) -> Result<String> {
    let mut text = format!(
        "\n## A machine comes\n\n`muster agent` with the overlay as its only role on three machines, `muster hub serve` on a fourth. {COME} leases \
         are written, one after the\nother, into a network that has so many peers already. *acknowledged*: the hub's answer to the writer; *after \
         that*, *from the write*: until\nthe slowest of the three has the new peer's neighbour, forwarding entry, rules and, last, its route. All in ms. \
         *device lost*: from\n`ip link del flannel.1` until device and routes of all peers are back. *idle round*: one comparison with nothing to do, by the daemon's own \
         clock.\n\n| peers | acknowledged p50 | after that p50 | from the write p50 | p95 | max | device lost | idle round | VmRSS MiB | of it RssAnon |\n\
         |---|---|---|---|---|---|---|---|---|---|\n"
    );
    for peers in [10, 100, 1000] {
        let row = Rig::start(muster)?.row(peers)?;
        eprint!("{row}");
        text += &row;
    }
    Ok(text)
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM); // it may be gone
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.0.kill(); // the same
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Routes that appear on a machine.
struct Ear(mpsc::Receiver<(Ipv4Addr, Instant)>);

impl Ear {
    fn open(host: &Namespace) -> Result<Self> {
        let namespace = File::open(format!("/proc/{}/ns/net", host.pid()))?;
        let (sender, receiver) = mpsc::channel();
        let (opened, is_open) = mpsc::channel();
        thread::spawn(move || -> Result<()> {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (connection, _, mut messages) = new_multicast_connection(&[MulticastGroup::Ipv4Route])?;
                tokio::spawn(connection);
                let _ = opened.send(()); // whoever waits is there
                while let Some((message, _)) = messages.next().await {
                    let now = Instant::now();
                    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = message.payload
                    else {
                        continue;
                    };
                    let to = route.attributes.iter().find_map(|attribute| match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(*to),
                        _ => None,
                    });
                    if let Some(to) = to
                        && sender.send((to, now)).is_err()
                    {
                        break;
                    }
                }
                Ok(())
            })
        });
        is_open.recv_timeout(DEADLINE).context("no ear for routes")?;
        Ok(Self(receiver))
    }

    /// When the route to `to` came.
    fn hear(&self, to: Ipv4Addr) -> Result<Instant> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (came, at) =
                self.0.recv_timeout(left).with_context(|| format!("no route to {to} within {DEADLINE:?}"))?;
            if came == to {
                return Ok(at);
            }
        }
    }

    fn forget(&self) {
        while self.0.try_recv().is_ok() {}
    }
}

/// In this order: the processes end before the namespaces go.
struct Rig {
    agents: Vec<Running>,
    ears: Vec<Ear>,
    store: Store,
    runtime: Runtime,
    _hub: Running,
    cluster: Cluster,
    hubs_host: Namespace,
    files: TempDir,
}

impl Rig {
    fn start(muster: &Path) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let cluster = Cluster::new(3);
        let hubs_host = cluster.outsider(254);
        let data = files.path().join("hub");
        let hub = hubs_host.enter(|| {
            let mut command = Command::new(muster);
            command.args(["hub", "serve", "--listen", "192.168.77.254:2379", "--data-dir"]).arg(&data);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        });
        let hub = Running(hub.with_context(|| format!("failed to run {}", muster.display()))?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let store = hubs_host.enter(|| runtime.block_on(Store::connect(Access::open(&[HUB.to_owned()]))))?;
        let mut rig = Self {
            agents: Vec::new(),
            ears: Vec::new(),
            store,
            runtime,
            _hub: hub,
            cluster,
            hubs_host,
            files,
        };
        let mut writes = vec![Write::put(keys::NETWORK_CONFIG, crowd::CONFIG)];
        for machine in &rig.cluster.machines {
            let record = serde_json::to_vec(&NodeRecord::new(machine.subnet.into(), machine.ip))?;
            writes.push(Write::put(keys::network_node(&machine.id), record));
        }
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = rig.write(&writes) {
            ensure!(Instant::now() < deadline, "the hub does not answer: {error:#}");
            thread::sleep(Duration::from_millis(50));
        }
        for machine in &rig.cluster.machines {
            rig.ears.push(Ear::open(&machine.host)?);
            let id = rig.files.path().join(format!("machine-id-{}", machine.number));
            std::fs::write(&id, format!("{}\n", machine.id))?;
            // Its own /run and /var/lib, and its own identity.
            let script = format!(
                "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && mount --bind {} /etc/machine-id && \
                 exec {} agent",
                id.display(),
                muster.display()
            );
            let agent = machine.host.enter(|| {
                let mut command = Command::new("unshare");
                command
                    .args(["--mount", "sh", "-c", &script])
                    .env("MUSTER_HUB_ENDPOINTS", format!("[\"{HUB}\"]"));
                for role in ["AGENT", "ENGINE", "REGISTRAR", "ROUTER_DNS"] {
                    command.env(format!("MUSTER_{role}_ENABLED"), "false");
                }
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
            })?;
            rig.agents.push(Running(agent));
        }
        Ok(rig)
    }

    /// When it was sent, and when the hub answered.
    fn write(&self, writes: &[Write]) -> Result<(Instant, Instant)> {
        let (runtime, store) = (&self.runtime, &self.store);
        self.hubs_host.enter(|| {
            let begin = Instant::now();
            runtime.block_on(store.commit(&[], writes))?;
            Ok((begin, Instant::now()))
        })
    }

    fn row(&self, peers: u32) -> Result<String> {
        let put = |number| -> Result<Write> {
            let stranger = crowd::stranger(number);
            Ok(Write::put(keys::subnet(stranger.subnet), serde_json::to_vec(&stranger.lease)?))
        };
        // The three are each other's peers.
        let strangers = peers.saturating_sub(2);
        let writes = (0..strangers).map(put).collect::<Result<Vec<_>>>()?;
        writes.chunks(AT_ONCE).try_for_each(|writes| self.write(writes).map(drop))?;
        self.wait_for_routes(peers as usize)?;
        thread::sleep(REST * 5);
        let [mut acknowledged, mut after, mut whole] = <[Vec<f64>; 3]>::default();
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        for number in strangers..strangers + COME {
            self.ears.iter().for_each(Ear::forget);
            let (write, to) = (put(number)?, crowd::stranger(number).subnet.base());
            let (begin, answered) = self.write(&[write])?;
            let heard = self.ears.iter().map(|ear| ear.hear(to)).collect::<Result<Vec<_>>>()?;
            let last = heard.into_iter().max().context("three are there")?;
            acknowledged.push(ms(begin, answered));
            after.push(ms(answered, last));
            whole.push(ms(begin, last));
            thread::sleep(REST);
        }
        let (idle, pid) = (self.last_round()?, self.agents[0].0.id());
        let (rss, anonymous) = (memory(pid, "VmRSS:")?, memory(pid, "RssAnon:")?);
        let lost = self.lose_device((strangers + COME) as usize + 2)?;
        whole.sort_by(f64::total_cmp);
        let at = |share: f64| whole[((whole.len() - 1) as f64 * share).round() as usize];
        Ok(format!(
            "| {peers} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {lost:.0} | {idle:.1} | {rss:.1} | {anonymous:.1} |\n",
            median(acknowledged),
            median(after),
            at(0.5),
            at(0.95),
            at(1.0),
        ))
    }

    fn wait_for_routes(&self, wanted: usize) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let has = |host: &Namespace| host.run("ip -4 route").matches(" proto 77 ").count();
        while self.cluster.machines.iter().any(|machine| has(&machine.host) < wanted) {
            let seen: Vec<_> = self.cluster.machines.iter().map(|machine| has(&machine.host)).collect();
            ensure!(Instant::now() < deadline, "{seen:?} of {wanted} routes");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Milliseconds until a machine whose device is deleted has it again with its `routes`.
    fn lose_device(&self, routes: usize) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..5 {
            self.ears[0].forget();
            let begin = Instant::now();
            self.cluster.machines[0].host.run("ip link del flannel.1");
            let mut last = begin;
            let mut heard = 0;
            while heard < routes {
                let (to, at) =
                    self.ears[0].0.recv_timeout(DEADLINE).context("the device does not come back")?;
                // The device's own address is a route too, of the table `local`.
                heard += usize::from(to.octets()[3] == 0 && to != self.cluster.machines[0].subnet.base());
                last = at;
            }
            times.push((last - begin).as_secs_f64() * 1e3);
            thread::sleep(REST * 2);
        }
        Ok(median(times))
    }

    /// Milliseconds, as the daemon's metrics tell.
    fn last_round(&self) -> Result<f64> {
        let socket = PathBuf::from(format!("/proc/{}/root/run/muster/muster.sock", self.agents[0].0.id()));
        let asked = Command::new("curl")
            .args(["--silent", "--unix-socket"])
            .arg(&socket)
            .arg("http://localhost/metrics")
            .output()?;
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("muster_overlay_last_round_seconds "));
        Ok(line.context("no such metric")?.trim().parse::<f64>()? * 1e3)
    }
}

/// A line of proc(5)'s `status`, in MiB.
fn memory(pid: u32, field: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(kib.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
