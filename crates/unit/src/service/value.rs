//! Values of a registration's options.
//!
//! Responsible for one value at a time, with specifiers expanded. Not responsible for its place. Invariant: what is
//! refused leaves the registration as it was, and says what is needed and what to write.

use super::{Check, Registration, TAGS};
use crate::nearest::nearest;
use model::{Protocol, ServiceConfig};
use std::time::Duration;

/// What is needed ("`Port` needs …"), and the remedy.
type Refusal = (&'static str, String);

/// The shortest interval and timeout of checks: shorter ones would only keep machines busy.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest duration that makes sense in any of the options.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Sets the option `name`.
pub(super) fn set(to: &mut Registration, name: &str, text: &str) -> Result<(), Refusal> {
    match name {
        "Port" => to.port = port(text)?,
        "Address" => {
            let needs =
                ("an IPv4 address", "such as `10.1.5.2`; without it, the container's is taken".to_owned());
            to.address = Some(text.parse().ok().ok_or(needs)?);
        }
        "Check" => to.check = check(text).map_err(|remedy| ("a check", remedy))?,
        "CheckInterval" => to.interval = duration(text, SHORTEST)?,
        "CheckTimeout" => to.timeout = duration(text, SHORTEST)?,
        "Rise" => to.rise = Some(number(text, 1, 100)?),
        "Fall" => to.fall = number(text, 1, 100)?,
        "StartGrace" => to.start_grace = duration(text, Duration::ZERO)?,
        "Drain" => to.drain = duration(text, Duration::ZERO)?,
        "Weight" => to.weight = number(text, 0, 65535)?,
        "Proto" => to.proto = protocol(text)?,
        "SlowStart" => to.slow_start = Some(duration(text, Duration::ZERO)?),
        "Metrics" => to.metrics = Some(metrics(text)?),
        TAGS => to.tags.extend(text.split_whitespace().map(str::to_owned)),
        "Host" => {
            let hosts = hosts(text)?;
            config(to).hosts.extend(hosts);
        }
        "Path" => {
            let paths: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
            if let Some(bad) = paths.iter().find(|path| !path.starts_with('/')) {
                return Err(("path prefixes", format!("`{bad}` does not begin with `/`")));
            }
            config(to).paths.extend(paths);
        }
        "Sticky" if text == "cookie" => config(to).sticky = Some(text.to_owned()),
        "Sticky" => return Err(("`cookie`", "there is no other way; remove it for none".to_owned())),
        "Balance" => {
            let balance = balance(text)?;
            config(to).balance = Some(balance);
        }
        "TcpPort" => {
            let port = port(text)?;
            config(to).tcp_port = Some(port);
        }
        // The section's name was read already.
        _ => {}
    }
    Ok(())
}

fn config(to: &mut Registration) -> &mut ServiceConfig {
    to.config.get_or_insert_default()
}

fn port(text: &str) -> Result<u16, Refusal> {
    let port = text.parse::<u16>().ok().filter(|port| *port != 0);
    port.ok_or_else(|| ("a port", "a number from 1 to 65535".to_owned()))
}

fn number(text: &str, least: u32, most: u32) -> Result<u32, Refusal> {
    let number = text.parse::<u32>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| ("a number", format!("from {least} to {most}")))
}

fn protocol(text: &str) -> Result<Protocol, Refusal> {
    Ok(match text {
        "http" => Protocol::Http,
        "h2c" => Protocol::H2c,
        "grpc" => Protocol::Grpc,
        "tcp" => Protocol::Tcp,
        "tls" => Protocol::Tls,
        _ => return Err(("a protocol", "`http`, `h2c`, `grpc`, `tcp` or `tls`".to_owned())),
    })
}

/// `/metrics`, or with a port before it: `:9100/metrics`.
fn metrics(text: &str) -> Result<String, Refusal> {
    let fits = match text.strip_prefix(':') {
        Some(rest) => rest.split_once('/').is_some_and(|(digits, _)| port(digits).is_ok()),
        None => text.starts_with('/'),
    };
    let needs = || ("a path", "such as `/metrics`, or with another port `:9100/metrics`".to_owned());
    if fits && !text.contains(char::is_whitespace) { Ok(text.to_owned()) } else { Err(needs()) }
}

fn hosts(text: &str) -> Result<Vec<String>, Refusal> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host = |word: &str| {
        let name = word.strip_prefix("*.").unwrap_or(word);
        if name.len() <= 253 && name.split('.').all(label) {
            return Ok(word.to_ascii_lowercase());
        }
        Err((
            "host names",
            format!("`{word}` is none: `app.example.com`, or `*.example.com` for all under it"),
        ))
    };
    text.split_whitespace().map(host).collect()
}

