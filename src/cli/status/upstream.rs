//! The cloud key's part of `keystead status`.

use keystead_wire::admin::v1::Upstream;
use serde_json::{Map, Value, json};

use crate::cli::time;

pub(super) fn json(upstream: &Upstream) -> Value {
    let calls = upstream
        .calls
        .iter()
        .map(|each| (each.operation.clone(), json!({ "succeeded": each.succeeded, "failed": each.failed })))
        .collect::<Map<String, Value>>();
    json!({
        "kind": upstream.kind,
        "provider": upstream.provider,
        "key": upstream.key,
        "region": upstream.region,
        "endpoint": upstream.endpoint,
        "up": upstream.up,
        "down_since": time::rfc3339(upstream.down_since),
        "last_contact": time::rfc3339(upstream.last_contact),
        "fault": (!upstream.fault_class.is_empty()).then(|| json!({
            "class": upstream.fault_class, "code": upstream.fault_code, "detail": upstream.fault_detail,
        })),
        "lease_remaining_seconds": upstream.lease_remaining_seconds,
        "lease_total_seconds": upstream.lease_total_seconds,
        "consequence": upstream.consequence,
        "key_version": (!upstream.key_version.is_empty()).then_some(&upstream.key_version),
        "pending_version": (!upstream.pending_version.is_empty()).then_some(&upstream.pending_version),
        "proven": upstream.proven,
        "copies_complete": upstream.copies_complete,
        "older_only": upstream.older_only,
        "calls": calls,
        "calls_today": upstream.calls_today,
        "call_budget": upstream.call_budget,
        "cost_today": upstream.cost_today,
        "currency": upstream.currency,
        "expiries": upstream.expiries.iter().map(|expiry| {
            json!({ "what": expiry.what, "not_after": time::rfc3339(expiry.not_after) })
        }).collect::<Vec<_>>(),
    })
}

pub(super) fn rows(upstream: &Upstream) -> Vec<(&'static str, String)> {
    let older = if upstream.older_only { "; for older generations only" } else { "" };
    let mut rows = vec![
        ("Upstream", format!("{}, key {} at {}{older}", upstream.provider, upstream.key, upstream.endpoint)),
        ("Contact", contact(upstream)),
    ];
    let total = time::span(upstream.lease_total_seconds);
    rows.push(("Lease", format!("{} of {total} left", time::span(upstream.lease_remaining_seconds))));
    if !upstream.consequence.is_empty() {
        rows.push(("Then", upstream.consequence.clone()));
    }
    let Upstream { calls_today, call_budget, cost_today, currency, .. } = upstream;
    rows.push(("Calls", format!("{calls_today} of {call_budget} in 24h, about {cost_today:.4} {currency}")));
    if !upstream.expiries.is_empty() {
        let expiries = upstream.expiries.iter().map(|expiry| {
            format!("{} until {}", expiry.what, time::rfc3339(expiry.not_after).unwrap_or_else(|| "1970".into()))
        });
        rows.push(("Valid", expiries.collect::<Vec<_>>().join("; ")));
    }
    rows
}

fn contact(upstream: &Upstream) -> String {
    let last = match time::rfc3339(upstream.last_contact) {
        Some(time) => format!("last used {time}"),
        None => "never used".into(),
    };
    if upstream.up {
        return format!("up, {last}");
    }
    let since = time::rfc3339(upstream.down_since).map(|time| format!(" since {time}")).unwrap_or_default();
    let Upstream { fault_class, fault_code, fault_detail, .. } = upstream;
    match fault_class.as_str() {
        "" => format!("DOWN{since}; {last}"),
        _ => format!("DOWN{since}: {fault_detail} ({fault_class}, {fault_code}); {last}"),
    }
}
