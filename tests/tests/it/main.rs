//! End to end, on real machines: systemd, Docker, VXLAN, nginx, and Muster installed as a user would install it.
//!
//! Facts are checked, not texts. Each test boots machines of its own; they run one after another, because two cores
//! carry one cluster well and two badly.

/// What a machine does with its units when something goes away.
mod agent;
/// A unit file with a mistake, names nobody knows, a hub that does not answer, no machine that fits.
mod bad_input;
/// Containers that are on other networks than Docker's default one.
mod container_networks;
/// Daemons that are killed, and a hub that is away.
mod faults;
/// fleet's functional tests of its command line and its API, told anew.
mod fleet;
/// What was wrong with fleet, one by one.
mod known_faults;
/// Draining, rebalancing, explaining.
mod maintenance;
/// The same on a real etcd.
mod on_etcd;
/// nginx and other files, kept in step with the services.
mod outputs;
/// The cluster network beside Docker.
mod overlay;
/// Plain units on the cluster network.
mod own_address;
/// Where units go: every rule of `[X-Fleet]`.
mod placement;
/// Registration without sidekicks, and drain before stop.
mod registration;
/// fleet's functional tests of scheduling, told anew, and where all the others are.
mod scheduling;
/// A hub with certificates and users.
mod secured;
/// The story, step by step.
mod story_told;
/// What users notice.
mod traffic;
/// Updates that roll, and are rolled back.
mod updates;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One cluster at a time. A test that failed does not fail the others.
static BOX: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    BOX.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lab's name and network: `STORY_LAB=mine/10.95.0` keeps two checkouts on one box apart.
fn lab() -> (String, [u8; 3]) {
    let chosen = std::env::var("STORY_LAB").unwrap_or_else(|_| "endtoend/10.96.0".to_owned());
    let (name, network) = chosen.split_once('/').expect("STORY_LAB is NAME/10.95.0");
    let network: Vec<u8> = network.split('.').map(|part| part.parse().expect("a number below 256")).collect();
    (name.to_owned(), network.try_into().expect("three numbers"))
}

/// A cluster that is removed when the test ends, however it ends.
struct Lab(story::Cluster);

impl Lab {
    fn up(machines: usize) -> Self {
        Self::up_with(machines, story::cluster::Hub::Embedded)
    }

    fn up_with(machines: usize, hub: story::cluster::Hub) -> Self {
        let (name, network) = lab();
        Self(story::Cluster::up_with(&name, network, machines, hub).expect("the lab comes up"))
    }
}

impl std::ops::Deref for Lab {
    type Target = story::Cluster;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a person would look at first.
            for machine in self.lab.machines().iter().filter(|machine| machine.is_running()) {
                let journal = machine.exec_ok(&["journalctl", "--unit=muster", "--no-pager", "--lines=40"]);
                eprintln!("== {} ==\n{}", machine.name(), journal.unwrap_or_else(|error| error.to_string()));
            }
            eprintln!("{}", self.muster(&["list-units"]).unwrap_or_else(|error| error.to_string()));
        }
        if let Err(error) = self.lab.down() {
            eprintln!("the lab is not down: {error}");
        }
    }
}
