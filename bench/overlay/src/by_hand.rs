//! The peer: what flannel has in the kernel, made with the commands that one would type, and wireguard-go.

use crate::lab::{Machine, Namespace};
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use muster_core::overlay::{Family, vtep_mac};
use net::wireguard::key::PrivateKey;
use std::{
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Sees to it that a program is here, by Debian's package if need be.
pub fn need(program: &str, package: &str) -> Result<()> {
    let has = || {
        let which = Command::new("which").arg(program).stdout(Stdio::null()).status();
        which.is_ok_and(|status| status.success())
    };
    if !has() {
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends", package]);
        install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).stderr(Stdio::null());
        let _ = install.status(); // whether it helped is looked at next
    }
    ensure!(has(), "`{program}` is not here, and Debian's package {package} could not be installed");
    Ok(())
}

/// The way from `one` to the containers of `other`.
pub fn datapath(backend: &str, one: &Machine, other: &Machine) {
    let (own, peer) = (one.number, other.number);
    let mac = |machine: &Machine| vtep_mac(&machine.id, 1, Family::V4);
    let commands = match backend {
        "vxlan" => vec![
            format!(
                "ip link add flannel.1 address {} mtu 1450 type vxlan id 1 local {} dev eth0 dstport 8472 nolearning",
                mac(one),
                one.ip
            ),
            format!("ip address add 10.1.{own}.0/32 dev flannel.1"),
            "ip link set flannel.1 up".to_owned(),
            format!("ip neighbour replace 10.1.{peer}.0 lladdr {} dev flannel.1 nud permanent", mac(other)),
            format!("bridge fdb replace {} dev flannel.1 dst {} self permanent", mac(other), other.ip),
            format!("ip route replace 10.1.{peer}.0/24 via 10.1.{peer}.0 dev flannel.1 onlink"),
        ],
        _ => vec![format!("ip route replace 10.1.{peer}.0/24 via {} dev eth0", other.ip)],
    };
    commands.iter().for_each(|command| drop(one.host.run(command)));
}

/// flannel's own rules (`pkg/trafficmngr/iptables`), in its order.
pub fn rules(machine: &Machine) -> Result<()> {
    let (network, subnet) = ("10.1.0.0/16", machine.subnet.net());
    let text = format!(
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
         -A FLANNEL-POSTRTG -s {subnet} -d {network} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} -d {subnet} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {subnet} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {network} -j MASQUERADE --random-fully\nCOMMIT\n\
         *filter\n:FLANNEL-FWD - [0:0]\n\
         -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {network} -j ACCEPT\n-A FLANNEL-FWD -d {network} -j ACCEPT\nCOMMIT\n"
    );
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    machine.host.run(&format!("iptables-restore --noflush {}", file.path().display()));
    Ok(())
}

/// A private key.
pub struct Secret {
    bytes: [u8; 32],
    public: [u8; 32],
}

/// A new one.
pub fn secret() -> Result<Secret> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    // Curve25519's form (RFC 7748).
    bytes[0] &= 248;
    bytes[31] = bytes[31] & 127 | 64;
    let key: PrivateKey = BASE64_STANDARD.encode(bytes).parse().context("32 bytes are a key")?;
    Ok(Secret { bytes, public: key.public().bytes() })
}

/// Debian's wireguard-go, in the namespace of a machine.
pub struct WireguardGo(Child);

impl WireguardGo {
    /// On `one`, with `other` as its peer.
    pub fn start(one: &Machine, own: &Secret, other: &Machine, theirs: &Secret) -> Result<Self> {
        // Its socket lies under /run, which is another one for it.
        let script =
            "mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec wireguard-go --foreground flannel-wg";
        let child = one.host.enter(|| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", script]);
            // It warns that the kernel might do this better.
            command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        })?;
        let started = Self(child);
        let path = PathBuf::from(format!("/proc/{}/root/run/wireguard/flannel-wg.sock", started.0.id()));
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut socket = loop {
            match UnixStream::connect(&path) {
                Ok(socket) => break socket,
                Err(error) if Instant::now() > deadline => return Err(error).context("it does not start"),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        write!(
            socket,
            "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\nendpoint={}:51820\nallowed_ip={}\n\n",
            hex(&own.bytes),
            hex(&theirs.public),
            other.ip,
            other.subnet.net()
        )?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer)?;
        ensure!(answer.trim() == "errno=0", "it refuses its configuration: {answer}");
        one.host.run("ip link set flannel-wg mtu 1420 up");
        one.host.run(&format!("ip address add 10.1.{}.0/32 dev flannel-wg", one.number));
        one.host.run(&format!("ip route add {} dev flannel-wg", other.subnet.net()));
        Ok(started)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for WireguardGo {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may be gone
        let _ = self.0.wait(); // the same
    }
}

/// Writes the entries of `peers` for ip(8) and bridge(8), to be read with `-batch`, and gives how long the two programs
/// take over them.
pub fn batch(host: &Namespace, peers: &[(ipnet::Ipv4Net, std::net::Ipv4Addr, String)]) -> Result<Duration> {
    let (mut ip, mut routes, mut fdb) = (String::new(), String::new(), String::new());
    for (net, machine, mac) in peers {
        let base = net.network();
        ip += &format!("neighbour replace {base} lladdr {mac} dev flannel.1 nud permanent\n");
        fdb += &format!("fdb replace {mac} dev flannel.1 dst {machine} self permanent\n");
        routes += &format!("route replace {net} via {base} dev flannel.1 onlink proto 77\n");
    }
    let directory = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<PathBuf> {
        let path = directory.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let (ip, fdb) = (file("ip", &(ip + &routes))?, file("fdb", &fdb)?);
    let begin = Instant::now();
    host.run(&format!("ip -batch {}", ip.display()));
    host.run(&format!("bridge -batch {}", fdb.display()));
    Ok(begin.elapsed())
}
