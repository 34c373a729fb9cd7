//! Input and output of the KMS client: stdin and stdout, or files. Buffers are wiped: they may hold plaintext.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::cli::report;

/// More than any request the daemon takes.
const MAX_BYTES: usize = 4 << 20;

/// Everything in `file`, or on stdin.
pub fn read(file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| {
        let name = file.map_or_else(|| "stdin".into(), |file| file.display().to_string());
        Failure::new(Exit::Failed, format!("cannot read {name}: {error}"))
    };
    match file {
        Some(path) => read_all(File::open(path).map_err(failed)?).map_err(failed),
        None => read_all(io::stdin().lock()).map_err(failed),
    }
}

/// Into a buffer of full size: one that grew would leave copies of its content behind.
fn read_all(mut input: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(64 * 1024));
    let mut chunk = Zeroizing::new([0; 16 * 1024]);
    loop {
        let count = match input.read(&mut chunk[..]) {
            Ok(0) => return Ok(buffer),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.len() + count > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 4 MiB"));
        }
        if buffer.len() + count > buffer.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
            larger.extend_from_slice(&buffer);
            buffer = larger;
        }
        buffer.extend_from_slice(&chunk[..count]);
    }
}

/// Writes to `file`, which only its owner may read, or to stdout. An existing file is replaced, its mode kept.
pub fn write(file: Option<&Path>, bytes: &[u8]) -> Result<(), Failure> {
    let Some(path) = file else { return report::write(bytes) };
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn input_is_read_whole_and_bounded() {
        for size in [0, 1, 16 * 1024, 64 * 1024 + 1, MAX_BYTES] {
            assert_eq!(read_all(io::repeat(7).take(size as u64)).unwrap().len(), size);
        }
        assert!(read_all(io::repeat(7)).is_err());
    }

    #[test]
    fn written_file_is_its_owner_s_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        write(Some(&path), b"content").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(Some(&path)).unwrap().as_slice(), b"content");
        assert!(write(Some(&folder.path().join("no/such")), b"").is_err());
    }
}
