//! A TCP stream between two network namespaces, and a ball that is thrown to and fro: bytes, processor time, microseconds.
//!
//! Invariant: what others do on the box is not counted, though it takes processors away.

use crate::lab::Namespace;
use anyhow::{Context, Result, ensure};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A connection grows to its full speed in this time.
const WARM_UP: Duration = Duration::from_millis(200);
/// Nobody waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is written at once, in bytes.
const BLOCK: usize = 128 << 10;
/// The ball, in bytes.
const BALL: usize = 64;

/// One turn of a path.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Of the stream.
    pub gigabits: f64,
    /// Nanoseconds of processors' time for a byte, both ends together.
    pub nanoseconds: f64,
    /// One way of the ball, in microseconds; the median.
    pub one_way: f64,
}

/// A stream for `time`, then the ball for a third of it. `to` has the address `address`; `others` are processes that
/// carry packets.
pub fn turn(
    from: &Namespace,
    to: &Namespace,
    address: Ipv4Addr,
    time: Duration,
    others: &[u32],
) -> Result<Turn> {
    let (gigabits, nanoseconds) = stream(connect(from, to, address)?, time, others)?;
    let one_way = ball(connect(from, to, address)?, time / 3)?;
    Ok(Turn { gigabits, nanoseconds, one_way })
}

/// Both ends of a connection.
fn connect(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Result<(TcpStream, TcpStream)> {
    let listener = to.enter(|| TcpListener::bind((address, 0)))?;
    let there = listener.local_addr()?;
    let out = from.enter(|| TcpStream::connect_timeout(&there, PATIENCE));
    let out = out.with_context(|| format!("no way to {address}"))?;
    let (end, _) = listener.accept()?;
    for socket in [&out, &end] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((out, end))
}

fn stream((mut out, mut end): (TcpStream, TcpStream), time: Duration, others: &[u32]) -> Result<(f64, f64)> {
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 2 * BLOCK];
            while let Ok(length @ 1..) = end.read(&mut buffer) {
                received.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let block = vec![0x6d; BLOCK];
            while !done.load(Ordering::Relaxed) {
                if out.write_all(&block).is_err() {
                    break;
                }
            }
            let _ = out.shutdown(std::net::Shutdown::Both); // the other end may be gone
        });
        thread::sleep(WARM_UP);
        let begin = (received.load(Ordering::Relaxed), worked(others)?, Instant::now());
        thread::sleep(time);
        let bytes = (received.load(Ordering::Relaxed) - begin.0) as f64;
        let (spent, taken) = (worked(others)? - begin.1, begin.2.elapsed());
        done.store(true, Ordering::Relaxed);
        ensure!(bytes > 0.0, "nothing arrived");
        Ok((bytes * 8.0 / taken.as_secs_f64() / 1e9, spent.as_nanos() as f64 / bytes))
    })
}

fn ball((mut out, mut end): (TcpStream, TcpStream), time: Duration) -> Result<f64> {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut ball = [0; BALL];
            while end.read_exact(&mut ball).is_ok() && end.write_all(&ball).is_ok() {}
        });
        let mut ways = Vec::new();
        let (begin, mut ball) = (Instant::now(), [0x6d; BALL]);
        while begin.elapsed() < time {
            let thrown = Instant::now();
            out.write_all(&ball)?;
            out.read_exact(&mut ball)?;
            ways.push(thrown.elapsed().as_secs_f64() * 1e6 / 2.0);
        }
        drop(out);
        Ok(crate::median(ways))
    })
}

/// What processors have worked so far for this process, for `others`, and for the kernel's own threads that take over
/// what is left of a burst of packets. Packets are worked on in the name of whoever sends or reads.
fn worked(others: &[u32]) -> Result<Duration> {
    let mut nanoseconds = 0;
    let mut all = vec!["self".to_owned()];
    all.extend(others.iter().map(ToString::to_string));
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with("ksoftirqd/") {
            all.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    for process in all {
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
            // A thread may be gone by now. sched-stats of the kernel: time on a processor, in nanoseconds.
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let field = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
            nanoseconds += field.unwrap_or_default();
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}
