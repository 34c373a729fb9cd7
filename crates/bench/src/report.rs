//! What a run found: as JSON, and as Markdown tables of at most 100 columns with a verdict for each budget.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::echo::Lengths;
use crate::load::{Call, Sample};
use crate::procfs::Memory;
use crate::stats;

/// docs/performance.md says where each comes from.
pub mod budget {
    /// Encrypt and Decrypt per second, against the echo server's.
    pub const THROUGHPUT_RATIO: f64 = 0.90;
    /// CPU time of the server's process per request, against the echo server's.
    pub const CPU_RATIO: f64 = 1.2;
    /// The same two with every request in the audit trail.
    pub const AUDITED_THROUGHPUT_RATIO: f64 = 0.80;
    pub const AUDITED_CPU_RATIO: f64 = 1.4;
    pub const SERVER_MEMORY_MB: f64 = 10.0;
    pub const CUSTODIAN_MEMORY_MB: f64 = 12.0;
    pub const SUPERVISOR_MEMORY_MB: f64 = 3.0;
    /// On SoftHSM. A TPM needs as long as it needs.
    pub const START_MS: f64 = 25.0;
    /// With the cloud and cluster features, as the default build has them; 12 without.
    pub const BINARY_MB: f64 = 25.0;
    /// Above this, what else ran on the machine moves ratios by more than the budgets leave room for.
    pub const NOISE_CORES: f64 = 0.1;
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub options: Options,
    /// What stood in Keystead's place, if it was not Keystead.
    pub calibration: bool,
    pub lengths: Option<Lengths>,
    /// Threads of the daemon's server process.
    pub server_threads: Option<usize>,
    pub cells: Vec<Cell>,
    /// As `cells`, of a daemon whose cloud is a black hole.
    pub outage: Vec<Cell>,
    /// As `cells`, of a daemon that has every request in its audit trail.
    pub audited: Vec<Cell>,
    pub lines: Option<Lines>,
    /// Largest seen under load, by process.
    pub memory: BTreeMap<&'static str, Memory>,
    pub start: Option<Start>,
    pub burst: Option<Burst>,
    pub generations: Vec<Step>,
    pub binary: Option<Binary>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// What became of the requests that were to be recorded.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Lines {
    /// Encrypts and Decrypts that were answered.
    pub answered: u64,
    /// Lines of the trail.
    pub written: u64,
    pub lost: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    pub kernel: String,
    /// One-minute load average before the run began.
    pub load_before: f64,
}

#[derive(Debug, Default, Serialize)]
pub struct Options {
    pub rounds: usize,
    pub seconds: f64,
    pub warm_up: f64,
    pub workers: usize,
    pub client_threads: usize,
    /// On a TPM, in place of SoftHSM.
    pub tpm: bool,
}

/// One call at one concurrency: one sample a round of each server, taken one right after the other.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub call: Call,
    pub concurrency: usize,
    pub echo: Vec<Sample>,
    pub keystead: Vec<Sample>,
}

/// From spawn to the first `ok` of Status, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Start {
    pub echo: Vec<f64>,
    pub keystead: Vec<f64>,
}

/// Decrypts of distinct seeds right after a restart.
#[derive(Debug, Clone, Serialize)]
pub struct Burst {
    pub seeds: usize,
    pub seconds: f64,
    pub generations: u32,
    pub loaded_before: u32,
    /// Of all kinds, until the daemon served.
    pub operations_of_start: u64,
    /// By the burst.
    pub operations: BTreeMap<String, u64>,
}

/// The same measurements with one number of generations.
#[derive(Debug, Serialize)]
pub struct Step {
    pub generations: u32,
    pub rotation_ms: Option<f64>,
    pub start_ms: f64,
    pub burst: Burst,
    pub cells: Vec<Cell>,
    pub server: Memory,
}

#[derive(Debug, Serialize)]
pub struct Binary {
    pub bytes: u64,
    pub stripped: bool,
}

/// Values of Keystead against the echo server's, of one cell.
struct Ratio {
    median: f64,
    /// Lower and upper quartile.
    low: f64,
    high: f64,
}

