//! Who trusts whom, with files that openssl made, real sockets and real handshakes; no root needed.

mod clients;
mod expiry;
mod files;
mod handshakes;
mod openssl;
mod reload;
mod world;
