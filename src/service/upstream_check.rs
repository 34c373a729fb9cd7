//! Whether the cloud key can be used from here, step by step: name, connection, TLS, clock, credentials, key, encrypt, decrypt.
//!
//! Changes nothing: the KEK it has made and opened is thrown away. Makes three billed calls at most. The first step that
//! fails is what to mend; those behind it are not tried.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use keystead_core::{FaultClass, GenerationNumber, KeyId, KeyringId, RootKind, WrapContext};
use tokio::net::{TcpStream, lookup_host};

use super::rotation::random;
use crate::upstream::contract::{Generated, KeyDescription, KeyState, Unwrapped};
use crate::upstream::transport::codes;
use crate::upstream::{Upstream, UpstreamError};

/// Beyond it services refuse signatures, and certificates may seem expired. Keystead corrects both by the `Date` header.
const SKEW_WORTH_A_WORD: Duration = Duration::from_secs(60);
/// Nobody waits for it, but renewals and starts offline take longer then.
const SLOW: Duration = Duration::from_secs(1);

/// Where the first connection goes: the service, or the proxy before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstHop {
    pub host: String,
    pub port: u16,
    pub is_proxy: bool,
    pub timeout: Duration,
}

/// One step and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    pub outcome: Outcome,
    pub detail: String,
    /// What to do; empty where nothing is to be done.
    pub hint: String,
    pub took: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// Works; worth knowing.
    Warned,
    Failed,
    /// A step before it failed.
    Skipped,
}

/// Runs every step up to the first that fails.
pub async fn check(upstream: &dyn Upstream, hop: &FirstHop, keyring: &KeyringId) -> Vec<Step> {
    let mut steps = Steps { kind: upstream.identity().kind, list: Vec::new() };
    let started = Instant::now();
    let found = bounded(hop.timeout, lookup_host((hop.host.as_str(), hop.port))).await;
    let addresses: Vec<_> = match found {
        Ok(found) => found.collect(),
        Err(error) => return steps.fail("name", format!("{}: {error}", hop.host), name_hint(steps.kind)),
    };
    let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    steps.pass("name", format!("{} is {}", hop.host, shown.join(", ")), started);

    let started = Instant::now();
    let what = if hop.is_proxy { "the proxy " } else { "" };
    if let Err(error) = bounded(hop.timeout, TcpStream::connect(addresses.as_slice())).await {
        let detail = format!("{what}{}:{}: {error}", hop.host, hop.port);
        return steps.fail("connection", detail, connection_hint(steps.kind));
    }
    steps.pass("connection", format!("{what}{}:{} answers", hop.host, hop.port), started);

    let started = Instant::now();
    let described = upstream.describe().await;
    // No answer that is surely the service's, or one that it does not serve now.
    if let Err(error) = &described
        && error.class == FaultClass::Unreachable
    {
        let detail = format!("{} ({})", error.detail, error.code);
        return steps.fail("tls", detail, way_hint(steps.kind, &error.code));
    }
    steps.pass("tls", "the service answers, and its certificate is trusted".into(), started);
    if let Some(finished) = steps.judge_description(&described) {
        return finished;
    }

    let context = match throwaway(upstream, keyring) {
        Ok(context) => context,
        Err(error) => return steps.fail("encrypt", error, "Try again"),
    };
    let started = Instant::now();
    let generated = upstream.generate(&context).await;
    let Generated { kek, wrapped } = match generated {
        Ok(generated) => generated,
        Err(error) => return steps.refused("encrypt", &error),
    };
    steps.pass("encrypt", "a key was made and wrapped".into(), started);

    let started = Instant::now();
    let unwrapped = upstream.unwrap(&wrapped.wrap.bytes, &context).await;
    let took = started.elapsed();
    match unwrapped {
        Err(error) => return steps.refused("decrypt", &error),
        Ok(Unwrapped { kek: opened, .. }) if opened.commitment() != kek.commitment() => {
            return steps.fail("decrypt", "the wrap opened to another key".into(), "Do not use this endpoint");
        }
        Ok(_) => steps.pass("decrypt", "the wrap opened to the same key".into(), started),
    }
    if took > SLOW {
        let hint = "Renewals bear it; look at the way there, or take a region or an address that is nearer";
        steps.warn("latency", format!("an unwrap took {} ms", took.as_millis()), hint);
    } else {
        steps.list.push(Step {
            name: "latency",
            outcome: Outcome::Passed,
            detail: format!("an unwrap took {} ms", took.as_millis()),
            hint: String::new(),
            took: None,
        });
    }
    steps.list
}

struct Steps {
    kind: RootKind,
    list: Vec<Step>,
}

const NAMES: [&str; 9] = ["name", "connection", "tls", "clock", "credentials", "key", "encrypt", "decrypt", "latency"];

