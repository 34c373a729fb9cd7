//! What lies on a token, seen by a process of its own with the PIN: not by the code under test.

use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use serde::{Deserialize, Serialize};

use super::rig::{PIN, Rig};

const ROLE: &str = "KEYSTEAD_TEST_INSPECT";

#[derive(Debug, Serialize, Deserialize)]
pub struct Key {
    /// A secret or private key, as against a public one.
    pub secret: bool,
    pub id: Vec<u8>,
    pub label: String,
    pub private: bool,
    pub sensitive: bool,
    pub extractable: bool,
    /// The token gives the value away.
    pub value_readable: bool,
}

/// Every key on the rig's token.
pub fn keys(rig: &Rig) -> Vec<Key> {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(ROLE, &rig.module)
        .env("KEYSTEAD_TEST_LABEL", &rig.label)
        .envs(&rig.environment)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// In the child: prints the keys, and never comes back. Else nothing.
pub fn play_role() {
    let Ok(module) = std::env::var(ROLE) else { return };
    println!("{}", serde_json::to_string(&read(&module, &std::env::var("KEYSTEAD_TEST_LABEL").unwrap())).unwrap());
    std::process::exit(0);
}

fn read(module: &str, label: &str) -> Vec<Key> {
    let pkcs11 = Pkcs11::new(module).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slots = pkcs11.get_slots_with_initialized_token().unwrap();
    let slot = slots.into_iter().find(|slot| pkcs11.get_token_info(*slot).unwrap().label() == label).unwrap();
    let session = pkcs11.open_ro_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
    let wanted = [
        AttributeType::Class,
        AttributeType::Id,
        AttributeType::Label,
        AttributeType::Private,
        AttributeType::Sensitive,
        AttributeType::Extractable,
    ];
    let mut keys = Vec::new();
    for object in session.find_objects(&[Attribute::Token(true)]).unwrap() {
        let mut key = Key {
            secret: false,
            id: Vec::new(),
            label: String::new(),
            private: false,
            sensitive: false,
            extractable: false,
            value_readable: false,
        };
        for attribute in session.get_attributes(object, &wanted).unwrap() {
            match attribute {
                Attribute::Class(class) => key.secret = class != ObjectClass::PUBLIC_KEY,
                Attribute::Id(id) => key.id = id,
                Attribute::Label(label) => key.label = String::from_utf8(label).unwrap(),
                Attribute::Private(private) => key.private = private,
                Attribute::Sensitive(sensitive) => key.sensitive = sensitive,
                Attribute::Extractable(extractable) => key.extractable = extractable,
                _ => {}
            }
        }
        let value = [AttributeType::Value, AttributeType::PrivateExponent];
        key.value_readable = key.secret && session.get_attributes(object, &value).is_ok_and(|found| !found.is_empty());
        keys.push(key);
    }
    keys
}
