//! What the server may reach besides its store in the cloud profile: TCP to a few ports, and the files that names, trust
//! and credentials come from. In the local profile there is none of this, and nothing opens.
//!
//! A file is opened by its folder where that holds nothing else of ours, so that one put in its place later is seen as
//! well; a folder with the PIN in it never is.

use std::path::{Path, PathBuf};

use crate::config::{CredentialSource, UpstreamTable};

/// For the sandbox to open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Egress {
    /// TCP ports that may be connected to, on any host: names resolve to other addresses every day.
    pub ports: Vec<u16>,
    /// Files and folders that may be read.
    pub readable: Vec<PathBuf>,
}

/// What the C library reads to resolve a name.
const RESOLVER: [&str; 6] =
    ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"];
/// Where distributions keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 9] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/var/lib/ca-certificates",
];
const HTTPS: u16 = 443;
/// Metadata services of all three clouds are plain HTTP on a link-local address.
const METADATA: u16 = 80;
/// Names whose answer does not fit a datagram. Datagrams are no business of Landlock's.
const DNS: u16 = 53;

impl Egress {
    /// `token_file` is what the platform puts a token into, if it does; `secret` what must stay closed: the PIN's file.
    pub fn of(table: &UpstreamTable, token_file: Option<&Path>, secret: Option<&Path>) -> Self {
        let mut ports = vec![DNS];
        match &table.proxy {
            Some(proxy) => ports.push(port(proxy, METADATA)),
            None => ports.push(table.endpoint.as_deref().map_or(HTTPS, |endpoint| port(endpoint, HTTPS))),
        }
        if table.proxy.is_some() && !table.no_proxy.is_empty() {
            ports.push(table.endpoint.as_deref().map_or(HTTPS, |endpoint| port(endpoint, HTTPS)));
        }
        if table.proxy.is_none() || !table.no_proxy.is_empty() {
            ports.push(table.token_endpoint.as_deref().map_or(HTTPS, |endpoint| port(endpoint, HTTPS)));
        }
        if table.credentials == CredentialSource::Metadata {
            ports.push(METADATA);
        }
        ports.sort_unstable();
        ports.dedup();
        let own = [table.ca_file.as_deref(), table.credentials_file.as_deref(), token_file].into_iter().flatten();
        let files = own.chain(RESOLVER.iter().map(Path::new));
        let mut readable: Vec<_> = files.flat_map(|file| places(file, secret)).collect();
        if table.ca_file.is_none() {
            let roots = SYSTEM_ROOTS.iter().map(PathBuf::from);
            readable.extend(roots.filter(|root| !secret.is_some_and(|secret| holds(root, secret))));
        }
        readable.sort_unstable();
        readable.dedup();
        Self { ports, readable }
    }
}

/// The port of `scheme://host[:port]`, which the configuration has checked.
fn port(address: &str, default: u16) -> u16 {
    let authority = address.rsplit('/').next().unwrap_or(address);
    let port =
        authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).and_then(|(_, port)| port.parse().ok());
    port.unwrap_or(default)
}

/// The folder that `path` names a file of, and the one that the file really is in: a link may lead there, and be turned to
/// another. The file alone, where its folder is shared: with the PIN, or with the whole system.
fn places(path: &Path, secret: Option<&Path>) -> Vec<PathBuf> {
    let file = real(path);
    let mut places: Vec<_> = path.parent().map(real).filter(|folder| is_ours(folder, secret)).into_iter().collect();
    if !places.iter().any(|folder| file.starts_with(folder)) {
        let folder = file.parent().filter(|folder| is_ours(folder, secret)).map(Path::to_owned);
        places.push(folder.unwrap_or(file));
    }
    places
}

