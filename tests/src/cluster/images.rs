// SPDX-License-Identifier: Apache-2.0

//! The container images of the cluster: those upstream's tests ask for, by the same name and tag, and Weft's own.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::archive::{Image, write, write_layer};
use super::binaries::{Binaries, beside, cache_directory, hash, lock};
use super::command::{command, output, run};

/// The image under which the manifests name Weft.
pub const WEFT_IMAGE: &str = "localhost/weft:dev";
/// The image of the cluster's DNS server.
pub(crate) const COREDNS_IMAGE: &str = "localhost/coredns:1.14.7";
/// The image that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";

/// Programs of Weft's own image.
const WEFT_PROGRAMS: [&str; 4] = ["weft-agent", "weft-cni", "weft", "weft-vhost"];
/// Debian release and packages of the root file system that the test images share: what upstream's tests run in them.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "bind9-dnsutils,busybox-static,conntrack,curl,iperf,iproute2,iptables,iputils-ping,netcat-openbsd,\
nftables,nginx-light";
const PACKAGES_KEY: &str = "layout 1";

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
    let work = WorkDirectory::create(&beside(&target, ".partial"))?;
    debian_layer(&work)?;
    pause_layer(&work, binaries)?;
    agnhost_layer(&work, binaries)?;
    program_layer(&work, "coredns.tar", &binaries.path("coredns")?)?;
    program_layer(&work, "regression.tar", &binaries.path("regression-issue-74839")?)?;
    busybox_layer(&work)?;
    let archive = work.path.join("archive.tar");
    write(&work.path, &test_images(), &archive)?;
    fs::rename(&archive, &target).with_context(|| format!("rename to {}", target.display()))?;
    Ok(target)
}

/// Writes the archive of Weft's own image from the programs in `build_directory` (`target/debug` or `target/release`).
///
/// # Errors
/// A program has not been built: the error names it and the command that builds it.
pub fn build_weft_image(build_directory: &Path, target: &Path) -> Result<()> {
    let work = WorkDirectory::create(&beside(target, ".partial"))?;
    let root = work.subdirectory("weft")?;
    for name in WEFT_PROGRAMS {
        let program = build_directory.join(name);
        ensure!(program.is_file(), "{} does not exist: build it with `cargo xtask build`", program.display());
        let installed = install(&program, &root, &format!("usr/local/bin/{name}"))?;
        run(command("strip", ["--strip-debug"]).arg(&installed))?;
        install_libraries(&program, &root)?;
    }
    write_layer(&work.path, "weft.tar", &root)?;
    let image = Image {
        reference: WEFT_IMAGE,
        layers: vec!["weft.tar"],
        entrypoint: Vec::new(),
        command: vec!["/usr/local/bin/weft-agent"],
    };
    let archive = work.path.join("archive.tar");
    write(&work.path, &[image], &archive)?;
    fs::rename(&archive, target).with_context(|| format!("rename to {}", target.display()))
}

/// Every reference that must be on a node before tests start.
pub(crate) fn test_image_references() -> Vec<String> {
    test_images().iter().map(|image| image.reference.to_owned()).collect()
}

fn test_images() -> Vec<Image<'static>> {
    let image = |reference, layers: &[&'static str], entrypoint: &[&'static str], command: &[&'static str]| Image {
        reference,
        layers: layers.to_vec(),
        entrypoint: entrypoint.to_vec(),
        command: command.to_vec(),
    };
    let serve = ["nginx", "-g", "daemon off;"];
    vec![
        image(PAUSE_IMAGE, &["pause.tar"], &["/pause"], &[]),
        image(COREDNS_IMAGE, &["coredns.tar"], &["/coredns"], &[]),
        image(
            "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
            &["debian.tar", "agnhost.tar"],
            &["/agnhost"],
            &["pause"],
        ),
        image("registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0", &["debian.tar", "coredns.tar"], &[], &["sh"]),
        image("registry.k8s.io/e2e-test-images/nginx:1.15-4", &["debian.tar"], &[], &serve),
        image("registry.k8s.io/e2e-test-images/nginx:1.27-0", &["debian.tar"], &[], &serve),
        image("registry.k8s.io/e2e-test-images/busybox:1.37.0-1", &["busybox.tar"], &[], &["sh"]),
        image(
            "registry.k8s.io/e2e-test-images/regression-issue-74839:1.4",
            &["regression.tar"],
            &["/regression-issue-74839"],
            &[],
        ),
        image("registry.k8s.io/build-image/distroless-iptables:v0.9.6", &["debian.tar"], &[], &[]),
    ]
}

