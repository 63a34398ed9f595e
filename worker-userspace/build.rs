//! Tells the crate where the programs for the kernel are, which it embeds.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

fn main() {
    let Some(root) = Path::new(env!("CARGO_MANIFEST_DIR")).parent() else { return };
    let object = root.join("target/bpf/dworker.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env=BPF_OBJECT={}", object.display());
    let Some(built) = modified(&object) else {
        println!(
            "cargo::error={} is missing: the daemon embeds the programs for the kernel. Run `cargo xtask build-ebpf`",
            object.display()
        );
        return;
    };
    for source in ["worker-ebpf/src", "worker-common/src"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
        if newest(&root.join(source)).is_some_and(|edited| edited > built) {
            println!(
                "cargo::warning={source} was edited after the programs were built. Run `cargo xtask build-ebpf`"
            );
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|m| m.modified()).ok()
}

/// When something below `path` was edited last.
fn newest(path: &Path) -> Option<SystemTime> {
    let below = fs::read_dir(path).into_iter().flatten().flatten().filter_map(|entry| newest(&entry.path()));
    modified(path).filter(|_| path.is_file()).into_iter().chain(below).max()
}
