//! The overlay on the real kernel: machines, containers and strangers are network namespaces that each test makes
//! for itself. Needs root (or a user namespace in which one is root), `ip`, `bridge`, `nft` and `iptables`; without
//! them the tests fail.

mod capture;
mod datapath;
mod dual;
mod firewall;
mod lab;
mod namespace;
mod wireguard;
mod wireguard_attacks;
