//! `keystead audit`: reads the trail through the daemon, or from files that were brought here.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use keystead_wire::admin::v1::admin_client::AdminClient;
use keystead_wire::admin::v1::{QueryAuditRequest, VerifyAuditRequest, VerifyAuditResponse};
use serde_json::{Value, json};

use super::connection::{Connection, runtime};
use super::exit::{Exit, Failure};
use super::report::Report;
use super::{settings, table};
use crate::audit::verify::verify;

/// A trail of a gigabyte takes some seconds to read.
const READ_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what was recorded: who asked for what, and what became of it
    Query(QueryArguments),
    /// Check every line of the trail, and that custody vouches for its last checkpoint
    Verify(VerifyArguments),
}

#[derive(Debug, Args)]
pub struct QueryArguments {
    /// Not older than this, as 1h or 30d
    #[arg(long, value_name = "SPAN", value_parser = span)]
    since: Option<Duration>,
    /// Older than this
    #[arg(long, value_name = "SPAN", value_parser = span)]
    until: Option<Duration>,
    /// This action only, as rotate or decrypt
    #[arg(long)]
    action: Option<String>,
    /// What it came to: ok, intent, done, failed, refused, event, or a gRPC code as not-found
    #[arg(long)]
    outcome: Option<String>,
    /// Asked for by this user ID
    #[arg(long)]
    uid: Option<u64>,
    /// About this generation
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// At most so many lines, the last ones; 0 is all
    #[arg(long, value_name = "LINES", default_value_t = 100)]
    limit: u64,
}

#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// Files brought here from a daemon, instead of the daemon's own; without the token no checkpoint can be vouched for
    #[arg(long, value_name = "PATH")]
    folder: Option<PathBuf>,
}

pub fn run(command: &Command, config: Option<&Path>) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    match command {
        Command::Verify(VerifyArguments { folder: Some(folder) }) => {
            let verified = verify(folder, &settings.keyring, None)
                .map_err(|error| damaged(&Failure::from_error(Exit::Failed, &error).message))?;
            let text = format!(
                "Lines {} to {} follow each other. Custody was not asked: only the daemon can say whether the last\n\
                 checkpoint is genuine (`keystead audit verify` there).\n",
                verified.first, verified.end.sequence
            );
            let json = json!({"follows": true, "vouched": null, "files": verified.files, "lines": verified.lines,
                "first": verified.first, "last": verified.end.sequence});
            Ok(Report::done(text, json))
        }
        Command::Verify(_) => runtime()?.block_on(verify_running(&settings.admin.socket.path)),
        Command::Query(arguments) => runtime()?.block_on(query(arguments, &settings.admin.socket.path)),
    }
}

async fn verify_running(socket: &Path) -> Result<Report, Failure> {
    let connection = Connection::open(socket).await?;
    let mut admin = AdminClient::new(connection.channel.clone());
    let call = admin.verify_audit(VerifyAuditRequest {});
    let found = connection.within(READ_WITHIN, call).await?.into_inner();
    if !found.intact {
        return Err(damaged(&found.problem));
    }
    Ok(Report::done(intact(&found), json(&found)))
}

fn damaged(problem: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the audit trail is not what was written: {problem}"))
        .next("keep the files as they are, and compare them with what was shipped off the box")
}

fn intact(found: &VerifyAuditResponse) -> String {
    let rows = [
        ("Folder", found.folder.clone()),
        ("Lines", format!("{} to {}, in {} {}", found.first, found.last, found.files, plural(found.files))),
        ("Checkpoint", format!("line {}, {}", found.checkpoint, found.checkpoint_time)),
        ("Not recorded", format!("{} requests since the daemon started", found.lost)),
    ];
    format!("The audit trail is intact, and custody vouches for it.\n{}", table::fields(&rows))
}

fn plural(files: u64) -> &'static str {
    if files == 1 { "file" } else { "files" }
}

fn json(found: &VerifyAuditResponse) -> Value {
    json!({
        "follows": true,
        "vouched": true,
        "folder": found.folder,
        "files": found.files,
        "lines": found.lines,
        "first": found.first,
        "last": found.last,
        "checkpoint": found.checkpoint,
        "checkpoint_time": found.checkpoint_time,
        "lost": found.lost,
    })
}

