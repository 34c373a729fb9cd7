//! Boot: will the daemon be there before whatever starts kube-apiserver? Read from unit files and static pods.

use super::finding::Finding;
use super::look::{self, Look};
use super::pod;
use super::scene::Scene;
use super::unit::Unit;

struct Facts {
    service: Option<Unit>,
    kms_socket: Option<Unit>,
    /// Installed units that start an apiserver, each with what it says it comes after.
    starters: Vec<(&'static str, Vec<String>)>,
    /// A static pod that runs this daemon.
    pod: Option<String>,
    /// A folder of static pods could not be read.
    hidden: bool,
}

const STARTERS: [&str; 5] =
    ["kubelet.service", "k3s.service", "rke2-server.service", "microshift.service", "k0scontroller.service"];
const MANIFESTS: [&str; 2] = ["/etc/kubernetes/manifests", "/var/lib/rancher/rke2/agent/pod-manifests"];
const NO_SECRETS: &str =
    "after the next boot kube-apiserver finds no key service: no Secret is opened, and the cluster does not come up";

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let site = &scene.site;
    let starters = STARTERS.into_iter().filter_map(|name| Some((name, Unit::find(site, name)?.words("After"))));
    let (mut pod, mut hidden) = (None, false);
    for folder in MANIFESTS.map(|folder| site.path(folder)) {
        hidden |= std::fs::read_dir(&folder).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
        for name in look::names(&folder) {
            let Look::Found(text) = look::read(&folder.join(&name)) else { continue };
            if pod::containers(&text).is_ok_and(|containers| containers.iter().any(pod::Container::is_keystead)) {
                pod = Some(folder.join(name).display().to_string());
            }
        }
    }
    judge(&Facts {
        service: Unit::find(site, "keystead.service"),
        kms_socket: Unit::find(site, "keystead-kms.socket"),
        starters: starters.collect(),
        pod,
        hidden,
    })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let Some(service) = &facts.service else { return vec![without_unit(facts)] };
    let file = service.file.display();
    if service.masked {
        return vec![Finding::critical(
            "boot.disabled",
            format!("{file} is masked"),
            NO_SECRETS,
            "`systemctl unmask keystead`, then enable it",
        )];
    }
    let socket_enabled = facts.kms_socket.as_ref().is_some_and(|unit| unit.enabled && !unit.masked);
    let mut findings = Vec::new();
    if !service.enabled && !socket_enabled {
        let next = "`systemctl enable keystead.service keystead-kms.socket keystead-admin.socket`";
        findings.push(Finding::critical(
            "boot.disabled",
            format!("{file} is installed, not enabled"),
            NO_SECRETS,
            next,
        ));
    }
    let units = [Some(service), facts.kms_socket.as_ref()];
    let before: Vec<String> = units.into_iter().flatten().flat_map(|unit| unit.words("Before")).collect();
    for (starter, after) in &facts.starters {
        let ordered = before.iter().any(|word| word == starter)
            || after.iter().any(|word| word == "keystead.service" || word == "keystead-kms.socket");
        if !ordered {
            let what = format!("nothing orders keystead.service before {starter}");
            let why =
                "they start at the same time: the apiserver may find no socket, and waits or is started over and over";
            findings.push(Finding::warning(
                "boot.order",
                what,
                why,
                format!("`systemctl edit keystead`: [Unit] Before={starter}"),
            ));
        }
    }
    if findings.is_empty() {
        let starters: Vec<&str> = facts.starters.iter().map(|(name, _)| *name).collect();
        let before = if starters.is_empty() {
            "no unit that starts an apiserver is installed here".into()
        } else {
            format!("before {}", starters.join(", "))
        };
        findings.push(Finding::ok("boot.order", format!("keystead.service is enabled; {before}")));
    }
    findings
}

