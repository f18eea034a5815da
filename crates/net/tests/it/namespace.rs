//! Namespaces with a cable to the containers' bridge.

use crate::lab::{Cluster, Machine};
use net::{
    NetError,
    namespace::{Leg, attach, detach},
};
use std::{
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, TcpListener},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    thread,
};

fn leg(machine: &Machine, directory: &Path, last: u8) -> Leg {
    let address = Ipv4Addr::new(10, 1, machine.number, last);
    Leg {
        path: directory.join("unit"),
        port: "mu1".to_owned(),
        bridge: "docker0".to_owned(),
        gateway: machine.subnet.bridge(),
        address: ipnet::Ipv4Net::new(address, 24).expect("a length"),
        mtu: 1450,
    }
}

fn make(machine: &Machine, leg: &Leg) -> Result<(), NetError> {
    machine.host.enter(|| attach(leg))
}

fn inside<T: Send>(leg: &Leg, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(&leg.path).expect("the namespace is there");
    let work = move || {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), None).expect("root may enter");
        work()
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn shown(leg: &Leg, line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let output =
        inside(leg, || std::process::Command::new("ip").args(&words).output().expect("ip is needed"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Answers one connection to port 3000 with the address that it came from.
fn serve(leg: &Leg) -> thread::JoinHandle<()> {
    let listener =
        inside(leg, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 3000)).expect("the port is free"));
    thread::spawn(move || {
        let (mut connection, from) = listener.accept().expect("somebody comes");
        write!(connection, "{}", from.ip()).expect("it listens");
    })
}

#[test]
fn a_namespace_is_reached_from_another_machine_under_its_own_address() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::new(2);
    cluster.converge();
    let [one, two] = cluster.machines.as_slice() else { panic!("two machines") };
    let first = leg(one, directory.path(), 200);
    make(one, &first).expect("made");
    let served = serve(&first);
    two.container.reaches(first.address.addr(), two.container_ip);
    served.join().expect("asked");

    // What is right is not touched.
    let everything = || {
        [
            shown(&first, "-o -4 address"),
            shown(&first, "link"),
            shown(&first, "route"),
            one.host.run("ip -o link show mu1"),
        ]
    };
    let (before, inode) = (everything(), fs::metadata(&first.path).expect("there").ino());
    make(one, &first).expect("made again");
    assert_eq!(everything(), before);

    // Another address, in a namespace in which somebody may run.
    let second = leg(one, directory.path(), 201);
    make(one, &second).expect("changed");
    assert_eq!(fs::metadata(&first.path).expect("there").ino(), inode);
    let addresses = shown(&second, "-4 -o address show dev eth0");
    assert!(addresses.contains("10.1.1.201/24") && !addresses.contains("10.1.1.200"), "{addresses}");
    let served = serve(&second);
    two.container.reaches(second.address.addr(), two.container_ip);
    served.join().expect("asked");

    // A cable that was cut.
    one.host.run("ip link del mu1");
    make(one, &second).expect("mended");
    let served = serve(&second);
    one.container.reaches(second.address.addr(), one.container_ip);
    served.join().expect("asked");

    for _ in 0..2 {
        one.host.enter(|| detach(&second.path, &second.port)).expect("gone");
    }
    assert!(!second.path.exists());
    assert!(!one.host.run("ip link").contains("mu1"));
}

#[test]
fn the_bridge_is_made_where_there_is_none_and_left_alone_where_it_is_somebody_elses() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::new(1);
    let one = &cluster.machines[0];
    let first = leg(one, directory.path(), 200);
    one.host.run("ip address del 10.1.1.1/24 dev docker0");
    one.host.run("ip address add 172.17.0.1/16 dev docker0");
    let refused = make(one, &first).expect_err("Docker has another subnet").to_string();
    assert!(refused.contains("`docker0` does not have 10.1.1.1/24"), "{refused}");
    assert!(!first.path.exists());

    one.host.run("ip link del docker0");
    make(one, &first).expect("made");
    assert!(one.host.run("ip -o -4 address show dev docker0").contains("10.1.1.1/24"));
    let served = serve(&first);
    one.host.reaches(first.address.addr(), one.subnet.bridge());
    served.join().expect("asked");

    // Our own bridge follows the subnet.
    let moved = Leg {
        gateway: Ipv4Addr::new(10, 1, 9, 1),
        address: "10.1.9.200/24".parse().expect("a network"),
        ..first
    };
    make(one, &moved).expect("moved");
    let addresses = one.host.run("ip -o -4 address show dev docker0");
    assert!(addresses.contains("10.1.9.1/24") && !addresses.contains("10.1.1.1/24"), "{addresses}");
    let served = serve(&moved);
    one.host.reaches(moved.address.addr(), moved.gateway);
    served.join().expect("asked");
    one.host.enter(|| detach(&moved.path, &moved.port)).expect("gone");
}
