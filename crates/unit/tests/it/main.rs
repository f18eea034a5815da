//! The golden folder and the properties of unit files.

mod golden;
mod properties;
