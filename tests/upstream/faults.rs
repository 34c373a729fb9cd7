//! Every fault a cloud or the way to it may have, with the class it must be given, and what comes after it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use keystead::upstream::transport::codes;
use keystead_core::FaultClass;

use crate::provider::{Case, Provider, Stand};

pub const CASES: &[(&str, Case)] = &[
    ("bursts_of_5xx_and_throttling_are_ridden_out_within_one_call", bursts_are_ridden_out),
    ("black_hole_bounds_every_call", black_hole_bounds_every_call),
    ("skew_of_20_minutes_is_learnt_within_one_call", skew_is_learnt),
    ("clock_half_a_year_behind_is_corrected_by_the_service", clock_far_behind_is_corrected),
    ("key_unknown_here_is_gone_as_with_a_wrong_region", unknown_key_is_gone),
    ("replaced_credentials_file_counts_without_a_restart", replaced_credentials_file_counts),
    ("no_error_shows_a_secret", no_error_shows_a_secret),
    ("odd_but_whole_answer_is_taken", odd_but_whole_answer_is_taken),
    ("wrap_that_came_truncated_does_not_open_again", truncated_wrap_does_not_open),
];

/// One fault: what the rig is told, what an unwrap then fails with, and what ends it.
#[derive(Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    orders: &'static [&'static str],
    pub class: FaultClass,
    /// Where the code is ours or the same for all clouds.
    code: Option<&'static str>,
    repair: &'static [&'static str],
    /// It does not end by itself: short time-outs.
    hangs: bool,
}

/// A fault of the network: [`FaultClass::Unreachable`], ended by `clear`.
const fn network(
    name: &'static str,
    orders: &'static [&'static str],
    code: Option<&'static str>,
    hangs: bool,
) -> Fault {
    Fault { name, orders, class: FaultClass::Unreachable, code, repair: &[r#"{"action": "clear"}"#], hangs }
}

const fn state(
    name: &'static str,
    order: &'static [&'static str],
    class: FaultClass,
    repair: &'static [&'static str],
) -> Fault {
    Fault { name, orders: order, class, code: None, repair, hangs: false }
}

const PENDING_DELETION: &str = "key_pending_deletion";

