//! `keystead status`: what the running daemon serves, from where, and what an operator should know.

mod rotation;
mod upstream;
mod watch;

use std::path::Path;

use keystead_wire::admin::v1::admin_client::AdminClient;
use keystead_wire::admin::v1::{
    Audit, Configuration, CustodianProcess, Custody, GetStatusRequest, GetStatusResponse, Sandbox, Scan, Survival,
};
use serde_json::{Value, json};

use super::connection::{Connection, runtime};
use super::exit::{Exit, Failure};
use super::key::deletion;
use super::key::generation::scan;
use super::key::switch;
use super::paint::Colour;
use super::report::{Format, Report};
use super::{drift, settings, table, time};

pub use watch::Arguments;

pub fn run(arguments: &Arguments, config: Option<&Path>, format: Format) -> Result<Report, Failure> {
    let (_, settings) = settings(config)?;
    if arguments.watches() {
        return watch::watch(arguments, &settings.admin.socket.path, format);
    }
    ask(&settings.admin.socket.path).map(|status| report(&status))
}

/// What the daemon on this socket says of itself.
pub(super) fn ask(socket: &Path) -> Result<GetStatusResponse, Failure> {
    runtime()?.block_on(fetch(socket))
}

async fn fetch(socket: &Path) -> Result<GetStatusResponse, Failure> {
    let connection = Connection::open(socket).await?;
    let mut admin = AdminClient::new(connection.channel.clone());
    connection.answer(admin.get_status(GetStatusRequest {})).await
}

fn report(status: &GetStatusResponse) -> Report {
    let custody = status.custody.clone().unwrap_or_default();
    let sandbox = status.sandbox.unwrap_or_default();
    let json = json!({
        "version": status.version,
        "keyring": status.keyring,
        "node": status.node,
        "availability": status.availability,
        "reason": status.reason,
        "active_key_id": status.active_key_id,
        "active_generation": status.active_generation,
        "generations": status.generations,
        "generations_loaded": status.generations_loaded,
        "durable_roots": status.durable_roots,
        "epoch": status.epoch,
        "store_revision": status.store_revision,
        "uptime_seconds": status.uptime_seconds,
        "metrics_address": (!status.metrics_address.is_empty()).then_some(&status.metrics_address),
        "custody": {
            "state": custody.state,
            "detail": custody.detail,
            "token_label": custody.token_label,
            "token_serial": custody.token_serial,
            "manufacturer": custody.manufacturer,
            "model": custody.model,
            "module": custody.module,
            "mechanism": custody.mechanism,
            "authentication": custody.authentication,
            "restarts": custody.restarts,
            "device_operations": custody.device_operations,
            "process": custody.process.map(|process| json!({
                "uid": process.uid,
                "no_new_privs": process.no_new_privs,
                "dumpable": process.dumpable,
                "system_calls_filtered": process.system_calls_filtered,
            })),
        },
        "audit": status.audit.map(|audit| json!({
            "last": audit.last,
            "lost": audit.lost,
            "failing": audit.failing,
            "stops": audit.stops,
            "requests": audit.requests,
        })),
        "sandbox": {
            "landlock": sandbox.landlock,
            "no_new_privs": sandbox.no_new_privs,
            "dumpable": sandbox.dumpable,
            "keys_locked": sandbox.keys_locked,
            "server_can_read_pin": sandbox.server_can_read_pin,
            "system_calls_filtered": sandbox.system_calls_filtered,
            "uid": sandbox.uid,
        },
        "scan": status.scan.as_ref().map(scan),
        "rotation": status.rotation.as_ref().map(rotation::json),
        "configuration": status.configuration.as_ref().map(configuration),
        "deletions": status.deletions.iter().map(deletion::as_json).collect::<Vec<_>>(),
        "disabled": switch::json(status.disabled.as_ref()),
        "upstream": status.upstream.as_ref().map(upstream::json),
        "apiserver_restart": survival(status.apiserver_restart.as_ref()),
        "reboot": survival(status.reboot.as_ref()),
        "actions": status.actions,
        "warnings": status.warnings,
        "shut": (!status.shut.is_empty()).then_some(&status.shut),
    });
    let exit = if status.availability == "online" { Exit::Done } else { Exit::NotServing };
    Report { text: text(status, &custody, sandbox), json, exit }
}

