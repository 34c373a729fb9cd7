//! What the daemon's processes have given up and locked: Landlock, filtered system calls, no new privileges, no dumps, keys in
//! locked memory, a PIN out of the server's reach. As the daemon found it at its start, not as it was asked for.

use keystead_wire::admin::v1::Sandbox;

use super::finding::Finding;
use super::scene::Scene;

struct Facts {
    sandbox: Option<Sandbox>,
    how_to_ask: &'static str,
    generations: u32,
    /// As configured.
    landlock: bool,
    seccomp: bool,
    /// Of the server process, in bytes.
    memlock: Option<u64>,
}

/// A KEK and its key schedule lie on two pages.
const BYTES_PER_GENERATION: u64 = 2 * 4096;
/// A rotation or two from now on.
const SPARE_GENERATIONS: u64 = 8;

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let status = scene.daemon.status();
    judge(&Facts {
        sandbox: status.map(|status| status.sandbox.unwrap_or_default()),
        how_to_ask: scene.daemon.how_to_ask(),
        generations: status.map_or(0, |status| status.generations),
        landlock: scene.settings.sandbox.landlock,
        seccomp: scene.settings.sandbox.seccomp,
        memlock: scene.server().and_then(|server| server.memlock),
    })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let Some(sandbox) = &facts.sandbox else {
        let mut findings = configured(facts);
        findings.push(Finding::unchecked(
            "protection.daemon",
            "what is in force is known to the daemon only",
            facts.how_to_ask,
        ));
        return findings;
    };
    let mut findings = vec![
        switch(
            "protection.landlock",
            sandbox.landlock,
            "Landlock confines the server to its store",
            if facts.landlock { "Landlock is not in force: this kernel has none" } else { "Landlock is switched off" },
            "whoever takes over the server reaches every file of its user, the PIN file among them",
            if facts.landlock {
                "use a kernel with Landlock (5.13 or later, in /sys/kernel/security/lsm)"
            } else {
                "set sandbox.landlock = true, then restart the daemon while custody is ready"
            },
        ),
        switch(
            "protection.system-calls",
            sandbox.system_calls_filtered,
            "the server's system calls are filtered",
            if facts.seccomp {
                "system calls are not filtered: this kernel cannot"
            } else {
                "the filter of system calls is switched off"
            },
            "whoever takes over the server can start programs and make sockets",
            if facts.seccomp {
                "use a kernel with seccomp filters"
            } else {
                "set sandbox.seccomp = true, then restart the daemon while custody is ready"
            },
        ),
        switch(
            "protection.privileges",
            sandbox.no_new_privs,
            "no new privileges",
            "the daemon's processes could gain privileges",
            "a set-user-ID program would raise whoever takes one of them over",
            "use a kernel that allows PR_SET_NO_NEW_PRIVS; see the daemon's log",
        ),
        switch(
            "protection.dumps",
            !sandbox.dumpable,
            "no core dumps, no debugger",
            "the server can be dumped or traced",
            "a core file or a debugger of the same user holds the keys",
            "see the daemon's log for why PR_SET_DUMPABLE failed",
        ),
        switch(
            "protection.pin",
            !sandbox.server_can_read_pin,
            "the server cannot read the PIN",
            "the server process can read the PIN file",
            "whoever takes over the server gets the PIN, and with it the token",
            "set sandbox.landlock = true, or keep the PIN file from the server's user",
        ),
    ];
    findings.push(memlock(facts, sandbox));
    findings
}

fn switch(id: &'static str, good: bool, fine: &str, what: &str, why: &'static str, next: &str) -> Finding {
    if good { Finding::ok(id, fine) } else { Finding::warning(id, what, why, next) }
}

/// With the daemon down: what the configuration switches off.
fn configured(facts: &Facts) -> Vec<Finding> {
    let off = [
        (facts.landlock, "protection.landlock", "sandbox.landlock", "the server will reach every file of its user"),
        (
            facts.seccomp,
            "protection.system-calls",
            "sandbox.seccomp",
            "the processes will be able to start programs and make sockets",
        ),
    ];
    let off = off.into_iter().filter(|(on, ..)| !on);
    off.map(|(_, id, key, why)| Finding::warning(id, format!("{key} is off"), why, format!("set {key} = true")))
        .collect()
}

fn memlock(facts: &Facts, sandbox: &Sandbox) -> Finding {
    let id = "protection.memory";
    let next = "raise LimitMEMLOCK= in the unit (`ulimit -l`), then restart the daemon while custody is ready";
    if !sandbox.keys_locked {
        let why = "keys may be written to swap, where they outlive the daemon";
        return Finding::warning(id, "key pages are not locked into memory", why, next);
    }
    let needed = BYTES_PER_GENERATION * (u64::from(facts.generations) + SPARE_GENERATIONS);
    match facts.memlock {
        Some(limit) if limit < needed => {
            let what =
                format!("the limit of locked memory, {} KiB, leaves little room for more generations", limit >> 10);
            Finding::warning(id, what, "a generation that does not fit may be written to swap", next)
        }
        _ => Finding::ok(id, "keys are locked in memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Info, Ok, Warning};
    use super::*;

    fn sound() -> Facts {
        let sandbox = Sandbox {
            landlock: true,
            no_new_privs: true,
            keys_locked: true,
            system_calls_filtered: true,
            ..Sandbox::default()
        };
        Facts {
            sandbox: Some(sandbox),
            how_to_ask: "ask it",
            generations: 3,
            landlock: true,
            seccomp: true,
            memlock: Some(8 << 20),
        }
    }

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Severity)> {
        let mut facts = sound();
        change(&mut facts);
        judge(&facts)
            .into_iter()
            .map(|finding| (finding.id, finding.severity))
            .filter(|(_, severity)| *severity != Ok)
            .collect()
    }

    fn lacking(change: fn(&mut Sandbox)) -> Vec<(&'static str, Severity)> {
        found(|facts| facts.sandbox.iter_mut().for_each(change))
    }

    #[test]
    fn each_lack_is_named_alone() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(lacking(|sandbox| sandbox.landlock = false), [("protection.landlock", Warning)]);
        assert_eq!(lacking(|sandbox| sandbox.system_calls_filtered = false), [("protection.system-calls", Warning)]);
        assert_eq!(lacking(|sandbox| sandbox.no_new_privs = false), [("protection.privileges", Warning)]);
        assert_eq!(lacking(|sandbox| sandbox.dumpable = true), [("protection.dumps", Warning)]);
        assert_eq!(lacking(|sandbox| sandbox.server_can_read_pin = true), [("protection.pin", Warning)]);
        assert_eq!(lacking(|sandbox| sandbox.keys_locked = false), [("protection.memory", Warning)]);
    }

    #[test]
    fn limit_too_low_for_more_generations_is_a_warning() {
        assert_eq!(found(|facts| facts.memlock = Some(64 << 10)), [("protection.memory", Warning)]);
        assert_eq!(found(|facts| facts.memlock = Some(11 * 8192)), []);
        assert_eq!(found(|facts| facts.memlock = Some(u64::MAX)), []);
        assert_eq!(found(|facts| facts.memlock = None), []);
    }

    #[test]
    fn with_the_daemon_down_the_configuration_is_judged() {
        let down = |landlock| found(|facts| (facts.sandbox, facts.landlock) = (None, landlock));
        assert_eq!(down(true), [("protection.daemon", Info)]);
        assert_eq!(down(false), [("protection.landlock", Warning), ("protection.daemon", Info)]);
    }
}
