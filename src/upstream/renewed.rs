//! What a credential is exchanged for, and how long that is used: a token or session with an end.
//!
//! Renewed when 80 % of its life is over. While the exchange cannot be reached, what is held is used to its end.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use keystead_core::FaultClass;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::contract::UpstreamError;

/// After an exchange that failed while something valid was held, the next one waits this long.
const PAUSE: Duration = Duration::from_secs(30);
/// Nothing is used this close to its end: it must still be valid when it arrives.
const MARGIN: Duration = Duration::from_secs(10);

/// One exchange at a time; who comes meanwhile waits for its outcome.
pub struct Renewed<T> {
    held: Mutex<Option<Held<T>>>,
    /// When what is held ends, for who must not wait.
    end: std::sync::Mutex<Option<Instant>>,
}

struct Held<T> {
    value: Arc<T>,
    renew_at: Instant,
    usable_until: Instant,
}

/// What an exchange gave.
pub struct Exchanged<T> {
    pub value: T,
    /// From now on, by the service's own clock.
    pub life: Duration,
}

pub struct Lent<T> {
    pub value: Arc<T>,
    /// Exchanged for this very call: a service that refuses it does not refuse it for its age.
    pub fresh: bool,
}

impl<T> Default for Renewed<T> {
    fn default() -> Self {
        Self { held: Mutex::new(None), end: std::sync::Mutex::new(None) }
    }
}

impl<T> Renewed<T> {
    /// What is held, if it `fits` and is young enough, else what `exchange` gives. `exchange` keeps to `deadline` by itself.
    ///
    /// # Errors
    /// Those of `exchange`, when nothing valid is held.
    pub async fn get(
        &self,
        fits: impl Fn(&T) -> bool,
        deadline: Instant,
        exchange: impl Future<Output = Result<Exchanged<T>, UpstreamError>>,
    ) -> Result<Lent<T>, UpstreamError> {
        let Ok(mut held) = timeout_at(deadline, self.held.lock()).await else {
            let detail = "the exchange of the credential that another call waits for takes too long";
            return Err(UpstreamError::new(FaultClass::Unreachable, super::transport::codes::TIMEOUT, detail));
        };
        let now = Instant::now();
        if let Some(valid) = held.as_mut().filter(|held| fits(&held.value) && now < held.usable_until) {
            if now < valid.renew_at {
                return Ok(Lent { value: Arc::clone(&valid.value), fresh: false });
            }
            // A third of the time that is left: a token service that is silent must leave enough for the call itself.
            let limit = now + deadline.saturating_duration_since(now) / 3;
            match timeout_at(limit, exchange).await {
                Ok(Ok(new)) => return Ok(self.keep(&mut held, new)),
                Ok(Err(error)) if error.class != FaultClass::Unreachable => return Err(error),
                Ok(Err(error)) => tracing::warn!(code = error.code, "{}; the credential held is used on", error.detail),
                Err(_) => tracing::warn!("no answer to the exchange of the credential; the one held is used on"),
            }
            valid.renew_at = now + PAUSE;
            return Ok(Lent { value: Arc::clone(&valid.value), fresh: false });
        }
        let new = exchange.await?;
        Ok(self.keep(&mut held, new))
    }

