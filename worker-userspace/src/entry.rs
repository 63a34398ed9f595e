//! How connections come into the tunnel on the application's side.
//!
//! | room | for |
//! |---|---|
//! | [`captured`] | software that knows no proxy: the kernel sends its connections here |
//! | [`proxy`] | software that does: HTTP `CONNECT` and SOCKS5 |

pub mod captured;
pub mod proxy;

use std::time::Duration;

/// How long the far end may take to dial. The worker's own `connect_timeout` is shorter.
const DIAL: Duration = Duration::from_secs(120);
