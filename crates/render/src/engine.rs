//! A template and its file. When the check refuses the text, the change that caused it is looked for: services that
//! changed are left as they were, and those without which the rest passes are quarantined until they change again.
//!
//! Invariant: a service is quarantined only if the file passes without its change and does not with it.

use crate::{Applied, Data, Error, File, Output, Service, Template};
use minijinja::value::Value;
use model::ServiceName;
use std::collections::BTreeMap;

/// Checks in one search for culprits; one culprit among a hundred changes takes fifteen. What is not found then is
/// searched for next time, and nothing that works waits for it.
const CHECKS: usize = 24;

/// What applying did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether anything changed.
    pub applied: Applied,
    /// Services whose newest state was refused, and why; they are served as they were before.
    pub quarantined: BTreeMap<ServiceName, String>,
    /// Changes were left out for lack of time: apply again.
    pub postponed: bool,
}

/// Keeps a file in step with the services and keys that it is made of.
pub struct Engine<O> {
    template: Template,
    file: File<O>,
    /// What templates know beside services and keys.
    values: BTreeMap<String, Value>,
    /// Services as they were last applied.
    good: BTreeMap<ServiceName, Service>,
    /// What was refused, and why.
    refused: BTreeMap<ServiceName, (Service, String)>,
}

impl<O: Output> Engine<O> {
    /// Makes `file` of `template`.
    pub fn new(template: Template, file: File<O>, values: BTreeMap<String, Value>) -> Self {
        Self { template, file, values, good: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// The file.
    pub fn file(&mut self) -> &mut File<O> {
        &mut self.file
    }

    /// The text for `data`, whoever may refuse it.
    pub fn render(&self, data: &Data) -> Result<String, Error> {
        Ok(self.template.render(data, &self.values)?.text)
    }

    /// Brings the file in step with `data`.
    pub async fn apply(&mut self, data: &Data) -> Result<Report, Error> {
        self.refused
            .retain(|name, (refused, _)| data.services.iter().any(|s| s.name == *name && s == refused));
        let (mut wanted, mut postponed) = (self.believed(data), false);
        let applied = match self.put(&wanted).await {
            Err(error) if error.is_about_the_values() => {
                let Some(rest) = self.without_culprits(&wanted).await else { return Err(error) };
                (wanted, postponed) = rest;
                self.put(&wanted).await?
            }
            applied => applied?,
        };
        self.good = wanted.services.into_iter().map(|service| (service.name.clone(), service)).collect();
        let quarantined = self.refused.iter().map(|(name, (_, why))| (name.clone(), why.clone())).collect();
        Ok(Report { applied, quarantined, postponed })
    }

    /// The services, those whose state was refused as they were before.
    fn believed(&self, data: &Data) -> Data {
        let services = data.services.iter().filter_map(|service| {
            let refused = self.refused.contains_key(&service.name);
            if refused { self.good.get(&service.name).cloned() } else { Some(service.clone()) }
        });
        Data { services: services.collect(), keys: data.keys.clone() }
    }

    async fn put(&mut self, data: &Data) -> Result<Applied, Error> {
        let rendered = self.template.render(data, &self.values)?;
        self.file.apply(&rendered).await
    }

    async fn passes(&mut self, data: &Data) -> Result<(), Error> {
        let rendered = self.template.render(data, &self.values)?;
        self.file.check(&rendered.text).await
    }

    /// What is left of `wanted` when changes that break it are taken out; nothing if it is not theirs. Besides, whether
    /// changes were left out that nobody has looked at.
    async fn without_culprits(&mut self, wanted: &Data) -> Option<(Data, bool)> {
        let is_new = |service: &&Service| self.good.get(&service.name) != Some(*service);
        let changed: Vec<Service> = wanted.services.iter().filter(is_new).cloned().collect();
        let mut chosen: BTreeMap<ServiceName, Service> = wanted
            .services
            .iter()
            .filter_map(|service| self.good.get(&service.name))
            .map(|service| (service.name.clone(), service.clone()))
            .collect();
        let data = |chosen: &BTreeMap<ServiceName, Service>| Data {
            services: chosen.values().cloned().collect(),
            keys: wanted.keys.clone(),
        };
        if changed.is_empty() || self.passes(&data(&chosen)).await.is_err() {
            return None;
        }
        // Halves that pass are taken over as a whole; of the others, halves again.
        // Those that were served before come first.
        let (known, new): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|s| self.good.contains_key(&s.name));
        let mut open: Vec<_> = [new, known].into_iter().filter(|some| !some.is_empty()).collect();
        for _ in 0..CHECKS {
            let Some(some) = open.pop() else { break };
            let mut with = chosen.clone();
            with.extend(some.iter().map(|service| (service.name.clone(), service.clone())));
            match (self.passes(&data(&with)).await, some.as_slice()) {
                (Ok(()), _) => chosen = with,
                (Err(error), [culprit]) => {
                    self.refused.insert(culprit.name.clone(), (culprit.clone(), error.to_string()));
                }
                (Err(_), several) => {
                    let (one, other) = several.split_at(several.len() / 2);
                    open.extend([other.to_vec(), one.to_vec()]);
                }
            }
        }
        Some((data(&chosen), !open.is_empty()))
    }
}
