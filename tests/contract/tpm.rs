//! What only a TPM has: blobs, NV indices, an auth value, and neighbours on the same chip.

use std::fs;
use std::time::{Duration, Instant};

use keystead::custody::contract::{CustodyError, PinState, Request};
use keystead::custody::settings::{CustodySettings, MechanismChoice, PinSource};
use keystead_core::wrap::{Construction, TpmKey};
use rustix::process::Signal;

use crate::asking::{context, derive, describe, done, epoch, epochs, new_kek, refusal, unwrap};
use crate::support::chip::Swtpm;
use crate::support::custodian::Custody;
use crate::support::rig::{MakeRig, Rig};
use crate::support::swtpm;
use crate::tpm_proxy::Proxy;
use crate::{KeyCase, TokenCase};

pub const KEY_CASES: &[(&str, KeyCase)] = &[
    ("cmk_is_fixed_to_the_tpm_and_asks_for_its_auth_value", fixed),
    ("wrap_of_another_tpm_is_rejected_and_the_device_is_well", foreign_tpm),
    ("destroying_a_cmk_that_lives_in_its_wrap_is_fine", destroyed),
    ("listener_on_the_bus_hears_neither_auth_value_nor_secret", overheard),
];

pub const CASES: &[(&str, TokenCase)] = &[
    ("epoch_keys_are_stable_and_differ_by_owner_and_number", epochs_stable),
    ("epoch_destroyed_is_gone_for_ever_and_made_anew_is_another", epochs_destroyed),
    ("third_epoch_takes_the_place_of_the_lowest", third_epoch),
    ("nv_index_that_is_missing_is_no_epoch", nv_missing),
    ("nv_index_that_others_may_read_is_refused", nv_readable),
    ("nv_index_that_a_power_cut_left_half_written_is_empty_and_its_fellow_holds", nv_torn),
    ("tpm_that_vanishes_and_returns_is_used_again", vanishes),
    ("objects_left_by_killed_processes_are_flushed", leaked),
    ("wrong_auth_value_is_tried_once_and_never_again", wrong_auth),
    ("tpm_in_lockout_serves_on_and_says_so", lockout),
    ("tpm_cleared_under_a_running_custodian_is_another_one", cleared),
    ("tpm_that_is_not_there_is_told_apart", absent),
    ("unreadable_auth_file_is_told_apart", unreadable),
    ("two_custodians_share_one_tpm", shared),
    ("owner_with_an_auth_value_is_asked_only_at_provisioning", owned),
    ("requests_beyond_the_queue_are_busy", busy),
];

fn start(rig: &Rig) -> Custody {
    Custody::start(rig.settings(MechanismChoice::Auto))
}

