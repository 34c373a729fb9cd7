//! `keystead reload`: has the running daemon read its configuration again.

use std::path::Path;

use keystead_wire::admin::v1::admin_client::AdminClient;
use keystead_wire::admin::v1::{ReloadRequest, ReloadResponse};
use serde_json::{Value, json};

use super::connection::{Connection, runtime};
use super::exit::{Exit, Failure};
use super::report::Report;
use super::{settings, table};

pub fn run(config: Option<&Path>) -> Result<Report, Failure> {
    // A file that is no configuration ends here, with the words of `config check`.
    let (_, settings) = settings(config)?;
    runtime()?.block_on(reload(&settings.admin.socket.path))
}

async fn reload(socket: &Path) -> Result<Report, Failure> {
    let connection = Connection::open(socket).await.map_err(|failure| match failure.exit {
        Exit::Unreachable => failure.next(
            "start it with `keystead serve`; if admin.socket was changed in the file, restart the daemon instead",
        ),
        _ => failure,
    })?;
    let mut admin = AdminClient::new(connection.channel.clone());
    connection.answer(admin.reload(ReloadRequest {})).await.map(|told| report(&told))
}

fn report(told: &ReloadResponse) -> Report {
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let json = json!({
        "applied": told.applied.iter().map(|change| json!({
            "key": change.key, "before": value(&change.before), "after": value(&change.after),
        })).collect::<Vec<_>>(),
        "unchanged": told.unchanged,
    });
    if told.applied.is_empty() {
        return Report::done("Read again: nothing has changed.\n", json);
    }
    let changed =
        told.applied.iter().map(|change| (change.key.as_str(), format!("{} to {}", change.before, change.after)));
    let rows: Vec<_> = changed.chain([("unchanged", told.unchanged.join(", "))]).collect();
    Report::done(format!("Applied, from the next request on:\n{}", table::fields(&rows)), json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_wire::admin::v1::ConfigurationChange;

    #[test]
    fn changes_are_told_in_eighty_columns_and_as_json() {
        let change = ConfigurationChange {
            key: "kms.max_plaintext".into(),
            before: "\"4KiB\"".into(),
            after: "\"8KiB\"".into(),
        };
        let unchanged = crate::config::LIVE_KEYS.iter().skip(1).map(|key| (*key).to_owned()).collect();
        let report = report(&ReloadResponse { applied: vec![change], unchanged });
        assert!(report.text.contains("kms.max_plaintext  \"4KiB\" to \"8KiB\""), "{}", report.text);
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
        assert_eq!(report.json["applied"][0]["after"], "8KiB");
    }
}