impl Cell {
    /// Median over the rounds of what `of` takes from a sample.
    fn echo(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        stats::median(self.echo.iter().map(of)).unwrap_or(f64::NAN)
    }

    fn keystead(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        stats::median(self.keystead.iter().map(of)).unwrap_or(f64::NAN)
    }

    /// Median of the ratios of each round, so that a machine that slows down between rounds moves no ratio.
    fn ratio(&self, of: impl Fn(&Sample) -> f64) -> Ratio {
        let ratios = || self.keystead.iter().zip(&self.echo).map(|(keystead, echo)| of(keystead) / of(echo));
        let (low, high) = stats::quartiles(ratios()).unwrap_or((f64::NAN, f64::NAN));
        Ratio { median: stats::median(ratios()).unwrap_or(f64::NAN), low, high }
    }
}

impl Burst {
    /// What the budget allows: one unwrap for each generation that was not in memory.
    pub fn allowed(&self) -> u64 {
        u64::from(self.generations.saturating_sub(self.loaded_before))
    }

    pub fn caused(&self) -> u64 {
        self.operations.values().sum()
    }
}

fn verdict(met: bool) -> String {
    if met { "met" } else { "**missed**" }.to_owned()
}

/// Calls per second, with their budget.
fn throughput(title: &str, cells: &[Cell], budget: f64) -> Option<String> {
    let rows = cells.iter().map(|cell| {
        let ratio = cell.ratio(|sample| sample.per_second);
        let bound = cell.call != Call::Status;
        vec![
            cell.call.name().to_owned(),
            cell.concurrency.to_string(),
            format!("{:.0}", cell.echo(|sample| sample.per_second)),
            format!("{:.0}", cell.keystead(|sample| sample.per_second)),
            format!("{:.3}", ratio.median),
            format!("{:.2}–{:.2}", ratio.low, ratio.high),
            if bound { format!("≥ {budget:.2}") } else { "–".into() },
            if bound { verdict(ratio.median >= budget) } else { "–".into() },
        ]
    });
    table(title, "call|callers|echo /s|Keystead /s|ratio|middle half|budget|verdict", rows)
}

/// CPU time of a request, with its budget.
fn cpu(title: &str, cells: &[Cell], budget: f64) -> Option<String> {
    let rows = cells.iter().map(|cell| {
        let ratio = cell.ratio(|sample| sample.server_cpu_us);
        let busy = cell.echo(|sample| sample.client_cpu_us * sample.per_second / 1e4);
        vec![
            cell.call.name().to_owned(),
            cell.concurrency.to_string(),
            format!("{:.1}", cell.echo(|sample| sample.server_cpu_us)),
            format!("{:.1}", cell.keystead(|sample| sample.server_cpu_us)),
            format!("{:.2}", ratio.median),
            format!("≤ {budget:.1}"),
            verdict(ratio.median <= budget),
            format!("{:.1}", cell.echo(|sample| sample.client_cpu_us)),
            format!("{busy:.0} %"),
        ]
    });
    table(title, "call|callers|echo|Keystead|ratio|budget|verdict|generator|of a core", rows)
}

impl Report {
    pub fn to_markdown(&self) -> String {
        let mut text = self.heading();
        let sections = [
            throughput("Throughput", &self.cells, budget::THROUGHPUT_RATIO),
            self.latency(),
            cpu(
                "Server's CPU time in µs per request; what the generator takes beside the echo server",
                &self.cells,
                budget::CPU_RATIO,
            ),
            self.memory(),
            self.single_figures(),
            self.by_generations(),
            throughput("Throughput while the cloud black-holes", &self.outage, budget::THROUGHPUT_RATIO),
            throughput(
                "Throughput with every request in the audit trail",
                &self.audited,
                budget::AUDITED_THROUGHPUT_RATIO,
            ),
            cpu("Server's CPU time with every request in the audit trail", &self.audited, budget::AUDITED_CPU_RATIO),
            self.lines(),
            self.failures(),
        ];
        for section in sections.into_iter().flatten() {
            text.push('\n');
            text.push_str(&section);
        }
        text
    }

