//! `nginx -t` on a file that is not in place yet.
//!
//! A fragment for `conf.d` cannot be tested alone, and must not be in place before it was tested. So nginx is
//! given a copy of its main file that includes, instead of the destination's directory, a staging directory:
//! links to all its files, and the new one. Invariant: nothing that the running nginx reads is touched.

use crate::NginxConfig;
use render::Error;
use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

/// A test takes 10 ms; one that hangs does so on a name that the resolver cannot find.
const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) async fn check(config: &NginxConfig, text: &str) -> Result<(), Error> {
    let (directory, name) = match (config.destination.parent(), config.destination.file_name()) {
        (Some(directory), Some(name)) => (directory, name),
        _ => {
            let source = std::io::Error::other("it has no directory");
            return Err(Error::File { path: config.destination.clone(), source });
        }
    };
    let refused = |said: &str| Error::Refused { path: config.destination.clone(), said: said.to_owned() };
    let main = std::fs::read_to_string(&config.main).map_err(file(&config.main))?;
    // Beside the main file, because nginx looks up relative includes from there.
    let staging = Staging {
        directory: config.main.with_file_name(".muster-check.d"),
        main: config.main.with_file_name(".muster-check.conf"),
    };
    let redirected =
        redirect(&main, directory, config.main.parent(), &staging.directory).ok_or_else(|| {
            Error::Misplaced(format!(
                "{} includes nothing from {directory}: add `include {directory}/*.conf;` to its http section",
                config.main.display(),
                directory = directory.display()
            ))
        })?;
    staging.clear();
    std::fs::create_dir_all(&staging.directory).map_err(file(&staging.directory))?;
    for entry in std::fs::read_dir(directory).map_err(file(directory))?.flatten() {
        if entry.file_name() != name {
            let link = staging.directory.join(entry.file_name());
            symlink(entry.path(), &link).map_err(file(&link))?;
        }
    }
    let staged = staging.directory.join(name);
    std::fs::write(&staged, text).map_err(file(&staged))?;
    std::fs::write(&staging.main, redirected).map_err(file(&staging.main))?;
    let test = tokio::process::Command::new(&config.program)
        .arg("-t")
        .arg("-q")
        .arg("-c")
        .arg(&staging.main)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(TIMEOUT, test).await {
        Ok(output) => output.map_err(file(&config.program))?,
        Err(_) => return Err(refused(&format!("no verdict within {} s", TIMEOUT.as_secs()))),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.replace(&*staging.directory.to_string_lossy(), &directory.to_string_lossy());
    Err(refused(said.trim()))
}

/// The main file with its includes of `directory` turned to `staging`; `None` when there are none.
fn redirect(main: &str, directory: &Path, prefix: Option<&Path>, staging: &Path) -> Option<String> {
    let staging = format!("{}/", staging.display());
    let absolute = format!("{}/", directory.display());
    if main.contains(&absolute) {
        return Some(main.replace(&absolute, &staging));
    }
    let relative = format!("include {}/", directory.strip_prefix(prefix?).ok()?.display());
    main.contains(&relative).then(|| main.replace(&relative, &format!("include {staging}")))
}

fn file(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::File { path: path.to_owned(), source }
}

/// Files of one check; gone when it is over.
struct Staging {
    directory: PathBuf,
    main: PathBuf,
}

impl Staging {
    /// Leftovers of a check that was killed are in nobody's way, so failing to remove them is no error.
    fn clear(&self) {
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_file(&self.main);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_redirected_however_they_are_written() {
        let (directory, prefix, staging) =
            (Path::new("/etc/nginx/conf.d"), Some(Path::new("/etc/nginx")), Path::new("/x"));
        let redirected = |main| redirect(main, directory, prefix, staging);
        assert_eq!(redirected("include /etc/nginx/conf.d/*.conf;").as_deref(), Some("include /x/*.conf;"));
        assert_eq!(redirected("include conf.d/*.conf;").as_deref(), Some("include /x/*.conf;"));
        assert_eq!(redirected("include mime.types;"), None);
    }
}
