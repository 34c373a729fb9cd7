//! The way to the cloud: names, CAs and their change, proxies.

use std::fs;

use keystead::upstream::settings::Proxy;
use keystead::upstream::transport::codes;
use keystead_core::FaultClass;

use crate::provider::{Case, Stand};

pub const CASES: &[(&str, Case)] = &[
    ("name_that_does_not_resolve_is_unreachable", name_that_does_not_resolve),
    ("ca_is_changed_without_a_restart", ca_is_changed),
    ("ca_file_that_is_missing_or_foreign_is_unreachable", unusable_ca_file),
    ("proxy_is_used_spared_and_may_refuse", proxy_is_used),
];

fn name_that_does_not_resolve(stand: &Stand) {
    let mut settings = stand.impatient();
    (stand.provider.set_endpoint)(&mut settings, "https://kms.invalid".parse().unwrap());
    let opened = stand.open(settings);
    let error = opened.wait(opened.upstream.generate(&opened.context())).unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, codes::DNS), "{error}");
}

fn ca_is_changed(stand: &Stand) {
    let [old, new] = ["/ca_file", "/next_ca_file"].map(|file| fs::read(stand.rig.text(file)).unwrap());
    let (_folder, file) = stand.rig.copy_of("/ca_file");
    let mut settings = stand.settings();
    settings.transport.ca_file = Some(file.clone());
    let opened = stand.open(settings);
    let made = opened.generate();
    fs::write(&file, [old.as_slice(), b"\n", &new].concat()).unwrap();
    opened.opens(&made);
    stand.rig.control(r#"{"action": "change-ca"}"#);
    opened.opens(&made);
    fs::write(&file, &old).unwrap();
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, codes::TLS), "{error}");
    fs::write(&file, &new).unwrap();
    opened.opens(&made);
    // A file that is damaged while it is edited takes nothing away.
    fs::write(&file, &new[..new.len() / 2]).unwrap();
    opened.opens(&made);
}

fn unusable_ca_file(stand: &Stand) {
    let made = stand.usual().generate();
    for (file, code) in [("/no/such/file", codes::CA_FILE), (stand.rig.text("/next_ca_file"), codes::TLS)] {
        let mut settings = stand.settings();
        settings.transport.ca_file = Some(file.into());
        let error = stand.open(settings).unwrap(&made).unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, code), "{error}");
    }
}

fn proxy_is_used(stand: &Stand) {
    let through = |spared: &[&str]| {
        let spared: Vec<String> = spared.iter().map(ToString::to_string).collect();
        let mut settings = stand.settings();
        settings.transport.proxy = Some(Proxy::new(stand.rig.text("/proxy"), &spared).unwrap());
        stand.open(settings)
    };
    let opened = through(&[]);
    let made = opened.generate();
    let tunnels = stand.rig.tunnels();
    assert!(tunnels > 0);
    through(&["127.0.0.1"]).opens(&made);
    assert_eq!(stand.rig.tunnels(), tunnels);
    stand.rig.control(r#"{"action": "proxy-refuses"}"#);
    let error = opened.unwrap(&made).unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (FaultClass::Unreachable, codes::PROXY), "{error}");
}
