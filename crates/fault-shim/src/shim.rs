//! The shim at work: the real module, the script as it stands, and what it says of a call.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cryptoki_sys::{CK_FLAGS, CK_FUNCTION_LIST, CK_RV};

use crate::entry;
use crate::script::{Fault, Rule};

static SHIM: OnceLock<Shim> = OnceLock::new();

pub(crate) struct Shim {
    pub(crate) real: CK_FUNCTION_LIST,
    /// None: forwards and no more.
    script: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the file that the rules were read from; changes with it.
    stamp: Option<(u64, i64, i64, u64)>,
    rules: Vec<Rule>,
}

/// What to do with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Forward,
    Answer(CK_RV),
    Empty,
    Flags(CK_FLAGS),
}

impl Shim {
    /// Loads the real module, once.
    pub(crate) fn start() -> Result<(), String> {
        if SHIM.get().is_some() {
            return Ok(());
        }
        let module = std::env::var_os("KEYSTEAD_SHIM_MODULE").ok_or("KEYSTEAD_SHIM_MODULE does not name a module")?;
        let shim = Self {
            real: entry::load(module.as_ref())?,
            script: std::env::var_os("KEYSTEAD_SHIM_SCRIPT").map(PathBuf::from),
            state: Mutex::default(),
        };
        shim.refresh(&mut shim.state())?;
        // Another thread may have been faster; it loaded the same.
        let _ = SHIM.set(shim);
        Ok(())
    }

    /// Only functions of the list come here, and nobody has that before [`Self::start`].
    pub(crate) fn get() -> &'static Self {
        SHIM.get().expect("the list was given out after the start")
    }

    /// What the script says of a call of `function`, after any delay it asks for.
    pub(crate) fn verdict(&self, function: &str) -> Verdict {
        let (delay, fault) = {
            let mut state = self.state();
            if let Err(problem) = self.refresh(&mut state) {
                eprintln!("keystead-fault-shim: {problem}; the rules before stay in force");
            }
            judge(&state.rules, function)
        };
        std::thread::sleep(delay);
        match fault {
            None | Some(Fault::Latency(_)) => Verdict::Forward,
            Some(Fault::Error(code)) => Verdict::Answer(code),
            Some(Fault::Empty) => Verdict::Empty,
            Some(Fault::Flags(flags)) => Verdict::Flags(flags),
            Some(Fault::Hang) => loop {
                std::thread::park();
            },
            Some(Fault::Crash) => crash(),
        }
    }

    /// Reads the script if it is not the one that was read last. A script that is not there has no rules.
    fn refresh(&self, state: &mut State) -> Result<(), String> {
        let Some(path) = &self.script else { return Ok(()) };
        let stamp = std::fs::metadata(path).ok().map(|file| (file.ino(), file.mtime(), file.mtime_nsec(), file.size()));
        if stamp == state.stamp {
            return Ok(());
        }
        // Also when it cannot be read: said once, not at every call.
        state.stamp = stamp;
        let text = match stamp {
            Some(_) => std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
            None => String::new(),
        };
        state.rules = Rule::parse_all(&text).map_err(|problem| format!("{}: {problem}", path.display()))?;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All delays, and the first fault that is none.
fn judge(rules: &[Rule], function: &str) -> (Duration, Option<Fault>) {
    let mut delay = Duration::ZERO;
    for rule in rules.iter().filter(|rule| rule.names(function) && rule.is_due()) {
        match rule.fault {
            Fault::Latency(time) => delay += time,
            fault => return (delay, Some(fault)),
        }
    }
    (delay, None)
}

/// A real bad access, as a broken module makes one.
#[allow(unsafe_code)]
fn crash() -> ! {
    // SAFETY: none: this is the fault that was asked for. Nothing is ever mapped there.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_add_up_until_the_first_other_fault() {
        let rules =
            Rule::parse_all("* latency 2ms\nC_Sign latency 1ms\nC_Sign error CKR_DEVICE_ERROR times 1\n").unwrap();
        assert_eq!(judge(&rules, "C_Sign"), (Duration::from_millis(3), Some(Fault::Error(0x30))));
        assert_eq!(judge(&rules, "C_Sign"), (Duration::from_millis(3), None));
        assert_eq!(judge(&rules, "C_Verify"), (Duration::from_millis(2), None));
    }
}