fn text(status: &GetStatusResponse, custody: &Custody, sandbox: Sandbox) -> String {
    let colour = match status.availability.as_str() {
        "online" => Colour::Good,
        "degraded" => Colour::Uneasy,
        _ => Colour::Bad,
    };
    let mut rows = vec![("Availability", status.availability.clone(), Some(colour))];
    let mut plain = |name, value| rows.push((name, value, None));
    if !status.reason.is_empty() {
        plain("Reason", status.reason.clone());
    }
    if let Some(disabled) = &status.disabled {
        plain("Disabled", switch::line(disabled));
        plain("Meanwhile", disabled.consequence.clone());
    }
    plain("Keyring", format!("{} on node {}", status.keyring, status.node));
    if status.active_key_id.is_empty() {
        plain("Key ID", "none is known".into());
    } else {
        let (known, loaded) = (status.generations, status.generations_loaded);
        plain("Key ID", status.active_key_id.clone());
        plain("Generation", format!("{} ({loaded} of {known} loaded)", status.active_generation));
        plain("Roots", status.durable_roots.join(", "));
        plain("Store", format!("revision {}, epoch {}", status.store_revision, status.epoch));
        for (name, value) in status.rotation.iter().flat_map(rotation::rows) {
            plain(name, value);
        }
        if known > 1 || status.scan.is_some() {
            plain("Scan", scan_line(status.scan.as_ref()));
        }
        for each in &status.deletions {
            plain("Deletion", format!("generation {}: {}", each.generation, deletion::standing(each)));
        }
    }
    if let Some(upstream) = &status.upstream {
        upstream::rows(upstream).into_iter().for_each(|(name, value)| plain(name, value));
    }
    if let (Some(apiserver), Some(reboot)) = (&status.apiserver_restart, &status.reboot) {
        plain("Restart now", format!("apiserver {}; this machine {}", fate(apiserver), fate(reboot)));
    }
    plain("Custody", custody_line(custody));
    if !custody.token_label.is_empty() || !custody.token_serial.is_empty() {
        let Custody { token_label, token_serial, manufacturer, model, .. } = custody;
        plain("Token", format!("{token_label} (serial {token_serial}), {manufacturer} {model}"));
        plain("Mechanism", format!("{}; {}", custody.mechanism, custody.authentication));
        plain("Module", custody.module.clone());
    }
    let (calls, restarts) = (custody.device_operations, custody.restarts);
    let process = custody.process.map(custodian_protection).unwrap_or_default();
    plain("Custodian", format!("{calls} device calls, {restarts} restarts{process}"));
    plain("Server", protection(sandbox));
    plain("Audit trail", audit(status.audit));
    let metrics = match status.metrics_address.as_str() {
        "" => "off".to_owned(),
        address => format!("http://{address}/metrics, /livez, /readyz"),
    };
    plain("Metrics", metrics);
    plain("Daemon", format!("version {}, up {}", status.version, time::span(status.uptime_seconds)));
    if let Some(configuration) = &status.configuration {
        plain("Configuration", configuration_line(configuration));
    }
    let mut text = table::painted_fields(&rows);
    if !status.actions.is_empty() {
        text.push_str("\nTo do:\n");
        text.push_str(&table::list(&status.actions));
    }
    if !status.warnings.is_empty() {
        text.push_str("\nTo know:\n");
        text.push_str(&table::list(&status.warnings));
    }
    if status.availability != "online" {
        text.push_str("\n`keystead doctor` says what to do.\n");
    }
    text
}

fn configuration(configuration: &Configuration) -> Value {
    json!({
        "file": (!configuration.file.is_empty()).then_some(&configuration.file),
        "loaded": time::rfc3339(configuration.loaded),
        "file_differs": drift::differs(configuration),
        "refused": (!configuration.refused.is_empty()).then_some(&configuration.refused),
    })
}

fn configuration_line(configuration: &Configuration) -> String {
    let loaded = time::rfc3339(configuration.loaded).unwrap_or_default();
    let file = match configuration.file.as_str() {
        "" => "built-in defaults",
        file => file,
    };
    let since = match drift::differs(configuration) {
        Some(true) => "; THE FILE HAS CHANGED SINCE: `keystead reload`",
        Some(false) | None => "",
    };
    let refused = match configuration.refused.as_str() {
        "" => String::new(),
        why => format!("; the last reload was refused: {why}"),
    };
    format!("{file}, loaded {loaded}{since}{refused}")
}

