// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask image`: Weft's container image and its release archive, without a container engine.

mod crates;
mod documents;
mod licences;
mod origin;
mod programs;
mod sbom;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use weft_image::{Digest, Packing, Platform, REFERENCE, Weft};

use crate::build;
use origin::Origin;

const PLATFORM: Platform = Platform::Amd64;

/// Arguments of `cargo xtask image`.
#[derive(Args)]
#[command(after_long_help = OUTPUTS)]
pub(crate) struct Arguments {
    /// Make the release archive, too.
    #[arg(long)]
    tarball: bool,
    /// Build everything a second time, from nothing and in another folder, and fail unless all bytes are the same. Wants all
    /// changes to be committed.
    #[arg(long)]
    twice: bool,
    /// What the image is called where it is imported; no part of its digest.
    #[arg(long, value_name = "REFERENCE", default_value = REFERENCE)]
    name: String,
    /// Where the sources are to be found: an annotation of the image.
    #[arg(long, value_name = "URL", env = "WEFT_SOURCE")]
    source: Option<String>,
    /// The commit, where git cannot tell: an annotation of the image.
    #[arg(long, value_name = "ID", env = "WEFT_REVISION")]
    revision: Option<String>,
    /// Folder of what is made [default: target/image].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

const OUTPUTS: &str = "\
Outputs, in target/image:
  oci/                              the image as an OCI image layout, for skopeo, oras, crane
  weft-VERSION-x86_64.oci.tar       the same as a file, for `ctr images import` and `docker load`
  weft-VERSION-x86_64.tar.gz        with --tarball: programs, systemd units, licences and bill of materials
  sbom.cdx.json                     the bill of materials (CycloneDX 1.6), which is in both, too
Digest, sizes and paths are printed. The digest is the image's own: that of its manifest.

The programs are released ones, linked statically and stripped. Times are SOURCE_DATE_EPOCH or the commit's. The same commit,
compilers and C library give the same bytes in whatever folder: `cargo xtask image --tarball --twice` sees whether it is so.";

/// What was made.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    /// The image's.
    digest: Digest,
    layout: PathBuf,
    archive: PathBuf,
    tarball: Option<PathBuf>,
}

/// Makes what `arguments` ask for and prints where it is.
///
/// # Errors
/// Something does not build, or is not the same the second time.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let origin = Origin::find(arguments.source.clone(), arguments.revision.clone())?;
    let target = build::target()?;
    let out = arguments.out.clone().unwrap_or_else(|| target.join("image"));
    let made = make(&build::root(), &target, &out, &origin, arguments)?;
    tell(&made)?;
    if arguments.twice {
        again(&target.join("image-again"), &made, &origin, arguments)?;
        println!("the same from nothing in another folder");
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the image with its defaults and returns its archive.
///
/// # Errors
/// It does not build.
pub(crate) fn archive() -> Result<PathBuf> {
    let origin = Origin::find(None, None)?;
    let arguments =
        Arguments { tarball: false, twice: false, name: REFERENCE.to_owned(), source: None, revision: None, out: None };
    let target = build::target()?;
    Ok(make(&build::root(), &target, &target.join("image"), &origin, &arguments)?.archive)
}

/// Builds the sources in `root` into the target folder `target`, and writes image and archive to `out`.
fn make(root: &Path, target: &Path, out: &Path, origin: &Origin, arguments: &Arguments) -> Result<Made> {
    let programs = programs::build(root, target, PLATFORM)?;
    let linked = crates::linked(root, PLATFORM)?;
    let documents = documents::all(root, &linked, origin)?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let sbom = documents.iter().find(|document| document.name == sbom::NAME).context("no bill of materials")?;
    fs::write(out.join(sbom::NAME), &sbom.bytes).with_context(|| format!("write {}", sbom::NAME))?;
    let annotations = origin.annotations();
    let weft = Weft { programs: &programs, documents, platform: PLATFORM, modified: origin.modified, annotations };
    let name = format!("weft-{}-{}", origin.version, PLATFORM.machine());
    let (layout, archive) = (out.join("oci"), out.join(format!("{name}.oci.tar")));
    let image = weft.write_image(&arguments.name, Packing::Gzip, &layout, &archive)?;
    let tarball = arguments.tarball.then(|| out.join(format!("{name}.tar.gz")));
    if let Some(tarball) = &tarball {
        weft.write_release(&name, &documents::units(root)?, tarball)?;
    }
    Ok(Made { digest: image.digest, layout, archive, tarball })
}

/// Does the same with a copy of the commit in `folder`, and compares.
fn again(folder: &Path, first: &Made, origin: &Origin, arguments: &Arguments) -> Result<()> {
    origin.copy_sources(folder)?;
    let target = folder.join("target");
    let second = make(folder, &target, &target.join("image"), origin, arguments)?;
    ensure!(
        first.digest == second.digest,
        "the image differs: {} and {} ({} and {})",
        first.digest,
        second.digest,
        first.layout.display(),
        second.layout.display()
    );
    same(&first.archive, &second.archive)?;
    if let (Some(first), Some(second)) = (&first.tarball, &second.tarball) {
        same(first, second)?;
    }
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

fn same(first: &Path, second: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    ensure!(read(first)? == read(second)?, "{} and {} differ", first.display(), second.display());
    Ok(())
}

fn tell(made: &Made) -> Result<()> {
    let size = |path: &Path| -> Result<String> {
        let bytes = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
        Ok(format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10))
    };
    println!("digest   {}", made.digest);
    println!("layout   {}", made.layout.display());
    println!("archive  {} ({})", made.archive.display(), size(&made.archive)?);
    if let Some(tarball) = &made.tarball {
        println!("tarball  {} ({}, {})", tarball.display(), size(tarball)?, digest(tarball)?);
    }
    Ok(())
}

fn digest(path: &Path) -> Result<Digest> {
    Ok(Digest::of(&fs::read(path).with_context(|| format!("read {}", path.display()))?))
}
