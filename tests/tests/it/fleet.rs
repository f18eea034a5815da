//! fleet's functional tests that concern its command line and its API (`functional/*_test.go`), told anew on our
//! machines, with the name `fleetctl`. Scheduling is in `placement.rs`.
//!
//! All share one cluster, and each leaves it without units.

use crate::{Lab, alone};
use lab::Output;
use story::eventually;

const HELLO: &str =
    "[Service]\nExecStart=/bin/bash -c \"while true; do echo Hello, World %i!; sleep 1; done\"\n";

#[test]
fn a9_fleets_functional_tests_of_command_line_and_api() {
    let _alone = alone();
    let cluster = Lab::up(3);
    cluster.m1().write_file("/root/hello@.service", HELLO, 0o644).expect("written");
    a9_help_version_and_environment(&cluster);
    a9_submit_load_and_start(&cluster);
    a9_replace(&cluster);
    a9_restart_ssh_status_journal_cat(&cluster);
    a9_units_are_listed_in_order(&cluster);
    a9_machines_and_their_metadata(&cluster);
    a9_specifiers_in_metadata(&cluster);
    a9_global_units(&cluster);
    a9_what_fleetctl_asks_for(&cluster);
    a9_bad_requests_store_nothing(&cluster);
    a9_tunnel(&cluster);
    a9_without_the_hub(&cluster);
}

fn sh(cluster: &Lab, script: &str) -> Output {
    cluster.m1().exec(&["sh", "-c", &format!("cd /root && {script}")]).expect("the shell runs")
}

/// Runs it; it must succeed, and say nothing of an error.
fn ok(cluster: &Lab, script: &str) -> Output {
    let output = sh(cluster, script);
    let fine = output.success() && !output.stderr.contains("Error");
    assert!(fine, "{script}: {} {}{}", output.code(), output.stdout, output.stderr);
    output
}

fn rows(cluster: &Lab, verb: &str) -> Vec<String> {
    ok(cluster, &format!("fleetctl {verb} --no-legend")).stdout.lines().map(str::to_owned).collect()
}

/// fleet's API on m1's `/run/fleet.sock`: status and body.
fn api(cluster: &Lab, method: &str, path: &str, body: &str) -> (u16, String) {
    let script = format!(
        "curl --silent --unix-socket /run/fleet.sock --request {method} --header 'Content-Type: application/json' \
         --data '{body}' --write-out '\\n%{{http_code}} %{{content_type}}' 'http://fleet/fleet/v1/{path}'"
    );
    let output = ok(cluster, &script).stdout;
    let (body, end) = output.trim_end().rsplit_once('\n').expect("curl wrote the status");
    let (status, kind) = end.split_once(' ').expect("curl wrote the type");
    assert_eq!(kind, "application/json", "{method} {path}");
    (status.parse().expect("a number"), body.to_owned())
}

fn a9_help_version_and_environment(cluster: &Lab) {
    let version = ok(cluster, "fleetctl version").stdout;
    assert!(version.starts_with("fleetctl version v1.0.0"), "{version}");
    assert_eq!(ok(cluster, "fleetctl --version").stdout, version);
    let number = version.trim_start_matches("fleetctl version ").trim().to_owned();
    for help in ["--help", "-h", "help", ""] {
        assert!(ok(cluster, &format!("fleetctl {help}")).stdout.contains(&number), "fleetctl {help}");
    }
    for (wrong, code, words) in [
        ("bogus", 2, "bogus"),
        ("list-units --bogus", 2, "--bogus"),
        ("--driver=foo list-units", 1, "Unable to initialize client: unrecognized driver \"foo\""),
        ("--driver=etcd list-units", 1, "the etcd driver wrote fleet's keys"),
        (
            "--endpoint unix://var/run/x list-units",
            1,
            "unable to connect to host \"var\" with scheme \"unix\"",
        ),
        ("--endpoint /run/fleet.sock list-units", 1, "URL scheme undefined"),
        ("list-units --fields=bogus", 1, "Invalid key in output format: \"bogus\""),
        ("list-units --fields=", 1, "Must define output format"),
        ("cat", 1, "One unit file must be provided"),
        ("cat nosuch", 1, "Unit nosuch.service not found"),
        ("status nosuch", 1, "Unit nosuch.service does not exist."),
        ("journal nosuch", 1, "Unit nosuch.service does not exist."),
        ("ssh nosuch", 1, "Unable to proceed: could not find matching unit or machine"),
        ("start nosuch", 1, "Error creating units: unable to find Unit(nosuch.service)"),
        ("verify nosuch", 2, "DEPRECATED"),
        ("stop nosuch", 0, "Units not found in registry"),
        ("destroy nosuch", 0, "Units not found in registry"),
        ("submit", 0, "No units given"),
    ] {
        let output = sh(cluster, &format!("fleetctl {wrong}"));
        assert_eq!(output.code(), code, "{wrong}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{wrong}: {}", output.stderr);
    }
    // Only the variable says where; over TCP, over both sockets.
    let m2 = cluster.lab.machine("m2").expect("known").address();
    for endpoint in [
        format!("http://{m2}:49153"),
        "unix:///var/run/fleet.sock".to_owned(),
        "file:///run/muster/muster.sock".to_owned(),
    ] {
        let listed = ok(cluster, &format!("FLEETCTL_ENDPOINT={endpoint} fleetctl list-m --no-legend"));
        assert_eq!(listed.stdout.lines().count(), 3, "{endpoint}");
    }
    let table = ok(cluster, "fleetctl list-machines").stdout;
    assert!(table.starts_with("MACHINE\t\tIP\t\tMETADATA\n"), "{table:?}");
    let full = ok(cluster, "fleetctl list-machines -l --no-legend --fields machine").stdout;
    assert!(full.lines().all(|id| id.len() == 32), "{full}");
}

