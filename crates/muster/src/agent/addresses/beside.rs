//! What stands beside a unit with `Address=own` in systemd: a drop-in, and the service that makes and removes what the
//! drop-in names. All of it is gone with the boot.
//!
//! Invariant: the texts are the same for every unit; specifiers put its name in, so that nothing has to be escaped.

use super::{super::write_file, NAMESPACES, RESOLV_CONF, files::DIRECTORY};
use crate::config::RUN_DIR;
use model::UnitName;
use std::{
    io,
    path::{Path, PathBuf},
};

const UNITS: &str = "/run/systemd/system";
const DROP_IN: &str = "50-muster-address.conf";

/// The service beside `unit`; none for a name that `submit` would have refused.
pub(super) fn helper(unit: &UnitName) -> Option<UnitName> {
    format!("muster-address@{unit}.service").parse().ok()
}

/// Tells systemd of it; it has to reload afterwards. `program` is this one.
pub(in crate::agent) fn install(unit: &UnitName, program: &str) -> io::Result<()> {
    write(&Path::new(UNITS).join("muster-address@.service"), &service(program))?;
    write(&directory(unit).join(DROP_IN), &drop_in())
}

/// Takes that back, if it was there.
pub(in crate::agent) fn remove(unit: &UnitName) -> io::Result<()> {
    match std::fs::remove_file(directory(unit).join(DROP_IN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The machine's owner may have put others there.
    let _ = std::fs::remove_dir(directory(unit));
    Ok(())
}

fn directory(unit: &UnitName) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d"))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|before| before == text) {
        return Ok(());
    }
    std::fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/")))?;
    write_file(path, text)
}

/// `BindsTo=` has it started first and `StopWhenUnneeded=` stopped last, and not between two runs of a unit that systemd
/// starts again.
fn service(program: &str) -> String {
    format!(
        "# Written by Muster, for units with Address=own.\n\
         [Unit]\n\
         Description=Address of its own for %i\n\
         After=muster.service\n\
         StopWhenUnneeded=yes\n\
         StartLimitIntervalSec=0\n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart={program} unit-address up %i\n\
         ExecStop={program} unit-address down %i\n"
    )
}

/// Names are looked up over the network as in a container; the machine's own resolver would answer otherwise through its
/// socket, without the cluster's names.
fn drop_in() -> String {
    format!(
        "# Written by Muster: the unit has Address=own.\n\
         [Unit]\n\
         BindsTo=muster-address@%n.service\n\
         After=muster-address@%n.service\n\
         [Service]\n\
         NetworkNamespacePath={NAMESPACES}/muster-%n\n\
         BindReadOnlyPaths=-{RUN_DIR}/{RESOLV_CONF}:/etc/resolv.conf\n\
         InaccessiblePaths=-/run/systemd/resolve/io.systemd.Resolve -/run/nscd/socket\n\
         EnvironmentFile=-{RUN_DIR}/{DIRECTORY}/%n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_beside_a_unit_is_named_after_it() {
        let unit: UnitName = "web@1.service".parse().expect("a name");
        let helper = helper(&unit).expect("a name");
        assert_eq!(helper.as_str(), "muster-address@web@1.service.service");
        assert_eq!(helper.instance(), Some("web@1.service"));
        assert!(drop_in().contains("BindsTo=muster-address@%n.service\n"));
    }
}
