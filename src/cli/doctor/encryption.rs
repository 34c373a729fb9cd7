//! EncryptionConfiguration: does it make kube-apiserver encrypt Secrets with this daemon? Pure: text in, findings out.
//!
//! Source: kubernetes.io, kube-apiserver Encryption Configuration (v1); k8s.io/apiserver, apis/apiserver/validation.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::look::Look;
use super::pod::Mount;
use super::yaml::Yaml;

const API_VERSION: &str = "apiserver.config.k8s.io/v1";
const FALLS_BACK: &str = "kube-apiserver refuses the configuration and does not start, or goes on with the one it had";
const ELSEWHERE: &str = "Secrets are then not encrypted with the key that this daemon keeps";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub file: PathBuf,
    /// Named on our command line: it must be there.
    pub asked: bool,
    /// Of the pod whose apiserver reads it; empty if that runs on the host.
    pub mounts: Vec<Mount>,
    pub text: Look<String>,
}

/// Judges one file against the daemon's socket.
pub fn judge(configuration: &Configuration, socket: &Path) -> Vec<Finding> {
    let file = configuration.file.display();
    let text = match &configuration.text {
        Look::Found(text) => text,
        Look::Missing if configuration.asked || !configuration.mounts.is_empty() => {
            let next = "name the file that kube-apiserver's --encryption-provider-config names";
            return vec![Finding::critical("apiserver.missing", format!("{file} does not exist"), FALLS_BACK, next)];
        }
        Look::Missing => {
            let next = "name the file with --encryption-config";
            return vec![Finding::unchecked("apiserver.missing", format!("{file} is not on this node"), next)];
        }
        Look::Forbidden => {
            return vec![Finding::unchecked(
                "apiserver.unreadable",
                format!("{file} is not open to this user"),
                "run it as root",
            )];
        }
        Look::Failed(error) => {
            return vec![Finding::unchecked("apiserver.unreadable", format!("{file}: {error}"), "mend the file")];
        }
    };
    let yaml = match Yaml::documents(text) {
        Ok(mut documents) if documents.len() == 1 => documents.remove(0),
        Ok(documents) => {
            let what = format!("{file} holds {} YAML documents, not one", documents.len());
            return vec![Finding::critical(
                "apiserver.malformed",
                what,
                FALLS_BACK,
                "write one EncryptionConfiguration",
            )];
        }
        Err(error) => {
            let what = format!("{file} is not YAML that can be read: {error}");
            return vec![Finding::critical("apiserver.malformed", what, FALLS_BACK, "mend that line")];
        }
    };
    Judge { file: file.to_string(), socket, mounts: &configuration.mounts, findings: Vec::new() }.judge(&yaml)
}

struct Judge<'a> {
    file: String,
    socket: &'a Path,
    mounts: &'a [Mount],
    findings: Vec<Finding>,
}

