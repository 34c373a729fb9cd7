//! The generator: a fixed number of callers that each send the next request when the last one is answered, all over one
//! connection, for a fixed time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use keystead_wire::kms::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};

use crate::client::{Connection, KmsClient};
use crate::failure::Failure;
use crate::procfs::{self, Memory, Pid};
use crate::stats;

/// As long as the seeds that kube-apiserver sends.
pub const SEED_LEN: usize = 32;
/// Bound of one request; kube-apiserver's own default is 3 s.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, serde::Serialize)]
pub enum Call {
    Encrypt,
    Decrypt,
    Status,
}

impl Call {
    pub const ALL: [Self; 3] = [Self::Encrypt, Self::Decrypt, Self::Status];

    pub fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "Encrypt",
            Self::Decrypt => "Decrypt",
            Self::Status => "Status",
        }
    }
}

/// One measured stretch of time.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// A seed and what Encrypt made of it.
#[derive(Debug)]
pub struct Sealed {
    pub seed: [u8; SEED_LEN],
    request: DecryptRequest,
}

/// What one stretch of load showed.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sample {
    pub requests: u64,
    pub seconds: f64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    /// CPU time of the server's process per request.
    pub server_cpu_us: f64,
    /// CPU time of this process per request.
    pub client_cpu_us: f64,
    /// Cores that everything else on the machine was busy with: noise.
    pub others_cores: f64,
    /// Largest of several looks at each watched process, in the order given.
    pub memory: Vec<Memory>,
}

/// What to call, and where.
pub struct Target<'a> {
    pub connection: &'a Connection,
    pub server: Pid,
    /// Processes whose memory is looked at meanwhile.
    pub watched: Vec<Pid>,
    /// What Decrypt is called with, in random order.
    pub sealed: &'a Arc<Vec<Sealed>>,
}

impl Target<'_> {
    /// # Errors
    /// The first call that is refused or answered wrongly: a benchmark of errors is none.
    pub async fn measure(&self, call: Call, callers: usize, stretch: Stretch) -> Result<Sample, Failure> {
        let phase = Arc::new(AtomicU8::new(WARM_UP));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let caller = Caller::new(self.connection.kms(), Arc::clone(self.sealed));
            tasks.spawn(caller.run(call, Arc::clone(&phase)));
        }
        let watch = async {
            tokio::time::sleep(stretch.warm_up).await;
            let before = self.snapshot()?;
            phase.store(MEASURED, Ordering::Relaxed);
            let mut memory = vec![Memory::default(); self.watched.len()];
            for _ in 0..LOOKS {
                tokio::time::sleep(stretch.measured / LOOKS).await;
                for (most, pid) in memory.iter_mut().zip(&self.watched) {
                    let now = pid.memory()?;
                    *most = if now.resident > most.resident { now } else { *most };
                }
            }
            phase.store(DONE, Ordering::Relaxed);
            Ok::<_, Failure>((before, self.snapshot()?, memory))
        };
        tokio::pin!(watch);

        let mut latencies = Vec::new();
        let mut observed = None;
        loop {
            tokio::select! {
                seen = &mut watch, if observed.is_none() => observed = Some(seen?),
                ended = tasks.join_next() => match ended {
                    Some(ended) => {
                        latencies.append(&mut ended.map_err(|source| Failure::transport("a caller", source))??);
                    }
                    None => break,
                },
            }
        }
        // Callers end only on `DONE` or with an error, which has left this function.
        let Some((before, after, memory)) = observed else {
            return Err(Failure::Unusable("the callers ended before their time".into()));
        };
        Ok(Sample::new(latencies, &before, &after, memory))
    }

    fn snapshot(&self) -> Result<Snapshot, Failure> {
        Ok(Snapshot {
            at: Instant::now(),
            server: self.server.cpu_time()?,
            client: Pid(std::process::id()).cpu_time()?,
            machine: procfs::machine_cpu_time()?,
        })
    }
}

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const DONE: u8 = 2;
const LOOKS: u32 = 4;

struct Snapshot {
    at: Instant,
    server: Duration,
    client: Duration,
    machine: Duration,
}

impl Sample {
    fn new(mut nanoseconds: Vec<u32>, before: &Snapshot, after: &Snapshot, memory: Vec<Memory>) -> Self {
        nanoseconds.sort_unstable();
        let requests = nanoseconds.len() as u64;
        let seconds = (after.at - before.at).as_secs_f64();
        let micros = |nanoseconds: u32| f64::from(nanoseconds) / 1e3;
        let server = after.server.saturating_sub(before.server);
        let client = after.client.saturating_sub(before.client);
        let others = after.machine.saturating_sub(before.machine).saturating_sub(server + client);
        let cpu = |spent: Duration| spent.as_secs_f64() * 1e6 / (requests.max(1) as f64);
        Self {
            requests,
            seconds,
            per_second: requests as f64 / seconds,
            p50_us: micros(stats::quantile(&nanoseconds, 0.5)),
            p99_us: micros(stats::quantile(&nanoseconds, 0.99)),
            max_us: micros(stats::quantile(&nanoseconds, 1.0)),
            server_cpu_us: cpu(server),
            client_cpu_us: cpu(client),
            others_cores: others.as_secs_f64() / seconds,
            memory,
        }
    }
}

struct Caller {
    client: KmsClient,
    sealed: Arc<Vec<Sealed>>,
    random: Random,
}

