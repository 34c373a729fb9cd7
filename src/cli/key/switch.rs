//! `keystead key disable` and `keystead key enable`: the whole key, off and on.

use std::time::Duration;

use clap::Args;
use keystead_core::reason::Reason;
use keystead_wire::admin::v1::{
    DisableRequest, DisableResponse, Disabled, EnableRequest, EnableResponse, GetStatusRequest,
};
use serde_json::{Value, json};

use super::{Daemon, confirm};
use crate::cli::exit::{Exit, Failure};
use crate::cli::report::Report;
use crate::cli::{table, time};

/// A change under way, as a rotation on a slow device, is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub struct DisableArguments {
    /// Why; kept with the key, shown by `status` and recorded
    #[arg(long, value_name = "TEXT")]
    reason: Option<Reason>,
    /// Do not ask; required where there is no terminal
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, Args)]
pub struct EnableArguments {
    /// Do not ask; required where there is no terminal
    #[arg(long, short)]
    yes: bool,
}

pub async fn disable(arguments: &DisableArguments, mut daemon: Daemon) -> Result<Report, Failure> {
    if !arguments.yes {
        let status = daemon.connection.answer(daemon.admin.get_status(GetStatusRequest {})).await?;
        confirm::confirm(&format!(
            "Disable the whole key of keyring {}? No Secret can be written, and none read that is not cached, until it is \
             enabled.",
            status.keyring
        ))?;
    }
    let reason = arguments.reason.as_ref().map(ToString::to_string).unwrap_or_default();
    let call = daemon.admin.disable(DisableRequest { reason });
    let answer = daemon.connection.within(PATIENCE, call).await.map_err(look_first)?.into_inner();
    Ok(disabled_report(&answer))
}

pub async fn enable(arguments: &EnableArguments, mut daemon: Daemon) -> Result<Report, Failure> {
    if !arguments.yes {
        let status = daemon.connection.answer(daemon.admin.get_status(GetStatusRequest {})).await?;
        let why = match status.disabled {
            Some(disabled) => format!(" It was disabled by {}{}.", who(&disabled), because(&disabled)),
            None => String::new(),
        };
        confirm::confirm(&format!("Enable the key of keyring {}?{why}", status.keyring))?;
    }
    let call = daemon.admin.enable(EnableRequest {});
    let answer = daemon.connection.within(PATIENCE, call).await.map_err(look_first)?.into_inner();
    Ok(enabled_report(&answer))
}

fn look_first(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Refused | Exit::NotServing if failure.next.is_some() => failure,
        _ => failure.next("`keystead status` shows how the key stands; the daemon settles by itself what was begun"),
    }
}

fn disabled_report(answer: &DisableResponse) -> Report {
    let disabled = answer.disabled.clone().unwrap_or_default();
    let title = if answer.changed { "Disabled." } else { "The key was disabled already." };
    let mut rows = vec![("Since", moment(disabled.since)), ("By", who(&disabled))];
    if !disabled.reason.is_empty() {
        rows.push(("Reason", disabled.reason.clone()));
    }
    let mut text = format!("{title}\n{}", table::fields(&rows));
    if !disabled.recorded {
        text.push_str(
            "\nA restart does not lift it, but the record does not say so yet: custody is\n\
             away, or the disk is full. It is tried again by itself; `keystead status` says\n\
             while that is so.\n",
        );
    }
    text.push_str(
        "\nkube-apiserver gets FAILED_PRECONDITION from now on, and stops writing within 3\n\
         minutes. Secrets that it has cached stay readable until it restarts, at most a\n\
         day.\n\
         `keystead key enable` brings service back, without a restart.\n",
    );
    Report::done(text, json!({ "changed": answer.changed, "disabled": json(Some(&disabled)) }))
}

fn enabled_report(answer: &EnableResponse) -> Report {
    let EnableResponse { changed, availability, reason } = answer;
    let title = if *changed { "Enabled." } else { "The key was enabled already." };
    let mut rows = vec![("Availability", availability.clone())];
    if !reason.is_empty() {
        rows.push(("Reason", reason.clone()));
    }
    let serves = matches!(availability.as_str(), "online" | "degraded");
    let mut text = format!("{title}\n{}", table::fields(&rows));
    if !serves {
        text.push_str("\nNothing is served yet: enabling lifts no revocation and fills no lease.\n");
    }
    let json = json!({ "changed": changed, "availability": availability, "reason": reason });
    Report { text, json, exit: if serves { Exit::Done } else { Exit::NotServing } }
}

/// A disabled key as programs read it; `null` while it is enabled.
pub fn json(disabled: Option<&Disabled>) -> Value {
    disabled.map_or(Value::Null, |disabled| {
        json!({
            "since": time::rfc3339(disabled.since),
            "uid": disabled.uid,
            "login_uid": disabled.login_uid,
            "reason": (!disabled.reason.is_empty()).then_some(&disabled.reason),
            "recorded": disabled.recorded,
            "consequence": disabled.consequence,
        })
    })
}

/// One line: since when, by whom, why.
pub fn line(disabled: &Disabled) -> String {
    let unrecorded = if disabled.recorded { "" } else { "; NOT in the record yet" };
    format!("since {} by {}{}{unrecorded}", moment(disabled.since), who(disabled), because(disabled))
}

fn moment(unix: u64) -> String {
    time::rfc3339(unix).unwrap_or_else(|| "an unknown time".into())
}

fn who(disabled: &Disabled) -> String {
    match (disabled.uid, disabled.login_uid) {
        (Some(uid), Some(login)) if login != uid => format!("user {uid}, logged in as {login}"),
        (Some(uid), _) => format!("user {uid}"),
        (None, _) => "somebody whom the audit trail knows".into(),
    }
}

fn because(disabled: &Disabled) -> String {
    if disabled.reason.is_empty() { String::new() } else { format!(": {}", disabled.reason) }
}