const FAULTS: &[Fault] = &[
    network("connection_refused", &[r#"{"action": "fault", "fault": "refuse"}"#], Some(codes::TCP), false),
    network("black_hole", &[r#"{"action": "fault", "fault": "black-hole"}"#], Some(codes::TIMEOUT), true),
    network("slow_loris", &[r#"{"action": "fault", "fault": "slow-loris"}"#], Some(codes::TIMEOUT), true),
    network("latency_beyond_the_time_out", &[r#"{"action": "fault", "fault": "latency", "seconds": 5}"#], None, true),
    network("http_500", &[r#"{"action": "fault", "fault": "http-500"}"#], Some("http-500"), false),
    network("http_503", &[r#"{"action": "fault", "fault": "http-503"}"#], Some("http-503"), false),
    network("throttling", &[r#"{"action": "fault", "fault": "throttle"}"#], None, false),
    network(
        "captive_portal_with_foreign_tls",
        &[r#"{"action": "fault", "fault": "captive-tls"}"#],
        Some(codes::TLS),
        false,
    ),
    network(
        "captive_portal_with_html_and_200",
        &[r#"{"action": "fault", "fault": "captive-html"}"#],
        Some(codes::FOREIGN),
        false,
    ),
    network("redirect", &[r#"{"action": "fault", "fault": "redirect"}"#], Some(codes::REDIRECT), false),
    network("answer_cut_off", &[r#"{"action": "fault", "fault": "cut"}"#], Some(codes::HTTP), false),
    network("foreign_json_with_200", &[r#"{"action": "fault", "fault": "foreign-json"}"#], Some(codes::FOREIGN), false),
    network("answer_too_long", &[r#"{"action": "fault", "fault": "too-long"}"#], Some(codes::TOO_LONG), false),
    network("answer_of_10_gb", &[r#"{"action": "fault", "fault": "ten-gigabytes"}"#], Some(codes::TOO_LONG), false),
    network("answer_without_an_end", &[r#"{"action": "fault", "fault": "endless"}"#], Some(codes::TOO_LONG), false),
    network("head_without_an_end", &[r#"{"action": "fault", "fault": "endless-head"}"#], Some(codes::HTTP), false),
    network("thousand_headers", &[r#"{"action": "fault", "fault": "many-headers"}"#], Some(codes::HTTP), false),
    network("head_a_byte_a_second", &[r#"{"action": "fault", "fault": "slow-head"}"#], Some(codes::TIMEOUT), true),
    network("continue_without_an_end", &[r#"{"action": "fault", "fault": "endless-continue"}"#], None, true),
    network("no_http", &[r#"{"action": "fault", "fault": "no-http"}"#], Some(codes::HTTP), false),
    network(
        "end_that_nobody_vouches_for",
        &[r#"{"action": "fault", "fault": "unsaid-end"}"#],
        Some(codes::HTTP),
        false,
    ),
    network("two_lengths", &[r#"{"action": "fault", "fault": "two-lengths"}"#], Some(codes::HTTP), false),
    network("compressed_unasked", &[r#"{"action": "fault", "fault": "gzip"}"#], Some(codes::FOREIGN), false),
    network("json_that_is_no_utf8", &[r#"{"action": "fault", "fault": "not-utf8"}"#], Some(codes::FOREIGN), false),
    network("json_5000_deep", &[r#"{"action": "fault", "fault": "deep-json"}"#], Some(codes::FOREIGN), false),
    network("each_field_twice", &[r#"{"action": "fault", "fault": "each-field-twice"}"#], Some(codes::FOREIGN), false),
    network("json_null", &[r#"{"action": "fault", "fault": "null"}"#], Some(codes::FOREIGN), false),
    network("success_without_a_body", &[r#"{"action": "fault", "fault": "empty"}"#], Some(codes::FOREIGN), false),
    // Nothing but a new certificate ends it.
    Fault {
        repair: &[],
        ..network("server_certificate_expired", &[r#"{"action": "expire-certificate"}"#], Some(codes::TLS), false)
    },
    state("key_disabled", &[r#"{"action": "disable-key"}"#], FaultClass::KeyDisabled, &[r#"{"action": "enable-key"}"#]),
    state(
        PENDING_DELETION,
        &[r#"{"action": "schedule-deletion"}"#],
        FaultClass::KeyDisabled,
        &[r#"{"action": "cancel-deletion"}"#, r#"{"action": "enable-key"}"#],
    ),
    state("key_deleted", &[r#"{"action": "delete-key"}"#], FaultClass::KeyGone, &[]),
    state("permission_withdrawn", &[r#"{"action": "deny"}"#], FaultClass::Denied, &[r#"{"action": "allow"}"#]),
    state(
        "credential_revoked",
        &[r#"{"action": "revoke-credential"}"#],
        FaultClass::CredentialFault,
        &[r#"{"action": "restore-credential"}"#],
    ),
    state(
        "answer_for_another_key",
        &[r#"{"action": "fault", "fault": "other-key"}"#],
        FaultClass::Corrupt,
        &[r#"{"action": "clear"}"#],
    ),
    state(
        "ciphertext_truncated_on_its_way",
        &[r#"{"action": "fault", "fault": "truncate"}"#],
        FaultClass::Corrupt,
        &[r#"{"action": "clear"}"#],
    ),
    state(
        "key_of_16_bytes",
        &[r#"{"action": "fault", "fault": "short-key"}"#],
        FaultClass::Corrupt,
        &[r#"{"action": "clear"}"#],
    ),
];

const BILLING: Fault =
    state("account_in_debt", &[r#"{"action": "debt"}"#], FaultClass::Billing, &[r#"{"action": "settle"}"#]);

pub fn cases(provider: &Provider) -> Vec<Fault> {
    let mut faults = [FAULTS, &[BILLING]].concat();
    faults.retain(|fault| provider.has_billing || fault.class != FaultClass::Billing);
    let scheduled = faults.iter_mut().filter(|fault| fault.name == PENDING_DELETION);
    scheduled.for_each(|fault| fault.class = provider.deletion_scheduled);
    faults
}

impl Fault {
    /// Works before, fails as it should, works after.
    pub fn run(&self, stand: &Stand) {
        let opened = stand.open(if self.hangs { stand.impatient() } else { stand.settings() });
        let made = stand.usual().generate();
        opened.opens_soon(&made);
        self.orders.iter().for_each(|order| stand.rig.control(order));
        let start = Instant::now();
        let error = opened.unwrap(&made).unwrap_err();
        assert_eq!(error.class, self.class, "{error}");
        assert!(self.code.is_none_or(|code| code == error.code), "{error}");
        // Twice the time-out and what a busy machine needs.
        assert!(!self.hangs || start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        self.repair.iter().for_each(|order| stand.rig.control(order));
        if !self.repair.is_empty() {
            opened.opens_soon(&made);
        }
    }
}

fn bursts_are_ridden_out(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    for fault in ["http-500", "http-503", "throttle"] {
        stand.rig.control(&format!(r#"{{"action": "fault", "fault": "{fault}", "service": "kms", "count": 2}}"#));
        opened.opens(&made);
    }
}

fn black_hole_bounds_every_call(stand: &Stand) {
    let opened = stand.open(stand.impatient());
    stand.rig.control(r#"{"action": "fault", "fault": "black-hole"}"#);
    let (context, kek) = (opened.context(), keystead_core::Kek::take(&mut [7; 32]));
    let start = Instant::now();
    let errors = [
        opened.wait(opened.upstream.generate(&context)).unwrap_err(),
        opened.wait(opened.upstream.wrap(&kek, &context)).unwrap_err(),
        opened.wait(opened.upstream.describe()).unwrap_err(),
    ];
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    errors.iter().for_each(|error| assert_eq!(error.class, FaultClass::Unreachable, "{error}"));
}

fn skew_is_learnt(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    for seconds in [1200, -1200, 0] {
        stand.rig.control(&format!(r#"{{"action": "skew", "seconds": {seconds}}}"#));
        opened.opens(&made);
        stand.usual().opens(&made);
    }
}

fn clock_far_behind_is_corrected(stand: &Stand) {
    let behind = || SystemTime::now() - Duration::from_secs(180 * 86_400);
    let opened = stand.open_at(stand.settings(), Arc::new(behind));
    let made = opened.generate();
    opened.opens(&made);
}

fn unknown_key_is_gone(stand: &Stand) {
    let mut settings = stand.settings();
    (stand.provider.set_key)(&mut settings, stand.provider.no_such_key);
    let opened = stand.open(settings);
    let error = opened.wait(opened.upstream.generate(&opened.context())).unwrap_err();
    assert_eq!(error.class, FaultClass::KeyGone, "{error}");
}

fn replaced_credentials_file_counts(stand: &Stand) {
    let (_folder, file) = stand.rig.copy_of("/credentials/main");
    let mut settings = stand.settings();
    (stand.provider.set_credentials)(&mut settings, file.to_str().unwrap());
    let opened = stand.open(settings);
    let made = opened.generate();
    let replace = |with: &str| {
        let next = file.with_extension("next");
        std::fs::copy(stand.rig.text(with), &next).unwrap();
        std::fs::rename(next, &file).unwrap();
    };
    replace("/credentials/wrong");
    // A token that the old credential was exchanged for may be used to its end.
    stand.rig.control(r#"{"action": "expire-tokens"}"#);
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!(error.class, FaultClass::CredentialFault, "{error}");
    replace("/credentials/main");
    opened.opens(&made);
    std::fs::remove_file(&file).unwrap();
    opened.opens(&made);
}

fn odd_but_whole_answer_is_taken(stand: &Stand) {
    let opened = stand.usual();
    let made = opened.generate();
    for fault in ["http-1.0", "other-type", "two-dates"] {
        stand.rig.control(&format!(r#"{{"action": "fault", "fault": "{fault}"}}"#));
        opened.opens(&made);
        stand.rig.control(r#"{"action": "clear"}"#);
    }
}

/// Why every new generation is unwrapped and compared before it is used.
fn truncated_wrap_does_not_open(stand: &Stand) {
    let opened = stand.usual();
    stand.rig.control(r#"{"action": "fault", "fault": "truncate"}"#);
    let made = opened.generate();
    stand.rig.control(r#"{"action": "clear"}"#);
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!(error.class, FaultClass::Corrupt, "{error}");
}

fn no_error_shows_a_secret(stand: &Stand) {
    let file = std::fs::read_to_string(stand.rig.text("/credentials/main")).unwrap();
    let secrets: Vec<&str> = file.split('"').skip(1).step_by(2).filter(|value| value.len() >= 16).collect();
    assert!(!secrets.is_empty());
    let opened = stand.usual();
    let made = opened.generate();
    let orders = [
        r#"{"action": "fault", "fault": "captive-html"}"#,
        r#"{"action": "fault", "fault": "cut"}"#,
        r#"{"action": "deny"}"#,
        r#"{"action": "revoke-credential"}"#,
    ];
    for order in orders {
        stand.rig.control(order);
        let error = opened.unwrap(&made).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!secrets.iter().any(|secret| shown.contains(secret)), "{order}");
        stand.rig.control(r#"{"action": "clear"}"#);
    }
}
