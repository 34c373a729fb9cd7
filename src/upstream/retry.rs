//! Trying again within one call: only what may pass by itself, with jitter, until the call's deadline.

use std::time::Duration;

use keystead_core::FaultClass;
use tokio::time::{Instant, sleep};

use super::contract::UpstreamError;
use super::transport::codes;

const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// ```ignore
/// let mut retry = Retry::new(deadline);
/// loop {
///     match self.attempt(deadline).await {
///         Ok(answer) => return Ok(answer),
///         Err(error) => retry.wait_after(error).await?,
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Retry {
    deadline: Instant,
    failed: u32,
}

impl Retry {
    pub fn new(deadline: Instant) -> Self {
        Self { deadline, failed: 0 }
    }

    /// Waits until it makes sense to try again.
    ///
    /// # Errors
    /// `error` itself when it would not: another try changes nothing, there were enough, or there is no time left.
    pub async fn wait_after(&mut self, error: UpstreamError) -> Result<(), UpstreamError> {
        self.failed += 1;
        if self.failed >= ATTEMPTS || !may_pass(&error) {
            return Err(error);
        }
        let wait = error.retry_after.unwrap_or_default() + jittered(FIRST_WAIT * 2_u32.pow(self.failed - 1), random());
        if Instant::now() + wait >= self.deadline {
            return Err(error);
        }
        sleep(wait).await;
        Ok(())
    }
}

/// A captive portal, a foreign CA or a broken file does not go away within seconds; what timed out has had its seconds.
fn may_pass(error: &UpstreamError) -> bool {
    const LASTING: [&str; 6] =
        [codes::TLS, codes::TIMEOUT, codes::CA_FILE, codes::REDIRECT, codes::TOO_LONG, codes::FOREIGN];
    error.class == FaultClass::Unreachable && !LASTING.contains(&error.code.as_str())
}

/// Between half of `wait` and all of it: sites that failed together come back apart.
pub fn jittered(wait: Duration, random: u32) -> Duration {
    wait.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// Falls back to no jitter at all; a kernel without random numbers has other worries.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(class: FaultClass, code: &str) -> UpstreamError {
        UpstreamError::new(class, code, "a test")
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_three_times_and_the_rest_once() {
        let mut retry = Retry::new(Instant::now() + Duration::from_secs(10));
        for _ in 0..2 {
            retry.wait_after(failure(FaultClass::Unreachable, codes::TCP)).await.unwrap();
        }
        retry.wait_after(failure(FaultClass::Unreachable, codes::TCP)).await.unwrap_err();
        for class in FaultClass::ALL.into_iter().filter(|class| *class != FaultClass::Unreachable) {
            Retry::new(Instant::now() + Duration::from_secs(10)).wait_after(failure(class, "x")).await.unwrap_err();
        }
        for lasting in [codes::TLS, codes::TIMEOUT] {
            let mut retry = Retry::new(Instant::now() + Duration::from_secs(10));
            retry.wait_after(failure(FaultClass::Unreachable, lasting)).await.unwrap_err();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wait_beyond_the_deadline_is_not_begun() {
        let start = Instant::now();
        let throttled = UpstreamError {
            retry_after: Some(Duration::from_secs(30)),
            ..failure(FaultClass::Unreachable, "Throttling")
        };
        Retry::new(start + Duration::from_secs(10)).wait_after(throttled).await.unwrap_err();
        assert_eq!(Instant::now(), start);
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        let second = Duration::from_secs(1);
        assert_eq!(jittered(second, 0), second / 2);
        assert_eq!(jittered(second, u32::MAX), second);
    }
}
