//! Every field and rule of the configuration.

use super::*;

fn read(text: &str) -> NetworkConfig {
    NetworkConfig::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn defaults_follow_flannel() {
    let config = read(r#"{"network":"10.1.2.3/16","unheard-of":[],"backend":{"TYPE":"vxlan","vni":7}}"#);
    assert_eq!(config.network.to_string(), "10.1.0.0/16");
    assert_eq!((config.subnet_len, config.v6.as_ref(), config.nftables), (24, None, false));
    assert_eq!(config.subnets().next().map(|s| s.to_string()).as_deref(), Some("10.1.1.0/24"));
    assert_eq!(config.subnets().last().map(|s| s.to_string()).as_deref(), Some("10.1.255.0/24"));
    assert_eq!(config.backend, Backend::Vxlan(Vxlan { vni: 7, ..Vxlan::default() }));
    assert_eq!(read(r#"{"Network":"10.1.0.0/22"}"#).subnet_len, 24);
    assert_eq!(read(r#"{"Network":"10.1.0.0/23"}"#).subnet_len, 25);
    assert_eq!(read(r#"{"Network":"10.1.0.0/28"}"#).subnet_len, 30);
}

#[test]
fn ipv6_beside_ipv4_has_the_same_rules() {
    let both = |rest: &str| {
        format!(r#"{{"Network":"10.7.0.0/16","EnableIPv6":true,"ipv6network":"fd00:7::5/48"{rest}}}"#)
    };
    let config = read(&both(""));
    let v6 = config.v6.as_ref().expect("asked for");
    assert_eq!((v6.network.to_string().as_str(), v6.subnet_len), ("fd00:7::/48", 64));
    assert_eq!(v6.subnets().next().map(|s| s.to_string()).as_deref(), Some("fd00:7:0:1::/64"));
    assert_eq!(v6.subnet_max.to_string(), "fd00:7:0:ffff::");
    assert_eq!(v6.subnets().count(), 65535);
    let none = read(r#"{"Network":"10.7.0.0/16","IPv6Network":"fd00:7::/48"}"#);
    assert_eq!(none.v6, None, "not without EnableIPv6");
    let few = read(&both(r#","IPv6SubnetLen":50,"IPv6SubnetMin":"fd00:7:0:4000::""#));
    assert_eq!(few.v6.expect("asked for").subnets().count(), 3);
    for (text, expected) in [
        (both(r#","IPv6SubnetLen":49"#), "`IPv6SubnetLen` 49 does not fit"),
        (both(r#","IPv6SubnetLen":127"#), "`IPv6SubnetLen` 127 does not fit"),
        (both(r#","IPv6SubnetMin":"fd00:7::1""#), "begins a subnet"),
        (r#"{"Network":"10.7.0.0/16","EnableIPv6":true}"#.to_owned(), "`IPv6Network` is missing"),
        (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#.to_owned(), "`EnableIPv4`"),
    ] {
        let error = NetworkConfig::from_str(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn every_backend_is_read_and_written_alike() {
    for text in [
        r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":9,"Port":4789,"MTU":1400,"GBP":true,"DirectRouting":true}}"#,
        r#"{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#,
        r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}"#,
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"wireguard","PSK":"a\"b","PersistentKeepaliveInterval":25,"Mode":"auto","ListenPort":7}}"#,
    ] {
        let config = read(text);
        assert_eq!(read(&config.to_json()), config, "{text}");
    }
    let Backend::Wireguard(wireguard) =
        read(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"wireguard"}}"#).backend
    else {
        panic!("another backend")
    };
    assert_eq!((wireguard.port, wireguard.port_v6, wireguard.keepalive), (51820, 51821, 0));
}

/// Point 16: flannel's code takes `udp` where no backend is named, and its documents `vxlan`.
#[test]
fn point_16_no_backend_is_vxlan_and_those_we_lack_are_refused_with_a_way_out() {
    assert_eq!(read(r#"{"Network":"10.1.0.0/16"}"#).backend, Backend::Vxlan(Vxlan::default()));
    for (name, instead) in [
        ("udp", "use \"vxlan\""),
        ("ipip", "DirectRouting"),
        ("ipsec", "use \"wireguard\""),
        ("extension", "commands from the hub are not run"),
        ("Vxlan", "use \"vxlan\""),
        ("", "say which"),
    ] {
        let text = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"{name}"}}}}"#);
        let error = NetworkConfig::from_str(&text).expect_err(name).to_string();
        assert!(error.starts_with(&format!("backend `{name}`")) && error.contains(instead), "{error}");
    }
}

#[test]
fn broken_configurations_are_explained() {
    let backend = |fields: &str| format!(r#"{{"Network":"10.1.0.0/16","Backend":{{{fields}}}}}"#);
    for (text, expected) in [
        ("[]".to_owned(), "no JSON object"),
        ("{}".to_owned(), "`Network` is missing"),
        (r#"{"Network":"10.1.0.0/29"}"#.to_owned(), "`SubnetLen` 31 does not fit"),
        (r#"{"Network":"10.1.0.0/16","SubnetLen":17}"#.to_owned(), "`SubnetLen` 17 does not fit"),
        (r#"{"Network":"10.1.0.0/16","SubnetLen":31}"#.to_owned(), "`SubnetLen` 31 does not fit"),
        (r#"{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}"#.to_owned(), "`SubnetMin`"),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.8.0"}"#.to_owned(),
            "`SubnetMin` 10.1.9.0 comes after `SubnetMax` 10.1.8.0",
        ),
        (r#"{"Network":7}"#.to_owned(), "`Network` is 7: a text is needed"),
        (r#"{"Network":"10.1.0.0/16","EnableIPv6":1}"#.to_owned(), "true or false"),
        (backend(r#""Type":"vxlan","VNI":16777216"#), "`VNI` is 16777216"),
        (backend(r#""Type":"vxlan","Port":65536"#), "`Port` is 65536"),
        (backend(r#""Type":"vxlan","MTU":100"#), "`MTU` is 100"),
        (backend(r#""Type":"wireguard","Mode":"x""#), "`Mode` is \"x\""),
    ] {
        let error = NetworkConfig::from_str(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}
