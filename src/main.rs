//! Keystead's command: picks the subcommand, maps errors to exit codes.

use std::process::ExitCode;

/// Freed memory is zeroed: seeds pass through buffers of libraries that know nothing of secrets (docs/adr/0004).
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    keystead::cli::run()
}
