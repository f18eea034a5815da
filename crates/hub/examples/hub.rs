//! An embedded hub by itself: `cargo run -p hub --example hub -- DIRECTORY ADDRESS`.
//!
//! Prints the address that it listens on, one line, and serves until it is interrupted.

use hub::{AuthConfig, Hub, HubConfig};
use std::io::Write;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(data_dir), Some(listen)) = (arguments.next(), arguments.next()) else {
        return Err("usage: hub DIRECTORY ADDRESS [TOKEN-TTL-SECONDS]".into());
    };
    let mut auth = AuthConfig::default();
    if let Some(seconds) = arguments.next() {
        auth.token_ttl = std::time::Duration::from_secs(seconds.parse()?);
    }
    let config = HubConfig {
        data_dir: data_dir.into(),
        listen: listen.parse()?,
        advertise: None,
        name: "default".to_owned(),
        auth,
        tls: None,
        limits: hub::Limits::default(),
    };
    let mut hub = Hub::start(config).await?;
    println!("{}", hub.address());
    std::io::stdout().flush()?;
    tokio::select! {
        error = hub.finished() => return Err(error.into()),
        signal = tokio::signal::ctrl_c() => signal?,
    }
    hub.shutdown().await;
    Ok(())
}