    fn heading(&self) -> String {
        let (machine, options) = (&self.machine, &self.options);
        let mut text = format!(
            "{} cores, {}, Linux {}; load before: {:.2}\n\
             {} rounds of {:.2} s each, after {:.2} s of warm-up; echo with {} workers, {} generator thread(s)\n",
            machine.cores,
            machine.processor,
            machine.kernel,
            machine.load_before,
            options.rounds,
            options.seconds,
            options.warm_up,
            options.workers,
            options.client_threads,
        );
        if self.calibration {
            text.push_str("**Calibration**: a second echo server stands in Keystead's place; ratios should be 1.\n");
        }
        if let Some(lengths) = &self.lengths {
            let _ = writeln!(
                text,
                "Answers: ciphertext {}, plaintext {}, key ID {}, annotation {} + {} bytes",
                lengths.ciphertext,
                lengths.plaintext,
                lengths.key_id,
                lengths.annotation_key.len(),
                lengths.annotation
            );
        }
        if let Some(threads) = self.server_threads {
            let _ = writeln!(text, "The daemon's server has {threads} threads, its first included");
        }
        text.push_str(&self.noise().unwrap_or_default());
        text
    }

    /// How busy the machine was with other things, in cores, and whether the figures suffer from it.
    fn noise(&self) -> Option<String> {
        let samples = || self.cells.iter().flat_map(|cell| cell.echo.iter().chain(&cell.keystead));
        let median = stats::median(samples().map(|sample| sample.others_cores))?;
        let (_, most) = stats::range(samples().map(|sample| sample.others_cores))?;
        let noisy = median > budget::NOISE_CORES;
        let advice = if noisy { "**Too noisy: measure again on a quiet machine.**\n" } else { "" };
        Some(format!("Others on this machine took {median:.2} cores (median), at most {most:.2}\n{advice}"))
    }

    fn latency(&self) -> Option<String> {
        let rows = self.cells.iter().map(|cell| {
            let micros = |value: f64| format!("{value:.0}");
            vec![
                cell.call.name().to_owned(),
                cell.concurrency.to_string(),
                micros(cell.echo(|sample| sample.p50_us)),
                micros(cell.keystead(|sample| sample.p50_us)),
                micros(cell.echo(|sample| sample.p99_us)),
                micros(cell.keystead(|sample| sample.p99_us)),
            ]
        });
        table("Latency in µs", "call|callers|echo p50|Keystead p50|echo p99|Keystead p99", rows)
    }

    fn memory(&self) -> Option<String> {
        let rows = self.memory.iter().map(|(process, memory)| {
            let limit = match *process {
                "server" => Some(budget::SERVER_MEMORY_MB),
                "custodian" => Some(budget::CUSTODIAN_MEMORY_MB),
                "supervisor" => Some(budget::SUPERVISOR_MEMORY_MB),
                _ => None,
            };
            vec![
                (*process).to_owned(),
                format!("{:.1}", megabytes(memory.resident)),
                format!("{:.1}", megabytes(memory.anonymous)),
                limit.map_or("–".into(), |limit| format!("≤ {limit:.0}")),
                limit.map_or("–".into(), |limit| verdict(megabytes(memory.resident) <= limit)),
            ]
        });
        table("Memory under load in MB, largest seen", "process|resident|anonymous|budget|verdict", rows)
    }

