//! An appliance and workers in one process, over real sockets, TLS and websockets; no root needed.

mod crossing;
mod handshakes;
mod workers;
mod world;
