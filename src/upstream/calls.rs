//! Counts upstream calls by operation: what the day's count and its cost are made of.

use std::sync::atomic::{AtomicU64, Ordering};

/// Calls since the start, by the provider's own operation names. Counted per request that was sent, retries included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallCounts {
    pub operations: Vec<OperationCalls>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationCalls {
    pub operation: &'static str,
    /// Whether the provider bills it as a use of the key. Token and role exchanges are free.
    pub billed: bool,
    pub succeeded: u64,
    pub failed: u64,
}

impl CallCounts {
    /// Requests that the provider may bill.
    pub fn billed(&self) -> u64 {
        self.operations.iter().filter(|calls| calls.billed).map(|calls| calls.succeeded + calls.failed).sum()
    }
}

/// The counters of one provider.
#[derive(Debug)]
pub struct Calls(Vec<Counter>);

#[derive(Debug)]
struct Counter {
    operation: &'static str,
    billed: bool,
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Calls {
    /// `billed` operations use the key, `free` ones do not.
    pub fn new(billed: &[&'static str], free: &[&'static str]) -> Self {
        let counter = |billed| {
            move |&operation| Counter { operation, billed, succeeded: AtomicU64::new(0), failed: AtomicU64::new(0) }
        };
        Self(billed.iter().map(counter(true)).chain(free.iter().map(counter(false))).collect())
    }

    /// `operation` is one of those given to [`Calls::new`]; another is not counted.
    pub fn count(&self, operation: &str, succeeded: bool) {
        if let Some(counter) = self.0.iter().find(|counter| counter.operation == operation) {
            let cell = if succeeded { &counter.succeeded } else { &counter.failed };
            cell.fetch_add(1, Ordering::Relaxed);
        } else {
            debug_assert!(false, "{operation} has no counter");
        }
    }

    pub fn snapshot(&self) -> CallCounts {
        let read = |counter: &Counter| OperationCalls {
            operation: counter.operation,
            billed: counter.billed,
            succeeded: counter.succeeded.load(Ordering::Relaxed),
            failed: counter.failed.load(Ordering::Relaxed),
        };
        CallCounts { operations: self.0.iter().map(read).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_operations_are_counted_but_not_billed() {
        let calls = Calls::new(&["Decrypt"], &["AssumeRole"]);
        calls.count("Decrypt", true);
        calls.count("Decrypt", false);
        calls.count("AssumeRole", true);
        let counts = calls.snapshot();
        assert_eq!(counts.billed(), 2);
        assert_eq!(counts.operations.iter().map(|calls| calls.succeeded).sum::<u64>(), 2);
    }
}
