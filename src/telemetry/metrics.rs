//! The metrics registry: rooms register what they count, a scrape reads it.
//!
//! Names begin with `keystead_`, written out where a metric is registered so that a search for one finds it. Nothing here is on a request's path: rooms count in atomics of their own, the text is made
//! when somebody asks.

use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The type of the text that [`Metrics::render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that a scrape shows. Built once by the server process, then only read.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry that knows this build. Rooms add theirs through [`Metrics::registry`].
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register("keystead_build", "The running build", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry }
    }

    /// Where rooms register: `room.register(metrics.registry())`.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// All metrics in the OpenMetrics text format.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_registry_shows_the_build_and_ends_as_openmetrics_demands() {
        let page = Metrics::new().render().unwrap();
        assert!(
            page.contains(concat!("keystead_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")),
            "{page}"
        );
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}