impl Judge<'_> {
    fn critical(&mut self, id: &'static str, what: impl std::fmt::Display, why: &'static str, next: impl Into<String>) {
        self.findings.push(Finding::critical(id, format!("{}: {what}", self.file), why, next));
    }

    fn warning(&mut self, id: &'static str, what: impl std::fmt::Display, why: &'static str, next: impl Into<String>) {
        self.findings.push(Finding::warning(id, format!("{}: {what}", self.file), why, next));
    }

    fn judge(mut self, yaml: &Yaml) -> Vec<Finding> {
        let (kind, version) = (yaml.text_of("kind"), yaml.text_of("apiVersion"));
        if kind != "EncryptionConfiguration" || version != API_VERSION {
            let what = format!("it is kind {kind:?} of apiVersion {version:?}");
            self.critical(
                "apiserver.kind",
                what,
                FALLS_BACK,
                format!("write `kind: EncryptionConfiguration`, `apiVersion: {API_VERSION}`"),
            );
            return self.findings;
        }
        let entries = yaml.items_of("resources");
        let providers: Vec<&Yaml> = entries.iter().flat_map(|entry| entry.items_of("providers")).collect();
        let kms: Vec<&Yaml> = providers.iter().filter_map(|provider| provider.get("kms")).collect();
        let ours: Vec<&Yaml> = kms.iter().copied().filter(|kms| self.is_ours(kms)).collect();
        if ours.is_empty() {
            self.none_is_ours(&kms);
            return self.findings;
        }
        for provider in &ours {
            self.provider(provider);
        }
        self.names(entries);
        self.secrets(entries);
        if self.findings.is_empty() {
            let name = ours.first().map(|kms| kms.text_of("name")).unwrap_or_default();
            let what = format!("{}: Secrets are encrypted by provider {name:?} at our socket", self.file);
            self.findings.push(Finding::ok("apiserver.configuration", what));
        }
        self.findings
    }

    /// Endpoint → path on this host, as the apiserver's mounts have it.
    fn host_path(&self, kms: &Yaml) -> Option<PathBuf> {
        let inside = kms.text_of("endpoint").strip_prefix("unix://").filter(|path| path.starts_with('/'))?;
        let host = Mount::to_host(self.mounts, Path::new(inside)).unwrap_or_else(|| PathBuf::from(inside));
        Some(without_var(&host))
    }

    fn is_ours(&self, kms: &Yaml) -> bool {
        self.host_path(kms) == Some(without_var(self.socket))
    }

    fn none_is_ours(&mut self, kms: &[&Yaml]) {
        let socket = self.socket.display().to_string();
        if kms.is_empty() {
            let next = "put a kms provider first, as in packaging/static-pod/encryption-config.yaml";
            self.warning("apiserver.no-kms", "it has no kms provider", ELSEWHERE, next);
        }
        for provider in kms {
            let (name, endpoint) = (provider.text_of("name"), provider.text_of("endpoint"));
            let what = if endpoint.starts_with("unix:///") {
                format!("provider {name:?} speaks to {endpoint}, and this daemon listens at {socket}")
            } else {
                format!("the endpoint {endpoint:?} of provider {name:?} is not unix:// and an absolute path")
            };
            self.critical(
                "apiserver.endpoint",
                what,
                ELSEWHERE,
                format!("write `endpoint: unix://{socket}`, or name this daemon's config with --config"),
            );
        }
    }

    fn provider(&mut self, kms: &Yaml) {
        let name = kms.text_of("name");
        match kms.text_of("apiVersion") {
            "v2" => {}
            "" => self.critical(
                "apiserver.version",
                format!("provider {name:?} does not say apiVersion: v2"),
                "the default is v1, which is switched off in today's apiservers and which Keystead does not speak",
                "write `apiVersion: v2`",
            ),
            other => self.critical(
                "apiserver.version",
                format!("provider {name:?} says apiVersion: {other}"),
                "Keystead speaks KMS v2 only",
                "write `apiVersion: v2`",
            ),
        }
        if name.is_empty() || name.contains(':') {
            let why = "the name is part of the prefix of every stored Secret, where a colon ends it: the apiserver refuses it";
            self.critical(
                "apiserver.name",
                format!("a kms provider is named {name:?}"),
                why,
                "choose a name without a colon, once and for all",
            );
        }
        if kms.get("cachesize").is_some() {
            self.critical(
                "apiserver.cachesize",
                format!("provider {name:?} sets cachesize"),
                FALLS_BACK,
                "remove it: KMS v2 has no such cache",
            );
        }
        match kms.get("timeout").map(|timeout| (timeout.text().unwrap_or_default(), timeout.text().and_then(seconds))) {
            // 3 s is the default.
            None => {}
            Some((text, None)) => self.critical(
                "apiserver.timeout",
                format!("timeout {text:?} is no duration"),
                FALLS_BACK,
                "write `timeout: 3s`",
            ),
            Some((text, Some(seconds))) if seconds <= 0.0 => {
                self.critical(
                    "apiserver.timeout",
                    format!("timeout {text:?} is not positive"),
                    FALLS_BACK,
                    "write `timeout: 3s`",
                );
            }
            Some((text, Some(seconds))) if seconds < 1.0 => self.warning(
                "apiserver.timeout",
                format!("timeout {text} is short"),
                "a generation that is not in memory yet takes a round trip to the token, and so does not open in time",
                "write `timeout: 3s`",
            ),
            Some((text, Some(seconds))) if seconds > 30.0 => self.warning(
                "apiserver.timeout",
                format!("timeout {text} is long"),
                "each request for a Secret hangs that long if the daemon does",
                "write `timeout: 3s`",
            ),
            Some(_) => {}
        }
    }

    /// The name decides which provider opens what; the apiserver wants each once.
    fn names(&mut self, entries: &[Yaml]) {
        for entry in entries {
            let mut seen = Vec::new();
            for kms in entry.items_of("providers").iter().filter_map(|provider| provider.get("kms")) {
                let name = kms.text_of("name");
                if seen.contains(&name) {
                    self.critical(
                        "apiserver.name",
                        format!("two kms providers are named {name:?}"),
                        FALLS_BACK,
                        "give each its own name",
                    );
                }
                seen.push(name);
            }
        }
    }

    /// Of the entries that cover Secrets the first counts; of its providers the first writes.
    fn secrets(&mut self, entries: &[Yaml]) {
        let covers = |entry: &&Yaml| {
            let names = entry.items_of("resources").iter().filter_map(Yaml::text);
            names.into_iter().any(|name| matches!(name, "secrets" | "*." | "*.*"))
        };
        let Some(entry) = entries.iter().find(covers) else {
            self.warning(
                "apiserver.no-secrets",
                "no entry is for secrets",
                ELSEWHERE,
                "add `secrets` to the resources of the entry",
            );
            return;
        };
        let providers = entry.items_of("providers");
        let is_ours = |provider: &Yaml| provider.get("kms").is_some_and(|kms| self.is_ours(kms));
        let ours = providers.iter().position(is_ours);
        let identity = providers.iter().position(|provider| provider.get("identity").is_some());
        match (ours, identity) {
            (None, _) => self.warning(
                "apiserver.order",
                "the first entry for secrets does not name our socket",
                ELSEWHERE,
                "put the kms provider into that entry",
            ),
            (_, Some(0)) => self.critical(
                "apiserver.identity",
                "identity is the first provider for secrets",
                "the first provider writes: new Secrets go to etcd unencrypted",
                "move `identity: {}` to the end",
            ),
            (Some(ours), _) if ours > 0 => self.warning(
                "apiserver.order",
                "another provider stands before ours for secrets",
                "the first provider writes; the others only read what is there",
                "put our kms provider first when every master can read it",
            ),
            (_, Some(identity)) if identity + 1 < providers.len() => self.warning(
                "apiserver.identity",
                "identity stands before other providers for secrets",
                "it reads what no provider's prefix claims; what comes after it is easily taken for the writer",
                "move `identity: {}` to the end",
            ),
            _ => {}
        }
    }
}

