//! Verbs that explain: `why` a unit is where it is or nowhere, and `events`, what happened and why.

use super::{
    maintenance::find,
    output::{self, Format},
};
use anyhow::Result;
use api::{
    Client,
    operations::{Event, EventQuery, MachineRef},
};
use clap::Args;
use futures_util::StreamExt;
use model::{DesiredState, UnitName};
use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

#[derive(Args)]
pub struct Why {
    /// The unit.
    unit: String,
    /// How to write it.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
pub struct Events {
    /// Go on with new ones as they come.
    #[arg(long, short)]
    watch: bool,
    /// Only of this unit.
    #[arg(long)]
    unit: Option<String>,
    /// Only of this machine: its name, or the beginning of its id.
    #[arg(long)]
    machine: Option<String>,
    /// How to write them; as JSON one a line when they are watched.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

impl Why {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let why = client.why(&UnitName::from_argument(&self.unit)?).await?;
        if self.output == Format::Json {
            output::json(&why)?;
            return Ok(ExitCode::SUCCESS);
        }
        for (machine, reason) in &why.machines {
            output::line(format!("Unit {} is {} on {}: {reason}", why.unit, why.desired, name(machine)))?;
        }
        if why.machines.is_empty() {
            output::line(match why.desired {
                DesiredState::Inactive => {
                    format!("Unit {} is on no machine: nobody wants it to run (`muster start {0}`)", why.unit)
                }
                _ => format!("Unit {} is on no machine", why.unit),
            })?;
        }
        if !why.group.is_empty() {
            let group: Vec<_> = why.group.iter().map(UnitName::as_str).collect();
            output::line(format!("It goes where these go: {}", group.join(" ")))?;
        }
        let rows = why.verdicts.iter().map(|verdict| {
            let says = match &verdict.refused {
                Some(refused) if refused.unit == why.unit => refused.text.clone(),
                Some(refused) => format!("{}: {}", refused.unit, refused.text),
                None if verdict.here => "it is here, and may stay".to_owned(),
                None => "fits".to_owned(),
            };
            vec![
                verdict.rank.map_or_else(|| "-".to_owned(), |rank| rank.to_string()),
                name(&verdict.machine),
                verdict.units.to_string(),
                verdict.siblings.to_string(),
                format!("{}%", verdict.share / 10),
                says,
            ]
        });
        output::table(Some(&["RANK", "MACHINE", "UNITS", "SIBLINGS", "LIMITS", "VERDICT"]), rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn name(machine: &MachineRef) -> String {
    if machine.name.is_empty() { machine.id.short().to_owned() } else { machine.name.clone() }
}

impl Events {
    pub async fn run(self, client: &Client) -> Result<ExitCode> {
        let unit = self.unit.as_deref().map(UnitName::from_argument).transpose()?;
        let machine = match &self.machine {
            Some(text) => match text.parse() {
                Ok(id) => Some(id),
                Err(_) => Some(find(client, text).await?.id),
            },
            None => None,
        };
        let query = EventQuery { unit, machine, watch: self.watch };
        if !self.watch {
            let list = client.events(&query).await?;
            match self.output {
                Format::Json => output::json(&list)?,
                Format::Table => {
                    let rows = list.events.iter().map(|event| columns(event).into());
                    output::table(Some(&["TIME", "KIND", "MESSAGE"]), rows)?;
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut events = client.watch_events(&query).await?;
        while let Some(event) = events.next().await {
            let event = event?;
            match self.output {
                Format::Json => output::line(serde_json::to_string(&event)?)?,
                Format::Table => output::line(columns(&event).join("  "))?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn columns(event: &Event) -> [String; 3] {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(event.event.at.0);
    let at = humantime::format_rfc3339_millis(at).to_string();
    [at, event.event.kind.to_string(), event.event.message.clone()]
}
