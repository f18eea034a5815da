//! The template: endpoints in, nginx configuration out.

use crate::{NginxConfig, NginxError};
use minijinja::{
    Environment, UndefinedBehavior,
    value::{Serde, Value},
};
use model::{Endpoint, Instance, ServiceName};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// The template that is used unless the configuration names another.
const BUILT_IN: &str = include_str!("../templates/nginx.conf.j2");
const BUILT_IN_NAME: &str = "(built in)";

/// A service as templates see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The port of its own, if it has one.
    pub port: Option<u16>,
    /// Its endpoints, by instance.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// An endpoint as templates see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceEndpoint {
    /// The instance's name, fit to stand in a comment.
    pub instance: String,
    /// `<address>:<port>`.
    pub address: String,
}

impl Service {
    /// From the router's model.
    pub fn new(name: &ServiceName, endpoints: &BTreeMap<Instance, Endpoint>) -> Self {
        let endpoint = |(instance, endpoint): (&Instance, &Endpoint)| ServiceEndpoint {
            instance: printable(instance),
            address: endpoint.to_string(),
        };
        Self { name: name.clone(), port: None, endpoints: endpoints.iter().map(endpoint).collect() }
    }
}

/// Anybody who may register names instances; nobody may write nginx configuration by that.
fn printable(instance: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@._:-".contains(c);
    instance.chars().map(|c| if plain(c) { c } else { '?' }).take(80).collect()
}

/// A parsed template.
pub(crate) struct Template {
    environment: Environment<'static>,
    name: String,
}

impl Template {
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, NginxError> {
        let (name, text) = match path {
            None => (BUILT_IN_NAME.to_owned(), BUILT_IN.to_owned()),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| NginxError::File { path: path.to_owned(), source })?;
                (path.display().to_string(), text)
            }
        };
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.add_template_owned(name.clone(), text).map_err(|error| wrong(&name, &error))?;
        Ok(Self { environment, name })
    }

    pub(crate) fn render(&self, config: &NginxConfig, services: &[Service]) -> Result<String, NginxError> {
        let with_ports: Vec<_> = services
            .iter()
            .cloned()
            .map(|service| Service { port: config.ports.get(&service.name).copied(), ..service })
            .collect();
        self.environment
            .get_template(&self.name)
            .and_then(|template| {
                template.render(minijinja::context! { services => Value::from(Serde(&with_ports)), listen => config.listen })
            })
            .map_err(|error| wrong(&self.name, &error))
    }
}

fn wrong(name: &str, error: &minijinja::Error) -> NginxError {
    NginxError::Template { name: name.to_owned(), line: error.line(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, endpoints: &[(&str, &str)]) -> Service {
        let endpoints =
            endpoints.iter().map(|(i, e)| ((*i).to_owned(), e.parse().expect("an endpoint"))).collect();
        Service::new(&name.parse().expect("a name"), &endpoints)
    }

    fn render(services: &[Service]) -> String {
        let config =
            NginxConfig { ports: [("web".parse().expect("a name"), 8080)].into(), ..Default::default() };
        Template::load(None).and_then(|template| template.render(&config, services)).expect("renders")
    }

    #[test]
    fn one_service_answers_to_every_name() {
        let text =
            render(&[service("someapp", &[("someapp@1", "10.1.5.2:3000"), ("someapp@2", "10.1.6.2:3000")])]);
        assert!(
            text.contains("    server 10.1.5.2:3000 max_fails=1 fail_timeout=10s; # someapp@1\n"),
            "{text}"
        );
        assert_eq!(text.matches("listen 80;").count(), 1, "{text}");
        assert!(!text.contains("404"));
    }

    #[test]
    fn several_services_are_told_apart_by_name_and_by_port() {
        let text = render(&[service("api", &[("a", "10.1.5.2:1")]), service("web", &[("w", "10.1.5.3:1")])]);
        assert!(text.contains("known: api, web"), "{text}");
        assert!(text.contains("    listen 8080;\n    server_name web web.*;"), "{text}");
        assert!(render(&[]).contains("known: none yet"));
    }

    #[test]
    fn an_instances_name_cannot_write_configuration() {
        let text = render(&[service("web", &[("x\n}\nserver { listen 81; }", "10.1.5.3:1")])]);
        assert!(!text.contains("listen 81"), "{text}");
    }

    #[test]
    fn a_broken_template_names_file_and_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("mine.j2");
        std::fs::write(&path, "fine\n{{ nonsense.x }}\n").expect("written");
        let template = Template::load(Some(&path)).expect("parses");
        let error = template.render(&NginxConfig::default(), &[]).expect_err("undefined").to_string();
        assert!(error.contains("mine.j2:2: "), "{error}");
        std::fs::write(&path, "{% if %}").expect("written");
        let error = Template::load(Some(&path)).err().expect("a syntax error").to_string();
        assert!(error.contains("mine.j2:1: "), "{error}");
    }
}
