//! The cloud side as the admin API tells it.

use keystead_wire::admin::v1::{Expiry, Upstream, UpstreamCalls};

use crate::service::cloud_view::CloudView;

/// What [`super::outlook`] adds is left empty.
pub(super) fn describe(view: CloudView) -> Upstream {
    let CloudView { report, up, down_since, last_contact, key_version, calls, not_after, spent, currency } = view;
    let (fault_class, fault_code, fault_detail) = match report.last_fault {
        Some(fault) => (fault.class.to_string(), fault.code, fault.detail),
        None => Default::default(),
    };
    Upstream {
        kind: report.identity.kind.to_string(),
        provider: report.identity.provider.to_owned(),
        key: String::from_utf8_lossy(report.identity.root_id.as_bytes()).into_owned(),
        region: report.identity.region,
        endpoint: report.identity.endpoint,
        up,
        down_since,
        last_contact,
        fault_class,
        fault_code,
        fault_detail,
        lease_remaining_seconds: report.lease_left.as_secs(),
        lease_total_seconds: report.lease_length.as_secs(),
        consequence: String::new(),
        key_version: key_version.unwrap_or_default(),
        calls: calls
            .into_iter()
            .map(|calls| UpstreamCalls {
                operation: calls.operation.to_owned(),
                succeeded: calls.succeeded,
                failed: calls.failed,
            })
            .collect(),
        calls_today: spent.calls,
        call_budget: spent.budget,
        cost_today: spent.cost,
        currency,
        expiries: not_after.into_iter().map(|(what, not_after)| Expiry { what, not_after }).collect(),
        proven: report.proven,
        pending_version: report.pending_version.unwrap_or_default(),
        copies_complete: report.copies_complete,
        older_only: false,
    }
}
