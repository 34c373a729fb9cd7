//! Where the service takes its time from: the kernel's clocks in the daemon, a test's own in a test.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use keystead_core::lease::Clocks;
use rustix::time::{ClockId, clock_gettime};

use crate::custody::contract::DeviceClock;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// All clocks of one machine.
pub trait Clock: Send + Sync {
    fn now(&self) -> Clocks;
}

/// The machine's own.
#[derive(Debug, Clone)]
pub struct SystemClock {
    boot: String,
}

impl SystemClock {
    /// Reads the boot ID once: call it before the sandbox is closed.
    ///
    /// # Errors
    /// Where /proc is not mounted; a lease could then not tell a restart from a reboot.
    pub fn new() -> io::Result<Self> {
        let boot = std::fs::read_to_string(BOOT_ID)?.trim().to_owned();
        match boot.len() {
            1..=64 => Ok(Self { boot }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{BOOT_ID} holds no boot ID"))),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Clocks {
        Clocks {
            boot: self.boot.clone(),
            boot_time: boot_time().as_secs(),
            wall: unix_now(),
            device: None,
            resets: None,
        }
    }
}

/// Unix seconds; 1 in the first second of 1970 and before, for 0 reads as *never*. For people, never for a decision.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs().max(1))
}

/// A machine's clocks, and that of the device in custody once it has said what it shows: read once, it is carried on by
/// boot time.
pub(super) struct WithDevice {
    machine: Arc<dyn Clock>,
    /// And the boot time at which it did.
    read: Mutex<Option<(DeviceClock, u64)>>,
}

impl WithDevice {
    pub fn new(machine: Arc<dyn Clock>) -> Self {
        Self { machine, read: Mutex::default() }
    }

    /// The machine's clocks alone.
    pub fn machine(&self) -> Arc<dyn Clock> {
        self.machine.clone()
    }

    /// The device says this now.
    pub fn shows(&self, told: DeviceClock) {
        let now = self.machine.now().boot_time;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((told, now));
    }

    pub fn now(&self) -> Clocks {
        let now = self.machine.now();
        let read = *self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((told, at)) = read else { return now };
        let device = told.seconds.saturating_add(now.boot_time.saturating_sub(at));
        Clocks { device: Some(device), resets: Some(told.resets), ..now }
    }
}

/// Time since boot, suspend included; never steps.
pub(super) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The latest moment that is known to have passed, by the cloud's clock and by when this program was built: a machine whose
/// clock fell back to 1970 still checks certificates by it. The machine's own clock is not remembered here, or one
/// step into the future would refuse every certificate ever after.
#[derive(Debug, Clone)]
pub struct KnownTime(Arc<AtomicU64>);

impl KnownTime {
    /// `built` in Unix seconds.
    pub fn new(built: u64) -> Self {
        Self(Arc::new(AtomicU64::new(built)))
    }

    /// Unix seconds.
    pub fn latest(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn passed(&self, moment: u64) {
        self.0.fetch_max(moment, Ordering::Relaxed);
    }

    /// Now, for certificates: by the machine's clock, unless that is known to be behind.
    pub fn now(&self) -> SystemTime {
        let known = SystemTime::UNIX_EPOCH + Duration::from_secs(self.latest());
        SystemTime::now().max(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_clock_names_this_boot_and_runs() {
        let clock = SystemClock::new().unwrap();
        let (one, other) = (clock.now(), SystemClock::new().unwrap().now());
        assert_eq!(one.boot, other.boot);
        assert!(!one.boot.is_empty() && other.boot_time >= one.boot_time);
    }

    #[test]
    fn known_time_never_goes_back() {
        let far = unix_now() + 1_000_000;
        let known = KnownTime::new(5);
        assert!(known.now() >= SystemTime::now() - Duration::from_secs(60));
        known.clone().passed(far);
        known.passed(7);
        assert_eq!(known.now(), SystemTime::UNIX_EPOCH + Duration::from_secs(far));
    }
}
