//! The script: one rule a line, `FUNCTION FAULT [after N] [times M]`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cryptoki_sys::{CK_FLAGS, CK_RV, CKF_USER_PIN_COUNT_LOW, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED};

use crate::codes;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Latency(Duration),
    Error(CK_RV),
    /// The call never returns.
    Hang,
    /// The process dies of SIGSEGV.
    Crash,
    /// C_FindObjects finds nothing, C_GetSlotList shows no slot.
    Empty,
    /// Set in what C_GetTokenInfo says.
    Flags(CK_FLAGS),
}

#[derive(Debug)]
pub(crate) struct Rule {
    /// None: every function.
    function: Option<String>,
    pub(crate) fault: Fault,
    /// So many calls are spared first.
    after: u64,
    /// So many are hit then; None: all.
    times: Option<u64>,
    calls: AtomicU64,
}

impl Rule {
    /// Empty lines and those that begin with `#` are none.
    ///
    /// # Errors
    /// Names the first line that is no rule.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().map(str::trim).zip(1..).filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        lines.map(|(line, number)| Self::parse(line).map_err(|problem| format!("line {number}: {problem}"))).collect()
    }

    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let function = words.next().unwrap_or_default();
        if function != "*" && !function.starts_with("C_") {
            return Err(format!("{function} is neither a function (C_Sign) nor `*`"));
        }
        let mut next = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
        let fault = match next("the fault")? {
            "latency" => Fault::Latency(duration(next("the time")?)?),
            "error" => {
                let word = next("the code")?;
                Fault::Error(codes::parse(word).ok_or_else(|| format!("{word} is no code of PKCS#11"))?)
            }
            "hang" => Fault::Hang,
            "crash" => Fault::Crash,
            "empty" if matches!(function, "C_FindObjects" | "C_GetSlotList") => Fault::Empty,
            "empty" => return Err("`empty` is for C_FindObjects and C_GetSlotList".into()),
            "flags" if function == "C_GetTokenInfo" => Fault::Flags(match next("the flag")? {
                "count-low" => CKF_USER_PIN_COUNT_LOW,
                "final-try" => CKF_USER_PIN_FINAL_TRY,
                "locked" => CKF_USER_PIN_LOCKED,
                other => return Err(format!("{other} is no flag: count-low, final-try or locked")),
            }),
            "flags" => return Err("`flags` is for C_GetTokenInfo".into()),
            other => return Err(format!("{other} is no fault")),
        };
        let (mut after, mut times) = (0, None);
        while let Some(word) = words.next() {
            let number = words.next().and_then(|number| number.parse().ok());
            let number = number.ok_or_else(|| format!("`{word}` wants a number"))?;
            match word {
                "after" => after = number,
                "times" => times = Some(number),
                other => return Err(format!("{other} is neither `after` nor `times`")),
            }
        }
        let function = (function != "*").then(|| function.to_owned());
        Ok(Self { function, fault, after, times, calls: AtomicU64::new(0) })
    }

    pub(crate) fn names(&self, function: &str) -> bool {
        self.function.as_deref().is_none_or(|name| name == function)
    }

    /// Counts a call, and says whether it is hit.
    pub(crate) fn is_due(&self) -> bool {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        call >= self.after && self.times.is_none_or(|times| call - self.after < times)
    }
}

/// `300ms`, `2s`.
fn duration(word: &str) -> Result<Duration, String> {
    let parsed = match word.strip_suffix("ms") {
        Some(number) => number.parse().ok().map(Duration::from_millis),
        None => word.strip_suffix('s').and_then(|number| number.parse().ok()).map(Duration::from_secs),
    };
    parsed.ok_or_else(|| format!("{word} is no time, such as 300ms or 2s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_spares_and_hits_as_many_calls_as_it_says() {
        let rules =
            Rule::parse_all("# a device that drops out\n\nC_Sign error CKR_DEVICE_REMOVED after 3 times 2\n").unwrap();
        assert_eq!(rules[0].fault, Fault::Error(0x32));
        let hits: Vec<_> = (0..7).map(|_| rules[0].is_due()).collect();
        assert_eq!(hits, [false, false, false, true, true, false, false]);
        assert!(rules[0].names("C_Sign") && !rules[0].names("C_SignInit"));
    }

    #[test]
    fn every_kind_of_line_is_read() {
        for line in [
            "C_Decrypt latency 300ms",
            "* latency 1s",
            "C_Encrypt hang",
            "* crash after 10",
            "C_FindObjects empty times 1",
            "C_GetSlotList empty",
            "C_GetTokenInfo flags locked",
            "C_Decrypt error 0x80000001",
        ] {
            assert_eq!(Rule::parse_all(line).map(|rules| rules.len()), Ok(1), "{line}");
        }
    }

    #[test]
    fn line_that_is_no_rule_is_named() {
        for line in [
            "Sign hang",
            "C_Sign",
            "C_Sign explode",
            "C_Sign error CKR_NO_SUCH",
            "C_Sign error CKR_OK",
            "C_Sign error 0x0",
            "C_Sign latency soon",
            "C_Sign empty",
            "C_Sign flags locked",
            "C_GetTokenInfo flags lost",
            "C_Sign hang after",
            "C_Sign hang twice 2",
        ] {
            let problem = Rule::parse_all(&format!("# first\n{line}\n")).unwrap_err();
            assert!(problem.starts_with("line 2: "), "{line}: {problem}");
        }
    }
}