/// What `tpm2` says of the key in a wrap, loaded under the storage root key.
fn loaded(chip: &Swtpm, wrap: &[u8]) -> String {
    let (Ok(Construction::TpmEcdh { key, .. }) | Ok(Construction::TpmRsaOaep { key, .. })) = Construction::parse(wrap)
    else {
        panic!("no wrap of a TPM")
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for (name, half) in [("public", &key.public), ("private", &key.private)] {
        let sized = [&(half.len() as u16).to_be_bytes(), half.as_slice()].concat();
        fs::write(folder.path().join(name), sized).unwrap();
    }
    chip.tool_does(&[
        "load",
        "-C",
        "0x81000001",
        "-u",
        &at("public"),
        "-r",
        &at("private"),
        "-c",
        &at("context"),
        "-Q",
    ]);
    let shown = chip.tool_does(&["readpublic", "-c", &at("context")]);
    // With the key loaded and a wrong auth value, it does nothing.
    fs::write(folder.path().join("point"), [&[0, 68, 0, 32][..], &[1; 32], &[0, 32], &[1; 32]].concat()).unwrap();
    assert!(!chip.tool(&["ecdhzgen", "-c", &at("context"), "-u", &at("point"), "-o", &at("z")]).status.success());
    chip.tool_does(&["flushcontext", "-t"]);
    shown
}

fn fixed(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (wrap, kek) = new_kek(&custody, &context(1));
    let shown = loaded(rig.chip(), &wrap.bytes);
    let attributes = shown.lines().find(|line| line.contains("fixedtpm")).unwrap_or_default().trim().to_owned();
    assert_eq!(attributes, "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt", "{shown}");
    assert!(!wrap.bytes.windows(32).any(|window| window == kek.expose()));
}

fn foreign_tpm(rig: &Rig, mechanism: MechanismChoice) {
    let other = swtpm::rig(&[]);
    let (foreign, _) = new_kek(&Custody::start(other.settings(mechanism)), &context(1));
    let custody = Custody::start(rig.settings(mechanism));
    assert_eq!(refusal(&custody, &context(1), &foreign.bytes), CustodyError::WrapRejected);
    done(&custody, Request::Probe);
    let (wrap, kek) = new_kek(&custody, &context(1));
    assert_eq!(refusal(&custody, &context(1), &foreign.bytes), CustodyError::WrapRejected);
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    assert_eq!(describe(&custody).openings, 1, "a foreign wrap was taken for a lost TPM");
}

fn overheard(rig: &Rig, mechanism: MechanismChoice) {
    let bus = Proxy::listening(&rig.chip().tcti, Duration::ZERO).unwrap();
    // What is made with the auth value in it, too: the file is new.
    fs::remove_file(rig.pin_file()).unwrap();
    let (keyring, node) = ("heard".parse().unwrap(), "edge-1".parse().unwrap());
    let mut settings = rig.settings(mechanism);
    let tpm = settings.tpm.as_mut().unwrap();
    tpm.tcti = bus.tcti.clone();
    keystead::custody::tpm::provision(tpm, &rig.pin_file(), None, &keyring, &node).unwrap();
    let custody = Custody::start(settings);
    let (wrap, kek) = new_kek(&custody, &context(1));
    unwrap(&custody, &context(1), &wrap.bytes).unwrap();
    let one = epoch("heard", "edge-1", 1);
    done(&custody, Request::CreateEpoch(one.clone()));
    derive(&custody, &one).unwrap();
    drop(custody);

    let text = fs::read_to_string(rig.pin_file()).unwrap();
    let digits = text.lines().nth(1).unwrap().strip_prefix("auth ").unwrap();
    let auth: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
    // The secret, read by another program.
    let secrets = indices(rig.chip()).into_iter().filter_map(|index| {
        let read = rig.chip().tool(&["nvread", &index, "-C", &index, "-P", &format!("hex:{digits}"), "-s", "64"]);
        (read.status.success() && read.stdout.starts_with(b"kse1")).then(|| read.stdout[24..56].to_vec())
    });
    let secrets: Vec<Vec<u8>> = secrets.collect();
    assert_eq!(secrets.len(), 1, "the epoch secret was not found");
    let heard = bus.heard();
    let hears = |needle: &[u8]| heard.windows(needle.len()).any(|window| window == needle);
    assert!(hears(&wrap.bytes[3..40]), "the listener is deaf: not even the public half was heard");
    assert!(!hears(&auth), "the auth value went over the bus");
    assert!(!hears(&secrets[0]), "the epoch secret went over the bus");
    assert!(!hears(kek.expose()), "the KEK went over the bus");
    if let Ok(Construction::TpmEcdh { key, encapsulated, .. }) = Construction::parse(&wrap.bytes) {
        let shared = shared_secret(rig.chip(), &key, &encapsulated, digits);
        assert!(!hears(&shared), "the ECDH's result went over the bus");
    }
}

/// The x-coordinate that opens a wrap, as another program gets it that has the auth value.
fn shared_secret(chip: &Swtpm, key: &TpmKey, encapsulated: &[u8; 65], auth: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for (name, half) in [("public", &key.public), ("private", &key.private)] {
        fs::write(at(name), [&(half.len() as u16).to_be_bytes(), half.as_slice()].concat()).unwrap();
    }
    fs::write(at("point"), [&[0, 68, 0, 32][..], &encapsulated[1..33], &[0, 32], &encapsulated[33..]].concat())
        .unwrap();
    // The custodian was killed and has left its own objects behind.
    for kind in ["-t", "-l", "-s"] {
        chip.tool_does(&["flushcontext", kind]);
    }
    chip.tool_does(&["load", "-C", "0x81000001", "-u", &at("public"), "-r", &at("private"), "-c", &at("key"), "-Q"]);
    let auth = format!("hex:{auth}");
    chip.tool_does(&["ecdhzgen", "-c", &at("key"), "-p", &auth, "-u", &at("point"), "-o", &at("z")]);
    fs::read(at("z")).unwrap()[4..36].to_vec()
}

fn destroyed(rig: &Rig, mechanism: MechanismChoice) {
    let custody = Custody::start(rig.settings(mechanism));
    let (wrap, _) = new_kek(&custody, &context(1));
    done(&custody, Request::DestroyCmk { root_id: context(1).root_id });
    // The key is gone when its wrap is gone: whoever holds both TPM and wrap still opens it.
    unwrap(&custody, &context(1), &wrap.bytes).unwrap();
}

fn epochs_stable(make: MakeRig) {
    let rig = make(&[]);
    let mut custody = start(&rig);
    let all = [
        epoch("default", "edge-1", 1),
        epoch("default", "edge-1", u64::MAX),
        epoch("default", "edge-2", 1),
        epoch("other", "edge-1", 1),
        // The same two names, divided elsewhere.
        epoch("defaulte", "dge-1", 1),
    ];
    assert_eq!(derive(&custody, &all[0]), Err(CustodyError::EpochMissing { number: 1 }));
    for epoch in &all {
        done(&custody, Request::CreateEpoch(epoch.clone()));
    }
    let keys: Vec<_> = all.iter().map(|epoch| derive(&custody, epoch).unwrap()).collect();
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key), "two epochs give one key");
    }
    // One that is there already is kept.
    done(&custody, Request::CreateEpoch(all[0].clone()));
    custody.replace();
    assert_eq!(all.iter().map(|epoch| derive(&custody, epoch).unwrap()).collect::<Vec<_>>(), keys);
    assert_eq!(epochs(&custody, "default", "edge-1"), [1, u64::MAX]);
    assert_eq!(epochs(&custody, "default", "edge-2"), [1]);
    assert_eq!(epochs(&custody, "default", "edge-3"), [0; 0]);
    // And over a power cycle of the chip.
    rig.chip().stop();
    rig.chip().start_again();
    assert_eq!(eventually(|| derive(&custody, &all[0])), keys[0]);
}

