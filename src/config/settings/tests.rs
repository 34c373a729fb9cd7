//! The whole way from text to settings: defaults, resolution, and every way to be wrong, with its place and remedy.

use super::*;
use crate::config::Fault;
use crate::custody::settings::{MechanismChoice, PinSource, TokenSelector};
use rustix::process::Gid;
use std::fs;

struct Machine {
    _root: tempfile::TempDir,
    site: Site,
}

fn machine() -> Machine {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    fs::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nkube:x:950:950::/:/bin/false\n").unwrap();
    fs::write(root.path().join("etc/group"), "root:x:0:\nkms:x:998:\nkeystead:x:997:\n").unwrap();
    let site = Site { root: root.path().to_owned(), uid: 500, credentials: None };
    Machine { _root: root, site }
}

fn read(text: &str) -> Result<Settings, ConfigError> {
    let source = Source::from_parts(Some("/etc/keystead/config.toml".into()), text.into());
    Settings::from_source(&source, &machine().site)
}

fn fault(text: &str) -> Fault {
    match read(text) {
        Err(ConfigError::Invalid(fault)) => *fault,
        other => panic!("{text:?} gave {other:?}"),
    }
}

#[test]
fn defaults_are_those_of_an_air_gapped_softhsm_site() {
    let settings = Settings::from_source(&Source::defaults(), &machine().site).unwrap();
    assert_eq!(settings.keyring.as_str(), "default");
    assert_eq!(settings.node.as_str().len(), 32);
    assert_eq!(settings.custody.module, Path::new("/usr/lib/softhsm/libsofthsm2.so"));
    assert_eq!(settings.custody.token, TokenSelector::Label("keystead".into()));
    assert_eq!(settings.custody.pin, PinSource::File("/etc/keystead/pin".into()));
    assert_eq!(settings.store.path, Path::new("/var/lib/keystead"));
    assert_eq!(settings.kms.socket.path, Path::new("/run/keystead/kms.sock"));
    assert_eq!(settings.kms.socket.mode, 0o600);
    assert_eq!(settings.kms.peers.uids, [500, 0]);
    assert_eq!(settings.admin.peers.uids, [500]);
    assert_eq!(settings.kms.max_plaintext, 4096);
    assert_eq!(settings.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    assert!(settings.sandbox.landlock && settings.sandbox.seccomp);
}

#[test]
fn users_of_the_processes_bring_their_folder_and_their_peers() {
    let settings = read("[process]\nserver_user = 'kube'\ncustodian_user = 997\n[store]\npath = '/s'").unwrap();
    let users = settings.users.unwrap();
    assert_eq!([users.server.uid, users.server.gid, users.custodian.uid], [950, 950, 997]);
    assert_eq!(settings.custody.latch_folder, Path::new("/s-custodian"));
    let settings = read("[process]\nserver_user = 1\ncustodian_user = 2\n[custody]\nstate_path = '/n'").unwrap();
    assert_eq!(settings.custody.latch_folder, Path::new("/n"));
    // The supervisor runs as the custodian's user, as under systemd: vendor code is no administrator.
    let settings = read("[process]\nserver_user = 1\ncustodian_user = 500").unwrap();
    assert_eq!((settings.kms.peers.uids, settings.admin.peers.uids), (vec![0], vec![0]));
}

#[test]
fn users_that_keep_nothing_apart_are_refused() {
    for (text, word) in [
        ("server_user = 1", "one process only"),
        ("custodian_user = 1", "one process only"),
        ("server_user = 1\ncustodian_user = 1", "server's user, too"),
        ("server_user = 950\ncustodian_user = 'kube'", "server's user, too"),
        ("server_user = 0\ncustodian_user = 1", "is root"),
        ("server_user = 1\ncustodian_user = 'root'", "is root"),
        ("server_user = 'nobody-here'\ncustodian_user = 1", "no local user"),
    ] {
        let fault = fault(&format!("[process]\n{text}"));
        assert!(fault.to_string().contains(word), "{text}: {fault}");
    }
}

#[test]
fn softhsm_is_found_where_the_distribution_put_it() {
    let machine = machine();
    let place = "/usr/lib64/pkcs11/libsofthsm2.so";
    fs::create_dir_all(machine.site.path("/usr/lib64/pkcs11")).unwrap();
    fs::write(machine.site.path(place), "").unwrap();
    let settings = Settings::from_source(&Source::defaults(), &machine.site).unwrap();
    assert_eq!(settings.custody.module, Path::new(place));
}

#[test]
fn every_key_is_taken_over() {
    let settings = read(
        r#"
        keyring = "site-7"
        node = "edge-1"
        [custody]
        kind = "pkcs11"
        module = "../modules/hsm.so"
        token_serial = "4d3a9f"
        pin_credential = "keystead-pin"
        mechanism = "rsa-oaep"
        sessions = 4
        queue = 128
        timeout = "1500ms"
        environment = { SOFTHSM2_CONF = "/etc/softhsm2.conf" }
        [store]
        path = "state"
        [kms]
        socket = "/run/a.sock"
        mode = "0660"
        group = "kms"
        allow_uids = [0, "kube"]
        allow_gids = ["kms"]
        max_connections = 8
        max_plaintext = "1KiB"
        drain_timeout = "1m"
        [admin]
        socket = "/run/b.sock"
        mode = "0640"
        group = 997
        allow_uids = []
        allow_gids = ["keystead"]
        [metrics]
        listen = "[::1]:9000"
        [log]
        level = "debug"
        format = "json"
        [sandbox]
        landlock = false
        seccomp = false
        "#,
    )
    .unwrap();
    assert_eq!(settings.keyring.as_str(), "site-7");
    assert_eq!(settings.custody.module, Path::new("/etc/keystead/../modules/hsm.so"));
    assert_eq!(settings.custody.token, TokenSelector::Serial("4d3a9f".into()));
    assert_eq!(settings.custody.pin, PinSource::Credential("keystead-pin".into()));
    assert_eq!(settings.custody.mechanism, MechanismChoice::RsaOaep);
    assert_eq!((settings.custody.sessions, settings.custody.queue), (4, 128));
    assert_eq!(settings.custody.timeout, Duration::from_millis(1500));
    assert_eq!(settings.custody.environment["SOFTHSM2_CONF"], "/etc/softhsm2.conf");
    assert_eq!(settings.store.path, Path::new("/etc/keystead/state"));
    assert_eq!(settings.kms.socket.group, Some(Gid::from_raw(998)));
    assert_eq!(settings.kms.peers.uids, [0, 950]);
    assert_eq!(settings.kms.peers.gids, [998]);
    assert_eq!(settings.kms.max_plaintext, 1024);
    assert_eq!(settings.kms.drain_timeout, Duration::from_secs(60));
    assert_eq!(settings.admin.socket.group, Some(Gid::from_raw(997)));
    assert!(settings.admin.peers.uids.is_empty());
    assert_eq!(settings.metrics, Some("[::1]:9000".parse().unwrap()));
    assert!(!settings.sandbox.landlock && !settings.sandbox.seccomp);
    assert_eq!(read("[metrics]\nlisten = 'off'").unwrap().metrics, None);
}

#[test]
fn unknown_key_is_refused_with_its_place_and_the_likely_one() {
    let fault = fault("keyring = 'a'\n\n[kms]\nsocket = '/run/a'\n  max_conections = 8\n");
    assert_eq!((fault.line, fault.column), (5, 3));
    assert_eq!(fault.key, "kms.max_conections");
    assert_eq!(fault.help.as_deref(), Some("did you mean `max_connections`?"));
    assert_eq!(
        fault.to_string(),
        "/etc/keystead/config.toml:5:3: kms.max_conections: unknown key (did you mean `max_connections`?)"
    );
}

#[test]
fn unknown_keys_are_refused_wherever_they_stand() {
    for (text, line, key) in [
        ("keyrng = 'a'", 1, "keyrng"),
        ("[kmss]\nsocket = '/a'", 1, "kmss"),
        ("kms.soket = '/a'", 1, "kms.soket"),
        ("kms = { socket = '/a', colour = 1 }", 1, "kms.colour"),
        ("\n[custody]\npin = '1234'", 3, "custody.pin"),
        ("[kms.socket]\npath = '/a'", 1, "kms.socket"),
    ] {
        let fault = fault(text);
        assert_eq!((fault.line, fault.key.as_str()), (line, key), "{fault}");
    }
}

#[test]
fn pin_in_the_file_is_refused_without_repeating_it() {
    let fault = fault("[custody]\npin = '31415926'").to_string();
    assert!(fault.contains("never holds a PIN") && !fault.contains("31415926"), "{fault}");
}

#[test]
fn values_out_of_their_bounds_are_refused_with_key_and_bounds() {
    for name in ["auto", "aes-gcm", "ecdh-p256", "rsa-oaep"] {
        read(&format!("[custody]\nmechanism = '{name}'")).unwrap();
    }
    for (text, key, said) in [
        ("keyring = 'Has Caps'", "keyring", "may hold only a-z"),
        ("node = ''", "node", "1 to 64"),
        ("[custody]\nkind = 'tpm2'", "custody.kind", "unknown value \"tpm2\""),
        ("[custody]\nmechanism = 'aesgcm'", "custody.mechanism", "did you mean `aes-gcm`?"),
        ("[custody]\nsessions = 0", "custody.sessions", "between 1 and 64"),
        ("[custody]\nsessions = -1", "custody.sessions", "between 1 and 64"),
        ("[custody]\nsessions = '2'", "custody.sessions", "invalid type"),
        ("[custody]\nqueue = 100000", "custody.queue", "between 1 and 65536"),
        ("[custody]\ntimeout = 5", "custody.timeout", "needs a unit, as \"10s\""),
        ("[custody]\ntimeout = 1.5", "custody.timeout", "needs a unit"),
        ("[custody]\ntimeout = -5", "custody.timeout", "negative"),
        ("[custody]\ntimeout = '0s'", "custody.timeout", "between 100ms and 5m"),
        ("[custody]\ntoken_label = ''", "custody.token_label", "1 to 32"),
        ("[custody]\ntoken_label = 'a'\ntoken_serial = 'b'", "custody.token_serial", "either token_label or"),
        ("[custody]\npin_file = 'a'\npin_credential = 'b'", "custody.pin_credential", "either pin_file or"),
        ("[custody]\npin_credential = '../b'", "custody.pin_credential", "not the name"),
        ("[custody]\nmodule = ''", "custody.module", "not a path"),
        ("[custody]\nenvironment = { 'A=B' = '1' }", "custody.environment", "environment variable"),
        ("[custody]\nenvironment = { A = 1 }", "custody.environment.A", "invalid type"),
        ("[kms]\nmode = '0999'", "kms.mode", "octal"),
        ("[kms]\nmode = 600", "kms.mode", "octal"),
        ("[kms]\nmode = '4600'", "kms.mode", "octal"),
        ("[kms]\ngroup = 'nobody-here'", "kms.group", "no local group"),
        ("[kms]\nallow_uids = [0, 'ghost']", "kms.allow_uids", "no local user"),
        ("[kms]\nallow_uids = [-1]", "kms.allow_uids", "between 0 and"),
        ("[kms]\nallow_uids = 0", "kms.allow_uids", "invalid type"),
        ("[kms]\nsocket = '@abstract'", "kms.socket", "abstract"),
        ("[kms]\nmax_plaintext = 4096", "kms.max_plaintext", "needs a unit, as \"4KiB\""),
        ("[kms]\nmax_plaintext = '1GiB'", "kms.max_plaintext", "between 32B and 1MiB"),
        ("[kms]\ndrain_timeout = '20m'", "kms.drain_timeout", "between 0s and 10m"),
        ("[kms]\nsocket = '/a'\n[admin]\nsocket = '/a'", "admin.socket", "the same path"),
        ("[metrics]\nlisten = '0.0.0.0:9464'", "metrics.listen", "loopback"),
        ("[metrics]\nlisten = '10.0.0.1:9464'", "metrics.listen", "loopback"),
        ("[metrics]\nlisten = 'localhost:9464'", "metrics.listen", "address with a port"),
        ("[log]\nlevel = 'verbose'", "log.level", "allowed: error, warn, info, debug, trace"),
        ("[log]\nformat = 'xml'", "log.format", "unknown value"),
        ("[sandbox]\nlandlock = 'yes'", "sandbox.landlock", "invalid type"),
    ] {
        let fault = fault(text);
        assert_eq!(fault.key, key, "{fault}");
        assert!(fault.to_string().contains(said), "{fault} does not say {said:?}");
    }
}

#[test]
fn socket_path_that_the_kernel_cannot_hold_is_refused() {
    let longest = format!("/{}", "s".repeat(106));
    assert!(read(&format!("[kms]\nsocket = '{longest}'")).is_ok());
    assert_eq!(fault(&format!("[kms]\nsocket = '{longest}s'")).key, "kms.socket");
}

#[test]
fn text_that_is_not_toml_is_refused_at_its_line() {
    for (text, line) in [("keyring = 'a'\nnode = \n", 2), ("[kms\n", 1), ("a = 1\na = 2\n", 2), ("\u{0}", 1)] {
        let fault = fault(text);
        assert_eq!(fault.line, line, "{fault}");
        assert!(fault.to_string().contains("is not TOML"), "{fault}");
    }
}

#[test]
fn effective_settings_say_what_the_file_set() {
    use crate::config::{Effective, Origin};
    let source = Source::from_parts(None, "[kms]\nmode = '0660'\n".into());
    let settings = Settings::from_source(&source, &machine().site).unwrap();
    let rows = Effective::list(&settings, &source).unwrap();
    let set: Vec<_> = rows.iter().filter(|row| row.origin == Origin::File).map(|row| row.key).collect();
    assert_eq!(set, ["kms.mode"]);
    assert!(rows.iter().any(|row| row.key == "custody.token_label" && row.value == "keystead"));
}

#[test]
fn named_file_that_is_missing_is_an_error_and_not_the_defaults() {
    assert!(matches!(Source::read(Path::new("/nonexistent/config.toml")), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn trail_has_a_folder_of_its_own_or_one_within_the_store() {
    let trail = |text: &str| read(text).unwrap().audit.unwrap().folder;
    assert_eq!(trail(""), Path::new("/var/lib/keystead/audit"));
    assert_eq!(trail("[store]\npath = '/s'"), Path::new("/s/audit"));
    assert_eq!(trail("[audit]\npath = 'trail'"), Path::new("/etc/keystead/trail"));
    assert_eq!(read("[audit]\npath = '/a'").unwrap().trail_apart(), Some(Path::new("/a")));
    assert_eq!(read("[audit]\npath = '/var/lib/keystead/t'").unwrap().trail_apart(), None);
    for (path, word) in [
        ("/", "the store's folder"),
        ("/var/lib", "the store's folder"),
        ("/var/lib/keystead", "the store's folder"),
        ("/etc/keystead", "the PIN"),
        ("/etc/keystead/pin", "the PIN"),
    ] {
        let fault = fault(&format!("[audit]\npath = '{path}'"));
        assert!(fault.to_string().contains(word), "{path}: {fault}");
    }
    let users = "[process]\nserver_user = 1\ncustodian_user = 2\n[custody]\nstate_path = '/n/notes'";
    assert!(fault(&format!("{users}\n[audit]\npath = '/n'")).to_string().contains("custodian's notes"));
}
