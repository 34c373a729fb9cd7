//! The daemon's state as metrics: read from its one source at each scrape, never kept a second time.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use keystead_core::availability;

use crate::custody::client::CustodyClient;
use crate::service::deletion::Standing;
use crate::service::lifecycle::Lifecycle;
use crate::service::schedule::RotationOutlook;

/// What the daemon is doing at one instant. The rooms count; whoever composes them fills this in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    pub availability: Availability,
    /// An admin switched the key off, whatever the availability shows besides.
    pub disabled: bool,
    /// 0 while none is known.
    pub active_generation: u64,
    pub generations: u64,
    pub generations_loaded: u64,
    /// As in `keystead status`: `ready`, or what is wrong (`starting`, `pin-rejected`, `hung`, …).
    pub custody_state: &'static str,
    pub custodian_restarts: u64,
    /// PKCS#11 calls that reached the device since the custodian started.
    pub device_calls: u64,
    /// Requests to the custodian so far.
    pub custody_operations: Vec<Operations>,
    pub sockets: Vec<Socket>,
    pub deletions: Vec<Deletion>,
    pub store_revision: u64,
    pub epoch: u64,
    /// `None` while no key is known.
    pub rotation: Option<RotationOutlook>,
    /// `None` without an audit trail.
    pub audit: Option<Audit>,
    /// `None` in the local profile: no metric of it is shown then.
    pub upstream: Option<Upstream>,
}

/// How the audit trail fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    pub written: u64,
    pub lost: u64,
    pub failures: u64,
    pub failing: bool,
}

/// The cloud key and the lease on its offline copy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Upstream {
    /// The last call succeeded.
    pub up: bool,
    /// Unix seconds; 0 for never.
    pub last_contact: u64,
    pub lease_remaining: u64,
    pub lease_total: u64,
    /// Class of the last call that failed; `None` while up.
    pub fault_class: Option<String>,
    pub calls: Vec<Calls>,
    pub calls_today: u64,
    pub call_budget: u64,
    pub cost_today: f64,
    pub currency: String,
    /// What ends, and when in Unix seconds.
    pub not_after: Vec<(String, u64)>,
    /// A newer version of the cloud key is known, and no generation was made for it.
    pub new_version: bool,
    /// A reboot now would be survived.
    pub reboot_survives: bool,
}

/// How often one operation of the cloud's API succeeded and failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    pub operation: String,
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Availability {
    #[default]
    Sealed,
    Degraded,
    Online,
    Expired,
    Revoked,
    Disabled,
}

/// How often one kind of request ended one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    pub kind: &'static str,
    pub outcome: &'static str,
    pub count: u64,
}

/// A generation that waits for its deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    pub generation: String,
    /// Seconds that the daemon must still serve.
    pub remaining: u64,
    /// Something needs it: it does not go on by itself.
    pub suspended: bool,
    /// Since it was scheduled, by this run of the daemon.
    pub decrypts: u64,
}

/// Connections of one socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// `kms` or `admin`.
    pub name: &'static str,
    pub open: u64,
    pub accepted: u64,
    /// By reason: `limit`, `peer`, `handshake`.
    pub refused: Vec<(&'static str, u64)>,
}

