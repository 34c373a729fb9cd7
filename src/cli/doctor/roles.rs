//! Roles: is anybody left who may change the key, and does everybody that the table names exist? As the configuration says; a
//! running daemon has the roles of its start.

use super::finding::Finding;
use super::scene::Scene;
use crate::config::Holders;

const RESTART: &str = "edit [roles] (docs/roles.md), then restart the daemon at a quiet moment, while custody is ready";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    judge(&scene.settings.admin.holders(&scene.site))
}

fn judge(holders: &Holders) -> Vec<Finding> {
    let mut findings = Vec::new();
    if holders.open {
        let what = "there is no [roles] table: whoever is admitted to the admin socket may do everything";
        let why =
            "he may also have the keys wrapped to a public key of his own, which is as good as reading every Secret";
        let next = "give out roles (docs/roles.md), or leave it if only one person is admitted (admin.allow_uids)";
        findings.push(Finding::info("roles.open", what, why, next));
    }
    if holders.vacant.contains(&"crypto-admin") {
        let what = "nobody holds the role crypto-admin";
        let why = "nobody can rotate the key, nor rescue it from a token that dies: by then a restart, which new roles take, would lose the keys in memory";
        findings.push(Finding::warning("roles.nobody", what, why, RESTART));
    }
    let others: Vec<&str> = holders.vacant.iter().copied().filter(|role| *role != "crypto-admin").collect();
    if !others.is_empty() {
        let what = format!("nobody holds the role {}", others.join(", "));
        let why = "what only that role may do, nobody may; a crypto-admin is neither operator nor auditor";
        findings.push(Finding::info("roles.vacant", what, why, RESTART));
    }
    if !holders.denied.is_empty() {
        let what = format!("denied to everybody who was granted it: {}", holders.denied.join(", "));
        let why = "denials win over grants: nobody may do it, root included";
        findings.push(Finding::warning("roles.denied", what, why, RESTART));
    }
    if !holders.unknown.is_empty() {
        let what = format!("no account of this machine: {}", holders.unknown.join(", "));
        let why = "a number that is given to another user later gives him the role";
        let next = "take the entry out, or leave it if the accounts come from a directory service";
        findings.push(Finding::info("roles.unknown", what, why, next));
    }
    if !holders.of_root.is_empty() {
        let what = format!("user 0 holds {}", holders.of_root.join(", "));
        let why = "whoever becomes root then acts as nobody in particular: the trail has his login uid only where a session began it";
        let next = "give the roles to the people who do the work, by user or group; leave it where only root logs in";
        findings.push(Finding::info("roles.root", what, why, next));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("roles.held", "every role is held by somebody who exists, and none by root"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Info, Ok, Warning};
    use super::*;

    fn found(change: impl FnOnce(&mut Holders)) -> Vec<(&'static str, Severity)> {
        let mut holders = Holders { open: false, vacant: vec![], denied: vec![], unknown: vec![], of_root: vec![] };
        change(&mut holders);
        judge(&holders).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn what_nobody_may_do_is_a_warning_and_choices_are_told() {
        assert_eq!(found(|_| ()), [("roles.held", Ok)]);
        assert_eq!(found(|holders| holders.open = true), [("roles.open", Info)]);
        let vacant = found(|holders| holders.vacant = vec!["viewer", "crypto-admin"]);
        assert_eq!(vacant, [("roles.nobody", Warning), ("roles.vacant", Info)]);
        assert_eq!(found(|holders| holders.denied = vec!["rotate"]), [("roles.denied", Warning)]);
        assert_eq!(found(|holders| holders.unknown = vec!["user 7".into()]), [("roles.unknown", Info)]);
        assert_eq!(found(|holders| holders.of_root = vec!["viewer"]), [("roles.root", Info)]);
    }
}
