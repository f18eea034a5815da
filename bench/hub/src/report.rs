//! The report: medians, ratios, and whether each target is held.
//!
//! Invariant: targets are ratios of the two servers in one run, except memory and start-up, which are the hub's own.

use crate::load::Figures;
use crate::server::Kind;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Of figures of the hub to those of etcd.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Of the hub's figure itself.
    Below(f64),
}

/// Load, figure, bound.
const TARGETS: [(&str, &str, Bound); 17] = [
    ("put x1", "ops/s", Bound::AtLeast(1.2)),
    ("put x64", "ops/s", Bound::AtLeast(1.5)),
    ("put x256", "ops/s", Bound::AtLeast(1.3)),
    ("put x64", "p99 ms", Bound::AtMost(0.6)),
    ("put x64", "CPU us/op", Bound::AtMost(0.6)),
    ("range x64", "ops/s", Bound::AtLeast(3.0)),
    ("grant x64", "ops/s", Bound::AtLeast(2.0)),
    ("keepalive 10000", "ops/s", Bound::AtLeast(5.0)),
    ("watch 100", "ops/s", Bound::AtLeast(1.2)),
    ("watch 1000", "ops/s", Bound::AtLeast(1.2)),
    ("watch 1000 shared", "ops/s", Bound::AtLeast(1.2)),
    ("watch 1000 at 10/s", "p99 ms", Bound::AtMost(0.8)),
    ("idle", "RSS MiB", Bound::Below(12.0)),
    ("idle", "start ms", Bound::Below(60.0)),
    ("100k keys", "RSS MiB", Bound::Below(110.0)),
    ("100k keys", "RSS restarted MiB", Bound::Below(110.0)),
    ("100k keys", "start ms", Bound::Below(300.0)),
];

#[derive(Debug, Default)]
pub(crate) struct Report {
    order: Vec<&'static str>,
    runs: BTreeMap<(&'static str, Kind), Vec<Figures>>,
}

impl Report {
    pub(crate) fn add(&mut self, load: &'static str, kind: Kind, figures: Figures) {
        if !self.order.contains(&load) {
            self.order.push(load);
        }
        self.runs.entry((load, kind)).or_default().push(figures);
    }

    fn median(&self, load: &str, kind: Kind, figure: &str) -> Option<f64> {
        let load = self.order.iter().find(|known| **known == load)?;
        let runs = self.runs.get(&(*load, kind))?;
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.0.get(figure).copied()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    pub(crate) fn text(&self, rounds: usize, seconds: f64) -> String {
        let mut text = format!(
            "# The hub beside etcd\n\nWritten by `make bench-hub`: {rounds} rounds of {seconds} s per load, each on fresh \
             data, etcd and hub in turns on one machine; medians. One node each, no replication; both sync every put. \
             `ops` of a watch are events received. `other cores` is what else the machine did: above 0.1 the figures are \
             worth less, the ratios somewhat.\n\n| load | figure | etcd | hub | hub / etcd |\n|---|---|---:|---:|---:|\n"
        );
        for load in &self.order {
            let Some(first) = self.runs.get(&(*load, Kind::Hub)).and_then(|runs| runs.first()) else {
                continue;
            };
            for figure in first.0.keys() {
                let (etcd, hub) =
                    (self.median(load, Kind::Etcd, figure), self.median(load, Kind::Hub, figure));
                if let (Some(etcd), Some(hub)) = (etcd, hub) {
                    // How busy the machine was is no figure of either.
                    let ratio =
                        if *figure == "other cores" { String::new() } else { format!("{:.2} ", hub / etcd) };
                    let _ = writeln!(text, "| {load} | {figure} | {etcd:.2} | {hub:.2} | {ratio}|");
                }
            }
        }
        text.push_str(
            "\n## Targets\n\n| load | figure | target | measured | held |\n|---|---|---:|---:|---|\n",
        );
        for (load, figure, bound) in TARGETS {
            let hub = self.median(load, Kind::Hub, figure);
            let (Some(etcd), Some(hub)) = (self.median(load, Kind::Etcd, figure), hub) else { continue };
            let ratio = hub / etcd;
            let (target, measured, held) = match bound {
                Bound::AtLeast(least) => (format!("≥ {least} × etcd"), ratio, ratio >= least),
                Bound::AtMost(most) => (format!("≤ {most} × etcd"), ratio, ratio <= most),
                Bound::Below(most) => (format!("≤ {most}"), hub, hub <= most),
            };
            let held = if held { "yes" } else { "**no**" };
            let _ = writeln!(text, "| {load} | {figure} | {target} | {measured:.2} | {held} |");
        }
        text
    }
}
