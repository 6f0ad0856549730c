// SPDX-License-Identifier: Apache-2.0

//! What is written is read by other programs than ours: `tar`, `gzip` and `sha256sum`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::*;
use crate::image::Platform;
use crate::{Document, PROGRAMS, Weft};

const TIME: u64 = 1_700_000_000;
const REFERENCE: &str = "example.test/folder/weft:1.2";

/// A program of the machine stands in for all of Weft's.
fn programs(folder: &Path) -> PathBuf {
    let programs = folder.join("programs");
    fs::create_dir_all(&programs).unwrap();
    for name in PROGRAMS {
        fs::copy("/bin/true", programs.join(name)).unwrap();
    }
    programs
}

fn weft(programs: &Path) -> Weft<'_> {
    Weft {
        programs,
        documents: vec![Document { name: "LICENSE".to_owned(), bytes: b"yours".to_vec() }],
        platform: Platform::Amd64,
        modified: TIME,
        annotations: BTreeMap::from([("org.opencontainers.image.version".to_owned(), "1.2".to_owned())]),
    }
}

/// Writes Weft's image below `folder`: layout, archive and manifest.
fn write(folder: &Path) -> (PathBuf, PathBuf, Descriptor) {
    let (layout, archive) = (folder.join("layout"), folder.join("image.tar"));
    let manifest = weft(&programs(folder)).write_image(REFERENCE, Packing::Gzip, &layout, &archive).unwrap();
    (layout, archive, manifest)
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn sha256sum(path: &Path) -> String {
    let text = String::from_utf8(output(Command::new("sha256sum").arg(path))).unwrap();
    format!("sha256:{}", text.split_whitespace().next().unwrap())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The blob of a descriptor, after a look at its digest and size.
fn blob(root: &Path, descriptor: &Value) -> PathBuf {
    let digest = text(&descriptor["digest"]);
    let path = root.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    assert_eq!(sha256sum(&path), digest);
    assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
    path
}

#[test]
fn every_digest_of_the_archive_is_that_of_what_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let (_, archive, manifest) = write(folder.path());
    let root = folder.path().join("unpacked");
    fs::create_dir(&root).unwrap();
    output(Command::new("tar").arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(&root));
    assert_eq!(json(&root.join("oci-layout")), json!({"imageLayoutVersion": "1.0.0"}));
    let entry = &json(&root.join("index.json"))["manifests"][0];
    assert_eq!(text(&entry["digest"]), manifest.digest.to_string());
    assert_eq!(text(&entry["annotations"][NAME]), REFERENCE);
    let manifest = json(&blob(&root, entry));
    let config = json(&blob(&root, &manifest["config"]));
    let layer = blob(&root, &manifest["layers"][0]);
    let plain = root.join("layer.tar");
    fs::write(&plain, output(Command::new("gzip").args(["--decompress", "--stdout"]).arg(&layer))).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([sha256sum(&plain)]));
    assert_eq!(manifest["annotations"], config["config"]["Labels"]);
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    let docker = json!([{
        "Config": format!("blobs/sha256/{}", text(&manifest["config"]["digest"]).strip_prefix("sha256:").unwrap()),
        "RepoTags": [REFERENCE],
        "Layers": [name(&layer)],
    }]);
    assert_eq!(json(&root.join("manifest.json")), docker);
    let blobs = fs::read_dir(root.join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs, 3, "manifest, configuration and layer, and nothing beside them");
}

#[test]
fn the_layer_has_programs_libraries_and_documents() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, _, _) = write(folder.path());
    let manifest = json(&blob(&layout, &json(&layout.join("index.json"))["manifests"][0]));
    let layer = blob(&layout, &manifest["layers"][0]);
    let listed =
        String::from_utf8(output(Command::new("tar").args(["--list", "--gzip", "--file"]).arg(layer))).unwrap();
    let listed: BTreeSet<_> = listed.lines().collect();
    for name in PROGRAMS {
        assert!(listed.contains(format!("usr/local/bin/{name}").as_str()), "{listed:?}");
    }
    assert!(listed.contains("usr/share/doc/weft/LICENSE"), "{listed:?}");
    assert!(listed.iter().any(|path| path.ends_with("/libc.so.6")), "{listed:?}");
}

#[test]
fn the_same_programs_give_the_same_image_wherever_and_whenever_it_is_written() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = programs(second.path()).join("weft");
    File::options().write(true).open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let (first, second) = (write(first.path()), write(second.path()));
    assert_eq!(first.2, second.2);
    assert_eq!(sha256sum(&first.1), sha256sum(&second.1));
}

#[test]
fn another_program_is_another_image() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, _, image) = write(first.path());
    let other = programs(second.path());
    fs::copy("/bin/false", other.join("weft")).unwrap();
    let (layout, archive) = (second.path().join("layout"), second.path().join("image.tar"));
    let other = weft(&other).write_image(REFERENCE, Packing::Gzip, &layout, &archive).unwrap();
    assert_ne!(image.digest, other.digest);
}

#[test]
fn the_release_archive_has_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let unit = Document { name: "systemd/weft-vhost@.service".to_owned(), bytes: b"[Unit]\n".to_vec() };
    let target = folder.path().join("weft.tar.gz");
    weft(&programs(folder.path())).write_release("weft-1.2", &[unit], &target).unwrap();
    let listed =
        String::from_utf8(output(Command::new("tar").args(["--list", "--gzip", "--file"]).arg(&target))).unwrap();
    let expected = [
        "weft-1.2/",
        "weft-1.2/LICENSE",
        "weft-1.2/bin/",
        "weft-1.2/bin/weft",
        "weft-1.2/bin/weft-agent",
        "weft-1.2/bin/weft-cni",
        "weft-1.2/bin/weft-vhost",
        "weft-1.2/systemd/",
        "weft-1.2/systemd/weft-vhost@.service",
    ];
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (layout, archive) = (folder.path().join("layout"), folder.path().join("image.tar"));
    let error = weft(folder.path()).write_image(REFERENCE, Packing::Plain, &layout, &archive).unwrap_err();
    assert!(error.to_string().contains("weft does not exist"), "{error:#}");
    assert!(!archive.exists());
}