impl Steps {
    fn pass(&mut self, name: &'static str, detail: String, started: Instant) {
        let took = Some(started.elapsed());
        self.list.push(Step { name, outcome: Outcome::Passed, detail, hint: String::new(), took });
    }

    fn warn(&mut self, name: &'static str, detail: String, hint: &str) {
        self.list.push(Step { name, outcome: Outcome::Warned, detail, hint: hint.into(), took: None });
    }

    /// The end of the list: what lies behind is skipped.
    fn fail(&mut self, name: &'static str, detail: String, hint: &str) -> Vec<Step> {
        self.list.push(Step { name, outcome: Outcome::Failed, detail, hint: hint.into(), took: None });
        let behind = NAMES.iter().skip_while(|each| **each != name).skip(1);
        self.list.extend(behind.map(|name| Step {
            name,
            outcome: Outcome::Skipped,
            detail: String::new(),
            hint: String::new(),
            took: None,
        }));
        std::mem::take(&mut self.list)
    }

    /// The service refused, or stopped answering half-way.
    fn refused(&mut self, name: &'static str, error: &UpstreamError) -> Vec<Step> {
        let detail = format!("{} ({}: {})", error.detail, error.class, error.code);
        let hint = match error.class {
            FaultClass::Denied => denied_hint(self.kind, name),
            class => class_hint(class),
        };
        self.fail(name, detail, hint)
    }

    /// Clock, credentials and state of the key, all by one answer. `Some` when one of them failed.
    fn judge_description(&mut self, described: &Result<KeyDescription, UpstreamError>) -> Option<Vec<Step>> {
        let server_time = described.as_ref().ok().and_then(|description| description.server_time);
        self.clock(server_time, SystemTime::now());
        let here = |name, detail: &str| Step {
            name,
            outcome: Outcome::Passed,
            detail: detail.into(),
            hint: String::new(),
            took: None,
        };
        match described {
            Ok(description) => {
                self.list.push(here("credentials", "accepted"));
                self.key(description)
            }
            Err(error) => match error.class {
                // Who may use a key need not be allowed to describe it; encrypt and decrypt are what counts.
                FaultClass::Denied => {
                    self.list.push(here("credentials", "accepted"));
                    let detail = format!("may not be described ({})", error.code);
                    self.warn("key", detail, denied_hint(self.kind, "key"));
                    None
                }
                FaultClass::KeyGone | FaultClass::KeyDisabled => {
                    self.list.push(here("credentials", "accepted"));
                    Some(self.refused("key", error))
                }
                _ => Some(self.refused("credentials", error)),
            },
        }
    }

    fn clock(&mut self, server: Option<SystemTime>, here: SystemTime) {
        let Some(server) = server else {
            self.warn("clock", "not compared: the service's time is taken from a description of the key".into(), "");
            return;
        };
        let skew = server.duration_since(here).or_else(|error| Ok::<_, ()>(error.duration())).unwrap_or_default();
        let detail = format!("{} s beside the service's", skew.as_secs());
        if skew > SKEW_WORTH_A_WORD {
            let hint = "Keystead corrects its signatures by it; still, set the clock (chrony, systemd-timesyncd)";
            self.warn("clock", detail, hint);
        } else {
            let outcome = Outcome::Passed;
            self.list.push(Step { name: "clock", outcome, detail, hint: String::new(), took: None });
        }
    }

    fn key(&mut self, description: &KeyDescription) -> Option<Vec<Step>> {
        let protection = description.protection.as_deref().unwrap_or("unknown protection");
        match &description.state {
            KeyState::Enabled => {
                let detail = format!("{}: enabled, {protection}", description.key_id);
                let outcome = Outcome::Passed;
                self.list.push(Step { name: "key", outcome, detail, hint: String::new(), took: None });
                None
            }
            KeyState::Disabled => {
                let detail = format!("{} is disabled", description.key_id);
                Some(self.fail("key", detail, class_hint(FaultClass::KeyDisabled)))
            }
            KeyState::PendingDeletion => {
                let hint =
                    "Cancel the deletion in the cloud's console: once it is gone, what hangs on it alone is lost";
                Some(self.fail("key", format!("{} is about to be deleted", description.key_id), hint))
            }
            KeyState::Other(state) => {
                self.warn("key", format!("{} is in state {state}", description.key_id), "Look it up in the console");
                None
            }
        }
    }
}

async fn bounded<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// A context that no generation has: its key ID is fresh and is never seen again.
fn throwaway(upstream: &dyn Upstream, keyring: &KeyringId) -> Result<WrapContext, String> {
    let identity = upstream.identity();
    let number = GenerationNumber::FIRST;
    let key_id = KeyId::mint(keyring, number, random().map_err(|_| "the system's random source failed".to_owned())?);
    Ok(WrapContext {
        keyring: keyring.clone(),
        generation: number,
        key_id,
        root_kind: identity.kind,
        root_id: identity.root_id.clone(),
    })
}

