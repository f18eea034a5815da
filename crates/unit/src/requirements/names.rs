//! What to say of a text that should be the name of a unit and is not.
//!
//! Responsible for remedies: the likely cause, and the name that was probably meant. Not responsible for
//! deciding that the text is no name; `model` does.
//! Invariant: a name that is suggested is one.

use super::Reader;
use crate::words::unknown_specifier;
use model::{UnitName, UnitNameError};

impl Reader<'_> {
    /// Why a text is no unit name, and which one it may have been meant to be.
    pub(super) fn no_name(&self, written: &str, text: &str, error: &UnitNameError, instance: &str) -> String {
        if let Some(remedy) = self.empty_instance(written).filter(|_| cut_short(text)) {
            return remedy;
        }
        if let Some((_, specifier)) = unknown_specifier(text) {
            return format!("`{specifier}` is not expanded in [X-Fleet]; `%n`, `%N`, `%p` and `%i` are");
        }
        match error {
            UnitNameError::Empty => "write the name of a unit, such as `web.service`".to_owned(),
            UnitNameError::NoDot | UnitNameError::Type(_) => {
                match format!("{text}.service").parse::<UnitName>() {
                    Ok(name) if name.is_template() => {
                        format!("no instance after `@`; write `{}@{instance}.service`", name.prefix())
                    }
                    Ok(name) => format!("{error}; did you mean `{name}`?"),
                    Err(error) => error.to_string(),
                }
            }
            error => error.to_string(),
        }
    }

    pub(super) fn every_instance(&self, template: &UnitName) -> String {
        format!("no instance after `@`; write `{}@*.{}` for all of them", template.prefix(), template.kind())
    }

    pub(super) fn empty_instance(&self, written: &str) -> Option<String> {
        let name = self.name;
        self.specifiers
            .no_instance(written)
            .then(|| format!("`%i` stands for nothing in `{name}`, which is no instance of a template"))
    }
}

/// True for what is left of a unit name when its instance is missing.
fn cut_short(name: &str) -> bool {
    name.is_empty() || name.starts_with('.') || name.contains("@.") || name.ends_with('@')
}
