//! What becomes of the service: whether a restart now would be survived, what happens when the lease ends, what to do.
//!
//! Pure: judges what status says, so that text, JSON and whoever reads them get one answer. The state machine decides
//! what is served; here it is only explained.

use std::time::Duration;

use keystead_wire::admin::v1::{GetStatusResponse, Survival, Upstream};

/// What the first start of a boot takes off the lease at least, for nobody knows how long the machine was off.
pub const BOOT_FLOOR: Duration = Duration::from_secs(15 * 60);
/// What refusing does not undo.
pub const CACHED: &str =
    "What the apiserver has cached stays readable until it restarts, at most a day; writes stop within 3 minutes";
/// From here on an outage is urgent.
const URGENT_PERCENT: u64 = 25;

/// Fills in what follows from the rest of `status`.
pub fn explain(status: &mut GetStatusResponse) {
    if let Some(mut upstream) = status.upstream.take() {
        upstream.consequence = if upstream.older_only {
            older_consequence(&upstream)
        } else {
            consequence(&status.availability, &upstream)
        };
        status.upstream = Some(upstream);
    }
    status.apiserver_restart = Some(apiserver_restart(status));
    status.reboot = Some(reboot(status));
    status.actions = actions(status);
}

fn yes(why: impl Into<String>) -> Survival {
    Survival { survives: true, why: why.into() }
}

fn no(why: impl Into<String>) -> Survival {
    Survival { survives: false, why: why.into() }
}

fn serves(status: &GetStatusResponse) -> bool {
    matches!(status.availability.as_str(), "online" | "degraded")
}

fn custody_state(status: &GetStatusResponse) -> &str {
    status.custody.as_ref().map_or("starting", |custody| custody.state.as_str())
}

/// Nothing in etcd is under an older generation.
fn is_rewritten(status: &GetStatusResponse) -> bool {
    status.scan.as_ref().is_some_and(|scan| scan.rewritten)
}

fn apiserver_restart(status: &GetStatusResponse) -> Survival {
    if serves(status) && !status.shut.is_empty() && !is_rewritten(status) {
        return no(format!("it would not read Secrets under what is shut. {}", capitalised(&status.shut)));
    }
    if serves(status) {
        return yes("it asks Status, Encrypt and Decrypt, and all are answered from memory");
    }
    no(format!("the daemon is {}: a restarted apiserver would read no Secret", status.availability))
}

fn reboot(status: &GetStatusResponse) -> Survival {
    if !serves(status) {
        return no(format!("the daemon is {} already", status.availability));
    }
    match custody_state(status) {
        "ready" => {}
        state => return no(format!("custody is {state}: without it a new daemon cannot read its store")),
    }
    if !status.shut.is_empty() && !is_rewritten(status) {
        return no("Secrets under what is shut are readable only where they are cached");
    }
    let matters = |upstream: &&Upstream| !(upstream.up || upstream.older_only && is_rewritten(status));
    let Some(upstream) = status.upstream.as_ref().filter(matters) else {
        return yes("");
    };
    if upstream.fault_class == "corrupt" {
        return no(
            "the cloud answers with what is not this key's: a new daemon would not serve until that is cleared up",
        );
    }
    if !upstream.copies_complete {
        return no("not every generation has an offline copy, and the cloud cannot be asked");
    }
    let left = Duration::from_secs(upstream.lease_remaining_seconds);
    if left > BOOT_FLOOR {
        return yes(format!("the offline copy opens for {} more", span(left)));
    }
    no(format!("the first start of a boot takes 15m off the lease, of which {} is left", span(left)))
}

/// The active generation does without the cloud.
fn older_consequence(upstream: &Upstream) -> String {
    if upstream.up {
        return String::new();
    }
    match upstream.lease_remaining_seconds {
        0 => "the lease is used up: generations whose root is in the cloud are shut until it answers".to_owned(),
        left => {
            let left = span(Duration::from_secs(left));
            format!("in {left} the lease ends and generations whose root is in the cloud are shut. The others go on")
        }
    }
}

