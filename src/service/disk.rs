//! Disks hang: a worn card may answer a sync after half a minute, or never. A thread of the runtime that waited for one would
//! take its timers and sockets along: no renewal would be made, no revocation heard, and the supervisor's question whether the
//! server is alive not be read.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs what waits for a disk here and now, while another thread takes this one's place in the runtime. Nothing can come
/// between: unlike a task of its own, it does not go on behind a caller who has left.
pub(super) fn wait<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // A command's, or a test's: nothing else runs on it.
        _ => work(),
    }
}
