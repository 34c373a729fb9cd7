//! Measured boot: what a PCR that changed does to a CMK, and what an approval does about it. PCR 16 is for tests like these.

use std::fs;
use std::path::Path;

use keystead::custody::contract::{CustodyError, Request};
use keystead::custody::settings::{BootPolicy, CustodySettings, MechanismChoice};
use keystead::custody::tpm::approval::Approval;
use keystead::custody::tpm::read_pcrs;
use keystead_core::wrap::Construction;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::asking::{context, done, new_kek, refusal, unwrap};
use crate::support::chip::Swtpm;
use crate::support::custodian::Custody;
use crate::support::rig::Rig;
use crate::{KeyCase, TokenCase};

pub const CASES: &[(&str, TokenCase)] =
    &[("auth_value_alone_would_open_a_key_with_user_with_auth_set", |make| trap(&make(&[])))];

pub const KEY_CASES: &[(&str, KeyCase)] = &[
    ("key_opens_after_an_approved_boot_only", approved_only),
    ("approval_of_another_signer_keyring_or_series_does_not_hold", others),
    ("raised_series_with_a_new_cmk_ends_earlier_approvals", series),
];

fn key(byte: u8) -> p256::SecretKey {
    p256::SecretKey::from_slice(&[byte; 32]).unwrap()
}

fn private_pem(byte: u8) -> String {
    key(byte).to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
}

/// Settings under which new CMKs demand boots that signer 0x11 approves.
fn measured(rig: &Rig, mechanism: MechanismChoice, series: u64) -> CustodySettings {
    let signer = rig.folder.path().join("signer.pub");
    fs::write(&signer, key(0x11).public_key().to_public_key_pem(LineEnding::LF).unwrap()).unwrap();
    let mut settings = rig.settings(mechanism);
    let tpm = settings.tpm.as_mut().unwrap();
    fs::create_dir_all(&tpm.approvals).unwrap();
    tpm.boot = Some(BootPolicy { pcrs: vec![16], signer, series });
    settings
}

/// What holds now, unsigned.
fn draft(rig: &Rig, series: u64) -> Approval {
    let pcrs = "sha256:16".parse().unwrap();
    let values = read_pcrs(&rig.chip().tcti, &pcrs).unwrap();
    Approval { keyring: "default".parse().unwrap(), series, pcrs, values, events: Vec::new(), signed: None }
}

fn bring(rig: &Rig, name: &str, mut approval: Approval, signer: u8) {
    approval.sign(&private_pem(signer)).unwrap();
    fs::write(rig.folder.path().join("approvals").join(name), approval.to_text()).unwrap();
}

/// As another boot loader would.
fn extend(chip: &Swtpm) {
    chip.tool_does(&["pcrextend", &format!("16:sha256={}", "5a".repeat(32))]);
}

/// `tpm2_ecdhzgen` with nothing but the auth value, on a key given by its halves.
fn opens_by_auth_alone(rig: &Rig, public: &Path, private: &Path, auth: &str) -> bool {
    let (chip, folder) = (rig.chip(), rig.folder.path());
    let at = |name: &str| folder.join(name).display().to_string();
    let (public, private) = (public.display().to_string(), private.display().to_string());
    chip.tool_does(&["load", "-C", "0x81000001", "-u", &public, "-r", &private, "-c", &at("loaded"), "-Q"]);
    // Any point on the curve.
    let point = key(0x22).public_key().to_sec1_point(false);
    let (x, y) = (point.x().unwrap(), point.y().unwrap());
    fs::write(at("point"), [&[0, 68, 0, 32][..], x, &[0, 32], y].concat()).unwrap();
    let auth = format!("hex:{auth}");
    let opened = chip.tool(&["ecdhzgen", "-c", &at("loaded"), "-p", &auth, "-u", &at("point"), "-o", &at("z")]);
    chip.tool_does(&["flushcontext", "-t"]);
    opened.status.success()
}

fn trap(rig: &Rig) {
    let (chip, folder) = (rig.chip(), rig.folder.path());
    let at = |name: &str| folder.join(name).display().to_string();
    let auth = "5a".repeat(32);
    // A key with a PCR policy and userWithAuth set.
    chip.tool_does(&["startauthsession", "-S", &at("trial")]);
    chip.tool_does(&["policypcr", "-S", &at("trial"), "-l", "sha256:16", "-L", &at("policy"), "-Q"]);
    chip.tool_does(&["flushcontext", &at("trial")]);
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|adminwithpolicy|noda|decrypt";
    chip.tool_does(&[
        "create",
        "-C",
        "0x81000001",
        "-G",
        "ecc256",
        "-u",
        &at("u"),
        "-r",
        &at("r"),
        "-a",
        attributes,
        "-L",
        &at("policy"),
        "-p",
        &format!("hex:{auth}"),
        "-Q",
    ]);
    chip.tool_does(&["flushcontext", "-t"]);
    extend(chip);
    assert!(opens_by_auth_alone(rig, &folder.join("u"), &folder.join("r"), &auth), "the trap is gone: simplify");

    // Ours has it clear.
    let custody = Custody::start(measured(rig, MechanismChoice::EcdhP256, 1));
    bring(rig, "boot", draft(rig, 1), 0x11);
    let (wrap, _) = new_kek(&custody, &context(1));
    drop(custody);
    let Ok(Construction::TpmEcdh { key, .. }) = Construction::parse(&wrap.bytes) else { panic!("no wrap of a TPM") };
    for (name, half) in [("ours.u", &key.public), ("ours.r", &key.private)] {
        fs::write(folder.join(name), [&(half.len() as u16).to_be_bytes(), half.as_slice()].concat()).unwrap();
    }
    let text = fs::read_to_string(rig.pin_file()).unwrap();
    let auth = text.lines().nth(1).unwrap().strip_prefix("auth ").unwrap();
    assert!(!opens_by_auth_alone(rig, &folder.join("ours.u"), &folder.join("ours.r"), auth));
}