fn epochs_destroyed(make: MakeRig) {
    let rig = make(&[]);
    let custody = start(&rig);
    let (one, two) = (epoch("default", "edge-1", 1), epoch("default", "edge-1", 2));
    done(&custody, Request::CreateEpoch(one.clone()));
    done(&custody, Request::CreateEpoch(two.clone()));
    let key = derive(&custody, &one).unwrap();
    for _ in 0..2 {
        done(&custody, Request::DestroyEpoch(one.clone()));
    }
    assert_eq!(derive(&custody, &one), Err(CustodyError::EpochMissing { number: 1 }));
    assert_eq!(epochs(&custody, "default", "edge-1"), [2]);
    done(&custody, Request::CreateEpoch(one.clone()));
    assert_ne!(derive(&custody, &one).unwrap(), key);
    for epoch in [&one, &two, &two] {
        done(&custody, Request::DestroyEpoch(epoch.clone()));
    }
    assert_eq!(epochs(&custody, "default", "edge-1"), [0; 0]);
}

fn third_epoch(make: MakeRig) {
    let rig = make(&[]);
    let custody = start(&rig);
    for number in 1..=3 {
        done(&custody, Request::CreateEpoch(epoch("default", "edge-1", number)));
    }
    assert_eq!(epochs(&custody, "default", "edge-1"), [2, 3]);
}

