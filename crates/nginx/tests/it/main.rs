//! With a real nginx, run as a child in a directory of its own.

use muster_core::router::Catalog;
use nginx::{Nginx, NginxConfig};
use render::{Applied, Data, Error, KeyTree};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

const PROGRAM: &str = "/usr/sbin/nginx";

struct Running {
    child: Child,
    config: NginxConfig,
    _directory: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.config.pid_file).unwrap_or_default();
        if let Some(pid) = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("nginx runs until here");
        }
        self.child.wait().expect("nginx ends");
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

fn start() -> Running {
    assert!(
        Path::new(PROGRAM).exists(),
        "this test needs nginx: apt-get install --no-install-recommends nginx-light"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| -> PathBuf { directory.path().join(name) };
    std::fs::create_dir(at("conf.d")).expect("made");
    let main = format!(
        "daemon off; worker_processes 1; pid {pid}; error_log {log};\nevents {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp}; \
         uwsgi_temp_path {tmp}; scgi_temp_path {tmp}; include conf.d/*.conf; }}\n",
        pid = at("pid").display(),
        log = at("log").display(),
        tmp = at("tmp").display(),
    );
    std::fs::write(at("nginx.conf"), main).expect("written");
    let child = Command::new(PROGRAM).arg("-c").arg(at("nginx.conf")).spawn().expect("nginx starts");
    let config = NginxConfig {
        enabled: true,
        listen: free_port(),
        destination: at("conf.d/muster.conf"),
        main: at("nginx.conf"),
        pid_file: at("pid"),
        program: PROGRAM.into(),
        ..Default::default()
    };
    let running = Running { child, config, _directory: directory };
    eventually(|| running.config.pid_file.exists());
    running
}

fn eventually(mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(Instant::now() < deadline, "not within 20 s");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A server that answers every request with `name`.
fn upstream(name: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
                name.len()
            );
        }
    });
    address
}

fn get(port: u16) -> Option<String> {
    asked(port, "x")
}

fn asked(port: u16, host: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// Services as the hub's keys say them.
fn data(items: &[(&str, &str)]) -> Data {
    let items = items.iter().map(|(key, value)| (*key, value.as_bytes()));
    Data::new(&Catalog::from_listing(items), KeyTree::default())
}

fn nginx(running: &Running) -> Nginx {
    Nginx::new(running.config.clone()).expect("the template parses")
}

fn file(running: &Running) -> String {
    std::fs::read_to_string(&running.config.destination).expect("readable")
}

const ONE: &str = "/services/someapp/upstream/a@1";
const TWO: &str = "/services/someapp/upstream/a@2";

#[tokio::test]
async fn nginx_follows_the_endpoints() {
    let running = start();
    let port = running.config.listen;
    let mut nginx = nginx(&running);
    let (one, two) = (upstream("one"), upstream("two"));

    let first = data(&[(ONE, &one)]);
    assert_eq!(nginx.apply(&first).await.expect("applied").applied, Applied::Changed);
    eventually(|| get(port).as_deref() == Some("one"));
    assert_eq!(nginx.apply(&first).await.expect("applied").applied, Applied::Unchanged);

    nginx.apply(&data(&[(ONE, &one), (TWO, &two)])).await.expect("applied");
    eventually(|| get(port).as_deref() == Some("two"));
    eventually(|| get(port).as_deref() == Some("one"));

    nginx.apply(&data(&[])).await.expect("applied");
    eventually(|| get(port).is_some_and(|body| body.contains("no such service here")));
    let left: Vec<_> = std::fs::read_dir(running.config.destination.parent().expect("has one"))
        .expect("readable")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".conf"))
        .collect();
    assert_eq!(left, ["muster.conf"], "nothing else is included by nginx");
}

