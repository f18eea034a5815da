//! A real fleetctl against our server. There is none in any registry: build fleet v1.0.0's and name it in `FLEETCTL`.

use crate::{memory::serve, raw::Socket};
use std::process::{Command, Output};

#[tokio::test(flavor = "multi_thread")]
async fn a_real_fleetctl_works_where_there_is_one() {
    let Some(program) = std::env::var_os("FLEETCTL") else {
        eprintln!("SKIPPED: FLEETCTL names no fleetctl v1.0.0; the test imitation.rs stands in for it");
        return;
    };
    let server = serve().await;
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("hello@.service");
    std::fs::write(&file, "[Service]\nExecStart=/bin/sleep infinity\n").expect("written");
    for socket in &server.sockets {
        let endpoint = match socket {
            Socket::Tcp(address) => format!("http://{address}"),
            Socket::Unix(path) => format!("unix://{}", path.display()),
        };
        let fleetctl = |arguments: &[&str]| -> Output {
            let mut command = Command::new(&program);
            command.env("FLEETCTL_ENDPOINT", &endpoint).current_dir(directory.path()).args(arguments);
            let output = command.output().expect("FLEETCTL runs");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            output
        };
        for arguments in [
            &["list-machines"][..],
            &["submit", "hello@.service"],
            &["start", "--block-attempts=10", "hello@1"],
            &["list-units"],
            &["list-unit-files"],
            &["cat", "hello@1"],
            &["restart", "--block-attempts=10", "hello@1"],
            &["stop", "--block-attempts=10", "hello@1"],
            &["unload", "--block-attempts=10", "hello@1"],
            &["destroy", "hello@1"],
            &["destroy", "hello@.service"],
        ] {
            let output = fleetctl(arguments);
            if arguments[0] == "restart" {
                assert_eq!(server.memory.starts("hello@1.service"), 2, "{output:?}");
            }
        }
    }
}