/// The handles of NV indices of ours, as `tpm2` lists them.
fn indices(chip: &Swtpm) -> Vec<String> {
    let listed = chip.tool_does(&["getcap", "handles-nv-index"]);
    listed.lines().filter_map(|line| line.trim().strip_prefix("- ")).map(str::to_owned).collect()
}

fn nv_missing(make: MakeRig) {
    let rig = make(&[]);
    let mut custody = start(&rig);
    let one = epoch("default", "edge-1", 1);
    done(&custody, Request::CreateEpoch(one.clone()));
    let indices = indices(rig.chip());
    assert_eq!(indices.len(), 2, "provisioning defines both: {indices:?}");
    for index in indices {
        rig.chip().tool_does(&["nvundefine", &index, "-C", "o"]);
    }
    // Under the running custodian, and for a new one.
    for _ in 0..2 {
        assert_eq!(eventually(|| list(&custody)), [0; 0]);
        assert_eq!(derive(&custody, &one), Err(CustodyError::EpochMissing { number: 1 }));
        custody.replace();
    }
    done(&custody, Request::CreateEpoch(one.clone()));
    assert_eq!(epochs(&custody, "default", "edge-1"), [1]);
}

fn list(custody: &Custody) -> Result<Vec<u64>, CustodyError> {
    let request = Request::ListEpochs { keyring: "default".parse().unwrap(), node: "edge-1".parse().unwrap() };
    match custody.ask(request)? {
        keystead::custody::contract::Answer::Epochs(numbers) => Ok(numbers),
        other => panic!("no list: {other:?}"),
    }
}

fn nv_readable(make: MakeRig) {
    let rig = make(&[]);
    let index = indices(rig.chip()).remove(0);
    rig.chip().tool_does(&["nvundefine", &index, "-C", "o"]);
    let attributes = "authread|authwrite|ownerread|no_da";
    rig.chip().tool_does(&["nvdefine", &index, "-C", "o", "-s", "64", "-a", attributes]);
    let error = list(&start(&rig)).unwrap_err();
    assert!(matches!(&error, CustodyError::Device { detail } if detail.contains("meddled")), "{error:?}");
}

fn nv_torn(make: MakeRig) {
    let rig = make(&[]);
    let mut custody = start(&rig);
    let (one, two) = (epoch("default", "edge-1", 1), epoch("default", "edge-1", 2));
    done(&custody, Request::CreateEpoch(one.clone()));
    done(&custody, Request::CreateEpoch(two.clone()));
    let key = derive(&custody, &one).unwrap();
    let chip = rig.chip();
    let digits = fs::read_to_string(rig.pin_file()).unwrap().lines().nth(1).unwrap().replacen("auth ", "hex:", 1);
    let read = |index: &str| chip.tool(&["nvread", index, "-C", index, "-P", &digits, "-s", "64"]).stdout;
    let second = indices(chip).into_iter().find(|index| read(index)[23] == 2).expect("the second epoch's index");
    let whole = read(&second);
    for cut in [1, 24, 40, 56, 63] {
        // What was being written up to there, and what was there before after it.
        let torn = [&whole[..cut], &vec![0; 64 - cut]].concat();
        fs::write(rig.folder.path().join("torn"), &torn).unwrap();
        let file = rig.folder.path().join("torn").display().to_string();
        chip.tool_does(&["nvwrite", &second, "-C", &second, "-P", &digits, "-i", &file]);
        assert_eq!(epochs(&custody, "default", "edge-1"), [1], "cut at {cut}");
        assert_eq!(derive(&custody, &two), Err(CustodyError::EpochMissing { number: 2 }));
    }
    custody.replace();
    assert_eq!(derive(&custody, &one).unwrap(), key);
    // Done once more, it takes the torn one's place.
    done(&custody, Request::CreateEpoch(two.clone()));
    assert_eq!(epochs(&custody, "default", "edge-1"), [1, 2]);
}

