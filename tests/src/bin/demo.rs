//! `make demo`: the story on four real machines, told with the commands it runs, their output, and the times it took.
//! The cluster stays up afterwards; `make demo-down` removes it.

use anyhow::{Context, Result, bail, ensure};
use lab::Machine;
use std::time::Instant;
use story::{Cluster, Traffic, cluster, eventually, measure};

fn main() -> Result<()> {
    let begin = Instant::now();
    if lab::Lab::attach("muster").is_ok() {
        note("the machines of an earlier `make demo` are removed first");
    }
    heading("Four machines boot on this box, each with its own systemd, Docker and network");
    let cluster = Cluster::up("muster", [10, 99, 0], 4)?;
    note(&format!("up after {:.1} s; m1 embeds the hub and runs nginx", begin.elapsed().as_secs_f64()));

    heading("1. Each machine has its own subnet of the cluster network");
    show(&cluster, "muster list-machines")?;

    heading("2. Four copies of a web app, each with its sidekick");
    show(&cluster, "cat someapp-discovery@.service")?;
    show(&cluster, "muster submit someapp@.service someapp-discovery@.service")?;
    show(&cluster, "muster start 'someapp@{1..4}'")?;
    show(&cluster, "muster start 'someapp-discovery@{1..4}'")?;
    show(&cluster, "muster list-units")?;

    heading("3. Every container has an address of its own in the whole cluster, and no published port");
    eventually("four keys are there", || Ok(cluster.upstreams()?.len() == 4))?;
    let address = |instance: &str| -> Result<String> {
        let found = cluster.upstreams()?.into_iter().find(|(key, _)| key.ends_with(instance));
        Ok(found.with_context(|| format!("{instance} is not registered"))?.1)
    };
    let first = address("someapp@1")?;
    note("from inside someapp@3 to someapp@1, across machines:");
    show(&cluster, &format!("muster exec --net someapp@3 curl -s http://{first}/"))?;
    note("from outside, even with a route to the cluster network:");
    outside(&cluster, &first)?;

    heading("4. The sidekicks keep their keys alive");
    show(&cluster, "muster kv ls --recursive /services")?;
    show(&cluster, "muster kv get /services/someapp/upstream/someapp@1")?;

    heading("5. nginx follows: every copy answers in turn");
    let mut seen = Vec::new();
    eventually("nginx reaches all four", || {
        seen = (0..4).map(|_| cluster.page()).collect::<Result<Vec<_>>>()?;
        let distinct: std::collections::BTreeSet<_> =
            seen.iter().filter_map(|page| page.split("<h1>").nth(1)).collect();
        Ok(distinct.len() == 4)
    })?;
    command(&format!("curl http://{}/        (four times, from outside)", cluster.m1().address()));
    seen.iter()
        .filter_map(|page| page.lines().find(|line| line.contains("<p>")))
        .for_each(|line| println!("{line}"));

    heading("6. A machine dies");
    let (instance, victim) = victim(&cluster)?;
    note(&format!("{} runs {instance} with its sidekick; its power is cut now", victim.name()));
    let units = on(&cluster, &victim)?;
    let old = address(&instance)?;
    let cut = measure::power_cut(&cluster, &victim, &units)?;
    note(&format!("{:.1} s later all of it is active elsewhere:", cut.as_secs_f64()));
    show(&cluster, "muster list-units")?;
    eventually("nginx has left the old address", || {
        let new = address(&instance)?;
        let conf = cluster.sh("cat /etc/nginx/conf.d/muster.conf")?;
        Ok(new != old && conf.contains(&new) && !conf.contains(&old))
    })?;
    note("and nginx sends nobody to the old address any more:");
    show(&cluster, "grep 'server 10' /etc/nginx/conf.d/muster.conf")?;
    victim.start()?;
    eventually("the machine is back", || Ok(cluster.list("machines")?.len() == 4))?;
    note(&format!("{} has its power back; it is in the cluster and takes nothing that runs", victim.name()));

    heading("How long it took");
    note("measuring: 4 units, 100 units, nginx; about 15 seconds…");
    let mut figures = vec![measure::start_four(&cluster, 3)?];
    figures.extend(measure::hundred(&cluster, 1)?);
    figures.push(measure::power_cut_figure(vec![cut]));
    figures.push(measure::put_to_nginx(&cluster, 6)?);
    figures.extend(measure::memory(&cluster)?);
    println!("{}", measure::plain(&figures));
    note(
        "fleet: the real fleet 1.0 with its defaults, measured on another two-core machine; bench/README.md says how",
    );

    heading("7. The same without a sidekick, without a reload, and nobody notices");
    without_sidekicks(&cluster)?;

    heading("The cluster is yours");
    println!("  bin/lab exec m1 muster list-units        a command on machine m1");
    println!("  bin/lab exec m1 bash                     a shell there; unit files are in /root");
    println!("  bin/lab exec m1 muster journal someapp@1");
    println!("  bin/lab kill m2; bin/lab start m2        cut the power of a machine, and give it back");
    println!("  bin/lab outside curl http://{}/   a client outside the cluster", cluster.m1().address());
    println!("  bin/lab status; bin/lab --help");
    println!("  make demo-down                           remove everything");
    println!("\n  told in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// One section in the unit instead of a sidekick, the gateway instead of nginx, and load while a machine dies and while all
/// copies are replaced.
fn without_sidekicks(cluster: &Cluster) -> Result<()> {
    cluster.muster(&["destroy", "someapp-discovery@{1..4}", "someapp@{1..4}"])?;
    show(cluster, "tail -n 8 someapp-registered@.service")?;
    show(cluster, "muster submit someapp-registered@.service")?;
    show(cluster, "muster start 'someapp-registered@{1..4}'")?;
    eventually("four copies are registered", || Ok(cluster.upstreams()?.len() == 4))?;
    show(cluster, "muster services")?;
    let victim = ["m3", "m4", "m2"].iter().find_map(|name| {
        let machine = cluster.lab.machine(name).ok()?;
        on(cluster, &machine).is_ok_and(|units| !units.is_empty()).then_some(machine)
    });
    let victim = victim.context("all copies run on m1")?;
    let units: Vec<_> =
        on(cluster, &victim)?.into_iter().filter(|unit| unit.starts_with("someapp-")).collect();
    note(&format!(
        "500 requests a second on 64 connections now go to the gateway, http://{}:{}/ with Host: someapp",
        cluster.m1().address(),
        story::traffic::PORT
    ));
    let traffic = Traffic::start(cluster, "someapp", &["--rate", "500", "--connections", "64"])?;
    let outcome = (|| {
        let cut = measure::power_cut(cluster, &victim, &units)?;
        let (name, seconds) = (victim.name(), cut.as_secs_f64());
        note(&format!("{name}'s power was cut; {seconds:.1} s later its copy is active elsewhere"));
        eventually("four copies are registered again", || Ok(cluster.upstreams()?.len() == 4))?;
        victim.start()?;
        note("and now every copy gets a new text, one after another:");
        let change = "sed 's/^Description=.*/& (new)/' someapp-registered@.service >new && mv new someapp-registered@.service";
        cluster.sh(change)?;
        show(cluster, "muster update someapp-registered@.service")
    })();
    let account = traffic.stop()?;
    outcome?;
    println!("\n  \x1b[1m{}\x1b[0m", account.line());
    account.ensure_nothing_lost()
}

fn heading(text: &str) {
    println!("\n\x1b[1m── {text}\x1b[0m\n");
}

fn note(text: &str) {
    println!("  {text}");
}

fn command(text: &str) {
    println!("\n\x1b[36mm1 #\x1b[0m {text}");
}

/// Runs a command on m1 as a user would, and shows it.
fn show(cluster: &Cluster, script: &str) -> Result<()> {
    command(script);
    let output = cluster.m1().exec(&["sh", "-c", &format!("cd /root && {script}")])?;
    print!("{}{}", output.stdout, output.stderr);
    ensure!(output.success(), "`{script}` failed with code {}", output.code());
    Ok(())
}

/// The outside client is given a route, and is refused all the same.
fn outside(cluster: &Cluster, endpoint: &str) -> Result<()> {
    let client = cluster.lab.outside();
    let via = cluster.m1().address().to_string();
    client.exec_ok(&["ip", "route", "replace", cluster::NETWORK, "via", &via])?;
    println!("\n\x1b[36moutside #\x1b[0m curl --max-time 2 http://{endpoint}/");
    let answer = client.exec(&[
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "2",
        &format!("http://{endpoint}/"),
    ])?;
    client.exec_ok(&["ip", "route", "del", cluster::NETWORK])?;
    println!("{}", answer.stderr.trim());
    ensure!(!answer.success(), "the outside reached a container: {}", answer.stdout);
    Ok(())
}

/// A copy that does not share its machine with the hub, and that machine.
fn victim(cluster: &Cluster) -> Result<(String, Machine)> {
    for number in [3, 4, 2, 1] {
        let instance = format!("someapp@{number}");
        let home = cluster
            .home(&format!("{instance}.service"))?
            .with_context(|| format!("{instance} runs nowhere"))?;
        if home.name() != "m1" {
            return Ok((instance, home));
        }
    }
    bail!("all copies run on m1")
}

/// The units that are active on a machine.
fn on(cluster: &Cluster, machine: &Machine) -> Result<Vec<String>> {
    let units =
        cluster.units()?.into_iter().filter(|row| row.machine == machine.name() && row.active == "active");
    Ok(units.map(|row| row.unit).collect())
}
