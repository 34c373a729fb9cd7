//! `[rotation]`: when the key is rotated by itself.

use std::time::Duration;

use keystead_core::schedule::{NoWindow, Schedule, Window};
use toml::Spanned;

use super::builder::Builder;
use super::error::ConfigError;
use super::raw;

const HOUR: Duration = Duration::from_secs(3600);
const TEN_YEARS: Duration = Duration::from_secs(3660 * 24 * 3600);

impl Builder<'_> {
    pub(super) fn rotation(&self, raw: raw::Rotation) -> Result<Option<Schedule>, ConfigError> {
        let raw::Rotation { every, jitter, window } = raw;
        let Some(every) = every else {
            let lone = [
                ("rotation.jitter", jitter.map(|jitter| jitter.span())),
                ("rotation.window", window.map(|window| window.span())),
            ];
            return match lone.into_iter().find_map(|(key, span)| Some((key, span?))) {
                None => Ok(None),
                Some((key, span)) => {
                    let help = "set rotation.every, too, as \"90d\"";
                    Err(self.place.fault(span, key, "does nothing without every", Some(help)))
                }
            };
        };
        let given = Some((every.span(), every.get_ref().0));
        let every = self.duration("rotation.every", given, HOUR, HOUR..=TEN_YEARS)?;
        let jitter = jitter.map(|jitter| (jitter.span(), jitter.get_ref().0));
        let jitter = self.duration("rotation.jitter", jitter, every / 10, Duration::ZERO..=every / 2)?;
        Ok(Some(Schedule { every, jitter, window: window.map(|window| self.window(&window)).transpose()? }))
    }

    fn window(&self, given: &Spanned<String>) -> Result<Window, ConfigError> {
        given
            .get_ref()
            .parse()
            .map_err(|error: NoWindow| self.place.fault(given.span(), "rotation.window", error, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Site, Source};

    fn read(table: &str) -> Result<Option<Schedule>, String> {
        let source = Source::from_parts(None, format!("node = \"n\"\n[rotation]\n{table}\n"));
        let settings = Settings::from_source(&source, &Site::this_machine());
        settings.map(|settings| settings.rotation).map_err(|error| error.to_string())
    }

    #[test]
    fn off_unless_an_age_is_set_and_spread_unless_said_otherwise() {
        assert_eq!(read("").unwrap(), None);
        let day = Duration::from_secs(86_400);
        assert_eq!(read("every = '90d'").unwrap(), Some(Schedule { every: day * 90, jitter: day * 9, window: None }));
        let full = read("every = '1h'\njitter = '0s'\nwindow = 'sat,sun 22:00-04:00'").unwrap().unwrap();
        assert_eq!((full.jitter, full.window.unwrap().to_string().as_str()), (Duration::ZERO, "sat,sun 22:00-04:00"));
    }

    #[test]
    fn mistakes_are_named_with_what_is_possible() {
        for (table, part) in [
            ("every = '59m'", "rotation.every: must lie between 1h and 3660d"),
            ("every = '4000d'", "must lie between"),
            ("every = '90d'\njitter = '46d'", "rotation.jitter: must lie between 0s and 45d"),
            ("jitter = '1h'", "does nothing without every"),
            ("window = '01:00-02:00'", "does nothing without every"),
            ("every = '90d'\nwindow = 'at night'", "mon-fri 22:00-04:00"),
            ("evry = '90d'", "did you mean `every`?"),
        ] {
            let error = read(table).unwrap_err();
            assert!(error.contains(part), "{table}: {error}");
        }
    }
}