fn vanishes(make: MakeRig) {
    let rig = make(&[]);
    let custody = start(&rig);
    let (wrap, kek) = new_kek(&custody, &context(1));
    let clock = describe(&custody).clock.expect("a TPM has a clock");
    rig.chip().stop();
    let error = refusal(&custody, &context(1), &wrap.bytes);
    assert!(matches!(error, CustodyError::TpmUnreachable { .. } | CustodyError::Device { .. }), "{error:?}");
    rig.chip().start_again();
    assert_eq!(eventually(|| unwrap(&custody, &context(1), &wrap.bytes)).expose(), kek.expose());
    done(&custody, Request::Probe);
    assert_eq!(describe(&custody).openings, 2);
    let now = describe(&custody).clock.unwrap();
    // It goes on over a power cut: seconds, not minutes, as it is saved now and then only.
    assert!(now.seconds + 60 >= clock.seconds, "{clock:?}, {now:?}");
    // What is added to the count stays the same: else boots could not be told from it.
    assert_eq!(now.resets.wrapping_sub(clock.resets), 1, "{clock:?}, {now:?}");
    rig.chip().stop();
    rig.chip().start_again();
    eventually(|| unwrap(&custody, &context(1), &wrap.bytes));
    assert_eq!(describe(&custody).clock.unwrap().resets.wrapping_sub(clock.resets), 2);
}

fn leaked(make: MakeRig) {
    let rig = make(&[]);
    let mut custody = start(&rig);
    let (wrap, kek) = new_kek(&custody, &context(1));
    // The chip has room for three objects and three sessions.
    for _ in 0..8 {
        custody.kill(Signal::KILL);
        custody.replace();
        assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    }
}

fn write_auth(rig: &Rig, change: impl Fn(&str) -> String) {
    let text = change(&fs::read_to_string(rig.pin_file()).unwrap());
    fs::remove_file(rig.pin_file()).unwrap();
    rig.write_pin(&text);
}

fn wrong_auth(make: MakeRig) {
    let rig = make(&[]);
    let custody = start(&rig);
    let (wrap, kek) = new_kek(&custody, &context(1));
    done(&custody, Request::CreateEpoch(epoch("default", "edge-1", 1)));
    let right = fs::read_to_string(rig.pin_file()).unwrap();
    let digits = right.lines().nth(1).unwrap().to_owned();
    write_auth(&rig, |text| text.replace(&digits, &format!("auth {}", "5a".repeat(32))));
    let bus = Proxy::start(&rig.chip().tcti, Duration::ZERO).unwrap();
    let mut custody = Custody::start(with_tcti(&rig, &bus.tcti));
    assert!(matches!(list(&custody), Err(CustodyError::AuthRejected { .. })));
    let commands = bus.commands();
    for _ in 0..3 {
        let error = list(&custody).unwrap_err();
        assert!(matches!(error, CustodyError::AuthRejected { .. }), "{error:?}");
        let before = rejections(&rig);
        let error = refusal(&custody, &context(1), &wrap.bytes);
        assert!(matches!(error, CustodyError::AuthRejected { .. }), "{error:?}");
        assert_eq!(rejections(&rig), before, "it was tried again");
        // The same value in another file, as a service manager makes a credential at each start.
        write_auth(&rig, str::to_owned);
        custody.replace();
    }
    assert_eq!(bus.commands(), commands, "the TPM was asked again with a value that it has refused");
    let note = fs::read_to_string(rig.folder.path().join("pin-rejected")).unwrap();
    assert!(!note.contains("5a5a"), "{note}");
    // No count of failed tries went up: other users of the chip are not locked out.
    let variable = rig.chip().tool_does(&["getcap", "properties-variable"]);
    assert!(variable.contains("TPM2_PT_LOCKOUT_COUNTER: 0x0"), "{variable}");
    write_auth(&rig, |_| right.clone());
    assert_eq!(eventually(|| unwrap(&custody, &context(1), &wrap.bytes)).expose(), kek.expose());
    assert_eq!(rejections(&rig), None, "what is accepted voids the note");
}

