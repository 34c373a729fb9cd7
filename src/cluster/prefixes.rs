//! Which keys are read: all, or those below the prefixes that the apiserver was given (`--etcd-prefix`).

/// Prefixes of keys, none within another. None at all: every key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefixes(Vec<Vec<u8>>);

impl Prefixes {
    pub fn new(prefixes: impl IntoIterator<Item = String>) -> Self {
        let mut all: Vec<Vec<u8>> = prefixes.into_iter().map(String::into_bytes).collect();
        all.sort();
        let mut distinct: Vec<Vec<u8>> = Vec::new();
        for prefix in all {
            // Sorted, a prefix comes right before what begins with it. Read twice, a key would be counted twice.
            if distinct.last().is_none_or(|before| !prefix.starts_with(before)) {
                distinct.push(prefix);
            }
        }
        Self(distinct)
    }

    pub fn are_all_keys(&self) -> bool {
        self.0.is_empty()
    }

    pub fn admit(&self, key: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|prefix| key.starts_with(prefix))
    }

    /// First key and end of each range, as etcd wants them: `\0` as the end stands for the end of all keys.
    pub fn ranges(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        if self.0.is_empty() {
            return vec![(vec![0], vec![0])];
        }
        self.0.iter().map(|prefix| (prefix.clone(), end_of(prefix))).collect()
    }
}

fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Prefixes {
        Prefixes::new(texts.iter().map(|text| (*text).to_owned()))
    }

    #[test]
    fn prefix_within_another_is_read_once() {
        let both = prefixes(&["/registry/secrets/", "/registry/", "/registry", "/other/"]);
        let ranges = both.ranges();
        assert_eq!(
            ranges,
            [(b"/other/".to_vec(), b"/other0".to_vec()), (b"/registry".to_vec(), b"/registrz".to_vec())]
        );
        assert!(both.admit(b"/registry/secrets/a") && both.admit(b"/other/a") && !both.admit(b"/third/a"));
    }

    #[test]
    fn no_prefix_is_every_key() {
        assert_eq!(Prefixes::default().ranges(), [(vec![0], vec![0])]);
        assert!(Prefixes::default().admit(b"\xff"));
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), [0]);
    }
}
