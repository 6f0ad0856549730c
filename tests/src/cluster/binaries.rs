// SPDX-License-Identifier: Apache-2.0

//! Builds the programs of a Kubernetes cluster from Go modules, once per version, into a cache outside the work tree.
//!
//! Each wrapper module under `tests/cluster/` pins one product with `go.mod` and `go.sum`. Its programs land together in
//! `CACHE/binaries/NAME-VERSION-KEY`, where the key covers everything the result depends on: a directory that exists is whole.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::command::{command, output, output_with_input, run};

/// One wrapper module and what is built from it.
struct Module {
    /// Directory under `tests/cluster/`.
    name: &'static str,
    version: &'static str,
    cgo: bool,
    build_tags: &'static str,
    linker_flags: &'static str,
    /// Program name and package path.
    programs: &'static [(&'static str, &'static str)],
    /// Test binary name and package path.
    tests: &'static [(&'static str, &'static str)],
    /// Module path and files of its source tree that images need, copied beside the programs.
    sources: Option<(&'static str, &'static [&'static str])>,
}

const KUBERNETES_LINKER_FLAGS: &str = concat!(
    "-X k8s.io/component-base/version.gitVersion=v1.36.4 ",
    "-X k8s.io/component-base/version.gitMajor=1 ",
    "-X k8s.io/component-base/version.gitMinor=36 ",
    "-X k8s.io/component-base/version.gitTreeState=clean ",
    "-X k8s.io/component-base/version.buildDate=2026-01-01T00:00:00Z ",
    "-X k8s.io/client-go/pkg/version.gitVersion=v1.36.4 ",
    "-X k8s.io/client-go/pkg/version.gitMajor=1 ",
    "-X k8s.io/client-go/pkg/version.gitMinor=36 ",
    "-X k8s.io/client-go/pkg/version.gitTreeState=clean ",
    "-X k8s.io/client-go/pkg/version.buildDate=2026-01-01T00:00:00Z",
);

const MODULES: &[Module] = &[
    Module {
        name: "kubernetes",
        version: "1.36.4",
        cgo: false,
        build_tags: "",
        linker_flags: KUBERNETES_LINKER_FLAGS,
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
            ("regression-issue-74839", "k8s.io/kubernetes/test/images/regression-issue-74839"),
            ("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
        ],
        tests: &[("e2e.test", "./e2e")],
        sources: Some((
            "k8s.io/kubernetes",
            &[
                "build/pause/linux/pause.c",
                "test/images/agnhost/porter/localhost.crt",
                "test/images/agnhost/porter/localhost.key",
            ],
        )),
    },
    Module {
        name: "etcd",
        version: "3.7.3",
        cgo: false,
        build_tags: "",
        linker_flags: "",
        programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
        tests: &[],
        sources: None,
    },
    Module {
        name: "containerd",
        version: "2.3.4",
        cgo: false,
        build_tags: "",
        linker_flags: "-X github.com/containerd/containerd/v2/version.Version=v2.3.4",
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
        tests: &[],
        sources: None,
    },
    Module {
        name: "runc",
        version: "1.5.1",
        cgo: true,
        build_tags: "seccomp",
        linker_flags: "",
        programs: &[("runc", "github.com/opencontainers/runc")],
        tests: &[],
        sources: None,
    },
    Module {
        name: "cni",
        version: "1.9.1",
        cgo: false,
        build_tags: "",
        linker_flags: "",
        programs: &[
            ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
            ("cnitool", "github.com/containernetworking/cni/cnitool"),
        ],
        tests: &[],
        sources: None,
    },
    Module {
        name: "coredns",
        version: "1.14.7",
        cgo: false,
        build_tags: "",
        linker_flags: "",
        programs: &[("coredns", "github.com/coredns/coredns")],
        tests: &[],
        sources: None,
    },
];

/// The built programs of every module, each known to be there.
#[derive(Clone, Debug)]
pub struct Binaries {
    directories: Vec<(&'static Module, PathBuf)>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.name, self.version)
    }
}

impl Binaries {
    /// Builds what the cache does not hold yet and returns all of it. Takes about seven minutes on a cold machine with two
    /// cores, a fraction of a second when everything is there.
    ///
    /// # Errors
    /// `go` is missing, a module cannot be downloaded, or a package does not build.
    pub fn build() -> Result<Self> {
        let directories = MODULES.iter().map(|module| Ok((module, module.build()?))).collect::<Result<_>>()?;
        Ok(Self { directories })
    }

    /// Returns the cached programs without building any.
    ///
    /// # Errors
    /// A program is not in the cache: the error says which, and how to build it.
    pub fn cached() -> Result<Self> {
        let mut directories = Vec::new();
        for module in MODULES {
            let directory = module.directory()?;
            ensure!(
                directory.is_dir(),
                "{} {} is not built ({} does not exist): run `cargo xtask cluster build`",
                module.name,
                module.version,
                directory.display()
            );
            directories.push((module, directory));
        }
        Ok(Self { directories })
    }

    /// Path of one program or copied source file, by its file name.
    ///
    /// # Errors
    /// No module has a file of that name.
    pub fn path(&self, file: &str) -> Result<PathBuf> {
        for (_, directory) in &self.directories {
            let path = directory.join(file);
            if path.is_file() {
                return Ok(path);
            }
        }
        bail!("no module under tests/cluster/ provides {file}")
    }

    /// Value for `PATH` under which the programs of this set find each other, before those of the machine.
    #[must_use]
    pub fn search_path(&self) -> String {
        let own = self.directories.iter().map(|(_, directory)| directory.display().to_string());
        own.chain(["/usr/sbin:/usr/bin:/sbin:/bin".to_owned()]).collect::<Vec<_>>().join(":")
    }

    /// One word that changes when any of the programs changes.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let names = self.directories.iter().filter_map(|(_, directory)| directory.file_name());
        names.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

impl Module {
    fn build(&self) -> Result<PathBuf> {
        let target = self.directory()?;
        let _lock = lock(&beside(&target, ".lock"))?;
        if target.is_dir() {
            return Ok(target);
        }
        ensure_go()?;
        eprintln!("building {} {} into {}, from nothing in minutes", self.name, self.version, target.display());
        let partial = beside(&target, ".partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
        let count = self.programs.len() + self.tests.len();
        let mut names = self.programs.iter().chain(self.tests).map(|(name, _)| name).zip(1..);
        let mut tell = || {
            if let Some((name, number)) = names.next() {
                eprintln!("building {} {}: {name}, {number} of {count}", self.name, self.version);
            }
        };
        for (name, package) in self.programs {
            tell();
            self.go(&["build", "-o", &partial.join(name).to_string_lossy()], package)?;
        }
        for (name, package) in self.tests {
            tell();
            self.go(&["test", "-c", "-o", &partial.join(name).to_string_lossy()], package)?;
        }
        self.copy_sources(&partial)?;
        fs::rename(&partial, &target).with_context(|| format!("rename to {}", target.display()))?;
        Ok(target)
    }

    fn go(&self, verb: &[&str], package: &str) -> Result<()> {
        let linker_flags = format!("-s -w {}", self.linker_flags);
        let mut go = command("nice", ["go"]);
        go.args(verb).args([
            "-trimpath",
            "-buildvcs=false",
            "-tags",
            self.build_tags,
            "-ldflags",
            &linker_flags,
            package,
        ]);
        go.env("CGO_ENABLED", if self.cgo { "1" } else { "0" }).current_dir(self.source_directory());
        run(&mut go).with_context(|| format!("build {package} of {} {}", self.name, self.version))
    }

    fn copy_sources(&self, target: &Path) -> Result<()> {
        let Some((module, files)) = self.sources else { return Ok(()) };
        let mut list = command("go", ["list", "-m", "-f", "{{.Dir}}", module]);
        let root = PathBuf::from(output(list.current_dir(self.source_directory()))?.trim());
        for file in files {
            let source = root.join(file);
            let name = source.file_name().context("a source file without a name")?;
            fs::copy(&source, target.join(name)).with_context(|| format!("copy {}", source.display()))?;
        }
        Ok(())
    }

    fn source_directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(self.name)
    }

    fn directory(&self) -> Result<PathBuf> {
        let key = self.key()?;
        Ok(cache_directory()?.join("binaries").join(format!("{}-{}-{key}", self.name, self.version)))
    }

    /// Hash of the wrapper's own files and of the way they are built.
    fn key(&self) -> Result<String> {
        let mut text = format!(
            "{} {} {} {:?} {:?} {:?}\n",
            self.cgo, self.build_tags, self.linker_flags, self.programs, self.tests, self.sources
        );
        for file in ["go.mod", "go.sum", "tools.go"] {
            let path = self.source_directory().join(file);
            text += &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        }
        for (_, package) in self.tests {
            let path = self.source_directory().join(package).join("e2e_test.go");
            text += &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        }
        hash(text.as_bytes())
    }
}

/// The oldest Go that fetches by itself the one which the modules ask for.
const GO_MINIMUM: (u32, u32) = (1, 21);

fn ensure_go() -> Result<()> {
    let wanted = format!("building Kubernetes needs Go {}.{} or newer in PATH", GO_MINIMUM.0, GO_MINIMUM.1);
    let found = output(&mut command("go", ["env", "GOVERSION"])).with_context(|| wanted.clone())?;
    let found = found.trim();
    ensure!(go_version(found).is_some_and(|version| version >= GO_MINIMUM), "{wanted}, found {found:?}");
    Ok(())
}

/// Major and minor number of a version as `go env GOVERSION` prints it, such as `go1.26.8`.
fn go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(|digit: char| !digit.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The cache of everything the testbed builds: `WEFT_CACHE`, or `weft` in the user's cache directory.
///
/// # Errors
/// Neither `WEFT_CACHE` nor `HOME` is set.
pub fn cache_directory() -> Result<PathBuf> {
    if let Some(path) = env::var_os("WEFT_CACHE") {
        return Ok(PathBuf::from(path));
    }
    let home = env::var_os("HOME").context("neither WEFT_CACHE nor HOME is set: no place for the cache")?;
    Ok(PathBuf::from(home).join(".cache/weft"))
}

/// `path` with `suffix` appended to its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Takes the exclusive lock of a cache entry, so that two builders of the same entry do the work once.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    let parent = path.parent().context("a lock file without a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("flock {}", path.display()))
}

/// First 16 hexadecimal digits of the SHA-256 of `bytes`.
pub(crate) fn hash(bytes: &[u8]) -> Result<String> {
    let digest = output_with_input(&mut command("sha256sum", [] as [&str; 0]), bytes)?;
    digest.get(..16).map(str::to_owned).context("sha256sum wrote no digest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_by_number() {
        assert_eq!(go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(go_version("go1.27rc1"), Some((1, 27)));
        assert!(go_version("go1.9").unwrap() < GO_MINIMUM);
        assert_eq!(go_version("devel"), None);
    }

    #[test]
    fn a_suffix_keeps_the_version_in_the_name() {
        assert_eq!(beside(Path::new("/c/etcd-3.7.3-ab"), ".lock"), Path::new("/c/etcd-3.7.3-ab.lock"));
    }

    #[test]
    fn every_wrapper_module_pins_the_version_that_it_is_named_after() {
        for module in MODULES {
            let text = fs::read_to_string(module.source_directory().join("go.mod")).unwrap();
            assert!(text.contains(&format!("v{}", module.version)), "{module:?}");
        }
    }
}
