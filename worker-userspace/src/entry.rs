//! How connections come into the tunnel on the application's side.

pub mod captured;
