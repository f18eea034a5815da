//! `/metrics`: the hub's figures in Prometheus' text form, under etcd's names where etcd has the same figure.
//!
//! Only what is known is told: no figure here stands for another. Invariant: asking for it costs that thread one request.

use super::calls::Calls;
use crate::histogram::Histogram;
use crate::maintenance::VERSION;
use crate::request::Health;
use mvcc::AlarmKind;
use std::fmt::Write as _;
use std::fs;

/// The kernel counts processor time for user space in hundredths of a second, whatever its own clock.
const TICKS_PER_SECOND: f64 = 100.0;

/// The page.
pub(crate) fn page(health: &Health, keys: i64, calls: &Calls) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    let revision = health.revision.0;
    page.gauge("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not.", 1);
    page.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", 1);
    page.counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.", 0);
    page.labelled(
        "etcd_server_version",
        "Which version is running. 1 for 'server_version' label with current version.",
        &format!("server_version=\"{VERSION}\""),
    );
    // One node needs no proposals: every revision has been committed and applied.
    page.gauge("etcd_server_proposals_committed_total", "The total number of proposals committed.", revision);
    page.gauge("etcd_server_proposals_applied_total", "The total number of proposals applied.", revision);
    page.gauge("etcd_server_proposals_pending", "The current number of pending proposals to commit.", 0);
    page.counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.", 0);
    let quota = "Current backend storage quota size in bytes.";
    page.gauge("etcd_server_quota_backend_bytes", quota, health.quota);
    page.gauge("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.", 0);
    let commits = &health.commits;
    // Also what etcd calls a commit of its backend is one of data to disk; here it is what a turn of writes waits for.
    let help = "The latency distributions of commit called by backend.";
    page.histogram("etcd_disk_backend_commit_duration_seconds", help, &commits.commit);
    let help = "The latency distributions of fsync called by WAL.";
    page.histogram("etcd_disk_wal_fsync_duration_seconds", help, &commits.sync);
    let failed = u8::from(health.alarms.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace));
    page.gauge("muster_hub_out_of_space", "Whether writes are refused because the quota is used up.", failed);
    let size = "Total size of the underlying database physically allocated in bytes.";
    page.gauge("etcd_mvcc_db_total_size_in_bytes", size, health.disk);
    page.gauge("etcd_debugging_mvcc_db_total_size_in_bytes", size, health.disk);
    let in_use = health.memory.min(health.disk);
    let size = "Total size of the underlying database logically in use in bytes.";
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", size, in_use);
    page.gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", keys);
    page.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", health.watchers);
    page.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", revision);
    let compacted = health.compacted.0;
    page.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        compacted,
    );
    calls.write(&mut page.0);
    process(&mut page);
    page.0
}

/// What every Prometheus client tells of its process.
fn process(page: &mut Page) {
    if let Some(kibibytes) = status_field("VmRSS:") {
        page.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", kibibytes * 1024);
    }
    if let Some(kibibytes) = status_field("VmSize:") {
        page.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", kibibytes * 1024);
    }
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        // The second field is the name in brackets, with anything in it; the third follows the last bracket.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<f64>().ok());
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let seconds = (user + system) / TICKS_PER_SECOND;
            page.counter(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
                seconds,
            );
        }
        if let (Some(since_boot), Some(boot)) = (field(22), boot_time()) {
            let seconds = boot + since_boot / TICKS_PER_SECOND;
            let help = "Start time of the process since unix epoch in seconds.";
            page.gauge("process_start_time_seconds", help, seconds);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Number of open file descriptors.", open.count());
    }
}

fn status_field(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.metric(name, help, "gauge", "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.metric(name, help, "counter", "", value);
    }

    fn labelled(&mut self, name: &str, help: &str, labels: &str) {
        self.metric(name, help, "gauge", &format!("{{{labels}}}"), 1);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (limit, count) in histogram.buckets() {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{}\"}} {count}", limit.as_secs_f64());
        }
        let (count, sum) = (histogram.count(), histogram.sum().as_secs_f64());
        let _ =
            writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }

    fn metric(&mut self, name: &str, help: &str, kind: &str, labels: &str, value: impl std::fmt::Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}");
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_measured() {
        let mut page = Page(String::new());
        process(&mut page);
        for name in
            ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"]
        {
            let value = page.0.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            let value: f64 = value.trim().parse().unwrap();
            assert!(value >= 0.0 && value.is_finite(), "{name} {value}");
        }
    }
}