fn audit(audit: Option<Audit>) -> String {
    let Some(Audit { last, lost, failing, requests, .. }) = audit else { return "none".into() };
    let what = if requests { "admin actions and requests" } else { "admin actions" };
    let how = if failing { "CANNOT BE WRITTEN" } else { "recording" };
    format!("{how} {what}, {last} lines, {lost} lost")
}

fn survival(survival: Option<&Survival>) -> Value {
    let survival = survival.cloned().unwrap_or_default();
    json!({ "survives": survival.survives, "why": survival.why })
}

fn fate(survival: &Survival) -> String {
    match (survival.survives, survival.why.as_str()) {
        (true, _) => "survived".into(),
        (false, why) => format!("NOT survived: {why}"),
    }
}

fn custody_line(custody: &Custody) -> String {
    let state = match custody.state.as_str() {
        "" => "unknown",
        state => state,
    };
    match custody.detail.as_str() {
        "" => state.to_owned(),
        detail => format!("{state}: {detail}"),
    }
}

fn scan_line(scan: Option<&Scan>) -> String {
    let Some(scan) = scan else {
        return "none yet: `keystead etcd scan` shows which generations are still needed".to_owned();
    };
    let moment = time::rfc3339(scan.recorded).unwrap_or_default();
    match scan.detail.as_str() {
        "" => format!("{moment}: every object is under the active generation"),
        detail => format!("{moment}: older generations may be needed: {detail}"),
    }
}

fn custodian_protection(process: CustodianProcess) -> String {
    format!(
        "; user {}, {}, {}, {}",
        process.uid,
        word(process.system_calls_filtered, "system calls filtered", "system calls NOT FILTERED"),
        word(process.no_new_privs, "no new privileges", "new privileges POSSIBLE"),
        word(!process.dumpable, "no dumps", "DUMPABLE"),
    )
}

fn word(good: bool, yes: &'static str, no: &'static str) -> &'static str {
    if good { yes } else { no }
}