/// Changes whenever a rejection is noted.
fn rejections(rig: &Rig) -> Option<std::time::SystemTime> {
    fs::metadata(rig.folder.path().join("pin-rejected")).and_then(|metadata| metadata.modified()).ok()
}

fn lockout(make: MakeRig) {
    let rig = make(&[]);
    let custody = start(&rig);
    let (wrap, kek) = new_kek(&custody, &context(1));
    let chip = rig.chip();
    // Somebody else's key, whose failed tries count.
    chip.tool_does(&["nvdefine", "0x1500000", "-C", "o", "-s", "8", "-a", "authread|authwrite", "-p", "right"]);
    for _ in 0..4 {
        assert!(!chip.tool(&["nvread", "0x1500000", "-C", "0x1500000", "-P", "wrong", "-s", "8"]).status.success());
    }
    let variable = chip.tool_does(&["getcap", "properties-variable"]);
    assert!(variable.contains("inLockout:                 1"), "{variable}");
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    done(&custody, Request::CreateEpoch(epoch("default", "edge-1", 1)));
    let fresh = start(&rig);
    assert_eq!(describe(&fresh).token.pin, PinState::Locked);
    assert_eq!(unwrap(&fresh, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
}

fn cleared(make: MakeRig) {
    let rig = make(&[]);
    let custody = start(&rig);
    let (wrap, _) = new_kek(&custody, &context(1));
    done(&custody, Request::CreateEpoch(epoch("default", "edge-1", 1)));
    rig.chip().tool_does(&["clear", "-c", "p"]);
    let started = Instant::now();
    loop {
        match refusal(&custody, &context(1), &wrap.bytes) {
            CustodyError::TokenReplaced { serial, expected: Some(expected) } if serial != expected => break,
            // Connected to anew at most once a second.
            CustodyError::Device { .. } if started.elapsed() < Duration::from_secs(20) => {}
            other => panic!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(matches!(list(&custody), Err(CustodyError::TokenReplaced { .. })));
}

fn with_tcti(rig: &Rig, tcti: &str) -> CustodySettings {
    let mut settings = rig.settings(MechanismChoice::Auto);
    settings.tpm.as_mut().unwrap().tcti = tcti.to_owned();
    settings
}

fn absent(make: MakeRig) {
    let rig = make(&[]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nothing = rig.folder.path().join("nothing").display().to_string();
    for (tcti, word) in [
        (format!("swtpm:host=127.0.0.1,port={free}"), "start the software TPM"),
        (format!("device:{nothing}"), "No such file"),
        ("device:/dev/null".to_owned(), "TPM"),
        ("nonsense".to_owned(), "none of device:"),
    ] {
        let error = Custody::start(with_tcti(&rig, &tcti)).ask(Request::Describe).unwrap_err();
        assert!(matches!(&error, CustodyError::TpmUnreachable { .. }), "{tcti}: {error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

fn unreadable(make: MakeRig) {
    let rig = make(&[]);
    fs::remove_file(rig.pin_file()).unwrap();
    let error = start(&rig).ask(Request::Describe).unwrap_err();
    assert!(matches!(&error, CustodyError::PinUnreadable { detail } if detail.contains("tpm provision")), "{error:?}");
    rig.write_pin("31415926");
    let error = start(&rig).ask(Request::Describe).unwrap_err();
    assert!(matches!(&error, CustodyError::PinUnreadable { .. }), "{error:?}");
    assert!(!error.to_string().contains("31415926"), "{error}");
}

fn shared(make: MakeRig) {
    let rig = make(&[]);
    let mut settings = rig.settings(MechanismChoice::Auto);
    let auth = rig.folder.path().join("other-auth");
    let tpm = settings.tpm.as_mut().unwrap();
    keystead::custody::tpm::provision(tpm, &auth, None, &"other".parse().unwrap(), &"edge-1".parse().unwrap()).unwrap();
    tpm.auth = PinSource::File(auth.clone());
    settings.pin = PinSource::File(auth);
    let (one, two) = (start(&rig), Custody::start(settings));
    let (of_one, kek_one) = new_kek(&one, &context(1));
    let (of_two, kek_two) = new_kek(&two, &context(2));
    done(&one, Request::CreateEpoch(epoch("default", "edge-1", 1)));
    done(&two, Request::CreateEpoch(epoch("other", "edge-1", 7)));
    for _ in 0..8 {
        assert_eq!(eventually(|| unwrap(&one, &context(1), &of_one.bytes)).expose(), kek_one.expose());
        assert_eq!(eventually(|| unwrap(&two, &context(2), &of_two.bytes)).expose(), kek_two.expose());
    }
    assert_eq!(epochs(&one, "default", "edge-1"), [1]);
    assert_eq!(epochs(&two, "other", "edge-1"), [7]);
    // Each asks for its own auth value: the other's key is of no use.
    assert_eq!(refusal(&one, &context(2), &of_two.bytes), CustodyError::WrapRejected);
    assert_eq!(eventually(|| unwrap(&one, &context(1), &of_one.bytes)).expose(), kek_one.expose());
}

fn owned(_: MakeRig) {
    let rig = swtpm::bare();
    rig.chip().tool_does(&["changeauth", "-c", "o", "owner-secret"]);
    let (keyring, node) = ("default".parse().unwrap(), "edge-1".parse().unwrap());
    let provision = |auth: Option<&[u8]>| {
        keystead::custody::tpm::provision(&rig.tpm_settings(), &rig.pin_file(), auth, &keyring, &node)
    };
    for wrong in [None, Some(b"wrong".as_slice())] {
        let error = provision(wrong).unwrap_err();
        assert!(error.to_string().contains("--owner-auth-file"), "{error}");
        assert!(!rig.pin_file().exists());
    }
    assert!(provision(Some(b"owner-secret")).unwrap().made_auth_file);
    // Again, it changes nothing.
    let before = fs::read(rig.pin_file()).unwrap();
    let again = provision(Some(b"owner-secret")).unwrap();
    assert!(!again.made_auth_file && !again.made_srk);
    assert_eq!(fs::read(rig.pin_file()).unwrap(), before);
    // With the file gone, what depends on it is said, and not taken for the owner's auth value.
    let aside = rig.folder.path().join("aside");
    fs::rename(rig.pin_file(), &aside).unwrap();
    let error = provision(Some(b"owner-secret")).unwrap_err();
    assert!(error.to_string().contains("tpm2_nvundefine"), "{error}");
    fs::rename(&aside, rig.pin_file()).unwrap();
    // The daemon needs no owner.
    let custody = start(&rig);
    let (wrap, kek) = new_kek(&custody, &context(1));
    for number in 1..=3 {
        done(&custody, Request::CreateEpoch(epoch("default", "edge-1", number)));
    }
    assert_eq!(unwrap(&custody, &context(1), &wrap.bytes).unwrap().expose(), kek.expose());
    let error = custody.ask(Request::CreateEpoch(epoch("other", "edge-1", 1))).unwrap_err();
    assert!(error.to_string().contains("tpm provision"), "{error}");
}

fn busy(make: MakeRig) {
    let rig = make(&[]);
    let mut settings = rig.settings(MechanismChoice::Auto);
    settings.queue = 4;
    let replies = Custody::start(settings).ask_all(vec![Request::Probe; 64]);
    let busy = replies.iter().filter(|reply| matches!(reply, Err(CustodyError::Busy))).count();
    assert!(busy > 0 && replies.iter().any(Result::is_ok), "{busy} were busy");
}

/// The TPM is connected to at most once a second, so its return takes a moment to be noticed.
fn eventually<T>(mut attempt: impl FnMut() -> Result<T, CustodyError>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => {
                assert!(!matches!(error, CustodyError::WrapRejected), "{error:?}");
                assert!(start.elapsed() < Duration::from_secs(20), "still {error:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
