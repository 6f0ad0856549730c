// SPDX-License-Identifier: Apache-2.0

//! The container images of the cluster: those upstream's tests ask for, by the same name and tag, and Weft's own.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use weft_image::{Image, Layer, Layout, PROGRAMS, Packing, Platform, REFERENCE, Tree, Weft};

use super::binaries::{Binaries, beside, cache_directory, hash, lock};
use super::command::{command, output, run};

/// The image under which the manifests name Weft.
pub const WEFT_IMAGE: &str = REFERENCE;
/// The image of the cluster's DNS server.
pub(crate) const COREDNS_IMAGE: &str = "localhost/coredns:1.14.7";
/// The image that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";

/// Debian release and packages of the root file system that the test images share: what upstream's tests run in them.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "bind9-dnsutils,busybox-static,conntrack,curl,iperf,iproute2,iptables,iputils-ping,netcat-openbsd,\
nftables,nginx-light";
const PACKAGES_KEY: &str = "layout 2";

/// Builds the archive of all images but Weft's, or returns the cached one.
///
/// # Errors
/// A program is missing, or `mmdebstrap`, `gcc` or `tar` fails.
pub fn build_test_images(binaries: &Binaries) -> Result<PathBuf> {
    let key = hash(format!("{SUITE} {PACKAGES} {PACKAGES_KEY} {}", binaries.fingerprint()).as_bytes())?;
    let target = cache_directory()?.join("images").join(format!("test-images-{key}.tar"));
    let _lock = lock(&beside(&target, ".lock"))?;
    if target.is_file() {
        return Ok(target);
    }
    eprintln!("building the test images into {}", target.display());
    let work = WorkDirectory::create(&beside(&target, ".work"))?;
    let mut layout = Layout::create(&work.path.join("layout"))?;
    let layers = layers(&work, &layout, binaries)?;
    for image in &TEST_IMAGES {
        layout.add(&image.with(&layers))?;
    }
    layout.finish()?;
    layout.archive(&target, 0)?;
    Ok(target)
}

/// Writes the archive of Weft's own image from the programs in `build_directory` (`target/debug`), without debug information.
///
/// # Errors
/// A program has not been built: the error names it and the command that builds it.
pub fn build_weft_image(build_directory: &Path, target: &Path) -> Result<()> {
    let work = WorkDirectory::create(&beside(target, ".work"))?;
    let programs = work.subdirectory("programs")?;
    for name in PROGRAMS {
        let program = build_directory.join(name);
        ensure!(program.is_file(), "{} does not exist: build it with `cargo xtask build`", program.display());
        run(command("strip", ["--strip-debug", "-o"]).arg(programs.join(name)).arg(&program))?;
    }
    let weft = Weft {
        programs: &programs,
        documents: Vec::new(),
        platform: Platform::Amd64,
        modified: 0,
        annotations: BTreeMap::new(),
    };
    weft.write_image(WEFT_IMAGE, Packing::Plain, &work.path.join("layout"), target).map(drop)
}

/// Every reference that must be on a node before tests start.
pub(crate) fn test_image_references() -> Vec<String> {
    TEST_IMAGES.iter().map(|image| image.reference.to_owned()).collect()
}

/// An image that upstream's tests ask for.
struct TestImage {
    reference: &'static str,
    /// Lowest first.
    layers: &'static [&'static str],
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
}

const fn image(
    reference: &'static str,
    layers: &'static [&'static str],
    entrypoint: &'static [&'static str],
    command: &'static [&'static str],
) -> TestImage {
    TestImage { reference, layers, entrypoint, command }
}

const SERVE: &[&str] = &["nginx", "-g", "daemon off;"];

const TEST_IMAGES: [TestImage; 9] = [
    image(PAUSE_IMAGE, &["pause"], &["/pause"], &[]),
    image(COREDNS_IMAGE, &["coredns"], &["/coredns"], &[]),
    image("registry.k8s.io/e2e-test-images/agnhost:2.63.0", &["debian", "agnhost"], &["/agnhost"], &["pause"]),
    image("registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0", &["debian", "coredns"], &[], &["sh"]),
    image("registry.k8s.io/e2e-test-images/nginx:1.15-4", &["debian"], &[], SERVE),
    image("registry.k8s.io/e2e-test-images/nginx:1.27-0", &["debian"], &[], SERVE),
    image("registry.k8s.io/e2e-test-images/busybox:1.37.0-1", &["busybox"], &[], &["sh"]),
    image(
        "registry.k8s.io/e2e-test-images/regression-issue-74839:1.4",
        &["regression"],
        &["/regression-issue-74839"],
        &[],
    ),
    image("registry.k8s.io/build-image/distroless-iptables:v0.9.6", &["debian"], &[], &[]),
];