fn name_hint(kind: RootKind) -> &'static str {
    match kind {
        RootKind::AlibabaKms => {
            "Look at /etc/resolv.conf. kms-vpc names and dedicated instances' names resolve inside the VPC only: set \
             network = \"public\", or the endpoint"
        }
        RootKind::IbmKeyProtect => {
            "Look at /etc/resolv.conf. private.* names lead into IBM's private network only: set network = \"public\""
        }
        _ => "Look at /etc/resolv.conf. A VPC endpoint's private name resolves inside the VPC only: set the endpoint",
    }
}

fn connection_hint(kind: RootKind) -> &'static str {
    match kind {
        RootKind::AlibabaKms => {
            "Let this site out to the endpoint's port, or set upstream.proxy. A dedicated instance lets in the VPCs and \
             address ranges (CIDR) of its access control only: add this site's there"
        }
        RootKind::IbmKeyProtect => {
            "Let this site out to the endpoint and to iam.cloud.ibm.com, or set upstream.proxy. The instance's allowed-IP \
             policy and IAM's IP restrictions must name this site's addresses (CIDR)"
        }
        _ => {
            "Let this site out to the endpoint's port, or set upstream.proxy. A VPC endpoint's security group must let in \
             this site's addresses (CIDR)"
        }
    }
}

/// Behind the first hop. A name or a port there is another host's, which hands out tokens.
fn way_hint(kind: RootKind, code: &str) -> &'static str {
    match code {
        codes::DNS => name_hint(kind),
        codes::TCP => connection_hint(kind),
        codes::TLS => {
            "Somebody else's certificate: a captive portal or an inspecting proxy is in the way, or the endpoint has a \
             private CA, which belongs into upstream.ca_file. A clock of the wrong year looks like this, too"
        }
        codes::CA_FILE => {
            "Put the endpoint's CA certificates into upstream.ca_file, in PEM, readable by the daemon's user"
        }
        codes::PROXY => "The proxy does not let this host through: add it to its list, or change upstream.proxy",
        codes::REDIRECT | codes::FOREIGN | codes::TOO_LONG => {
            "What answers is not the KMS: a captive portal, or a wrong endpoint"
        }
        codes::HTTP | codes::TIMEOUT => {
            "It is cut off on its way: look at firewalls that look into connections, and at MTU; else the service is down"
        }
        _ => class_hint(FaultClass::Unreachable),
    }
}

fn denied_hint(kind: RootKind, step: &str) -> &'static str {
    match (kind, step) {
        (RootKind::AlibabaKms, "encrypt") => {
            "Grant kms:GenerateDataKey and kms:Encrypt on this key in RAM; check the source-IP conditions (acs:SourceIp, \
             CIDR) of the policy and the instance's access control"
        }
        (RootKind::AlibabaKms, "decrypt") => {
            "Grant kms:Decrypt on this key in RAM: without it no restart is survived. Check acs:SourceIp conditions as well"
        }
        (RootKind::AlibabaKms, _) => {
            "Grant kms:DescribeKey and kms:ListKeyVersions: rotations in the cloud are noticed by them"
        }
        (RootKind::IbmKeyProtect, "key") => "Give the service ID the role Reader on the instance or the key",
        (RootKind::IbmKeyProtect, _) => {
            "Give the service ID the role Reader on the key. Allowed networks and allowed IPs (CIDR) of the instance, and IAM's \
             IP restriction of the user or service ID, refuse like this as well"
        }
        (_, "encrypt") => {
            "Grant kms:GenerateDataKey and kms:Encrypt in IAM and in the key policy; check aws:SourceIp (CIDR), aws:SourceVpce \
             and the VPC endpoint's policy"
        }
        (_, "decrypt") => {
            "Grant kms:Decrypt in IAM and in the key policy: without it no restart is survived. Check aws:SourceIp and \
             aws:SourceVpce as well"
        }
        _ => "Grant kms:DescribeKey: rotations in the cloud are noticed by it",
    }
}

fn class_hint(class: FaultClass) -> &'static str {
    match class {
        FaultClass::Unreachable => "The service is there and does not serve now: try again; it may be throttling",
        FaultClass::CredentialFault => {
            "Put a valid credential into the credentials file, or look at the platform's role; a clock far off makes valid \
             ones fail"
        }
        FaultClass::Billing => "Settle the cloud account's balance, or renew the KMS subscription",
        FaultClass::Denied => "Grant this credential the use of the key",
        FaultClass::KeyDisabled => "Enable the key in the cloud's console",
        FaultClass::KeyGone => {
            "Compare upstream.key, upstream.region and the account with the console: a key of another region looks gone"
        }
        FaultClass::Corrupt => "The answer does not belong to this key: look at what stands between here and the cloud",
        FaultClass::Unclassified => "Look the code up in the provider's documentation",
    }
}

#[cfg(test)]
mod tests;