    fn single_figures(&self) -> Option<String> {
        let start = self.start.as_ref().and_then(|start| {
            let median = stats::median(start.keystead.iter().copied())?;
            let (low, high) = stats::range(start.keystead.iter().copied())?;
            let echo = stats::median(start.echo.iter().copied())?;
            Some(vec![
                "spawn to first ok".to_owned(),
                format!("{median:.1} ms ({low:.1}–{high:.1}; echo {echo:.1})"),
                if self.options.tpm { "–".into() } else { format!("≤ {:.0} ms", budget::START_MS) },
                if self.options.tpm { "–".into() } else { verdict(median <= budget::START_MS) },
            ])
        });
        let burst = self.burst.as_ref().map(|burst| {
            vec![
                format!("device operations of {} Decrypts", burst.seeds),
                format!("{} (and {} of the start)", listed(&burst.operations), burst.operations_of_start),
                format!("= {}", burst.allowed()),
                verdict(burst.caused() == burst.allowed()),
            ]
        });
        let binary = self.binary.as_ref().map(|binary| {
            let size = megabytes(binary.bytes);
            let stripped = if binary.stripped { "" } else { ", not stripped" };
            vec![
                "release binary, default features".to_owned(),
                format!("{size:.1} MB{stripped}"),
                format!("≤ {:.0} MB", budget::BINARY_MB),
                if binary.stripped { verdict(size <= budget::BINARY_MB) } else { "not a release".into() },
            ]
        });
        table("Single figures", "what|measured|budget|verdict", [start, burst, binary].into_iter().flatten())
    }

    fn by_generations(&self) -> Option<String> {
        let rows = self.generations.iter().map(|step| {
            let ratio = |call| {
                let cell = step.cells.iter().find(|cell| cell.call == call);
                cell.map_or("–".into(), |cell| {
                    let rate = cell.keystead(|sample| sample.per_second);
                    format!("{rate:.0} ({:.2})", cell.ratio(|sample| sample.per_second).median)
                })
            };
            vec![
                step.generations.to_string(),
                ratio(Call::Encrypt),
                ratio(Call::Decrypt),
                format!("{:.1}", megabytes(step.server.resident)),
                format!("{:.1}", step.start_ms),
                step.rotation_ms.map_or("–".into(), |time| format!("{time:.1}")),
                format!("{} + {}", step.burst.operations_of_start, step.burst.caused()),
            ]
        });
        table(
            "By generations, 8 callers (in brackets: ratio to echo; device operations: of the start + of Decrypts)",
            "generations|Encrypt /s|Decrypt /s|server MB|start ms|rotate ms|operations",
            rows,
        )
    }

    /// A trail that is not complete would make the two tables above worth nothing.
    fn lines(&self) -> Option<String> {
        let lines = self.lines?;
        let complete = lines.lost == 0 && lines.written >= lines.answered;
        let row = vec![
            lines.answered.to_string(),
            lines.written.to_string(),
            lines.lost.to_string(),
            "all, none lost".to_owned(),
            verdict(complete),
        ];
        table("Lines of that trail", "answered|written|lost|budget|verdict", [row])
    }