fn consequence(availability: &str, upstream: &Upstream) -> String {
    match availability {
        "revoked" => {
            format!("the cloud has withdrawn the key: nothing is served, offline copies are destroyed. {CACHED}")
        }
        "expired" => format!("the lease is used up: nothing is served until the cloud answers. {CACHED}"),
        "disabled" if !upstream.up => {
            "the lease runs down: once it is used up, enabling the key brings nothing back without the cloud".into()
        }
        "degraded" if upstream.fault_class == "denied" && upstream.proven => format!(
            "three refusals over half an hour or more are taken for a revocation: nothing is served then, offline copies \
             are destroyed. {CACHED}"
        ),
        "online" | "degraded" if !upstream.up => {
            let left = span(Duration::from_secs(upstream.lease_remaining_seconds));
            format!("in {left} the lease ends and nothing is served any more. {CACHED}")
        }
        _ => String::new(),
    }
}

fn actions(status: &GetStatusResponse) -> Vec<String> {
    let mut actions = Vec::new();
    if status.disabled.is_some() {
        actions.push("if it is to serve again: `keystead key enable`; no restart is needed".to_owned());
    }
    let Some(upstream) = &status.upstream else { return actions };
    if serves(status) && custody_state(status) != "ready" {
        actions.push("bring custody back before this machine restarts: the keys are in memory only".to_owned());
    }
    match status.availability.as_str() {
        "revoked" => actions.push(
            "if it was not meant: enable the key, or give the permission back, in the cloud console. Service comes back \
             by itself within one probe"
                .into(),
        ),
        "expired" => actions.push(
            "bring back the way to the cloud (`keystead upstream check` shows where it ends), or have a grant signed: \
             `keystead lease extend --grant FILE`"
                .into(),
        ),
        _ => {}
    }
    if upstream.up || matches!(status.availability.as_str(), "revoked" | "expired") {
        return actions;
    }
    actions.push(match upstream.fault_class.as_str() {
        "credential-fault" => "put a valid credential into the credentials file; no restart is needed".into(),
        "billing" => "settle the cloud account: nobody renews for an account in debt".into(),
        "denied" => "give this credential the right to use the key, or the key is taken as revoked".into(),
        "key-disabled" | "key-gone" if upstream.older_only => {
            "if it was not meant, enable the key in the cloud console; \
             else what Secrets are under older generations is lost with it"
                .into()
        }
        "corrupt" => "compare upstream.key with `keystead roots list`: the cloud answered for another key".into(),
        _ => "`keystead upstream check` shows where the way to the cloud ends; it is tried again by itself".to_owned(),
    });
    if upstream.lease_remaining_seconds * 100 < upstream.lease_total_seconds * URGENT_PERCENT {
        actions.push("if the cloud stays away: `keystead lease extend --grant FILE` gives more time".into());
    }
    actions
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// `71h 5m`, `4m 3s`: hours are what people count an outage in.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_wire::admin::v1::{Custody, Scan};

    fn status(availability: &str, custody: &str, upstream: Option<Upstream>) -> GetStatusResponse {
        let mut status = GetStatusResponse {
            availability: availability.into(),
            custody: Some(Custody { state: custody.into(), ..Custody::default() }),
            upstream,
            ..GetStatusResponse::default()
        };
        explain(&mut status);
        status
    }

    fn outage(left: u64) -> Option<Upstream> {
        Some(Upstream {
            lease_remaining_seconds: left,
            lease_total_seconds: 72 * 3600,
            copies_complete: true,
            ..Upstream::default()
        })
    }

    fn fault(class: &str) -> Option<Upstream> {
        Some(Upstream { fault_class: class.into(), proven: true, ..outage(71 * 3600)? })
    }

    fn survives(status: &GetStatusResponse) -> (bool, bool) {
        let of = |survival: &Option<Survival>| survival.as_ref().unwrap().survives;
        (of(&status.apiserver_restart), of(&status.reboot))
    }

    #[test]
    fn restarts_are_survived_while_key_and_lease_last() {
        let up = Some(Upstream { up: true, ..Upstream::default() });
        for (availability, custody, upstream, expected) in [
            ("online", "ready", None, (true, true)),
            ("degraded", "token-missing", None, (true, false)),
            ("sealed", "token-missing", None, (false, false)),
            ("online", "ready", up.clone(), (true, true)),
            ("degraded", "hung", up, (true, false)),
            ("degraded", "ready", outage(3600), (true, true)),
            ("degraded", "ready", outage(901), (true, true)),
            ("degraded", "ready", outage(900), (true, false)),
            ("degraded", "token-missing", outage(3600), (true, false)),
            ("degraded", "ready", Some(Upstream { copies_complete: false, ..outage(3600).unwrap() }), (true, false)),
            ("degraded", "ready", fault("corrupt"), (true, false)),
            ("degraded", "ready", fault("credential-fault"), (true, true)),
            ("expired", "ready", outage(0), (false, false)),
            ("revoked", "ready", outage(3600), (false, false)),
        ] {
            let status = status(availability, custody, upstream);
            assert_eq!(survives(&status), expected, "{status:?}");
        }
    }

    #[test]
    fn outage_says_when_it_ends_the_service_and_what_to_do() {
        let early = status("degraded", "ready", outage(71 * 3600 + 300));
        let upstream = early.upstream.as_ref().unwrap();
        assert!(upstream.consequence.starts_with("in 71h 5m the lease ends"), "{}", upstream.consequence);
        assert_eq!(early.actions.len(), 1);
        assert!(early.actions[0].contains("keystead upstream check"));
        let late = status("degraded", "ready", outage(3600));
        assert!(late.actions.iter().any(|action| action.contains("lease extend")), "{:?}", late.actions);
        assert!(status("degraded", "ready", fault("credential-fault")).actions[0].contains("valid credential"));
        let denied = status("degraded", "ready", fault("denied")).upstream.unwrap().consequence;
        assert!(denied.starts_with("three refusals over half an hour"), "{denied}");
        let mistaken = Upstream { proven: false, ..fault("denied").unwrap() };
        let mistaken = status("degraded", "ready", Some(mistaken)).upstream.unwrap().consequence;
        assert!(mistaken.starts_with("in 71h 0m the lease ends"), "{mistaken}");
        for availability in ["revoked", "expired"] {
            let status = status(availability, "ready", outage(0));
            assert_eq!(status.actions.len(), 1, "{:?}", status.actions);
            assert!(status.upstream.unwrap().consequence.contains("nothing is served"));
        }
    }

    #[test]
    fn outage_of_a_cloud_that_only_older_generations_need_ends_nothing_else() {
        let upstream = |left, up| Upstream { older_only: true, up, ..outage(left).unwrap() };
        let away = status("online", "ready", Some(upstream(3600, false)));
        assert_eq!(survives(&away), (true, true));
        // Beyond the lease, a machine that starts would shut them; which is nothing to Secrets that are rewritten.
        let mut ending = status("online", "ready", Some(upstream(60, false)));
        assert_eq!(survives(&ending), (true, false));
        ending.shut = "generations 2 cannot be opened".into();
        explain(&mut ending);
        assert_eq!(survives(&ending), (false, false));
        ending.scan = Some(Scan { rewritten: true, ..Scan::default() });
        explain(&mut ending);
        assert_eq!(survives(&ending), (true, true));
        let told = |status: &GetStatusResponse| status.upstream.as_ref().unwrap().consequence.clone();
        assert!(told(&away).ends_with("The others go on") && told(&away).contains("in 1h 0m"), "{}", told(&away));
        assert!(told(&status("online", "ready", Some(upstream(0, false)))).contains("used up"));
        assert_eq!(told(&status("online", "ready", Some(upstream(3600, true)))), "");
    }

    #[test]
    fn disabled_key_survives_no_restart_and_names_the_way_back_first() {
        for upstream in [None, outage(3600)] {
            let mut status = status("disabled", "ready", upstream);
            status.disabled = Some(keystead_wire::admin::v1::Disabled::default());
            explain(&mut status);
            assert_eq!(survives(&status), (false, false));
            assert!(status.actions[0].contains("keystead key enable"), "{:?}", status.actions);
            let consequence = status.upstream.map(|upstream| upstream.consequence);
            assert!(consequence.is_none_or(|told| told.contains("the lease runs down")));
        }
    }

    #[test]
    fn nothing_is_to_be_done_while_all_is_well() {
        let up = Some(Upstream { up: true, ..Upstream::default() });
        for upstream in [None, up] {
            let status = status("online", "ready", upstream);
            assert!(status.actions.is_empty(), "{status:?}");
        }
    }
}