impl Caller {
    fn new(client: KmsClient, sealed: Arc<Vec<Sealed>>) -> Self {
        Self { client, sealed, random: Random::new() }
    }

    /// Calls until `phase` says done; the latencies of what was answered while measured, in nanoseconds.
    async fn run(mut self, call: Call, phase: Arc<AtomicU8>) -> Result<Vec<u32>, Failure> {
        let mut latencies = Vec::new();
        loop {
            let started = Instant::now();
            self.once(call).await?;
            match phase.load(Ordering::Relaxed) {
                WARM_UP => {}
                MEASURED => latencies.push(u32::try_from(started.elapsed().as_nanos()).unwrap_or(u32::MAX)),
                _ => return Ok(latencies),
            }
        }
    }

    async fn once(&mut self, call: Call) -> Result<(), Failure> {
        match call {
            Call::Encrypt => encrypt(&mut self.client, self.random.seed(), self.random.uid()).await.map(drop),
            Call::Decrypt => {
                let index = self.random.below(self.sealed.len());
                let uid = self.random.uid();
                decrypt(&mut self.client, &self.sealed[index], uid).await
            }
            Call::Status => status(&mut self.client).await.map(drop),
        }
    }
}

async fn encrypt(client: &mut KmsClient, seed: [u8; SEED_LEN], uid: String) -> Result<EncryptResponse, Failure> {
    let request = EncryptRequest { plaintext: seed.to_vec(), uid };
    let answer = bounded("Encrypt", client.encrypt(request)).await?;
    if answer.ciphertext.is_empty() {
        return Err(Failure::WrongAnswer { call: "Encrypt", problem: "an empty ciphertext".into() });
    }
    Ok(answer)
}

async fn decrypt(client: &mut KmsClient, sealed: &Sealed, uid: String) -> Result<(), Failure> {
    let request = DecryptRequest { uid, ..sealed.request.clone() };
    let answer = bounded("Decrypt", client.decrypt(request)).await?;
    // The echo server knows no seed; it answers with as many bytes.
    if answer.plaintext != sealed.seed && answer.plaintext != [ECHO_BYTE; SEED_LEN] {
        return Err(Failure::WrongAnswer { call: "Decrypt", problem: "another plaintext than was encrypted".into() });
    }
    Ok(())
}

/// What the echo server's answers consist of. A random seed of this is less likely than any other fault.
pub const ECHO_BYTE: u8 = 0xa5;

/// The key ID, if the answer says `ok`.
pub async fn status(client: &mut KmsClient) -> Result<String, Failure> {
    let answer = bounded("Status", client.status(StatusRequest {})).await?;
    if answer.healthz != "ok" {
        return Err(Failure::WrongAnswer { call: "Status", problem: answer.healthz });
    }
    Ok(answer.key_id)
}

async fn bounded<T>(
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Failure> {
    tokio::time::timeout(REQUEST_LIMIT, answer)
        .await
        .map_err(|_| Failure::too_long(call, REQUEST_LIMIT))?
        .map(tonic::Response::into_inner)
        .map_err(|source| Failure::Refused { call, source })
}

impl Sealed {
    /// What Encrypt answered, for its lengths.
    pub fn answer(&self) -> &DecryptRequest {
        &self.request
    }
}

/// Encrypts `count` distinct random seeds, `callers` at a time.
pub async fn seal(connection: &Connection, count: usize, callers: usize) -> Result<Vec<Sealed>, Failure> {
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let mut client = connection.kms();
        tasks.spawn(async move {
            let mut random = Random::new();
            let mut sealed = Vec::new();
            for _ in (caller..count).step_by(callers) {
                let seed = random.seed();
                let answer = encrypt(&mut client, seed, random.uid()).await?;
                let EncryptResponse { ciphertext, key_id, annotations } = answer;
                let request = DecryptRequest { ciphertext, key_id, annotations, uid: String::new() };
                sealed.push(Sealed { seed, request });
            }
            Ok::<_, Failure>(sealed)
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(ended) = tasks.join_next().await {
        all.append(&mut ended.map_err(|source| Failure::transport("a caller", source))??);
    }
    Ok(all)
}

/// Decrypts every one of `sealed` once, `callers` at a time, and compares each answer with its seed.
pub async fn open_each(connection: &Connection, sealed: &Arc<Vec<Sealed>>, callers: usize) -> Result<(), Failure> {
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let mut client = connection.kms();
        let sealed = Arc::clone(sealed);
        tasks.spawn(async move {
            let mut random = Random::new();
            for one in sealed.iter().skip(caller).step_by(callers) {
                decrypt(&mut client, one, random.uid()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|source| Failure::transport("a caller", source))??;
    }
    Ok(())
}

/// SplitMix64: quick enough to cost the generator nothing. Nothing here is secret.
struct Random(u64);

impl Random {
    fn new() -> Self {
        // Without the system's generator the seeds repeat from run to run, which a benchmark bears.
        Self(getrandom::u64().unwrap_or(1))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn seed(&mut self) -> [u8; SEED_LEN] {
        let mut seed = [0; SEED_LEN];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        seed
    }

    /// Shaped as the UUID that kube-apiserver sends.
    fn uid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_has_the_shape_of_a_uuid() {
        let uid = Random(7).uid();
        let parts: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
    }

    #[test]
    fn seeds_differ() {
        let mut random = Random::new();
        assert_ne!(random.seed(), random.seed());
    }
}
