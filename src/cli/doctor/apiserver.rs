//! Finds kube-apiserver's EncryptionConfiguration on this node and how its pod sees the socket; [`super::encryption`] judges
//! the file.

use std::path::{Path, PathBuf};

use super::encryption::{self, Configuration, without_var};
use super::finding::Finding;
use super::look::{self, Look};
use super::pod::{self, Container, Mount};
use super::scene::Scene;
use super::unit::Unit;
use crate::config::Site;

/// The manifests of static apiservers: kubeadm's and rke2's.
const PODS: [&str; 2] =
    ["/etc/kubernetes/manifests/kube-apiserver.yaml", "/var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml"];
/// Configuration of distributions that run the apiserver in their own process, and drop-ins beside it.
const RANCHER: [&str; 2] = ["/etc/rancher/k3s", "/etc/rancher/rke2"];
/// Where such files lie if nothing names one.
const USUAL: [&str; 7] = [
    "/etc/kubernetes/enc/encryption-config.yaml",
    "/etc/kubernetes/enc/enc.yaml",
    "/etc/kubernetes/encryption-config.yaml",
    "/etc/kubernetes/pki/encryption-config.yaml",
    "/var/lib/rancher/k3s/server/cred/encryption-config.json",
    "/var/lib/rancher/rke2/server/cred/encryption-config.json",
    "/etc/microshift/encryption-config.yaml",
];
const FLAG: &str = "encryption-provider-config";

struct Facts<'a> {
    socket: &'a Path,
    manifests: Vec<Manifest>,
    configurations: Vec<Configuration>,
}

/// A manifest that is there.
struct Manifest {
    file: &'static str,
    /// `Ok(None)`: no apiserver is in it.
    apiserver: Look<Result<Option<Container>, String>>,
}

pub fn check(scene: &Scene<'_>) -> Vec<Finding> {
    let manifests = manifests(&scene.site);
    let configurations = configurations(scene, &manifests);
    judge(&Facts { socket: &scene.settings.kms.socket.path, manifests, configurations })
}

fn manifests(site: &Site) -> Vec<Manifest> {
    let read = |file| {
        let apiserver = match look::read(&site.path(file)) {
            Look::Found(text) => {
                let containers = pod::containers(&text);
                Look::Found(containers.map(|containers| containers.into_iter().find(Container::is_apiserver)))
            }
            Look::Missing => return None,
            Look::Forbidden => Look::Forbidden,
            Look::Failed(error) => Look::Failed(error),
        };
        Some(Manifest { file, apiserver })
    };
    PODS.into_iter().filter_map(read).collect()
}

fn configurations(scene: &Scene<'_>, manifests: &[Manifest]) -> Vec<Configuration> {
    let site = &scene.site;
    let read = |file: &Path, mounts: Vec<Mount>| {
        // Absolute paths are the node's; a relative one is the caller's.
        let at = file.to_str().filter(|_| file.is_absolute()).map_or_else(|| file.to_owned(), |file| site.path(file));
        Configuration { file: file.to_owned(), asked: false, mounts, text: look::read(&at) }
    };
    let mut found: Vec<Configuration> = Vec::new();
    for manifest in manifests {
        if let Look::Found(Ok(Some(container))) = &manifest.apiserver
            && let Some(inside) = container.flag(FLAG)
        {
            let host = Mount::to_host(&container.mounts, Path::new(inside)).unwrap_or_else(|| PathBuf::from(inside));
            found.push(read(&host, container.mounts.clone()));
        }
    }
    if let Some(asked) = scene.encryption_config {
        let mounts = found.first().map(|known| known.mounts.clone()).unwrap_or_default();
        // As the command line names it, not below the root.
        return vec![Configuration { file: asked.to_owned(), asked: true, mounts, text: look::read(asked) }];
    }
    for named in named_by_host(site) {
        if !found.iter().any(|known| known.file == named) {
            found.push(Configuration { asked: true, ..read(&named, Vec::new()) });
        }
    }
    if found.is_empty() {
        let usual = USUAL.into_iter().map(|file| read(Path::new(file), Vec::new()));
        found.extend(usual.filter(|configuration| configuration.text != Look::Missing));
    }
    found
}

