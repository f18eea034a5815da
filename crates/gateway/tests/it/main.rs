//! The gateway with real sockets on loopback.

mod app;
mod endings;
mod floods;
mod frames;
mod http2;
mod malformed;
mod protocols;
mod routing;
mod support;
mod trouble;
