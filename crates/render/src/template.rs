//! A template: minijinja's language, strict (what is not there is an error and not empty), with confd's functions.

use crate::{Data, Error, functions};
use minijinja::{
    AutoEscape, Environment, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Serde, Value, ValueKind},
};
use muster_core::router::project;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, path::Path};

/// The templates that come with Muster.
pub const BUILTIN: [(&str, &str); 3] = [
    ("nginx", include_str!("../templates/nginx.conf.j2")),
    ("haproxy", include_str!("../templates/haproxy.cfg.j2")),
    ("prometheus", include_str!("../templates/prometheus.json.j2")),
];
/// Stands in the text until it is known which generation it is.
const GENERATION: &str = "@muster-generation@";

/// A text, made of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// What the text calls itself, if it does: by this a reader can tell which text it uses.
    pub generation: Option<String>,
}

impl Rendered {
    /// A text that says nothing about itself.
    pub fn plain(text: String) -> Self {
        Self { text, generation: None }
    }
}

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    name: String,
}

impl Template {
    /// One of [`BUILTIN`].
    pub fn builtin(name: &str) -> Option<Result<Self, Error>> {
        let (name, text) = BUILTIN.into_iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(&format!("builtin:{name}"), text))
    }

    /// From a file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// From a text, by the name that errors give it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build().expect("the usual syntax");
        environment.set_syntax(syntax);
        // Configuration files have it so, and confd's templates do.
        environment.set_formatter(|out, state, value| match bool::try_from(value.clone()) {
            Ok(truth) if value.kind() == ValueKind::Bool => {
                out.write_str(if truth { "true" } else { "false" }).map_err(minijinja::Error::from)
            }
            _ => minijinja::escape_formatter(out, state, value),
        });
        functions::add(&mut environment);
        environment
            .add_template_owned(name.to_owned(), text.to_owned())
            .map_err(|error| wrong(name, &error))?;
        Ok(Self { environment, name: name.to_owned() })
    }

    /// Renders `data`, and beside it `values` by their names.
    pub fn render(&self, data: &Data, values: &BTreeMap<String, Value>) -> Result<Rendered, Error> {
        let mut all = values.clone();
        all.insert("services".to_owned(), Value::from(Serde(&data.services)));
        all.insert("generation".to_owned(), Value::from(GENERATION));
        let targets = data.services.iter().flat_map(|service| {
            let endpoints = service.endpoints.iter();
            endpoints.map(|e| e.metrics.target(service.name.as_str(), &e.instance, &e.machine, &e.unit))
        });
        let targets: Vec<project::Target> = targets.collect();
        let prometheus = serde_json::to_string_pretty(&targets).expect("targets always render");
        all.insert("prometheus".to_owned(), Value::from(prometheus));
        all.insert(functions::KEYS.to_owned(), functions::keys(&data.keys));
        let text = self
            .environment
            .get_template(&self.name)
            .and_then(|template| template.render(Value::from_pairs(all)))
            .map_err(|error| wrong(&self.name, &error))?;
        if !text.contains(GENERATION) {
            return Ok(Rendered::plain(text));
        }
        let digest = Sha256::digest(text.as_bytes());
        let generation: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Rendered { text: text.replace(GENERATION, &generation), generation: Some(generation) })
    }
}

fn wrong(name: &str, error: &minijinja::Error) -> Error {
    let mut reason = error.to_string();
    // It repeats the place.
    if let Some(at) = reason.rfind(" (in ") {
        reason.truncate(at);
    }
    Error::Template { name: name.to_owned(), line: error.line(), reason }
}