/// What k3s and rke2 pass on to their apiserver: `kube-apiserver-arg` in their configuration, or in the unit's command.
fn named_by_host(site: &Site) -> Vec<PathBuf> {
    let mut texts = Vec::new();
    for folder in RANCHER.map(|folder| site.path(folder)) {
        texts.push(folder.join("config.yaml"));
        let drop_ins = look::names(&folder.join("config.yaml.d"));
        texts.extend(
            drop_ins
                .into_iter()
                .filter(|name| name.ends_with(".yaml"))
                .map(|name| folder.join("config.yaml.d").join(name)),
        );
    }
    let texts = texts.iter().filter_map(|file| look::read(file).found().cloned());
    let units = ["k3s.service", "rke2-server.service"]
        .into_iter()
        .filter_map(|name| Unit::find(site, name))
        .flat_map(|unit| unit.texts);
    let mut named = Vec::new();
    for text in texts.chain(units) {
        // Enough for both: the flag stands in one word with its value, in quotes or not.
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words =
            lines.flat_map(|line| line.split(|letter: char| letter.is_whitespace() || "\"'[],".contains(letter)));
        for word in words {
            if let Some((_, path)) = word.split_once(&format!("{FLAG}=")).filter(|(_, path)| path.starts_with('/'))
                && !named.contains(&PathBuf::from(path))
            {
                named.push(PathBuf::from(path));
            }
        }
    }
    named
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Manifest { file, apiserver } in &facts.manifests {
        match apiserver {
            Look::Found(Ok(Some(container))) => findings.extend(judge_pod(facts, file, container)),
            Look::Found(Ok(None)) => {}
            Look::Found(Err(error)) => {
                let what = format!("{file} is not YAML that can be read: {error}");
                findings.push(Finding::warning(
                    "apiserver.pod",
                    what,
                    "the kubelet ignores a manifest that it cannot read",
                    "mend that line",
                ));
            }
            Look::Missing | Look::Forbidden | Look::Failed(_) => {
                findings.push(Finding::unchecked(
                    "apiserver.pod",
                    format!("{file} is not open to this user"),
                    "run it as root",
                ));
            }
        }
    }
    for configuration in &facts.configurations {
        findings.extend(encryption::judge(configuration, facts.socket));
    }
    if findings.is_empty() {
        let next = "name it with --encryption-config, or see packaging/static-pod/encryption-config.yaml for one to start from";
        findings.push(Finding::unchecked("apiserver.none", "no EncryptionConfiguration was found on this node", next));
    }
    findings
}

