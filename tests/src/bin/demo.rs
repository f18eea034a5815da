//! scratch
fn main() -> anyhow::Result<()> {
    let cluster = story::Cluster::up("muster", [10, 99, 0], 4)?;
    println!("{}", cluster.muster(&["list-machines"])?);
    Ok(())
}
