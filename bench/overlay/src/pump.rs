//! A TCP stream between two network namespaces, and a ball that is thrown to and fro: bytes, processor time, microseconds.
//!
//! Processor time is that of the whole box, because the kernel does most of the work in nobody's name: whatever else
//! runs is counted too, and a busy box spoils it.

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
    /// Nanoseconds of all processors for a byte.
    pub nanoseconds: f64,
    /// One way of the ball, in microseconds; the median.
    pub one_way: f64,
}

/// A stream for `time`, then the ball for a third of it. `to` has the address `address`.
pub fn turn(from: &Namespace, to: &Namespace, address: Ipv4Addr, time: Duration) -> Result<Turn> {
    let (gigabits, nanoseconds) = stream(connect(from, to, address)?, time)?;
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

fn stream((mut out, mut end): (TcpStream, TcpStream), time: Duration) -> Result<(f64, f64)> {
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
            while !done.load(Ordering::Relaxed) && out.write_all(&block).is_ok() {}
            let _ = out.shutdown(std::net::Shutdown::Both); // the other end may be gone
        });
        thread::sleep(WARM_UP);
        let begin = (received.load(Ordering::Relaxed), busy()?, Instant::now());
        thread::sleep(time);
        let bytes = (received.load(Ordering::Relaxed) - begin.0) as f64;
        let (spent, taken) = (busy()? - begin.1, begin.2.elapsed());
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

/// What all processors have worked so far, by proc(5)'s `/proc/stat`.
fn busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq: in hundredths of a second.
    let worked = [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum::<u64>();
    Ok(Duration::from_millis(worked * 10))
}
