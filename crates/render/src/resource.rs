//! Resource files: which template makes which file, in confd's form, so that confd's own are taken as they are.
//!
//! Invariant: what is wrong in one names its file and line.

use crate::{Commands, Engine, Error, File, Owner, Template};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// A template and the file that is made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Resource {
    /// The template: a file in the directory of templates or anywhere, or `builtin:<name>`.
    pub src: String,
    /// The file that is written.
    pub dest: PathBuf,
    /// The keys that the template asks for: each with all below it.
    pub keys: Vec<String>,
    /// What all of the keys begin with; templates name them without it.
    pub prefix: Option<String>,
    /// Whose the file is, by number.
    pub uid: Option<u32>,
    /// Whose group's it is, by number.
    pub gid: Option<u32>,
    /// Whose it is, by name.
    pub owner: Option<String>,
    /// Whose group's it is, by name.
    pub group: Option<String>,
    /// Its permissions, in octal: `0644`.
    pub mode: Option<String>,
    /// A command that says by its exit code whether the staged file `{{.src}}` will do.
    #[serde(alias = "check_cmd")]
    pub check_cmd: Option<String>,
    /// A command that brings whoever reads the file to use it.
    #[serde(alias = "reload_cmd")]
    pub reload_cmd: Option<String>,
}

/// What is wrong with a resource.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no resource file.
    #[error("in {path}: {reason}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A field says what cannot be.
    #[error("{resource}: {reason}")]
    Field {
        /// Which resource.
        resource: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// Its template cannot be used.
    #[error(transparent)]
    Template(#[from] Error),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceFile {
    template: Resource,
}

impl Resource {
    /// Reads one file: a table `[template]`.
    pub fn read(path: &Path) -> Result<Self, ResourceError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ResourceError::Read { path: path.to_owned(), source })?;
        let file: ResourceFile = toml::from_str(&text).map_err(|error| ResourceError::Syntax {
            path: path.to_owned(),
            reason: error.to_string().trim().to_owned(),
        })?;
        file.template.check(&path.display().to_string())?;
        Ok(file.template)
    }

    /// Reads all of a directory, and of the directory `conf.d` in it, by their names.
    #[expect(clippy::type_complexity, reason = "each file has its path, and an error of its own")]
    pub fn read_all(directory: &Path) -> Result<Vec<(PathBuf, Result<Self, ResourceError>)>, ResourceError> {
        let mut paths = Vec::new();
        for place in [directory.to_owned(), directory.join("conf.d")] {
            let entries = match std::fs::read_dir(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && place != directory => continue,
                entries => entries.map_err(|source| ResourceError::Read { path: place.clone(), source })?,
            };
            paths.extend(
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.extension().is_some_and(|e| e == "toml")),
            );
        }
        paths.sort();
        Ok(paths.into_iter().map(|path| (path.clone(), Self::read(&path))).collect())
    }

    /// Says what cannot be in it; `name` is what errors call it.
    pub fn check(&self, name: &str) -> Result<(), ResourceError> {
        let wrong =
            |reason: &str| Err(ResourceError::Field { resource: name.to_owned(), reason: reason.to_owned() });
        if self.src.is_empty() {
            return wrong("`src` is missing: the template's file, or `builtin:nginx`");
        }
        if !self.dest.is_absolute() || self.dest.file_name().is_none() {
            return wrong("`dest` is the absolute path of the file to write");
        }
        self.ownership(name).map(drop)
    }

    /// The keys that it needs, as the hub has them, each with what templates call it without.
    pub fn prefixes(&self) -> Vec<String> {
        let root = self.root();
        let whole = |key: &String| match key.trim_matches('/') {
            "" if root.is_empty() => "/".to_owned(),
            "" => root.clone(),
            key => format!("{root}/{key}"),
        };
        self.keys.iter().map(whole).collect()
    }

    /// What its keys begin with in the hub, without a slash at the end.
    pub fn root(&self) -> String {
        match self.prefix.as_deref().unwrap_or("").trim_matches('/') {
            "" => String::new(),
            prefix => format!("/{prefix}"),
        }
    }

    /// Parses its template, looked for in `templates` if its path is relative.
    pub fn engine(&self, name: &str, templates: &[PathBuf]) -> Result<Engine<Commands>, ResourceError> {
        self.check(name)?;
        let template = match self.src.strip_prefix("builtin:") {
            Some(builtin) => Template::builtin(builtin).ok_or_else(|| {
                let known: Vec<_> =
                    crate::BUILTIN.iter().map(|(name, _)| format!("builtin:{name}")).collect();
                ResourceError::Field {
                    resource: name.to_owned(),
                    reason: format!("there is no template `{}`; there are {}", self.src, known.join(", ")),
                }
            })??,
            None => {
                let places: Vec<PathBuf> =
                    templates.iter().map(|directory| directory.join(&self.src)).collect();
                let found = places.iter().find(|place| place.exists());
                let found = found.ok_or_else(|| ResourceError::Field {
                    resource: name.to_owned(),
                    reason: format!("its template `{}` is not there; looked for {places:?}", self.src),
                })?;
                Template::load(found)?
            }
        };
        let commands = Commands {
            check: self.check_cmd.clone(),
            reload: self.reload_cmd.clone(),
            destination: self.dest.clone(),
        };
        let file = File::new(self.dest.clone(), self.ownership(name)?, commands);
        Ok(Engine::new(template, file, BTreeMap::from([("listen".to_owned(), 80.into())])))
    }

    fn ownership(&self, name: &str) -> Result<Owner, ResourceError> {
        let wrong = |reason: String| ResourceError::Field { resource: name.to_owned(), reason };
        let mode = self.mode.as_deref().map(|mode| {
            u32::from_str_radix(mode.trim_start_matches("0o"), 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| wrong(format!("`mode` is octal, such as 0644, and not `{mode}`")))
        });
        let known = |file: &str, wanted: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.split(':').next() == Some(wanted))?.to_owned();
            line.split(':').nth(2)?.parse::<u32>().ok()
        };
        let number = |file: &str, name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => known(file, name).map(Some).ok_or_else(|| wrong(format!("{file} has no `{name}`"))),
        };
        let uid = number("/etc/passwd", &self.owner)?.or(self.uid);
        let gid = number("/etc/group", &self.group)?.or(self.gid);
        Ok(Owner { uid, gid, mode: mode.transpose()? })
    }
}