fn assert_not_approved(error: &CustodyError, word: &str) {
    assert!(matches!(error, CustodyError::BootNotApproved { detail } if detail.contains(word)), "{error:?}");
}

fn approved_only(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(measured(rig, mechanism, 1));
    // No key is made that this very boot could not open.
    let error = custody.ask(Request::NewKek { context: context(1) }).unwrap_err();
    assert_not_approved(&error, "no approval");
    bring(rig, "boot-1", draft(rig, 1), 0x11);
    let (wrap, kek) = new_kek(&custody, &context(1));
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    done(&custody, Request::Probe);

    extend(rig.chip());
    assert_not_approved(&refusal(&custody, &context(1), &wrap.bytes), "PCR 16");
    let fresh = Custody::start(measured(rig, mechanism, 1));
    assert_not_approved(&refusal(&fresh, &context(1), &wrap.bytes), "PCR 16");
    // Brought to the running custodian.
    bring(rig, "boot-2", draft(rig, 1), 0x11);
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    // A damaged wrap is still told from a boot that is not approved.
    let mut damaged = wrap.bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(refusal(&custody, &context(1), &damaged), CustodyError::WrapRejected);
    // Keys made without measured boot open as they were made, and the other way round.
    let unbound = Custody::start(rig.settings(mechanism));
    let (other, other_kek) = new_kek(&unbound, &context(2));
    assert_eq!(unwrap(&unbound, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    extend(rig.chip());
    assert_eq!(unwrap(&custody, &context(2), &other.bytes).unwrap().expose(), other_kek.expose());
    assert_not_approved(&refusal(&unbound, &context(1), &wrap.bytes), "PCR 16");
}

fn others(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(measured(rig, mechanism, 1));
    bring(rig, "boot-1", draft(rig, 1), 0x11);
    let (wrap, kek) = new_kek(&custody, &context(1));
    extend(rig.chip());
    bring(rig, "other-signer", draft(rig, 1), 0x33);
    bring(rig, "other-series", draft(rig, 2), 0x11);
    bring(rig, "other-keyring", Approval { keyring: "other".parse().unwrap(), ..draft(rig, 1) }, 0x11);
    fs::write(rig.folder.path().join("approvals/garbage"), "keystead-boot-approval 1\nno").unwrap();
    fs::write(rig.folder.path().join("approvals/draft"), draft(rig, 1).to_text()).unwrap();
    assert_not_approved(&refusal(&custody, &context(1), &wrap.bytes), "PCR 16");
    // Right but for the signature: the TPM says no.
    let mut forged = draft(rig, 1);
    forged.sign(&private_pem(0x33)).unwrap();
    let mut genuine = draft(rig, 1);
    genuine.sign(&private_pem(0x11)).unwrap();
    forged.signed.as_mut().unwrap().signer = genuine.signed.as_ref().unwrap().signer.clone();
    fs::write(rig.folder.path().join("approvals/forged"), forged.to_text()).unwrap();
    assert_not_approved(&refusal(&custody, &context(1), &wrap.bytes), "signature");
    // And it does not stand before the genuine one.
    bring(rig, "genuine", draft(rig, 1), 0x11);
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
}

fn series(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(measured(rig, mechanism, 1));
    let vulnerable = draft(rig, 1);
    bring(rig, "vulnerable", vulnerable, 0x11);
    let (old, _) = new_kek(&custody, &context(1));
    let raised = Custody::start(measured(rig, mechanism, 2));
    bring(rig, "patched", draft(rig, 2), 0x11);
    let (new, kek) = new_kek(&raised, &context(2));
    fs::remove_file(rig.folder.path().join("approvals/patched")).unwrap();
    // The approval of the old series still holds for the old key, and never for the new one.
    unwrap(&raised, &context(1), &old.bytes).unwrap();
    assert_not_approved(&refusal(&raised, &context(2), &new.bytes), "no approval");
    bring(rig, "patched", draft(rig, 2), 0x11);
    assert_eq!(unwrap(&raised, &context(2), &new.bytes).unwrap().expose(), kek.expose());
}