    fn failures(&self) -> Option<String> {
        if self.failures.is_empty() {
            return None;
        }
        let mut text = String::from("### Not measured\n\n");
        for failure in &self.failures {
            let _ = writeln!(text, "- {failure}");
        }
        Some(text)
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn listed(operations: &BTreeMap<String, u64>) -> String {
    if operations.is_empty() {
        return "0".into();
    }
    let parts: Vec<_> = operations.iter().map(|(operation, count)| format!("{count} {operation}")).collect();
    parts.join(", ")
}

/// A Markdown table with aligned columns; `None` without rows. `headings` are separated by `|`.
fn table(title: &str, headings: &str, rows: impl IntoIterator<Item = Vec<String>>) -> Option<String> {
    let headings: Vec<String> = headings.split('|').map(str::to_owned).collect();
    let rows: Vec<_> = rows.into_iter().collect();
    if rows.is_empty() {
        return None;
    }
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.chain([&headings[column]]).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, full)| {
            let padding = " ".repeat(full - width(cell));
            format!("{cell}{padding}")
        });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|full| "-".repeat(*full)).collect();
    let mut text = format!("### {title}\n\n{}{}", line(&headings), line(&rule));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64, server_cpu_us: f64) -> Sample {
        Sample {
            requests: 1_000_000,
            seconds: 1.0,
            per_second,
            p50_us: 12_345.6,
            p99_us: 123_456.7,
            max_us: 1e6,
            server_cpu_us,
            client_cpu_us: 100.0,
            others_cores: 0.5,
            memory: vec![],
        }
    }

    fn cell(call: Call, keystead: &[f64], echo: &[f64]) -> Cell {
        let samples = |rates: &[f64]| rates.iter().map(|rate| sample(*rate, 1e5 / rate)).collect();
        Cell { call, concurrency: 64, echo: samples(echo), keystead: samples(keystead) }
    }

    #[test]
    fn ratio_is_the_median_of_each_rounds_own() {
        // The machine ran at half speed in the last round: both rates halve, no ratio moves.
        let cell = cell(Call::Encrypt, &[95.0, 90.0, 46.0], &[100.0, 100.0, 50.0]);
        let ratio = cell.ratio(|sample| sample.per_second);
        assert!((ratio.median - 0.92).abs() < 1e-9);
        assert!((ratio.low - 0.90).abs() < 1e-9 && (ratio.high - 0.95).abs() < 1e-9);
    }

    fn full_report() -> Report {
        let burst = Burst {
            seeds: 10_000,
            seconds: 1.0,
            generations: 1_000,
            loaded_before: 990,
            operations_of_start: 1_234,
            operations: BTreeMap::from([("unwrap".into(), 10)]),
        };
        let cells = || Call::ALL.map(|call| cell(call, &[100_000.0, 89_000.0], &[123_456.0, 100_000.0])).into();
        let memory = Memory { resident: 123_400_000, anonymous: 123_400_000 };
        Report {
            cells: cells(),
            memory: BTreeMap::from([("custodian", memory), ("supervisor", memory), ("echo", memory)]),
            start: Some(Start { echo: vec![1.2], keystead: vec![123.4, 125.0] }),
            burst: Some(burst.clone()),
            generations: vec![Step {
                generations: 1_000,
                rotation_ms: Some(123.4),
                start_ms: 1234.5,
                burst,
                cells: cells(),
                server: memory,
            }],
            binary: Some(Binary { bytes: 11_900_000, stripped: true }),
            audited: cells(),
            lines: Some(Lines { answered: 12_345_678, written: 12_345_700, lost: 0 }),
            failures: vec!["start: a reason".into()],
            calibration: true,
            ..Report::default()
        }
    }

    #[test]
    fn tables_fit_in_100_columns() {
        let text = full_report().to_markdown();
        for line in text.lines().filter(|line| line.starts_with('|')) {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn verdicts_follow_the_budgets() {
        let text = full_report().to_markdown();
        let row = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        assert!(row("| Encrypt").contains("**missed**"));
        assert!(row("| device operations of 10000").contains("= 10") && text.contains("| met"));
        assert!(row("| spawn to first ok").contains("**missed**"));
        assert!(row("| release binary, default features").contains("met"));
        assert!(text.contains("### Not measured"));
        let on_tpm = Report { options: Options { tpm: true, ..Options::default() }, ..full_report() }.to_markdown();
        let start = on_tpm.lines().find(|line| line.starts_with("| spawn to first ok")).unwrap_or_default();
        assert!(start.contains("| –") && !start.contains("missed"), "{start}");
        // The same figures, by the budgets of a full trail.
        let audited = text.split("every request in the audit trail").nth(1).unwrap_or_default();
        let encrypt = audited.lines().find(|line| line.starts_with("| Encrypt")).unwrap_or_default();
        assert!(encrypt.contains("≥ 0.80") && encrypt.trim_end_matches([' ', '|']).ends_with("met"), "{encrypt}");
        assert!(text.contains("≤ 1.4"), "{text}");
        assert!(text.contains("| 12345678 | 12345700 | 0    | all, none lost | met     |"), "{text}");
    }

    #[test]
    fn trail_with_losses_meets_no_budget() {
        for lines in [Lines { answered: 10, written: 9, lost: 0 }, Lines { answered: 10, written: 12, lost: 1 }] {
            let text = Report { lines: Some(lines), ..Report::default() }.to_markdown();
            assert!(text.contains("**missed**"), "{text}");
        }
    }

    #[test]
    fn report_without_measurements_has_no_tables() {
        assert!(!Report::default().to_markdown().contains('|'));
    }
}
