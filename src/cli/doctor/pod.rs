//! Static pods: what the kubelet starts from a folder of manifests. Read for kube-apiserver's flags and mounts, and for a
//! daemon of ours.

use std::path::{Path, PathBuf};

use super::yaml::Yaml;

/// A host folder or file inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub inside: PathBuf,
    pub host: PathBuf,
}

impl Mount {
    /// Where `inside` lies on the host, by the most specific mount.
    pub fn to_host(mounts: &[Self], inside: &Path) -> Option<PathBuf> {
        let covering = mounts.iter().filter(|mount| inside.starts_with(&mount.inside));
        let mount = covering.max_by_key(|mount| mount.inside.components().count())?;
        let rest = inside.strip_prefix(&mount.inside).ok()?;
        // Joining "" would add a slash.
        Some(if rest.as_os_str().is_empty() { mount.host.clone() } else { mount.host.join(rest) })
    }
}

/// One container of a static pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    /// Command and arguments, in one.
    pub command: Vec<String>,
    pub mounts: Vec<Mount>,
}

impl Container {
    /// The value of `--NAME=VALUE` or `--NAME VALUE`.
    pub fn flag(&self, name: &str) -> Option<&str> {
        let flag = format!("--{name}");
        let mut words = self.command.iter();
        while let Some(word) = words.next() {
            match word.strip_prefix(&flag) {
                Some("") => return words.next().map(String::as_str),
                Some(rest) if rest.starts_with('=') => return Some(&rest[1..]),
                _ => {}
            }
        }
        None
    }

    pub fn is_apiserver(&self) -> bool {
        self.name == "kube-apiserver" || self.program() == Some("kube-apiserver")
    }

    pub fn is_keystead(&self) -> bool {
        self.program() == Some("keystead") && self.command.iter().any(|word| word == "serve")
    }

    fn program(&self) -> Option<&str> {
        self.command.first()?.rsplit('/').next()
    }
}

/// The containers of every pod in `text`.
///
/// # Errors
/// What is wrong with the file.
pub fn containers(text: &str) -> Result<Vec<Container>, String> {
    let mut containers = Vec::new();
    for pod in Yaml::documents(text)? {
        let Some(spec) = pod.get("spec").filter(|_| pod.text_of("kind") == "Pod") else { continue };
        let host_path = |volume: &str| {
            let volume = spec.items_of("volumes").iter().find(|known| known.text_of("name") == volume)?;
            Some(PathBuf::from(volume.get("hostPath")?.text_of("path")))
        };
        for container in spec.items_of("containers") {
            let words = ["command", "args"].into_iter().flat_map(|key| container.items_of(key));
            let mounts = container.items_of("volumeMounts").iter().filter_map(|mount| {
                Some(Mount { inside: mount.text_of("mountPath").into(), host: host_path(mount.text_of("name"))? })
            });
            containers.push(Container {
                name: container.text_of("name").to_owned(),
                command: words.filter_map(Yaml::text).map(ToOwned::to_owned).collect(),
                mounts: mounts.collect(),
            });
        }
    }
    Ok(containers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_that_we_ship_is_understood() {
        let patch = include_str!("../../../packaging/static-pod/kube-apiserver-patch.yaml");
        let container = containers(patch).unwrap().remove(0);
        assert!(container.is_apiserver() && !container.is_keystead());
        let config = container.flag("encryption-provider-config").unwrap();
        assert_eq!(config, "/etc/kubernetes/enc/encryption-config.yaml");
        assert_eq!(container.flag("encryption-provider"), None);
        assert_eq!(Mount::to_host(&container.mounts, Path::new(config)).unwrap(), Path::new(config));
        assert_eq!(Mount::to_host(&container.mounts, Path::new("/run/keysteadx/a")), None);
    }

    #[test]
    fn most_specific_mount_wins_and_flags_may_stand_apart() {
        let mount = |inside: &str, host: &str| Mount { inside: inside.into(), host: host.into() };
        let mounts = [mount("/", "/a"), mount("/run/x", "/b"), mount("/run", "/c")];
        assert_eq!(Mount::to_host(&mounts, Path::new("/run/x")).unwrap(), Path::new("/b"));
        assert_eq!(Mount::to_host(&mounts, Path::new("/run/y")).unwrap(), Path::new("/c/y"));
        let command = ["/usr/bin/kube-apiserver", "--a", "1", "--b=2"].map(String::from).to_vec();
        let container = Container { name: "api".into(), command, mounts: Vec::new() };
        assert_eq!((container.flag("a"), container.flag("b"), container.flag("c")), (Some("1"), Some("2"), None));
        assert!(container.is_apiserver());
    }

    #[test]
    fn what_is_no_pod_has_no_containers() {
        for text in
            ["", "kind: Deployment\nspec: {containers: [{name: a}]}", "kind: Pod", "kind: Pod\nspec: text", "[1]"]
        {
            assert_eq!(containers(text).unwrap(), [], "{text}");
        }
        assert!(containers("a: [").is_err());
    }
}