impl TestImage {
    fn with(&self, layers: &BTreeMap<&str, Layer>) -> Image {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Image {
            reference: self.reference.to_owned(),
            platform: Platform::Amd64,
            layers: self.layers.iter().map(|name| layers[name].clone()).collect(),
            entrypoint: owned(self.entrypoint),
            command: owned(self.command),
            created: 0,
            annotations: BTreeMap::new(),
        }
    }
}

/// What [`TEST_IMAGES`] are made of, by name.
fn layers(work: &WorkDirectory, layout: &Layout, binaries: &Binaries) -> Result<BTreeMap<&'static str, Layer>> {
    let plain = |root: &Path| layout.layer(&Tree::of_folder(root)?, 0, Packing::Plain);
    let debian = debian(work)?;
    Ok(BTreeMap::from([
        ("debian", layout.layer_of_tar(&debian)?),
        ("pause", plain(&pause(work, binaries)?)?),
        ("agnhost", plain(&agnhost(work, binaries)?)?),
        ("coredns", plain(&program(work, &binaries.path("coredns")?)?)?),
        ("regression", plain(&program(work, &binaries.path("regression-issue-74839")?)?)?),
        ("busybox", plain(&busybox(work, &debian)?)?),
    ]))
}

/// The Debian root file system that most test images stand on, a tar file.
fn debian(work: &WorkDirectory) -> Result<PathBuf> {
    let mut mmdebstrap = command("nice", ["mmdebstrap", "--quiet", "--variant=essential"]);
    mmdebstrap.arg(format!("--include={PACKAGES}"));
    for directory in ["man", "locale", "doc"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{directory}/*"));
    }
    let target = work.path.join("debian.tar");
    run(mmdebstrap.args([SUITE]).arg(&target))?;
    Ok(target)
}

/// Upstream's pause program, linked statically.
fn pause(work: &WorkDirectory, binaries: &Binaries) -> Result<PathBuf> {
    let root = work.subdirectory("pause")?;
    let source = binaries.path("pause.c")?;
    run(command("gcc", ["-Os", "-static", "-DVERSION=v3.10.2", "-o"]).arg(root.join("pause")).arg(source))?;
    Ok(root)
}

/// agnhost with the certificate of its TLS ports and the DNS server that some tests start from this image.
fn agnhost(work: &WorkDirectory, binaries: &Binaries) -> Result<PathBuf> {
    let root = work.subdirectory("agnhost")?;
    for file in ["agnhost", "localhost.crt", "localhost.key", "coredns"] {
        install(&binaries.path(file)?, &root)?;
    }
    symlink("agnhost", root.join("agnhost-2")).context("link agnhost-2")?;
    fs::create_dir(root.join("uploads")).context("create /uploads")?;
    Ok(root)
}

/// One static program and nothing else.
fn program(work: &WorkDirectory, program: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program without a name")?;
    let root = work.subdirectory(&name.to_string_lossy())?;
    install(program, &root)?;
    Ok(root)
}

/// Debian's static busybox, taken from the root file system, under the name of each of its applets.
fn busybox(work: &WorkDirectory, debian: &Path) -> Result<PathBuf> {
    let root = work.subdirectory("busybox")?;
    let mut extract = command("tar", ["--extract", "--strip-components=2", "--file"]);
    run(extract.arg(debian).arg("--directory").arg(&root).arg("./usr/bin/busybox"))?;
    let bin = root.join("bin");
    let applets = output(command("chroot", [&root]).args(["/bin/busybox", "--list"]))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("/bin/busybox", bin.join(applet)).with_context(|| format!("link {applet}"))?;
    }
    fs::create_dir(root.join("tmp")).context("create /tmp")?;
    Ok(root)
}

/// Copies the file `source` into the folder `root` with mode 0755.
fn install(source: &Path, root: &Path) -> Result<()> {
    let target = root.join(source.file_name().context("a file without a name")?);
    fs::copy(source, &target).with_context(|| format!("copy {} to {}", source.display(), target.display()))?;
    fs::set_permissions(&target, Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", target.display()))
}

/// A directory that goes away with its owner.
struct WorkDirectory {
    path: PathBuf,
}

impl WorkDirectory {
    fn create(path: &Path) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
        }
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_of_a_test_image_is_made_and_every_one_made_is_used() {
        let used: std::collections::BTreeSet<_> = TEST_IMAGES.iter().flat_map(|image| image.layers).copied().collect();
        assert_eq!(
            used.into_iter().collect::<Vec<_>>(),
            ["agnhost", "busybox", "coredns", "debian", "pause", "regression"]
        );
    }

    #[test]
    fn wefts_image_is_made_of_built_programs_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("weft-image.tar");
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let error = build_weft_image(&programs, &target).unwrap_err();
        assert!(error.to_string().contains("cargo xtask build"), "{error:#}");
        for name in PROGRAMS {
            fs::copy("/bin/true", programs.join(name)).unwrap();
        }
        build_weft_image(&programs, &target).unwrap();
        let listed = output(command("tar", ["--list", "--file"]).arg(&target)).unwrap();
        assert!(listed.lines().any(|name| name == "index.json"), "{listed}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
