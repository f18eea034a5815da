//! `make bench`: every figure of `measure`, several runs each, on a lab of its own; rewrites `bench/results.md` and the
//! table of the README.

use anyhow::{Context, Result};
use std::{fs, path::Path, time::Duration};
use story::{Cluster, measure};

fn main() -> Result<()> {
    let cluster = Cluster::up("bench", [10, 97, 0], 4)?;
    let outcome = run(&cluster);
    cluster.lab.down()?;
    outcome
}

fn run(cluster: &Cluster) -> Result<()> {
    eprintln!("start of 4 units…");
    let mut figures = vec![measure::start_four(cluster, 7)?];
    eprintln!("100 units…");
    figures.extend(measure::hundred(cluster, 5)?);
    eprintln!("someapp…");
    cluster.sh("muster submit someapp@.service someapp-discovery@.service")?;
    cluster.muster(&["start", "someapp@{1..4}"])?;
    cluster.muster(&["start", "someapp-discovery@{1..4}"])?;
    story::eventually("four keys are there", || Ok(cluster.upstreams()?.len() == 4))?;
    eprintln!("key put until nginx serves it…");
    figures.push(measure::put_to_nginx(cluster, 20)?);
    eprintln!("power cuts…");
    let mut cuts = Vec::new();
    let mut stops = Vec::new();
    let (power_cuts, orderly_stops) = (20, 6);
    for (round, victim) in ["m2", "m3", "m4"].iter().cycle().take(power_cuts + orderly_stops).enumerate() {
        let machine = cluster.lab.machine(victim)?;
        let units: Vec<_> =
            cluster.units()?.into_iter().filter(|row| row.machine == *victim).map(|row| row.unit).collect();
        if !units.is_empty() {
            if round < power_cuts {
                cuts.push(measure::power_cut(cluster, &machine, &units)?);
            } else {
                stops.push(measure::orderly_stop(cluster, &machine, &units)?);
                story::eventually("the machine is down", || Ok(!machine.is_running()))?;
            }
        }
        machine.start()?;
        story::eventually("the machine is back", || Ok(cluster.list("machines")?.len() == 4))?;
    }
    figures.push(measure::power_cut_figure(cuts));
    figures.push(measure::orderly_stop_figure(stops));
    eprintln!("leader kills…");
    figures.push(measure::leader_kill(cluster, 5)?);
    eprintln!("idle…");
    figures.extend(measure::idle(cluster, Duration::from_secs(30))?);
    figures.extend(measure::memory(cluster)?);
    println!("{}", measure::plain(&figures));
    let text = format!(
        "# Measured\n\nWritten by `make bench`. {}\n\n{}\nA figure is the median, in brackets the least, the most and the number of runs. How each is measured, and where \
         the older systems' figures come from: [README.md](README.md).\n",
        measure::box_facts()?,
        measure::table(&figures)
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    write(&root.join("bench/results.md"), &text)?;
    let readme = root.join("README.md");
    let old = fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    write(&readme, &between(&old, &measure::table(&figures))?)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The README with a new table between its marks.
fn between(readme: &str, table: &str) -> Result<String> {
    const MARKS: [&str; 2] = ["<!-- measured:begin -->\n", "<!-- measured:end -->"];
    let (before, rest) =
        readme.split_once(MARKS[0]).context("the README has no mark where the table begins")?;
    let (_, after) = rest.split_once(MARKS[1]).context("the README has no mark where the table ends")?;
    Ok(format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]))
}
