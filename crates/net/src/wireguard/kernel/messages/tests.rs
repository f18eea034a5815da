//! The messages, attribute by attribute. They were never sent to a kernel that has WireGuard.

use super::*;
use crate::wireguard::{Prefer, key::PrivateKey};
use WireguardPeerAttribute::{AllowedIps, Endpoint, Flags, PersistentKeepalive, PublicKey as Public};
use netlink_packet_wireguard::WireguardTimeSpec;

fn peer(key: u8, endpoint: &str, networks: &[&str]) -> WgPeer {
    WgPeer {
        public_key: PublicKey::from([key; 32]),
        endpoint: endpoint.parse().expect("an endpoint"),
        allowed_ips: networks.iter().map(|network| network.parse().expect("a network")).collect(),
        keepalive: None,
    }
}

fn told(message: &WireguardMessage) -> Vec<Vec<WireguardPeerAttribute>> {
    assert_eq!(message.cmd, WireguardCmd::SetDevice);
    match message.attributes.as_slice() {
        [WireguardAttribute::IfName(name), WireguardAttribute::Peers(peers)] => {
            assert_eq!(name, "flannel-wg");
            peers.iter().map(|peer| peer.0.clone()).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn network(family: WireguardAddressFamily, address: &str, length: u8) -> WireguardAllowedIp {
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(address.parse().expect("an address")),
        WireguardAllowedIpAttr::Cidr(length),
    ])
}

#[test]
fn the_device_gets_its_key_and_port_and_keeps_its_peers() {
    let private_key = PrivateKey::random().expect("random");
    let config = WireguardConfig {
        name: "flannel-wg".to_owned(),
        private_key: private_key.clone(),
        listen_port: 51820,
        mtu: 1420,
        psk: None,
        prefer: Prefer::Kernel,
    };
    let expected = [
        WireguardAttribute::IfName("flannel-wg".to_owned()),
        WireguardAttribute::PrivateKey(private_key.secret().to_bytes()),
        WireguardAttribute::ListenPort(51820),
    ];
    let message = device(&config);
    // No `Flags(ReplacePeers)`: whoever takes a device over does not end its sessions.
    assert_eq!((message.cmd, message.attributes.as_slice()), (WireguardCmd::SetDevice, &expected[..]));
}

#[test]
fn a_new_peer_is_told_completely() {
    let psk: PresharedKey = "//////////////////////////////////////////8=".parse().expect("a key");
    let keepalive = Some(Duration::from_secs(25));
    let wanted = WgPeer { keepalive, ..peer(1, "[2001:db8::1]:51820", &["10.1.1.9/24", "fd01:1::/64"]) };
    let messages = change("flannel-wg", &[], std::slice::from_ref(&wanted), Some(&psk));
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    let expected = vec![
        Public([1; 32]),
        Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::PresharedKey([255; 32]),
        Endpoint(wanted.endpoint),
        PersistentKeepalive(25),
        AllowedIps(vec![
            network(WireguardAddressFamily::Ipv4, "10.1.1.0", 24),
            network(WireguardAddressFamily::Ipv6, "fd01:1::", 64),
        ]),
    ];
    assert_eq!(told(message), [expected]);
}

#[test]
fn who_stays_the_same_is_not_mentioned_and_who_changed_keeps_the_rest() {
    let same = peer(1, "192.0.2.1:51820", &["10.1.1.0/24"]);
    let before = [
        same.clone(),
        peer(2, "192.0.2.2:51820", &["10.1.2.0/24"]),
        peer(3, "192.0.2.3:51820", &["10.1.3.0/24"]),
        peer(4, "192.0.2.4:51820", &["10.1.4.0/24"]),
    ];
    let after =
        [peer(3, "192.0.2.3:51820", &["10.1.2.0/24"]), same, peer(4, "192.0.2.44:51820", &["10.1.4.0/24"])];
    let messages = change("flannel-wg", &before, &after, None);
    let [message] = messages.as_slice() else { panic!("{messages:?}") };
    let changed = WireguardPeerFlags::ReplaceAllowedIps | WireguardPeerFlags::UpdateOnly;
    let four = |length| network(WireguardAddressFamily::Ipv4, length, 24);
    let expected = [
        vec![Public([2; 32]), Flags(WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly)],
        // No endpoint: it may have roamed.
        vec![Public([3; 32]), Flags(changed), PersistentKeepalive(0), AllowedIps(vec![four("10.1.2.0")])],
        vec![
            Public([4; 32]),
            Flags(changed),
            Endpoint("192.0.2.44:51820".parse().expect("an endpoint")),
            PersistentKeepalive(0),
            AllowedIps(vec![four("10.1.4.0")]),
        ],
    ];
    assert_eq!(told(message), expected);
    assert_eq!(change("flannel-wg", &after, &after, None), [], "nothing to say");
}

#[test]
fn many_peers_are_told_in_messages_that_netlink_can_carry() {
    let peers: Vec<_> = (1..=1000u32)
        .map(|number| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            WgPeer { public_key: PublicKey::from(key), ..peer(1, "192.0.2.1:51820", &["10.1.0.0/24"]) }
        })
        .collect();
    let messages = change("flannel-wg", &[], &peers, None);
    assert!(messages.len() > 1);
    assert!(messages.iter().all(|message| message.buffer_len() < usize::from(u16::MAX)));
    let keys: Vec<_> = messages.iter().flat_map(told).map(|attributes| attributes[0].clone()).collect();
    assert_eq!(keys, peers.iter().map(|peer| Public(peer.public_key.bytes())).collect::<Vec<_>>());
}

#[test]
fn an_answer_in_pieces_is_put_together() {
    let answer = |peers: Vec<Vec<WireguardPeerAttribute>>| WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![
            WireguardAttribute::IfName("flannel-wg".to_owned()),
            WireguardAttribute::Peers(peers.into_iter().map(WireguardPeer).collect()),
        ],
    };
    let endpoint = "192.0.2.1:51820".parse().expect("an endpoint");
    let answers = [
        answer(vec![vec![
            Public([1; 32]),
            Endpoint(endpoint),
            PersistentKeepalive(25),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds: 1_000, nano_seconds: 0 }),
            WireguardPeerAttribute::RxBytes(7),
            WireguardPeerAttribute::TxBytes(8),
            AllowedIps(vec![network(WireguardAddressFamily::Ipv4, "10.1.1.0", 24)]),
        ]]),
        answer(vec![
            vec![Public([1; 32]), AllowedIps(vec![network(WireguardAddressFamily::Ipv6, "fd01:1::", 64)])],
            vec![Public([2; 32])],
        ]),
    ];
    let expected = WgPeer {
        keepalive: Some(Duration::from_secs(25)),
        ..peer(1, "192.0.2.1:51820", &["10.1.1.0/24", "fd01:1::/64"])
    };
    assert_eq!(peers(&answers), [expected, peer(2, "0.0.0.0:0", &[])]);
    let [one, two] = states(&answers, SystemTime::UNIX_EPOCH + Duration::from_secs(1_030))
        .try_into()
        .unwrap_or_else(|other| panic!("{other:?}"));
    assert_eq!((one.endpoint, one.rx_bytes, one.tx_bytes), (Some(endpoint), 7, 8));
    assert_eq!(one.last_handshake, Some(Duration::from_secs(30)));
    assert_eq!((two.endpoint, two.last_handshake), (None, None), "never");
}