fn balance(text: &str) -> Result<String, Refusal> {
    let named =
        |prefix: &str| text.strip_prefix(prefix).is_some_and(|name| !name.is_empty() && !name.contains(' '));
    let known = matches!(text, "p2c" | "round-robin" | "least-conn" | "hash:ip");
    if known || named("hash:header:") || named("hash:cookie:") {
        return Ok(text.to_owned());
    }
    let remedy = "`p2c`, `round-robin`, `least-conn`, `hash:ip`, `hash:header:NAME` or `hash:cookie:NAME`";
    Err(("a way to balance", remedy.to_owned()))
}

fn check(text: &str) -> Result<Check, String> {
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind.trim(), rest.trim()),
        // `http status=200`
        None => match text.split_once(' ') {
            Some((kind, rest)) => (kind, rest.trim()),
            None => (text, ""),
        },
    };
    match kind {
        "none" if rest.is_empty() => Ok(Check::None),
        "none" => Err("`none` stands alone".to_owned()),
        "tcp" if rest.is_empty() => Ok(Check::Tcp { port: None }),
        "tcp" => Ok(Check::Tcp { port: Some(check_port(rest)?) }),
        "http" | "https" => http(kind == "https", rest),
        "grpc" if rest.contains(char::is_whitespace) => Err(format!("`{rest}` is no gRPC service")),
        "grpc" => Ok(Check::Grpc { service: rest.to_owned() }),
        "exec" => {
            let words = command(rest)?;
            match words.first() {
                Some(program) if program.starts_with('/') => Ok(Check::Exec(words)),
                _ => Err("write the program's whole path: `exec:/usr/bin/check ARGUMENTS`".to_owned()),
            }
        }
        _ => Err(match nearest(kind, &["tcp", "http", "https", "grpc", "exec", "none"]) {
            Some(known) => format!("did you mean `{known}`?"),
            None => "`tcp`, `http:/path`, `https:/path`, `grpc`, `exec:/program` or `none`".to_owned(),
        }),
    }
}

fn check_port(text: &str) -> Result<u16, String> {
    port(text)
        .map_err(|_| format!("`{text}` is no port; write for example `http:/healthz` or `http:8080/healthz`"))
}

fn http(tls: bool, rest: &str) -> Result<Check, String> {
    let mut words = rest.split_whitespace();
    let mut target = words.next().unwrap_or("");
    let mut status = 200..=399;
    let mut options: Vec<_> = words.collect();
    if target.starts_with("status=") {
        options.insert(0, std::mem::take(&mut target));
    }
    for option in options {
        let range = option.strip_prefix("status=").and_then(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code));
            let (first, last) = (code(first)?, code(last)?);
            (first <= last).then_some(first..=last)
        });
        status = range
            .ok_or_else(|| format!("`{option}` is not understood; write for example `status=200-399`"))?;
    }
    let (digits, path) = match target.find('/') {
        Some(at) => target.split_at(at),
        None => (target, "/"),
    };
    let port = if digits.is_empty() { None } else { Some(check_port(digits)?) };
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("`{path}` has characters that no path may have; write them as %XX"));
    }
    Ok(Check::Http { tls, port, path: path.to_owned(), status })
}

/// Words, in double quotes where they have blanks.
fn command(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if quoted {
        return Err("a `\"` is never closed".to_owned());
    }
    if begun {
        words.push(word);
    }
    Ok(words)
}

/// As systemd.time(7): numbers with units, added up; a number alone is seconds.
pub(crate) fn time(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let after = rest[digits..].trim_start();
        let letters = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let unit = match &after[..letters] {
            "us" | "usec" => 1e-6,
            "ms" | "msec" => 1e-3,
            "" | "s" | "sec" | "second" | "seconds" => 1.0,
            "m" | "min" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hour" | "hours" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = after[letters..].trim_start();
    }
    Some(total)
}

fn duration(text: &str, least: Duration) -> Result<Duration, Refusal> {
    let needs = |remedy: &str| ("a duration", remedy.to_owned());
    let duration = time(text).ok_or_else(|| needs("write for example `10s`, `800ms` or `1min 30s`"))?;
    match () {
        () if duration < least => Err(needs("at least 10ms")),
        () if duration > LONGEST => Err(needs("a day at most")),
        () => Ok(duration),
    }
}