fn without_unit(facts: &Facts) -> Finding {
    let id = "boot.unit";
    if let Some(pod) = &facts.pod {
        let what = format!("started by the kubelet, from {pod}");
        let why = "a static pod needs a running container runtime and starts beside the apiserver, which waits for it meanwhile";
        return Finding::info(
            id,
            what,
            why,
            "nothing; a systemd unit starts before the kubelet: docs/runbooks/install.md",
        );
    }
    if facts.hidden {
        let what = "no unit keystead.service is installed, and the static pods are not open to this user";
        return Finding::unchecked(id, what, "run it as root");
    }
    let next = "`scripts/install` (docs/runbooks/install.md)";
    if facts.starters.is_empty() {
        return Finding::info(
            id,
            "neither a unit nor a static pod starts the daemon, nor is there a unit for an apiserver",
            "whoever starts it must do so after each boot",
            next,
        );
    }
    Finding::critical(id, "neither a unit nor a static pod starts the daemon", NO_SECRETS, next)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok, Warning};
    use super::*;

    const SERVICE: &str = include_str!("../../../packaging/systemd/keystead.service");
    const SOCKET: &str = include_str!("../../../packaging/systemd/keystead-kms.socket");

    fn unit(text: &str) -> Option<Unit> {
        Some(Unit { file: "/u".into(), texts: vec![text.into()], enabled: true, masked: false })
    }

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Severity)> {
        let starters = STARTERS[..4].iter().map(|name| (*name, Vec::new())).collect();
        let mut facts = Facts { service: unit(SERVICE), kms_socket: unit(SOCKET), starters, pod: None, hidden: false };
        change(&mut facts);
        judge(&facts).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn units_that_we_ship_come_before_every_apiserver_they_know() {
        assert_eq!(found(|_| {}), [("boot.order", Ok)]);
        assert_eq!(found(|facts| facts.kms_socket = None), [("boot.order", Ok)]);
        assert_eq!(found(|facts| facts.starters.clear()), [("boot.order", Ok)]);
    }

    #[test]
    fn apiserver_that_may_start_first_is_named() {
        let k0s = |after: &[&str]| {
            found(|facts| facts.starters = vec![(STARTERS[4], after.iter().map(ToString::to_string).collect())])
        };
        assert_eq!(k0s(&[]), [("boot.order", Warning)]);
        assert_eq!(k0s(&["network.target", "keystead.service"]), [("boot.order", Ok)]);
        let bare = |facts: &mut Facts| (facts.service, facts.kms_socket) = (unit("[Unit]\nBefore=k3s.service\n"), None);
        assert_eq!(found(bare), [("boot.order", Warning); 3]);
    }

    #[test]
    fn unit_that_is_not_started_at_boot_is_critical() {
        let disable = |facts: &mut Facts| {
            for unit in [&mut facts.service, &mut facts.kms_socket] {
                unit.as_mut().unwrap().enabled = false;
            }
        };
        assert_eq!(found(disable), [("boot.disabled", Critical)]);
        assert_eq!(
            found(|facts| facts.service.as_mut().unwrap().enabled = false),
            [("boot.order", Ok)],
            "its socket starts it"
        );
        assert_eq!(found(|facts| facts.service.as_mut().unwrap().masked = true), [("boot.disabled", Critical)]);
    }

    #[test]
    fn without_a_unit_it_depends_on_what_else_there_is() {
        let bare = |pod: Option<&str>, hidden, starters: bool| {
            found(|facts| {
                (facts.service, facts.pod, facts.hidden) = (None, pod.map(String::from), hidden);
                if !starters {
                    facts.starters.clear();
                }
            })
        };
        assert_eq!(bare(Some("/m/k.yaml"), false, true), [("boot.unit", Info)]);
        assert_eq!(bare(None, true, true), [("boot.unit", Info)]);
        assert_eq!(bare(None, false, false), [("boot.unit", Info)]);
        assert_eq!(bare(None, false, true), [("boot.unit", Critical)]);
    }
}
