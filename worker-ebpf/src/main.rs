//! dworker's programs in the kernel.
#![no_std]
#![no_main]

/// `bpf_sk_storage_get` and `bpf_set_retval`'s neighbours are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The linker removes whatever could panic; the verifier rejects a program in which something is left.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