/// The Debian root file system that most test images stand on.
fn debian_layer(work: &WorkDirectory) -> Result<()> {
    let mut mmdebstrap = command("nice", ["mmdebstrap", "--quiet", "--variant=essential"]);
    mmdebstrap.arg(format!("--include={PACKAGES}"));
    for directory in ["man", "locale", "doc"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{directory}/*"));
    }
    run(mmdebstrap.args([SUITE]).arg(work.path.join("debian.tar")))
}

/// Upstream's pause program, linked statically.
fn pause_layer(work: &WorkDirectory, binaries: &Binaries) -> Result<()> {
    let root = work.subdirectory("pause")?;
    let source = binaries.path("pause.c")?;
    run(command("gcc", ["-Os", "-static", "-DVERSION=v3.10.2", "-o"]).arg(root.join("pause")).arg(source))?;
    write_layer(&work.path, "pause.tar", &root)
}

/// agnhost with the certificate of its TLS ports and the DNS server that some tests start from this image.
fn agnhost_layer(work: &WorkDirectory, binaries: &Binaries) -> Result<()> {
    let root = work.subdirectory("agnhost")?;
    for file in ["agnhost", "localhost.crt", "localhost.key", "coredns"] {
        install(&binaries.path(file)?, &root, file)?;
    }
    symlink("agnhost", root.join("agnhost-2")).context("link agnhost-2")?;
    fs::create_dir(root.join("uploads")).context("create /uploads")?;
    write_layer(&work.path, "agnhost.tar", &root)
}

/// One static program in an otherwise empty image.
fn program_layer(work: &WorkDirectory, layer: &str, program: &Path) -> Result<()> {
    let root = work.subdirectory(&format!("{layer}.root"))?;
    let name = program.file_name().context("a program without a name")?.to_string_lossy();
    install(program, &root, &name)?;
    write_layer(&work.path, layer, &root)
}

/// Debian's static busybox, taken from the root file system, under the name of each of its applets.
fn busybox_layer(work: &WorkDirectory) -> Result<()> {
    let root = work.subdirectory("busybox")?;
    let mut extract = command("tar", ["--extract", "--strip-components=2", "--file"]);
    run(extract.arg(work.path.join("debian.tar")).arg("--directory").arg(&root).arg("./usr/bin/busybox"))?;
    let bin = root.join("bin");
    let applets = output(command("chroot", [&root]).args(["/bin/busybox", "--list"]))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("/bin/busybox", bin.join(applet)).with_context(|| format!("link {applet}"))?;
    }
    fs::create_dir(root.join("tmp")).context("create /tmp")?;
    write_layer(&work.path, "busybox.tar", &root)
}

/// Copies what the dynamic linker would load for `program`, at the same paths.
fn install_libraries(program: &Path, root: &Path) -> Result<()> {
    let listing = output(command("ldd", [] as [&str; 0]).arg(program))?;
    for library in listing.split_whitespace().filter(|word| word.starts_with('/')) {
        let inside = library.trim_start_matches('/');
        if !root.join(inside).exists() {
            install(Path::new(library), root, inside)?;
        }
    }
    Ok(())
}

/// Copies `source` to `root/inside` with mode 0755, making its directories.
fn install(source: &Path, root: &Path, inside: &str) -> Result<PathBuf> {
    let target = root.join(inside);
    let parent = target.parent().context("a file without a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    fs::copy(source, &target).with_context(|| format!("copy {} to {}", source.display(), target.display()))?;
    fs::set_permissions(&target, Permissions::from_mode(0o755))
        .with_context(|| format!("chmod {}", target.display()))?;
    Ok(target)
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
