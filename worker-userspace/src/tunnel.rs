//! The tunnel: many TCP connections (*streams*) in few websockets (*lanes*) of one *session*.
//!
//! | room | concern | does I/O |
//! |---|---|---|
//! | [`frame`] | the protocol's frames as bytes | no |
//! | [`message`] | the fields of `HELLO`, `WELCOME`, `OPEN`, `OPEN_OK`, `OPEN_ERR`, `RESET`, `GOAWAY`, `ROLE` | no |
//! | `pieces` | pieces that wait to be written | no |
//! | [`policy`] | what a worker is to carry: the parts of `POLICY` | no |
//! | [`websocket`] | RFC 6455 framing after the handshake | no |
//! | [`credit`] | flow control by absolute offsets, window tuning, the process budget | no |
//! | [`stream`] | one connection: what is queued each way, half-close, reset | no |
//! | [`lane`] | one websocket: scheduling, dispatch, liveness | yes |
//! | [`session`] | the lanes of one peer: opening, accepting, draining | yes |
//! | [`transport`], [`tls`] | what a lane runs on | yes |
//! | [`dial`] | the way to an appliance: its name, TCP, TLS; also the command line's | yes |
//! | [`handshake`] | the HTTP upgrade and `HELLO`/`WELCOME` at both ends | yes |

pub mod credit;
pub mod dial;
pub mod frame;
pub mod handshake;
pub mod lane;
pub mod message;
pub(crate) mod pieces;
pub mod policy;
pub mod session;
pub mod stream;
pub mod tls;
pub mod transport;
pub mod websocket;