fn judge_pod(facts: &Facts<'_>, file: &str, container: &Container) -> Vec<Finding> {
    if container.flag(FLAG).is_none() {
        let why = "kube-apiserver then writes Secrets to etcd unencrypted, or by another configuration";
        let what = format!("{file}: kube-apiserver is started without --{FLAG}");
        return vec![Finding::warning(
            "apiserver.flag",
            what,
            why,
            "see packaging/static-pod/kube-apiserver-patch.yaml",
        )];
    }
    let host = |mount: &Mount| without_var(&mount.host);
    let socket = without_var(facts.socket);
    let Some(mount) = container.mounts.iter().find(|mount| socket.starts_with(host(mount))) else {
        let what = format!("{file}: no hostPath brings {} into the apiserver's pod", facts.socket.display());
        let next = "mount the socket's folder: packaging/static-pod/kube-apiserver-patch.yaml";
        return vec![Finding::critical(
            "apiserver.mount",
            what,
            "the apiserver cannot reach the key service and does not start",
            next,
        )];
    };
    if host(mount) == socket {
        let what = format!("{file}: the socket itself is mounted, not its folder");
        let why = "a mounted file stays the old one when the socket is made anew: the apiserver then talks to nobody until it restarts";
        return vec![Finding::warning(
            "apiserver.mount",
            what,
            why,
            "mount the socket's folder: packaging/static-pod/kube-apiserver-patch.yaml",
        )];
    }
    vec![Finding::ok("apiserver.mount", format!("{file} mounts the socket's folder"))]
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Critical, Info, Ok, Warning};
    use super::*;
    use crate::config::{Settings, Source};

    const CONFIG: &str = include_str!("../../../packaging/static-pod/encryption-config.yaml");
    const PATCH: &str = include_str!("../../../packaging/static-pod/kube-apiserver-patch.yaml");

    /// A node of which only these files exist.
    fn found(files: &[(&str, &str)]) -> Vec<(&'static str, Severity)> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let source = Source::from_parts(None, "node = 'n'\n".into());
        let site = Site { root: folder.path().to_owned(), uid: 0, credentials: None };
        let settings = Settings::from_source(&source, &site).unwrap();
        let scene = Scene::of(&settings, None, None, site);
        check(&scene).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    const FINE: (&str, Severity) = ("apiserver.configuration", Ok);

    #[test]
    fn kubeadm_is_followed_from_its_manifest() {
        let config = ("/etc/kubernetes/enc/encryption-config.yaml", CONFIG);
        let pod = |text| ("/etc/kubernetes/manifests/kube-apiserver.yaml", text);
        assert_eq!(found(&[config, pod(PATCH)]), [("apiserver.mount", Ok), FINE]);
        assert_eq!(found(&[pod(PATCH)]), [("apiserver.mount", Ok), ("apiserver.missing", Critical)]);
        let elsewhere = PATCH.replace("path: /etc/kubernetes/enc", "path: /srv/enc");
        assert_eq!(found(&[("/srv/enc/encryption-config.yaml", CONFIG), pod(&elsewhere)])[1], FINE);
        let file = PATCH
            .replace("path: /run/keystead", "path: /run/keystead/kms.sock")
            .replace("mountPath: /run/keystead", "mountPath: /run/keystead/kms.sock");
        assert_eq!(found(&[config, pod(&file)]), [("apiserver.mount", Warning), FINE]);
        let none = PATCH.replace("path: /run/keystead", "path: /run/other");
        assert_eq!(found(&[config, pod(&none)])[0], ("apiserver.mount", Critical));
        let flagless = PATCH.replace("--encryption-provider-config", "--other");
        assert_eq!(found(&[pod(&flagless)]), [("apiserver.flag", Warning)]);
        assert_eq!(found(&[pod("a: [")]), [("apiserver.pod", Warning)]);
    }

    #[test]
    fn k3s_and_rke2_are_followed_from_their_configuration() {
        let named = "kube-apiserver-arg:\n  - \"encryption-provider-config=/srv/e.yaml\"\n  - a=b\n";
        for file in ["/etc/rancher/k3s/config.yaml", "/etc/rancher/rke2/config.yaml.d/10.yaml"] {
            assert_eq!(found(&[(file, named), ("/srv/e.yaml", CONFIG)]), [FINE], "{file}");
        }
        assert_eq!(found(&[("/etc/rancher/k3s/config.yaml", named)]), [("apiserver.missing", Critical)]);
        let unit = "[Service]\nExecStart=/usr/local/bin/k3s \\\n    server \\\n    '--kube-apiserver-arg=encryption-provider-config=/srv/e.yaml' \\\n";
        assert_eq!(found(&[("/etc/systemd/system/k3s.service", unit), ("/srv/e.yaml", CONFIG)]), [FINE]);
        let own = r#"{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"aescbc":{"keys":[]}},{"identity":{}}]}]}"#;
        assert_eq!(
            found(&[("/var/lib/rancher/k3s/server/cred/encryption-config.json", own)]),
            [("apiserver.no-kms", Warning)]
        );
    }

    #[test]
    fn node_without_any_says_so() {
        assert_eq!(found(&[]), [("apiserver.none", Info)]);
        assert_eq!(found(&[("/etc/microshift/encryption-config.yaml", CONFIG)]), [FINE]);
    }
}
