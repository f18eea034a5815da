//! Metrics of the daemon in Prometheus' text format. Each role registers a function that writes its own.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
};

type Source = Box<dyn Fn(&mut Page) + Send + Sync>;

/// All that write metrics. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Metrics(Arc<Mutex<Vec<Source>>>);

/// A page under way.
#[derive(Default)]
pub(super) struct Page(String);

impl Metrics {
    /// Adds a function that is called for every page. It must not wait for anything.
    pub(super) fn register(&self, source: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// Everything there is now.
    pub(super) fn render(&self) -> String {
        let mut page = Page::default();
        for source in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut page);
        }
        page.0
    }
}

impl Page {
    /// A value that goes up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.metric("gauge", name, help, &[(String::new(), value.to_string())]);
    }

    /// A value that only grows.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.metric("counter", name, help, &[(String::new(), value.to_string())]);
    }

    /// Several values of one name: each with its labels, which [`label`] writes.
    pub(super) fn metric(&mut self, kind: &str, name: &str, help: &str, values: &[(String, String)]) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = match labels.as_str() {
                "" => writeln!(self.0, "{name} {value}"),
                labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }
}

/// `name="value"`, escaped.
pub(super) fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_prometheus_text_format() {
        let metrics = Metrics::default();
        metrics.register(|page| page.gauge("muster_a", "A.", 1));
        metrics.register(|page| {
            page.metric("counter", "muster_b", "B.", &[(label("x", "a\"b"), "2".to_owned())]);
        });
        assert_eq!(
            metrics.render(),
            "# HELP muster_a A.\n# TYPE muster_a gauge\nmuster_a 1\n\
             # HELP muster_b B.\n# TYPE muster_b counter\nmuster_b{x=\"a\\\"b\"} 2\n"
        );
    }
}
