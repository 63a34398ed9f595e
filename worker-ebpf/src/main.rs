//! dworker's programs in the kernel: they send connections to proxy hosts, and questions to resolvers, to the daemon.
//!
//! | file | hooks | what they do |
//! |---|---|---|
//! | `connect.rs` | connect4, connect6 | judge a connection; send it to the forwarder, refuse it or leave it alone |
//! | `datagram.rs` | sendmsg4/6, recvmsg4/6 | send questions to the port that stands for the resolver; answers come from the resolver again |
//! | `flow.rs` | sock_ops, getpeername4/6 | tell the forwarder and the application where a connection was going |
//!
//! What must hold: a rewrite leads only to a socket that carries the daemon's mark; a second pass over the same
//! call (a parent cgroup's programs run after its child's) changes nothing; and whatever is missing, a system call
//! that has nothing to do with us behaves as if we were not there.
//!
//! The order of a judgement is in `worker_common::decision`, where it is tested without a kernel.
#![no_std]
#![no_main]

mod connect;
mod datagram;
mod flow;
mod maps;
mod report;
mod resolver;
mod socket;

/// The socket storage helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The linker removes whatever could panic; the verifier rejects a program in which something is left.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
