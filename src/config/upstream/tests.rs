//! The cloud profile's table: what it becomes, and every way to be wrong.

use super::*;
use crate::config::{Effective, Fault, Settings, Site, Source};

fn read(text: &str) -> Result<Settings, ConfigError> {
    let source = Source::from_parts(Some("/etc/keystead/config.toml".into()), format!("node = 'n'\n{text}"));
    Settings::from_source(&source, &Site { root: "/".into(), uid: 0, credentials: None })
}

fn table(text: &str) -> UpstreamTable {
    read(text).unwrap_or_else(|error| panic!("{text}: {error}")).upstream.unwrap()
}

fn fault(text: &str) -> Fault {
    match read(text) {
        Err(ConfigError::Invalid(fault)) => *fault,
        other => panic!("{text:?} gave {other:?}"),
    }
}

const ALIBABA: &str = "[upstream]\nkind = 'alibaba'\nkey = 'key-hzz62f1cb66fa42qo1234'\nregion = 'cn-hangzhou'\n";

#[test]
fn site_without_the_table_has_no_upstream() {
    assert_eq!(read("").unwrap().upstream, None);
}

#[test]
fn kind_key_and_region_are_enough() {
    let table = table(ALIBABA);
    assert_eq!((table.kind, table.network), (UpstreamKind::Alibaba, Network::Public));
    assert_eq!(table.key, "key-hzz62f1cb66fa42qo1234");
    assert_eq!((table.lease, table.renew_every), (72 * HOUR, 600 * SECOND));
    assert_eq!((table.connect_timeout, table.timeout), (3 * SECOND, 10 * SECOND));
    assert_eq!((table.probe_interval, table.daily_call_budget), (15 * SECOND, 400));
    assert_eq!(table.on_key_version, OnKeyVersion::Follow);
    assert_eq!(table.credentials, CredentialSource::File);
    assert_eq!(table.credentials_file.unwrap(), PathBuf::from("/etc/keystead/upstream/credentials.toml"));
    assert_eq!(table.price, Price { per_10k_calls: 0.03, currency: "USD".into() });
    assert_eq!((table.ca_file, table.proxy, table.grant_key), (None, None, None));
}

#[test]
fn every_key_is_taken_over() {
    let table = table(
        r#"
        [upstream]
        kind = "ibm"
        key = "12e8c9c2-a162-472d-b7d6-8b9a86b815a6"
        region = "eu-de"
        network = "private"
        endpoint = "https://[::1]:8443/"
        token_endpoint = "https://private.iam.cloud.ibm.com"
        instance = "7e5c4b1a-0000-4000-8000-000000000001"
        ca_file = "upstream/ca.pem"
        proxy = "http://10.0.0.1:3128"
        no_proxy = ["10.0.0.0/8", ".internal"]
        credentials = "file"
        credentials_file = "/run/secrets/key"
        connect_timeout = "500ms"
        timeout = "2s"
        renew_every = "5s"
        lease = "1h"
        probe_interval = "1s"
        on_key_version = "announce"
        daily_call_budget = 20
        grant_key = "grant.pem"
        [upstream.price]
        per_10k_calls = 1
        currency = "EUR"
        "#,
    );
    assert_eq!((table.network, table.on_key_version), (Network::Private, OnKeyVersion::Announce));
    assert_eq!(table.endpoint.as_deref(), Some("https://[::1]:8443"));
    assert_eq!(table.token_endpoint.as_deref(), Some("https://private.iam.cloud.ibm.com"));
    assert_eq!(table.ca_file, Some("/etc/keystead/upstream/ca.pem".into()));
    assert_eq!(table.no_proxy, ["10.0.0.0/8", ".internal"]);
    assert_eq!(table.credentials_file, Some("/run/secrets/key".into()));
    assert_eq!((table.renew_every, table.lease), (5 * SECOND, HOUR));
    assert_eq!(table.price, Price { per_10k_calls: 1.0, currency: "EUR".into() });
    assert_eq!(table.grant_key, Some("/etc/keystead/grant.pem".into()));
}

#[test]
fn aws_takes_the_region_from_an_arn() {
    let table = table("[upstream]\nkind = 'aws'\nkey = 'arn:aws:kms:eu-west-1:111122223333:key/mrk-1234'\n");
    assert_eq!(table.region, None);
    let fault = fault("[upstream]\nkind = 'aws'\nkey = 'arn:aws:kms:eu-west-1:1:key/mrk-1234'\nregion = 'us-east-1'\n");
    assert_eq!(fault.key, "upstream.region");
}

