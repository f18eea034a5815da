//! Names and what they answer: every form, what is there and what is not, and who is left out.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const ALL: Choice = Choice { most: usize::MAX, seed: 1 };

fn instance(name: &str, last: u8, machine: &str) -> Instance {
    Instance {
        name: name.to_owned(),
        address: SocketAddrV4::new(Ipv4Addr::new(10, 1, 5, last), 3000),
        weight: 10,
        machine: Some(machine.to_owned()),
        healthy: true,
        draining: false,
    }
}

fn snapshot() -> Snapshot {
    let someapp = vec![
        instance("someapp@1", 1, "node1"),
        instance("someapp@2", 2, "node2"),
        instance("someapp@3", 3, "node1"),
    ];
    let sick = vec![Instance { healthy: false, ..instance("sick@1", 9, "node1") }];
    Snapshot {
        network: Some("10.1.0.0/16".parse().expect("a network")),
        machine: "node2".to_owned(),
        servers: vec![Ipv4Addr::new(10, 1, 2, 1)],
        serial: 7,
        services: BTreeMap::from([
            ("someapp".to_owned(), someapp),
            ("sick".to_owned(), sick),
            ("idle".to_owned(), Vec::new()),
        ]),
        ..Snapshot::default()
    }
}

/// In one line: what an answer says, sorted where chance decides.
fn ask(snapshot: &Snapshot, name: &str, kind: Kind) -> String {
    let soa = |soa: &Record| format!("{} {}", soa.name, soa.ttl);
    match snapshot.answer(name, kind, ALL) {
        Reply::NotOurs => "not ours".to_owned(),
        Reply::Empty(record) => format!("empty {}", soa(&record)),
        Reply::NoSuchName(record) => format!("no such name {}", soa(&record)),
        Reply::Records { answers, additionals, cut } => {
            let mut texts: Vec<_> = answers.iter().map(text).collect();
            texts.sort();
            let mut more: Vec<_> =
                additionals.iter().map(|record| format!("+{} {}", record.name, text(record))).collect();
            more.sort();
            assert!(!cut);
            let ttls: BTreeSet<_> = answers.iter().map(|record| record.ttl).collect();
            format!("{ttls:?} {}", [texts, more].concat().join(", "))
        }
    }
}

fn text(record: &Record) -> String {
    match &record.data {
        Data::A(address) => address.to_string(),
        Data::Srv { priority, weight, port, target } => format!("{priority} {weight} {port} {target}"),
        Data::Ptr(name) | Data::Ns(name) => name.clone(),
        Data::Txt(texts) => texts.join(" "),
        Data::Soa { server, serial, minimum } => format!("{server} {serial} {minimum}"),
    }
}

#[test]
fn every_form_of_a_name_is_answered() {
    let snapshot = snapshot();
    let a = |name: &str| ask(&snapshot, &format!("{name}.svc.cluster.internal"), Kind::A);
    assert_eq!(a("someapp"), "{5} 10.1.5.1, 10.1.5.2, 10.1.5.3");
    assert_eq!(a("SomeApp"), a("someapp"));
    assert_eq!(ask(&snapshot, "SOMEAPP.svc.Cluster.Internal.", Kind::A), a("someapp"));
    assert_eq!(a("1.someapp"), "{5} 10.1.5.1");
    assert_eq!(a("someapp-2.someapp"), "{5} 10.1.5.2");
    assert_eq!(a("10-1-5-3.someapp"), "{5} 10.1.5.3");
    assert_eq!(a("node1.m.someapp"), "{5} 10.1.5.1, 10.1.5.3");
    assert_eq!(a("nearest.someapp"), a("someapp"));
    let srv = |name: &str| ask(&snapshot, &format!("{name}.svc.cluster.internal"), Kind::Srv);
    assert_eq!(
        srv("1.someapp"),
        "{5} 0 10 3000 someapp-1.someapp.svc.cluster.internal, \
         +someapp-1.someapp.svc.cluster.internal 10.1.5.1"
    );
    assert_eq!(srv("_someapp._tcp"), srv("someapp"));
    assert!(
        srv("nearest.someapp").starts_with("{5} 0 10 3000 someapp-2.someapp"),
        "the own machine's before others"
    );
    assert!(srv("nearest.someapp").contains("1 10 3000 someapp-1.someapp"));
    let txt = ask(&snapshot, "1.someapp.svc.cluster.internal", Kind::Txt);
    assert_eq!(txt, "{5} instance=someapp@1 machine=node1 port=3000");
}

