//! The daemon's state, put together from all that the rooms below know of it.

use std::sync::atomic::Ordering;

use keystead_core::RootKind;
use keystead_core::keyring::Keyring;
use keystead_wire::admin::v1::{Audit, CustodianProcess, Custody, GetStatusResponse, Sandbox, Upstream};

use super::admin::AdminService;
use super::{deletion, disable, outlook, reload, roots, rotation, scan, upstream};
use crate::audit::Trail;
use crate::memory;
use crate::service::custody_state::CustodyState;
use crate::service::notices;

impl AdminService {
    /// The daemon as it is now. Blocks on nothing.
    pub fn status(&self) -> GetStatusResponse {
        let serving = self.lifecycle.keys().serving();
        let settings = self.lifecycle.settings();
        let mut status = GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            keyring: settings.keyring.to_string(),
            node: settings.node.to_string(),
            availability: disable::word(&serving.availability).into(),
            disabled: self.lifecycle.disabled().map(disable::shown),
            reason: serving.reason.clone(),
            custody: Some(self.custody(self.lifecycle.custody_state())),
            metrics_address: self.facts.metrics_address.clone(),
            uptime_seconds: self.facts.started.elapsed().as_secs(),
            sandbox: Some(Sandbox { keys_locked: memory::keys_locked(), ..self.facts.sandbox }),
            audit: self.audit.trail().map(audit),
            configuration: Some(reload::shown(self.facts.configuration.loaded())),
            rotation: self.lifecycle.rotation_outlook().as_ref().map(rotation::shown),
            ..GetStatusResponse::default()
        };
        status.warnings.extend(status.audit.as_ref().filter(|audit| audit.failing).map(|audit| {
            let meanwhile =
                if audit.stops { "what cannot be recorded is refused" } else { "what is done is not recorded" };
            format!("{}: {meanwhile}. Free some space; the log says why", notices::UNWRITTEN)
        }));
        status.warnings.extend(status.rotation.iter().flat_map(rotation::warnings));
        if self.facts.unrecorded {
            status.warnings.push(notices::UNRECORDED.into());
        }
        if status.disabled.as_ref().is_some_and(|disabled| !disabled.recorded) {
            status.warnings.push(notices::DISABLED_UNRECORDED.into());
        }
        if let Some(keys) = &serving.keys {
            let keyring = &keys.keyring;
            status.epoch = keyring.epoch;
            status.store_revision = keyring.revision;
            status.generations = count(keyring.alive().count());
            status.generations_loaded = count(keys.loaded());
            if let Some(active) = keyring.active() {
                status.active_key_id = active.key_id.to_string();
                status.active_generation = active.number.0;
                status.durable_roots = active.wraps.iter().map(|wrap| wrap.root_kind.to_string()).collect();
            }
            status.scan = scan::shown(keyring);
            status.deletions = self.lifecycle.deletions().iter().map(deletion::shown).collect();
            let deletions = deletion::warnings(keyring, &status.deletions);
            status.warnings.extend(deletions);
            let known = warnings(keyring, &status);
            status.warnings.extend(known);
            if let Some(shut) = roots::closed(keyring, serving.cloud_closed.as_ref()) {
                // Where nothing needs them any more it is a fact, and no risk.
                status.warnings.extend(keyring.rewritten().is_err().then(|| shut.clone()));
                status.shut = shut;
            }
            status.warnings.extend(roots::disagreement(keyring, self.lifecycle.configured_root()));
            let open = keys.slots().filter(|slot| serving.closed_to(&slot.generation).is_none());
            let faults = open.filter_map(|slot| Some((slot.generation.number, slot.fault()?)));
            status
                .warnings
                .extend(faults.map(|(number, fault)| format!("generation {number} cannot be opened: {fault}")));
            if self.lifecycle.is_in_debt() {
                status.warnings.push(notices::UNSETTLED.into());
            }
        }
        status.upstream = self.facts.spending.as_ref().and_then(|spending| {
            let view = self.lifecycle.cloud_view(spending)?;
            if view.spent.over_budget() {
                status.warnings.push(format!(
                    "the cloud was called {} times in 24 hours, more than upstream.daily_call_budget ({})",
                    view.spent.calls, view.spent.budget
                ));
            }
            if view.report.unstored {
                status.warnings.push(
                    "the store does not hold yet what the cloud said last (the log says why): do not put older files back \
                     into it, and do not restart if it can wait"
                        .into(),
                );
            }
            let older_only = serving.keys.as_ref().is_some_and(|keys| !keys.keyring.is_rooted_in_cloud());
            Some(Upstream { older_only, ..upstream::describe(view) })
        });
        outlook::explain(&mut status);
        status
    }

    pub(super) fn custody(&self, state: CustodyState) -> Custody {
        let mut custody = Custody {
            state: state.name().to_owned(),
            detail: state.fault.as_ref().map(ToString::to_string).unwrap_or_default(),
            restarts: self.facts.custodian_restarts.load(Ordering::Relaxed),
            process: self.lifecycle.custodian_process().map(|process| CustodianProcess {
                uid: process.uid,
                no_new_privs: process.no_new_privs,
                dumpable: process.dumpable,
                system_calls_filtered: process.system_calls_filtered,
            }),
            ..Custody::default()
        };
        if let Some(description) = state.description {
            custody.token_label = description.token.label;
            custody.token_serial = description.token.serial;
            custody.manufacturer = description.token.manufacturer;
            custody.model = description.token.model;
            custody.module = description.module;
            custody.mechanism = description.mechanism;
            custody.authentication = description.authentication;
            custody.device_operations = description.device_operations;
        }
        custody
    }
}

fn audit(trail: &Trail) -> Audit {
    let counts = trail.counts();
    Audit {
        last: counts.sequence,
        lost: counts.lost,
        failing: counts.failing,
        stops: trail.stops(),
        requests: trail.wants_requests(),
    }
}

/// What an operator should know although everything works.
fn warnings(keyring: &Keyring, status: &GetStatusResponse) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(active) = keyring.active()
        && active.wraps.len() == 1
        && active.wraps.iter().all(|wrap| wrap.root_kind != RootKind::Recovery)
    {
        let in_cloud = active.upstream_wrap().is_some();
        warnings.push(if in_cloud { notices::ONE_CLOUD_ROOT } else { notices::ONE_ROOT }.into());
    }
    if status.custody.as_ref().is_some_and(|custody| custody.manufacturer.starts_with("SoftHSM")) {
        warnings.push(notices::SOFTHSM.into());
    }
    if status.sandbox.as_ref().is_some_and(|sandbox| !sandbox.keys_locked) {
        warnings.push(notices::KEYS_NOT_LOCKED.into());
    }
    if status.sandbox.as_ref().is_some_and(|sandbox| sandbox.server_can_read_pin) {
        warnings.push(notices::PIN_READABLE.into());
    }
    if keyring.rotation.is_some() {
        warnings.push(notices::ROTATION_CUT_OFF.into());
    }
    warnings.extend(roots::warnings(keyring));
    warnings
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
