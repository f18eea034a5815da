//! Every kind of check against something that passes and something that does not, on the loopback.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use unit::Check;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PATIENT: Duration = Duration::from_secs(20);

/// Answers every request with this.
async fn answering(answer: &'static str) -> u16 {
    let listener = TcpListener::bind((HERE, 0)).await.expect("bound");
    let port = listener.local_addr().expect("it has one").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

fn http(path: &str) -> Check {
    Check::Http { tls: false, port: None, path: path.to_owned(), status: 200..=399 }
}

#[tokio::test]
async fn tcp_and_http() {
    let good = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let bad = answering("HTTP/1.1 503 Busy\r\n\r\n").await;
    let rubbish = answering("220 mail\r\n").await;
    let tcp = Check::Tcp { port: None };
    assert_eq!(checks::run(&tcp, HERE, good, PATIENT).await, Ok(()));
    assert_eq!(checks::run(&http("/up"), HERE, good, PATIENT).await, Ok(()));
    let why = checks::run(&http("/up"), HERE, bad, PATIENT).await.expect_err("503");
    assert_eq!(why, "GET /up gave 503");
    let why = checks::run(&http("/up"), HERE, rubbish, PATIENT).await.expect_err("no HTTP");
    assert!(why.contains("no HTTP answer"), "{why}");
    let other = Check::Http { tls: false, port: Some(good), path: "/".to_owned(), status: 200..=299 };
    assert_eq!(checks::run(&other, HERE, bad, PATIENT).await, Ok(()), "the check's own port");
    let closed = {
        let listener = TcpListener::bind((HERE, 0)).await.expect("bound");
        listener.local_addr().expect("it has one").port()
    };
    let why = checks::run(&tcp, HERE, closed, PATIENT).await.expect_err("closed");
    assert!(why.contains("refused"), "{why}");
    assert_eq!(checks::run(&Check::None, HERE, closed, PATIENT).await, Ok(()));
}

#[tokio::test]
async fn a_program_is_run_and_killed_with_its_patience() {
    let exec = |words: &[&str]| Check::Exec(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(checks::run(&exec(&["/bin/sh", "-c", "exit 0"]), HERE, 1, PATIENT).await, Ok(()));
    let why = checks::run(&exec(&["/bin/sh", "-c", "echo full >&2; exit 3"]), HERE, 1, PATIENT).await;
    let why = why.expect_err("3");
    assert!(why.contains("status: 3") && why.ends_with("full"), "{why}");
    let begun = Instant::now();
    let why = checks::run(&exec(&["/bin/sleep", "600"]), HERE, 1, Duration::from_millis(100)).await;
    assert!(why.expect_err("late").contains("no answer within 100ms"));
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(checks::run(&exec(&["/nonexistent"]), HERE, 1, PATIENT).await.is_err());
}

/// Whether a process runs. One that has ended and that nobody has waited for does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

#[tokio::test]
async fn what_a_program_started_ends_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let note = directory.path().join("pid");
    let script = |then: &str| {
        let script = format!("/bin/sleep 600 & echo $! >{}; {then}", note.display());
        Check::Exec(["/bin/sh", "-c", &script].map(str::to_owned).to_vec())
    };
    // The child holds the program's pipes: that it has passed does not wait for it.
    let begun = Instant::now();
    for (then, patience, passes) in [
        ("exit 0", PATIENT, true),
        ("exit 3", PATIENT, false),
        ("sleep 600", Duration::from_millis(300), false),
        ("trap '' TERM; while :; do sleep 1; done", Duration::from_millis(300), false),
    ] {
        let outcome = checks::run(&script(then), HERE, 1, patience).await;
        assert_eq!(outcome.is_ok(), passes, "{then}: {outcome:?}");
        let pid = std::fs::read_to_string(&note).expect("it was started");
        let pid = pid.trim();
        assert!(!pid.is_empty(), "{then}");
        while runs(pid) {
            assert!(begun.elapsed() < PATIENT, "{then}: {pid} is left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::remove_file(&note).expect("it was there");
    }
    // Whoever gives a check up, gives up all of it.
    let script = script("sleep 600");
    let check = checks::run(&script, HERE, 1, PATIENT);
    let written = async {
        while !std::fs::read_to_string(&note).is_ok_and(|pid| pid.ends_with('\n')) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        outcome = check => panic!("{outcome:?}"),
        () = written => {}
    }
    let pid = std::fs::read_to_string(&note).expect("it was started");
    while runs(pid.trim()) {
        assert!(begun.elapsed() < PATIENT, "{pid} is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // However much it says.
    let loud = Check::Exec(
        ["/bin/sh", "-c", "head -c 50000000 /dev/zero; echo full >&2; exit 1"].map(str::to_owned).to_vec(),
    );
    let why = checks::run(&loud, HERE, 1, PATIENT).await.expect_err("1");
    assert!(why.ends_with("full"), "{why}");
}

#[tokio::test]
async fn grpc_asks_the_health_service() {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("good", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("bad", tonic_health::ServingStatus::NotServing).await;
    let listener = TcpListener::bind((HERE, 0)).await.expect("bound");
    let port = listener.local_addr().expect("it has one").port();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let grpc = |service: &str| Check::Grpc { service: service.to_owned() };
    assert_eq!(checks::run(&grpc("good"), HERE, port, PATIENT).await, Ok(()));
    let why = checks::run(&grpc("bad"), HERE, port, PATIENT).await.expect_err("not serving");
    assert!(why.contains("NOT_SERVING"), "{why}");
    let why = checks::run(&grpc("nobody"), HERE, port, PATIENT).await.expect_err("unknown");
    assert!(why.contains("NotFound"), "{why}");
    let plain = answering("HTTP/1.1 200 OK\r\n\r\n").await;
    assert!(checks::run(&grpc(""), HERE, plain, Duration::from_secs(2)).await.is_err());
}