#[test]
fn a_name_that_is_there_is_told_from_one_that_is_not() {
    let snapshot = snapshot();
    let a = |name: &str| ask(&snapshot, &format!("{name}cluster.internal"), Kind::A);
    let (empty, none) = ("empty cluster.internal 2", "no such name cluster.internal 2");
    for (name, expected) in [
        ("", empty),
        ("svc.", empty),
        ("_tcp.svc.", empty),
        ("_someapp._tcp.svc.", empty),
        ("m.someapp.svc.", empty),
        ("idle.svc.", empty),
        ("sick.svc.", empty),
        ("1.sick.svc.", empty),
        ("node1.m.sick.svc.", empty),
        ("other.svc.", none),
        ("1.other.svc.", none),
        ("4.someapp.svc.", none),
        ("node9.m.someapp.svc.", none),
        ("nearest.other.svc.", none),
        ("m.other.svc.", none),
        ("_other._tcp.svc.", none),
        ("someapp._tcp.svc.", none),
        ("_someapp._udp.svc.", none),
        ("a.1.someapp.svc.", none),
        ("someapp.", none),
        (".svc.", none),
        ("my", "not ours"),
    ] {
        assert_eq!(a(name), expected, "{name}");
    }
    assert_eq!(ask(&snapshot, "example.org", Kind::A), "not ours");
    assert_eq!(ask(&snapshot, "", Kind::Ns), "not ours");
    assert_eq!(ask(&snapshot, "someapp.svc.cluster.internal", Kind::Other), empty, "AAAA");
}

#[test]
fn the_zone_has_its_own_records() {
    let snapshot = snapshot();
    let ask = |name, kind| ask(&snapshot, name, kind);
    assert_eq!(
        ask("cluster.internal", Kind::Soa),
        "{60} ns.cluster.internal 7 2, +ns.cluster.internal 10.1.2.1"
    );
    assert_eq!(ask("cluster.internal", Kind::Ns), "{60} ns.cluster.internal, +ns.cluster.internal 10.1.2.1");
    assert_eq!(ask("ns.cluster.internal", Kind::A), "{60} 10.1.2.1");
}

#[test]
fn addresses_have_names() {
    let mut snapshot = snapshot();
    let ptr = |snapshot: &Snapshot, name: &str| ask(snapshot, &format!("{name}.in-addr.arpa"), Kind::Ptr);
    assert_eq!(ptr(&snapshot, "2.5.1.10"), "{5} someapp-2.someapp.svc.cluster.internal");
    assert_eq!(
        ptr(&snapshot, "9.5.1.10"),
        "{5} sick-1.sick.svc.cluster.internal",
        "a failing one keeps its name"
    );
    assert_eq!(ptr(&snapshot, "77.5.1.10"), "no such name 1.10.in-addr.arpa 2");
    assert_eq!(ptr(&snapshot, "5.1.10"), "empty 1.10.in-addr.arpa 2");
    for other in ["2.5.2.10", "10", "02.5.1.10", "x.5.1.10", "1.2.5.1.10", "256.5.1.10"] {
        assert_eq!(ptr(&snapshot, other), "not ours", "{other}");
    }
    snapshot.network = Some("172.16.0.0/12".parse().expect("a network"));
    assert_eq!(ptr(&snapshot, "1.2.17.172"), "no such name 17.172.in-addr.arpa 2");
    assert_eq!(ptr(&snapshot, "1.2.32.172"), "not ours");
    snapshot.network = None;
    assert_eq!(ptr(&snapshot, "2.5.1.10"), "not ours");
}