#[test]
fn what_cannot_be_is_refused_with_key_and_remedy() {
    let with = |more: &str| format!("{ALIBABA}{more}\n");
    let ibm = "[upstream]\nkind = 'ibm'\nkey = 'a'\nregion = 'eu-de'\n";
    let aws = "[upstream]\nkind = 'aws'\nkey = 'a'\nregion = 'eu-west-1'\n";
    for (text, key, said) in [
        ("[upstream]\nkey = 'a'".to_owned(), "upstream.kind", "is missing"),
        ("[upstream]\nkind = 'aws'".to_owned(), "upstream.key", "is missing"),
        ("[upstream]\nkind = 'aws'\nkey = 'a'".to_owned(), "upstream.region", "is missing"),
        ("[upstream]\nkind = 'alibaba'\nkey = 'a'".to_owned(), "upstream.region", "is missing"),
        ("[upstream]\nkind = 'azure'\nkey = 'a'".to_owned(), "upstream.kind", "unknown value \"azure\""),
        (ibm.to_owned(), "upstream.instance", "is missing"),
        (format!("{aws}instance = 'a'"), "upstream.instance", "means nothing for aws"),
        (format!("{ibm}instance = 'a'\ncredentials = 'oidc'"), "upstream.credentials", "from a file only"),
        (ALIBABA.replace("key-hzz62f1cb66fa42qo1234", "alias/prod"), "upstream.key", "is an alias"),
        (ALIBABA.replace("key-hzz62f1cb66fa42qo1234", "a/../b"), "upstream.key", "not a key ID"),
        (ALIBABA.replace("key-hzz62f1cb66fa42qo1234", &"a".repeat(65)), "upstream.key", "not a key ID"),
        (aws.replace("'a'", "'arn:aws:s3:::bucket'"), "upstream.key", "not the ARN of a key"),
        (with("network = 'private'"), "upstream.network", "no such addresses"),
        (with("endpoint = 'http://kms.example.com'"), "upstream.endpoint", "not an HTTPS address"),
        (with("endpoint = 'https://user:secret@kms.example.com'"), "upstream.endpoint", "not an HTTPS address"),
        (with("endpoint = 'https://kms.example.com/path'"), "upstream.endpoint", "not an HTTPS address"),
        (with("endpoint = 'https://kms.example.com:0'"), "upstream.endpoint", "not an HTTPS address"),
        (with("endpoint = 'https://[::g]'"), "upstream.endpoint", "not an HTTPS address"),
        (with("proxy = '10.0.0.1:3128'"), "upstream.proxy", "not the address of a proxy"),
        (with("proxy = 'http://a:b@10.0.0.1'"), "upstream.proxy", "not the address of a proxy"),
        (with("credentials = 'metadata'\ncredentials_file = 'a'"), "upstream.credentials_file", "is not read"),
        (with("credentials = 'oidc'\ncredentials_file = 'a'"), "upstream.credentials_file", "is not read"),
        (ALIBABA.replace("key-hzz62f1cb66fa42qo1234", "acs:kms:a:1:alias/x"), "upstream.key", "is an alias"),
        (ALIBABA.replace("key-hzz62f1cb66fa42qo1234", "acs:kms:a:key/x"), "upstream.key", "not the ARN of a key"),
        (with("access_key_secret = 'x'"), "upstream.access_key_secret", "unknown key"),
        (with("renew_every = '1ms'"), "upstream.renew_every", "between 100ms and 1d"),
        (with("lease = '1y'"), "upstream.lease", "unknown unit"),
        (with("lease = '15m'"), "upstream.lease", "shorter than two renewals"),
        (with("lease = '365d'"), "upstream.lease", "between 1s and 90d"),
        (with("timeout = '1s'\nconnect_timeout = '2s'"), "upstream.timeout", "shorter than connect_timeout"),
        (with("probe_interval = '1h'"), "upstream.probe_interval", "between 100ms and 5m"),
        (with("daily_call_budget = 0"), "upstream.daily_call_budget", "between 1 and"),
        (with("on_key_version = 'ignore'"), "upstream.on_key_version", "unknown value"),
        (with("[upstream.price]\nper_10k_calls = -1"), "upstream.price.per_10k_calls", "0 or more"),
        (with("[upstream.price]\nper_10k_calls = nan"), "upstream.price.per_10k_calls", "0 or more"),
    ] {
        let fault = fault(&text);
        assert_eq!(fault.key, key, "{fault}");
        assert!(fault.to_string().contains(said), "{fault} does not say {said:?}");
        assert!(fault.line >= 2, "{fault} has no place");
        assert!(!fault.to_string().contains("secret@"), "{fault}");
    }
}

#[test]
fn effective_settings_show_the_table_when_there_is_one() {
    let keys = |text: &str| {
        let source = Source::from_parts(None, format!("node = 'n'\n{text}"));
        let settings = Settings::from_source(&source, &Site::this_machine()).unwrap();
        let rows = Effective::list(&settings, &source).unwrap();
        rows.into_iter().map(|row| row.key).filter(|key| key.starts_with("upstream.")).collect::<Vec<_>>()
    };
    assert!(keys("").is_empty());
    let shown = keys(ALIBABA);
    for key in ["upstream.kind", "upstream.key", "upstream.lease", "upstream.price.per_10k_calls"] {
        assert!(shown.contains(&key), "{shown:?}");
    }
}