impl State {
    /// What service and custody say now; the rest is the composition root's to fill in.
    pub fn of(lifecycle: &Lifecycle, custody: &CustodyClient) -> Self {
        let serving = lifecycle.keys().serving();
        let custody_state = lifecycle.custody_state();
        let mut state = Self {
            availability: match serving.availability {
                availability::Availability::Sealed(_) => Availability::Sealed,
                availability::Availability::Degraded { .. } => Availability::Degraded,
                availability::Availability::Online => Availability::Online,
                availability::Availability::Expired => Availability::Expired,
                availability::Availability::Revoked { .. } => Availability::Revoked,
                availability::Availability::Disabled => Availability::Disabled,
            },
            disabled: lifecycle.disabled().is_some(),
            custody_state: custody_state.name(),
            device_calls: custody_state.description.map_or(0, |description| description.device_operations),
            custody_operations: custody
                .operations()
                .into_iter()
                .map(|each| Operations { kind: each.request, outcome: each.outcome, count: each.count })
                .collect(),
            rotation: lifecycle.rotation_outlook(),
            ..Self::default()
        };
        if let Some(keys) = &serving.keys {
            state.active_generation = keys.keyring.active().map_or(0, |active| active.number.0);
            state.generations = keys.keyring.alive().count() as u64;
            state.generations_loaded = keys.loaded() as u64;
            state.store_revision = keys.keyring.revision;
            state.epoch = keys.keyring.epoch;
        }
        let deletions = lifecycle.deletions().into_iter().map(|each| Deletion {
            generation: each.generation.number.to_string(),
            remaining: each.left.as_secs(),
            suspended: each.standing == Standing::Suspended,
            decrypts: each.decrypts,
        });
        state.deletions = deletions.collect();
        state
    }
}

impl Availability {
    const ALL: [Self; 6] = [Self::Sealed, Self::Degraded, Self::Online, Self::Expired, Self::Revoked, Self::Disabled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Degraded => "degraded",
            Self::Online => "online",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Disabled => "disabled",
        }
    }
}

/// Registers `read`, which is called once a scrape and must not block.
pub fn register(registry: &mut Registry, read: impl Fn() -> State + Send + Sync + 'static) {
    registry.register_collector(Box::new(StateCollector(read)));
}

struct StateCollector<F>(F);

impl<F> fmt::Debug for StateCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateCollector")
    }
}