fn a9_submit_load_and_start(cluster: &Lab) {
    for round in 0..2 {
        let submitted = ok(cluster, "fleetctl submit 'hello@{1..9}.service'").stdout;
        assert_eq!(submitted.lines().next(), Some("Unit hello@1.service inactive"));
        assert_eq!(rows(cluster, "list-unit-files").len(), 9, "round {round}");
        assert_eq!(rows(cluster, "list-units").len(), 0);
        ok(cluster, "fleetctl destroy 'hello@{1..9}.service'");
        assert_eq!(rows(cluster, "list-unit-files").len(), 0);

        let loaded = ok(cluster, "fleetctl load 'hello@{1..6}'").stdout;
        assert!(loaded.contains("Unit hello@6.service loaded on "), "{loaded}");
        let listed = rows(cluster, "list-units");
        assert!(listed.len() == 6 && listed.iter().all(|row| row.ends_with("inactive\tdead")), "{listed:?}");
        let unloaded = ok(cluster, "fleetctl unload 'hello@{1..6}'");
        assert!(
            unloaded.stderr.contains("Successfully unloaded units [hello@1.service "),
            "{}",
            unloaded.stderr
        );
        assert_eq!(rows(cluster, "list-units").len(), 0);
        ok(cluster, "fleetctl destroy 'hello@{1..6}'");

        let started = ok(cluster, "fleetctl start 'hello@{1..3}'").stdout;
        assert!(started.contains("Unit hello@1.service launched on "), "{started}");
        // At once: the states are there before `start` returns.
        let listed = rows(cluster, "list-units");
        assert!(listed.len() == 3 && listed.iter().all(|row| row.ends_with("active\trunning")), "{listed:?}");
        let stopped = ok(cluster, "fleetctl stop 'hello@{1..3}'");
        assert!(
            stopped.stderr.contains("Successfully stopped units [hello@1.service "),
            "{}",
            stopped.stderr
        );
        let listed = rows(cluster, "list-units --fields unit,load,active");
        assert!(
            listed.iter().all(|row| row.contains("loaded\t") && !row.ends_with("\tactive")),
            "{listed:?}"
        );
        let refused = sh(cluster, "fleetctl unload hello@1 && fleetctl stop hello@1");
        let words = "Unable to stop unit hello@1.service in state inactive";
        assert!(refused.code() == 1 && refused.stderr.contains(words), "{}", refused.stderr);
        ok(cluster, "fleetctl destroy 'hello@{1..3}'");
        assert_eq!(rows(cluster, "list-units").len(), 0, "destroy waits");
    }
    let triggered = ok(cluster, "fleetctl start --no-block hello@1").stdout;
    assert_eq!(triggered, "Unit hello@1.service inactive\nTriggered unit hello@1.service start\n");
    ok(cluster, "fleetctl destroy hello@1");
}

