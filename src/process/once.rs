//! A custodian for one command: `init` and `token list` need the token, and the module stays out of their process too.

use std::io;
use std::time::Duration;

use super::config_copy::ConfigCopy;
use super::spawn::{end_custodian, spawn_custodian};
use super::start::StartError;
use crate::config::Settings;
use crate::custody::client::CustodyClient;

/// How long the custodian may take to log out of the token.
const FAREWELL: Duration = Duration::from_secs(3);

/// Starts a custodian, runs `work` with it, ends it. Blocks. Where server and custodian have users of their own, `work` acts as
/// the server's: what it writes is for the server to read.
pub fn with_custodian<F, T>(
    settings: &Settings,
    config: &ConfigCopy,
    work: impl FnOnce(CustodyClient) -> F,
) -> Result<T, StartError>
where
    F: Future<Output = T>,
{
    if let Some(users) = &settings.users {
        users.prepare(&settings.store.path, settings.trail_apart(), &settings.custody.latch_folder)?;
    }
    // Before rights are given up: it takes them to become the custodian's user.
    let (child, stream) = spawn_custodian(&settings.custody.environment, config)?;
    let acting = settings.users.as_ref().map(|users| users.server.act()).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let custody = CustodyClient::new(settings.custody.timeout, settings.custody.queue);
        custody.attach_std(stream)?;
        Ok::<_, io::Error>(work(custody).await)
    });
    // The runtime holds the connection, whose end is the order to end.
    drop(runtime);
    drop(acting);
    end_custodian(child, FAREWELL)?;
    Ok(outcome?)
}