    /// The service refuses `value`: it is not lent again.
    pub async fn reject(&self, value: &Arc<T>) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(&held.value, value)) {
            *held = None;
        }
    }

    /// When what is held ends, if anything is; `now` is the caller's clock, which the answer is told in.
    pub fn not_after(&self, now: SystemTime) -> Option<SystemTime> {
        let end = (*self.end.lock().unwrap_or_else(PoisonError::into_inner))?;
        let here = Instant::now();
        if end < here { now.checked_sub(here - end) } else { now.checked_add(end - here) }
    }

    fn keep(&self, held: &mut Option<Held<T>>, new: Exchanged<T>) -> Lent<T> {
        let now = Instant::now();
        let value = Arc::new(new.value);
        let usable = new.life.saturating_sub(MARGIN.min(new.life / 10));
        *held =
            Some(Held { value: Arc::clone(&value), renew_at: now + new.life.mul_f64(0.8), usable_until: now + usable });
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + new.life);
        Lent { value, fresh: true }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::advance;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct Service {
        renewed: Renewed<u32>,
        issued: AtomicU32,
    }

    impl Service {
        fn new() -> Self {
            Self { renewed: Renewed::default(), issued: AtomicU32::new(0) }
        }

        async fn get(&self, outcome: Result<(), FaultClass>) -> Result<(u32, bool), UpstreamError> {
            let exchange = async {
                outcome.map_err(|class| UpstreamError::new(class, "test", "a test"))?;
                Ok(Exchanged { value: self.issued.fetch_add(1, Ordering::Relaxed) + 1, life: HOUR })
            };
            let deadline = Instant::now() + Duration::from_secs(10);
            self.renewed.get(|_| true, deadline, exchange).await.map(|lent| (*lent.value, lent.fresh))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn renewed_when_four_fifths_of_its_life_are_over() {
        let service = Service::new();
        assert_eq!(service.get(Ok(())).await.unwrap(), (1, true));
        advance(HOUR.mul_f64(0.79)).await;
        assert_eq!(service.get(Ok(())).await.unwrap(), (1, false));
        advance(HOUR.mul_f64(0.02)).await;
        assert_eq!(service.get(Ok(())).await.unwrap(), (2, true));
    }

    #[tokio::test(start_paused = true)]
    async fn end_is_told_in_the_callers_time() {
        let (service, now) = (Service::new(), SystemTime::UNIX_EPOCH + HOUR);
        assert_eq!(service.renewed.not_after(now), None);
        service.get(Ok(())).await.unwrap();
        assert_eq!(service.renewed.not_after(now), Some(now + HOUR));
        advance(HOUR * 3 / 2).await;
        assert_eq!(service.renewed.not_after(now), Some(now - HOUR / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn valid_one_is_used_to_its_end_while_the_exchange_is_unreachable() {
        let service = Service::new();
        service.get(Ok(())).await.unwrap();
        advance(HOUR.mul_f64(0.9)).await;
        assert_eq!(service.get(Err(FaultClass::Unreachable)).await.unwrap(), (1, false));
        // Within the pause nobody asks again.
        assert_eq!(service.get(Ok(())).await.unwrap(), (1, false));
        advance(HOUR.mul_f64(0.1)).await;
        assert_eq!(service.get(Err(FaultClass::Unreachable)).await.unwrap_err().class, FaultClass::Unreachable);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_exchange_leaves_time_for_the_call() {
        let service = Service::new();
        service.get(Ok(())).await.unwrap();
        advance(HOUR.mul_f64(0.9)).await;
        let start = Instant::now();
        let deadline = start + Duration::from_secs(9);
        let lent = service.renewed.get(|_| true, deadline, std::future::pending()).await.unwrap();
        assert_eq!((*lent.value, start.elapsed()), (1, Duration::from_secs(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn refused_or_ill_fitting_one_is_not_lent_again() {
        let service = Service::new();
        service.get(Ok(())).await.unwrap();
        let held = service.renewed.held.lock().await.as_ref().map(|held| Arc::clone(&held.value)).unwrap();
        service.renewed.reject(&held).await;
        assert_eq!(service.get(Ok(())).await.unwrap(), (2, true));
        // One that is held already by now is not taken away by a late refusal of the one before.
        service.renewed.reject(&held).await;
        assert_eq!(service.get(Ok(())).await.unwrap(), (2, false));
        let deadline = Instant::now() + Duration::from_secs(10);
        let exchange = async { Ok(Exchanged { value: 9, life: HOUR }) };
        assert_eq!(*service.renewed.get(|value| *value == 9, deadline, exchange).await.unwrap().value, 9);
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_of_the_credential_itself_is_told_at_once() {
        let service = Service::new();
        service.get(Ok(())).await.unwrap();
        advance(HOUR.mul_f64(0.9)).await;
        let error = service.get(Err(FaultClass::CredentialFault)).await.unwrap_err();
        assert_eq!(error.class, FaultClass::CredentialFault);
    }
}
