//! With a real nginx, run as a child in a directory of its own.

use nginx::{Applied, Nginx, NginxConfig, NginxError, Service};
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
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn service(endpoints: &[(&str, &str)]) -> Vec<Service> {
    let endpoints =
        endpoints.iter().map(|(i, e)| ((*i).to_owned(), e.parse().expect("an endpoint"))).collect();
    vec![Service::new(&"someapp".parse().expect("a name"), &endpoints)]
}

#[tokio::test]
async fn nginx_follows_the_endpoints_and_survives_a_bad_file() {
    let running = start();
    let port = running.config.listen;
    let mut nginx = Nginx::new(running.config.clone()).expect("the built-in template parses");
    let (one, two) = (upstream("one"), upstream("two"));

    let text = nginx.render(&service(&[("a@1", &one)])).expect("renders");
    assert_eq!(nginx.apply(&text).await.expect("applied"), Applied::Reloaded);
    eventually(|| get(port).as_deref() == Some("one"));
    assert_eq!(nginx.apply(&text).await.expect("applied"), Applied::Unchanged);

    let text = nginx.render(&service(&[("a@1", &one), ("a@2", &two)])).expect("renders");
    nginx.apply(&text).await.expect("applied");
    eventually(|| get(port).as_deref() == Some("two"));
    eventually(|| get(port).as_deref() == Some("one"));

    let error = nginx.apply("upstream broken {\n    nonsense;\n}\n").await.expect_err("nginx refuses it");
    let NginxError::Refused(said) = &error else { panic!("{error}") };
    assert!(
        said.contains("unknown directive \"nonsense\"") && said.contains("conf.d/muster.conf:2"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(&running.config.destination).expect("still there"), text);
    assert!(get(port).is_some(), "the old configuration still serves");

    nginx.apply(&nginx.render(&[]).expect("renders")).await.expect("applied");
    eventually(|| get(port).is_some_and(|body| body.contains("no such service here")));
}

#[tokio::test]
async fn an_nginx_that_does_not_run_is_said_to_not_run() {
    let config = start().config.clone();
    std::fs::create_dir_all(config.destination.parent().expect("has one")).expect("made");
    std::fs::write(&config.main, "events {}\nhttp { include conf.d/*.conf; }\n").expect("written");
    let mut nginx = Nginx::new(config).expect("the built-in template parses");
    let text = nginx.render(&[]).expect("renders");
    let error = nginx.apply(&text).await.expect_err("nobody to reload");
    assert!(matches!(error, NginxError::NotRunning { .. }), "{error}");
}
