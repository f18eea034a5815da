//! `[X-Service]`, `[X-Service-NAME]` and `[X-Fleet] Register=`: what a unit wants registered, and how it is checked.
//!
//! Responsible for reading the options, with specifiers expanded, and for refusing what cannot be carried out. Not
//! responsible for carrying it out: that is the registrar's. Invariant: no two registrations of a unit share a
//! service's name, because an instance has one key in a service.

mod value;

pub(crate) use value::time;

use crate::{
    Problem, UnitFile, UnitOption,
    nearest::nearest,
    problem::Place,
    words::{Specifiers, unknown_specifier},
};
use model::{Instance, Protocol, ServiceConfig, ServiceName, UnitName};
use std::{net::Ipv4Addr, ops::RangeInclusive, time::Duration};

/// The section's name, and what one for another port begins with, before a hyphen and its name.
pub(crate) const SECTION: &str = "X-Service";
/// The short form's key in `[X-Fleet]`.
const REGISTER: &str = "Register";
/// The section's options.
const OPTIONS: [&str; 19] = [
    "Name",
    "Port",
    "Address",
    "Check",
    "CheckInterval",
    "CheckTimeout",
    "Rise",
    "Fall",
    "StartGrace",
    "Drain",
    "Weight",
    "Proto",
    "SlowStart",
    "Host",
    "Path",
    "Sticky",
    "Balance",
    "TcpPort",
    "Metrics",
];
const TAGS: &str = "Tags";

/// One port of a unit that is registered as an instance of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// `Name`: the service; by default the unit's name up to its `@`.
    pub service: ServiceName,
    /// The instance: the unit's name without its type.
    pub instance: Instance,
    /// `Port`: where it listens.
    pub port: u16,
    /// `Address`: where it listens, if not at its container's or its machine's address.
    pub address: Option<Ipv4Addr>,
    /// `Check`.
    pub check: Check,
    /// `CheckInterval`: between two checks.
    pub interval: Duration,
    /// `CheckTimeout`: what one check may take.
    pub timeout: Duration,
    /// `Rise`: how many checks in a row must pass. By default one after a start and two after a failure.
    pub rise: Option<u32>,
    /// `Fall`: how many checks in a row must fail.
    pub fall: u32,
    /// `StartGrace`: how long it may take until a check passes for the first time.
    pub start_grace: Duration,
    /// `Drain`: the longest time between its removal from service and its stop.
    pub drain: Duration,
    /// `Weight`: its share of the traffic relative to the others.
    pub weight: u32,
    /// `Proto`: what it speaks.
    pub proto: Protocol,
    /// `SlowStart`: how long its share grows.
    pub slow_start: Option<Duration>,
    /// `Metrics`: where Prometheus finds its metrics.
    pub metrics: Option<String>,
    /// `Tags`.
    pub tags: Vec<String>,
    /// `Host`, `Path`, `Sticky`, `Balance`, `TcpPort`: how the service is to be balanced, if the unit says so.
    pub config: Option<ServiceConfig>,
}

/// How it is found out whether an instance works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `none`: it works as long as its unit is active.
    None,
    /// `tcp[:PORT]`: it accepts a connection.
    Tcp {
        /// Another port than the service's.
        port: Option<u16>,
    },
    /// `http[s]:[PORT][/PATH][ status=200-399]`: it answers a GET with such a status.
    Http {
        /// `https`; whose certificate it is does not matter.
        tls: bool,
        /// Another port than the service's.
        port: Option<u16>,
        /// The path, with its query.
        path: String,
        /// Which answers pass.
        status: RangeInclusive<u16>,
    },
    /// `exec:/PROGRAM ARGUMENTS`: the program, run on the machine, ends with 0.
    Exec(Vec<String>),
    /// `grpc[:SERVICE]`: gRPC's own health service says SERVING.
    Grpc {
        /// Which service it is asked about; empty for the server as a whole.
        service: String,
    },
}

/// Reads all registrations of a unit; the warnings come second.
pub(crate) fn read(name: &UnitName, file: &UnitFile) -> Result<(Vec<Registration>, Vec<Problem>), Problem> {
    let mut reader =
        Reader { file, name, specifiers: Specifiers::of(name), warnings: Vec::new(), read: Vec::new() };
    for option in file.options().iter().filter(|o| o.section == "X-Fleet" && o.name == REGISTER) {
        reader.short(option)?;
    }
    let mut seen: Vec<&str> = Vec::new();
    for header in file.headers().iter().filter(|header| is_section(&header.name)) {
        if !seen.contains(&header.name.as_str()) {
            seen.push(&header.name);
            reader.section(&header.name, header.place)?;
        }
    }
    let registrations = reader.read.into_iter().map(|(registration, _)| registration).collect();
    Ok((registrations, reader.warnings))
}

