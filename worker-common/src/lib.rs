//! Records that the kernel programs and the daemon share, and the pure steering decision.
#![cfg_attr(not(test), no_std)]