/// Whether a folder may be opened whole.
fn is_ours(folder: &Path, secret: Option<&Path>) -> bool {
    const SHARED: [&str; 8] = ["/", "/etc", "/run", "/var/run", "/tmp", "/usr/lib", "/root", "/home"];
    !SHARED.iter().any(|shared| folder == Path::new(shared)) && !secret.is_some_and(|secret| holds(folder, secret))
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Whether `secret` lies in `folder`, by whatever name.
fn holds(folder: &Path, secret: &Path) -> bool {
    // Of a secret that is not there yet its folder counts.
    let secret = secret.canonicalize().unwrap_or_else(|_| match (secret.parent(), secret.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => secret.to_owned(),
    });
    secret.starts_with(real(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Site, Source};
    use std::fs;

    fn table(text: &str, folder: &Path) -> UpstreamTable {
        let head = "node = 'n'\n[upstream]\nkind = 'alibaba'\nkey = 'a'\nregion = 'b'\n";
        let source = Source::from_parts(Some(folder.join("config.toml")), format!("{head}{text}"));
        Settings::from_source(&source, &Site::this_machine()).unwrap().upstream.unwrap()
    }

    #[test]
    fn only_the_ports_that_are_needed_are_opened() {
        for (text, ports) in [
            ("", &[53, 443][..]),
            ("endpoint = 'https://[::1]:8443'", &[53, 443, 8443]),
            ("endpoint = 'https://a:8443'\ntoken_endpoint = 'https://b:8444'", &[53, 8443, 8444]),
            ("proxy = 'http://10.0.0.1:3128'", &[53, 3128]),
            ("proxy = 'http://10.0.0.1:3128'\nno_proxy = ['a']", &[53, 443, 3128]),
            ("credentials = 'metadata'", &[53, 80, 443]),
        ] {
            assert_eq!(Egress::of(&table(text, Path::new("/etc/keystead")), None, None).ports, ports, "{text}");
        }
    }

    #[test]
    fn folder_of_the_pin_is_never_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        fs::create_dir(at("cloud")).unwrap();
        fs::write(at("cloud/credentials"), "").unwrap();
        fs::write(at("ca.pem"), "").unwrap();
        fs::write(at("pin"), "").unwrap();
        let table = table("ca_file = 'ca.pem'\ncredentials_file = 'cloud/credentials'", folder.path());
        let readable = Egress::of(&table, None, Some(&at("pin"))).readable;
        assert!(readable.contains(&at("cloud")), "a file put there later is seen as well: {readable:?}");
        assert!(readable.contains(&at("ca.pem")) && !readable.contains(&at("")), "{readable:?}");
        // The PIN under another name of its folder.
        std::os::unix::fs::symlink(at("cloud"), at("link")).unwrap();
        let readable = Egress::of(&table, None, Some(&at("link/pin"))).readable;
        assert!(readable.contains(&at("cloud/credentials")) && !readable.contains(&at("cloud")), "{readable:?}");
    }

    /// As Kubernetes projects tokens: a link through a link, the middle one turned to a new folder at each refresh.
    #[test]
    fn token_that_a_platform_turns_a_link_to_is_seen_after_the_turn() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        fs::create_dir_all(at("tokens/..1")).unwrap();
        fs::write(at("tokens/..1/token"), "").unwrap();
        std::os::unix::fs::symlink("..1", at("tokens/..data")).unwrap();
        std::os::unix::fs::symlink("..data/token", at("tokens/token")).unwrap();
        let table = table("credentials = 'oidc'", folder.path());
        let readable = Egress::of(&table, Some(&at("tokens/token")), Some(&at("pin"))).readable;
        assert!(readable.contains(&at("tokens")), "{readable:?}");
        let readable = Egress::of(&table, Some(&at("tokens/token")), Some(&at("tokens/pin"))).readable;
        assert!(!readable.contains(&at("tokens")), "{readable:?}");
    }

    #[test]
    fn system_roots_are_opened_only_where_no_roots_are_pinned() {
        let with = Egress::of(&table("", Path::new("/etc/keystead")), None, None).readable;
        let without =
            Egress::of(&table("ca_file = '/nonexistent/a/ca.pem'", Path::new("/etc/keystead")), None, None).readable;
        assert!(with.contains(&"/etc/ssl/certs".into()) && !without.contains(&"/etc/ssl/certs".into()));
    }
}