/// /var/run is a link to /run on every system in use.
pub fn without_var(path: &Path) -> PathBuf {
    path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest))
}

/// A Go duration, as `1m30s`, `500ms`, `2.5s`.
fn seconds(text: &str) -> Option<f64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0.0);
    }
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * factor;
        rest = &rest[unit..];
    }
    Some(if negative { -total } else { total })
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Severity, worst};
    use super::*;

    const SOCKET: &str = "/run/keystead/kms.sock";
    const GOOD: &str = include_str!("../../../packaging/static-pod/encryption-config.yaml");

    fn found(text: &str) -> Vec<Finding> {
        let configuration =
            Configuration { file: "/e.yaml".into(), asked: true, mounts: Vec::new(), text: Look::Found(text.into()) };
        judge(&configuration, Path::new(SOCKET))
    }

    fn ids(text: &str) -> Vec<(&'static str, Severity)> {
        found(text).into_iter().map(|finding| (finding.id, finding.severity)).collect()
    }

    #[test]
    fn the_configuration_that_we_ship_is_fine() {
        assert_eq!(ids(GOOD), [("apiserver.configuration", Severity::Ok)]);
        let var_run = GOOD.replace("/run/keystead", "/var/run/keystead");
        assert_eq!(worst(&found(&var_run)), Severity::Ok);
    }

    #[test]
    fn each_mistake_is_named_alone() {
        use Severity::{Critical, Warning};
        let entry = |providers: &str| {
            format!(
                "kind: EncryptionConfiguration\napiVersion: {API_VERSION}\nresources:\n- resources: [secrets]\n  providers: [{providers}]\n"
            )
        };
        let ours = "{kms: {apiVersion: v2, name: keystead, endpoint: 'unix:///run/keystead/kms.sock'}}";
        let cases = [
            (GOOD.replace("apiVersion: v2\n", "apiVersion: v1\n"), "apiserver.version", Critical),
            (GOOD.replace("          apiVersion: v2\n", ""), "apiserver.version", Critical),
            (GOOD.replace("name: keystead", "name: 'key:stead'"), "apiserver.name", Critical),
            (GOOD.replace("name: keystead", "name: ''"), "apiserver.name", Critical),
            (GOOD.replace("unix:///run/keystead/kms.sock", "unix:///run/other.sock"), "apiserver.endpoint", Critical),
            (GOOD.replace("unix:///run/keystead/kms.sock", "unix:///@keystead"), "apiserver.endpoint", Critical),
            (GOOD.replace("unix:///run/keystead/kms.sock", "/run/keystead/kms.sock"), "apiserver.endpoint", Critical),
            (GOOD.replace("unix:///run/keystead/kms.sock", "tcp://10.0.0.1:99"), "apiserver.endpoint", Critical),
            (GOOD.replace("timeout: 3s", "timeout: 3"), "apiserver.timeout", Critical),
            (GOOD.replace("timeout: 3s", "timeout: soon"), "apiserver.timeout", Critical),
            (GOOD.replace("timeout: 3s", "timeout: 0s"), "apiserver.timeout", Critical),
            (GOOD.replace("timeout: 3s", "timeout: -3s"), "apiserver.timeout", Critical),
            (GOOD.replace("timeout: 3s", "timeout: [3s]"), "apiserver.timeout", Critical),
            (GOOD.replace("timeout: 3s", "timeout: 100ms"), "apiserver.timeout", Warning),
            (GOOD.replace("timeout: 3s", "timeout: 1m30s"), "apiserver.timeout", Warning),
            (GOOD.replace("timeout: 3s", "cachesize: 1000"), "apiserver.cachesize", Critical),
            (GOOD.replace("[secrets]", "[configmaps]"), "apiserver.no-secrets", Warning),
            (GOOD.replace("kind: Enc", "kind: Dec"), "apiserver.kind", Critical),
            (GOOD.replace("k8s.io/v1", "k8s.io/v1beta1"), "apiserver.kind", Critical),
            (entry(&format!("{{identity: {{}}}}, {ours}")), "apiserver.identity", Critical),
            (entry(&format!("{ours}, {{identity: {{}}}}, {{aescbc: {{}}}}")), "apiserver.identity", Warning),
            (entry(&format!("{{aescbc: {{}}}}, {ours}")), "apiserver.order", Warning),
            (entry(&format!("{ours}, {ours}")), "apiserver.name", Critical),
            (entry("{aescbc: {}}"), "apiserver.no-kms", Warning),
            (
                entry(&format!("{{identity: {{}}}}]\n- resources: [secrets]\n  providers: [{ours}")),
                "apiserver.order",
                Warning,
            ),
            (String::new(), "apiserver.malformed", Critical),
            (format!("{GOOD}---\n{GOOD}"), "apiserver.malformed", Critical),
            (GOOD.replace("- kms:", "\t- kms:"), "apiserver.malformed", Critical),
            ("just text".into(), "apiserver.kind", Critical),
            ("[]".into(), "apiserver.kind", Critical),
        ];
        for (text, id, severity) in cases {
            assert_eq!(ids(&text), [(id, severity)], "{text}");
        }
    }

    #[test]
    fn endpoint_inside_a_pod_is_followed_to_the_host() {
        let mounts = vec![Mount { inside: "/kms".into(), host: "/run/keystead".into() }];
        let text = Look::Found(GOOD.replace("/run/keystead/kms.sock", "/kms/kms.sock"));
        let configuration = Configuration { file: "/e.yaml".into(), asked: false, mounts, text };
        assert_eq!(worst(&judge(&configuration, Path::new(SOCKET))), Severity::Ok);
        assert_eq!(judge(&configuration, Path::new("/run/other.sock"))[0].id, "apiserver.endpoint");
    }

    #[test]
    fn file_that_cannot_be_read_is_said_to_be_unchecked() {
        let configuration = |text| Configuration { file: "/e.yaml".into(), asked: true, mounts: Vec::new(), text };
        let finding = judge(&configuration(Look::Forbidden), Path::new(SOCKET)).remove(0);
        assert!(!finding.checked && finding.severity == Severity::Info && finding.next.contains("root"), "{finding:?}");
        assert_eq!(judge(&configuration(Look::Missing), Path::new(SOCKET))[0].severity, Severity::Critical);
    }

    #[test]
    fn go_durations_are_read_as_go_does() {
        for (text, expected) in
            [("3s", 3.0), ("500ms", 0.5), ("1m30s", 90.0), ("1.5h", 5400.0), ("-2s", -2.0), ("0", 0.0)]
        {
            assert!((seconds(text).unwrap() - expected).abs() < 1e-9, "{text}");
        }
        for bad in ["", "3", "s", "3 s", "3x", "1.2.3s", "-", "3s4"] {
            assert_eq!(seconds(bad), None, "{bad:?}");
        }
    }
}
