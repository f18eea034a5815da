//! The web app of Muster's story: a page that says which copy answered and from which address.
//!
//! Small enough to be the only file in its image. As a container's first process it must take SIGTERM itself: the
//! kernel does not end such a process by default.

use std::{
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 3000;
/// A client that says nothing for this long is gone.
const IDLE: Duration = Duration::from_secs(30);
/// Requests under way get this long when the app is asked to end.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve(),
        ["get", url] => get(url),
        _ => {
            eprintln!(
                "usage: someapp            serve on port {PORT}\n       someapp get URL    print a page of another copy"
            );
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("someapp: {error}");
            ExitCode::FAILURE
        }
    }
}

struct App {
    instance: String,
    address: Option<IpAddr>,
    served: AtomicU64,
    under_way: AtomicUsize,
    ending: AtomicBool,
    /// Requests for pages that came after it was asked to end.
    late: AtomicU64,
}

fn serve() -> io::Result<()> {
    let app = Arc::new(App {
        instance: env::var("INSTANCE").unwrap_or_else(|_| "someapp".to_owned()),
        address: own_address(),
        served: AtomicU64::new(0),
        under_way: AtomicUsize::new(0),
        ending: AtomicBool::new(false),
        late: AtomicU64::new(0),
    });
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    println!("{} serves on port {PORT}", app.instance);
    let ending = Arc::clone(&app);
    thread::spawn(move || {
        signals.forever().next();
        let asked = Instant::now();
        ending.ending.store(true, Ordering::SeqCst);
        while ending.under_way.load(Ordering::SeqCst) > 0 && asked.elapsed() < GRACE {
            thread::sleep(Duration::from_millis(10));
        }
        let (served, late) = (ending.served.load(Ordering::SeqCst), ending.late.load(Ordering::SeqCst));
        println!(
            "{} ends after {served} pages, {late} of them asked for after it was told to",
            ending.instance
        );
        std::process::exit(0);
    });
    for stream in listener.incoming() {
        let (app, stream) = (Arc::clone(&app), stream?);
        thread::spawn(move || {
            // A client that breaks off hurts nobody but itself.
            let _ = converse(&app, stream);
        });
    }
    Ok(())
}

/// The address that this container has on the cluster network: the one it would send from.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Connecting a UDP socket only chooses a route; nothing is sent.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Answers requests on one connection until the client closes it.
fn converse(app: &App, stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        app.under_way.fetch_add(1, Ordering::SeqCst);
        let outcome = answer(app, &request, &mut reader, &mut stream);
        app.under_way.fetch_sub(1, Ordering::SeqCst);
        if !outcome? {
            return Ok(());
        }
    }
}

/// True when the client may ask again on this connection.
fn answer(app: &App, request: &str, reader: &mut impl BufRead, stream: &mut TcpStream) -> io::Result<bool> {
    let mut again = request.trim_end().ends_with("HTTP/1.1");
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let header = header.to_ascii_lowercase();
        again &= header.trim() != "connection: close";
        if let Some(text) = header.strip_prefix("content-length:") {
            length = text.trim().parse().unwrap_or(0);
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (status, kind, body) = match path {
        "/healthz" => ("200 OK", "text/plain", "ok\n".to_owned()),
        "/" => ("200 OK", "text/html; charset=utf-8", page(app)),
        _ => ("404 Not Found", "text/plain", "there is only / and /healthz\n".to_owned()),
    };
    let connection = if again { "keep-alive" } else { "close" };
    // In one piece: several small ones would wait for each other's acknowledgement.
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes())?;
    Ok(again)
}

fn page(app: &App) -> String {
    let number = app.served.fetch_add(1, Ordering::SeqCst) + 1;
    app.late.fetch_add(app.ending.load(Ordering::SeqCst).into(), Ordering::SeqCst);
    let address = app.address.map_or_else(|| "no address".to_owned(), |address| address.to_string());
    format!(
        "<!doctype html>\n<title>{0}</title>\n<h1>{0}</h1>\n<p>This is {0} at {address}, page {number} since it started.</p>\n",
        app.instance
    )
}

/// Prints a page of another copy: the image holds no other program that could ask for one.
fn get(url: &str) -> io::Result<()> {
    let rest = url.strip_prefix("http://").ok_or_else(|| io::Error::other("only http:// is understood"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(GRACE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    print!("{body}");
    if head.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(io::Error::other(head.lines().next().unwrap_or("no answer").to_owned()))
    }
}