impl<F: Fn() -> State + Send + Sync + 'static> Collector for StateCollector<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = (self.0)();
        let mut page = Page(encoder);

        let availability =
            Availability::ALL.map(|each| ([("state", each.as_str())], u64::from(each == state.availability)));
        page.gauges("keystead_availability", "1 for the state the daemon is in.", availability)?;
        page.gauge("keystead_disabled", "1 while an admin has the key switched off.", u64::from(state.disabled))?;
        page.gauge("keystead_active_generation", "Number of the generation that encrypts.", state.active_generation)?;
        page.gauge("keystead_generations", "Generations in the keyring that are not destroyed.", state.generations)?;
        page.gauge("keystead_generations_loaded", "Generations whose KEK is in memory.", state.generations_loaded)?;
        page.gauge("keystead_store_revision", "Revision of the stored record.", state.store_revision)?;
        page.gauge("keystead_epoch", "Number of the epoch secret in force.", state.epoch)?;

        page.deletions(&state.deletions)?;

        if let Some(rotation) = &state.rotation {
            page.rotation(rotation)?;
        }
        let custody = [([("state", state.custody_state)], 1)];
        page.gauges("keystead_custody_state", "1 for the state custody is in.", custody)?;
        let restarts = [(NO_LABELS, state.custodian_restarts)];
        page.counters("keystead_custodian_restarts", "Custodian processes that were replaced.", restarts)?;
        // A gauge: the count begins anew with each custodian.
        page.gauge("keystead_device_calls", "PKCS#11 calls of the running custodian.", state.device_calls)?;
        let operations = state.custody_operations.iter();
        let operations = operations.map(|each| ([("kind", each.kind), ("outcome", each.outcome)], each.count));
        page.counters("keystead_custody_operations", "Requests to the custodian, by kind and outcome.", operations)?;

        let open = state.sockets.iter().map(|socket| ([("socket", socket.name)], socket.open));
        page.gauges("keystead_connections_open", "Connections that are open.", open)?;
        let accepted = state.sockets.iter().map(|socket| ([("socket", socket.name)], socket.accepted));
        page.counters("keystead_connections_accepted", "Connections accepted.", accepted)?;
        let refused = state.sockets.iter().flat_map(|socket| {
            socket.refused.iter().map(|(reason, count)| ([("socket", socket.name), ("reason", *reason)], *count))
        });
        page.counters("keystead_connections_refused", "Connections refused, by reason.", refused)?;

        if let Some(audit) = &state.audit {
            page.audit(audit)?;
        }
        state.upstream.as_ref().map_or(Ok(()), |upstream| page.upstream(upstream))
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [(NO_LABELS, value)])
    }

    fn deletions(&mut self, deletions: &[Deletion]) -> fmt::Result {
        let of = |value: fn(&Deletion) -> u64| {
            deletions.iter().map(move |each| ([("generation", each.generation.as_str())], value(each)))
        };
        let help = "What is left until a generation is destroyed.";
        self.gauges("keystead_deletion_remaining_seconds", help, of(|each| each.remaining))?;
        let help = "1 while something needs a generation that was to be destroyed.";
        self.gauges("keystead_deletion_suspended", help, of(|each| each.suspended.into()))?;
        let help = "Decrypts under a generation that waits for its deletion.";
        self.gauges("keystead_deletion_decrypts", help, of(|each| each.decrypts))
    }

    fn rotation(&mut self, rotation: &RotationOutlook) -> fmt::Result {
        self.gauge("keystead_key_age_seconds", "Since the active generation was activated.", rotation.age.seconds)?;
        let help = "Older generations that are not proven to be no longer needed.";
        self.gauge("keystead_generations_needed", help, rotation.needed.len() as u64)?;
        if rotation.schedule.is_none() {
            return Ok(());
        }
        let help = "When the key is rotated by itself next.";
        self.gauge("keystead_rotation_next_timestamp_seconds", help, rotation.next)?;
        let help = "Since when a scheduled rotation is due and not made.";
        self.gauge("keystead_rotation_overdue_seconds", help, rotation.overdue)?;
        let help = "Scheduled rotations that failed.";
        self.counters("keystead_scheduled_rotation_failures", help, [(NO_LABELS, rotation.failures)])
    }

    fn audit(&mut self, audit: &Audit) -> fmt::Result {
        self.counters("keystead_audit_lines", "Lines written to the audit trail.", [(NO_LABELS, audit.written)])?;
        self.counters("keystead_audit_lost", "Requests served but not recorded.", [(NO_LABELS, audit.lost)])?;
        let help = "Writes to the audit trail that failed.";
        self.counters("keystead_audit_failures", help, [(NO_LABELS, audit.failures)])?;
        self.gauge("keystead_audit_failing", "1 while the audit trail cannot be written.", audit.failing.into())
    }

    fn upstream(&mut self, upstream: &Upstream) -> fmt::Result {
        self.gauge("keystead_upstream_up", "1 while the last call to the cloud KMS succeeded.", upstream.up.into())?;
        let name = "keystead_upstream_last_contact_timestamp_seconds";
        self.gauge(name, "When the cloud key was last used.", upstream.last_contact)?;
        self.gauge("keystead_lease_remaining_seconds", "What is left of the lease.", upstream.lease_remaining)?;
        self.gauge("keystead_lease_seconds", "A whole lease.", upstream.lease_total)?;
        let fault = upstream.fault_class.iter().map(|class| ([("class", class.as_str())], 1));
        self.gauges("keystead_upstream_fault", "1 for the class of the present fault.", fault)?;
        let calls = upstream.calls.iter().flat_map(|each| {
            let row = |outcome, count| ([("operation", each.operation.as_str()), ("outcome", outcome)], count);
            [row("ok", each.succeeded), row("failed", each.failed)]
        });
        self.counters("keystead_upstream_calls", "Calls to the cloud, by operation and outcome.", calls)?;
        self.gauge("keystead_upstream_calls_today", "Calls of the last 24 hours.", upstream.calls_today)?;
        self.gauge("keystead_upstream_call_budget", "Calls a day that raise the alarm.", upstream.call_budget)?;
        let cost = [([("currency", upstream.currency.as_str())], ConstGauge::new(upstream.cost_today))].into_iter();
        let help = "Estimated cost of the last 24 hours.";
        self.family("keystead_upstream_cost_today", help, MetricType::Gauge, cost)?;
        let ends = upstream.not_after.iter().map(|(what, end)| ([("what", what.as_str())], *end));
        let help = "When a certificate or credential in use ends.";
        self.gauges("keystead_not_after_timestamp_seconds", help, ends)?;
        let new = upstream.new_version.into();
        self.gauge("keystead_upstream_new_version", "1 while a version of the cloud key waits for a rotation.", new)?;
        let help = "1 while a reboot now would be survived.";
        self.gauge("keystead_reboot_survives", help, upstream.reboot_survives.into())
    }

    fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'static str, &'a str); N], u64)>,
    ) -> fmt::Result {
        let rows = rows.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, rows)
    }

    fn counters<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = ([(&'static str, &'a str); N], u64)>,
    ) -> fmt::Result {
        let rows = rows.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, rows)
    }

    fn family<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl Iterator<Item = ([(&'static str, &'a str); N], impl EncodeMetric)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, metric) in rows {
            if N == 0 {
                return metric.encode(family);
            }
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn each_scrape_shows_the_state_of_its_moment() {
        let generation = Arc::new(AtomicU64::new(3));
        let mut metrics = Metrics::new();
        let source = Arc::clone(&generation);
        register(metrics.registry(), move || State {
            availability: Availability::Online,
            active_generation: source.load(Ordering::Relaxed),
            custody_state: "ready",
            custodian_restarts: 2,
            custody_operations: vec![Operations { kind: "unwrap", outcome: "ok", count: 7 }],
            audit: Some(Audit { written: 12, lost: 3, failures: 1, failing: true }),
            sockets: vec![Socket { name: "kms", open: 1, accepted: 5, refused: vec![("limit", 0), ("peer", 4)] }],
            ..State::default()
        });
        let page = metrics.render().unwrap();
        for line in [
            "keystead_availability{state=\"online\"} 1\n",
            "keystead_availability{state=\"sealed\"} 0\n",
            "keystead_disabled 0\n",
            "# TYPE keystead_active_generation gauge\nkeystead_active_generation 3\n",
            "keystead_custody_state{state=\"ready\"} 1\n",
            "keystead_custodian_restarts_total 2\n",
            "keystead_custody_operations_total{kind=\"unwrap\",outcome=\"ok\"} 7\n",
            "keystead_audit_lines_total 12\n",
            "keystead_audit_lost_total 3\n",
            "keystead_audit_failing 1\n",
            "keystead_connections_open{socket=\"kms\"} 1\n",
            "keystead_connections_accepted_total{socket=\"kms\"} 5\n",
            "keystead_connections_refused_total{socket=\"kms\",reason=\"peer\"} 4\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        generation.store(4, Ordering::Relaxed);
        assert!(metrics.render().unwrap().contains("keystead_active_generation 4\n"));
    }

    fn rotation() -> RotationOutlook {
        let every = std::time::Duration::from_secs(90 * 86_400);
        RotationOutlook {
            age: keystead_core::schedule::Age { seconds: 7_900_000, uncertain: false },
            schedule: Some(keystead_core::schedule::Schedule { every, jitter: every / 10, window: None }),
            next: 1_763_816_645,
            overdue: 124_000,
            waits: "for a rewrite".into(),
            failures: 2,
            needed: vec![(keystead_core::GenerationNumber(1), None)],
        }
    }

    #[test]
    fn schedule_shows_when_and_a_key_without_one_only_its_age() {
        let page = cloud_page();
        for line in [
            "keystead_key_age_seconds 7900000\n",
            "keystead_generations_needed 1\n",
            "keystead_rotation_next_timestamp_seconds 1763816645\n",
            "keystead_rotation_overdue_seconds 124000\n",
            "keystead_scheduled_rotation_failures_total 2\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
        let mut metrics = Metrics::new();
        let by_hand = RotationOutlook { schedule: None, next: 0, ..rotation() };
        register(metrics.registry(), move || State { rotation: Some(by_hand.clone()), ..State::default() });
        let page = metrics.render().unwrap();
        assert!(page.contains("keystead_key_age_seconds 7900000\n") && !page.contains("keystead_rotation"), "{page}");
    }

    fn cloud_page() -> String {
        let mut metrics = Metrics::new();
        register(metrics.registry(), || State {
            availability: Availability::Degraded,
            deletions: vec![Deletion { generation: "2".into(), remaining: 3600, suspended: true, decrypts: 4 }],
            upstream: Some(Upstream {
                up: false,
                last_contact: 1_763_816_045,
                lease_remaining: 3600,
                lease_total: 259_200,
                fault_class: Some("unreachable".into()),
                calls: vec![Calls { operation: "Decrypt".into(), succeeded: 0, failed: 3 }],
                calls_today: 3,
                call_budget: 400,
                cost_today: 0.000_009,
                currency: "USD".into(),
                not_after: vec![("certificate of kms.example.com".into(), 1_763_820_000)],
                new_version: false,
                reboot_survives: true,
            }),
            rotation: Some(rotation()),
            ..State::default()
        });
        metrics.render().unwrap()
    }

    #[test]
    fn cloud_profile_shows_lease_calls_and_ends() {
        let page = cloud_page();
        for line in [
            "keystead_availability{state=\"revoked\"} 0\n",
            "keystead_deletion_remaining_seconds{generation=\"2\"} 3600\n",
            "keystead_deletion_suspended{generation=\"2\"} 1\n",
            "keystead_deletion_decrypts{generation=\"2\"} 4\n",
            "keystead_upstream_up 0\n",
            "keystead_upstream_fault{class=\"unreachable\"} 1\n",
            "keystead_lease_remaining_seconds 3600\n",
            "keystead_upstream_calls_total{operation=\"Decrypt\",outcome=\"failed\"} 3\n",
            "keystead_upstream_cost_today{currency=\"USD\"} 0.000009\n",
            "keystead_not_after_timestamp_seconds{what=\"certificate of kms.example.com\"} 1763820000\n",
            "keystead_reboot_survives 1\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn local_profile_shows_nothing_of_a_cloud() {
        let mut metrics = Metrics::new();
        register(metrics.registry(), State::default);
        let page = metrics.render().unwrap();
        assert!(!page.contains("upstream") && !page.contains("lease"), "{page}");
    }

    #[test]
    fn every_metric_is_documented() {
        let page = cloud_page();
        let mut metrics = Metrics::new();
        let audit = Some(Audit::default());
        register(metrics.registry(), move || State { audit, ..State::default() });
        let page = page + &metrics.render().unwrap();
        let reference = include_str!("../../docs/commands.md");
        let named = |line: &&str| !line.starts_with('#');
        for line in page.lines().filter(named) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(reference.contains(&format!("`{name}`")), "docs/commands.md does not name {name}");
        }
    }

    /// An alert on a metric that does not exist is silent for ever.
    #[test]
    fn alert_rules_name_only_metrics_that_exist() {
        let rules = include_str!("../../packaging/prometheus/keystead-alerts.yaml");
        let mut page = cloud_page();
        // Counted by rpc, for all its requests.
        page.push_str("keystead_kms_requests_total 0\n");
        let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
        let mut seen = 0;
        for expression in expressions {
            for word in expression.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')) {
                if word.starts_with("keystead_") {
                    let shown = page
                        .lines()
                        .any(|line| line.strip_prefix(word).is_some_and(|rest| rest.starts_with(['{', ' '])));
                    assert!(shown, "{word} in {expression}");
                    seen += 1;
                }
            }
        }
        assert!(seen >= 10, "{seen} metrics in the rules");
        assert_eq!(rules.matches("- alert: ").count(), rules.matches("expr: ").count());
        assert_eq!(rules.matches("- alert: ").count(), rules.matches("description: ").count());
    }
}