/// Whether a section of that name is read here.
pub(crate) fn is_section(name: &str) -> bool {
    name == SECTION || name.strip_prefix(SECTION).is_some_and(|rest| rest.starts_with('-'))
}

/// True for a key that means a registration, so that it is lost in any other section.
pub(crate) fn is_option(name: &str) -> bool {
    OPTIONS.contains(&name) || name == TAGS
}

struct Reader<'a> {
    file: &'a UnitFile,
    name: &'a UnitName,
    specifiers: Specifiers,
    warnings: Vec<Problem>,
    read: Vec<(Registration, Place)>,
}

impl Reader<'_> {
    /// `Register=someapp:3000`, or the port alone.
    fn short(&mut self, option: &UnitOption) -> Result<(), Problem> {
        let place = option.place(0..option.value.len());
        self.only_services(place)?;
        let text = self.specifiers.expand(option.value.trim());
        let (service, port) = match text.rsplit_once(':') {
            Some((service, port)) => (Some(service.to_owned()), port.to_owned()),
            None => (None, text),
        };
        let number = port.parse::<u16>().ok().filter(|port| *port != 0);
        let Some(port) = number.or_else(|| self.specifiers.open(&option.value).then_some(1)) else {
            let message = "`Register` needs `SERVICE:PORT`";
            return Err(self.file.problem(place, message, "write for example `Register=someapp:3000`"));
        };
        let service = match service {
            Some(service) => self.service(&service, option, place)?,
            None => self.own_name(place)?,
        };
        let registration = self.plain(service, port);
        self.add(registration, place)
    }

    fn section(&mut self, section: &str, header: Place) -> Result<(), Problem> {
        self.only_services(header)?;
        let options: Vec<_> = self.file.options().iter().filter(|option| option.section == section).collect();
        let last = |name: &str| options.iter().rev().find(|option| option.name == name).copied();
        let Some(port) = last("Port") else {
            let message = format!("[{section}] has no `Port`");
            return Err(self.file.problem(header, message, "write where it listens, such as `Port=3000`"));
        };
        let service = match (last("Name"), section.strip_prefix("X-Service-")) {
            (Some(name), _) => {
                let text = self.specifiers.expand(name.value.trim());
                self.service(&text, name, name.place(0..name.value.len()))?
            }
            (None, Some(label)) => label.parse().map_err(|error: model::ServiceNameError| {
                self.file.problem(header, error.to_string(), "name the service with `Name=`")
            })?,
            (None, None) => self.own_name(header)?,
        };
        let mut registration = self.plain(service, 1);
        for option in &options {
            if !is_option(&option.name) {
                self.warn_unknown(option);
                continue;
            }
            if let Some((at, specifier)) = unknown_specifier(&option.value) {
                let message = format!("`{specifier}` is not expanded in [{section}]");
                let place = option.place(at..at + specifier.len());
                let remedy = "`%n`, `%N`, `%p` and `%i` are; it is taken as it stands";
                self.warnings.push(self.file.problem(place, message, remedy));
            }
            let text = self.specifiers.expand(option.value.trim());
            if let Err((what, remedy)) = value::set(&mut registration, &option.name, &text)
                && !self.specifiers.open(&option.value)
            {
                let message = format!("`{}` needs {what}", option.name);
                return Err(self.file.problem(option.place(0..option.value.len()), message, remedy));
            }
        }
        if registration.timeout > registration.interval.max(Duration::from_secs(1)) * 10 {
            let place = last("CheckTimeout").map_or(header, |option| option.place(0..option.value.len()));
            let message = "`CheckTimeout` is longer than ten checks' interval";
            self.warnings.push(self.file.problem(place, message, "a check waits for the last one to end"));
        }
        if let Some(config) = &registration.config
            && config.tcp_port.is_some()
            && !(config.hosts.is_empty() && config.paths.is_empty() && config.sticky.is_none())
        {
            let place = last("TcpPort").map_or(header, UnitOption::name_place);
            let message =
                "`TcpPort` passes bytes on unread, so `Host`, `Path` and `Sticky` have no effect there";
            self.warnings.push(self.file.problem(place, message, "they hold for the gateway's HTTP ports"));
        }
        if let Some(config) = &mut registration.config {
            config.v = model::RECORD_VERSION;
            config.written_by = Some(self.writer());
        }
        self.add(registration, port.place(0..port.value.len()))
    }

    fn only_services(&self, place: Place) -> Result<(), Problem> {
        if self.name.kind() == "service" {
            return Ok(());
        }
        let message = format!("a {} unit listens nowhere, so it cannot be registered", self.name.kind());
        Err(self.file.problem(place, message, "say it in the service's own unit"))
    }

    fn add(&mut self, registration: Registration, place: Place) -> Result<(), Problem> {
        if self.read.iter().any(|(known, _)| known.service == registration.service) {
            let message = format!("the service `{}` is registered twice", registration.service);
            let remedy = "an instance has one port in a service: give the other service a `Name` of its own";
            return Err(self.file.problem(place, message, remedy));
        }
        self.read.push((registration, place));
        Ok(())
    }

    fn service(&self, text: &str, option: &UnitOption, place: Place) -> Result<ServiceName, Problem> {
        text.parse().or_else(|error: model::ServiceNameError| {
            // A template may be checked with a stand-in that does not fit.
            if self.specifiers.open(&option.value) {
                return Ok("of-template".parse().expect("a label"));
            }
            let remedy = match text.to_ascii_lowercase().replace(['_', '.'], "-") {
                fixed if fixed.parse::<ServiceName>().is_ok() => format!("did you mean `{fixed}`?"),
                _ => "it becomes a host name".to_owned(),
            };
            Err(self.file.problem(place, error.to_string(), remedy))
        })
    }

    /// The unit's prefix as a service's name.
    fn own_name(&self, place: Place) -> Result<ServiceName, Problem> {
        self.name.prefix().parse().map_err(|error: model::ServiceNameError| {
            self.file.problem(place, error.to_string(), "name the service: `Name=` in [X-Service]")
        })
    }

    /// All copies of a template write the same.
    fn writer(&self) -> String {
        match self.name.template() {
            Some(template) => template.to_string(),
            None => self.name.to_string(),
        }
    }

    fn plain(&self, service: ServiceName, port: u16) -> Registration {
        Registration {
            service,
            instance: self.name.stem().to_owned(),
            port,
            address: None,
            check: Check::Tcp { port: None },
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(800),
            rise: None,
            fall: 3,
            start_grace: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            weight: 100,
            proto: Protocol::Http,
            slow_start: None,
            metrics: None,
            tags: Vec::new(),
            config: None,
        }
    }

    fn warn_unknown(&mut self, option: &UnitOption) {
        let message = format!("unrecognized option in [{}] section: \"{}\"", option.section, option.name);
        let known: Vec<_> = OPTIONS.iter().copied().chain([TAGS]).collect();
        let remedy = match nearest(&option.name, &known) {
            Some(known) => format!("did you mean `{known}`?"),
            None => "it is passed over".to_owned(),
        };
        self.warnings.push(self.file.problem(option.name_place(), message, remedy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in(name: &str, text: &str) -> Result<(Vec<Registration>, Vec<Problem>), Problem> {
        let file = UnitFile::parse(text).expect("parses");
        read(&name.parse().expect("a unit name"), &file)
    }

    #[test]
    fn a_port_is_all_that_is_needed() {
        let (read, warnings) = read_in("someapp@2.service", "[X-Service]\nPort=3000\n").expect("valid");
        assert_eq!((read.len(), warnings.len()), (1, 0));
        assert_eq!(
            (read[0].service.as_str(), read[0].instance.as_str(), read[0].port),
            ("someapp", "someapp@2", 3000)
        );
        assert_eq!((&read[0].check, &read[0].config), (&Check::Tcp { port: None }, &None));
        let (short, _) = read_in("someapp@2.service", "[X-Fleet]\nRegister=someapp:3000\n").expect("valid");
        assert_eq!(short, read);
        assert_eq!(read_in("someapp@2.service", "[X-Fleet]\nRegister=3000\n").expect("valid").0, read);
    }

    #[test]
    fn all_options_are_read_and_specifiers_expanded() {
        let text = "[X-Service]\nName=%p-web\nPort=300%i\nAddress=10.9.8.7\nCheck=https:8443/up?of=%i status=200-299\n\
                    CheckInterval=1min 30s\nCheckTimeout=500ms\nRise=4\nFall=2\nStartGrace=2m\nDrain=0\nWeight=50\n\
                    Proto=grpc\nSlowStart=10s\nHost=a.example.com b.example.com\nHost=*.c.example.com\nPath=/api\n\
                    Sticky=cookie\nBalance=hash:header:X-Key\nMetrics=:9100/metrics\nTags=v2 blue\n\
                    [X-Service-admin]\nPort=9000\nCheck=exec:/usr/bin/test -e /tmp/%i\n";
        let (read, warnings) = read_in("someapp@1.service", text).expect("valid");
        assert!(warnings.is_empty(), "{warnings:?}");
        let web = &read[0];
        assert_eq!((web.service.as_str(), web.port), ("someapp-web", 3001));
        let check =
            Check::Http { tls: true, port: Some(8443), path: "/up?of=1".to_owned(), status: 200..=299 };
        assert_eq!(web.check, check);
        assert_eq!((web.interval, web.drain), (Duration::from_secs(90), Duration::ZERO));
        let config = web.config.as_ref().expect("it has hosts");
        assert_eq!(config.hosts, ["a.example.com", "b.example.com", "*.c.example.com"]);
        assert_eq!(config.written_by.as_deref(), Some("someapp@.service"));
        assert_eq!(web.tags, ["v2", "blue"]);
        assert_eq!(read[1].service.as_str(), "admin");
        let words = ["/usr/bin/test", "-e", "/tmp/1"].map(str::to_owned).to_vec();
        assert_eq!(read[1].check, Check::Exec(words));
        read_in("someapp@.service", text).expect("a template is checked with a stand-in");
    }

    #[test]
    fn rubbish_is_refused_with_place_and_remedy() {
        for (name, lines, expected) in [
            ("a.service", "Drain=1", "1:1: [X-Service] has no `Port` (write"),
            ("a.service", "Port=http", "2:6: `Port` needs a port (a number from 1 to 65535)"),
            ("a.service", "Port=0", "2:6: `Port` needs a port"),
            ("a.timer", "Port=1", "1:1: a timer unit listens nowhere"),
            ("a_b.service", "Port=1", "1:1: `a_b` is no service name"),
            (
                "a.service",
                "Port=1\nName=Some_App",
                "3:6: `Some_App` is no service name: lower-case letters, digits and inner hyphens, at most 63 (did you mean `some-app`?)",
            ),
            ("a.service", "Port=1\nCheck=htp:/x", "3:7: `Check` needs a check (did you mean `http`?)"),
            ("a.service", "Port=1\nCheck=http:x/y", "3:7: `Check` needs a check (`x` is no port"),
            ("a.service", "Port=1\nCheck=http:/y status=ok", "3:7: `Check` needs a check (`status=ok`"),
            (
                "a.service",
                "Port=1\nCheck=exec:test",
                "3:7: `Check` needs a check (write the program's whole path",
            ),
            ("a.service", "Port=1\nCheckInterval=0", "3:15: `CheckInterval` needs a duration (at least 10ms"),
            ("a.service", "Port=1\nDrain=soon", "3:7: `Drain` needs a duration (write for example `10s`"),
            ("a.service", "Port=1\nFall=0", "3:6: `Fall` needs a number (from 1 to 100)"),
            ("a.service", "Port=1\nProto=htp", "3:7: `Proto` needs a protocol (`http`, `h2c`"),
            ("a.service", "Port=1\nHost=a b/c", "3:6: `Host` needs host names (`b/c`"),
            ("a.service", "Port=1\nPath=x", "3:6: `Path` needs path prefixes (`x` does not begin with `/`)"),
            ("a.service", "Port=1\nSticky=yes", "3:8: `Sticky` needs `cookie`"),
            ("a.service", "Port=1\nBalance=random", "3:9: `Balance` needs a way to balance (`p2c`"),
            ("a.service", "Port=1\nAddress=host", "3:9: `Address` needs an IPv4 address"),
            (
                "a.service",
                "Port=1\n[X-Service-a]\nPort=2",
                "4:6: the service `a` is registered twice (an instance",
            ),
            ("a.service", "Port=1\n[X-Fleet]\nRegister=web", "4:10: `Register` needs `SERVICE:PORT`"),
        ] {
            let told = read_in(name, &format!("[X-Service]\n{lines}\n")).expect_err(lines).to_string();
            assert!(told.starts_with(expected), "{lines}: {told}");
        }
    }

    #[test]
    fn what_is_odd_but_harmless_is_warned_of() {
        for (lines, expected) in [
            ("Prot=tcp", "3:1: unrecognized option in [X-Service] section: \"Prot\" (did you mean `Proto`?)"),
            ("Tags=%H", "3:6: `%H` is not expanded"),
            ("TcpPort=99\nHost=a.b", "3:1: `TcpPort` passes bytes on unread"),
        ] {
            let warnings = read_in("a.service", &format!("[X-Service]\nPort=1\n{lines}\n")).expect(lines).1;
            assert!(
                warnings.len() == 1 && warnings[0].to_string().starts_with(expected),
                "{lines}: {warnings:?}"
            );
        }
    }
}