#[test]
fn who_leaves_or_fails_is_left_out_at_once_and_answers_are_short_lived_then() {
    let mut snapshot = snapshot();
    let someapp = "someapp.svc.cluster.internal";
    snapshot.services.get_mut("someapp").expect("there")[0].draining = true;
    assert_eq!(ask(&snapshot, someapp, Kind::A), "{2} 10.1.5.2, 10.1.5.3");
    snapshot.services.get_mut("someapp").expect("there")[1].healthy = false;
    assert_eq!(ask(&snapshot, someapp, Kind::A), "{2} 10.1.5.3");
    snapshot.current = false;
    assert_eq!(ask(&snapshot, someapp, Kind::A), "{1} 10.1.5.3");
    assert_eq!(ask(&snapshot, "x.svc.cluster.internal", Kind::A), "no such name cluster.internal 1");
}

#[test]
fn no_more_than_wanted_and_by_chance() {
    let mut snapshot = snapshot();
    let many = (1..=20).map(|last| instance(&format!("someapp@{last}"), last, "node1")).collect();
    snapshot.services.insert("someapp".to_owned(), many);
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let choice = Choice { most: 8, seed };
        match snapshot.answer("someapp.svc.cluster.internal", Kind::A, choice) {
            Reply::Records { answers, cut: true, .. } => {
                assert_eq!(answers.len(), 8);
                let distinct: BTreeSet<_> = answers.iter().map(text).collect();
                assert_eq!(distinct.len(), 8);
                seen.insert(text(&answers[0]));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), 20, "each is the first at times");
}

#[test]
fn instances_with_the_same_label_are_told_apart() {
    let mut snapshot = snapshot();
    let all = vec![instance("a@b", 1, "node1"), instance("a.b", 2, "node1"), instance("nearest", 3, "node1")];
    snapshot.services.insert("someapp".to_owned(), all);
    let Reply::Records { answers, additionals, .. } =
        snapshot.answer("someapp.svc.cluster.internal", Kind::Srv, ALL)
    else {
        panic!("records")
    };
    for (srv, address) in answers.iter().zip(&additionals) {
        let Data::Srv { target, .. } = &srv.data else { panic!("{srv:?}") };
        assert_eq!(*target, address.name);
        assert_eq!(ask(&snapshot, target, Kind::A), format!("{{5}} {}", text(address)), "{target}");
    }
}

proptest! {
    #[test]
    fn any_question_has_an_answer_that_holds_its_promises(
        name in "(([a-z0-9_@-]{0,6}|m|nearest|someapp|svc|_tcp|someapp-1|10)\\.){0,5}(cluster\\.internal|5\\.1\\.10\\.in-addr\\.arpa)\\.?",
        kind in prop::sample::select(vec![Kind::A, Kind::Srv, Kind::Ptr, Kind::Txt, Kind::Soa, Kind::Ns, Kind::Any, Kind::Other]),
        most in 0usize..5,
        seed: u64,
        states: [(bool, bool); 3],
    ) {
        let mut snapshot = snapshot();
        for (instance, (healthy, draining)) in snapshot.services.get_mut("someapp").expect("there").iter_mut().zip(states) {
            (instance.healthy, instance.draining) = (healthy, draining);
        }
        let reply = snapshot.answer(&name, kind, Choice { most, seed });
        prop_assert_eq!(&reply, &snapshot.answer(&name.to_ascii_uppercase(), kind, Choice { most, seed }));
        if let Reply::Records { answers, additionals, .. } = reply {
            prop_assert!(!answers.is_empty());
            if kind != Kind::Ptr && kind != Kind::Any {
                for record in answers.iter().chain(&additionals) {
                    let Data::A(address) = record.data else { continue };
                    let mut holders = snapshot.services["someapp"].iter().filter(|held| *held.address.ip() == address);
                    prop_assert!(holders.all(|held| held.healthy && !held.draining), "{}", address);
                }
            }
        }
    }
}