async fn query(arguments: &QueryArguments, socket: &Path) -> Result<Report, Failure> {
    let connection = Connection::open(socket).await?;
    let mut admin = AdminClient::new(connection.channel.clone());
    let call = admin.query_audit(QueryAuditRequest {
        since: ago(arguments.since),
        until: ago(arguments.until),
        action: arguments.action.clone().unwrap_or_default(),
        outcome: arguments.outcome.clone().unwrap_or_default(),
        uid: arguments.uid,
        generation: arguments.generation,
        limit: arguments.limit,
    });
    let mut stream = connection.within(READ_WITHIN, call).await?.into_inner();
    let mut lines = Vec::new();
    while let Some(line) = connection.within(READ_WITHIN, stream.message()).await? {
        // A line that is no JSON is left out by the daemon.
        lines.extend(serde_json::from_str::<Value>(&line.json));
    }
    let rows: Vec<_> = lines.iter().map(row).collect();
    let text = match rows.is_empty() {
        true => "Nothing was recorded that fits.\n".to_owned(),
        false => table::columns(&["TIME", "ACTION", "OUTCOME", "UID", "DETAILS"], &rows),
    };
    Ok(Report::done(text, Value::Array(lines)))
}

fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a time back from now is said as 90s, 15m, 1h or 30d".into())
}

fn ago(span: Option<Duration>) -> u64 {
    let since = |span| SystemTime::now().checked_sub(span)?.duration_since(UNIX_EPOCH).ok();
    // 0 would ask for nothing.
    span.map_or(0, |span| since(span).map_or(1, |time| time.as_secs().max(1)))
}

fn row(line: &Value) -> Vec<String> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let time = text(line.get("time"));
    let who = |name: &str| line.get("who")?.get(name).filter(|value| !value.is_null());
    let uid =
        line.get("peer_uid").or_else(|| who("uid")).map(|uid| match who("login_uid").filter(|login| *login != uid) {
            // `sudo keystead …`, by the one who logged in.
            Some(login) => format!("{uid} ({login})"),
            None => uid.to_string(),
        });
    // What the daemon did by itself has a name instead.
    let uid = uid.or_else(|| line.get("who")?.as_str().map(ToOwned::to_owned));
    let outcome = text(line.get("outcome").or_else(|| line.get("phase")));
    let details = match line.get("details").and_then(Value::as_object) {
        Some(details) => {
            details.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect::<Vec<_>>().join(" ")
        }
        None => text(line.get("uid")),
    };
    // Seconds are enough for people.
    vec![
        time.get(..19).unwrap_or(&time).replace('T', " "),
        text(line.get("action")),
        outcome,
        uid.unwrap_or_else(|| "-".into()),
        details,
    ]
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_well_for_actions_requests_and_events() {
        let action = json!({"time": "2026-11-22T04:00:00.123Z", "action": "rotate", "phase": "done",
            "who": {"uid": 1000}, "details": {"generation": 3, "key_id": "ks1"}});
        assert_eq!(row(&action), ["2026-11-22 04:00:00", "rotate", "done", "1000", "generation=3 key_id=ks1"]);
        let as_root = json!({"who": {"uid": 0, "login_uid": 1000}});
        assert_eq!(row(&as_root)[3], "0 (1000)");
        let own = json!({"time": "2026-11-22T04:00:00.123Z", "action": "rotate", "phase": "intent", "who": "schedule"});
        assert_eq!(row(&own), ["2026-11-22 04:00:00", "rotate", "intent", "schedule", ""]);
        let request = json!({"time": "2026-11-22T04:00:00.123Z", "action": "decrypt", "uid": "4b7d", "peer_uid": 0, "outcome": "ok"});
        assert_eq!(row(&request), ["2026-11-22 04:00:00", "decrypt", "ok", "0", "4b7d"]);
        assert_eq!(row(&json!({})), ["", "", "", "-", ""]);
    }

    #[test]
    fn spans_count_back_from_now_and_never_ask_for_nothing() {
        assert_eq!(ago(None), 0);
        assert_eq!(ago(Some(Duration::MAX)), 1);
        assert!(ago(Some(Duration::ZERO)) > 1_700_000_000);
        assert_eq!(span("1h"), Ok(Duration::from_secs(3600)));
        assert!(span("yesterday").unwrap_err().contains("1h"));
    }
}