fn a9_replace(cluster: &Lab) {
    for verb in ["submit", "load", "start"] {
        ok(
            cluster,
            &format!(
                "printf '[Service]\\nExecStart=/bin/sleep 1000\\n' >r.service && fleetctl {verb} r.service"
            ),
        );
        let same = ok(cluster, &format!("fleetctl {verb} --replace r.service")).stdout;
        assert!(same.contains("Found same Unit(r.service) in Registry, nothing to do"), "{same}");
        ok(cluster, "sed -i s/1000/2000/ r.service");
        let other = ok(cluster, &format!("fleetctl {verb} r.service"));
        let warning =
            "WARNING: Unit r.service in registry differs from local unit file r.service. Add --replace";
        assert!(other.stderr.contains(warning), "{}", other.stderr);
        assert!(ok(cluster, "fleetctl cat r").stdout.contains("1000"));
        ok(cluster, &format!("fleetctl {verb} --replace r.service"));
        assert_eq!(ok(cluster, "fleetctl cat r").stdout, "[Service]\nExecStart=/bin/sleep 2000\n");
        if verb == "start" {
            let runs = "fleetctl ssh r.service 'tr \"\\0\" \" \" </proc/$(systemctl show -P MainPID r.service)/cmdline'";
            assert!(ok(cluster, runs).stdout.contains("sleep 2000"), "the old one still runs");
            ok(cluster, "sed -i s/2000/3000/ r.service");
            let refused = ok(cluster, "fleetctl submit --replace r.service").stderr;
            assert!(refused.contains("can not replace Unit(r.service) in state 'launched'"), "{refused}");
        }
        ok(cluster, "fleetctl destroy r");
    }
}

fn main_pid(cluster: &Lab, unit: &str) -> String {
    ok(cluster, &format!("fleetctl ssh {unit} systemctl show -P MainPID {unit}")).stdout
}

fn a9_restart_ssh_status_journal_cat(cluster: &Lab) {
    ok(cluster, "fleetctl start 'hello@{1..3}.service'");
    let before = main_pid(cluster, "hello@2.service");
    let restarted = ok(cluster, "fleetctl restart 'hello@{1..3}.service'");
    assert!(restarted.stderr.contains("Unit(hello@2.service) was restarted."), "{}", restarted.stderr);
    assert_ne!(main_pid(cluster, "hello@2.service"), before);
    let listed = rows(cluster, "list-units");
    assert!(listed.iter().all(|row| row.ends_with("active\trunning")), "{listed:?}");

    assert_eq!(ok(cluster, "fleetctl ssh hello@1.service echo foo").stdout, "foo\n");
    assert_eq!(ok(cluster, "fleetctl ssh -A --unit hello@1 -- echo foo bar").stdout, "foo bar\n");
    let m3 = cluster.lab.machine("m3").expect("known");
    let id = m3.exec_ok(&["cat", "/etc/machine-id"]).expect("it has one");
    assert_eq!(ok(cluster, &format!("fleetctl ssh {} uname -n", &id[..6])).stdout, "m3\n");
    assert_eq!(ok(cluster, "echo in | muster ssh m3 cat").stdout, "in\n");
    assert_eq!(sh(cluster, "muster ssh --machine m3 exit 9").code(), 9);
    let tty = ok(cluster, "muster ssh -t m3 'tty; stty size' </dev/null").stdout;
    assert!(tty.contains("/dev/pts/") && tty.contains("24 80"), "{tty:?}");
    let shell = ok(cluster, "printf 'uname -n\\nexit 0\\n' | fleetctl ssh m3").stdout;
    assert!(shell.contains("m3"), "{shell:?}");

    let status = ok(cluster, "fleetctl status hello@1 hello@2").stdout;
    assert_eq!(status.matches("Active: active").count(), 2, "{status}");
    let journal =
        || Ok(ok(cluster, "fleetctl journal --sudo --lines 5 hello@1").stdout.contains("Hello, World 1!"));
    eventually("the journal has what the unit said", journal).expect("it has");
    let json = ok(cluster, "fleetctl journal -n 1 --output=json hello@1").stdout;
    assert!(json.contains("__REALTIME_TIMESTAMP"), "{json}");
    assert_eq!(ok(cluster, "fleetctl cat hello@1").stdout, HELLO);
    ok(cluster, "fleetctl stop hello@3");
    let loaded = sh(cluster, "fleetctl status hello@3").stdout;
    assert!(loaded.contains("Loaded: loaded"), "{loaded}");
    ok(cluster, "muster restart hello@3");
    ok(cluster, "fleetctl destroy 'hello@{1..3}'");
}