#[tokio::test]
async fn a_service_that_nginx_refuses_stops_nobody_else() {
    let running = start();
    let port = running.config.listen;
    let mut nginx = nginx(&running);
    let (one, two) = (upstream("one"), upstream("two"));
    let web = "/services/web/upstream/w";
    nginx.apply(&data(&[(ONE, &one), (web, &two)])).await.expect("applied");

    // Plain characters, and still no name that nginx takes.
    let bad = ("/services/web/config", r#"{"hosts":["a.*.b"]}"#);
    let three = upstream("three");
    let report = nginx.apply(&data(&[(ONE, &three), (web, &one), bad])).await.expect("applied");
    assert_eq!(report.applied, Applied::Changed);
    let why = &report.quarantined[&"web".parse().expect("a name")];
    assert!(why.contains("invalid server name or wildcard"), "{why}");
    assert_eq!(report.quarantined.len(), 1);
    let text = file(&running);
    assert!(text.contains(&three) && text.contains(&two) && !text.contains("a.*.b"), "{text}");
    eventually(|| asked(port, "someapp").as_deref() == Some("three"));
    assert_eq!(asked(port, "web").as_deref(), Some("two"), "as it was before");

    // Its next state is tried again.
    let report = nginx.apply(&data(&[(ONE, &three), (web, &one)])).await.expect("applied");
    assert!(report.quarantined.is_empty());
    eventually(|| asked(port, "web").as_deref() == Some("one"));
}

#[tokio::test]
async fn a_storm_of_rubbish_reloads_little_and_harms_nobody() {
    let running = start();
    let port = running.config.listen;
    let mut nginx = nginx(&running);
    let one = upstream("one");
    let mut catalog = Catalog::default();
    catalog.put(ONE, one.as_bytes());
    nginx.apply(&Data::new(&catalog, KeyTree::default())).await.expect("applied");
    eventually(|| asked(port, "someapp").as_deref() == Some("one"));
    let (pace, begin) = (muster_core::router::Pace::default(), Instant::now());
    let mut batch = muster_core::router::Batch::default();
    batch.note(begin.elapsed(), muster_core::router::Effect::Added);
    let (mut reloads, mut asks) = (0_u32, 0_u32);
    for n in 0..250 {
        // Fifty a second, for five seconds.
        while begin.elapsed() < Duration::from_millis(20 * n) {
            thread::sleep(Duration::from_millis(1));
        }
        let (key, value) = match n % 3 {
            0 => (format!("/services/evil/upstream/x{n}"), ";}} garbage".to_owned()),
            1 => (format!("/services/evil{n}/upstream/x"), "10.255.0.1:1".to_owned()),
            _ => (format!("/services/evil{}/config", n - 1), r#"{"hosts":["a.*.b","x;}"]}"#.to_owned()),
        };
        let effect = catalog.put(&key, value.as_bytes());
        batch.note(begin.elapsed(), effect);
        if batch.due(&pace).is_some_and(|due| begin.elapsed() >= due) {
            let report = nginx.apply(&Data::new(&catalog, KeyTree::default())).await.expect("applied");
            reloads += u32::from(report.applied == Applied::Changed);
            batch.applied(&pace, begin.elapsed());
            asks += 1;
            assert_eq!(asked(port, "someapp").as_deref(), Some("one"));
        }
    }
    let allowed = u32::try_from(begin.elapsed().as_millis() / 2000).expect("short") + 1;
    assert!(asks >= 2 && reloads <= allowed, "{reloads} reloads, {allowed} allowed");
}

#[tokio::test]
async fn what_nginx_cannot_load_is_taken_back() {
    let mut running = start();
    let port = running.config.listen;
    let one = upstream("one");
    nginx(&running).apply(&data(&[(ONE, &one)])).await.expect("applied");
    let before = file(&running);

    // Somebody has the port. `nginx -t` lets that pass, a reload does not.
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let number = taken.local_addr().expect("bound").port();
    running.config.ports.insert("someapp".parse().expect("a name"), number);
    let mut nginx = nginx(&running);
    let error = nginx.apply(&data(&[(ONE, &one)])).await.expect_err("the port is taken");
    let Error::TakenBack { said, after, .. } = &error else { panic!("{error}") };
    assert!(said.contains("[emerg]") && said.contains("Address already in use"), "{said}");
    assert_eq!(*after, None);
    assert_eq!(file(&running), before);
    assert_eq!(get(port).as_deref(), Some("one"), "the old configuration serves");
    drop(taken);
    // The same text, which was not applied: it is tried again.
    assert_eq!(nginx.apply(&data(&[(ONE, &one)])).await.expect("applied").applied, Applied::Changed);
    eventually(|| get(number).as_deref() == Some("one"));
}

#[tokio::test]
async fn what_a_killed_daemon_left_is_brought_to_an_end() {
    let running = start();
    let port = running.config.listen;
    let (one, two) = (upstream("one"), upstream("two"));
    nginx(&running).apply(&data(&[(ONE, &one)])).await.expect("applied");
    let before = file(&running);
    // Renamed into place, and nginx was never told.
    let note = running.config.destination.with_file_name(".muster.conf.muster");
    let said = std::fs::read_to_string(&note).expect("noted");
    std::fs::write(&note, said.replace(r#""trying":null"#, r#""trying":"0000""#)).expect("written");
    std::fs::write(&running.config.destination, before.replace(&one, &two)).expect("written");
    assert_eq!(get(port).as_deref(), Some("one"));

    let wanted = data(&[(ONE, &two)]);
    assert_eq!(nginx(&running).apply(&wanted).await.expect("applied").applied, Applied::Changed);
    // The old workers take requests for a moment longer.
    eventually(|| get(port).as_deref() == Some("two"));
    // A daemon that starts again where all is well disturbs nobody.
    assert_eq!(nginx(&running).apply(&wanted).await.expect("applied").applied, Applied::Unchanged);
}

#[tokio::test]
async fn a_template_of_ones_own_that_is_broken_changes_nothing() {
    let mut running = start();
    let one = upstream("one");
    nginx(&running).apply(&data(&[(ONE, &one)])).await.expect("applied");
    let before = file(&running);
    let template = running.config.main.with_file_name("mine.j2");
    running.config.template = Some(template.clone());
    std::fs::write(&template, "fine\n{{ nonsense.x }}\n").expect("written");
    let error = nginx(&running).apply(&data(&[(ONE, &one)])).await.expect_err("undefined").to_string();
    assert!(error.contains("mine.j2:2: "), "{error}");
    std::fs::write(&template, "upstream broken {\n    nonsense;\n}\n").expect("written");
    let error = nginx(&running).apply(&data(&[(ONE, &one)])).await.expect_err("nginx refuses it").to_string();
    assert!(
        error.contains("unknown directive \"nonsense\"") && error.contains("conf.d/muster.conf:2"),
        "{error}"
    );
    std::fs::write(&template, "{% if %}").expect("written");
    let error = Nginx::new(running.config.clone()).err().expect("a syntax error").to_string();
    assert!(error.contains("mine.j2:1: "), "{error}");
    assert_eq!(file(&running), before);
}

#[tokio::test]
async fn an_nginx_that_does_not_run_is_said_to_not_run() {
    let config = start().config.clone();
    std::fs::create_dir_all(config.destination.parent().expect("has one")).expect("made");
    std::fs::write(&config.main, "events {}\nhttp { include conf.d/*.conf; }\n").expect("written");
    let mut nginx = Nginx::new(config.clone()).expect("the built-in template parses");
    let error = nginx.apply(&data(&[(ONE, "10.1.5.2:3000")])).await.expect_err("nobody to reload");
    assert!(matches!(error, Error::NotRunning(_)), "{error}");
    let left = std::fs::read_to_string(&config.destination).expect("it is there for when nginx starts");
    assert!(left.contains("10.1.5.2:3000"), "{left}");
}