fn protection(sandbox: Sandbox) -> String {
    [
        &format!("user {}", sandbox.uid),
        word(sandbox.landlock, "Landlock on", "Landlock OFF"),
        word(sandbox.system_calls_filtered, "system calls filtered", "system calls NOT FILTERED"),
        word(sandbox.no_new_privs, "no new privileges", "new privileges POSSIBLE"),
        word(!sandbox.dumpable, "no dumps", "DUMPABLE"),
        word(sandbox.keys_locked, "keys locked in memory", "keys NOT LOCKED"),
        word(!sandbox.server_can_read_pin, "server cannot read the PIN", "server CAN READ the PIN"),
    ]
    .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_wire::admin::v1::{Deletion, Disabled, Expiry, NeededGeneration, Rotation, Upstream, UpstreamCalls};

    fn status() -> GetStatusResponse {
        GetStatusResponse {
            version: "0.1.0".into(),
            keyring: "default".into(),
            node: "0123456789abcdef0123456789abcdef".into(),
            availability: "online".into(),
            active_key_id: format!("ks1.default.3.{}", "ab".repeat(16)),
            active_generation: 3,
            generations: 3,
            generations_loaded: 2,
            custody: Some(Custody {
                state: "ready".into(),
                token_label: "keystead".into(),
                token_serial: "4d3a9f".into(),
                model: "SoftHSM v2".into(),
                ..Custody::default()
            }),
            durable_roots: vec!["pkcs11".into()],
            warnings: vec!["the keyring hangs on one durable root: if this token is lost, every Secret is lost".into()],
            ..GetStatusResponse::default()
        }
    }

    #[test]
    fn online_daemon_is_shown_in_eighty_columns() {
        let report = report(&status());
        assert_eq!(report.exit, Exit::Done);
        assert!(
            report.text.contains("3 (2 of 3 loaded)") && report.text.contains("To know:\n- the"),
            "{}",
            report.text
        );
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
        assert_eq!(report.json["custody"]["token_serial"], "4d3a9f");
    }

    #[test]
    fn outage_is_told_in_eighty_columns() {
        let report = report(&GetStatusResponse {
            availability: "degraded".into(),
            reason: "the cloud cannot be reached".into(),
            upstream: Some(Upstream {
                kind: "alibaba".into(),
                provider: "Alibaba Cloud KMS".into(),
                key: "key-hzz65f1f4b3example0001".into(),
                region: "cn-hangzhou".into(),
                endpoint: "https://kms.cn-hangzhou.aliyuncs.com".into(),
                down_since: 1_763_816_645,
                last_contact: 1_763_816_045,
                fault_class: "unreachable".into(),
                fault_code: "connect-timeout".into(),
                fault_detail: "no connection to kms.cn-hangzhou.aliyuncs.com within 3 s".into(),
                lease_remaining_seconds: 70 * 3600,
                lease_total_seconds: 72 * 3600,
                consequence: "in 70h 0m the lease ends and nothing is served any more".into(),
                calls: vec![UpstreamCalls { operation: "Decrypt".into(), succeeded: 144, failed: 7 }],
                calls_today: 151,
                call_budget: 400,
                cost_today: 0.000_453,
                currency: "USD".into(),
                expiries: vec![Expiry { what: "STS credential".into(), not_after: 1_763_820_000 }],
                proven: true,
                ..Upstream::default()
            }),
            apiserver_restart: Some(Survival { survives: true, why: String::new() }),
            reboot: Some(Survival { survives: false, why: "custody is token-missing".into() }),
            actions: vec!["`keystead upstream check` shows where the way to the cloud ends".into()],
            ..status()
        });
        assert_eq!(report.exit, Exit::NotServing);
        for part in [
            "Alibaba Cloud KMS",
            "DOWN since 2025-11-22T13:04:05Z",
            "(unreachable, connect-timeout)",
            "2d 22h of 3d 0h left",
            "151 of 400 in 24h, about 0.0005 USD",
            "STS credential until 2025-11-22T14:00:00Z",
            "apiserver survived; this machine NOT survived: custody is token-missing",
            "To do:\n- `keystead upstream check`",
        ] {
            let whole = report.text.split_whitespace().collect::<Vec<_>>().join(" ");
            let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(whole.contains(&part), "{part} is not in\n{}", report.text);
        }
        assert!(report.text.lines().all(|line| line.chars().count() <= 80), "{}", report.text);
        assert_eq!(report.json["upstream"]["lease_remaining_seconds"], 70 * 3600);
        assert_eq!(report.json["upstream"]["down_since"], "2025-11-22T13:04:05Z");
        assert_eq!(report.json["upstream"]["calls"]["Decrypt"]["failed"], 7);
        assert_eq!(report.json["reboot"]["survives"], false);
    }

    /// A field that the page does not name, scripts cannot count on.
    #[test]
    fn every_field_is_documented() {
        let report = report(&GetStatusResponse {
            custody: Some(Custody { process: Some(CustodianProcess::default()), ..Custody::default() }),
            audit: Some(Audit::default()),
            scan: Some(Scan::default()),
            configuration: Some(Configuration::default()),
            deletions: vec![Deletion::default()],
            rotation: Some(Rotation { needed: vec![NeededGeneration::default()], ..Rotation::default() }),
            disabled: Some(Disabled::default()),
            upstream: Some(Upstream {
                fault_class: "unreachable".into(),
                expiries: vec![Expiry::default()],
                ..Upstream::default()
            }),
            ..status()
        });
        let page = include_str!("../../docs/commands.md");
        let (_, section) = page.split_once("## keystead status\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let mut unnamed = Vec::new();
        for (name, value) in report.json.as_object().unwrap() {
            // These two stand with the commands that they come from.
            let place = if ["scan", "deletions"].contains(&name.as_str()) { page } else { section };
            let mut names = vec![name.clone()];
            field_names(value, &mut names);
            unnamed.extend(names.into_iter().filter(|each| !place.contains(&format!("`{each}`"))));
        }
        assert!(unnamed.is_empty(), "docs/commands.md does not name {unnamed:?}");
    }

    fn field_names(value: &Value, names: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    names.push(name.clone());
                    field_names(value, names);
                }
            }
            Value::Array(elements) => elements.iter().for_each(|each| field_names(each, names)),
            _ => {}
        }
    }

    #[test]
    fn daemon_that_is_not_online_is_an_exit_code_of_its_own() {
        for availability in ["sealed", "degraded", "unheard-of"] {
            let report = report(&GetStatusResponse {
                availability: availability.into(),
                reason: "no token keystead is present".into(),
                active_key_id: String::new(),
                custody: None,
                ..status()
            });
            assert_eq!(report.exit, Exit::NotServing);
            assert!(report.text.contains("no token keystead"), "{}", report.text);
            assert!(report.text.ends_with("`keystead doctor` says what to do.\n"), "{}", report.text);
        }
    }
}
