//! How values of every kind are judged: paths, sockets, counts, sizes, durations, accounts. Each table's own file says which it has.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Gid;
use toml::Spanned;

use super::accounts;
use super::error::{ConfigError, Place};
use super::raw::Account;
use super::site::{Site, resolve};
use super::units::{Size, show_duration, show_size};

/// In seconds.
pub(super) const DAY: u64 = 24 * 3600;

/// What every value is judged with.
pub(super) struct Builder<'a> {
    pub(super) place: &'a Place<'a>,
    pub(super) folder: &'a Path,
    pub(super) site: &'a Site,
    /// Who is let in unless the file says otherwise: whoever runs the daemon, except the custodian's user.
    pub(super) owner: u32,
}

impl Builder<'_> {
    pub(super) fn path(
        &self,
        key: &str,
        given: Option<Spanned<PathBuf>>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        let Some(given) = given else { return Ok(PathBuf::from(default)) };
        let bytes = given.get_ref().as_os_str().as_bytes();
        if bytes.is_empty() || bytes.contains(&0) {
            return Err(self.place.fault(given.span(), key, "is not a path", None));
        }
        Ok(resolve(self.folder, given.get_ref()))
    }

    pub(super) fn socket(
        &self,
        key: &str,
        given: Option<Spanned<PathBuf>>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        let span = given.as_ref().map_or(0..0, Spanned::span);
        let is_abstract = given.as_ref().is_some_and(|path| path.get_ref().as_os_str().as_bytes().starts_with(b"@"));
        if is_abstract {
            let help = "an abstract socket has no owner and no mode; give the path of a file";
            return Err(self.place.fault(span, key, "is an abstract socket", Some(help)));
        }
        let path = self.path(key, given, default)?;
        let length = path.as_os_str().len();
        // sun_path holds 108 bytes with the final NUL (unix(7)).
        if length > 107 {
            let problem = format_args!("is {length} bytes long as an absolute path; a unix socket may have 107");
            return Err(self.place.fault(span, key, problem, None));
        }
        Ok(path)
    }

    pub(super) fn short(&self, key: &str, given: Spanned<String>, longest: usize) -> Result<String, ConfigError> {
        let text = given.get_ref();
        if text.is_empty() || text.len() > longest || text.chars().any(char::is_control) {
            let problem = format_args!("must have 1 to {longest} printable bytes");
            return Err(self.place.fault(given.span(), key, problem, None));
        }
        Ok(given.into_inner())
    }

    pub(super) fn count(
        &self,
        key: &str,
        given: Option<Spanned<i64>>,
        default: usize,
        bounds: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        usize::try_from(*given.get_ref())
            .ok()
            .filter(|count| bounds.contains(count))
            .ok_or_else(|| self.out_of_bounds(given.span(), key, bounds.start(), bounds.end()))
    }

    pub(super) fn size(
        &self,
        key: &str,
        given: Option<Spanned<Size>>,
        default: usize,
        bounds: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let Some(given) = given else { return Ok(default) };
        let shown = |bytes: &usize| show_size(*bytes as u64);
        usize::try_from(given.get_ref().0)
            .ok()
            .filter(|size| bounds.contains(size))
            .ok_or_else(|| self.out_of_bounds(given.span(), key, shown(bounds.start()), shown(bounds.end())))
    }

    pub(super) fn duration(
        &self,
        key: &str,
        given: Option<(Range<usize>, Duration)>,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let Some((span, duration)) = given else { return Ok(default) };
        if bounds.contains(&duration) {
            return Ok(duration);
        }
        Err(self.out_of_bounds(span, key, show_duration(*bounds.start()), show_duration(*bounds.end())))
    }

    fn out_of_bounds(&self, span: Range<usize>, key: &str, least: impl Display, most: impl Display) -> ConfigError {
        self.place.fault(span, key, format_args!("must lie between {least} and {most}"), None)
    }

    pub(super) fn group(&self, key: &str, given: Option<Spanned<Account>>) -> Result<Option<Gid>, ConfigError> {
        let gid = given.map(|account| self.account(key, account, accounts::gid, "group")).transpose()?;
        Ok(gid.map(Gid::from_raw))
    }

    pub(super) fn uids(
        &self,
        key: &str,
        given: Option<Vec<Spanned<Account>>>,
        default: &[u32],
    ) -> Result<Vec<u32>, ConfigError> {
        match given {
            Some(list) => self.accounts(key, list, accounts::uid, "user"),
            None => {
                let mut uids = default.to_vec();
                // The daemon's own user may be root.
                uids.dedup();
                Ok(uids)
            }
        }
    }

    pub(super) fn gids(&self, key: &str, given: Option<Vec<Spanned<Account>>>) -> Result<Vec<u32>, ConfigError> {
        self.accounts(key, given.unwrap_or_default(), accounts::gid, "group")
    }

    fn accounts(
        &self,
        key: &str,
        given: Vec<Spanned<Account>>,
        lookup: fn(&Site, &str) -> Option<u32>,
        what: &str,
    ) -> Result<Vec<u32>, ConfigError> {
        given.into_iter().map(|account| self.account(key, account, lookup, what)).collect()
    }

    fn account(
        &self,
        key: &str,
        given: Spanned<Account>,
        lookup: fn(&Site, &str) -> Option<u32>,
        what: &str,
    ) -> Result<u32, ConfigError> {
        match given.get_ref() {
            Account::Id(id) => Ok(*id),
            Account::Name(name) => lookup(self.site, name).ok_or_else(|| {
                let problem = format_args!("there is no local {what} {name:?}");
                self.place.fault(given.span(), key, problem, Some("create it, or write its number"))
            }),
        }
    }
}