fn a9_units_are_listed_in_order(cluster: &Lab) {
    ok(cluster, "fleetctl submit 'hello@{20..1}.service'");
    let names = rows(cluster, "list-unit-files --fields unit");
    let mut sorted = names.clone();
    sorted.sort();
    assert!(names == sorted && names.len() == 20, "{names:?}");
    ok(cluster, "fleetctl destroy 'hello@{1..20}'");
}

fn a9_machines_and_their_metadata(cluster: &Lab) {
    let (status, body) = api(cluster, "GET", "machines", "");
    assert!(status == 200 && body.contains("\"primaryIP\""), "{status} {body}");
    let (status, body) = api(cluster, "GET", "machines?nextPageToken=EwBMLg==", "");
    assert!(status == 400 && body.contains("token limit must be 100"), "{status} {body}");
    let machines: serde_json::Value = {
        let (_, body) = api(cluster, "GET", "machines", "");
        serde_json::from_str(&body).expect("JSON")
    };
    let id = |number: usize| machines["machines"][number]["id"].as_str().expect("an id").to_owned();
    let shown = |number: usize| {
        let rows = rows(cluster, "list-machines --full");
        let row = rows.iter().find(|row| row.starts_with(&id(number))).expect("it is listed").clone();
        row.rsplit('\t').next().expect("a column").to_owned()
    };
    let before = [shown(0), shown(1)];
    let patch = |body: &str| api(cluster, "PATCH", "machines", body).0;
    let op = |op: &str, number: usize, key: &str, value: &str| {
        format!(r#"{{"op":"{op}","path":"/{}/metadata/{key}","value":{{"value":"{value}"}}}}"#, id(number))
    };
    assert_eq!(patch(&format!("[{},{}]", op("add", 0, "foo", "bar"), op("replace", 1, "number", "7"))), 204);
    assert_eq!(shown(0), format!("foo=bar,{}", before[0]));
    assert_eq!(shown(1), "number=7");
    for bad in [
        op("noop", 0, "a", "b"),
        op("add", 0, "a", ""),
        r#"{"op":"add","path":"/x/a","value":"v"}"#.to_owned(),
    ] {
        assert_eq!(patch(&format!("[{},{bad}]", op("add", 0, "stored", "no"))), 400, "{bad}");
    }
    assert_eq!(shown(0), format!("foo=bar,{}", before[0]), "part of a refused request was stored");
    assert_eq!(patch(&format!("[{},{}]", op("remove", 0, "foo", ""), op("remove", 0, "number", ""))), 204);
    assert_eq!(shown(0), "-");
    // As it was, for those who come after.
    ok(cluster, "muster kv rm --recursive /muster/v1/metadata");
    assert_eq!([shown(0), shown(1)], before);
}

fn a9_specifiers_in_metadata(cluster: &Lab) {
    let text = format!("{HELLO}[X-Fleet]\nMachineMetadata=number=%i\n");
    cluster.m1().write_file("/root/at@.service", text, 0o644).expect("written");
    ok(cluster, "fleetctl submit at@.service");
    ok(cluster, "fleetctl start 'at@{1..3}'");
    for number in 1..4 {
        assert_eq!(ok(cluster, &format!("fleetctl ssh at@{number} uname -n")).stdout, format!("m{number}\n"));
    }
    let invalid = sh(cluster, "fleetctl start --block-attempts=1 at@invalid");
    let words = "timed out waiting for unit at@invalid.service to report state launched";
    assert!(invalid.code() == 1 && invalid.stderr.contains(words), "{}", invalid.stderr);
    ok(cluster, "fleetctl destroy 'at@{1..3}' at@invalid at@.service");
}

fn a9_global_units(cluster: &Lab) {
    let text = format!("{HELLO}[X-Fleet]\nGlobal=true\n");
    cluster.m1().write_file("/root/everywhere.service", text, 0o644).expect("written");
    let started = ok(cluster, "fleetctl start everywhere.service").stdout;
    assert!(started.contains("Triggered global unit everywhere.service start"), "{started}");
    let running = || {
        let rows = rows(cluster, "list-units");
        Ok(rows.iter().filter(|row| row.ends_with("active\trunning")).count() == 3)
    };
    eventually("it runs on all machines", running).expect("it does");
    let pids = || {
        let pid = |machine: lab::Machine| {
            machine
                .exec_ok(&["systemctl", "show", "-P", "MainPID", "everywhere.service"])
                .expect("it is known")
        };
        cluster.lab.machines().into_iter().map(pid).collect::<Vec<_>>()
    };
    let status = ok(cluster, "fleetctl status everywhere").stdout;
    assert_eq!(status.matches("Active: active").count(), 3, "{status}");
    let before = pids();
    ok(cluster, "fleetctl restart everywhere");
    assert!(pids().iter().zip(&before).all(|(now, before)| now != before && now != "0"), "{before:?}");
    let said = || {
        let journal = ok(cluster, "muster journal everywhere").stdout;
        let all = ["m1", "m2", "m3"].iter().all(|name| journal.contains(&format!("({name}):")));
        Ok(all && journal.matches("Hello, World").count() >= 3)
    };
    eventually("the journals of all machines are shown", said).expect("they are");
    let one = ok(cluster, "muster journal --machine m2 everywhere").stdout;
    assert!(one.contains(" m2 ") && !one.contains(" m3 "), "{one}");
    let stopped = ok(cluster, "fleetctl stop everywhere").stdout;
    assert!(stopped.contains("Triggered global unit everywhere.service stop"), "{stopped}");
    ok(cluster, "fleetctl destroy everywhere");
}

/// fleetctl 1.0 itself is in no registry; this is what it does.
fn a9_what_fleetctl_asks_for(cluster: &Lab) {
    cluster.m1().write_file("/root/imitation.py", include_str!("imitation.py"), 0o644).expect("written");
    assert_eq!(ok(cluster, "python3 imitation.py /run/fleet.sock im@1.service").stdout, "done\n");
}

fn a9_bad_requests_store_nothing(cluster: &Lab) {
    ok(cluster, "fleetctl submit hello@1");
    let stored = || {
        ok(cluster, "for d in units metadata; do muster kv ls --recursive /muster/v1/$d; done 2>&1; muster kv get /muster/v1/units/hello@1.service").stdout
    };
    let before = stored();
    let fleet = |option: &str, value: &str| {
        format!(
            r#"{{"options":[{{"section":"Service","name":"ExecStart","value":"/bin/true"}},{{"section":"X-Fleet","name":"{option}","value":"{value}"}}]}}"#
        )
    };
    for (path, body, status, words) in [
        ("units/hello@1.service", r#"{"desiredState":"bogus"}"#.to_owned(), 400, "invalid desiredState"),
        ("units/hello@1.service", "{}".to_owned(), 409, "must provide DesiredState"),
        ("units/new.service", r#"{"desiredState":"launched"}"#.to_owned(), 409, "options field empty"),
        (
            "units/new@.service",
            fleet("Global", "true").replace("{\"opt", "{\"desiredState\":\"launched\",\"opt"),
            400,
            "cannot activate template",
        ),
        ("units/new.service", fleet("Conflicts", "[a"), 400, "options: "),
        ("units/new.service", fleet("MachineOf", "a@.service"), 400, "options: "),
        (
            "units/new.service",
            r#"{"options":[{"section":"Service","name":"ExecStart"}]}"#.to_owned(),
            400,
            "options: ",
        ),
        ("units/new.nosuch", fleet("Global", "true"), 400, "invalid unit type"),
    ] {
        let (got, said) = api(cluster, "PUT", path, &body);
        assert!(got == status && said.contains(words), "{path} {body}: {got} {said}");
        assert_eq!(stored(), before, "{path} {body} changed something");
    }
    ok(cluster, "fleetctl destroy hello@1");
}

fn a9_tunnel(cluster: &Lab) {
    let m2 = cluster.lab.machine("m2").expect("known");
    ok(cluster, "mkdir -p .ssh && chmod 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519");
    let key = ok(cluster, "cat .ssh/id_ed25519.pub").stdout;
    // An account that is locked may not log in, whatever its key.
    let config = "HostKey /root/host_key\nPermitRootLogin prohibit-password\nUsePAM no\nAuthorizedKeysFile /root/keys\nStrictModes no\n";
    m2.write_file("/root/keys", key, 0o600).expect("written");
    m2.write_file("/root/sshd_config", config, 0o600).expect("written");
    let serve = "systemctl stop sshd-test 2>/dev/null; rm -f /root/host_key*; ssh-keygen -q -t ed25519 -N '' -f /root/host_key && \
        mkdir -p /run/sshd && usermod --password '*' root && \
        systemd-run --quiet --unit=sshd-test --collect /usr/sbin/sshd -D -e -f /root/sshd_config -p 2222";
    let serve = || {
        m2.exec_ok(&["sh", "-c", serve]).expect("sshd starts");
        eventually("sshd listens", || {
            Ok(m2.exec(&["sh", "-c", "ss -Hltn sport = 2222 | grep -q ."])?.success())
        })
        .expect("it does");
    };
    serve();
    let tunnel = format!(
        "fleetctl --tunnel {}:2222 --ssh-username root --known-hosts-file /root/kh/known",
        m2.address()
    );
    // Nobody can be asked whether the key is right, so it is not taken.
    let unknown = sh(cluster, &format!("{tunnel} list-machines </dev/null"));
    assert!(
        unknown.code() == 1 && unknown.stderr.contains("Host key verification failed"),
        "{}",
        unknown.stderr
    );
    ok(cluster, &format!("{tunnel} --strict-host-key-checking=false list-machines"));
    let listed =
        ok(cluster, &format!("FLEETCTL_STRICT_HOST_KEY_CHECKING=true {tunnel} list-machines --no-legend"));
    assert_eq!(listed.stdout.lines().count(), 3, "the key is known now");
    ok(cluster, &format!("{tunnel} start hello@1"));
    ok(cluster, &format!("{tunnel} start 'hello@{{2..11}}'"));
    let active = || {
        let rows = rows(cluster, "list-units");
        Ok(rows.iter().filter(|row| row.ends_with("active\trunning")).count() == 11)
    };
    eventually("all eleven are active", active).expect("they are");
    assert_eq!(ok(cluster, &format!("{tunnel} ssh m3 uname -n")).stdout, "m3\n");
    // A TCP endpoint behind the SSH server, as a port of it.
    let tcp =
        format!("{tunnel} --endpoint http://{}:49153 list-machines --no-legend", cluster.m1().address());
    assert_eq!(ok(cluster, &tcp).stdout.lines().count(), 3);
    let muster = format!(
        "muster --tunnel {}:2222 --known-hosts-file /root/kh/known list-machines --no-legend",
        m2.address()
    );
    assert_eq!(ok(cluster, &muster).stdout.lines().count(), 3);
    // Another key than the known one.
    serve();
    let changed = sh(cluster, &format!("{tunnel} list-machines"));
    assert!(
        changed.code() == 1 && changed.stderr.contains("REMOTE HOST IDENTIFICATION HAS CHANGED"),
        "{}",
        changed.stderr
    );
    ok(cluster, &format!(": >kh/known; {tunnel} --strict-host-key-checking=false list-machines"));
    ok(cluster, "fleetctl destroy 'hello@{1..11}'");
    m2.exec_ok(&["systemctl", "stop", "sshd-test"]).expect("stopped");
}

/// The hub is m1's; m2's API says what fleet said without etcd.
fn a9_without_the_hub(cluster: &Lab) {
    let m2 = cluster.lab.machine("m2").expect("known");
    cluster.m1().exec_ok(&["systemctl", "stop", "muster"]).expect("stopped");
    let curl = "curl --silent --unix-socket /run/fleet.sock http://fleet/fleet/v1/machines";
    let words = r#"{"error":{"code":503,"message":"fleet server unable to communicate with etcd"}}"#;
    eventually("the API says so", || Ok(m2.exec(&["sh", "-c", curl])?.stdout == words)).expect("it does");
    let listed = m2.exec(&["fleetctl", "list-machines"]).expect("it runs");
    assert_eq!(listed.code(), 1);
    let words = "Error retrieving list of active machines from fleet API (";
    assert!(
        listed.stderr.starts_with(words) && listed.stderr.contains("Possible issues:\n  etcd is unhealthy"),
        "{}",
        listed.stderr
    );
    cluster.m1().exec_ok(&["systemctl", "start", "muster"]).expect("started");
    eventually("it works again", || Ok(m2.exec(&["fleetctl", "list-machines"])?.success())).expect("it does");
}
