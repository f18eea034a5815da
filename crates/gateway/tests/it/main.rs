//! The gateway with real sockets on loopback.

mod app;
mod malformed;
mod protocols;
mod routing;
mod support;
mod trouble;
